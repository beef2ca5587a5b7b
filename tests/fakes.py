"""A task on an engine without a model: for tests that need only texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

from llmkit.config.declaration import split_options
from llmkit.config.settings import GenerationSettings
from llmkit.engines.fake import CHAT, FakeEngine
from llmkit.inference.pipeline import Pipeline
from llmkit.tasks import PromptOptions, Traits, find_task

PLAIN = Traits(continues=True)
READER = Traits()
"""An encoder-decoder that names no languages."""


def fake(
    task: str,
    *said: str | Callable[[str], str],
    traits: Traits = CHAT,
    context: int | None = None,
    examples: Sequence[Any] = (),
    **options: Any,
) -> tuple[Pipeline, FakeEngine]:
    """A pipeline and its engine, which answers with the texts in turn, or with what a function makes of a prompt."""
    turns = cycle(said or ("x",))

    def answer(prompt: str) -> str:
        turn = next(turns)
        return turn if isinstance(turn, str) else turn(prompt)

    given = {"examples": examples, **options}
    settings, prompt, own = split_options(given, GenerationSettings, PromptOptions, find_task(task).settings_class)
    engine = FakeEngine(answer, traits, context)
    return Pipeline(find_task(task)(own), engine, settings, prompt), engine
