"""The models of a server, by name."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from llmkit.config.commands import command_line, quoted
from llmkit.config.settings import GenerationSettings, LoadSettings
from llmkit.engines.transformers import TransformersEngine
from llmkit.errors import TaskMismatchError, UsageError
from llmkit.inference.pipeline import Pipeline
from llmkit.inference.tuned_config import apply_contract
from llmkit.log import log, warn
from llmkit.models.load import Loaded, load_model
from llmkit.models.shared_loading import attach_adapters
from llmkit.server.settings import ServeSettings
from llmkit.server.worker import ModelWorker
from llmkit.tasks import PromptOptions, find_task

__all__ = ["ServedModel", "load_models"]


@dataclass
class ServedModel:
    """A model and the thread that runs it."""

    name: str
    engine: TransformersEngine
    worker: ModelWorker
    """Shared by a base model and its adapters."""
    parent: str | None = None
    """Of an adapter, the name of its base model."""
    created: int = field(default_factory=lambda: int(time.time()))

    def pipeline(self, task: str, settings: GenerationSettings, prompt: PromptOptions, own: Any = None) -> Pipeline:
        """A pipeline of a task, with the wording and the settings that the model was tuned with."""
        found = find_task(task)
        made = found(own or found.settings_class())
        chosen, options, completed = apply_contract(self.engine.loaded, made, prompt, settings)
        return Pipeline(chosen, self.engine, completed, options)


def load_models(
    names: Sequence[str], load: LoadSettings, settings: ServeSettings, adapters: Mapping[str, str] | None = None
) -> dict[str, ServedModel]:
    """Load models, and start their threads.

    Args:
        adapters: folders or Hub ids of adapters that share the only model, by the names that they are served under.

    Raises:
        UsageError: two of them have the same name, or adapters are for several models.
        CheckpointError: an adapter does not fit the model, or cannot share it.
    """
    adapters = adapters or {}
    _check_names(names, adapters)
    models: dict[str, ServedModel] = {}
    for name in names:
        own = replace(load, model=name)
        loaded = _load(own)
        _warn_of_second_copy(loaded, models)
        if adapters:
            loaded = attach_adapters(loaded, adapters, own)
        engine = TransformersEngine(loaded)
        start = partial(ModelWorker, engine, rows=settings.max_concurrency, max_queue=settings.max_queue)
        worker = start(max_batch_tokens=settings.max_batch_tokens)
        log.info(
            "%s: at most %d tokens at once, %d of them for the beginnings of earlier requests",
            name,
            worker.max_batch_tokens,
            worker.prefix_tokens,
        )
        models[name] = ServedModel(name, engine, worker)
        for adapter in adapters:
            models[adapter] = ServedModel(adapter, TransformersEngine(loaded.view(adapter)), worker, parent=name)
    return models


def _check_names(names: Sequence[str], adapters: Mapping[str, str]) -> None:
    everything = [*names, *adapters]
    if twice := next((name for name in everything if everything.count(name) > 1), None):
        raise UsageError(f"the model {twice} is named twice", "name it once")
    if not all(everything):
        raise UsageError("a model or an adapter has an empty name", "name it")
    if adapters and len(names) > 1:
        raise UsageError(
            f"adapters share one base model, and {len(names)} models are named",
            "name the base model alone, or start a server for each",
        )


def _warn_of_second_copy(loaded: Loaded, models: Mapping[str, ServedModel]) -> None:
    """Warn of a base model that is in memory already, since each model is loaded on its own."""
    source = loaded.source
    for name, other in models.items():
        found = other.engine.loaded.source
        if (found.folder, found.gguf_file) == (source.folder, source.gguf_file):
            warn(
                "loaded_twice",
                "%s and %s have the same base model, which is loaded for each; to load it once, run %s",
                name,
                source.name,
                command_line("serve", quoted(source.base or found.base or source.name), adapter="NAME=DIR"),
            )
            return


def _load(settings: LoadSettings) -> Loaded:
    """A model with the head it has: of language models, the one that writes."""
    try:
        return load_model(settings, "text-generation")
    except TaskMismatchError:
        return load_model(settings, "question-answering")
