"""The work on rows while it waits for a model: what each row has asked for, got and used.

Knows the generators of the tasks. Does not know batches' sizes, or how prompts are answered.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from llmkit.errors import LlmkitError
from llmkit.heads.row_faults import attempt
from llmkit.inference.fitting import Fitted, ModelReader
from llmkit.tasks import Raw, Result, Step, Work

__all__ = ["Job", "Prompt", "kinds"]


@dataclass
class Job:
    """The work on one row: where it stands, and what it has used."""

    reader: ModelReader
    work: Work
    streams: bool
    number: int = 0
    """Of the row, in the whole run."""
    step: Step = field(default_factory=lambda: Step(()))
    raws: list[Raw | None] = field(default_factory=list)
    result: Result | None = None
    error: LlmkitError | None = None
    """Why there is no result, and never will be."""
    shown: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    truncated: int = 0
    cut: int = 0
    """Prompts whose output ended at max_new_tokens or in a full context."""
    thinking: int = 0
    """Prompts whose output ended in its reasoning."""
    finish_reason: str = "stop"

    def advance(self, *, first: bool = False) -> None:
        """Send the answers to the last step; take the next steps that need a model."""
        failed = attempt(lambda: self._advance(first=first))
        if failed is not None:
            self.error = failed

    def _advance(self, *, first: bool) -> None:
        try:
            raws = [raw for raw in self.raws if raw is not None]
            self.step = next(self.work) if first else self.work.send(raws)
            while not self.step.rows:
                self.step = self.work.send(())
            self.raws = [None] * len(self.step.rows)
        except StopIteration as stop:
            self.result = stop.value

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do."""
        return self.result is not None or self.error is not None

    @property
    def answered(self) -> bool:
        """Whether all prompts of the step have their answers."""
        return not self.ended and None not in self.raws

    def put(self, index: int, raw: Raw) -> None:
        """One prompt's answer."""
        failed = attempt(lambda: self._put(index, raw))
        if failed is not None:
            self.error = failed

    def _put(self, index: int, raw: Raw) -> None:
        self.raws[index] = raw
        self.completion_tokens += raw.tokens
        self.cut += raw.finish_reason == "length"
        self.thinking += raw.thinking
        if raw.finish_reason != "stop":
            self.finish_reason = raw.finish_reason
        if self.step.each is not None:
            self.step.each(index, raw)


@dataclass(frozen=True)
class Prompt:
    """One of the prompts of a job's step."""

    job: Job
    index: int
    fitted: Fitted

    @property
    def length(self) -> int:
        return len(self.fitted.encoded.input_ids)


def kinds(wanted: Iterable[Prompt]) -> Iterable[Sequence[Prompt]]:
    """Prompts that can be run together, the longest first: memory runs out at once or never."""
    kinds: dict[tuple[int | None, bool], list[Prompt]] = {}
    for prompt in wanted:
        kinds.setdefault((prompt.job.step.max_new_tokens, prompt.job.step.scored), []).append(prompt)
    for prompts in kinds.values():
        if not any(prompt.job.step.each for prompt in prompts):  # else their order is that in which they are shown
            prompts.sort(key=lambda prompt: prompt.length, reverse=True)
    return kinds.values()
