"""Encoding of training rows as features, and what happens to a row that is too long.

Prompts and token ids are the same as at inference, since the same task and head make them. Knows one row at a time;
does not know files, splits or processes (`llmkit.training.dataset`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from llmkit.config.recipe import DataSection, Recipe
from llmkit.config.settings import TruncationSide
from llmkit.engines.row_faults import attempt
from llmkit.engines.transformers.traits import traits_of
from llmkit.errors import InputError, LlmkitError, UsageError
from llmkit.heads import head_of
from llmkit.heads.base import IGNORED, Features, LossOn, cut_to_fit, encode_text, refuse_unknown_ids
from llmkit.heads.chat_template import check_template, omitted_reasoning
from llmkit.inference.few_shot import FewShot
from llmkit.inference.tuned_config import recipe_prompt
from llmkit.models.load import Loaded
from llmkit.tasks import Chat, Example, PromptOptions, Row, Task, Traits
from llmkit.tasks.base import LABEL
from llmkit.tasks.wording import in_language

__all__ = ["Encoder", "Outcome", "make_encoder", "max_length"]

Status = Literal["ok", "truncated", "chunked", "too_long", "no_label", "bad"]
Policy = Literal["error", "truncate", "chunk", "drop"]


@dataclass(frozen=True)
class Outcome:
    """The result of encoding a row."""

    status: Status
    features: tuple[Features, ...] = ()
    """Empty unless the status is ok, truncated or chunked."""
    tokens: int = 0
    """Length of the row's longest example, before it was truncated."""
    cut: int = 0
    """Tokens that were truncated."""
    message: str = ""
    """Why the row is bad."""
    remarks: tuple[str, ...] = ()
    """What of the row is not learned or not shown to the model, though nothing is wrong."""


@dataclass(frozen=True)
class Encoder:
    """Turns rows into features. It can be pickled, for other processes."""

    loaded: Loaded
    """Its weights are not used, and may be missing."""
    task: Task
    traits: Traits
    prompt_options: PromptOptions
    max_length: int | None
    """Maximum tokens of an example (causal) or of the encoder input (seq2seq)."""
    max_target_length: int | None
    """Seq2seq: maximum tokens of the answer."""
    policy: Policy | None
    loss_on: LossOn | Literal["last"]
    """The head's setting; last: as target, of the last example of a row."""
    truncation_side: TruncationSide | None = None
    """The recipe's setting; None takes the task's default."""

    @property
    def keeps(self) -> str:
        """What is kept of a truncated row, in words."""
        first = "few-shot examples are dropped first, then " if self.prompt_options.examples else ""
        return f"{first}{self._kept_text}"

    @property
    def _kept_text(self) -> str:
        if self.task.truncation_side is None:
            return "the newest messages are kept"
        if self.truncation_side is None and self.task.truncation_side == "left":
            return "the end of a prompt and the beginning of plain text are kept"
        side = self.truncation_side or self.task.truncation_side
        return f"the {'beginning' if side == 'right' else 'end'} of the text is kept"

    def encode(self, row: Row) -> Outcome:
        """The features of a row, or the reason why it has none."""
        if (refused := attempt(lambda: self.task.validate_learned(row, all_of_it=self.loss_on == "all"))) is not None:
            return Outcome("bad", message=refused.problem)
        row = in_language(self.task, row, self.prompt_options)
        outcome = attempt(lambda: self._as_preference(row, self._with_examples_of(row).outcome(row)))
        return Outcome("bad", message=str(outcome)) if isinstance(outcome, LlmkitError) else outcome

    @cached_property
    def _few_shot(self) -> FewShot:
        return FewShot(self.task, self.prompt_options)

    def _with_examples_of(self, row: Row) -> Encoder:
        """The encoder with the few-shot examples of one row."""
        if not self.prompt_options.examples or self.task.is_plain(row):
            return self
        return replace(self, prompt_options=self._few_shot.options_for(row))

    def outcome(self, row: Row) -> Outcome:
        """The features of a valid row with these few-shot examples."""
        examples = self._examples(row)
        features = self._features(row)
        enough = all if self._has_pairs else any
        if not enough(self._has_label(each) for each in features):
            return Outcome("no_label", tokens=max(map(_length, features), default=0))
        for each in features:
            refuse_unknown_ids(self.loaded, (*each.input_ids, *each.decoder_input_ids))
        longest = max(map(_length, features))
        fits = all(map(self._fits, features))
        outcome = Outcome("ok", tuple(features), longest) if fits else self._shorten(row, features, longest)
        return replace(outcome, remarks=tuple(self._remarks(row, examples)))

    def _as_preference(self, row: Row, outcome: Outcome) -> Outcome:
        """The outcome of a preference with its sequences as one example: of two answers, or of one with its label."""
        if not outcome.features or self.task.learns_from == "answers":
            return outcome
        if len(outcome.features) != (2 if self._has_pairs else 1):
            raise InputError(
                "an answer has several replies whose prompts do not continue each other",
                "remove the row, or end it earlier",
            )
        first, last = outcome.features[0], outcome.features[-1]
        if self._has_pairs and first == last:
            return Outcome("no_label", tokens=outcome.tokens, message="its chosen and its rejected answer are the same")
        pair = replace(first, rejected_input_ids=last.input_ids, rejected_labels=last.labels)
        if not self._has_pairs:
            pair = first if row[LABEL] else replace(pair, input_ids=(), labels=())
        return replace(outcome, features=(pair,))

    def _remarks(self, row: Row, examples: Sequence[Example]) -> Iterator[str]:
        yield from self.task.training_remarks(row)
        chat = examples[-1].prompt if examples else None
        if isinstance(chat, Chat) and omitted_reasoning(self.loaded.tokenizer, chat):
            yield "reasoning of earlier replies is not in the context of later ones, as in the chat template"

    def _examples(self, row: Row) -> tuple[Example, ...]:
        examples = self.task.examples(row, self.traits, self.prompt_options)
        return examples[-1:] if self.loss_on == "last" else examples

    def _features(self, row: Row) -> list[Features]:
        """The features of a row; of a preference, those of both answers."""
        found = self._encoded(self._examples(row))
        return found + self._encoded(self._examples(self.task.as_rejected(row))) if self._has_pairs else found

    @property
    def _has_pairs(self) -> bool:
        return self.task.learns_from == "pairs"

    def _encoded(self, examples: Sequence[Example]) -> list[Features]:
        loss_on: LossOn = "target" if self.loss_on == "last" else self.loss_on
        return head_of(self.loaded.head).features(self.loaded, examples, loss_on=loss_on)

    def _has_label(self, features: Features) -> bool:
        return bool(features.start_positions) or any(label != IGNORED for label in features.labels)

    def _fits(self, features: Features) -> bool:
        if self.max_length is not None and len(features.input_ids) > self.max_length:
            return False
        return self.max_target_length is None or len(features.decoder_input_ids) <= self.max_target_length

    def _shorten(self, row: Row, features: list[Features], longest: int) -> Outcome:
        plain = self.task.is_plain(row)
        policy = self.policy or ("chunk" if plain else "error")
        if policy == "chunk" and plain:
            blocks = tuple(self._blocks(features))
            return Outcome("chunked", blocks, longest)
        if policy in ("chunk", "truncate") and not plain and (examples := self.prompt_options.examples):
            fewer = replace(self, prompt_options=replace(self.prompt_options, examples=examples[1:]))
            return _shortened(fewer.outcome(row), longest)
        if policy == "chunk":
            return self._windows(row, longest)
        if policy == "truncate":
            return self._truncate(row, features, longest)
        return Outcome("too_long", tokens=longest)

    def _blocks(self, features: list[Features]) -> Iterator[Features]:
        """Blocks of plain text. Each starts with the last token of the previous one, so all tokens are predicted."""
        assert self.max_length is not None
        for each in features:
            for start in range(0, len(each.input_ids) - 1, max(1, self.max_length - 1)):
                end = start + self.max_length
                context = (IGNORED,) if start else each.labels[:1]
                yield Features(each.input_ids[start:end], (*context, *each.labels[start + 1 : end]))

    def _windows(self, row: Row, longest: int) -> Outcome:
        """The features of each part of a long text, as at inference."""
        bare = self._features({**row, self.task.input_column: ""})
        room = (self.max_length or 0) - max(map(_length, bare)) - _SLACK
        if room < 1:
            return Outcome("too_long", tokens=longest)
        count = self._count
        features = [each for part in self.task.parts(row, room, count) for each in self._features(part)]
        if not features or not all(map(self._fits, features)):
            return Outcome("too_long", tokens=longest)
        return Outcome("chunked", tuple(features), longest)

    def _count(self, text: str) -> int:
        return len(encode_text(self.loaded.tokenizer, text, special=False))

    def _truncate(self, row: Row, features: list[Features], longest: int) -> Outcome:
        if self.task.is_plain(row):
            assert self.max_length is not None
            (whole,) = features
            part = slice(-self.max_length, None) if self.truncation_side == "left" else slice(self.max_length)
            rest = Features(whole.input_ids[part], whole.labels[part])
            return Outcome("truncated", (rest,), longest, longest - self.max_length)
        kept = self.task.shortened(row, lambda some: all(map(self._fits, self._features(some))))
        features = self._shorten_text(row) if kept is None else self._features(kept)
        features = [self._cut_answer(each) for each in features if self._has_label(each)]
        if not features or not all(map(self._fits, features)):
            return Outcome("too_long", tokens=longest)
        return Outcome("truncated", tuple(features), longest, longest - max(map(_length, features)))

    def _shorten_text(self, row: Row) -> list[Features]:
        """Truncate one side of the input, as at inference; empty if nothing to learn is left."""
        column, text = self.task.input_column, str(row[self.task.input_column])
        side = self.truncation_side or self.task.truncation_side
        assert side is not None

        def excess(rest: str) -> int:
            longest = max(len(each.input_ids) for each in self._features({**row, column: rest}))
            return 0 if self.max_length is None else longest - self.max_length

        rest = cut_to_fit(self.loaded.tokenizer, text, side, excess)
        if rest is None or not self.task.teaches({**row, column: rest}, text):
            return []
        return self._features({**row, column: rest})

    def _cut_answer(self, features: Features) -> Features:
        """Truncate the end of an answer, except for its end token: otherwise the model would not learn to stop."""
        limit = self.max_target_length
        if limit is None or len(features.decoder_input_ids) <= limit:
            return features
        labels = (*features.labels[: limit - 1], features.labels[-1])
        return replace(features, labels=labels, decoder_input_ids=features.decoder_input_ids[:limit])


def _shortened(outcome: Outcome, longest: int) -> Outcome:
    """The outcome of a row without one of its few-shot examples, with which it has ``longest`` tokens."""
    status: Status = "truncated" if outcome.status == "ok" else outcome.status
    cut = outcome.cut + longest - outcome.tokens if status == "truncated" else outcome.cut
    return replace(outcome, status=status, tokens=longest, cut=cut)


_SLACK = 4
"""Tokens left free in a window: a text can have a few more tokens inside a prompt than alone."""


def _length(features: Features) -> int:
    """Tokens of an example, including the decoder's."""
    return len(features.input_ids) + len(features.decoder_input_ids)


def make_encoder(recipe: Recipe, task: Task, loaded: Loaded) -> Encoder:
    """The encoder of a recipe.

    Raises:
        UsageError: a setting has no effect on this kind of model, or is not supported.
    """
    data, head = recipe.data, head_of(loaded.head)
    if recipe.method is not None and not head.one_sequence:
        raise UsageError(
            f"method: {recipe.method.name} trains causal models, and {loaded.source.name} is a {head.name} model",
            "use a causal model, or leave method out",
            code="not_supported",
        )
    traits, prompt_options = traits_of(loaded, task), recipe_prompt(recipe, loaded, task)
    if prompt_options.raw:
        if not traits.chat:
            raise UsageError(
                "prompt.raw has no effect: this model has no chat template", "leave it out", code="no_effect"
            )
        traits = replace(traits, chat=False)
    sources = [each for each in (*data.train, *(data.validation or ())) if (each.task or recipe.task) == task.name]
    for prefix in dict.fromkeys((prompt_options.prefix, *(source.prefix for source in sources))):
        task.check_options(traits, replace(prompt_options, prefix=prefix))
    if traits.chat:
        check_template(loaded.tokenizer, prompt_options.chat_template_kwargs)
    if data.loss_on == "answer" and not (traits.chat and head.one_sequence):
        raise UsageError(
            "data.loss_on: answer has no effect: only replies that a chat template of a causal model renders have"
            " reasoning",
            "use target",
            code="no_effect",
        )
    _check_lengths(data, task, loaded)
    return Encoder(
        loaded=loaded,
        task=task,
        traits=traits,
        prompt_options=prompt_options,
        max_length=max_length(data, loaded) if head.writes else None,
        max_target_length=_max_target_length(data, loaded) if head.target_apart else None,
        policy=data.on_overflow,
        loss_on=data.loss_on,
        truncation_side=data.truncation_side,
    )


def max_length(data: DataSection, loaded: Loaded) -> int | None:
    """Maximum tokens of an example (causal) or of the encoder input (seq2seq)."""
    limit = loaded.context.tokens
    if data.max_length is None:
        return limit
    if limit is not None and loaded.context.hard and data.max_length > limit:
        raise UsageError(
            f"data.max_length={data.max_length} is more than the {limit} tokens {loaded.source.name} supports",
            "lower it",
            code="invalid_value",
        )
    return data.max_length


def _max_target_length(data: DataSection, loaded: Loaded) -> int | None:
    limit = head_of(loaded.head).output_limit(loaded)
    if data.max_target_length is not None and limit is not None and data.max_target_length > limit:
        raise UsageError(
            f"data.max_target_length={data.max_target_length} is more than the {limit} tokens that the decoder of "
            f"{loaded.source.name} supports",
            "lower it",
            code="invalid_value",
        )
    return limit if data.max_target_length is None else data.max_target_length


def _check_lengths(data: DataSection, task: Task, loaded: Loaded) -> None:
    head = head_of(loaded.head)
    if not head.target_apart and data.max_target_length is not None:
        raise UsageError(
            f"data.max_target_length has no effect on a {head.name} model, whose examples are one sequence",
            "use max_length" if head.one_sequence else "leave it out",
            code="no_effect",
        )
    if not head.writes:
        for name, default in (
            ("max_length", None),
            ("on_overflow", None),
            ("truncation_side", None),
            ("loss_on", "target"),
        ):
            if getattr(data, name) != default:
                raise UsageError(
                    f"data.{name} has no effect on a model that extracts answers: it splits long texts into windows",
                    "leave it out; settings.max_seq_len and doc_stride set their length",
                    code="no_effect",
                )
    if data.truncation_side is not None and task.truncation_side is None:
        raise UsageError(
            f"data.truncation_side has no effect on {task.name}, which drops its oldest messages",
            "leave it out",
            code="no_effect",
        )
    if data.on_overflow == "chunk" and not task.learns_parts:
        raise UsageError(
            f"data.on_overflow: chunk does not apply to {task.name}: a part of its input has no answer to learn",
            "use truncate, drop or error",
            code="not_supported",
        )
