"""What is judged, on which rows, asked how: of a recipe its result on its validation rows, or any model on any data.

Knows how a recipe or a task with data becomes models and rows; how they are judged is `llmkit.evaluation`'s business.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmkit.config.recipe import VERSION, Recipe, SourceSection
from llmkit.config.recipe_file import MAY_RUN_CODE, load_recipe, make_recipe
from llmkit.config.settings import GenerationSettings, LoadSettings, TruncationSide, explicitly_set
from llmkit.data.proposals import task_rows
from llmkit.data.records import Record
from llmkit.engines.transformers import TransformersEngine
from llmkit.errors import InputError, UsageError
from llmkit.evaluation.evaluate import Evaluation, compare, evaluate
from llmkit.files import write_whole
from llmkit.inference.pipeline import Pipeline
from llmkit.inference.tuned_config import apply_contract
from llmkit.log import log, warn
from llmkit.models.load import load_model
from llmkit.models.processes import Worker
from llmkit.models.reachability import offline
from llmkit.models.tables import writes
from llmkit.tasks import PromptOptions, Task, find_task
from llmkit.training.dataset import divide
from llmkit.training.recipe_model import load_settings, open_task
from llmkit.training.row_table import read_rows

__all__ = ["EvaluationSpec", "ProgressFactory", "no_progress", "resolve_evaluation", "run_evaluation"]

ProgressFactory = Callable[[str, int], AbstractContextManager[Callable[[int, int], None]]]
"""Shows the progress of a model over so many rows: takes how many more rows and tokens are done."""


def no_progress(_model: str, _rows: int) -> AbstractContextManager[Callable[[int, int], None]]:
    """Nothing of it is."""
    return nullcontext(lambda _rows, _tokens: None)


@dataclass(frozen=True)
class EvaluationSpec:
    """A model and what it is judged on."""

    task: Task
    load: LoadSettings
    prompt_options: PromptOptions
    rows: Iterable[dict[str, Any]]
    """In the task's columns, what is expected apart from what is given (`Task.without_target`)."""
    truncates: bool = False
    """Whether an input that is too long is cut, as it was in training, unless the caller says otherwise."""
    truncation_side: TruncationSide | None = None


def resolve_evaluation(
    recipe: Recipe | str | None, task: str | None, data: str | None, load: LoadSettings, overrides: Sequence[str] = ()
) -> EvaluationSpec:
    """The result of a recipe on its validation rows, or any model on any rows.

    Args:
        recipe: itself, its file, or the name of a shipped one.
        task: without a recipe.
        data: rows; with a recipe, in place of its own.
        load: what it says wins over the recipe's model section; a model of its own is judged in the result's place.
        overrides: changes of the recipe, such as ``settings.target=de``; without one, of what a recipe would say.

    Raises:
        UsageError: it is not said what is judged on what.
    """
    if isinstance(recipe, Recipe) and overrides:
        raise UsageError("overrides change a recipe's file, and this one is made already", "change it itself")
    if recipe is None:
        if task is None or load.model is None or data is None:
            raise UsageError("what is to be judged?", "give a recipe, or `task`, `model` and `data`", code="no_effect")
        content: dict[str, Any] = {
            "version": VERSION,
            "task": find_task(task).name,
            "model": {"name_or_path": load.model},
            "data": {"train": {"path": data}, "validation": {"path": data}},
            "train": {"output_dir": load.model},
        }
        return _spec_of(make_recipe(content, overrides, name="`task` and `data`"), load, None)
    if task is not None:
        raise UsageError("`task` has no effect beside a recipe, which has one", "leave it out", code="no_effect")
    found = (
        recipe
        if isinstance(recipe, Recipe)
        else load_recipe(recipe, overrides, trusted=[key for key in MAY_RUN_CODE if getattr(load, key)])
    )
    if data is None:
        return _spec_of(found, load, None)
    encoding = next((source.encoding for source in found.data.validation or ()), None)
    return _spec_of(found, load, [SourceSection(path=[data], encoding=encoding)])


def _spec_of(recipe: Recipe, load: LoadSettings, data: Sequence[SourceSection] | None) -> EvaluationSpec:
    task = open_task(recipe)
    said = {name: getattr(load, name) for name in explicitly_set(load)}
    base = replace(load_settings(recipe), model=recipe.train.output_dir, revision=None, base=None)
    prompt_options = PromptOptions(system=recipe.prompt.system, raw=recipe.prompt.raw)
    sources = data or recipe.data.validation
    if sources is not None:
        rows = _expected(_of_sources(sources, task), recipe, task)
    elif recipe.data.validation_fraction is not None:
        rows = _expected(_held_back(recipe, task), recipe, task)
    else:
        raise UsageError("the recipe has no validation data", "set data.validation or data.validation_fraction")
    return EvaluationSpec(
        task,
        replace(base, **said),
        prompt_options,
        rows,
        recipe.data.on_overflow == "truncate",
        recipe.data.truncation_side,
    )


def _of_sources(sources: Sequence[SourceSection], task: Task) -> Iterator[Record]:
    for source in sources:
        yield from task_rows(source, task)


def _held_back(recipe: Recipe, task: Task) -> Iterator[Record]:
    """The rows that training leaves out."""
    rows = read_rows(recipe.data.train, task)
    _, held = divide(recipe, rows, task.input_column)
    return (Record(rows.where(index), rows[index]) for index in held if rows.table[index]["row"])


def _expected(records: Iterable[Record], recipe: Recipe, task: Task) -> Iterator[dict[str, Any]]:
    """Rows with what is expected apart from what is given, as far as the recipe lets them be left out."""
    left, unused = Counter[str](), Counter[str]()
    for record in records:
        row, error, key = None, record.error, "on_bad_row: skip"
        policy: str = recipe.data.on_bad_row
        try:
            if record.row is not None and (row := task.without_target(record.row)) is None:
                key, policy = "on_no_label: drop", recipe.data.on_no_label
                error = InputError(f"{record.where} has no reply that could be judged", f"leave it out with data.{key}")
        except InputError as failure:
            error = failure.reworded(f"{record.where}: {failure.problem}")
        if row is not None:
            unused.update(record.unused)
            yield row
        elif policy == "error":
            error = error or InputError(f"{record.where} cannot be read", "fix it")
            more = "" if key in error.fix else f"pass over such rows with data.{key}"
            raise error.reworded(error.problem, more)
        else:
            left[key] += 1
    for key, count in left.items():
        warn("rows_skipped", "%d rows are left out (data.%s)", count, key)
    if unused:
        log.info("columns that are not used: %s", ", ".join(f"{name} ({count} rows)" for name, count in unused.items()))


def run_evaluation(
    spec: EvaluationSpec,
    settings: GenerationSettings,
    output: Path,
    *,
    baseline: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    max_rows: int | None = None,
    resume: bool = False,
    member: Worker | None = None,
    shown: ProgressFactory = no_progress,
) -> Evaluation | None:
    """Judge a model, and compare it with another on the same rows.

    Args:
        output: folder for ``rows.jsonl``, ``predictions.jsonl``, ``baseline.jsonl`` and ``metrics.json``.
        baseline: the other model.
        metrics: others of the package evaluate, loaded, by name.
        resume: go on where a run into the same folder was stopped.
        member: which of several processes this is; only the first gets the figures, the others None.

    Raises:
        UsageError: the folder is not empty and ``resume`` is False, or a setting has no effect.
        InputError: a row cannot be read, or there is none.
    """
    if settings.num_return_sequences > 1:
        raise UsageError(
            "num_return_sequences: only the first output of a row is judged", "leave it out", code="no_effect"
        )
    member = member or Worker()
    rows = output / "rows.jsonl"
    other_load = None if baseline is None else replace(spec.load, model=baseline, revision=None, base=None)
    if not member.rank and output.exists() and any(output.iterdir()) and not resume:
        raise UsageError(f"{output} is not empty", "`resume` to go on", "name another `output`", code="output_exists")

    def judged(load: LoadSettings, name: str, *, trivial: bool) -> Evaluation | None:
        loaded = load_model(load, spec.task.name, fallback=False)
        with rows.open("rb") as file:
            count = sum(1 for _ in file)
        asked = settings
        if spec.truncates and writes(loaded.head) and settings.on_overflow is None:
            asked = replace(settings, on_overflow="truncate", truncation_side=spec.truncation_side)
        task, prompt_options, asked = apply_contract(loaded, spec.task, spec.prompt_options, asked)
        with shown(loaded.source.name, count) as progress:
            return evaluate(
                Pipeline(task, TransformersEngine(loaded), asked, prompt_options),
                rows,
                output / name,
                load=load,
                metrics=metrics,
                trivial=trivial,
                resume=resume,
                member=member,
                progress=progress,
            )

    with offline(spec.load.offline), nullcontext() if member.rank else _removed_if_unanswered(output):
        if not member.rank:
            output.mkdir(parents=True, exist_ok=True)
            _write(spec, rows, max_rows)
        member.barrier()
        if other_load is not None:  # found now, and not after the first model has answered all
            load_model(other_load, spec.task.name, weights=False, fallback=False)
        result = judged(spec.load, "predictions.jsonl", trivial=True)
        if other_load is not None:
            other = judged(other_load, "baseline.jsonl", trivial=False)
            result = None if result is None or other is None else compare(result, other)
        if result is not None:
            text = json.dumps(result.to_dict(), ensure_ascii=False, indent=2)
            write_whole(output / "metrics.json", f"{text}\n", errors="backslashreplace")
    return result


@contextmanager
def _removed_if_unanswered(output: Path) -> Iterator[None]:
    """What a failed evaluation wrote is removed, unless a row was answered: the corrected command begins again."""
    existed, before = output.exists(), set(output.iterdir()) if output.exists() else set()
    try:
        yield
    except BaseException:
        answered = any(path.stat().st_size for path in output.glob("predictions*.jsonl*") if path.suffix != ".json")
        if not before and output.exists() and not answered:
            for path in output.iterdir():
                path.unlink()
            if not existed:
                output.rmdir()
        raise


def _write(spec: EvaluationSpec, path: Path, max_rows: int | None) -> None:
    """The rows as JSON Lines, what is expected apart from what is given."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in spec.rows:
            if count == max_rows:
                break
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    if not count:
        raise InputError("there are no rows to evaluate on", "check the data", code="no_rows")
