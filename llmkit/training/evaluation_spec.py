"""What an evaluation compares: a run, a recipe, or any model, on the rows that it names.

Knows how these become a model, tasks and rows. The evaluation is run in `llmkit.training.evaluation_run`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmkit.config.commands import command_line, quoted
from llmkit.config.declaration import explicitly_set, setting_fields
from llmkit.config.paths import user_path
from llmkit.config.recipe import VERSION, PythonRows, Recipe, SourceSection
from llmkit.config.recipe_file import MAY_RUN_CODE, load_recipe, make_recipe
from llmkit.config.settings import LoadSettings, TruncationSide, delimiter_character
from llmkit.config.user import chosen_model
from llmkit.data.prompt_files import open_prompt, prompt_values
from llmkit.errors import UsageError
from llmkit.files import read_json
from llmkit.models.source import ADAPTER_CONFIG, CONTRACT_FILE
from llmkit.tasks import PromptOptions, Task, find_task
from llmkit.tasks.wording import columns_of_template
from llmkit.training.checkpoint import checkpoints
from llmkit.training.evaluation_rows import RowChoice, evaluation_records, example_rows, separated_rows
from llmkit.training.provenance import RESOLVED
from llmkit.training.recipe_model import load_settings, open_task
from llmkit.training.source_tasks import chosen_task, is_for, labelled, recipe_of, task_groups

__all__ = ["EvaluationSpec", "default_output", "folder_name", "resolve_evaluation"]


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
    options: Mapping[str, Any] | None = None,
) -> dict[str, EvaluationSpec]:
    """The trained model of a run or recipe on its validation rows, or any model on any rows.

    There is one for each task of a mixture, and for each of its settings, by a name that tells them apart.

    Args:
        run: the folder of a run, a recipe, its file, or the name of a built-in one. Another folder with a model is
            the model.
        task: without a recipe, or one of a mixture of tasks, which are all evaluated by default.
        data: rows; with a recipe, replaces its validation rows.
        load: fields that are set explicitly override the recipe's model section; a model replaces the trained one.
        overrides: changes to the recipe, such as ``settings.target=de``.
        columns: the rows' column for each field of the task, in addition to the recipe's.
        encoding: of the rows, if not UTF-8.
        header: CSV and TSV: whether the first row names the columns; by default the recipe's, or detected.
        delimiter: CSV and TSV: what separates the fields; by default the recipe's, or detected.
        options: settings of the task, and fields of `PromptOptions`, in place of the recipe's. ``examples`` are rows
            in the task's columns, or where they are, as ``data``.

    Raises:
        UsageError: model, task or rows are missing, or the recipe has not been trained.
    """
    of_prompt = {item.name for item in setting_fields(PromptOptions)}
    chosen = {name: value for name, value in (options or {}).items() if value is not None and value != ()}
    prompt = {name: value for name, value in chosen.items() if name in of_prompt}
    settings = {name: value for name, value in chosen.items() if name not in of_prompt}
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
        own = _with_settings(open_task(recipe), settings)
        return {own.name: _spec(recipe, own, recipe.data.train, explicit, choice, prompt)}
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
    tasks = _tasks(recipe, task, choice, settings, prompt)
    if load.model is None:
        _require_trained(folder, name, overrides)
        explicit["model"] = str(folder)
        recipe = _with_own_examples(recipe, folder, overrides)
    named = labelled([each for each, _ in tasks])
    return {
        name: _spec(recipe, each, sources, explicit, choice, prompt)
        for name, (each, sources) in zip(named, tasks, strict=True)
    }


def _tasks(
    recipe: Recipe, name: str | None, choice: RowChoice, settings: Mapping[str, Any], prompt: Mapping[str, Any]
) -> list[tuple[Task, list[SourceSection]]]:
    """The tasks to evaluate with the settings of the caller, each with the sources of its rows."""
    default, sources = open_task(recipe), recipe.data.validation or recipe.data.train
    every = [*recipe.data.train, *(recipe.data.validation or ())]
    if choice.data is not None:
        groups = [(chosen_task(every, default, name), sources)]
    else:
        groups = task_groups(sources, default, name) or [(chosen_task(every, default, name), [])]
    if len({task.name for task, _ in groups}) > 1:
        options = {"columns": choice.columns, **settings, **prompt}
        _refuse_for_several([option for option, value in options.items() if value], groups)
    found: dict[str, tuple[Task, list[SourceSection]]] = {}
    for own, mine in groups:
        task = _with_settings(own, settings)
        part = found.setdefault(f"{task.name} {task.settings}", (task, []))
        part[1].extend(source for source in mine if is_for(source, task, default))
    return [part for part in found.values() if part[1]] or list(found.values())[:1]


def _refuse_for_several(options: Sequence[str], groups: Sequence[tuple[Task, Any]]) -> None:
    if options:
        names = dict.fromkeys(f"`task={task.name}`" for task, _ in groups)
        raise UsageError(
            f"{', '.join(f'`{name}`' for name in options)} is of one task, and the recipe is a mixture of tasks",
            f"name one: {', '.join(names)}",
        )


def _tuned_task(folder: str) -> str:
    """The task that the model in a folder was tuned for."""
    path = user_path(folder) / CONTRACT_FILE
    if not path.is_file():
        raise UsageError(
            f"{folder} is not the folder of a run, and does not name a task",
            f"name the model, the task and the rows: `model={folder}`, `task` and `data`",
        )
    content: dict[str, Any] = read_json(path)
    tasks: list[str] = [str(content.get("task")), *content.get("more_tasks", {})]
    if len(tasks) > 1:
        names = ", ".join(f"`task={each}`" for each in tasks)
        raise UsageError(f"{folder} was tuned for several tasks, and does not name its rows", f"name one: {names}")
    return tasks[0]


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
    sources: Sequence[SourceSection],
    explicit: Mapping[str, Any],
    choice: RowChoice,
    prompt: Mapping[str, Any],
) -> EvaluationSpec:
    load = replace(load_settings(recipe), **{"revision": None, "base": None, **explicit})
    task.further_columns = {**_columns_of_tuned(load, task), **task.further_columns}
    given = dict(prompt)
    if isinstance(path := given.get("examples"), str | Path):
        given["examples"] = example_rows(str(path), recipe, task, choice)
    given = prompt_values(given)
    own = open_prompt(recipe_of(recipe, task.name), task)
    # Not `replace`, after which the defaults count as set, and would override what the model was tuned with.
    prompt_options = PromptOptions(**{name: getattr(own, name) for name in explicitly_set(own)} | given)
    records, data = evaluation_records(recipe, task, choice, sources)
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


def default_output(specs: Mapping[str, EvaluationSpec]) -> Path:
    """The default folder of the results, named after the model and the rows."""
    model = next(str(spec.load.model) for spec in specs.values())
    data = "-and-".join(dict.fromkeys(folder_name(spec.data) for spec in specs.values()))
    return Path("evaluation", f"{folder_name(model)}-on-{data[:_LONGEST_NAME]}")


def folder_name(name: str) -> str:
    """A name as part of a folder's name: a path relative to the working directory, if it is inside."""
    path = user_path(name)
    if path.is_absolute() and path.exists():
        here = Path.cwd()
        name = str(path.relative_to(here)) if path.is_relative_to(here) else path.name
    return re.sub(r"[^\w.]+", "-", name).strip("-.")[:_LONGEST_NAME] or "model"


_LONGEST_NAME = 80
