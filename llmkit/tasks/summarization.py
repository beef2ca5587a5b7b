"""Summarization of a text of any length.

Knows the prompts, and how a text longer than the model's context is summarized: split between sentences, each part
summarized, and the summaries summarized until they fit. Every sentence is processed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from llmkit.config.declaration import setting
from llmkit.config.settings import GenerationSettings, Options, TaskSettings
from llmkit.errors import UsageError
from llmkit.tasks.base import Task
from llmkit.tasks.output import Chunk, Output
from llmkit.tasks.recommended import QWEN, STARTER, Recommended
from llmkit.tasks.types import Generation, ModelView, Result, Row, Step, Traits, Work

__all__ = ["Summarization", "SummarizationOptions", "SummarizationSettings"]


@dataclass(frozen=True)
class _Wording:
    lengths: Mapping[str, str]
    """The request for a summary of each length."""
    words: str
    """The request for a summary of about ``count`` words, in Chinese characters."""
    words_per_token: float
    """With the vocabularies of large models."""
    instruction: str
    """The user's message, with the request and the text."""
    plain: str
    """The prompt for a model without a chat template."""


_WORDINGS = {
    "en": _Wording(
        {
            "short": "Summarize the following text in one sentence.",
            "medium": "Summarize the following text in a few sentences.",
            "long": "Write a detailed summary of the following text that covers every main point.",
        },
        "Summarize the following text in about {count} words.",
        0.75,
        "{request} Write in the language of the text.\n\n{text}",
        "{text}\n\nTL;DR:",  # the prompt of the GPT-2 paper (Radford et al. 2019, section 3.6)
    ),
    "zh": _Wording(
        {
            "short": "请用一句话概括下面的文本。",
            "medium": "请用几句话概括下面的文本。",
            "long": "请为下面的文本写一份详细的摘要，涵盖所有要点。",
        },
        "请用大约{count}字概括下面的文本。",
        1.5,
        "{request}使用与原文相同的语言。\n\n{text}",
        "{text}\n\n摘要：",
    ),
}
_TOKENS = {"short": 96, "medium": 256, "long": 1024}
_PART = "_part"
"""Internal column of rows that are parts of a longer text, whose summaries are intermediate results."""


LENGTHS = ("short", "medium", "long")
_LONGEST = 100_000


@dataclass(frozen=True, kw_only=True)
class SummarizationSettings(TaskSettings):
    """How a text is summarized."""

    length: str = setting(
        "medium", "Length of the summary, in words or as a number of tokens.", metavar="{short,medium,long,N}"
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "length", str(self.length))
        super().__post_init__()
        if self.length not in LENGTHS and not (self.length.isdecimal() and 0 < int(self.length) <= _LONGEST):
            raise UsageError(
                f"length={self.length!r} is not a choice",
                f"choose {', '.join(LENGTHS)} or a number of tokens up to {_LONGEST}",
                code="invalid_value",
            )

    @property
    def tokens(self) -> int | None:
        """The length as a number of tokens, if specified as such."""
        return None if self.length in LENGTHS else int(self.length)


class SummarizationOptions(Options, total=False):
    """The fields of `SummarizationSettings` too, as keyword arguments."""

    length: str | int


class Summarization(Task):
    name = "summarization"
    verb = "summarize"
    help = """Summarize a text of any length.

    A text longer than the model's context is split between sentences and summarized in parts, and then the summaries
    are. Coverage is reported on standard error.

    Examples:
        llmkit summarize report.txt --length short
        llmkit summarize --input papers.jsonl --column document=abstract -o summaries.jsonl
    """
    synonyms = ("summarise", "summary", "summarisation", "tldr", "shorten")
    sample = "FILE"
    takes_document = True
    input_column = "document"
    columns = ("document",)
    target_column = "summary"
    aliases = {
        "document": ("document", "article", "dialogue", "text", "passage", "report", "source", "content", "body",
                     "abstract", "input", "正文", "内容", "文章", "原文", "內容", "本文", "摘要"),
        "summary": ("summary", "highlights", "tldr", "abstract", "title", "headline", "target", "summaries", "output",
                    "摘要", "标题", "总结", "標題", "總結", "要約"),
    }  # fmt: skip
    shapes = ("long and short",)
    max_new_tokens = 256
    stop_loops = True
    overflow = "chunk"
    allowed_overflow = ("error", "truncate", "chunk")
    settings_class = SummarizationSettings
    settings: SummarizationSettings
    recommended = (
        Recommended(
            *("sshleifer/distilbart-cnn-12-6", "306M", 1220, "Apache-2.0", "English"),
            "the default; news; .bin weights only",
        ),
        STARTER,
        Recommended("facebook/bart-large-cnn", "406M", 1630, "MIT", "English", "news; a little better"),
        Recommended(
            *("csebuetnlp/mT5_multilingual_XLSum", "582M", 2330, "CC-BY-NC-SA-4.0", "44 languages"),
            "one sentence; not for commercial use; .bin weights only",
        ),
        QWEN.noted("follows instructions; needs a GPU"),
    )
    takes_prefix = True
    wordings = _WORDINGS

    @classmethod
    def shown_defaults(cls) -> dict[str, str]:
        lengths = ", ".join(f"{tokens} for {length}" for length, tokens in _TOKENS.items())
        return super().shown_defaults() | {"max_new_tokens": f"the model's own, or {lengths}"}

    def instruct(self, row: Row) -> str:
        wording: _Wording = self.wording(row)
        if self.settings.tokens:
            request = wording.words.format(count=max(1, round(self.settings.tokens * wording.words_per_token)))
        else:
            request = wording.lengths["medium" if row.get(_PART) else self.settings.length]
        return wording.instruction.format(request=request, text=row[self.input_column])

    def plain_prompt(self, row: Row, traits: Traits) -> str:
        if not traits.continues:
            return super().plain_prompt(row, traits)
        wording: _Wording = self.wording(row)
        return wording.plain.format(text=row[self.input_column])

    def stop(self, traits: Traits) -> tuple[str, ...]:
        return ("\n\n",)

    def generation_defaults(self, traits: Traits, own: int) -> dict[str, Any]:
        instructed = traits.is_instructed  # the prompt states the length; other models are forced to it
        if tokens := self.settings.tokens:
            return {"max_new_tokens": tokens} | ({} if instructed else {"min_new_tokens": tokens // 2})
        if instructed:
            return {"max_new_tokens": _TOKENS[self.settings.length]}
        match self.settings.length:
            case "short":
                return {"max_new_tokens": max(own // 2, 1), "min_new_tokens": 0}
            case "long":
                return {"max_new_tokens": own * 2, "min_new_tokens": own // 2}
            case _:
                return {}

    def steps(self, row: Row, model: ModelView) -> Work:
        text, room = str(row[self.input_column]), model.room(row)
        if room is None or (size := model.count(text)) <= room:
            (raw,) = yield Step([row], final=True)
            return self.finish(raw)
        # A lower limit of the caller's, or a short length, is for the summary, not for the parts that it is made of.
        limit = max(1, min(max(model.max_new_tokens, model.default_max_new_tokens), room // 4))
        chunks: tuple[Chunk, ...] = ()
        while size > room:
            parts = _parts(text, room, model.count)
            raws = yield Step([{**row, self.input_column: part, _PART: True} for part in parts], max_new_tokens=limit)
            chunks = chunks or self._chunks(parts, raws)
            text = "\n".join(filter(None, (self.parse(raw.text) for raw in raws)))
            before, size = size, model.count(text)
            if not text:
                model.note("summaries_empty", f"the model's output was empty for all {len(parts)} parts")
                return Result(text="", chunks=chunks)
            if room < size > before // 2:
                problem = "the summaries of the parts barely shorten the text"
                model.note("summaries_long", f"{problem}, so they are returned one after the other")
                return Result(text=text, chunks=chunks)
        (raw,) = yield Step([{**row, self.input_column: text}], final=True)
        return replace(self.finish(raw), chunks=chunks)

    def trivial_answers(self, row: Row) -> dict[str, str]:
        from llmkit.text.sentences import script_language, sentences

        text = str(row[self.input_column])
        return {"lead-1": "".join(sentences(text, script_language(text))[:1]).strip()}

    def remarks(self, output: Output, row: Row, settings: GenerationSettings) -> Iterator[str]:
        """The coverage of the text, to show whether anything was dropped."""
        tokens = f"({output.usage.prompt_tokens} tokens in, prompts included)"
        if output.truncated:
            cut = "first" if settings.truncation_side == "left" else "last"
            yield f"covered: all but the {cut} {output.truncated} tokens of the text {tokens}"
            return
        parts, characters = len(output.chunks) or 1, len(str(row[self.input_column]))
        chunks = "chunk" if parts == 1 else "chunks"
        yield f"covered: all {characters} characters in {parts} {chunks} {tokens}"

    def _chunks(self, parts: Sequence[str], raws: Sequence[Generation]) -> tuple[Chunk, ...]:
        ends = list(accumulate(map(len, parts)))
        return tuple(
            Chunk(end - len(part), end, self.parse(raw.text)) for part, end, raw in zip(parts, ends, raws, strict=True)
        )


def _parts(text: str, room: int, count: Callable[[str], int]) -> list[str]:
    from llmkit.text.sentences import pack, script_language, sentences

    return pack(sentences(text, script_language(text)), room, count)
