"""What the rest of the package asks of whatever runs prompts: the protocol of an engine.

An engine is one model, ready to run. Prompts go through a `Session` of it as requests, which may be added and cancelled
while others run; each comes back with its text, or with why there is none. Knows no model library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from llmkit.config.settings import GenerationSettings, TruncationSide
from llmkit.engines.row_faults import unforeseen
from llmkit.errors import LlmkitError
from llmkit.heads.base import Encoded
from llmkit.models.context import ContextLength
from llmkit.models.source import Source
from llmkit.tasks import Generation, Head, Prompt, Task, Traits

__all__ = ["Answer", "Engine", "ModelFacts", "OnText", "Request", "Session", "never"]

OnText = Callable[[str], None]
Answer = Generation | LlmkitError


def never() -> bool:
    """Of a request that nobody cancels."""
    return False


@dataclass(frozen=True)
class ModelFacts:
    """What there is to know of an engine's model before it runs."""

    source: Source
    head: Head
    context: ContextLength
    max_new_tokens: int | None = None
    """How long its outputs may be when nobody says; None: what suits the task."""
    dtype: str = ""
    device: str = ""


@dataclass(eq=False)
class Request:
    """One prompt to run. Pieces of its (first) text are handed over as soon as they are certain."""

    prompt: Prompt
    encoded: Encoded
    """What `Engine.encode` or `Session.encode` made of it."""
    settings: GenerationSettings
    """Those of one call should be one object: requests with the same run together."""
    max_new_tokens: int | None = None
    """If less than in the settings."""
    scored: bool = False
    """`Generation.score` is wanted."""
    number: int = 0
    """Is added to the seed, so that no two batches draw alike."""
    in_order: bool = False
    """Its text is waited for, so that it keeps its place among the others."""
    on_text: OnText | None = None
    on_reasoning: OnText | None = None
    """Gets what the model thinks before it answers."""
    cancelled: Callable[[], bool] = never
    """Asked after every token; the text then ends with the finish reason ``interrupted``."""


class Session:
    """Requests that run together, in the thread that calls `step`."""

    def __init__(self, engine: Engine, max_batch_tokens: int) -> None:
        self.engine = engine
        self.max_batch_tokens = max_batch_tokens
        """Requests times the longest, new tokens included, that run at once; fewer after memory ran out."""
        self.waiting: list[Request] = []
        self.answered = False
        """Whether any request of the work that the session is for was answered."""

    def encode(self, prompt: Prompt) -> Encoded:
        """As `Engine.encode`; a session that goes on from its last prompt keeps the ids of what that shares."""
        return self.engine.encode(prompt)

    def add(self, request: Request) -> None:
        """Have a request run, at the next `step` that has room for it."""
        self.waiting.append(request)

    def cancel(self, request: Request) -> None:
        """End a request with what there is of its text; the others go on. May be called from another thread."""
        request.cancelled = lambda: True

    def step(self) -> Sequence[tuple[Request, Answer]]:
        """Run some of the requests that wait; which ended, and with what. Where none waits, nothing."""
        gone = [each for each in self.waiting if each.cancelled()]
        ended = [(each, Generation("", "interrupted")) for each in gone] or (self._run() if self.waiting else [])
        for request, _ in ended:
            self.waiting.remove(request)
        return ended

    def _run(self) -> Sequence[tuple[Request, Answer]]:
        """Run some of the requests that wait, of which there are some."""
        raise NotImplementedError

    def run(self, request: Request) -> Generation:
        """Run one request to its end, in a session in which nothing else waits.

        Raises:
            LlmkitError: there is no answer.
        """
        self.waiting = [request]
        try:
            ((_, answer),) = self.step()
        finally:
            self.waiting = []
        if isinstance(answer, LlmkitError):
            raise unforeseen(answer) or answer  # there is no other to go on with
        return answer

    def close(self) -> None:
        """Give up what waits, and free what was kept."""
        self.waiting.clear()


class Engine(Protocol):
    """A model that runs prompts."""

    facts: ModelFacts

    def traits(self, task: Task, *, raw: bool) -> Traits:
        """What a task may know of the model.

        Args:
            raw: text is continued as it is. Else a chat template that no conversation can be rendered with is refused.
        """

    def encode(self, prompt: Prompt) -> Encoded:
        """A prompt to ids; `InputError` where the model does not know one of them."""

    def count(self, text: str) -> int:
        """Tokens in a text, without special ones."""

    def cut(self, text: str, side: TruncationSide, excess: Callable[[str], int]) -> str | None:
        """What is left of a text that is cut at one side until ``excess`` tokens are too many; None if nothing is."""

    def samples(self, settings: GenerationSettings) -> bool:
        """Whether two runs of a prompt may differ."""

    def session(
        self, max_batch_tokens: int | None = None, *, rows: int | None = None, continues: bool = False
    ) -> Session:
        """Something to run requests in.

        Args:
            max_batch_tokens: None finds it from free memory.
            rows: requests that run at once, at most.
            continues: each prompt goes on from the last and its answer, which are not read again.
        """
