"""Which scripts write no space between words. Knows characters only."""

from __future__ import annotations

import re

__all__ = ["is_unspaced"]

# Thai, Lao, Burmese, Khmer, kana, Han; the punctuation and the full-width forms that go with the last two.
_UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
)


def is_unspaced(character: str) -> bool:
    """Whether a character is of a script that writes no space between words. Korean does."""
    return _UNSPACED.match(character) is not None
