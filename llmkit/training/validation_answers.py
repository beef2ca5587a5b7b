"""Answers to validation rows while training: the task's metrics, and samples to read.

Knows which rows are answered at each evaluation, and where the answers go. The random state is put back, so that the
training is the same with and without samples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

from llmkit.config.recipe import Recipe
from llmkit.config.settings import GenerationSettings
from llmkit.engines.transformers import TransformersEngine
from llmkit.errors import InputError
from llmkit.evaluation.evaluate import greedy, prediction_of, without_reasoning
from llmkit.evaluation.groups import score_rows
from llmkit.files import write_whole
from llmkit.inference.pipeline import Pipeline
from llmkit.inference.tuned_config import recipe_prompt
from llmkit.log import log
from llmkit.models.load import Loaded
from llmkit.tasks import Task
from llmkit.tasks.output import Output
from llmkit.training.checkpoint import random_state, restore_random
from llmkit.training.dataset import Part

__all__ = ["COMPLETIONS", "expected_rows", "validation_answers"]

COMPLETIONS = "completions.jsonl"
"""File of the samples in the folder of a run."""
_SHOWN = 100
"""Characters of each text in the log."""


def expected_rows(
    part: Part, task: Task, key: str, limit: int | None = None
) -> list[tuple[dict[str, Any], Sequence[str]]]:
    """The rows of a part without their target, each with its references.

    Raises:
        InputError: a row has no references; ``key`` of the recipe needs them.
    """
    found: list[tuple[dict[str, Any], Sequence[str]]] = []
    for row in islice(part.used_rows(), limit):
        if task.is_plain(row):
            raise InputError(
                f"train.{key} needs answers to generate, but the validation rows are plain text",
                "leave it out, or use rows with an input and an answer",
            )
        if (split := task.without_target(row)) is not None:
            found.append((split, task.references(split)))
    return found


def validation_answers(
    recipe: Recipe, task: Task, loaded: Loaded, parts: Mapping[str, Part], accelerator: Any
) -> Callable[[int], dict[str, float]] | None:
    """The function that answers validation rows after an update; None if evaluations compute the loss alone."""
    train = recipe.train
    if not train.answers_validation_rows:
        return None
    measured = train.compares_answers
    key = "metric_for_best_model" if measured else "num_completions_to_print"
    expected = expected_rows(parts["validation"], task, key, None if measured else train.num_completions_to_print)
    rows, references = [row for row, _ in expected], [each for _, each in expected]
    pipeline = greedy(
        Pipeline(task, TransformersEngine(loaded), GenerationSettings(), recipe_prompt(recipe, loaded, task))
    )
    shown = without_reasoning(pipeline, references)
    samples = _Samples(Path(train.output_dir), rows[: train.num_completions_to_print], shown, task, accelerator)

    def answer(update: int) -> dict[str, float]:
        before = random_state()
        texts = _answers(pipeline, rows, accelerator)
        restore_random(before)
        if samples.rows and accelerator.is_main_process:
            samples.report(update, texts)
        measures = score_rows(task, rows, texts, shown).measures if measured else []
        return {each.name: each.value for each in measures}

    return answer


def _answers(pipeline: Pipeline, rows: Sequence[dict[str, Any]], accelerator: Any) -> list[str | None]:
    """The answer to each row, from whichever process generated it; None if it failed."""
    from accelerate.utils import gather_object

    rank, world = accelerator.process_index, accelerator.num_processes
    with accelerator.autocast():
        answers = pipeline.map(rows[rank::world], errors="yield")
        mine = [
            (rank + number * world, prediction_of(answer.to_dict()) if isinstance(answer, Output) else None)
            for number, answer in enumerate(answers)
        ]
    return [text for _, text in sorted(gather_object(mine), key=itemgetter(0))]


@dataclass(frozen=True)
class _Samples:
    """Validation rows whose answers are logged at each evaluation."""

    folder: Path
    rows: Sequence[dict[str, Any]]
    references: Sequence[Sequence[str]]
    task: Task
    accelerator: Any

    def report(self, update: int, texts: Sequence[str | None]) -> None:
        """Log each answer in a line, and write it in full to a file of the run and to trackers that take text."""
        fields = (*self.task.columns, *self.task.optional_columns)
        columns = [{name: row[name] for name in fields if name in row} for row in self.rows]
        records: list[dict[str, Any]] = [
            {"update": update, "row": number + 1, "columns": row, "references": list(expected), "prediction": text}
            for number, (row, expected, text) in enumerate(zip(columns, self.references, texts, strict=False))
        ]
        for record in records:
            shown = "(failed)" if record["prediction"] is None else _shortened(record["prediction"])
            expected = " | ".join(map(_shortened, record["references"])) or "(no answer)"
            log.info("update %d, row %d: %s (reference: %s)", update, record["row"], shown, expected)
        self._save(update, records)
        self._track(update, records)

    def _save(self, update: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Append to the file, without what a run wrote that was resumed from before this update."""
        path = self.folder / COMPLETIONS
        before = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
        kept = [line for line in before if json.loads(line)["update"] < update]
        lines = [json.dumps(record, ensure_ascii=False, default=str) + "\n" for record in records]
        write_whole(path, "".join((*kept, *lines)), errors="backslashreplace")

    def _track(self, update: int, records: Sequence[Mapping[str, Any]]) -> None:
        names = ("input", "reference", "prediction")
        cells = [
            [str(row[self.task.input_column]), "\n".join(each["references"]), each["prediction"]]
            for row, each in zip(self.rows, records, strict=True)
        ]
        named = [f"{name}: {cell}" for row in cells for name, cell in zip(names, row, strict=True)]
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_table"):
                tracker.log_table("completions", columns=list(names), data=cells, step=update)
            elif hasattr(tracker.tracker, "add_text"):
                tracker.log({"completions": "\n\n".join(named)}, step=update)


def _shortened(text: str) -> str:
    """The beginning of a text in one line."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]} …"
