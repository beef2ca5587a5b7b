"""Scripts: which one a character belongs to, and which do not put spaces between words."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

__all__ = ["SCRIPTS", "Script", "count_scripts", "is_unspaced", "looks_english"]


class Script(NamedTuple):
    language: str
    """The language whose sentence punctuation is assumed for the script."""
    members: str
    """Its characters, in the syntax of a `regex` character class."""


SCRIPTS = {
    "Hans": Script("zh", r"\p{Han}\p{Bopomofo}"),
    "Jpan": Script("ja", r"\p{Hiragana}\p{Katakana}"),
    "Kore": Script("ko", r"\p{Hangul}"),
    "Thai": Script("th", r"\p{Thai}"),
    "Laoo": Script("lo", r"\p{Lao}"),
    "Khmr": Script("km", r"\p{Khmer}"),
    "Mymr": Script("my", r"\p{Myanmar}"),
    "Tibt": Script("bo", r"\p{Tibetan}"),
    "Deva": Script("hi", r"\p{Devanagari}"),
    "Beng": Script("bn", r"\p{Bengali}"),
    "Guru": Script("pa", r"\p{Gurmukhi}"),
    "Gujr": Script("gu", r"\p{Gujarati}"),
    "Orya": Script("or", r"\p{Oriya}"),
    "Taml": Script("ta", r"\p{Tamil}"),
    "Telu": Script("te", r"\p{Telugu}"),
    "Knda": Script("kn", r"\p{Kannada}"),
    "Mlym": Script("ml", r"\p{Malayalam}"),
    "Sinh": Script("si", r"\p{Sinhala}"),
    "Arab": Script("ar", r"\p{Arabic}"),
    "Hebr": Script("he", r"\p{Hebrew}"),
    "Grek": Script("el", r"\p{Greek}"),
    "Cyrl": Script("ru", r"\p{Cyrillic}"),
    "Armn": Script("hy", r"\p{Armenian}"),
    "Geor": Script("ka", r"\p{Georgian}"),
    "Ethi": Script("am", r"\p{Ethiopic}"),
    "Latn": Script("en", r"\p{Latin}"),
}
"""Scripts by the code used in `Language.script`."""

# Thai, Lao, Burmese, Khmer, kana, Han; punctuation and full-width forms used with the last two.
_UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
)

_MAX_CHARACTERS = 20_000


def is_unspaced(character: str) -> bool:
    """Whether a character belongs to a script without spaces between words. (Korean has spaces.)"""
    return _UNSPACED.match(character) is not None


def looks_english(text: str) -> bool:
    """Whether nearly all letters of a text are ASCII. Finds other scripts and many European languages, not all."""
    letters = [character for character in text[:_MAX_CHARACTERS] if character.isalpha()]
    foreign = sum(not letter.isascii() for letter in letters)
    # French has 3 to 4 %. The 60 are so that one "café" in a short English question does not count.
    return foreign <= 0.03 * (len(letters) + 60)


def count_scripts(characters: Iterable[str]) -> Counter[str]:
    """Count the characters of each of `SCRIPTS`; all others count as "Zyyy"."""
    counts: Counter[str] = Counter()
    for character, count in Counter(characters).items():
        found = _pattern().match(character)
        counts[found.lastgroup if found else "Zyyy"] += count
    return counts


@functools.cache
def _pattern() -> Any:
    import regex

    return regex.compile("|".join(f"(?P<{code}>[{script.members}])" for code, script in SCRIPTS.items()))
