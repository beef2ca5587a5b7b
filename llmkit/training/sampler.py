"""The order of examples: the updates of an epoch, and the micro-batches of each process in an update.

An update is the same set of examples for any number of processes and micro-batches. The order depends only on seed and
epoch, so that a resumed run sees the same examples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llmkit.config.recipe import TrainSection

__all__ = ["CPU_TOKENS", "BatchSampler", "Pool", "count_updates", "divide"]

_POOL = 50
"""Number of updates whose examples are sorted by length together, as in Transformers' LengthGroupedSampler."""

CPU_TOKENS = 1024
"""Tokens that a CPU computes at once: more need more memory, and take as long. An example is never divided."""


def divide(indices: Sequence[int], lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Parts of a micro-batch of up to a number of tokens each, padding included, or of one example; longest first.

    One that is no larger stays as it is.
    """
    if len(indices) * max(lengths[each] for each in indices) <= tokens:
        return [list(indices)]
    parts: list[list[int]] = []
    for index in sorted(indices, key=lambda each: -lengths[each]):
        if parts and lengths[parts[-1][0]] * (len(parts[-1]) + 1) <= tokens:
            parts[-1].append(index)
        else:
            parts.append([index])
    return parts


def count_updates(train: TrainSection, examples: int, processes: int) -> int:
    """Number of updates of a run."""
    if train.max_steps > 0:
        return train.max_steps
    size = train.per_device_train_batch_size * train.gradient_accumulation_steps * processes
    return math.ceil(-(-examples // size) * train.num_train_epochs)


@dataclass(frozen=True)
class BatchSampler:
    """The batches of a run."""

    lengths: Sequence[int]
    """Tokens of each example."""
    batch_size: int
    """Maximum number of examples in a micro-batch."""
    accumulation: int
    """Micro-batches of each process in an update."""
    processes: int
    strategy: Literal["random", "sequential", "group_by_length"]
    seed: int

    @property
    def update_size(self) -> int:
        """Examples in an update; the last one of an epoch may have fewer."""
        return self.batch_size * self.accumulation * self.processes

    @property
    def updates(self) -> int:
        """Updates in an epoch."""
        return -(-len(self.lengths) // self.update_size)

    def epoch(self, number: int, pool: int = 0) -> list[list[int]]:
        """The indices of each update of an epoch, or of a pool of it; both are numbered from 0."""
        import numpy as np

        count, size = len(self.lengths), self.update_size
        if self.strategy == "sequential":
            order = np.arange(count)
        else:
            random = np.random.default_rng((self.seed, number, pool))
            order = random.permutation(count)
        if self.strategy != "group_by_length":
            return [order[start : start + size].tolist() for start in range(0, count, size)]
        lengths = np.asarray(self.lengths)
        updates: list[list[int]] = []
        for start in range(0, count, size * _POOL):
            part = order[start : start + size * _POOL]
            part = part[np.argsort(-lengths[part], kind="stable")]
            updates += [part[begin : begin + size].tolist() for begin in range(0, len(part), size)]
        shuffled: list[list[int]] = [updates[place] for place in random.permutation(len(updates))]
        # The longest update is first, so that memory runs out at once if at all.
        longest = max(range(len(shuffled)), key=lambda place: max(self.lengths[index] for index in shuffled[place]))
        shuffled[0], shuffled[longest] = shuffled[longest], shuffled[0]
        return shuffled

    def micro_batches(self, update: Sequence[int], process: int) -> Iterator[list[int]]:
        """The micro-batches of one process in an update: the same number in each process, at most ``accumulation``.

        Some are empty if there are fewer examples than processes. Examples of similar length are in the same
        micro-batch, and in those of the other processes at the same time.
        """
        ordered = (
            update if self.strategy != "group_by_length" else sorted(update, key=lambda index: -self.lengths[index])
        )
        steps = min(self.accumulation, -(-len(ordered) // self.processes))
        parts = steps * self.processes
        size, more = divmod(len(ordered), parts)
        bounds = [0]
        for part in range(parts):
            bounds.append(bounds[-1] + size + (part < more))
        for step in range(steps):
            part = step * self.processes + process
            yield list(ordered[bounds[part] : bounds[part + 1]])


@dataclass(frozen=True)
class Pool:
    """Examples that are shuffled together: those of an epoch, or of a stream as many as are held in memory."""

    examples: Any
    """The fields of `llmkit.heads.base.Features` of each, by index."""
    sampler: BatchSampler
    updates: Sequence[Sequence[int]]
    begin: int = 0
    """Updates of the epoch before it."""
    last: bool = True
    """Whether the epoch ends with it."""

    @property
    def end(self) -> int:
        """Updates of the epoch up to its end."""
        return self.begin + len(self.updates)
