"""Examples of preferences with what training on them needs in addition: the log-probabilities of the reference.

The reference is the model before training, as the recipe names it: without the new adapter, or with the adapter that is
trained further. Its log-probabilities are computed once, without dropout and before an adapter is added, so that no
second model is needed. Does not know losses (`llmkit.heads.preference`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from llmkit.config.recipe import TrainSection
from llmkit.heads import BaseHead
from llmkit.heads.base import IGNORED
from llmkit.heads.preference import PreferenceObjective, make_objective, sequences
from llmkit.models.load import Loaded
from llmkit.progress import ProgressMeter
from llmkit.training.sampler import BatchSampler, count_updates

__all__ = ["PreferenceExamples", "ReferenceModel", "disable_dropout", "with_references"]


@dataclass(frozen=True)
class PreferenceExamples:
    """A table of examples, with the log-probabilities of their answers under the reference."""

    table: Any
    references: Mapping[int, Sequence[float]]
    partners: Mapping[int, int]
    """KTO: for each example the one with whose answer the divergence from the reference is estimated."""
    max_length: int | None = None

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, key: Any) -> Any:
        """A column, or an example."""
        if isinstance(key, str):
            return self.table[key]
        line = {**self.table[key], **self._with_other_answer(key)}
        return {**line, "reference": self.references[key]} if key in self.references else line

    def _with_other_answer(self, index: int) -> dict[str, Sequence[int]]:
        if index not in self.partners:
            return {}
        ((own, labels),), ((other, learned),) = (sequences(self.table[each]) for each in (index, self.partners[index]))
        prompt, answer = own[: _answer_start(labels)], other[_answer_start(learned) :]
        ids = [*prompt, *answer][: self.max_length]
        return {"kl_input_ids": ids, "kl_labels": [*[IGNORED] * len(prompt), *ids[len(prompt) :]]}


def _answer_start(labels: Sequence[int]) -> int:
    return next(place for place, label in enumerate(labels) if label != IGNORED)


def _partners(groups: Sequence[Sequence[int]]) -> dict[int, int]:
    """For each example the one before it in its group, as TRL cycles the answers of a batch."""
    found, before = dict[int, int](), groups[-1][-1]
    for group in groups:
        for place, index in enumerate(group):
            found.setdefault(index, group[place - 1] if len(group) > 1 else before)
        before = group[-1]
    return found


@dataclass(frozen=True)
class ReferenceModel:
    """The model before training, and the processes that compute its log-probabilities."""

    loaded: Loaded
    head: BaseHead
    method: Any
    rank: int
    world: int
    gather: Callable[[list[Any]], list[Any]]
    """Collects the items of the lists of all processes."""
    autocast: Callable[[], AbstractContextManager[Any]]

    @property
    def is_needed(self) -> bool:
        return bool(self.method.name != "orpo")

    def log_probs(self, examples: PreferenceExamples, indices: Sequence[int], size: int) -> dict[int, list[float]]:
        """The log-probabilities of the answers of some examples, in batches of ``size``."""
        model: Any = self.loaded.model
        objective = self._objective(max(examples["targets"][:], default=0) * size)
        order = sorted(indices, key=examples["length"][:].__getitem__)
        batches = [order[start : start + size] for start in range(0, len(order), size)][self.rank :: self.world]
        found: list[tuple[int, list[float]]] = []
        model.eval()
        with self.autocast(), ProgressMeter(len(order), "reference examples", shown=not self.rank) as meter:
            for part in batches:
                lines = [examples[index] for index in part]
                batch = objective.batch(lines, pad_id=self.head.pad_id(self.loaded))
                found += zip(part, objective.reference(model, batch.to(self.loaded.device)), strict=True)
                meter.advance(len(part) * self.world)
        return dict(self.gather(found))

    def _objective(self, labels: int) -> PreferenceObjective:
        model = self.loaded.model
        found = make_objective(model, self.head, method=self.method).in_chunks(model, labels, ())
        assert isinstance(found, PreferenceObjective)
        return found


def with_references(
    parts: Mapping[str, Any], train: TrainSection, model: ReferenceModel, max_length: int | None
) -> dict[str, Any]:
    """The tables of examples with all that the method needs of each example that the run uses."""
    return {
        name: _extended(table, _groups(name, table, train, model.world), train, model, max_length)
        for name, table in parts.items()
    }


def _extended(
    table: Any, groups: Sequence[Sequence[int]], train: TrainSection, model: ReferenceModel, max_length: int | None
) -> PreferenceExamples:
    paired = model.method.name == "kto" and model.method.loss_type == "kto"
    partners = _partners(groups) if paired else {}
    plain = PreferenceExamples(table, {}, partners, max_length)
    if not model.is_needed:
        return plain
    indices = sorted({index for group in groups for index in group})
    size = train.per_device_eval_batch_size
    return PreferenceExamples(table, model.log_probs(plain, indices, size), partners, max_length)


def _groups(name: str, table: Any, train: TrainSection, processes: int) -> list[list[int]]:
    """The examples that the run uses, as they come together in its first epoch, or in an evaluation."""
    lengths = table["length"][:]
    if name != "train":
        order, size = sorted(range(len(lengths)), key=lengths.__getitem__), train.per_device_eval_batch_size
        return [order[start : start + size] for start in range(0, len(order), size)]
    updates = BatchSampler(
        lengths=lengths,
        batch_size=train.per_device_train_batch_size,
        accumulation=train.gradient_accumulation_steps,
        processes=processes,
        strategy=train.train_sampling_strategy,
        seed=train.seed,
    ).epoch(0)
    return updates[: count_updates(train, len(lengths), processes)]


def disable_dropout(model: Any) -> None:
    """Set all probabilities of dropout to 0, also those that a module passes to a function."""
    import torch

    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and (name.endswith("dropout") or isinstance(module, torch.nn.Dropout)):
                setattr(module, name, 0.0)
