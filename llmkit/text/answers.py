"""Answers to questions as texts: as data sets write them, where they occur, and which mean that there is no answer."""

from __future__ import annotations

import ast
import contextlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from llmkit.errors import InputError
from llmkit.text.scripts import is_unspaced

__all__ = ["find_in", "find_places", "means_no_answer", "to_answers", "unquoted"]

_NO_ANSWERS = r"""(?xs)
    unanswerable | not\s+answerable | 无答案 | 無答案 | 没有答案 | 沒有答案 | 回答なし | 答えなし
    | (?:there\s+is\s+)?no\s+answer
      (?:[^\w\s].*
        | \s+(?:is|was|can|could|exists|found|given|provided|available|present|stated|in|from|to|for|based)\b.*)?
    | (?:the\s+)?answer\s+(?:is|was|can|could)(?:\s+not|n['’]t|not)\b.*
    | (?:this|it|the\s+question)\s+(?:can\s*not|can['’]t|could\s+not)\s+be\s+(?:answered|determined)\b.*
    | not\s+(?:mentioned|stated|specified|provided|given|found|answered)\s+(?:in|by)\s+the\s+
      (?:given\s+|provided\s+)?(?:text|context|passage|document|article)\b.*
    | the\s+(?:given\s+|provided\s+)?(?:text|context|passage|document|article)\s+(?:does|do)(?:\s+not|n['’]t)\s+
      (?:\w+\s+){0,2}?(?:hold|contain|say|mention|state|provide|give|specify|answer|include)\b.*
    | (?:文本|原文|文章|文中)中?(?:没有|未|沒有).*(?:答案|提到|提及|说明).*
    | (?:(?:根据|从).{0,8}(?:文本|原文|文章|文中|上文|材料)中?)?(?:无法|無法)(?:从.{0,12}中)?
      (?:回答|得知|确定|判断|確定|判斷).*"""
"""Replies that mean "no answer", in lowercase and without surrounding punctuation."""
_BEFORE_ANSWER = r"(?:the\s+|final\s+)?answer\s*(?:is\s*)?[:：]\W*"


def means_no_answer(text: str) -> bool:
    """Whether a text means "no answer", apart from surrounding markup, quotes and brackets."""
    words = re.sub(r"^\W+|(?<!\W)\W+$", "", text.casefold())
    # Compiled at the first use: the patterns are large, and every start of the program imports this module.
    answer = words[found.end() :] if (found := re.match(_BEFORE_ANSWER, words)) else words
    return bool(re.fullmatch(_NO_ANSWERS, answer))


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


def find_places(texts: Sequence[str], starts: Sequence[int | None], context: str) -> list[tuple[int, int]]:
    """The spans of the answers in the context: at the given starts or, if none is correct, wherever they occur."""
    return [
        (start, start + len(text))
        for text, start in zip(texts, starts, strict=bool(starts))
        if start is not None and start >= 0 and context[start : start + len(text)] == text
    ] or [place for text in texts if (place := find_in(text, context))]


def unquoted(answer: str) -> str:
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
