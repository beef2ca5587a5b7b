"""Base class of tasks: declarations and prompts.

A task turns a row into prompts, and the generated texts into an answer. It is independent of tensors, tokenizers and
model classes, and never imports torch or transformers.

A text longer than the model's context takes several prompts, and a second round may depend on the answers of the first.
So the work on one row is a generator (`Task.steps`): it yields `Step`s, receives the generations of each, and returns
the `Result`. Batching is up to the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from llmkit.config.settings import GenerationSettings, Overflow, TaskSettings, TruncationSide
from llmkit.errors import InputError, UsageError
from llmkit.tasks.messages import call_text, to_tools
from llmkit.tasks.output import Output
from llmkit.tasks.recommended import Recommended
from llmkit.tasks.types import (
    Chat,
    Example,
    Generation,
    Head,
    Message,
    ModelView,
    Prompt,
    PromptOptions,
    Result,
    Row,
    Step,
    Text,
    Traits,
    Work,
)
from llmkit.tasks.wording import LANGUAGE, check_prompt, in_language, input_text
from llmkit.text.languages import Route
from llmkit.text.scripts import is_unspaced

__all__ = ["COMPLETION", "EXAMPLES", "LABEL", "PROMPT", "REJECTED", "Task"]

EXAMPLES = ("examples", "shots", "shots_by", "shots_seed")
"""The prompt options about few-shot examples."""

PROMPT = ("prompt", "instruction", "input", "inputs", "query", "question", "提示", "指令", "问题", "問題",
          "質問")  # fmt: skip
COMPLETION = ("completion", "response", "output", "answer", "chosen", "target", "targets", "回答", "答案", "输出",
              "輸出", "応答")  # fmt: skip
"""Common column names of prompts and completions, the most specific first."""
REJECTED, LABEL = "rejected", "label"
"""Columns of preferences in addition to the task's: the worse answer; whether the answer is desirable."""


class Task:
    """Base of the tasks. Subclasses set the class attributes and override the methods they differ in.

    A task is described by its class alone: no other code depends on its name (`llmkit.tasks.register`).
    """

    name: ClassVar[str]
    verb: ClassVar[str]
    """The verb on the command line, as in ``llmkit generate``."""
    help: ClassVar[str]
    """Help of the command: a sentence, optionally followed by paragraphs and, at the end, by ``Examples:``."""
    synonyms: ClassVar[tuple[str, ...]] = ()
    """Other names that users may try, for suggestions."""
    sample: ClassVar[str] = '"TEXT"'
    sample_options: ClassVar[Mapping[str, str]] = {}
    """Arguments and options of an example command."""
    heads: ClassVar[tuple[Head, ...]] = (Head.CAUSAL, Head.SEQ2SEQ)
    settings_class: ClassVar[type[TaskSettings]] = TaskSettings
    argument_help: ClassVar[Mapping[str, str]] = {}
    """Help of the command's arguments, if there are several."""
    command_prompt_options: ClassVar[tuple[str, ...]] = (
        *EXAMPLES, "template", "prefix", "prompt_language", "think", "chat_template_kwargs",
    )  # fmt: skip
    """The fields of `PromptOptions` that are options of the command."""
    converses: ClassVar[bool] = False
    """Whether the command starts a conversation if it gets no text."""
    takes_instruction: ClassVar[bool] = False
    """Whether the command's text is an instruction, below which further text may follow."""
    takes_document: ClassVar[bool] = False
    """Whether the input text is a document: of HTML only its text, and more than one word."""

    # Rows.
    input_column: ClassVar[str]
    """The column with the input text, which may be too long for the model."""
    columns: ClassVar[tuple[str, ...]]
    """All input columns, in the order of the command's arguments."""
    optional_columns: ClassVar[tuple[str, ...]] = ()
    """Further columns, which a row can lack, such as in place of a setting; an empty cell is none."""
    settings_in_rows: ClassVar[tuple[str, ...]] = ()
    """The settings that optional columns of a row take the place of."""
    target_column: ClassVar[str]
    """The column with the expected output, in examples and in training data."""
    further_columns: Mapping[str, bool] = MappingProxyType({})
    """Columns beyond the task's own that the caller's template uses, and whether some rows must have them."""
    aliases: ClassVar[Mapping[str, tuple[str, ...]]]
    """The columns of training data with their common names, the most specific first."""
    learns_from: Literal["answers", "pairs", "labels"] = "answers"
    """What training rows have: answers, a chosen answer with a `REJECTED` one, or an answer with a `LABEL`."""
    learned_columns: ClassVar[tuple[str, ...]] = ()
    """The columns that may contain the target of training, if not always ``target_column``."""
    shapes: ClassVar[tuple[str, ...]] = ("columns",)
    """Possible shapes of its training data, in the order they are tried (`llmkit.data.shapes`)."""

    wordings: ClassVar[Mapping[str, Any]] = {}
    """The wording of its prompts in each language, by BCP 47 tag; empty if they have none."""

    # Output and input length.
    max_new_tokens: ClassVar[int]
    overflow: ClassVar[Overflow] = "error"
    """What to do by default with a text longer than the model's context."""
    allowed_overflow: ClassVar[tuple[Overflow, ...]] = ("error", "truncate")
    """The supported choices of ``overflow``."""
    truncation_side: ClassVar[TruncationSide | None] = "right"
    """Default side that ``truncate`` cuts; documents begin with the most important content. None: messages are dropped,
    the oldest first."""
    learns_parts: ClassVar[bool] = False
    """Whether a training example that is too long can be split into parts."""
    calls_tools: ClassVar[bool] = False
    """Whether the model may call tools, and its calls are part of the answer."""
    allow_reasoning: ClassVar[bool] = False
    """Whether reasoning is left to the model by default; otherwise it is turned off where that is possible."""
    strip_output: ClassVar[bool] = True
    """Whether white space around the output is stripped."""
    stop_loops: ClassVar[bool] = False
    """Whether an output ends when it repeats a passage over and over, unless the prompt does so too."""
    output_fields: ClassVar[tuple[str, ...]] = ()
    """Additional attributes of `Output` in its JSON."""

    # Models.
    recommended: ClassVar[tuple[Recommended, ...]] = ()
    """Recommended models, the default first."""
    embedded: ClassVar[tuple[str, ...]] = ("starter",)
    """Models that need no hub (`llmkit.models.bundled`), the best first."""
    takes_prefix: ClassVar[bool] = False
    """Whether models were trained with a prefix that names the task."""
    names_languages: ClassVar[bool] = False
    """Whether languages are passed to translation models."""
    suits_translators: ClassVar[bool] = False
    """Whether models that can only translate support the task."""
    pipeline_tag: ClassVar[str] = ""
    """The pipeline tag on the Hub, if it differs from the name."""

    # Evaluation.
    metrics: ClassVar[tuple[str, ...]] = ("rouge",)
    """Names of its metrics (`llmkit.metrics.score`)."""
    reports_perplexity: ClassVar[bool] = False

    def __init__(self, settings: TaskSettings | None = None) -> None:
        self.settings: Any = self.settings_class() if settings is None else settings
        if type(self.settings) is not self.settings_class:
            raise UsageError(
                f"{type(self.settings).__name__} are not the settings of {self.name}",
                f"use {self.settings_class.__name__}",
            )

    def with_settings(self, settings: TaskSettings) -> Task:
        """The same task with other settings."""
        made = type(self)(settings)
        made.further_columns, made.learns_from = self.further_columns, self.learns_from
        return made

    @classmethod
    def shown_defaults(cls) -> dict[str, str]:
        """The task's defaults of common settings, in words."""
        return {
            "model": cls.recommended[0].model if cls.recommended else "",
            "max_new_tokens": f"the model's own, or {cls.max_new_tokens}",
            "on_overflow": cls.overflow,
            "truncation_side": cls.truncation_side or "drop messages, the oldest first",
        }

    def instruct(self, row: Row) -> str:
        """The user's message for one row."""
        return str(row[self.input_column])

    def plain_prompt(self, row: Row, traits: Traits) -> str:
        """The input text for a model without a chat template."""
        return traits.prefix + str(row[self.input_column])

    def own_prefix(self, row: Row, traits: Traits) -> str:
        """The beginning of `plain_prompt` that the caller's prefix replaces."""
        return traits.prefix

    def template_variables(self, row: Row) -> Mapping[str, Any]:
        """Variables of the caller's template beside the columns of a row."""
        return {}

    def wording(self, row: Row) -> Any:
        """The wording in the language of a row's prompt."""
        return self.wordings[row.get(LANGUAGE, "en")]

    def stop(self, traits: Traits) -> tuple[str, ...]:
        """Stop strings for a causal model without a chat template."""
        return ()

    def route(self, row: Row, traits: Traits) -> Route | None:
        """Languages that are passed to the model along with the text."""
        return None

    def reference(self, row: Row) -> str:
        """The expected output of one row."""
        return str(row[self.target_column])

    def references(self, row: Row) -> list[str]:
        """All expected outputs of a row from `without_target`; empty: the correct result is that there is no answer."""
        return list(row.get("references") or [self.reference(row)])

    def without_target(self, row: dict[str, Any]) -> dict[str, Any] | None:
        """The row for evaluation, with the target separate from the input; None if there is no target.

        Raises:
            InputError: the input is incomplete.
        """
        return row

    def with_target(self, row: dict[str, Any]) -> dict[str, Any]:
        """The inverse of `without_target`: the row with its target as the only thing to learn."""
        return row

    def as_pair(self, chosen: dict[str, Any], rejected: Mapping[str, Any]) -> dict[str, Any]:
        """The row of a preference, from two rows that differ in their answer.

        Raises:
            InputError: they differ in more than that.
        """
        if {**chosen, self.target_column: None} != {**rejected, self.target_column: None}:
            raise InputError("has different inputs for its chosen and its rejected answer", "fix the row")
        return {**chosen, REJECTED: rejected.get(self.target_column)}

    def as_rejected(self, row: Row) -> Row:
        """The row of a preference with the rejected answer in place of the chosen one."""
        others = {name: value for name, value in row.items() if name != REJECTED}
        return {**others, self.target_column: row[REJECTED]}

    def as_labelled(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row of an answer with a `LABEL`, from a row that learns it."""
        return row

    def trivial_answers(self, row: Row) -> dict[str, str]:
        """Baseline answers that need no model, by name."""
        return {}

    def target_language(self, row: Row) -> str | None:
        """BCP 47 tag of the language of the answer to a row, if set."""
        return None

    def group(self, row: Row) -> str | None:
        """The group of rows that a row is also evaluated with, such as its language pair."""
        return None

    def default_models(self, text: str = "", fields: Collection[str] = ()) -> tuple[str, ...]:
        """Default models; the first that exists is used.

        Args:
            text: the input, as far as it is known.
            fields: those of the ``optional_columns`` that the rows have.
        """
        if not self.recommended:
            raise UsageError(f"{self.name} has no default model", "name one with `model`")
        return (self.recommended[0].model,)

    def text(self, row: Row) -> str:
        """The complete input text of a row."""
        return " ".join(str(row.get(name, "")) for name in self.columns)

    def input_key(self, row: Row) -> tuple[str, ...]:
        """The row's input, whatever its target and white space: rows of one key are never examples of each other."""
        return tuple(" ".join(str(row.get(name, "")).split()) for name in (*self.columns, *self.further_columns))

    def further_lines(self, output: Output) -> Iterable[str]:
        """Lines to print after the answer."""
        return map(call_text, output.tool_calls)

    def remarks(self, output: Output, row: Row, settings: GenerationSettings) -> Iterable[str]:
        """Lines about an answer for standard error, in addition to its notes."""
        return ()

    def generation_defaults(self, traits: Traits, own: int) -> dict[str, Any]:
        """Generation defaults that follow from the task's settings; ``own``: the model's default output length."""
        return {}

    def to_row(self, value: str | Row) -> Row:
        """A row, from a row or its shorthand."""
        if not isinstance(value, str | Mapping):
            raise InputError(
                f"a row is a {type(value).__name__}", f"give a text, or columns such as {self.input_column!r}"
            )
        if isinstance(value, str):
            return {self.input_column: value}
        self._check_keys(value)
        return value

    def is_one_row(self, value: object) -> bool:
        """Whether a list is one row of this task, and not several rows."""
        return False

    def _check_keys(self, row: Row) -> None:
        """Raise `InputError` for a column that the row has under a misspelled or another usual name."""
        known = (*self.columns, *self.optional_columns)
        others = [str(key) for key in row if key not in known]
        for column in known:
            if column in row:
                continue
            usual = [key for key in others if key.lower() in self.aliases.get(column, ())]
            if near := [*get_close_matches(column, others, n=1, cutoff=0.75), *usual]:
                raise InputError(
                    f"the row has no {column!r}, but {near[0]!r}", f"rename it to {column!r}", code="column_mismatch"
                )
            if column == self.input_column:
                raise InputError(
                    f"the row has no {column!r} (its keys: {', '.join(map(str, row)) or 'none'})",
                    f"give it the key {column!r}",
                    code="column_mismatch",
                )

    def validate(self, row: Row) -> None:
        """Raise `InputError` for a row without usable input."""
        self._require_text(row, self.input_column)

    def _require_text(self, row: Row, column: str) -> None:
        value = row.get(column, "")
        if not isinstance(value, str):
            raise InputError(
                f"the {column} is a {type(value).__name__}, not text", "give a string", code="column_mismatch"
            )
        if not value.strip():
            raise InputError(f"the {column} is empty", f"give llmkit {self.verb} some text", code="empty_input")

    def validate_example(self, row: Row, number: int) -> None:
        """Raise `InputError` for an example that lacks one of the task's columns."""
        self._require_columns(row, number, self.input_column, self.target_column)

    def _require_columns(self, row: Row, number: int, *columns: str) -> None:
        need = f"{self.name} examples need the columns {', '.join(map(repr, columns))}"
        if not isinstance(row, Mapping):
            raise InputError(f"example {number} is a {type(row).__name__}", need)
        for column in columns:
            if row.get(column) is None or not str(row[column]).strip():
                names = ", ".join(map(str, row)) or "none"
                raise InputError(
                    f"example {number} has no {column!r} (its columns: {names})", need, code="column_mismatch"
                )

    def check_options(self, traits: Traits, prompt_options: PromptOptions) -> None:
        """Raise `UsageError` for options that do not work with this kind of model, or have no effect on it."""
        self.check_compatible(traits, prompt_options)
        check_prompt(self, traits, prompt_options)

    def check_compatible(self, traits: Traits, prompt_options: PromptOptions) -> None:
        """Raise `UsageError` for options that do not work with this kind of model."""
        if traits.chat and not prompt_options.raw:
            return
        if prompt_options.system:
            raise UsageError(
                "this model has no chat template to put a system message in", "leave it out", code="not_supported"
            )
        if prompt_options.examples and not traits.continues and not traits.prefix:
            raise UsageError(
                "this model takes a single text as input and does not support examples",
                "leave them out, or use a chat model",
                code="not_supported",
            )

    def render(self, row: Row, traits: Traits, prompt_options: PromptOptions) -> Prompt:
        """The prompt for one row."""
        row = in_language(self, row, prompt_options)
        examples = [{**example, **_language_of(row)} for example in prompt_options.examples]
        if traits.chat and not prompt_options.raw:
            turns = [Message("system", prompt_options.system)] if prompt_options.system else []
            for example in examples:
                turns.append(Message("user", input_text(self, example, traits, prompt_options)))
                turns.append(Message("assistant", self.reference(example)))
            turns.append(Message("user", input_text(self, row, traits, prompt_options)))
            return Chat(
                tuple(turns),
                prompt_options.prefill,
                prompt_options.thinking(by_default=self.allow_reasoning),
                self.tools(row, prompt_options),
                prompt_options.tool_choice,
                prompt_options.chat_template_kwargs or {},
            )
        shots = "".join(f"{self._few_shot_example(example, traits, prompt_options)}\n\n" for example in examples)
        system = f"{prompt_options.system}\n\n" if prompt_options.system else ""
        text = f"{system}{shots}{input_text(self, row, traits, prompt_options)}"
        stop = self.stop(traits) if traits.continues else ()
        return Text(text, prompt_options.prefill, self.route(row, traits), stop)

    def tools(self, row: Row, prompt_options: PromptOptions) -> tuple[Mapping[str, Any], ...]:
        """The tools that the model may call: the row's own, or else those of the prompt options."""
        return to_tools(row.get("tools") or prompt_options.tools) if self.calls_tools else ()

    def examples(self, row: Row, traits: Traits, prompt_options: PromptOptions) -> tuple[Example, ...]:
        """The training examples of one row; empty if it has no answer."""
        row = in_language(self, row, prompt_options)
        target = self.reference(row)
        if not target.strip():
            return ()
        prompt = self.render(row, traits, prompt_options)
        if isinstance(prompt, Text) and traits.continues:
            target = self.separator(prompt.text + prompt.prefill, target) + target
        return (Example(prompt, target),)

    def training_remarks(self, row: Row) -> Iterable[str]:
        """What of a row of training data is not learned, though nothing is wrong; the rows of each are counted."""
        return ()

    def is_plain(self, row: Row) -> bool:
        """Whether a row of training data is plain text, learned in full without a prompt."""
        return False

    def validate_learned(self, row: Row, *, all_of_it: bool) -> None:
        """Raise `InputError` for a row of training data that inference would refuse, or that must not be learned.

        ``all_of_it``: the prompt is learned too.
        """
        self.validate(row)

    def shortened(self, row: Row, fits: Callable[[Row], bool]) -> Row | None:
        """The row, shortened until it fits; None if one side of the text is to be cut instead."""
        return None

    def parts(self, row: Row, room: int, count: Callable[[str], int]) -> list[Row]:
        """Split a row that is too long into parts of at most ``room`` tokens; empty: no part has an answer.

        Only where `learns_parts`.
        """
        return []

    def teaches(self, row: Row, text: str) -> bool:
        """Whether a row of training data is still correct when its input is truncated from ``text``."""
        return True

    def _few_shot_example(self, example: Row, traits: Traits, prompt_options: PromptOptions) -> str:
        """One few-shot example as text, for models without a chat template."""
        text, answer = input_text(self, example, traits, prompt_options), self.reference(example)
        return f"{text}{self.separator(text, answer)}{answer}"

    def separator(self, text: str, answer: str) -> str:
        """The separator of a text and its answer in one text: a space, if the script has them."""
        if not text or text[-1].isspace() or answer[:1].isspace() or is_unspaced(text[-1]):
            return ""
        return " "

    def note_languages(self, row: Row, model: ModelView) -> None:
        """Note that the text is in a language that the model is not declared for, where that is certain."""
        from llmkit.text.scripts import looks_english

        if model.traits.declared_languages == {"en"} and not looks_english(self.text(row)):
            problem = "the model is declared for English only, and the text does not look English"
            model.note("language_not_declared", f"{problem}; check the answer, or choose another model with `model`")

    def parse(self, raw: str) -> str:
        """Parse the answer from the output of the model."""
        return raw.strip() if self.strip_output else raw

    def steps(self, row: Row, model: ModelView) -> Work:
        """Answer one row; by default with one prompt."""
        (raw,) = yield Step([row], final=True)
        return self.finish(raw)

    def finish(self, raw: Generation) -> Result:
        """The result from the output for one prompt."""
        first, *others = (
            Result(text=self.parse(each.text), reasoning=each.reasoning, tool_calls=each.tool_calls)
            for each in (raw, *raw.alternatives)
        )
        return replace(first, alternatives=tuple(others))


def _language_of(row: Row) -> dict[str, Any]:
    return {LANGUAGE: row[LANGUAGE]} if LANGUAGE in row else {}
