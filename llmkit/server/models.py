"""The models of a server, by name."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from llmkit.config.settings import GenerationSettings, LoadSettings
from llmkit.engines.transformers import TransformersEngine
from llmkit.errors import TaskMismatchError, UsageError
from llmkit.inference.pipeline import Pipeline
from llmkit.inference.tuned_config import apply_contract
from llmkit.log import log
from llmkit.models.load import Loaded, load_model
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
    created: int = field(default_factory=lambda: int(time.time()))

    def pipeline(self, task: str, settings: GenerationSettings, prompt: PromptOptions, own: Any = None) -> Pipeline:
        """A pipeline of a task, with the wording and the settings that the model was tuned with."""
        found = find_task(task)
        made = found(own or found.settings_class())
        chosen, options, completed = apply_contract(self.engine.loaded, made, prompt, settings)
        return Pipeline(chosen, self.engine, completed, options)


def load_models(names: Sequence[str], load: LoadSettings, settings: ServeSettings) -> dict[str, ServedModel]:
    """Load models, and start their threads.

    Raises:
        UsageError: two of them have the same name.
    """
    models: dict[str, ServedModel] = {}
    for name in names:
        if name in models:
            raise UsageError(f"the model {name} is named twice", "name it once")
        loaded = _load(replace(load, model=name))
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
    return models


def _load(settings: LoadSettings) -> Loaded:
    """A model with the head it has: of language models, the one that writes."""
    try:
        return load_model(settings, "text-generation")
    except TaskMismatchError:
        return load_model(settings, "question-answering")
