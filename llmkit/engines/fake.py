"""An engine without a model, for tests of code that only needs texts: tasks, conversations, row files, servers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from llmkit.config.declaration import non_default
from llmkit.config.settings import TOKEN_CONTROLS, GenerationSettings, TruncationSide
from llmkit.engines.base import Answer, ModelFacts, Request, Session
from llmkit.engines.row_faults import attempt
from llmkit.errors import UsageError
from llmkit.heads.base import Encoded
from llmkit.models.context import ContextLength
from llmkit.models.source import Source
from llmkit.models.tables import HEADS
from llmkit.tasks import Chat, Generation, Prompt, QuestionContext, Task, Traits

__all__ = ["CHAT", "FakeEngine"]

CHAT = Traits(continues=True, chat=True)
"""The traits of a chat model."""


class FakeEngine:
    """Returns ``answer(prompt text)`` for each request, one at a time. A word is a token."""

    def __init__(self, answer: Callable[[str], str], traits: Traits = CHAT, context: int | None = None) -> None:
        self.answer, self.own = answer, traits
        kinds = {(not facts.writes, facts.one_sequence): head for head, facts in HEADS.items()}
        head = kinds[traits.extracts_spans, traits.continues]
        self.facts = ModelFacts(Source("fake", Path(), commit="fake"), head, ContextLength(context, hard=True))
        self.prompts: list[str] = []
        self.thinking: list[bool | None] = []
        """Whether each conversation turned reasoning on or off."""

    def traits(self, task: Task, *, raw: bool) -> Traits:
        return self.own

    def encode(self, prompt: Prompt) -> Encoded:
        return Encoded(tuple(range(self.count(_text(prompt)))))

    def count(self, text: str) -> int:
        return len(text.split())

    def cut(self, text: str, side: TruncationSide, excess: Callable[[str], int]) -> str | None:
        while text and excess(text) > 0:
            text = text.partition(" ")[2] if side == "left" else text.rpartition(" ")[0]
        return text or None

    def check(self, settings: GenerationSettings) -> None:
        if found := non_default(settings, *TOKEN_CONTROLS):
            raise UsageError(f"{found[0]} is not supported without a model", "leave it out", code="not_supported")

    def samples(self, settings: GenerationSettings) -> bool:
        return settings.samples

    def session(
        self,
        max_batch_tokens: int | None = None,
        *,
        rows: int | None = None,
        continues: bool = False,
        interrupted: Callable[[], bool] | None = None,
    ) -> Session:
        return _Session(self, max_batch_tokens or 1000)


class _Session(Session):
    engine: FakeEngine

    def _run(self) -> Sequence[tuple[Request, Answer]]:
        return [(self.waiting[0], attempt(partial(self._answer, self.waiting[0])))]

    def _answer(self, request: Request) -> Generation:
        self.engine.prompts.append(_text(request.prompt))
        if isinstance(request.prompt, Chat):
            self.engine.thinking.append(request.prompt.thinking)
        pieces = re.findall(r"\s*\S+\s*", self.engine.answer(self.engine.prompts[-1]))
        generated: list[str] = []
        for piece in pieces[: request.max_new_tokens or request.settings.max_new_tokens]:
            generated.append(piece)
            if request.on_text is not None:
                request.on_text(piece)
            if request.cancelled():
                return Generation("".join(generated), "interrupted", tokens=len(generated))
        reason = "stop" if len(generated) == len(pieces) else "length"
        return Generation("".join(generated), reason, score=0.5 if request.scored else None, tokens=len(generated))


def _text(prompt: Prompt) -> str:
    match prompt:
        case Chat():
            return "\n".join(message.content for message in prompt.messages) + prompt.prefill
        case QuestionContext():
            return f"{prompt.question}\n{prompt.context}"
        case _:
            return prompt.text + prompt.prefill
