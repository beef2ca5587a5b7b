"""Makes prompts fit the model's context, without dropping anything silently.

Knows what is dropped first: examples, then what the task allows (parts, whole messages, one side of the text). What was
cut is counted and noted. Implements `llmkit.tasks.ModelView` for the tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from llmkit.config.settings import GenerationSettings, Overflow
from llmkit.engines.base import Engine, ModelFacts, Session
from llmkit.errors import ContextOverflowError, UsageError
from llmkit.heads.base import Encoded
from llmkit.models.tables import HEADS
from llmkit.tasks import Prompt, PromptOptions, Row, Task, Traits
from llmkit.tasks.output import Note, NoteCode

__all__ = ["ContextFitter", "Fitted"]

_SLACK = 4
"""Tokens kept free in each part: inside a prompt, a text has a few tokens more or fewer than alone."""


@dataclass(frozen=True)
class Fitted:
    """A row's prompt, its ids, and the number of input tokens that were cut from it."""

    prompt: Prompt
    encoded: Encoded
    truncated: int = 0


@dataclass(frozen=True)
class _Budget:
    """Maximum prompt length: ``limit`` at most, ``comfortable`` to leave room for the whole output."""

    limit: int
    comfortable: int
    hard: bool


def _budget(model: ModelFacts, max_new_tokens: int) -> _Budget | None:
    context, head = model.context, HEADS[model.head]
    if context.tokens is None or not head.writes:  # extractive models split texts into windows
        return None
    if not head.one_sequence:
        return _Budget(context.tokens, context.tokens, context.hard)
    comfortable = context.tokens - min(max_new_tokens, context.tokens // 2)
    return _Budget(context.tokens - 1, comfortable, context.hard)


@dataclass
class ContextFitter:
    """The model as seen by the work on one row. ``settings`` have their ``max_new_tokens`` set."""

    task: Task
    traits: Traits
    prompt_options: PromptOptions
    engine: Engine
    settings: GenerationSettings
    emit: Callable[[str], None]
    encoder: Engine | Session | None = None
    """What encodes prompts; None is the engine."""
    _notes: list[Note] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._limits = _budget(self.engine.facts, self.max_new_tokens)
        self._given = len(self.prompt_options.examples)
        self.policy: Overflow = self.settings.on_overflow or self.task.overflow
        if self.policy not in self.task.allowed_overflow:
            choices = " or ".join(self.task.allowed_overflow)
            raise UsageError(
                f"{self.task.name} does not support on_overflow={self.policy}",
                f"use {choices}, or a shorter input",
                code="not_supported",
            )

    @property
    def max_new_tokens(self) -> int:
        """Maximum number of output tokens."""
        return self.settings.max_new_tokens or self.task.max_new_tokens

    @property
    def default_max_new_tokens(self) -> int:
        """Maximum number of output tokens if the caller does not set it."""
        return self.engine.facts.max_new_tokens or self.task.max_new_tokens

    def note(self, code: NoteCode, text: str) -> None:
        """Add a note for the user to this output."""
        self._notes.append(Note(code, text))

    @property
    def notes(self) -> tuple[Note, ...]:
        """The notes so far, without duplicates."""
        kept = len(self.prompt_options.examples)
        text = f"{self._given - kept} of {self._given} examples dropped: they do not fit in the context"
        dropped = [Note("examples_dropped", text)] if kept < self._given else []
        return tuple(dict.fromkeys([*dropped, *self._notes]))

    def count(self, text: str) -> int:
        """Number of tokens in a text, without special ones."""
        return self.engine.count(text)

    def fits(self, row: Row) -> bool:
        """Whether the prompt leaves room for the output, dropping examples if needed; True if nothing may be cut."""
        if not self.cuts:
            return True
        while not (fits := self.holds(self._length(row))) and self.give_way():
            pass
        return fits

    def give_way(self) -> bool:
        """Drop the first example; False if there is none."""
        if not self.prompt_options.examples:
            return False
        self.prompt_options = replace(self.prompt_options, examples=self.prompt_options.examples[1:])
        return True

    @property
    def cuts(self) -> bool:
        """Whether there is a limit, and content may be dropped to keep it."""
        return self._limits is not None and self.policy != "error"

    def holds(self, tokens: int, share: float = 1.0) -> bool:
        """Whether a prompt of this length fits in a fraction ``share`` of the budget, which leaves room for output."""
        return self._limits is None or tokens <= self._limits.comfortable * share

    def room(self, row: Row) -> int | None:
        """Tokens available for the row's input text; None if there is no limit, or the policy is not parts.

        Examples are dropped until the text has a quarter of the budget.
        """
        if self._limits is None or self.policy != "chunk":
            return None
        bare = {**row, self.task.input_column: ""}
        enough = self._limits.comfortable // 4
        while (room := self._limits.comfortable - _SLACK - self._length(bare)) < enough and self.give_way():
            pass
        if room < 1:
            raise self._no_room(self._limits)
        return room

    def fit(self, row: Row) -> Fitted:
        """Render and encode a row so that it fits.

        Raises:
            ContextOverflowError: the row is longer than the context and may not be cut.
        """
        fitted = self.encode(row)
        if self._limits is None:
            return fitted
        while len(fitted.encoded.input_ids) > self._limits.comfortable and self.give_way():
            fitted = self.encode(row)
        length = len(fitted.encoded.input_ids)
        if length <= self._limits.limit:
            return fitted
        if self.policy == "truncate" and isinstance(row[self.task.input_column], str):
            return self._truncate(row, self._limits)
        if not self._limits.hard:
            trained = f"more than the {self._limits.limit} this model was trained with"
            self.note("context_exceeded", f"the input has {length} tokens, {trained}")
            return fitted
        cut = ", or cut it with `on_overflow=truncate`" if self.policy == "error" else ""
        raise ContextOverflowError(
            f"the input has {length} tokens and the context of {self.engine.facts.source.name} is {self._limits.limit}",
            f"shorten it{',' if cut else ' or'} use a model with a longer context{cut}",
        )

    def encode(self, row: Row) -> Fitted:
        """Render and encode a row, whatever its length."""
        prompt = self.task.render(row, self.traits, self.prompt_options)
        return Fitted(prompt, (self.encoder or self.engine).encode(prompt))

    def _length(self, row: Row) -> int:
        return len(self.encode(row).encoded.input_ids)

    def _no_room(self, limits: _Budget) -> ContextOverflowError:
        return ContextOverflowError(
            f"the prompt without any input already exceeds the budget of {limits.comfortable} tokens",
            "lower `max_new_tokens`",
            "shorten the prompt",
            "shorten `system`",
            "use a model with a longer context",
        )

    def _truncate(self, row: Row, limits: _Budget) -> Fitted:
        """Truncate the row's text at one side until the prompt leaves room for the output."""
        column, side = self.task.input_column, self.settings.truncation_side or self.task.truncation_side
        assert side is not None
        text = str(row[column])
        rest = self.engine.cut(text, side, lambda part: self._length({**row, column: part}) - limits.comfortable)
        if rest is None:
            raise self._no_room(limits)
        kept, whole = self.count(rest), self.count(text)
        part = "first" if side == "right" else "last"
        left = f"the {part} {kept} of its {whole} tokens are kept"
        self.note("input_truncated", f"the input is too long and was truncated: {left}")
        return replace(self.encode({**row, column: rest}), truncated=whole - kept)
