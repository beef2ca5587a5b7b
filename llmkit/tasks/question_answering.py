"""Question answering from a text: marked in it by a span model, or written by a generative one.

Knows how a question is put so that the answer stays with the text, how "no answer" is said, and how a text longer
than the model reads is read window by window. Does not know how a span model scores (`llmkit.heads.span`).
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

from llmkit.config.settings import GenerationSettings, Options, changed, setting
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
    QuestionContext,
    Result,
    Row,
    SpanPrediction,
    SpanSettings,
    Step,
    Traits,
    Wording,
    Work,
)
from llmkit.text.scripts import is_unspaced

__all__ = ["NO_ANSWER", "AnswerOptions", "AnswerSettings", "QuestionAnswering", "find_in", "to_answers"]

NO_ANSWER = "No answer"
"""What a generative model is asked to say where the text does not hold the answer."""

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
"""How models say so, in lowercase and without what stands around the words."""
_BEFORE_ANSWER = re.compile(r"(?:the\s+|final\s+)?answer\s*(?:is\s*)?[:：]\W*")
_OVERLAP = 8
"""Windows share an eighth of their tokens, so that what stands across two of them is seen whole in one."""


@dataclass(frozen=True, kw_only=True)
class AnswerSettings(SpanSettings):
    """How an answer is found in a text. All are about models that mark it there."""

    no_answer_threshold: float | None = setting(
        None,
        "Give no answer where its score beats the best answer's by more than this; by default there is always one.",
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

    Models like BERT mark the answer in the text, others write it. Prints an empty line where the text does not hold
    the answer.
    """
    sample = '"QUESTION"'
    sample_options = {"context": "FILE"}
    argument_help = {"question": "What is asked.", "context": "The text that holds the answer, or its file."}
    heads = (Head.SPAN, Head.CAUSAL, Head.SEQ2SEQ)
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
            "the default; marks answers in the text",
        ),
        STARTER,
        Recommended(
            *("deepset/roberta-base-squad2", "124M", 496, "CC-BY-4.0", "English"),
            "better, and can say that there is no answer",
        ),
        Recommended(
            *("luhua/chinese_pretrain_mrc_roberta_wwm_ext_large", "324M", 1300, "Apache-2.0", "Chinese"),
            "marks answers in Chinese text; .bin weights only",
        ),
        QWEN.noted("writes its answer; wants a GPU"),
    )
    metrics = ("squad",)

    def instruct(self, row: Row) -> str:
        return (
            "Answer the question from the text alone, in as few words as possible. If the text does not hold the"
            f' answer, reply "{NO_ANSWER}".\n\nText: {row["context"]}\n\nQuestion: {row["question"]}'
        )

    def plain(self, row: Row, traits: Traits) -> str:
        if not traits.continues:  # as T5 was trained on SQuAD, and most that were tuned after it
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
        """The answers of a row, as `to_answers` has them; that it holds none may be said in words too."""
        found = to_answers(row["answer"] if "answer" in row else row.get("answers"))
        said = [text for text in found["text"] if self.parse(text) or text in str(row["context"])]
        return found if said else to_answers(None)

    def validate(self, row: Row) -> None:
        if not str(row.get("question", "")).strip():
            raise InputError("the question is empty", "give llmkit answer a question and a text")
        self._require_text(row, "question")
        self._require_text(row, "context")

    def validate_example(self, row: Row, number: int) -> None:
        self._require_columns(row, number, "question", "context", "answers" if "answers" in row else "answer")

    def check(self, traits: Traits, wording: Wording) -> None:
        if not traits.marks_spans:
            super().check(traits, wording)
            if options := changed(self.settings):
                raise UsageError(
                    f"{', '.join(options)}: only a model that marks answers in the text has a use for it",
                    "leave it out, or name such a model: llmkit models answer",
                )
        elif wording.system or wording.prefill or wording.examples or wording.raw:
            raise UsageError(
                "a model that marks answers reads a question and a text only", "leave the other options out"
            )

    def render(self, row: Row, traits: Traits, wording: Wording) -> Prompt:
        if traits.marks_spans:
            return QuestionContext(str(row["question"]), str(row["context"]), self.settings)
        return super().render(row, traits, wording)

    def examples(self, row: Row, traits: Traits, wording: Wording) -> tuple[Example, ...]:
        """For a span model all answers that stand in the text are right; none given means that there is no answer."""
        if not traits.marks_spans:
            return super().examples(row, traits, wording)
        prompt, context = self.render(row, traits, wording), str(row["context"])
        answers = self.answers(row)
        texts = answers["text"]
        if not texts:
            return (Example(prompt, ""),)
        places = _places(texts, answers["answer_start"], context)
        if not places:
            raise InputError(f"the answer {texts[0]!r} does not stand in the text", "fix the row, or skip such rows")
        return (Example(prompt, context[slice(*places[0])], tuple(dict.fromkeys(places))),)

    def parts(self, row: Row, room: int, count: Callable[[str], int]) -> list[Row]:
        """Rows for each window of at most ``room`` tokens; those without an answer of the row have none.

        As at inference, where a model is asked window by window.
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
            raise InputError(f"the answer {texts[0]!r} stands whole in no part of the text", "raise max_length")
        return rows

    def teaches(self, row: Row, text: str) -> bool:
        """Not where the answer stands in the part that was cut off."""
        answers = self.answers({**row, "context": text})
        places = _places(answers["text"], answers["answer_start"], text)
        return not places or bool(_places(answers["text"], (), str(row["context"])))

    def to_row(self, given: str | Row) -> Row:
        if isinstance(given, str):
            raise InputError("a question needs a text to answer from", "give a row with 'question' and 'context'")
        return super().to_row(given)

    def work(self, row: Row, reader: ModelView) -> Work:
        if reader.traits.marks_spans:
            (raw,) = yield Step([row])
            assert raw.reading is not None
            return self._noted(self._marked(raw.reading), reader)
        context, room = str(row["context"]), reader.room(row)
        windows = [_Window(0, context)] if room is None else _windows(context, room, reader.count)
        one = len(windows) == 1
        raws = yield Step([{**row, "context": window.text} for window in windows], scored=not one, several=one)
        return self._noted(self._written(windows, raws), reader)

    def _noted(self, result: Result, reader: ModelView) -> Result:
        if result.answered is None:
            reader.note("no_verdict", "there is no verdict on whether the text holds the answer")
        elif not result.answered:
            reader.note("no_answer", "the text does not hold the answer")
        elif result.start is None:
            reader.note("not_in_text", "these words do not stand in the text; check the answer against it")
        return result

    def _marked(self, reading: SpanPrediction) -> Result:
        """The result of a span model: its best spans, or that there is none."""
        found = tuple(
            Result(text=span.text, start=span.start, end=span.end, score=span.score)
            for span in reading.spans[: self.settings.top]
        )
        threshold = self.settings.no_answer_threshold
        if not found or (threshold is not None and reading.null_margin > threshold):
            return Result(text="", answered=False, score=reading.no_answer, alternatives=found)
        best = reading.spans[0]
        return Result(text=best.text, start=best.start, end=best.end, score=best.score, alternatives=found[1:])

    def _written(self, windows: Sequence[_Window], raws: Sequence[Generation]) -> Result:
        """The best supported of the windows' answers.

        That is one which stands in its window, over one which does not; then the one that more windows give; then the
        one the model was surer of.
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
        """Whether a model has answered; None where it was stopped before it said anything."""
        if raw.thinking or (raw.finish_reason != "stop" and not raw.text.strip()):
            return None
        return bool(self.parse(raw.text))

    def further_lines(self, output: Output) -> Iterator[str]:
        """The next best spans."""
        return (other.text for other in output.alternatives if output.answered and other.start is not None)

    def remarks(self, output: Output, row: Row, settings: GenerationSettings) -> Iterator[str]:
        if output.start is not None:
            score = "" if output.score is None else f", score {output.score:.3f}"
            yield f"the answer stands at characters {output.start} to {output.end}{score}"

    def parse(self, raw: str) -> str:
        """The answer, empty where the model says that there is none."""
        text = raw.strip()
        return "" if any(map(_says_none, (text, text.partition("\n")[0]))) else text


def _says_none(text: str) -> bool:
    """Whether a text says that there is no answer, whatever marks (Markdown, quotes, brackets) are around it."""
    said = re.sub(r"^\W+|(?<!\W)\W+$", "", text.casefold())
    return bool(_NO_ANSWERS.fullmatch(_BEFORE_ANSWER.sub("", said, count=1) if _BEFORE_ANSWER.match(said) else said))


_WRITTEN_OUT = re.compile(r"""\[\s*(?:['"{\]]|None)|\{\s*['"](?:text|answer_start)['"]\s*:""")
"""How the text of a list of answers, or of an object with them, begins."""


def to_answers(value: Any, start: Any = None) -> dict[str, list[Any]]:
    """What data sets call answers as ``{"text": […], "answer_start": […]}``; empty lists: the text holds no answer.

    That is a text, texts, SQuAD's form or a list of such objects, also as tables hold them: written out in JSON or
    Python. An empty text is no answer.

    Args:
        value: the answers.
        start: where they begin, if that is said apart.
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
    """The answers in a text that is a list of texts or SQuAD's form, as pandas writes them to a CSV file."""
    text = value.strip() if isinstance(value, str) else ""
    if not _WRITTEN_OUT.match(text):
        return value
    # What numpy writes has no commas, and Python reads it as one text.
    for read in (json.loads, *(() if re.search(r"""['"]\s+['"]""", text) else (ast.literal_eval,))):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return read(text)
    raise InputError(
        "has answers written out as a Python object", "write the rows as JSON Lines, or one text an answer"
    )


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def _places(texts: Sequence[str], starts: Sequence[int | None], context: str) -> list[tuple[int, int]]:
    """Where the answers stand in the text: those that are where the row says, or if none is, those that are found."""
    return [
        (start, start + len(text))
        for text, start in zip(texts, starts, strict=bool(starts))
        if start is not None and start >= 0 and context[start : start + len(text)] == text
    ] or [place for text in texts if (place := find_in(text, context))]


@dataclass(frozen=True)
class _Window:
    """A part of the context, ``start`` characters into it."""

    start: int
    text: str


def _windows(context: str, room: int, count: Callable[[str], int]) -> list[_Window]:
    """Runs of whole sentences of at most ``room`` tokens that overlap and together hold everything."""
    from llmkit.text.sentences import pack, script_language, sentences

    if count(context) <= room:
        return [_Window(0, context)]
    overlap = room // _OVERLAP
    # A piece longer than the overlap could not be shared, so long sentences are divided.
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
        while last - first > 1 and count("".join(pieces[first:last])) > room:  # the whole can be more than its parts
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
    """An answer without the quotation marks around it, and without a full stop that only ends a short one."""
    for opening, closing in ('""', "''", "“”", "‘’", "「」"):
        if len(answer) > 1 and answer.startswith(opening) and answer.endswith(closing):
            return answer[1:-1].strip()
    return answer


def find_in(answer: str, context: str) -> tuple[int, int] | None:
    """Where an answer stands in a text, in characters; case, white space and a closing full stop may differ.

    Of several places the first. A word is not found inside another.
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
    if not character.isalnum() or is_unspaced(character):  # where a word's edge cannot be seen
        return ""
    return r"(?<!\w)" if behind else r"(?!\w)"
