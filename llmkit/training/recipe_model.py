"""The task, model and tokenizer of a recipe.

Knows which parts of a recipe are about the model. Weights are loaded on request only: tokenizer and structure suffice
to prepare examples and to estimate memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmkit.config.recipe import Recipe
from llmkit.config.settings import DType, LoadSettings, quoted, setting_fields
from llmkit.data.prompt_files import open_template
from llmkit.errors import UsageError
from llmkit.files import file_hash
from llmkit.heads.chat_template import choose_template
from llmkit.hub.reachability import offline
from llmkit.log import log, warn
from llmkit.models.devices import pick_device
from llmkit.models.fresh import train_tokenizer, write_untrained_checkpoint
from llmkit.models.load import Loaded, load_model, load_source
from llmkit.models.locate import locate_tokenizer
from llmkit.models.new_languages import add_languages
from llmkit.models.resolve import resolve
from llmkit.models.source import Source
from llmkit.models.tables import writes
from llmkit.models.tokenizer import load_tokenizer
from llmkit.tasks import Task, find_task
from llmkit.tasks.wording import columns_of_template
from llmkit.training.dataset import divide
from llmkit.training.disk_cache import cached_folder, code_version, digest
from llmkit.training.row_table import read_rows

__all__ = ["open_model", "open_task"]


def open_task(recipe: Recipe) -> Task:
    """The task of a recipe, with its settings."""
    found = find_task(recipe.task)
    task = found(found.settings_class(**recipe.settings.model_dump(exclude_unset=True)))
    task.further_columns = columns_of_template(task, open_template(recipe))
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
            settings, task.name, training=True, weights=weights, fallback=False, config_overrides=overrides
        )
    else:
        loaded = load_source(_fresh(recipe, task, settings), settings, task.name, training=True, weights=False)
        if weights:
            model: Any = type(loaded.model)(loaded.model.config)
            model.generation_config = loaded.model.generation_config
            loaded = replace(loaded, model=model.to(pick_device(settings.device)).eval())
    _refuse_on_adapter(recipe, loaded.source)
    loaded = _beside_virtual_tokens(recipe, loaded)
    tokenizer: Any = loaded.tokenizer
    if section.chat_template is not None:
        if not writes(loaded.head):
            raise UsageError(
                "tokenizer.chat_template has no effect on a model that extracts answers",
                "leave it out",
                code="no_effect",
            )
        tokenizer.chat_template = choose_template(tokenizer, section.chat_template)
    if section.add_tokens and not tokenizer.add_tokens(section.add_tokens):
        warn("no_effect", "tokenizer.add_tokens has no effect: the tokenizer already has all of them")
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
    if recipe.tokenizer.add_tokens:
        raise UsageError(
            f"tokenizer.add_tokens: {source.name} is an adapter, to which tokens cannot be added",
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
    section = recipe.tokenizer
    if section.name_or_path is not None:
        named = LoadSettings(model=section.name_or_path, trust_remote_code=settings.trust_remote_code)
        with offline(settings.offline):
            origin = locate_tokenizer(named, task.name)
        key = digest("model", config, _tokenizer_hash(origin.folder), code_version())
    else:
        rows = read_rows(recipe.data.train, task)
        trained, _ = divide(recipe, rows)
        key = digest("model", config, section.model_dump(), rows.key, trained, code_version())

    def build(folder: Path) -> None:
        if section.train is None:
            tokenizer = load_tokenizer(origin.folder, trust_remote_code=settings.trust_remote_code)
        else:
            resolution = resolve(task.name, {"model_type": config["model_type"]}, head=settings.head, model="the model")
            wanted = section.train
            tokenizer = train_tokenizer(
                _texts(rows.table[index]["row"] for index in trained),
                vocab_size=wanted.vocab_size,
                min_frequency=wanted.min_frequency,
                head=resolution.head,
            )
            if len(tokenizer) < wanted.vocab_size:
                log.info("the tokenizer has %d tokens: the corpus supports no more merges", len(tokenizer))
        write_untrained_checkpoint(config, tokenizer, folder, task=task.name, head=settings.head)

    return Source(f"a new {config['model_type']} model", cached_folder(key, build))


def _tokenizer_hash(folder: Path) -> str:
    """A hash of a tokenizer's files, which may be replaced in the same folder."""
    files = (path for path in sorted(folder.iterdir()) if path.suffix in _TOKENIZER_SUFFIXES)
    return digest(str(folder), [(path.name, file_hash(path)) for path in files])


_TOKENIZER_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".spm", ".bpe", ".tiktoken")


def _texts(rows: Iterator[str]) -> Iterator[str]:
    """All texts in rows, which are JSON."""
    for row in rows:
        pending: list[Any] = [json.loads(row)] if row else []
        while pending:
            value = pending.pop()
            if isinstance(value, str):
                yield value
            elif isinstance(value, dict):
                pending.extend(value.values())
            elif isinstance(value, list):
                pending.extend(value)
