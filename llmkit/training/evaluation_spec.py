"""What an evaluation compares: a run, a recipe, or any model, on the rows that it names.

Knows how these become a model, a task and rows, and which files an evaluation writes. Scoring is in
`llmkit.evaluation`.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from llmkit.config.commands import command_line, quoted
from llmkit.config.declaration import explicitly_set, setting_fields
from llmkit.config.paths import user_path
from llmkit.config.recipe import VERSION, PythonRows, Recipe
from llmkit.config.recipe_file import MAY_RUN_CODE, load_recipe, make_recipe
from llmkit.config.settings import GenerationSettings, LoadSettings, TruncationSide, delimiter_character
from llmkit.config.user import chosen_model
from llmkit.data.prompt_files import open_prompt
from llmkit.engines.transformers import TransformersEngine
from llmkit.errors import InputError, UsageError
from llmkit.evaluation.evaluate import Evaluation, compare, compare_shots, evaluate
from llmkit.evaluation.results import json_lines, log_problems, write_results
from llmkit.files import read_json, write_whole
from llmkit.hub.reachability import offline
from llmkit.inference.pipeline import Pipeline
from llmkit.inference.tuned_config import apply_contract
from llmkit.models.load import load_model
from llmkit.models.processes import Worker
from llmkit.models.source import ADAPTER_CONFIG, CONTRACT_FILE
from llmkit.models.tables import writes
from llmkit.progress import ProgressMeter
from llmkit.tasks import PromptOptions, Row, ShotsBy, Task, find_task
from llmkit.tasks.wording import columns_of_template
from llmkit.training.checkpoint import checkpoints
from llmkit.training.evaluation_rows import RowChoice, evaluation_records, example_rows, separated_rows
from llmkit.training.provenance import RESOLVED
from llmkit.training.recipe_model import load_settings, open_task
from llmkit.training.source_tasks import chosen_task, recipe_of

__all__ = ["EvaluationSpec", "resolve_evaluation", "run_evaluation"]

_ROWS = "rows.jsonl"
_REPLACED = ".replaced"
"""Folder for the files of an earlier evaluation until the one that replaces it has answered a row."""


@dataclass(frozen=True)
class EvaluationSpec:
    """A model and the rows to evaluate it on."""

    task: Task
    load: LoadSettings
    prompt_options: PromptOptions
    rows: Iterable[dict[str, Any]]
    """In the task's columns, with the target separate from the input (`Task.without_target`), and `ORIGIN`."""
    data: str
    """Name of the rows, for the name of the output folder."""
    truncates: bool = False
    """Whether an input that is too long is truncated unless the caller says otherwise, because training did so."""
    truncation_side: TruncationSide | None = None

    @property
    def output(self) -> Path:
        """The default folder of the results, named after the model and the rows."""
        return Path("evaluation", f"{_slug(str(self.load.model))}-on-{_slug(self.data)}")


def resolve_evaluation(
    run: Recipe | str | None,
    task: str | None,
    data: str | PythonRows | None,
    load: LoadSettings,
    overrides: Sequence[str] = (),
    *,
    columns: Mapping[str, str] | None = None,
    encoding: str | None = None,
    header: bool | None = None,
    delimiter: str | None = None,
    settings: Mapping[str, Any] | None = None,
    examples: str | Sequence[Row] = (),
    shots_by: ShotsBy | None = None,
    shots_seed: int | None = None,
) -> EvaluationSpec:
    """The trained model of a run or recipe on its validation rows, or any model on any rows.

    Args:
        run: the folder of a run, a recipe, its file, or the name of a built-in one. Another folder with a model is
            the model.
        task: without a recipe, or one of a mixture of tasks.
        data: rows; with a recipe, replaces its validation rows.
        load: fields that are set explicitly override the recipe's model section; a model replaces the trained one.
        overrides: changes to the recipe, such as ``settings.target=de``.
        columns: the rows' column for each field of the task, in addition to the recipe's.
        encoding: of the rows, if not UTF-8.
        header: CSV and TSV: whether the first row names the columns; by default the recipe's, or detected.
        delimiter: CSV and TSV: what separates the fields; by default the recipe's, or detected.
        settings: settings of the task; they override the recipe's.
        examples: few-shot examples, in place of the recipe's: rows in the task's columns, or where they are, as
            ``data``.
        shots_by: see `PromptOptions`.
        shots_seed: see `PromptOptions`.

    Raises:
        UsageError: model, task or rows are missing, or the recipe has not been trained.
    """
    prompt = {"examples": examples, "shots_by": shots_by, "shots_seed": shots_seed}
    explicit = {name: getattr(load, name) for name in explicitly_set(load)}
    separator = None if delimiter is None else delimiter_character(delimiter)
    choice = RowChoice(data, columns or {}, encoding, header, separator)
    if isinstance(run, str) and user_path(run).is_dir() and not (user_path(run) / RESOLVED).is_file():
        if load.model is not None:
            raise UsageError(f"{run} and `model` both name a model", "leave one of them out")
        task, explicit["model"], run = task or _tuned_task(run), run, None
    if run is None:
        if task is not None and (model := chosen_model(load.model, find_task(task))) is not None:
            explicit.setdefault("model", model)
        recipe = _recipe_for(task, explicit.get("model"), choice, overrides)
        return _spec(recipe, open_task(recipe), explicit, choice, settings or {}, prompt)
    if isinstance(run, Recipe):
        if overrides:
            raise UsageError("overrides apply to a recipe's file, not to a Recipe object", "change the object")
        recipe, name, folder = run, "the recipe", Path(run.train.output_dir)
    else:
        is_run = user_path(run).is_dir()
        name = str(user_path(run) / RESOLVED) if is_run else run
        trusted = [key for key in MAY_RUN_CODE if getattr(load, key)]
        try:
            recipe = load_recipe(name, overrides, trusted=trusted)
        except UsageError as error:
            if error.code == "recipe_not_found" and not user_path(name).exists():
                raise error.reworded(f"no run, recipe file or built-in recipe is named {name}") from error
            raise
        folder = user_path(run) if is_run else Path(recipe.train.output_dir)
    sources = [*recipe.data.train, *(recipe.data.validation or ())]
    chosen = chosen_task(sources, open_task(recipe), task)
    if load.model is None:
        _require_trained(folder, name, overrides)
        explicit["model"] = str(folder)
        recipe = _with_own_examples(recipe, folder, overrides)
    return _spec(recipe, chosen, explicit, choice, settings or {}, prompt)


def _tuned_task(folder: str) -> str:
    """The task that the model in a folder was tuned for."""
    path = user_path(folder) / CONTRACT_FILE
    if not path.is_file():
        raise UsageError(
            f"{folder} is not the folder of a run, and does not name a task",
            f"name the model, the task and the rows: `model={folder}`, `task` and `data`",
        )
    return str(read_json(path).get("task"))


def _recipe_for(task: str | None, model: str | None, choice: RowChoice, overrides: Sequence[str]) -> Recipe:
    """A recipe with a task, a model and rows, as if it had trained that model."""
    if task is None or model is None or choice.data is None:
        options = {"task": task, "model": model, "data": choice.data}
        missing = ", ".join(f"`{name}`" for name, value in options.items() if value is None)
        raise UsageError(
            f"nothing to evaluate without {missing}", "name a run, a recipe, or `task`, `model` and `data`"
        )
    rows = {"path": choice.data} if isinstance(choice.data, str) else {"rows": choice.data.model_dump()}
    content: dict[str, Any] = {
        "version": VERSION,
        "task": find_task(task).name,
        "model": {"name_or_path": model},
        "data": {"train": rows, "validation": rows},
        "train": {"output_dir": model},
    }
    return make_recipe(content, overrides, name="`task` and `data`")


def _require_trained(folder: Path, recipe: str, overrides: Sequence[str]) -> None:
    """Refuse a recipe without a trained model, before its folder is taken for the name of a model on the Hub."""
    if any((folder / name).is_file() for name in (CONTRACT_FILE, ADAPTER_CONFIG, "config.json")):
        return
    begun = bool(checkpoints(folder))
    command = command_line("finetune", quoted(recipe), set=overrides, resume=begun)
    if begun:
        raise UsageError(f"the training in {folder} is not finished", f"continue it with: {command}", "name a `model`")
    raise UsageError(
        f"{recipe} is not trained yet: {folder} holds no model", f"train it with: {command}", "name a `model`"
    )


def _with_own_examples(recipe: Recipe, folder: Path, overrides: Sequence[str]) -> Recipe:
    """The recipe with the few-shot examples that are saved with its model, whose file may have changed since."""
    saved = read_json(folder / CONTRACT_FILE) if (folder / CONTRACT_FILE).is_file() else {}
    examples = saved.get("prompt", {}).get("examples")
    if not examples or any(change.startswith("prompt.") for change in overrides):
        return recipe
    prompt: Any = recipe.prompt
    return recipe.model_copy(update={"prompt": prompt.model_copy(update={"examples": examples})})


def _spec(
    recipe: Recipe,
    task: Task,
    explicit: Mapping[str, Any],
    choice: RowChoice,
    settings: Mapping[str, Any],
    prompt: Mapping[str, Any],
) -> EvaluationSpec:
    task = _with_settings(task, settings)
    load = replace(load_settings(recipe), **{"revision": None, "base": None, **explicit})
    task.further_columns = {**_columns_of_tuned(load, task), **task.further_columns}
    given = {name: value for name, value in prompt.items() if value not in (None, ())}
    if isinstance(path := given.get("examples"), str):
        given["examples"] = example_rows(path, recipe, task, choice)
    own = open_prompt(recipe_of(recipe, task.name), task)
    # Not `replace`, after which the defaults count as set, and would override what the model was tuned with.
    prompt_options = PromptOptions(**{name: getattr(own, name) for name in explicitly_set(own)} | given)
    records, data = evaluation_records(recipe, task, choice)
    rows = separated_rows(records, recipe, task)
    truncates = recipe.data.on_overflow == "truncate"
    return EvaluationSpec(task, load, prompt_options, rows, data, truncates, recipe.data.truncation_side)


def _columns_of_tuned(load: LoadSettings, task: Task) -> dict[str, bool]:
    """The columns that the template of a tuned model uses; rows are opened before the model is."""
    path = user_path(load.model or "") / CONTRACT_FILE
    content = read_json(path) if path.is_file() else {}
    template = (content.get("prompt") or {}).get("template") if content.get("task") == task.name else None
    return dict.fromkeys(columns_of_template(task, template), False)


def _with_settings(task: Task, settings: Mapping[str, Any]) -> Task:
    """The task with settings of the caller in place of the recipe's."""
    known = [item.name for item in setting_fields(task.settings_class)]
    if unknown := next((name for name in settings if name not in known), None):
        names = ", ".join(f"`{name}`" for name in known)
        has = f"its settings: {names}" if known else "it has no settings of its own"
        raise UsageError(f"`{unknown}` is not a setting of {task.name}", f"leave it out ({has})", code="no_effect")
    if not settings:
        return task
    own = {name: getattr(task.settings, name) for name in explicitly_set(task.settings)}
    return task.with_settings(task.settings_class(**{**own, **settings}))


def _slug(name: str) -> str:
    """A name as part of a folder's name: a path relative to the working directory, if it is inside."""
    path = user_path(name)
    if path.is_absolute() and path.exists():
        here = Path.cwd()
        name = str(path.relative_to(here)) if path.is_relative_to(here) else path.name
    return re.sub(r"[^\w.]+", "-", name).strip("-.")[:_SLUG] or "model"


_SLUG = 80


# Running.


def run_evaluation(
    spec: EvaluationSpec,
    settings: GenerationSettings,
    output: Path | None = None,
    *,
    baseline: str | None = None,
    shots: Sequence[int] = (),
    metrics: Mapping[str, Any] | None = None,
    max_rows: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    member: Worker | None = None,
) -> Evaluation | None:
    """Evaluate a model, and compare it with another, or several numbers of few-shot examples, on the same rows.

    Args:
        output: folder for ``results.jsonl`` (rows, references, predictions and scores), ``metrics.json``, and the
            files that ``resume`` needs; by default `EvaluationSpec.output`.
        baseline: the other model.
        shots: numbers of few-shot examples in each prompt; each is compared with the first. By default all examples.
        metrics: additional metrics of the package evaluate, loaded, by name.
        resume: continue an interrupted evaluation into the same folder.
        overwrite: replace an earlier evaluation in the folder, once the new one has answered a row.
        member: which of several processes this is; only the first returns a result, the others None.

    Raises:
        UsageError: the folder is not empty and neither ``resume`` nor ``overwrite`` is True, or a setting has no
            effect.
        InputError: a row cannot be read, or there are no rows.
    """
    _check_options(settings, shots, baseline=baseline, resume=resume, overwrite=overwrite)
    member, output = member or Worker(), output or spec.output
    rows = output / _ROWS
    other_load = None if baseline is None else replace(spec.load, model=baseline, revision=None, base=None)
    if not member.rank and output.exists() and not (resume or overwrite):
        _require_empty(output)

    evaluate_model = partial(
        _evaluate_model, spec, settings, output, shots=shots, metrics=metrics, resume=resume, member=member
    )

    with offline(spec.load.offline), nullcontext() if member.rank else _restored_unless_answered(output, overwrite):
        if not member.rank:
            _write_rows(spec, rows, max_rows)
        member.barrier()
        if other_load is not None:  # a missing baseline is an error now, not after all rows are answered
            load_model(other_load, spec.task.name, weights=False, fallback=False)
        results = evaluate_model("predictions", spec.load, trivial=True)
        others = [] if other_load is None else evaluate_model("baseline", other_load, trivial=False)
        result = _compared(results, others)
        if result is not None:
            result = replace(result, results=write_results(output / "results.jsonl", rows, result))
            for each in (*(result.by_shots or [result]), result.baseline):
                if each is not None and result.results is not None:
                    log_problems(each, result.results)
            text = json.dumps(result.to_dict(), ensure_ascii=False, indent=2)
            write_whole(output / "metrics.json", f"{text}\n", errors="backslashreplace")
    return result


def _evaluate_model(
    spec: EvaluationSpec,
    settings: GenerationSettings,
    output: Path,
    name: str,
    load: LoadSettings,
    *,
    shots: Sequence[int],
    trivial: bool,
    metrics: Mapping[str, Any] | None,
    resume: bool,
    member: Worker,
) -> list[Evaluation | None]:
    """The results of one model for each number of shots; ``name`` is that of the files of its answers."""
    loaded, rows = load_model(load, spec.task.name, fallback=False), output / _ROWS
    if spec.truncates and writes(loaded.head) and settings.on_overflow is None:
        settings = replace(settings, on_overflow="truncate", truncation_side=spec.truncation_side)
    task, prompt_options, settings = apply_contract(loaded, spec.task, spec.prompt_options, settings)
    options = [replace(prompt_options, shots=number) for number in shots] or [prompt_options]
    pipelines = [Pipeline(task, TransformersEngine(loaded), settings, each) for each in options]
    for pipeline in pipelines:
        if pipeline.prompt_options.shots:
            pipeline.few_shot.require(json_lines(rows))
    with rows.open("rb") as file:
        share = -(-sum(1 for _ in file) // member.world) * len(pipelines)
    with ProgressMeter(share, "rows", what=loaded.source.name, shown=not member.rank) as meter:
        return [
            evaluate(
                pipeline,
                rows,
                output / f"{name}{f'-{pipeline.prompt_options.shots}-shots' if shots[1:] else ''}.jsonl",
                load=load,
                metrics=metrics,
                trivial=trivial and pipeline is pipelines[0],
                resume=resume,
                member=member,
                progress=meter.advance_rows,
            )
            for pipeline in pipelines
        ]


def _check_options(
    settings: GenerationSettings, shots: Sequence[int], *, baseline: str | None, resume: bool, overwrite: bool
) -> None:
    if settings.num_return_sequences > 1:
        raise UsageError(
            "num_return_sequences: only the first output of a row is evaluated", "leave it out", code="no_effect"
        )
    if resume and overwrite:
        raise UsageError("`resume` and `overwrite` are mutually exclusive", "leave one of them out", code="no_effect")
    if len(set(shots)) < len(shots):
        raise UsageError("`shots` has a number twice", "name each once", code="invalid_value")
    if len(shots) > 1 and baseline is not None:
        raise UsageError(
            "`baseline` compares models, and several `shots` compare prompts of one model",
            "name one number of `shots`",
            "leave `baseline` out",
        )


def _compared(results: Sequence[Evaluation | None], others: Sequence[Evaluation | None]) -> Evaluation | None:
    """The result with its comparisons; None in a process that has none."""
    found = [each for each in results if each is not None]
    if not found:
        return None
    if others:
        return None if others[0] is None else compare(found[0], others[0])
    return compare_shots(found) if len(found) > 1 else found[0]


def _require_empty(output: Path) -> None:
    if not output.is_dir():
        raise UsageError(f"{output} is a file", "name another `output`", code="output_exists")
    if any(output.iterdir()):
        raise UsageError(
            f"{output} is not empty",
            "continue an interrupted evaluation with `resume`",
            "replace it with `overwrite`",
            "name another `output`",
            code="output_exists",
        )


def _own_files(output: Path) -> list[Path]:
    """The files of an evaluation in a folder; other files in it are the user's."""
    names = (_ROWS, "results.jsonl", "metrics.json", "predictions.jsonl*", "baseline.jsonl*")
    return [path for name in names for path in output.glob(name)]


@contextmanager
def _restored_unless_answered(output: Path, overwrite: bool) -> Iterator[None]:
    """Undo what a failed evaluation wrote unless it answered a row, so that the corrected command can run.

    With ``overwrite``, an earlier evaluation is put aside until then.
    """
    existed, aside = output.exists(), output / _REPLACED
    output.mkdir(parents=True, exist_ok=True)
    if overwrite:
        aside.mkdir(exist_ok=True)
        for path in _own_files(output):
            path.replace(aside / path.name)
    before = set(output.iterdir()) - {aside}
    try:
        yield
    except BaseException:
        answered = any(path.stat().st_size for path in output.glob("predictions*.jsonl*") if path.suffix != ".json")
        if not answered and (overwrite or not before):
            for path in _own_files(output):
                path.unlink()
            for path in aside.iterdir() if overwrite else ():
                path.replace(output / path.name)
            shutil.rmtree(aside, ignore_errors=True)
            if not existed:
                output.rmdir()
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_rows(spec: EvaluationSpec, path: Path, max_rows: int | None) -> None:
    """Write the rows as JSON Lines."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in spec.rows:
            if count == max_rows:
                break
            file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
            count += 1
    if not count:
        raise InputError("no rows to evaluate on", "check the data", code="no_rows")
