"""Finding columns by their names, and deciding whether a text is the name of a column.

Knows names of one or several words (``Full Text``, ``user_question``) and names of languages. The common names of a
task's columns are declared by the task (`Task.aliases`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from llmkit.tasks import TASKS
from llmkit.text.languages import Language, known_language, language_from_code
from llmkit.text.scripts import is_unspaced

__all__ = ["find_column", "is_known_name", "known_names", "language_in", "language_named", "look_up"]

_GENERIC = frozenset({"text", "texts", "sentence", "string", "content"})
"""Last words of names whose first word is the significant one: ``target_text``."""
_LONGEST = 40
"""Upper bound of the length of known names."""
_PARTS = 4
"""Upper bound of the parts of a language code: ``zh_Hant_TW``."""


def _words(name: str) -> list[str]:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", re.sub(r"\([^()]*\)|（[^（）]*）", "", name))
    return [word for word in re.split(r"[\s_\-./]+", spaced.lower()) if word]


def _significant_parts(name: str) -> list[str]:
    """The parts of a name of several words that may be a known name."""
    words = _words(name)
    found = words[-1:] if len(words) <= 3 else []
    found += words[:1] if found and words[-1] in _GENERIC else []
    starts = range(max(1, len(name) - _LONGEST), len(name))
    return found + [name[start:] for start in starts if is_unspaced(name[start])]


def find_column(columns: Iterable[str], names: Sequence[str], taken: Collection[str]) -> str | None:
    """The column with one of the names: an exact match, otherwise the only column whose name ends in it."""
    free = [column for column in columns if column not in taken]
    for each in names:
        if found := [column for column in free if column.strip().lower() == each]:
            return found[0]
    for each in names:
        if len(found := [column for column in free if each in _significant_parts(column)]) == 1:
            return found[0]
    return None


def look_up(row: Mapping[str, Any], path: str, missing: Any = None) -> Any:
    """The value of a column; ``a.b`` is a field of an object if no column has that name."""
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        value = value.get(part, missing) if isinstance(value, Mapping) else missing
    return value


def known_names() -> frozenset[str]:
    """The common names of columns of all tasks."""
    names = (name for task in TASKS.values() for aliases in task.aliases.values() for name in aliases)
    return frozenset(names) | {"id", "label", "category"}


def is_known_name(text: str) -> bool:
    """Whether a text is the name of a column of a task, or ends in one."""
    return not known_names().isdisjoint([text.strip().lower(), *_significant_parts(text)])


def language_named(name: str) -> Language | None:
    """The language that a name stands for: a code, or an English, native or Chinese name."""
    if found := language_from_code(name):
        return found
    if len(name) <= 3 and not all(map(is_unspaced, name)):
        return None
    return known_language(name)


def language_in(name: str) -> Language | None:
    """The language at the end or the beginning of a column's name: ``sentence_eng_Latn``, ``text_fr``, ``en_text``."""
    words = name.split("_")
    parts = ["_".join(words[start:]) for start in range(max(1, len(words) - _PARTS), len(words))] + words[
        : len(words) > 1
    ]
    return next((language for part in parts if part and (language := language_named(part))), None)
