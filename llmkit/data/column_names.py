"""What the columns of tasks are called in the wild, and whether a text is the name of one.

Knows names in English, Chinese and Japanese, of one word and of several (``Full Text``, ``user_question``), and
languages.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from llmkit.errors import UsageError
from llmkit.text.languages import Language, find_language, language_from_code
from llmkit.text.scripts import is_unspaced

__all__ = ["KNOWN_NAMES", "find_column", "is_known_name", "language_in", "language_named"]

_NAMES: dict[str, tuple[str, ...]] = {
    "text": ("text", "content", "body", "paragraphs", "poem", "story", "code", "内容", "正文", "文本", "诗", "內容",
             "本文", "テキスト"),
    "prompt": ("prompt", "instruction", "input", "inputs", "query", "question", "提示", "指令", "问题", "問題",
               "質問"),
    "completion": ("completion", "response", "output", "answer", "chosen", "target", "targets", "回答", "答案", "输出",
                   "輸出", "応答"),
    "document": ("document", "article", "dialogue", "text", "passage", "report", "source", "content", "body",
                 "abstract", "input", "正文", "内容", "文章", "原文", "內容", "本文"),
    "summary": ("summary", "highlights", "tldr", "abstract", "title", "headline", "target", "summaries", "output",
                "摘要", "标题", "总结", "標題", "總結", "要約"),
    "question": ("question", "query", "prompt", "问题", "問題", "質問"),
    "context": ("context", "passage", "paragraph", "document", "text", "article", "story", "content", "文章", "上下文",
                "原文", "内容", "內容", "本文"),
    "answers": ("answers", "answer", "answer_text", "output", "label", "答案", "回答", "解答"),
    "source": ("source", "src", "input", "sentence1", "original", "原文"),
    "target": ("target", "tgt", "output", "sentence2", "translation", "译文", "譯文", "訳文"),
}  # fmt: skip
"""For each column of a task, the most telling name first."""

KNOWN_NAMES = frozenset(name for names in _NAMES.values() for name in names) | {"id", "label", "category"}
_GENERIC = frozenset({"text", "texts", "sentence", "string", "content"})
"""Last words of names whose first word is the telling one: ``target_text``."""


def _words(name: str) -> list[str]:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", re.sub(r"\(.*?\)|（.*?）", "", name))
    return [word for word in re.split(r"[\s_\-./]+", spaced.lower()) if word]


def _telling(name: str) -> list[str]:
    """The parts of a name of several words that may be a known one."""
    words = _words(name)
    found = words[-1:] if len(words) <= 3 else []
    found += words[:1] if found and words[-1] in _GENERIC else []
    return found + [name[start:] for start in range(1, len(name)) if is_unspaced(name[start])]


def find_column(columns: Iterable[str], name: str, taken: Collection[str]) -> str | None:
    """The column that is one of a task by its name: called so, or else the only one whose name ends so."""
    free = [column for column in columns if column not in taken]
    for each in _NAMES[name]:
        if found := [column for column in free if column.strip().lower() == each]:
            return found[0]
    for each in _NAMES[name]:
        if len(found := [column for column in free if each in _telling(column)]) == 1:
            return found[0]
    return None


def is_known_name(text: str) -> bool:
    """Whether a text is the name of a column of a task, or ends in one."""
    return not KNOWN_NAMES.isdisjoint([text.strip().lower(), *_telling(text)])


def language_named(name: str) -> Language | None:
    """The language that a column is called by: a code, or an English, native or Chinese name."""
    if found := language_from_code(name):
        return found
    if len(name) <= 3 and not all(map(is_unspaced, name)):
        return None
    try:
        return find_language(name)
    except UsageError:
        return None


def language_in(name: str) -> Language | None:
    """The language at the end or the beginning of a column's name: ``sentence_eng_Latn``, ``text_fr``, ``en_text``."""
    words = name.split("_")
    parts = ["_".join(words[start:]) for start in range(1, len(words))] + words[: len(words) > 1]
    return next((language for part in parts if part and (language := language_named(part))), None)
