"""What became of the rows on their way to the model: nothing is cut or left out without being counted here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Ledger", "describe"]


@dataclass(frozen=True)
class Ledger:
    """What became of the rows. Tokens are those of prompts and answers, special ones included."""

    rows: int
    """That were read, bad ones included."""
    bad: int
    no_label: int
    too_long: int
    """Left out because they are."""
    truncated: int
    kept: str
    """What is kept of those that are cut."""
    tokens_cut: int
    chunked: int
    """Rows that became several examples because they were too long."""
    examples: int
    tokens: int
    target_tokens: int
    """Tokens that carry loss; of extractive models, windows that hold an answer."""
    sources: tuple[tuple[str, int, int], ...]
    """For each source its name, its rows, and how often they are drawn in an epoch."""
    unused: tuple[tuple[str, int], ...] = ()
    """Columns that nothing is made of, and how many rows have something in them."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def describe(ledger: Ledger, name: str) -> Iterator[str]:
    """The ledger in sentences; what did not happen is not mentioned."""
    yield f"{name}: {ledger.rows:,} rows, {ledger.examples:,} examples, {ledger.tokens:,} tokens"
    for count, what in (
        (ledger.bad, "rows are bad and left out"),
        (ledger.no_label, "rows have nothing to learn and are left out"),
        (ledger.too_long, "rows are too long and are left out"),
        (ledger.truncated, f"rows are cut by {ledger.tokens_cut:,} tokens; {ledger.kept}"),
        (ledger.chunked, "rows are divided into several examples"),
    ):
        if count:
            yield f"{name}: {count:,} {what}"
    if ledger.unused:
        columns = ", ".join(f"{column} ({count:,} rows)" for column, count in ledger.unused)
        yield f"{name}: columns that are not used: {columns}"
