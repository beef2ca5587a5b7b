"""The protocol of an engine: what the rest of the package needs from whatever runs prompts.

An engine is one model, ready to run. Prompts are submitted to a `Session` as requests, which may be added and cancelled
while others run; each returns its text, or the reason why there is none. Knows no model library.
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
    """The default of `Request.cancelled`: never."""
    return False


@dataclass(frozen=True)
class ModelFacts:
    """Properties of an engine's model that are known before it runs."""

    source: Source
    head: Head
    context: ContextLength
    max_new_tokens: int | None = None
    """Default maximum length of an output; None: the task's default."""
    dtype: str = ""
    device: str = ""
    adapter: str = ""
    """The adapter that the engine applies, if several share its base model."""


@dataclass(eq=False)
class Request:
    """One prompt to run. Pieces of its (first) output are emitted as soon as they are final."""

    prompt: Prompt
    encoded: Encoded
    """The prompt as encoded by `Engine.encode` or `Session.encode`."""
    settings: GenerationSettings
    """Requests with equal settings can run in the same batch; with a seed, only those that share the object."""
    max_new_tokens: int | None = None
    """A limit in place of the one in the settings."""
    stop_loops: bool = False
    """End the output when it repeats a passage over and over, unless the prompt does so too."""
    plausible_tokens: int | None = None
    """The output length from which on the output cannot be right, and is stopped."""
    adapter: str = ""
    """The adapter to apply, of those that share the base model; see `ModelFacts.adapter`."""
    scored: bool = False
    """Whether to compute `Generation.score`."""
    number: int = 0
    """Added to the seed, so that no two batches sample alike."""
    in_order: bool = False
    """A user is waiting for its text, so it keeps its position in the queue."""
    on_text: OnText | None = None
    on_reasoning: OnText | None = None
    """Called with the model's reasoning, piece by piece."""
    cancelled: Callable[[], bool] = never
    """Checked after every token; where true, the output ends with the finish reason ``interrupted``."""


class Session:
    """Requests that run together, in the thread that calls `step`."""

    def __init__(self, engine: Engine, max_batch_tokens: int) -> None:
        self.engine = engine
        self.max_batch_tokens = max_batch_tokens
        """Maximum number of requests times the longest of them, new tokens included; lowered when memory runs out."""
        self.prefix_tokens = 0
        """Maximum number of tokens of earlier requests whose keys and values are kept, out of those of a batch."""
        self.waiting: list[Request] = []
        self.answered = False
        """Whether any request of this session has been answered."""

    @property
    def busy(self) -> bool:
        """Whether there is anything to run."""
        return bool(self.waiting)

    def encode(self, prompt: Prompt) -> Encoded:
        """As `Engine.encode`; a session that continues its last prompt keeps the ids of the shared beginning."""
        return self.engine.encode(prompt)

    def add(self, request: Request) -> None:
        """Queue a request for the next `step` that has room for it."""
        self.waiting.append(request)

    def cancel(self, request: Request) -> None:
        """End a request with its text so far; the others continue. May be called from another thread."""
        request.cancelled = lambda: True

    def step(self) -> Sequence[tuple[Request, Answer]]:
        """Run some of the queued requests; returns the finished ones with their results, nothing if none is queued."""
        gone = [each for each in self.waiting if each.cancelled()]
        ended = [(each, Generation("", "interrupted")) for each in gone] or (self._run() if self.busy else [])
        for request, _ in ended:
            if request in self.waiting:
                self.waiting.remove(request)
        return ended

    def _run(self) -> Sequence[tuple[Request, Answer]]:
        """Run some of the requests, of which there is at least one."""
        raise NotImplementedError

    def run(self, request: Request) -> Generation:
        """Run one request to its end, in a session with an empty queue.

        Raises:
            LlmkitError: the request failed.
        """
        self.waiting = [request]
        try:
            ((_, answer),) = self.step()
        finally:
            self.waiting = []
        if isinstance(answer, LlmkitError):
            raise unforeseen(answer) or answer  # the only request, so its error is raised
        return answer

    def close(self) -> None:
        """Drop the queued requests, and free the caches."""
        self.waiting.clear()


class Engine(Protocol):
    """A model that runs prompts."""

    facts: ModelFacts

    def traits(self, task: Task, *, raw: bool) -> Traits:
        """The model's traits, for the task.

        Args:
            raw: text is continued without a template. Otherwise a chat template that cannot be rendered is refused.
        """

    def encode(self, prompt: Prompt) -> Encoded:
        """Token ids of a prompt; `InputError` if one is outside the model's vocabulary."""

    def count(self, text: str) -> int:
        """Number of tokens in a text, without special ones."""

    def cut(self, text: str, side: TruncationSide, excess: Callable[[str], int]) -> str | None:
        """A text truncated at one side until ``excess`` reports no tokens too many; None if nothing would remain."""

    def check(self, settings: GenerationSettings) -> None:
        """Refuse settings that the model does not support: `UsageError`."""

    def samples(self, settings: GenerationSettings) -> bool:
        """Whether generation samples, so that two runs of a prompt may differ."""

    def session(
        self,
        max_batch_tokens: int | None = None,
        *,
        rows: int | None = None,
        continues: bool = False,
        interrupted: Callable[[], bool] | None = None,
    ) -> Session:
        """A session that runs requests.

        Args:
            max_batch_tokens: None estimates it from free memory.
            rows: maximum number of requests that run at once.
            continues: each prompt extends the last one and its reply, whose keys and values are reused.
            interrupted: for servers. `Session.step` returns when it is true, after a few tokens at the latest, so that
                new requests can be added, which join those that are running.
        """
