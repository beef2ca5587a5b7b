"""The task, model and tokenizer of a recipe.

Knows which parts of a recipe are about the model. Weights are loaded on request only: tokenizer and structure suffice
to prepare examples and to estimate memory.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from llmkit.config.commands import quoted
from llmkit.config.declaration import setting_fields
from llmkit.config.recipe import Recipe
from llmkit.config.recipe_method import learning_from
from llmkit.config.settings import DType, LoadSettings
from llmkit.data.prompt_files import open_template
from llmkit.errors import UsageError
from llmkit.heads.chat_template import choose_template
from llmkit.models.devices import pick_device
from llmkit.models.fresh import write_untrained_checkpoint
from llmkit.models.load import Loaded, load_model, load_source
from llmkit.models.new_languages import add_languages
from llmkit.models.resolve import resolve
from llmkit.models.source import Source
from llmkit.models.tables import writes
from llmkit.tasks import Task, find_task
from llmkit.tasks.wording import columns_of_template
from llmkit.training.disk_cache import cached_folder, code_version, digest
from llmkit.training.recipe_vocabulary import fit_vocabulary, recipe_tokenizer

__all__ = ["open_model", "open_task"]


def open_task(recipe: Recipe) -> Task:
    """The task of a recipe, with its settings."""
    found = find_task(recipe.task)
    task = found(found.settings_class(**recipe.settings.model_dump(exclude_unset=True)))
    task.further_columns = columns_of_template(task, open_template(recipe))
    task.learns_from = learning_from(recipe.method)
    return task


def load_settings(recipe: Recipe) -> LoadSettings:
    """The model section as load settings."""
    section: Any = recipe.model
    names = {item.name for item in setting_fields(LoadSettings)} - {"model"}
    values = {name: getattr(section, name) for name in names}
    return LoadSettings(model=section.name_or_path, **values)


def open_model(recipe: Recipe, task: Task, *, weights: bool, dtype: DType = "auto") -> Loaded:
    """The model of a recipe with its tokenizer.

    Args:
        weights: False leaves the model on the meta device. With ``model.config``, weights are random, from PyTorch's
            current seed.
        dtype: of the weights, if the recipe does not set it.
    """
    settings, section = load_settings(recipe), recipe.tokenizer
    if settings.dtype == "auto":
        settings = replace(settings, dtype=dtype)
    config = getattr(recipe.model, "config", None)
    if config is None:
        overrides: dict[str, Any] = recipe.model.config_overrides
        loaded = load_model(
            settings,
            task.name,
            training=True,
            weights=weights,
            fallback=False,
            config_overrides=overrides,
            quantization=recipe.model.quantization,
        )
    else:
        loaded = load_source(_fresh(recipe, task, settings), settings, task.name, training=True, weights=False)
        if weights:
            model: Any = type(loaded.model)(loaded.model.config)
            model.generation_config = loaded.model.generation_config
            loaded = replace(loaded, model=model.to(pick_device(settings.device)).eval())
    _refuse_on_adapter(recipe, loaded.source)
    loaded = fit_vocabulary(recipe, task, settings, _beside_virtual_tokens(recipe, loaded))
    tokenizer: Any = loaded.tokenizer
    if section.chat_template is not None:
        if not writes(loaded.head):
            raise UsageError(
                "tokenizer.chat_template has no effect on a model that extracts answers",
                "leave it out",
                code="no_effect",
            )
        tokenizer.chat_template = choose_template(tokenizer, section.chat_template)
    return _with_languages(recipe, task, loaded)


def _with_languages(recipe: Recipe, task: Task, loaded: Loaded) -> Loaded:
    """The model with tokens for the languages that a recipe adds."""
    added = recipe.tokenizer.add_languages
    if not added:
        return loaded
    if not task.names_languages:
        raise UsageError(
            f"tokenizer.add_languages has no effect on {task.name}, which passes no languages to the model",
            "leave it out",
            code="no_effect",
        )
    if loaded.source.adapter is not None:
        raise UsageError(
            f"tokenizer.add_languages: {loaded.source.name} is an adapter, to which languages cannot be added",
            f"run `llmkit merge {quoted(loaded.source.name)} -o FOLDER` first and set model.name_or_path to FOLDER",
            code="not_supported",
        )
    return add_languages(loaded, added)


def _refuse_on_adapter(recipe: Recipe, source: Source) -> None:
    """Refuse changes to the base of an adapter that is trained further: they need a merged model."""
    if source.adapter is None:
        return
    merged = f"run `llmkit merge {quoted(source.name)} -o FOLDER` first and set model.name_or_path to FOLDER"
    if recipe.adapter is not None:
        raise UsageError(
            f"{source.name} is an adapter, and the recipe adds another to it, which could not be loaded again",
            f"{merged}; or leave the section adapter out, to train {source.name} further",
            code="not_supported",
        )
    keys = ("add_tokens", "name_or_path", "train")
    if key := next((key for key in keys if getattr(recipe.tokenizer, key)), None):
        raise UsageError(
            f"tokenizer.{key}: {source.name} is an adapter, whose vocabulary cannot be changed",
            merged,
            code="not_supported",
        )


def _beside_virtual_tokens(recipe: Recipe, loaded: Loaded) -> Loaded:
    """The model with the context that is left by the virtual tokens of the recipe's adapter."""
    taken, limit = getattr(recipe.adapter, "num_virtual_tokens", 0), loaded.context.tokens
    if taken and limit is not None and taken >= limit - 1:
        raise UsageError(
            f"adapter.num_virtual_tokens is {taken}, but {loaded.source.name} has a context of {limit} tokens",
            "lower it, to leave room for a prompt and an answer",
            code="not_supported",
        )
    return replace(loaded, context=loaded.context.without(taken))


def _fresh(recipe: Recipe, task: Task, settings: LoadSettings) -> Source:
    """A folder with the config and tokenizer of a new model, without weights."""
    config: dict[str, Any] = recipe.model.config
    model_type = config["model_type"]
    head = resolve(task.name, {"model_type": model_type}, head=settings.head, model=f"a new {model_type} model").head
    key, tokenizer = recipe_tokenizer(recipe, task, settings, head)

    def build(folder: Path) -> None:
        write_untrained_checkpoint(config, tokenizer(), folder, task=task.name, head=settings.head)

    return Source(f"a new {model_type} model", cached_folder(digest("model", config, key, code_version()), build))
