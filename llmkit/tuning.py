"""Fine-tuning from Python: `finetune`, and the `TunedModel` that it returns."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from llmkit.config.commands import command_line
from llmkit.errors import UsageError
from llmkit.progress import hidden

if TYPE_CHECKING:
    from llmkit.api import TaskOptions
    from llmkit.config.recipe import Recipe
    from llmkit.inference.pipeline import Pipeline

__all__ = ["TunedModel", "finetune"]

PathName = str | os.PathLike[str]


@dataclass(frozen=True)
class TunedModel(os.PathLike[str]):
    """The result of `finetune`. Functions that take a path take it too, and ``str`` of it is the path of its folder."""

    folder: Path
    """Adapter or weights, tokenizer, model card; any function here takes it as ``model``."""
    task: str
    history: list[dict[str, Any]] = field(repr=False)
    """Log entries in order, each with its ``step``: ``loss``, ``learning_rate``, ``eval_loss`` …"""
    metrics: dict[str, Any]
    """Measures of the complete run, as in ``metrics.json``."""
    recipe: Recipe = field(repr=False)
    """The recipe, with overrides and defaults."""

    def load(self, **options: Unpack[TaskOptions]) -> Pipeline:
        """The model, ready for its task; see `llmkit.load` for the options."""
        from llmkit.api import load

        model: Any = self.recipe.model
        named = {"device": model.device, "trust_remote_code": model.trust_remote_code, "offline": model.offline}
        return load(self.task, str(self.folder), **{**named, **options})

    def __fspath__(self) -> str:
        return str(self.folder)

    def __str__(self) -> str:
        return str(self.folder)


def finetune(
    recipe: PathName | Mapping[str, Any] | None = None,
    *,
    train: Any = None,
    validation: Any = None,
    task: str | None = None,
    data: Any = None,
    model: PathName | None = None,
    method: str | None = None,
    settings: Mapping[str, Any] | None = None,
    output: PathName | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    progress: bool = True,
    **train_keys: Any,
) -> TunedModel:
    """Train a model in this process: from a recipe, or with defaults for a task and its data.

    Args:
        recipe: a recipe file, the name of a built-in recipe, or its sections as a mapping; there the key ``rows`` of a
            source takes rows.
        train: training rows: a `datasets.Dataset`, a data frame, an Arrow table, an iterable of mappings, or files,
            folders, patterns or Hub ids. With a recipe, they replace its source, whose other keys such as ``columns``
            and ``where`` stay; with ``streaming: true`` there, an iterable or a function that makes an iterator, whose
            rows are not kept.
        validation: validation rows, as ``train``; without a recipe, by default a tenth of the training rows.
        task: without a recipe: name or verb, such as ``summarize``.
        data: without a recipe: another name for ``train``.
        model: without a recipe: Hub id or folder; by default ``starter``.
        method: without a recipe: ``lora``, ``full`` for all weights, or another method of PEFT; by default LoRA for
            models that generate text.
        settings: without a recipe: settings of the task, such as ``{"target": "de"}``.
        output: folder of the result (``train.output_dir``).
        overrides: changes to any key, such as ``adapter.r=16``.
        resume: continue from the last checkpoint in the folder; for more updates if their number is raised. Rows are
            passed again, and must be the same.
        progress: show bars in a terminal or a notebook.
        **train_keys: keys of the recipe's train section, such as ``num_train_epochs=1``.

    Raises:
        LlmkitError: one line that ends in what to do.
    """
    from llmkit.training.run import finetune as run

    changes = [*overrides, *(f"train.{name}={json.dumps(value)}" for name, value in train_keys.items())]
    text = None
    if recipe is None:
        from llmkit.training.new_recipe import new_recipe
        from llmkit.training.python_data import data_source

        rows = [each for each in (train, data) if each is not None]
        if task is None or len(rows) != 1:
            raise UsageError(
                "neither a recipe nor a task with data is given"
                if len(rows) < 2
                else "train and data both name the training rows",
                "pass recipe, or task and train",
            )
        new = new_recipe(
            task,
            data_source(rows[0]),
            validation=None if validation is None else data_source(validation),
            model=None if model is None else os.fspath(model),
            method=method,
            output=None if output is None else os.fspath(output),
            settings=settings,
            overrides=changes,
        )
        made = new.recipe()
        text = new.text(Path(made.train.output_dir))
    else:
        without_effect: dict[str, Any] = {"task": task, "data": data, "settings": settings}
        without_effect |= {"model": model, "method": method}
        if used := [f"`{name}`" for name, value in without_effect.items() if value is not None]:
            raise UsageError(
                f"{', '.join(used)} replace a recipe, and one is given",
                "change the recipe with `overrides`",
                code="no_effect",
            )
        folder = [] if output is None else [f"train.output_dir={json.dumps(os.fspath(output))}"]
        made = _load(recipe, [*changes, *folder], train, validation)
    if (made.accelerate.num_processes or 1) > 1:
        in_memory = any(source.rows is not None for source in made.data.train)
        raise UsageError(
            "several processes are started by the command",
            ("save the rows to a file, and run " if in_memory else "")
            + command_line("finetune", "RECIPE", num_processes="N"),
        )
    with nullcontext() if progress else hidden():
        trainer = run(made, resume=resume, text=text, keep_model=False)
    metrics = json.loads((trainer.folder / "metrics.json").read_text(encoding="utf-8"))
    return TunedModel(trainer.folder, made.task, trainer.progress.log, metrics, made)


def _load(recipe: PathName | Mapping[str, Any], overrides: Sequence[str], train: Any, validation: Any) -> Recipe:
    from llmkit.config.recipe import VERSION
    from llmkit.config.recipe_file import load_recipe, make_recipe
    from llmkit.config.recipe_paths import resolve_paths
    from llmkit.training.python_data import keep_rows, replace_data

    def with_data(content: dict[str, Any]) -> None:
        replace_data(content, train=train, validation=validation)

    if not isinstance(recipe, Mapping):
        return load_recipe(os.fspath(recipe), overrides, change=with_data)
    content = {"version": VERSION, **_plain(recipe)}
    keep_rows(content)
    resolve_paths(content, Path())
    with_data(content)
    return make_recipe(content, overrides)


def _plain(value: Any) -> Any:
    """A copy of a value with paths as strings, and tuples as lists; rows as they are."""
    if isinstance(value, Mapping):
        return {str(key): each if key == "rows" else _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value
