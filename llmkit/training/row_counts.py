"""Counts of what happened to rows: everything that is truncated, dropped or skipped is counted here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Ledger", "describe"]


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

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return asdict(self)


def describe(ledger: Ledger, name: str) -> Iterator[str]:
    """The ledger in sentences, without counts of zero."""
    yield f"{name}: {ledger.rows:,} rows, {ledger.examples:,} examples, {ledger.tokens:,} tokens"
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
