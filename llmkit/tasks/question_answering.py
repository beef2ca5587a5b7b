"""Question answering from a context: extracted by a span model, or generated.

Knows the prompts, the ways in which models express that there is no answer, and how a context longer than the model's
is processed in windows. Does not know how a span model scores (`llmkit.heads.span`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llmkit.config.declaration import non_default, setting
from llmkit.config.settings import GenerationSettings, Options
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
from llmkit.text.answers import find_in, find_places, means_no_answer, to_answers, unquoted
from llmkit.text.windows import Window
from llmkit.text.windows import windows as split_windows

__all__ = ["NO_ANSWER", "AnswerOptions", "AnswerSettings", "QuestionAnswering"]

NO_ANSWER = "No answer"
"""The reply requested from a generative model if the context has no answer."""


@dataclass(frozen=True)
class _Wording:
    instruction: str
    """The user's message, with the row's context and question."""
    plain: str
    """The prompt for a model without a chat template."""
    no_answer: str
    """The reply requested if the context has no answer."""


_WORDINGS = {
    "en": _Wording(
        "Answer the question from the text alone, in as few words as possible. If the text does not hold the answer,"
        f' reply "{NO_ANSWER}".\n\nText: {{context}}\n\nQuestion: {{question}}',
        f'{{context}}\n\nQuestion: {{question}}\nAnswer (or "{NO_ANSWER}"):',
        NO_ANSWER,
    ),
    "zh": _Wording(
        "请只根据下面的文本，用尽可能少的字回答问题。如果文本中没有答案，请回复“无答案”。"
        "\n\n文本：{context}\n\n问题：{question}",
        "{context}\n\n问题：{question}\n答案（若文中没有，则写“无答案”）：",
        "无答案",
    ),
}


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
    wordings = _WORDINGS

    def own_prefix(self, row: Row, traits: Traits) -> str:
        return ""

    def instruct(self, row: Row) -> str:
        wording: _Wording = self.wording(row)
        return wording.instruction.format(context=row["context"], question=row["question"])

    def plain_prompt(self, row: Row, traits: Traits) -> str:
        if not traits.continues:  # the format of T5's SQuAD training, and of most models tuned from it
            return f"question: {row['question']} context: {row['context']}"
        wording: _Wording = self.wording(row)
        return wording.plain.format(context=row["context"], question=row["question"])

    def stop(self, traits: Traits) -> tuple[str, ...]:
        return ("\n",)

    def reference(self, row: Row) -> str:
        """The first of the row's answers, which may be text, a list of texts, or SQuAD's ``{"text": [...]}``."""
        texts = self.answers(row)["text"]
        return str(texts[0]) if texts else self.wording(row).no_answer

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
        elif non_default(prompt_options):
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
        places = find_places(texts, answers["answer_start"], context)
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
        texts, places = answers["text"], find_places(answers["text"], answers["answer_start"], context)
        rows: list[Row] = []
        found = False
        for window in split_windows(context, room, count):
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
        places = find_places(answers["text"], answers["answer_start"], text)
        return not places or bool(find_places(answers["text"], (), str(row["context"])))

    def to_row(self, value: str | Row) -> Row:
        if isinstance(value, str):
            raise InputError("a question requires a context", "give a row with 'question' and 'context'")
        return super().to_row(value)

    def steps(self, row: Row, model: ModelView) -> Work:
        if model.traits.extracts_spans:
            (raw,) = yield Step([row])
            assert raw.span_prediction is not None
            return self._noted(self._extracted(raw.span_prediction), model)
        context, room = str(row["context"]), model.room(row)
        windows = [Window(0, context)] if room is None else split_windows(context, room, model.count)
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

    def _generated(self, windows: Sequence[Window], raws: Sequence[Generation]) -> Result:
        """The best of the answers to the windows.

        Answers that occur in their window come first, then those from the most windows, then the most probable.
        """
        answers = [unquoted(self.parse(raw.text)) for raw in raws]
        places = [find_in(answer, window.text) for answer, window in zip(answers, windows, strict=True)]
        votes = Counter(answer.casefold() for answer in answers)
        chunks = tuple(
            Chunk(window.start, window.start + len(window.text), answer)
            for window, answer in zip(windows, answers, strict=True)
        )
        best = max(
            (n for n in range(len(answers)) if answers[n]),
            key=lambda n: (places[n] is not None, votes[answers[n].casefold()], raws[n].score or 0.0),
            default=None,
        )
        chunks = chunks if len(chunks) > 1 else ()
        others = tuple(
            Result(text=unquoted(self.parse(other.text)), answered=self._verdict(other))
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
        return "" if any(map(means_no_answer, (text, text.partition("\n")[0]))) else text
