"""What a task is: declarations and wording, and nothing else.

A task turns a row into prompts and the model's raw texts back into an answer. It does not know tensors,
tokenizers or model classes, and never imports torch or transformers.

A text that is longer than the model reads takes several prompts, and a second round may depend on the answers of the
first. So the work on one row is a generator (`Task.work`): it yields `Step` after `Step`, is sent what the model made
of them, and returns the `Result`. Whoever drives it decides about batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from llmkit.config.settings import GenerationSettings, Overflow, TaskSettings, TruncationSide
from llmkit.errors import InputError, UsageError
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
    Result,
    Row,
    Step,
    Text,
    Traits,
    Wording,
    Work,
)
from llmkit.text.languages import Route
from llmkit.text.scripts import is_unspaced

__all__ = ["COMPLETION", "PROMPT", "Task"]

PROMPT = ("prompt", "instruction", "input", "inputs", "query", "question", "提示", "指令", "问题", "問題",
          "質問")  # fmt: skip
COMPLETION = ("completion", "response", "output", "answer", "chosen", "target", "targets", "回答", "答案", "输出",
              "輸出", "応答")  # fmt: skip
"""What the two are called in the wild, the most telling name first."""


class Task:
    """Base of the tasks. Subclasses set the class attributes and override the methods they differ in.

    All that is known of a task is said here: nothing else asks for its name (`llmkit.tasks.register`).
    """

    name: ClassVar[str]
    verb: ClassVar[str]
    """The verb on the command line, as in ``llmkit generate``."""
    help: ClassVar[str]
    """Of the command: a line, and perhaps more after an empty one."""
    sample: ClassVar[str] = '"TEXT"'
    sample_options: ClassVar[Mapping[str, str]] = {}
    """What follows the verb in an example command."""
    heads: ClassVar[tuple[Head, ...]] = (Head.CAUSAL, Head.SEQ2SEQ)
    settings_class: ClassVar[type[TaskSettings]] = TaskSettings
    argument_help: ClassVar[Mapping[str, str]] = {}
    """What its command says of the columns that are arguments, where there are several."""
    prompt_options: ClassVar[tuple[str, ...]] = ()
    """Which of ``system``, ``prefill`` and ``raw`` its command has."""
    converses: ClassVar[bool] = False
    """Without a text its command begins a conversation in the terminal."""

    # Rows.
    input_column: ClassVar[str]
    """The column that carries the text which may be too long; `render` reads it."""
    columns: ClassVar[tuple[str, ...]]
    """All columns of a row that are read, in the order of the command's arguments."""
    target_column: ClassVar[str]
    """The column with the expected output, in examples and in training data."""
    aliases: ClassVar[Mapping[str, tuple[str, ...]]]
    """The columns of training data, and what they are called in the wild, the most telling name first."""
    learned_columns: ClassVar[tuple[str, ...]] = ()
    """Which of them may hold what is learned, where it is not always the target."""
    shapes: ClassVar[tuple[str, ...]] = ("columns",)
    """How its training data may be laid out, in the order in which that is found out (`llmkit.data.shapes`)."""

    # Output and input length.
    max_new_tokens: ClassVar[int]
    overflow: ClassVar[Overflow] = "error"
    """What is done with a text longer than the model reads, unless the caller says otherwise."""
    allowed_overflow: ClassVar[tuple[Overflow, ...]] = ("error", "truncate")
    """What can be done with it."""
    truncation_side: ClassVar[TruncationSide | None] = "right"
    """Side of the text that is cut under ``truncate``, unless the caller says otherwise: documents say what they are
    about at their beginning. None: whole messages are left out, the oldest first."""
    learns_parts: ClassVar[bool] = False
    """Whether an example that is too long for training can be learned in parts."""
    allow_reasoning: ClassVar[bool] = False
    """Whether a model that thinks aloud should."""
    strip_output: ClassVar[bool] = True
    """Whether white space around the model's text is none of the answer."""
    output_fields: ClassVar[tuple[str, ...]] = ()
    """The attributes of `Output` that its JSON has, beside those of every task."""

    # Models.
    recommended: ClassVar[tuple[Recommended, ...]] = ()
    """The default first."""
    takes_prefix: ClassVar[bool] = False
    """Whether models were trained with words in front of the text that name the task."""
    names_languages: ClassVar[bool] = False
    """Whether a translation model is told languages."""
    suits_translators: ClassVar[bool] = False
    """Whether a model that can do nothing but translate does it."""
    pipeline_tag: ClassVar[str] = ""
    """The Hub's name of the task, where it is another one."""

    # Evaluation.
    metrics: ClassVar[tuple[str, ...]] = ("rouge",)
    """What its answers are measured by (`llmkit.metrics.score`)."""
    reports_perplexity: ClassVar[bool] = False

    def __init__(self, settings: TaskSettings | None = None) -> None:
        self.settings: Any = self.settings_class() if settings is None else settings
        if type(self.settings) is not self.settings_class:
            raise UsageError(f"{type(self.settings).__name__} are not the settings of {self.name}", "use its own")

    def instruct(self, row: Row) -> str:
        """The user's message for one row."""
        return str(row[self.input_column])

    def plain(self, row: Row, traits: Traits) -> str:
        """The text that a model without a chat template continues (causal) or reads (seq2seq)."""
        return traits.prefix + str(row[self.input_column])

    def stop(self, traits: Traits) -> tuple[str, ...]:
        """Where the answer of a causal model without a chat template ends."""
        return ()

    def route(self, row: Row, traits: Traits) -> Route | None:
        """Languages that the model is told beside its text."""
        return None

    def reference(self, row: Row) -> str:
        """The expected output of one row."""
        return str(row[self.target_column])

    def references(self, row: Row) -> list[str]:
        """All expected outputs of a row that `without_target` gave; none: that there is no answer."""
        return list(row.get("references") or [self.reference(row)])

    def without_target(self, row: dict[str, Any]) -> dict[str, Any] | None:
        """A row to evaluate on, what is expected apart from what is given; None if nothing is expected.

        Raises:
            InputError: what is given is not complete.
        """
        return row

    def with_target(self, row: dict[str, Any]) -> dict[str, Any]:
        """What `without_target` had, with what is expected in its place, and nothing else to be learned."""
        return row

    def trivial_answers(self, row: Row) -> dict[str, str]:
        """Answers that no model is needed for, which a model has to beat: by name."""
        return {}

    @property
    def target_language(self) -> str | None:
        """BCP 47 tag of the language that its answers are in, where its settings say so."""
        return None

    def default_models(self, text: str = "") -> tuple[str, ...]:
        """Models for somebody who named none, the first that exists is to be taken.

        Args:
            text: what it is to read, as far as that is known.
        """
        if not self.recommended:
            raise UsageError(f"{self.name} has no default model", "name one with `model`")
        return (self.recommended[0].model,)

    def text(self, row: Row) -> str:
        """All that a model is given to read of a row."""
        return " ".join(str(row.get(name, "")) for name in self.columns)

    def further_lines(self, output: Output) -> Iterable[str]:
        """What is printed after the answer."""
        return ()

    def remarks(self, output: Output, row: Row, settings: GenerationSettings) -> Iterable[str]:
        """What is to be said of an answer on standard error beside its notes."""
        return ()

    def generation_defaults(self, traits: Traits, own: int) -> dict[str, Any]:
        """Generation settings that the task's own settings ask for; ``own`` is the model's usual longest output."""
        return {}

    def to_row(self, given: str | Row) -> Row:
        """A row from what a caller may give in its place."""
        if not isinstance(given, str | Mapping):
            raise InputError(
                f"a row is a {type(given).__name__}", f"give a text, or columns such as {self.input_column!r}"
            )
        return {self.input_column: given} if isinstance(given, str) else given

    def validate(self, row: Row) -> None:
        """Raise `InputError` for a row that has nothing to work on."""
        self._require_text(row, self.input_column)

    def _require_text(self, row: Row, column: str) -> None:
        value = row.get(column, "")
        if not isinstance(value, str):
            raise InputError(f"the {column} is a {type(value).__name__}, not text", "give a string")
        if not value.strip():
            raise InputError(f"the {column} is empty", f"give llmkit {self.verb} some text")

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
                raise InputError(f"example {number} has no {column!r} (its columns: {names})", need)

    def check(self, traits: Traits, wording: Wording) -> None:
        """Raise `UsageError` for settings that would have no effect, or a bad one, on this kind of model."""
        if traits.chat and not wording.raw:
            return
        if wording.system:
            raise UsageError("this model has no chat template to put a system message in", "leave it out")
        if wording.examples and not traits.continues and not traits.prefix:
            raise UsageError(
                "this model was tuned to read one text and would take the examples for a part of it",
                "leave them out, or use a chat model",
            )

    def render(self, row: Row, traits: Traits, wording: Wording) -> Prompt:
        """The prompt for one row."""
        if traits.chat and not wording.raw:
            turns = [Message("system", wording.system)] if wording.system else []
            for example in wording.examples:
                turns.append(Message("user", self.instruct(example)))
                turns.append(Message("assistant", self.reference(example)))
            turns.append(Message("user", self.instruct(row)))
            return Chat(tuple(turns), wording.prefill, thinking=self.allow_reasoning)
        shots = "".join(f"{self.shot(example, traits)}\n\n" for example in wording.examples)
        system = f"{wording.system}\n\n" if wording.system else ""
        text = f"{system}{shots}{self.plain(row, traits)}"
        stop = self.stop(traits) if traits.continues else ()
        return Text(text, wording.prefill, self.route(row, traits), stop)

    def examples(self, row: Row, traits: Traits, wording: Wording) -> tuple[Example, ...]:
        """What a model learns from one row of training data; none if the row has no answer."""
        target = self.reference(row)
        if not target.strip():
            return ()
        prompt = self.render(row, traits, wording)
        if isinstance(prompt, Text) and traits.continues:
            target = self.joint(prompt.text + prompt.prefill, target) + target
        return (Example(prompt, target),)

    def is_plain(self, row: Row) -> bool:
        """Whether a row of training data is text that is learned whole, with nothing given before it."""
        return False

    def validate_learned(self, row: Row, *, all_of_it: bool) -> None:
        """Raise `InputError` for a row of training data that inference would refuse, or that is not to be learned.

        ``all_of_it``: what is given is learned too.
        """
        self.validate(row)

    def shortened(self, row: Row, fits: Callable[[Row], bool]) -> Row | None:
        """A row without as much as it takes to fit; None where one side of the text is cut."""
        return None

    def parts(self, row: Row, room: int, count: Callable[[str], int]) -> list[Row]:
        """What is learned of a row that is too long, in parts of at most ``room`` tokens; empty: no part has an answer.

        Only where `learns_parts`.
        """
        return []

    def teaches(self, row: Row, text: str) -> bool:
        """Whether a row of training data is still right when its input is a part of ``text``."""
        return True

    def shot(self, example: Row, traits: Traits) -> str:
        """One example as text, for models without a chat template."""
        text, answer = self.plain(example, traits), self.reference(example)
        return f"{text}{self.joint(text, answer)}{answer}"

    def joint(self, text: str, answer: str) -> str:
        """What stands between a text and its answer where both are one text: a space, if the script has them."""
        if not text or text[-1].isspace() or answer[:1].isspace() or is_unspaced(text[-1]):
            return ""
        return " "

    def parse(self, raw: str) -> str:
        """The answer in the model's raw text."""
        return raw.strip() if self.strip_output else raw

    def work(self, row: Row, reader: ModelView) -> Work:
        """Answer one row: one prompt, one answer."""
        (raw,) = yield Step([row], final=True)
        return self.finish(raw)

    def finish(self, raw: Generation) -> Result:
        """The result that one prompt's raw text is."""
        others = tuple(Result(text=self.parse(other.text), reasoning=other.reasoning) for other in raw.alternatives)
        return Result(text=self.parse(raw.text), reasoning=raw.reasoning, alternatives=others)
