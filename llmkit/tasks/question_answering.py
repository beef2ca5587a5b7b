"""Question answering from a context: extracted by a span model, or generated.

Knows the prompts, the ways in which models express that there is no answer, and how a context longer than the model's
is processed in windows. Does not know how a span model scores (`llmkit.heads.span`).
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmkit.config.settings import GenerationSettings, Options, non_default, setting
from llmkit.errors import InputError, UsageError
from llmkit.tasks.base import Task
from llmkit.tasks.output import Chunk, Output
from llmkit.tasks.recommended import QWEN, STARTER, Recommended
from llmkit.tasks.types import (
    Example,
    Generation,
    Head,
    ModelView,
    Prompt,
    PromptOptions,
    QuestionContext,
    Result,
    Row,
    SpanPrediction,
    SpanSettings,
    Step,
    Traits,
    Work,
)
from llmkit.text.scripts import is_unspaced

__all__ = ["NO_ANSWER", "AnswerOptions", "AnswerSettings", "QuestionAnswering", "find_in", "to_answers"]

NO_ANSWER = "No answer"
"""The reply requested from a generative model if the context has no answer."""

_NO_ANSWERS = re.compile(
    r"""unanswerable | not\s+answerable | 无答案 | 無答案 | 没有答案 | 沒有答案 | 回答なし | 答えなし
    | (?:there\s+is\s+)?no\s+answer
      (?:[^\w\s].*
        | \s+(?:is|was|can|could|exists|found|given|provided|available|present|stated|in|from|to|for|based)\b.*)?
    | (?:the\s+)?answer\s+(?:is|was|can|could)(?:\s+not|n['’]t|not)\b.*
    | (?:this|it|the\s+question)\s+(?:can\s*not|can['’]t|could\s+not)\s+be\s+(?:answered|determined)\b.*
    | not\s+(?:mentioned|stated|specified|provided|given|found|answered)\s+(?:in|by)\s+the\s+
      (?:given\s+|provided\s+)?(?:text|context|passage|document|article)\b.*
    | the\s+(?:given\s+|provided\s+)?(?:text|context|passage|document|article)\s+(?:does|do)(?:\s+not|n['’]t)\s+
      (?:\w+\s+){0,2}?(?:hold|contain|say|mention|state|provide|give|specify|answer|include)\b.*
    | (?:文本|原文|文章|文中)中?(?:没有|未|沒有).*(?:答案|提到|提及|说明).*""",
    re.VERBOSE | re.DOTALL,
)
"""Replies that mean "no answer", in lowercase and without surrounding punctuation."""
_BEFORE_ANSWER = re.compile(r"(?:the\s+|final\s+)?answer\s*(?:is\s*)?[:：]\W*")
_OVERLAP = 8
"""Consecutive windows share 1/8 of their tokens, so that an answer at the edge of one is complete in another."""


@dataclass(frozen=True, kw_only=True)
class AnswerSettings(SpanSettings):
    """How an answer is found in a context. All settings are for extractive models."""

    no_answer_threshold: float | None = setting(
        None,
        "Report no answer if its score exceeds the best span's by more than this.",
        shown_default="always answer",
    )


class AnswerOptions(Options, total=False):
    """The fields of `AnswerSettings` too, as keyword arguments."""

    top: int
    no_answer_threshold: float | None
    max_seq_len: int
    doc_stride: int
    max_answer_len: int


class QuestionAnswering(Task):
    name = "question-answering"
    verb = "answer"
    help = """Answer a question from a text.

    Models like BERT extract the answer from the text, others generate it. Prints an empty line if the text does not
    contain the answer.

    Examples:
        llmkit answer "Where is the reef?" "It lies off Australia."
        llmkit answer "Who signed it?" contract.txt --top 3 --json
        llmkit answer --input questions.csv --column context=passage -o answers.jsonl
    """
    synonyms = ("qa", "ask", "question", "questions", "squad", "extract")
    sample = '"QUESTION"'
    sample_options = {"context": "FILE"}
    argument_help = {"question": "The question.", "context": "The text that contains the answer, or its file."}
    heads = (Head.SPAN, Head.CAUSAL, Head.SEQ2SEQ)
    takes_document = True
    input_column = "context"
    columns = ("question", "context")
    target_column = "answers"
    aliases = {
        "question": ("question", "query", "prompt", "问题", "問題", "質問"),
        "context": ("context", "passage", "paragraph", "document", "text", "article", "story", "content", "文章",
                    "上下文", "原文", "内容", "內容", "本文"),
        "answers": ("answers", "answer", "answer_text", "output", "label", "答案", "回答", "解答"),
        "answer_start": (),
        "is_impossible": (),
    }  # fmt: skip
    shapes = ("squad", "questions")
    max_new_tokens = 64
    overflow = "chunk"
    allowed_overflow = ("error", "truncate", "chunk")
    learns_parts = True
    settings_class = AnswerSettings
    settings: AnswerSettings
    output_fields = ("answered", "score", "start", "end")
    recommended = (
        Recommended(
            *("distilbert/distilbert-base-cased-distilled-squad", "65M", 261, "Apache-2.0", "English"),
            "the default; extracts answers from the text",
        ),
        Recommended(
            *("minilm-squad", "24M", 84, "CC-BY-SA-4.0", "English"),
            "embedded, from the package index: needs no model hub; extracts answers",
        ),
        STARTER,
        Recommended(
            *("deepset/roberta-base-squad2", "124M", 496, "CC-BY-4.0", "English"),
            "better; can also report that there is no answer",
        ),
        Recommended(
            *("luhua/chinese_pretrain_mrc_roberta_wwm_ext_large", "324M", 1300, "Apache-2.0", "Chinese"),
            "extracts answers from Chinese text; .bin weights only",
        ),
        QWEN.noted("generates its answer; needs a GPU"),
    )
    embedded = ("minilm-squad", "starter")
    metrics = ("squad",)

    def instruct(self, row: Row) -> str:
        return (
            "Answer the question from the text alone, in as few words as possible. If the text does not hold the"
            f' answer, reply "{NO_ANSWER}".\n\nText: {row["context"]}\n\nQuestion: {row["question"]}'
        )

    def plain_prompt(self, row: Row, traits: Traits) -> str:
        if not traits.continues:  # the format of T5's SQuAD training, and of most models tuned from it
            return f"question: {row['question']} context: {row['context']}"
        return f'{row["context"]}\n\nQuestion: {row["question"]}\nAnswer (or "{NO_ANSWER}"):'

    def stop(self, traits: Traits) -> tuple[str, ...]:
        return ("\n",)

    def reference(self, row: Row) -> str:
        """The first of the row's answers, which may be text, a list of texts, or SQuAD's ``{"text": [...]}``."""
        texts = self.answers(row)["text"]
        return str(texts[0]) if texts else NO_ANSWER

    def references(self, row: Row) -> list[str]:
        return list(self.answers(row)["text"])

    def trivial_answers(self, row: Row) -> dict[str, str]:
        return {"always no answer": ""}

    def answers(self, row: Row) -> dict[str, list[Any]]:
        """The answers of a row in the form of `to_answers`; texts that mean "no answer" are removed."""
        found = to_answers(row["answer"] if "answer" in row else row.get("answers"))
        real = [text for text in found["text"] if self.parse(text) or text in str(row["context"])]
        return found if real else to_answers(None)

    def validate(self, row: Row) -> None:
        if not str(row.get("question", "")).strip():
            raise InputError("the question is empty", "give llmkit answer a question and a text", code="empty_input")
        self._require_text(row, "question")
        self._require_text(row, "context")

    def validate_example(self, row: Row, number: int) -> None:
        self._require_columns(row, number, "question", "context", "answers" if "answers" in row else "answer")

    def check_compatible(self, traits: Traits, prompt_options: PromptOptions) -> None:
        if not traits.extracts_spans:
            super().check_compatible(traits, prompt_options)
            if options := non_default(self.settings):
                raise UsageError(
                    f"{', '.join(options)} requires an extractive model",
                    "leave it out, or name such a model: llmkit models answer",
                    code="not_supported",
                )
        elif prompt_options.system or prompt_options.prefill or prompt_options.examples or prompt_options.raw:
            raise UsageError(
                "an extractive model takes a question and a context only",
                "leave out the other options",
                code="not_supported",
            )

    def render(self, row: Row, traits: Traits, prompt_options: PromptOptions) -> Prompt:
        if traits.extracts_spans:
            return QuestionContext(str(row["question"]), str(row["context"]), self.settings)
        return super().render(row, traits, prompt_options)

    def examples(self, row: Row, traits: Traits, prompt_options: PromptOptions) -> tuple[Example, ...]:
        """For a span model, all answers that occur in the context are correct; no answers mean that there is none."""
        if not traits.extracts_spans:
            return super().examples(row, traits, prompt_options)
        prompt, context = self.render(row, traits, prompt_options), str(row["context"])
        answers = self.answers(row)
        texts = answers["text"]
        if not texts:
            return (Example(prompt, ""),)
        places = _places(texts, answers["answer_start"], context)
        if not places:
            raise InputError(
                f"the answer {texts[0]!r} does not occur in the context",
                "fix the row, or skip such rows",
                code="answer_not_in_context",
            )
        return (Example(prompt, context[slice(*places[0])], tuple(dict.fromkeys(places))),)

    def parts(self, row: Row, room: int, count: Callable[[str], int]) -> list[Row]:
        """One row for each window of at most ``room`` tokens, with the answers that occur in it.

        The windows are as at inference.
        """
        context = str(row["context"])
        answers = self.answers(row)
        texts, places = answers["text"], _places(answers["text"], answers["answer_start"], context)
        rows: list[Row] = []
        found = False
        for window in _windows(context, room, count):
            end = window.start + len(window.text)
            inside = [context[slice(*place)] for place in places if window.start <= place[0] and place[1] <= end]
            found = found or bool(inside)
            rows.append({**row, "context": window.text, "answers": {"text": inside}})
        if texts and not found:
            raise InputError(
                f"the answer {texts[0]!r} does not fit in a single window of the context",
                "raise max_length",
                code="answer_not_in_context",
            )
        return rows

    def teaches(self, row: Row, text: str) -> bool:
        """Whether the answer, if it occurs in the full text, also occurs in the truncated one."""
        answers = self.answers({**row, "context": text})
        places = _places(answers["text"], answers["answer_start"], text)
        return not places or bool(_places(answers["text"], (), str(row["context"])))

    def to_row(self, given: str | Row) -> Row:
        if isinstance(given, str):
            raise InputError("a question requires a context", "give a row with 'question' and 'context'")
        return super().to_row(given)

    def steps(self, row: Row, model: ModelView) -> Work:
        if model.traits.extracts_spans:
            (raw,) = yield Step([row])
            assert raw.span_prediction is not None
            return self._noted(self._extracted(raw.span_prediction), model)
        context, room = str(row["context"]), model.room(row)
        windows = [_Window(0, context)] if room is None else _windows(context, room, model.count)
        one = len(windows) == 1
        raws = yield Step([{**row, "context": window.text} for window in windows], scored=not one, multi_sequence=one)
        return self._noted(self._generated(windows, raws), model)

    def _noted(self, result: Result, model: ModelView) -> Result:
        if result.answered is None:
            model.note("no_verdict", "the model did not reach a verdict on whether the text contains the answer")
        elif not result.answered:
            model.note("no_answer", "the text does not contain the answer")
        elif result.start is None:
            model.note("not_in_text", "the answer was not found verbatim in the text; check it")
        return result

    def _extracted(self, reading: SpanPrediction) -> Result:
        """The result of a span model: its best spans, or no answer."""
        found = tuple(
            Result(text=span.text, start=span.start, end=span.end, score=span.score)
            for span in reading.spans[: self.settings.top]
        )
        threshold = self.settings.no_answer_threshold
        if not found or (threshold is not None and reading.null_margin > threshold):
            return Result(text="", answered=False, score=reading.no_answer, alternatives=found)
        best = reading.spans[0]
        return Result(text=best.text, start=best.start, end=best.end, score=best.score, alternatives=found[1:])

    def _generated(self, windows: Sequence[_Window], raws: Sequence[Generation]) -> Result:
        """The best of the answers to the windows.

        Answers that occur in their window come first, then those from the most windows, then the most probable.
        """
        answers = [_unquoted(self.parse(raw.text)) for raw in raws]
        places = [find_in(answer, window.text) for answer, window in zip(answers, windows, strict=True)]
        given_by = Counter(answer.casefold() for answer in answers)
        chunks = tuple(
            Chunk(window.start, window.start + len(window.text), answer)
            for window, answer in zip(windows, answers, strict=True)
        )
        best = max(
            (n for n in range(len(answers)) if answers[n]),
            key=lambda n: (places[n] is not None, given_by[answers[n].casefold()], raws[n].score or 0.0),
            default=None,
        )
        chunks = chunks if len(chunks) > 1 else ()
        others = tuple(
            Result(text=_unquoted(self.parse(other.text)), answered=self._verdict(other))
            for other in raws[best or 0].alternatives
        )
        if best is None:
            answered = None if any(self._verdict(raw) is None for raw in raws) else False
            return Result(text="", answered=answered, chunks=chunks, reasoning=raws[0].reasoning, alternatives=others)
        place, offset = places[best], windows[best].start
        return Result(
            text=answers[best],
            start=None if place is None else place[0] + offset,
            end=None if place is None else place[1] + offset,
            score=raws[best].score,
            reasoning=raws[best].reasoning,
            chunks=chunks,
            alternatives=others,
        )

    def _verdict(self, raw: Generation) -> bool | None:
        """Whether a model has answered; None if it was stopped before it could."""
        if raw.thinking or (raw.finish_reason != "stop" and not raw.text.strip()):
            return None
        return bool(self.parse(raw.text))

    def further_lines(self, output: Output) -> Iterator[str]:
        """The next best spans."""
        return (other.text for other in output.alternatives if output.answered and other.start is not None)

    def remarks(self, output: Output, row: Row, settings: GenerationSettings) -> Iterator[str]:
        if output.start is not None:
            score = "" if output.score is None else f", score {output.score:.3f}"
            yield f"the answer is at characters {output.start} to {output.end}{score}"

    def parse(self, raw: str) -> str:
        """The answer; empty if the model reports that there is none."""
        text = raw.strip()
        return "" if any(map(_means_no_answer, (text, text.partition("\n")[0]))) else text


def _means_no_answer(text: str) -> bool:
    """Whether a text means "no answer", apart from surrounding markup, quotes and brackets."""
    words = re.sub(r"^\W+|(?<!\W)\W+$", "", text.casefold())
    return bool(_NO_ANSWERS.fullmatch(_BEFORE_ANSWER.sub("", words, count=1) if _BEFORE_ANSWER.match(words) else words))


_WRITTEN_OUT = re.compile(r"""\[\s*(?:['"{\]]|None)|\{\s*['"](?:text|answer_start)['"]\s*:""")
"""The beginning of a serialized list of answers, or of an object with them."""


def to_answers(value: Any, start: Any = None) -> dict[str, list[Any]]:
    """Normalize answers to ``{"text": […], "answer_start": […]}``; empty lists: the context has no answer.

    Accepts a text, a list of texts, SQuAD's form or a list of such objects, also serialized as JSON or Python, as in
    tables. Empty texts are dropped.

    Args:
        value: the answers.
        start: where they begin, if that is in a separate column.
    """
    value = _from_cell(value)
    if isinstance(value, Mapping) and "text" in value:
        texts, start = _as_list(value["text"]), value.get("answer_start", start)
    else:
        texts = _as_list(value)
        if any(isinstance(item, Mapping) and "text" in item for item in texts):
            start = [item.get("answer_start") if isinstance(item, Mapping) else None for item in texts]
            texts = [item.get("text", item) if isinstance(item, Mapping) else item for item in texts]
    starts = _as_list(start) if len(_as_list(start)) == len(texts) else [None] * len(texts)
    kept = [(text, place) for text, place in zip(texts, starts, strict=True) if text is not None and str(text).strip()]
    if any(isinstance(text, bool) or not isinstance(text, str | int | float) for text, _ in kept):
        raise InputError("has answers that are not text", 'write {"text": ["…"], "answer_start": [0]}')
    # Tables with gaps hold whole numbers as floats.
    places = [int(place) for _, place in kept if isinstance(place, int | float) and place == place // 1]
    return {"text": [str(text) for text, _ in kept], "answer_start": places if len(places) == len(kept) else []}


def _from_cell(value: Any) -> Any:
    """Answers serialized in a text: a list of texts or SQuAD's form, as pandas writes them to CSV files."""
    text = value.strip() if isinstance(value, str) else ""
    if not _WRITTEN_OUT.match(text):
        return value
    # NumPy's representation has no commas, so Python would concatenate the strings.
    for read in (json.loads, *(() if re.search(r"""['"]\s+['"]""", text) else (ast.literal_eval,))):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return read(text)
    raise InputError(
        "has answers written out as a Python object", "write the rows as JSON Lines, or one text an answer"
    )


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def _places(texts: Sequence[str], starts: Sequence[int | None], context: str) -> list[tuple[int, int]]:
    """The spans of the answers in the context: at the given starts or, if none is correct, wherever they occur."""
    return [
        (start, start + len(text))
        for text, start in zip(texts, starts, strict=bool(starts))
        if start is not None and start >= 0 and context[start : start + len(text)] == text
    ] or [place for text in texts if (place := find_in(text, context))]


@dataclass(frozen=True)
class _Window:
    """A part of the context, beginning at character ``start``."""

    start: int
    text: str


def _windows(context: str, room: int, count: Callable[[str], int]) -> list[_Window]:
    """Overlapping windows of at most ``room`` tokens that cover the context, split between sentences."""
    from llmkit.text.sentences import pack, script_language, sentences

    if count(context) <= room:
        return [_Window(0, context)]
    overlap = room // _OVERLAP
    # A piece longer than the overlap could not be shared, so long sentences are split.
    pieces = [
        part for piece in sentences(context, script_language(context)) for part in pack([piece], room - overlap, count)
    ]
    sizes = [count(piece) for piece in pieces]
    windows: list[_Window] = []
    first, offset = 0, 0
    while True:
        last, size = first, 0
        while last < len(pieces) and (last == first or size + sizes[last] <= room):
            size += sizes[last]
            last += 1
        while last - first > 1 and count("".join(pieces[first:last])) > room:  # joined, pieces can have more tokens
            last -= 1
        windows.append(_Window(offset, "".join(pieces[first:last])))
        if last == len(pieces):
            return windows
        shared, following = 0, last
        while following - 1 > first and shared + sizes[following - 1] <= overlap:
            following -= 1
            shared += sizes[following]
        offset += sum(len(piece) for piece in pieces[first:following])
        first = following


def _unquoted(answer: str) -> str:
    """An answer without enclosing quotation marks."""
    for opening, closing in ('""', "''", "“”", "‘’", "「」"):
        if len(answer) > 1 and answer.startswith(opening) and answer.endswith(closing):
            return answer[1:-1].strip()
    return answer


def find_in(answer: str, context: str) -> tuple[int, int] | None:
    """The first occurrence of an answer in a text, ignoring case, white space and a trailing full stop.

    An answer is not found inside a longer word.
    """
    for wanted in dict.fromkeys((answer, answer.rstrip(".。!"))):
        for form in ("NFC", "NFD"):
            words = unicodedata.normalize(form, wanted).split()
            if not words:
                continue
            pattern = r"\s+".join(map(re.escape, words))
            if match := re.search(
                f"{_edge(words[0][0], '<')}{pattern}{_edge(words[-1][-1], '')}", context, re.IGNORECASE
            ):
                return match.start(), match.end()
    return None


def _edge(character: str, behind: str) -> str:
    """A pattern that keeps a word from being found inside a longer one."""
    if not character.isalnum() or is_unspaced(character):  # word boundaries are not visible
        return ""
    return r"(?<!\w)" if behind else r"(?!\w)"
