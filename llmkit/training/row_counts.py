"""Counts of what happened to rows: everything that is truncated, dropped or skipped is counted here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

__all__ = ["Ledger", "Tally", "describe"]


@dataclass(frozen=True)
class Ledger:
    """Counts of rows, examples and tokens. Tokens include prompts, answers and special tokens."""

    rows: int
    """All rows, including bad ones."""
    bad: int
    no_label: int
    too_long: int
    """Dropped because they are too long."""
    truncated: int
    kept: str
    """What is kept of truncated rows, in words."""
    tokens_cut: int
    chunked: int
    """Long rows that were divided into several examples."""
    examples: int
    tokens: int
    target_tokens: int
    """Tokens that contribute to the loss; for extractive models, windows that contain an answer."""
    sources: tuple[tuple[str, int, int], ...]
    """For each source its name, its rows, and the number of rows drawn from it in an epoch."""
    unused: tuple[tuple[str, int], ...] = ()
    """Columns that are not used, and the number of rows with a value in them."""
    remarks: tuple[tuple[str, int], ...] = ()
    """What is not learned or not shown to the model, though it is in the rows, and the number of these rows."""
    left_out: tuple[tuple[str, int], ...] = ()
    """Keys of the recipe that leave out rows, and the number of these rows, which count nowhere else."""
    first_rows: bool = False
    """Whether these are only the first rows of a stream."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return asdict(self)


@dataclass
class Tally:
    """Counts of rows while they are read; the state of a stream, so in JSON."""

    counts: Counter[str] = field(default_factory=Counter)
    """By the names of the ledger's fields, and by status."""
    rows: Counter[str] = field(default_factory=Counter)
    """Of each source, by its number."""
    unused: Counter[str] = field(default_factory=Counter)
    remarks: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    longest: Counter[str] = field(default_factory=Counter)
    """Tokens of the longest target of each task."""

    def add(self, lines: Sequence[Mapping[str, Any]], unused: Collection[str], source: int, task: str) -> None:
        """Count a row by its lines in the outcome table."""
        status = lines[0]["status"]
        sums = {"tokens": "length", "target_tokens": "targets", "tokens_cut": "cut"}
        self.counts.update({name: sum(line[column] for line in lines) for name, column in sums.items()})
        self.counts.update({"rows": 1, status: 1, "examples": sum(line["length"] > 0 for line in lines)})
        self.rows[str(source)] += 1
        self.unused.update(unused)
        self.remarks.update(set(lines[0]["remarks"]))
        self.longest[task] = max(self.longest[task], *(line["targets"] for line in lines))

    def state(self) -> dict[str, dict[str, int]]:
        """A copy that `restore` takes."""
        return {name: dict(counts) for name, counts in vars(self).items()}

    def restore(self, state: Mapping[str, Mapping[str, int]]) -> None:
        """Set all counts; the counters stay the same objects."""
        for name, counts in state.items():
            counter: Counter[str] = getattr(self, name)
            counter.clear()
            counter.update(counts)

    def ledger(self, names: Sequence[str], kept: str) -> Ledger:
        """The ledger of the rows so far; ``names`` are those of the sources."""
        numbers: dict[str, Any] = {item.name: self.counts[item.name] for item in fields(Ledger) if item.type == "int"}
        rows = [self.rows[str(number)] for number in range(len(names))]
        return Ledger(
            **numbers,
            kept=kept,
            sources=tuple(zip(names, rows, rows, strict=True)),
            unused=tuple(self.unused.items()),
            remarks=tuple(self.remarks.items()),
            left_out=tuple(self.left_out.items()),
        )


def describe(ledger: Ledger, name: str) -> Iterator[str]:
    """The ledger in sentences, without counts of zero."""
    first = "the first " if ledger.first_rows else ""
    yield f"{name}: {first}{ledger.rows:,} rows, {ledger.examples:,} examples, {ledger.tokens:,} tokens"
    for count, what in (
        (ledger.bad, "bad rows are skipped"),
        (ledger.no_label, "rows without anything to learn are dropped"),
        (ledger.too_long, "rows are too long and are dropped"),
        (ledger.truncated, f"rows are truncated by {ledger.tokens_cut:,} tokens in total; {ledger.kept}"),
        (ledger.chunked, "rows are divided into several examples"),
    ):
        if count:
            yield f"{name}: {count:,} {what}"
    yield from (f"{name}: {count:,} rows are left out by {key}" for key, count in ledger.left_out)
    if ledger.unused:
        columns = ", ".join(f"{column} ({count:,} rows)" for column, count in ledger.unused)
        yield f"{name}: unused columns: {columns}"
    for remark, count in ledger.remarks:
        yield f"{name}: {count:,} rows: {remark}"
