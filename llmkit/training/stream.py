"""Training examples from sources that are streamed: read, tokenized and shuffled while the model trains.

Examples are held in pools. The position of a pool, from which a run is resumed, is that of its first row in the files,
so that neither the rows before it nor their tokens are needed again. Every process reads all rows, and takes its share
of each update. Does not know what an update computes (`llmkit.training.loop`).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from hashlib import blake2b
from itertools import islice
from typing import Any

from llmkit.config.recipe import Recipe, SourceSection
from llmkit.config.row_condition import RowCondition
from llmkit.data.proposals import propose
from llmkit.data.records import Place, Record
from llmkit.data.selection import Selection
from llmkit.data.shapes import converter
from llmkit.data.sources import commit_of, records_from
from llmkit.errors import InputError, UsageError
from llmkit.training.checkpoint import Progress
from llmkit.training.dataset import LISTS, USED, check_status, encoders_of, outcome_lines
from llmkit.training.encoding import Encoder
from llmkit.training.row_counts import Ledger, Tally
from llmkit.training.row_table import Rows, row_text
from llmkit.training.sampler import BatchSampler, Pool

__all__ = ["ExampleStream"]

_BUFFER = 10_000
"""Examples in a pool by default, as in Axolotl."""
_START = Place()
_DRAWS = 1024
"""Turns of weighted sources that are drawn together."""


@dataclass
class _Reader:
    """One source, and how far it is read."""

    source: SourceSection
    selection: Selection
    place: Place = _START
    used: int = 0
    """Rows of this pass, without those that ``where`` leaves out."""
    passes: int = 0
    """How often it was read to its end."""
    _records: Iterator[tuple[Record, Place]] | None = None
    _behind: Place = _START

    @cached_property
    def _condition(self) -> RowCondition | None:
        return None if self.source.where is None else RowCondition(self.source.where)

    def find(self) -> Record | None:
        """The next row that is used; `place` is then in front of it. None at the end."""
        if self.used == self.source.max_rows:
            return None
        if self._records is None:
            self._records = records_from(self.source, self.place)
        for found, behind in self._records:
            self._behind = behind
            record = found if self._condition is None else self.selection.checked(found, self._condition)
            if record is not None:
                return record
            self.place = behind
        return None

    def take(self) -> None:
        """Move behind the row that was found."""
        self.place, self.used = self._behind, self.used + 1

    def restart(self) -> None:
        """Begin another pass."""
        if not self.used:
            raise InputError(f"no row fulfils where: {self.source.where}", "change the condition", code="no_rows")
        self.place, self.used, self.passes, self._records = _START, 0, self.passes + 1, None


@dataclass(frozen=True)
class _Example:
    line: Mapping[str, Any]
    before: tuple[int, list[tuple[Place, int, int]]]
    """The turn, and where each source was, before its row."""
    number: int
    """Its number among the examples of the row."""


@dataclass
class ExampleStream:
    """The training examples of a recipe whose sources are streamed.

    Args:
        rows: the first rows of the sources.
        encoder: of the recipe's task.
    """

    recipe: Recipe
    rows: Rows
    encoder: Encoder
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        pairs = list(zip(self.recipe.data.train, self.rows.tasks, strict=True))
        self._sources = [_fixed(each if each.shape else propose(each, task).source) for each, task in pairs]
        self._converters = [converter(each, task) for each, (_, task) in zip(self._sources, pairs, strict=True)]
        self._encoders = encoders_of(self.recipe, self.rows, self.encoder)

    def ledger(self) -> Ledger:
        """The counts of all rows that were read, in all epochs."""
        return self.tally.ledger(self.rows.names, "; ".join(dict.fromkeys(each.keeps for each in self._encoders)))

    def pools(self, progress: Progress, sampler: BatchSampler) -> Iterator[Pool]:
        """The pools that are left of an epoch; stores the position of each in ``progress`` before it is yielded."""
        position = progress.stream
        if position:
            self.tally.restore(position["tally"])
        number, begin, expected = position.get("pool", 0), position.get("begin", 0), position.get("hash")
        examples = islice(self._examples(progress.epoch, position), position.get("skip", 0), None)
        ahead = next(examples, None)
        if ahead is None:
            raise InputError("no examples are left in data.train", "use other rows: llmkit data check", code="no_rows")
        while ahead is not None:
            turn, places = ahead.before
            position = {"turn": turn, "sources": places, "skip": ahead.number, "tally": self.tally.state()}
            lines = [ahead.line]
            lines += (each.line for each in islice(examples, self._size(sampler) - 1))
            ahead = next(examples, None)
            found = _hash(lines)
            if expected not in (None, found):
                raise UsageError(
                    "the rows in memory when the checkpoint was written are not those of now, so this would not be a "
                    "resume of the same run",
                    "restore data.train and what determines its tokens, or start a new run in another train.output_dir",
                    code="resume_mismatch",
                )
            expected = None
            progress.stream = {**position, "pool": number, "begin": begin, "hash": found}
            mine = replace(sampler, lengths=[line["length"] for line in lines])
            pool = Pool(lines, mine, mine.epoch(progress.epoch, number), begin, last=ahead is None)
            number, begin = number + 1, begin + len(pool.updates)
            yield pool

    def _size(self, sampler: BatchSampler) -> int:
        """Number of examples in a pool: complete updates."""
        if sampler.strategy == "sequential":
            return sampler.update_size
        return max(1, (self.recipe.data.buffer_size or _BUFFER) // sampler.update_size) * sampler.update_size

    def _examples(self, epoch: int, position: Mapping[str, Any]) -> Iterator[_Example]:
        """The examples from the row of a position on. A row is counted once all of its examples were taken."""
        for before, source, record in self._rows(epoch, position):
            encoder, found = self._encoders[source], []
            for row in self._converters[source](record):
                lines = list(outcome_lines(0, row_text(row), str(row.error or ""), encoder))
                check_status(self.recipe, lines[0], row.where, encoder)
                found.append((row, lines))
            used = (line for _, lines in found for line in lines if line["status"] in USED)
            for number, line in enumerate(used):
                yield _Example(_packed(line), before, number)
            for row, lines in found:
                self.tally.add(lines, row.unused, source, self.rows.tasks[source].name)

    def _rows(self, epoch: int, position: Mapping[str, Any]) -> Iterator[tuple[Any, int, Record]]:
        """The raw rows of all sources, each with the state before it and the number of its source.

        Sources take turns until each has ended; with weights, turns are drawn, and sources that end begin again.
        """
        selection = Selection(left_out=self.tally.left_out)
        readers = [_Reader(source, selection) for source in self._sources]
        for reader, (at, used, passes) in zip(readers, position.get("sources", ()), strict=False):
            reader.place, reader.used, reader.passes = Place(*at), used, passes
        weights = tuple(source.weight for source in self._sources if source.weight is not None)
        turn, seed = position.get("turn", 0), self.recipe.data.seed
        while not all(reader.passes for reader in readers):
            block, place = divmod(turn, _DRAWS)
            number = _drawn(weights, seed, epoch, block)[place] if weights else turn % len(readers)
            reader = readers[number]
            if reader.passes and not weights:
                turn += 1
            elif (record := reader.find()) is None:
                reader.restart()
            else:
                yield (turn, [(each.place, each.used, each.passes) for each in readers]), number, record
                reader.take()
                turn += 1


def _fixed(source: SourceSection) -> SourceSection:
    """The source at its present commit, if it is on the Hub: in every epoch, the same data are read."""
    commit = commit_of(source)
    return source if commit is None else source.model_copy(update={"revision": commit})


@lru_cache(maxsize=2)
def _drawn(weights: tuple[float, ...], *seed: int) -> Sequence[int]:
    """The sources of some turns, by their weights."""
    import numpy as np

    shares = np.asarray(weights) / sum(weights)
    drawn: list[int] = np.random.default_rng(seed).choice(len(weights), size=_DRAWS, p=shares).tolist()
    return drawn


def _hash(lines: Sequence[Mapping[str, Any]]) -> str:
    found = blake2b(digest_size=16)
    for line in lines:
        found.update(b"".join(line[name].tobytes() + b"|" for name in LISTS))
    return found.hexdigest()


def _packed(line: Mapping[str, Any]) -> dict[str, Any]:
    """An example in little memory."""
    return {"length": line["length"], **{name: array("i", line[name]) for name in LISTS}}
