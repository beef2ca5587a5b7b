"""Fine-tuning from Python: `finetune`, and the `TunedModel` that it returns."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from llmkit.config.settings import command_line
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
    task: str | None = None,
    data: PathName | Sequence[PathName] | None = None,
    validation: PathName | Sequence[PathName] | None = None,
    model: PathName | None = None,
    method: str | None = None,
    settings: Mapping[str, Any] | None = None,
    output: PathName | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    progress: bool = True,
    **train: Any,
) -> TunedModel:
    """Train a model in this process: from a recipe, or with defaults for a task and its data.

    Args:
        recipe: a recipe file, the name of a built-in recipe, or its sections as a mapping.
        task: without a recipe: name or verb, such as ``summarize``.
        data: without a recipe: files, folders, patterns or Hub ids of the training rows.
        validation: without a recipe: validation rows; by default a tenth of the training rows.
        model: without a recipe: Hub id or folder; by default ``starter``.
        method: without a recipe: ``lora``, ``full`` for all weights, or another method of PEFT; by default LoRA for
            models that generate text.
        settings: without a recipe: settings of the task, such as ``{"target": "de"}``.
        output: folder of the result (``train.output_dir``).
        overrides: changes to any key, such as ``adapter.r=16``.
        resume: continue from the last checkpoint in the folder; for more updates if their number is raised.
        progress: show bars in a terminal or a notebook.
        **train: keys of the recipe's train section, such as ``num_train_epochs=1``.

    Raises:
        LlmkitError: one line that ends in what to do.
    """
    from llmkit.training.run import finetune as run

    changes = [*overrides, *(f"train.{name}={json.dumps(value)}" for name, value in train.items())]
    text = None
    if recipe is None:
        from llmkit.training.new_recipe import new_recipe

        if task is None or not data:
            raise UsageError("neither a recipe nor a task with data is given", "pass `recipe`, or `task` and `data`")
        new = new_recipe(
            task,
            _names(data),
            validation=_names(validation),
            model=None if model is None else os.fspath(model),
            method=method,
            output=None if output is None else os.fspath(output),
            settings=settings,
            overrides=changes,
        )
        made = new.recipe()
        text = new.text(Path(made.train.output_dir))
    else:
        without_effect: dict[str, Any] = {"task": task, "data": data, "validation": validation, "settings": settings}
        without_effect |= {"model": model, "method": method}
        if used := [f"`{name}`" for name, value in without_effect.items() if value]:
            raise UsageError(
                f"{', '.join(used)} replace a recipe, and one is given",
                "change the recipe with `overrides`",
                code="no_effect",
            )
        folder = [] if output is None else [f"train.output_dir={json.dumps(os.fspath(output))}"]
        made = _load(recipe, [*changes, *folder])
    if (made.accelerate.num_processes or 1) > 1:
        raise UsageError(
            "several processes are started by the command", command_line("finetune", "RECIPE", num_processes="N")
        )
    with nullcontext() if progress else hidden():
        trainer = run(made, resume=resume, text=text)
    metrics = json.loads((trainer.folder / "metrics.json").read_text(encoding="utf-8"))
    return TunedModel(trainer.folder, made.task, trainer.progress.log, metrics, made)


def _names(paths: PathName | Sequence[PathName] | None) -> list[str]:
    if paths is None:
        return []
    return [os.fspath(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)]


def _load(recipe: PathName | Mapping[str, Any], overrides: Sequence[str]) -> Recipe:
    from llmkit.config.recipe import VERSION
    from llmkit.config.recipe_file import load_recipe, make_recipe
    from llmkit.config.recipe_paths import resolve_paths

    if not isinstance(recipe, Mapping):
        return load_recipe(os.fspath(recipe), overrides)
    content = {"version": VERSION, **_plain(copy.deepcopy(dict(recipe)))}
    resolve_paths(content, Path())
    return make_recipe(content, overrides)


def _plain(value: Any) -> Any:
    """A value with paths as strings, and tuples as lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value
