"""Summarization of a text of any length.

Knows how a summary is asked for, and how a text longer than the model reads is summarized part by part: divided
between sentences, each part summarized, and the summaries summarized until they fit. Every sentence is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

from llmkit.config.settings import SummarizationSettings
from llmkit.log import log
from llmkit.tasks.base import Chunk, Head, Raw, Reader, Result, Row, Step, Task, Traits, Work
from llmkit.text.sentences import pack, script_language, sentences

__all__ = ["Summarization"]

_IN_WORDS = {
    "short": "Summarize the following text in one sentence.",
    "medium": "Summarize the following text in a few sentences.",
    "long": "Write a detailed summary of the following text that covers every main point.",
}
_TOKENS = {"short": 96, "medium": 256, "long": 1024}
_WORDS_PER_TOKEN = 0.75  # of English, in the vocabularies of large models
_PART = "_part"
"""Marks rows that are a part of a longer text: their summary is an intermediate result."""


class Summarization(Task):
    name = "summarization"
    verb = "summarize"
    sample = "FILE"
    input_column = "document"
    columns = ("document",)
    target_column = "summary"
    max_new_tokens = 256
    overflow = "chunk"
    overflows = ("error", "truncate", "chunk")
    settings_class = SummarizationSettings
    settings: SummarizationSettings

    def instruct(self, row: Row) -> str:
        if self.settings.tokens:
            wish = (
                f"Summarize the following text in about {max(1, round(self.settings.tokens * _WORDS_PER_TOKEN))} words."
            )
        else:
            wish = _IN_WORDS["medium" if row.get(_PART) else self.settings.length]
        return f"{wish} Write in the language of the text.\n\n{row[self.input_column]}"

    def plain(self, row: Row, traits: Traits) -> str:
        if traits.head is Head.SEQ2SEQ:
            return super().plain(row, traits)
        return f"{row[self.input_column]}\n\nTL;DR:"  # as GPT-2 was first asked (Radford et al. 2019, section 3.6)

    def stop(self, traits: Traits) -> tuple[str, ...]:
        return ("\n\n",)

    def generation_defaults(self, traits: Traits, own: int) -> dict[str, Any]:
        told = traits.head is Head.CAUSAL or traits.chat  # in words; others are held to it
        if tokens := self.settings.tokens:
            return {"max_new_tokens": tokens} | ({} if told else {"min_new_tokens": tokens // 2})
        if told:
            return {"max_new_tokens": _TOKENS[self.settings.length]}
        match self.settings.length:
            case "short":
                return {"max_new_tokens": max(own // 2, 1), "min_new_tokens": 0}
            case "long":
                return {"max_new_tokens": own * 2, "min_new_tokens": own // 2}
            case _:
                return {}

    def work(self, row: Row, reader: Reader) -> Work:
        text, room = str(row[self.input_column]), reader.room(row)
        if room is None or (size := reader.count(text)) <= room:
            (raw,) = yield Step([row], final=True)
            return self.finish(raw)
        limit = max(1, min(reader.max_new_tokens, room // 4))
        chunks: tuple[Chunk, ...] = ()
        while size > room:
            parts = pack(sentences(text, script_language(text)), room, reader.count)
            raws = yield Step([{**row, self.input_column: part, _PART: True} for part in parts], max_new_tokens=limit)
            chunks = chunks or self._chunks(parts, raws)
            text = "\n".join(filter(None, (self.parse(raw.text) for raw in raws)))
            before, size = size, reader.count(text)
            if not text:
                log.warning("none of the %d parts has a summary: the model wrote nothing", len(parts))
                return Result(text="", chunks=chunks)
            if room < size > before // 2:
                log.warning("the summaries of the parts hardly shorten the text, so they are given one after the other")
                return Result(text=text, chunks=chunks)
        (raw,) = yield Step([{**row, self.input_column: text}], final=True)
        return replace(self.finish(raw), chunks=chunks)

    def _chunks(self, parts: Sequence[str], raws: Sequence[Raw]) -> tuple[Chunk, ...]:
        ends = list(accumulate(map(len, parts)))
        return tuple(
            Chunk(end - len(part), end, self.parse(raw.text)) for part, end, raw in zip(parts, ends, raws, strict=True)
        )
