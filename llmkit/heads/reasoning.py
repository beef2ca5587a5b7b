"""Splits a model's reasoning from its answer, while the text arrives in pieces.

Knows how the tags around reasoning are found for a tokenizer: in its response template, if it has one; otherwise as the
channels of gpt-oss, or as pairs of tags among its added tokens, in its chat template, and in common use.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from llmkit.heads.chat_template import template_of
from llmkit.heads.text_stream import EDGE, StopScanner
from llmkit.log import warn
from llmkit.models.families.reasoning_marks import AROUND_ANSWERS, MARKS, MESSAGES, PHRASES, Mark

__all__ = ["ReasoningFormat", "ReasoningSplitter", "TagSplitter", "reasoning_format"]

_TAG = re.compile(r"<[^<>\s]{2,40}>|\[[^\[\]\s]{2,40}\]|◁[^◁▷\s]{2,40}▷")
_XML = re.compile(r"<[A-Za-z]\w*>")
_ABOUT_REASONING = re.compile("think|thought|reason", re.IGNORECASE)
_CLOSES = (("/", ""), ("END", "START"), ("END", "BEGIN"), ("end", "start"), ("end", "begin"), ("eo", "bo"))
"""How a closing tag differs from its opening tag."""

_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names of the reasoning region in response templates. Other regions, such as tool calls, stay in the answer."""


@dataclass(frozen=True)
class ReasoningFormat:
    """How the replies of one model are split."""

    splitter: Callable[..., ReasoningSplitter]
    """Creates a splitter for a reply, from the text of its prompt and the special tokens that its answer keeps."""
    shown: Mapping[int, str]
    """Special tokens that are part of tags, whose text must be kept when a reply is decoded."""
    marks: tuple[Mark, ...]
    declared: tuple[Mark, ...] = ()
    """Those that the tokenizer's files name, so that the model is known to use them."""

    def opened(self, prompt: str) -> Mark | None:
        """The block that the prompt opens at its end."""
        return _opened(self.marks, prompt)

    def openings(self, tokenizer: Any, prompt: str) -> list[list[int]]:
        """The tokens of each tag with which the model may open a block itself, unless the prompt has one at its end."""
        if any(prompt.rstrip().endswith(text.rstrip()) for mark in self.declared for text in mark):
            return []
        texts = dict.fromkeys(opening for opening, _ in self.declared)
        return [tokenizer.encode(text, add_special_tokens=False) for text in texts]


def reasoning_format(tokenizer: Any) -> ReasoningFormat:
    """How the replies of a chat model are split."""
    return _format(tokenizer, template_of(tokenizer), len(tokenizer))


@lru_cache(maxsize=16)
def _format(tokenizer: Any, template: str, _size: int) -> ReasoningFormat:
    added = tokenizer.get_added_vocab()
    special = {added[token]: token for token in tokenizer.all_special_tokens if token in added}
    special |= {number: token.content for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    in_messages = {"<|start|>", "<|message|>"} <= added.keys() and ("<|channel|>" in added or " to=" in template)
    if (spec := MESSAGES if in_messages else _response_template(tokenizer)) is not None:
        text = json.dumps(spec, ensure_ascii=False).replace("\\", "")
        shown = {number: token for number, token in special.items() if token in text}
        tokens = tuple(shown.values())
        marks = () if spec is MESSAGES else MARKS
        return ReasoningFormat(lambda prompt, kept=(): _ParsedSplitter(prompt, spec, tokens, kept), shown, marks)
    phrases = [pair for pair in PHRASES if all(text in template for text in pair)]
    marks = tuple(dict.fromkeys((*_pairs(added, template), *MARKS, *phrases)))
    texts = [text for pair in marks for text in pair]
    shown = {number: token for number, token in special.items() if any(token in text for text in texts)}
    declared = tuple(pair for pair in marks if pair[0] in added or pair[0] in template)
    return ReasoningFormat(lambda prompt, kept=(): TagSplitter(prompt, marks, kept), shown, marks, declared)


def _pairs(added: Iterable[str], template: str) -> list[Mark]:
    """Pairs of reasoning tags among the added tokens and in a template, which may only contain the opening tag."""
    tags = dict.fromkeys(tag for text in (*added, template) for tag in _TAG.findall(text))
    tags |= dict.fromkeys(f"</{tag[1:]}" for tag in tags if _XML.fullmatch(tag))
    about = [tag for tag in tags if _ABOUT_REASONING.search(tag)]
    return [
        (opening, tag)
        for tag in about
        for end, start in _CLOSES
        if (opening := tag.replace(end, start, 1)) != tag and opening in tags
    ]


def _response_template(tokenizer: Any) -> dict[str, Any] | None:
    """The regions of the tokenizer's response template, without the parsers of their content (which could fail)."""
    from transformers.utils.chat_parsing.response_templates import load_response_template

    spec = getattr(tokenizer, "response_template", None)
    if spec is None:
        return None
    try:
        load_response_template(spec)
    except ValueError as error:
        warn("setting_ignored", "the tokenizer's response_template is not used: %s", error)
        return None
    anchors = ("open", "open_pattern", "close", "close_pattern")
    fields = {
        name: {key: field[key] for key in anchors if key in field}
        for name, field in spec["fields"].items()
        if name in (*_REASONING, "content")
    }
    if all("open" in field or "open_pattern" in field for field in fields.values()):
        fields["outside"] = {}  # otherwise text outside all regions would be lost
    return {**{key: spec[key] for key in ("start_anchor", "start_anchor_pattern") if key in spec}, "fields": fields}


def _opened(marks: Sequence[Mark], prompt: str) -> Mark | None:
    return next((mark for mark in marks if prompt.rstrip().endswith(mark[0].rstrip())), None)


class ReasoningSplitter:
    """Splits one reply into `reasoning` and answer."""

    def __init__(self) -> None:
        self.reasoning = ""
        self.marked = False
        """The reply had reasoning tags, perhaps around nothing."""
        self.thinking = False
        """The reply ended during its reasoning, before an answer."""
        self._given = False
        """The prompt opened the reasoning block, and it is not closed yet."""

    def push(self, text: str) -> str:
        """Add text; returns the part that belongs to the answer. The rest is added to `reasoning`."""
        raise NotImplementedError

    @property
    def answer_is_next(self) -> bool | None:
        """Whether the next token belongs to the answer, or may begin it; None if that is unknown."""
        return None

    def flush(self, *, finished: bool = False) -> str:
        """The part of the answer that was held back, after the text has ended.

        Args:
            finished: the model ended its reply itself. In a block that its prompt opened, it then answered without
                reasoning and without closing the block.
        """
        text = self._rest()
        if self._given and finished:
            text, self.reasoning = self.reasoning.lstrip(), ""
            self.thinking = False
        return text

    def _rest(self) -> str:
        raise NotImplementedError


class TagSplitter(ReasoningSplitter):
    """Splits at pairs of tags. A block counts only at the beginning: later tags are part of the answer."""

    def __init__(self, prompt: str = "", marks: Sequence[Mark] = MARKS, kept: Collection[str] = ()) -> None:
        """``prompt`` is the rendered prompt: some templates open the block themselves.

        ``kept`` are special tokens that answers keep, such as those around tool calls.
        """
        super().__init__()
        self._kept = kept
        opened = _opened(marks, prompt)
        self._given = self.marked = opened is not None
        self._scanner = StopScanner(opened[1:] if opened else ())
        self._waits_for: tuple[Mark, ...] = () if opened else tuple(marks)
        """Tags that may begin what comes next."""
        self._held = self._plain = ""
        self._answering = self._begun = False

    @property
    def answer_is_next(self) -> bool:
        return self._answering or not self.marked or self._scanner.found

    def push(self, text: str) -> str:
        parts = text.split(EDGE)
        special = (bool(number % 2) and part not in self._kept for number, part in enumerate(parts))
        return "".join(self._push(part, special=each) for part, each in zip(parts, special, strict=True))

    def _push(self, text: str, *, special: bool) -> str:
        if self._answering:
            return "" if special else self._answer(text)
        if not self.marked:
            pair, text = self._begin(text, special=special)
            if pair is None:
                return self._answer(text) if self._answering else ""
            self.marked, self._scanner = True, StopScanner(pair[1:])
        if not self._scanner.found:
            inside, text = _until(self._scanner, text)
            self.reasoning += inside
            if not self._scanner.found:
                return ""
            self._given, self._waits_for = False, AROUND_ANSWERS
        pair, text = self._begin(text, special=special)
        if pair is not None:
            self._answering, self._scanner = True, StopScanner(pair[1:])
        return self._answer(text) if self._answering else ""

    def _begin(self, text: str, *, special: bool) -> tuple[Mark | None, str]:
        """Wait until the text begins with one of the tags, or cannot; returns it and what follows."""
        self._held += text
        self._plain += "" if special else text
        begun = self._held.lstrip()
        for pair in self._waits_for:
            if begun.startswith(pair[0]):
                self._held = self._plain = ""
                return pair, begun[len(pair[0]) :]
        if any(pair[0].startswith(begun) for pair in self._waits_for):
            return None, ""
        self._answering, self._scanner = True, StopScanner(())
        text, self._held, self._plain = self._plain, "", ""
        return None, text

    def _answer(self, text: str) -> str:
        if not self._scanner.found:
            inside, after = _until(self._scanner, text)
            text = inside + after
        if self.marked and not self._begun:  # empty lines after a block belong to the block
            text = text.lstrip()
            self._begun = bool(text)
        return text

    def _rest(self) -> str:
        if self._answering:
            return self._scanner.flush()
        if self.marked and not self._scanner.found:
            self.reasoning += self._scanner.flush()
            self.thinking = True
            return ""
        if self._plain != self._held:  # cut off in a mark
            self.marked = self.thinking = True
            return ""
        held, self._plain = self._plain, ""
        return held.lstrip() if self.marked else held


def _until(scanner: StopScanner, text: str) -> tuple[str, str]:
    """The text before and after the scanner's one string."""
    whole = scanner.held + text
    inside = scanner.push(text)
    return inside, whole[len(inside) + len(scanner.stop[0]) :] if scanner.found else ""


class _ParsedSplitter(ReasoningSplitter):
    """Splits by the regions of a response template."""

    def __init__(self, prompt: str, spec: Mapping[str, Any], tokens: Sequence[str], kept: Collection[str] = ()) -> None:
        """``tokens`` are the special tokens among the tags, ``kept`` those that answers keep."""
        from transformers.utils.chat_parsing import ResponseParser

        super().__init__()
        self._tokens = tokens
        self._dropped = [token for token in tokens if token not in kept]
        # The content of a region is taken as text, once or several times.
        fields = {name: {**field, "repeats": True, "transform": "{content}"} for name, field in spec["fields"].items()}
        self._parser: Any = ResponseParser({**spec, "fields": fields}, prefix=prompt)
        last = next((event for event in reversed(self._parser.initial_events) if event["type"] != "region_chunk"), None)
        self._given = last is not None and last["type"] == "region_open" and last["field"] in _REASONING
        self._begun = False

    def push(self, text: str) -> str:
        return self._take(self._parser.feed(text.replace(EDGE, "")))

    def _take(self, events: Iterable[Mapping[str, Any]]) -> str:
        shown = ""
        for event in events:
            self.marked = self.marked or event["field"] in (*_REASONING, "answer")
            if event["field"] in _REASONING:
                self._given = self._given and event["type"] != "region_close"
                self.reasoning += event.get("text", "")
            elif event["type"] == "region_chunk":
                text = event["text"]
                for token in self._dropped:  # messages that match no region of the template
                    text = text.replace(token, "")
                text = text.lstrip() if self.marked and not self._begun else text
                self._begun = self._begun or bool(text)
                shown += text
        return shown

    def _rest(self) -> str:
        given, parser = self._given, self._parser
        known, waiting = parser._buffer[: parser._pos], parser._buffer[parser._pos :]  # noqa: SLF001
        if any(token in waiting for token in self._tokens):  # cut off in a mark
            parser._buffer, self.marked = known, True  # noqa: SLF001
        text = self._take(parser.finalize()[1])
        self._given = given
        self.thinking = self.marked and not self._begun
        return text
