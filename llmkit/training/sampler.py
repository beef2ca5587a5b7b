"""Which examples are seen when: the order of an epoch, its updates, and how one is shared among processes.

An update is the same set of examples whatever the number of processes and micro-batches it is divided into. The order
follows from the seed and the epoch alone, so that a run that goes on later sees what it would have seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from llmkit.config.recipe import TrainSection

__all__ = ["BatchSampler", "count_updates"]

_POOL = 50
"""Updates whose examples are sorted by length together, as Transformers' LengthGroupedSampler does."""


def count_updates(train: TrainSection, examples: int, processes: int) -> int:
    """Updates of a whole run."""
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
    """Examples in a micro-batch, at most."""
    accumulation: int
    """Micro-batches of one process in an update."""
    processes: int
    strategy: Literal["random", "sequential", "group_by_length"]
    seed: int

    @property
    def update_size(self) -> int:
        """Examples in an update; the last of an epoch may have fewer."""
        return self.batch_size * self.accumulation * self.processes

    @property
    def updates(self) -> int:
        """Updates in an epoch."""
        return -(-len(self.lengths) // self.update_size)

    def epoch(self, number: int) -> list[list[int]]:
        """The indices of each update of an epoch, which begins with 0."""
        import numpy as np

        count, size = len(self.lengths), self.update_size
        if self.strategy == "sequential":
            order = np.arange(count)
        else:
            random = np.random.default_rng((self.seed, number))
            order = random.permutation(count)
        if self.strategy != "group_by_length":
            return [order[start : start + size].tolist() for start in range(0, count, size)]
        lengths = np.asarray(self.lengths)
        updates: list[list[int]] = []
        for start in range(0, count, size * _POOL):
            pool = order[start : start + size * _POOL]
            pool = pool[np.argsort(-lengths[pool], kind="stable")]
            updates += [pool[begin : begin + size].tolist() for begin in range(0, len(pool), size)]
        shuffled: list[list[int]] = [updates[place] for place in random.permutation(len(updates))]
        # The longest first: if memory runs out, then at once.
        longest = max(range(len(shuffled)), key=lambda place: max(self.lengths[index] for index in shuffled[place]))
        shuffled[0], shuffled[longest] = shuffled[longest], shuffled[0]
        return shuffled

    def micro_batches(self, update: Sequence[int], process: int) -> Iterator[list[int]]:
        """The micro-batches of one process in an update, as many in each process: ``accumulation`` of them, or as many
        as have an example in some process. Where there are fewer examples than processes, some are empty.

        Examples of like length share a micro-batch, and the micro-batches that processes work on together are alike.
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
