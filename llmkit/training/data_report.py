"""What a model would see of some data, and the problems of its rows, for ``llmkit data check``.

Checks every row and changes nothing. Knows the examples of a recipe; does not know how a report is printed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from llmkit.data.selection import input_of
from llmkit.heads.base import IGNORED
from llmkit.training.dataset import NO_LABEL, Examples, Part
from llmkit.training.disk_cache import digest
from llmkit.training.encoding import Encoder

__all__ = ["PartReport", "Piece", "Report", "Sample", "check", "samples_of"]

_PROBLEMS = 5
"""Maximum number of rows listed for each kind of problem."""
_BINS = 12


@dataclass(frozen=True)
class Piece:
    """A part of an example; ``learned``: its tokens contribute to the loss (span: it is the answer)."""

    text: str
    learned: bool


@dataclass(frozen=True)
class Sample:
    """One example as the model sees it."""

    where: str
    tokens: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Histogram:
    """Number of examples by length: ``counts[i]`` have from ``edges[i]`` to below ``edges[i + 1]`` tokens."""

    edges: tuple[int, ...]
    counts: tuple[int, ...]
    median: int
    p95: int
    longest: int


@dataclass(frozen=True)
class PartReport:
    """The report on the rows for training or for validation."""

    ledger: dict[str, Any]
    lengths: Histogram
    duplicate_rows: int
    """Rows that occurred before, including their answer."""
    conflicting_rows: int
    """Rows whose input occurred before with another answer."""
    problems: dict[str, list[str]]
    """The first rows that are bad, no_label or too_long, by status."""
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Report:
    train: PartReport
    validation: PartReport | None
    overlap: int
    """Validation rows whose input is also trained on."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return asdict(self)


def check(prepared: Examples, encoder: Encoder, *, samples: int) -> Report:
    """The report on the examples of a recipe, with ``samples`` of each part."""
    train = _report(prepared.train, encoder, samples)
    if prepared.validation is None:
        return Report(train, None, 0)
    seen = {key for key, _ in _keys(prepared.train)}
    overlap = sum(key in seen for key, _ in _keys(prepared.validation))
    return Report(train, _report(prepared.validation, encoder, samples), overlap)


def _report(part: Part, encoder: Encoder, samples: int) -> PartReport:
    keys = list(_keys(part))
    rows, inputs = Counter(keys), Counter(key for key, _ in keys)
    answers = Counter(key for key, _ in rows)
    return PartReport(
        ledger=part.ledger.to_dict(),
        lengths=_histogram(part.examples["length"][:]),
        duplicate_rows=len(keys) - len(rows),
        conflicting_rows=sum(count - 1 for key, count in answers.items() if inputs[key] > 1),
        problems=_problems(part),
        samples=tuple(samples_of(part, encoder.loaded.tokenizer, samples)),
    )


def _keys(part: Part) -> Iterator[tuple[str, str]]:
    """For each valid row, once: a hash of its input, and one of the entire row."""
    mine = sorted(set(part.order))
    lines = part.rows.table.select(mine)
    for text, source in zip(lines["row"], lines["source"], strict=True):
        if text:
            row, task = json.loads(text), part.rows.tasks[source]
            yield digest(task.name, input_of(row, task)), digest(task.name, row)


def _histogram(lengths: Sequence[int]) -> Histogram:
    import numpy as np

    if not lengths:
        return Histogram((), (), 0, 0, 0)
    width = max(1, -(-max(lengths) // _BINS))
    edges = tuple(range(0, max(lengths) + width + 1, width))
    counts = np.histogram(lengths, bins=edges)[0]
    median, p95 = (int(value) for value in np.percentile(lengths, [50, 95], method="inverted_cdf"))
    return Histogram(edges, tuple(map(int, counts)), median, p95, max(lengths))


def _problems(part: Part) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    statuses = part.outcomes["status"][:]
    for place, status in enumerate(statuses):
        if status in ("bad", "no_label", "too_long") and len(found.setdefault(status, [])) < _PROBLEMS:
            line = part.outcomes[place]
            where = part.rows.where(line["row"])
            said = line["message"] or {"no_label": NO_LABEL}.get(status, f"{line['tokens']} tokens")
            found[status].append(said if where in said else f"{where}: {said}")
    return found


def samples_of(part: Part, tokenizer: Any, count: int) -> Iterator[Sample]:
    """Up to ``count`` examples from rows that are spread over the data."""
    examples = part.examples
    step = max(1, len(examples) // count) if count else 0
    for place in range(0, min(len(examples), step * count), step or 1):
        line = examples[place]
        yield Sample(part.rows.where(line["row"]), line["length"], tuple(_pieces(line, tokenizer)))


def _pieces(line: dict[str, Any], tokenizer: Any) -> Iterator[Piece]:
    """An example as text, divided where the loss begins and ends."""
    ids, labels = line["input_ids"], line["labels"]
    if line["start_positions"]:
        places = zip(line["start_positions"], line["end_positions"], strict=True)
        answers = {place for first, last in places for place in range(first, last + 1)}
        labels = [token if place in answers else IGNORED for place, token in enumerate(ids)]
    if line["decoder_input_ids"]:
        yield Piece(str(tokenizer.decode(ids)), False)
        yield Piece("\n", False)
        ids = labels
    yield from _divided(tokenizer, ids, labels, target=bool(line["decoder_input_ids"]))
    if line["rejected_input_ids"]:
        yield Piece("\nrejected:\n" if ids else "undesirable:\n", False)
        yield from _divided(tokenizer, line["rejected_input_ids"], line["rejected_labels"], target=False)


def _divided(tokenizer: Any, ids: Sequence[int], labels: Sequence[int], *, target: bool) -> Iterator[Piece]:
    for learned, run in groupby(zip(ids, labels, strict=True), key=lambda pair: pair[1] != IGNORED):
        yield Piece(_decode(tokenizer, [token for token, _ in run if token != IGNORED], target=target), learned)


def _decode(tokenizer: Any, ids: list[int], *, target: bool) -> str:
    if target and hasattr(tokenizer, "spm_target"):  # Marian has separate vocabularies for source and target
        return " ".join(tokenizer.convert_ids_to_tokens(ids)).replace(" ", "").replace("\u2581", " ")
    return str(tokenizer.decode(ids))
