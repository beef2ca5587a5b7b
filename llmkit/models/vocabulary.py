"""What the tokens of a tokenizer stand for, and which tokens of another tokenizer stand for the same.

Vocabularies spell the same text in several ways: byte-level BPE (``Ġthe``), SentencePiece (``▁the``, ``<0xE4>``) and
WordPiece (``the``, ``##ing``). Here it is bytes, and the beginning of a word has a space: ``b" the"``. Knows tokenizers
and ids; what a model does with them is the business of `llmkit.models.embeddings` and `llmkit.models.token_ids`.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from llmkit.text.scripts import is_unspaced

__all__ = ["Origins", "Spelling", "Vocabulary", "find_origins", "role_ids", "spelling_of"]

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE, _INSIDE = "▁", "##"


def _byte_characters() -> dict[int, str]:
    """The characters by which byte-level BPE writes bytes: printable ones stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [each for each in range(256) if each not in printable]
    return {each: chr(each) for each in printable} | {each: chr(256 + n) for n, each in enumerate(others)}


_CHARACTERS = _byte_characters()
_BYTES = {character: each for each, character in _CHARACTERS.items()}


@dataclass(frozen=True)
class Spelling:
    """How a vocabulary writes the text of a token."""

    kind: Literal["bytes", "sentencepiece", "wordpiece", "plain"]

    def texts(self, token: str) -> list[bytes]:
        """What a token stands for, the likeliest first."""
        if self.kind == "bytes":
            return [bytes(_BYTES[each] for each in token) if all(map(_BYTES.__contains__, token)) else token.encode()]
        if self.kind == "sentencepiece":
            byte = _BYTE.fullmatch(token)
            return [bytes([int(byte[1], 16)]) if byte else token.replace(_SPACE, " ").encode()]
        if self.kind == "plain":
            return [token.encode()]
        if token.startswith(_INSIDE) and token != _INSIDE:
            return [token.removeprefix(_INSIDE).encode()]
        found = [token.encode(), f" {token}".encode()]
        return found[::-1] if begins_words(token) else found

    def spell(self, text: bytes) -> str | None:
        """The token for a text; None if this kind of vocabulary has no token for a part of a character, or for words.

        The inverse of `texts`.
        """
        if self.kind == "bytes":
            return "".join(_CHARACTERS[each] for each in text)
        try:
            token = text.decode()
        except UnicodeDecodeError:
            return None
        if self.kind == "sentencepiece":
            return token.replace(" ", _SPACE)
        if self.kind == "plain":
            return token
        word = token.removeprefix(" ")
        if not word or " " in word:
            return None
        return word if token.startswith(" ") or not begins_words(word) else f"{_INSIDE}{word}"


def begins_words(token: str) -> bool:
    """Whether a text begins with a letter or digit of a script with spaces between words."""
    return token[:1].isalnum() and not is_unspaced(token[0])


def spelling_of(tokens: Iterable[str]) -> Spelling:
    """The spelling of a vocabulary, by the sign for spaces that most of its tokens have."""
    counts = Counter(
        kind
        for token in tokens
        for kind, sign in (("bytes", "Ġ"), ("sentencepiece", _SPACE), ("wordpiece", _INSIDE))
        if token.startswith(sign)
    )
    kind: Any = counts.most_common(1)[0][0] if counts else "plain"
    return Spelling(kind)


class Vocabulary:
    """The tokens of a tokenizer as it is now; later changes of the tokenizer have no effect."""

    def __init__(self, tokenizer: Any) -> None:
        self.ids: dict[str, int] = dict(tokenizer.get_vocab())
        self.added: dict[str, int] = {str(each): number for number, each in tokenizer.added_tokens_decoder.items()}
        self.spelling = spelling_of(self.ids)
        self.roles = role_ids(tokenizer)
        self._tokenizer = tokenizer if tokenizer.is_fast else copy.deepcopy(tokenizer)
        self._backend = copy.deepcopy(tokenizer.backend_tokenizer) if tokenizer.is_fast else None
        self._unknown = tokenizer.unk_token_id

    @cached_property
    def by_text(self) -> dict[bytes, int]:
        """The token for a text, if there is one."""
        found: dict[bytes, int] = {}
        normal = [(token, number) for token, number in self.ids.items() if token not in self.added]
        single = [(token, number) for token, number in normal if _BYTE.fullmatch(token) is None]
        for place in range(2):
            for token, number in single:
                for text in self.spelling.texts(token)[place : place + 1]:
                    found.setdefault(text, number)
        for token, number in normal:  # a byte is written as such if no token stands for it
            found.setdefault(self.spelling.texts(token)[0], number)
        return found

    def pieces(self, text: bytes) -> list[int]:
        """The tokens of a text that may begin or end inside of a word or a character."""
        try:
            found = self._tokenized(text.decode())
        except UnicodeDecodeError:
            found = [self.by_text[byte] for each in text if (byte := bytes([each])) in self.by_text]
        return [each for each in found if each != self._unknown]

    def _tokenized(self, text: str) -> list[int]:
        backend = self._backend
        if backend is None:
            return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        if self.spelling.kind in ("wordpiece", "plain"):
            return list(backend.encode(text, add_special_tokens=False).ids)
        # By the model alone, since the other parts would put a space before the text.
        core = text.lstrip(" ")
        normal = core if backend.normalizer is None else backend.normalizer.normalize_str(core).lstrip(f" {_SPACE}")
        spelled = self.spelling.spell((" " * (len(text) - len(core)) + normal).encode())
        return [token.id for token in backend.model.tokenize(spelled)] if spelled else []


_ROLES = {"mask": "mask", "unk": "unk", "pad": "eos", "cls": "bos", "sep": "eos", "bos": "cls", "eos": "sep"}
"""Special tokens, each with the one that takes its place where a vocabulary lacks it. Of two roles that one token has,
the later counts."""


def role_ids(tokenizer: Any) -> dict[str, int]:
    """The ids of special tokens by role."""
    own = {role: getattr(tokenizer, f"{role}_token_id") for role in _ROLES}
    ids = {role: own[other] if own[role] is None else own[role] for role, other in _ROLES.items()}
    if ids["pad"] is None:
        ids["pad"] = own["sep"]
    return {role: number for role, number in ids.items() if number is not None}


@dataclass(frozen=True)
class Origins:
    """The old tokens that each token of a new vocabulary is made of."""

    ids: list[list[int]]
    kept: int
    """Tokens that the old vocabulary has too."""
    composed: list[str]
    """Tokens that are made of several old ones."""
    unknown: list[str]
    """Tokens of which the old vocabulary knows no part."""


def find_origins(old: Vocabulary, new: Vocabulary, rows: int = 0) -> Origins:
    """The origins of all tokens of a new vocabulary.

    Args:
        rows: least number of tokens; those without a name keep their ids. 0 for another vocabulary.
    """
    size = max(rows, max(new.ids.values()) + 1)
    origins: list[list[int]] = [[number] if number < rows else [] for number in range(size)]
    settled = {new.roles[role]: old.roles[role] for role in new.roles if role in old.roles}
    for number, role_of_old in settled.items():
        origins[number] = [role_of_old]
    kept = len(settled)
    composed: list[str] = []
    unknown: list[str] = []
    for token, number in new.ids.items():
        if number in settled:
            continue
        same = next(_same_tokens(old, new, token, number), None)
        origins[number] = old.pieces(_text(new, token)) if same is None else [same]
        if same is not None:
            kept += 1
        else:
            (composed if origins[number] else unknown).append(token)
    return Origins(origins, kept, composed, unknown)


def _text(vocabulary: Vocabulary, token: str) -> bytes:
    return token.encode() if token in vocabulary.added else vocabulary.spelling.texts(token)[0]


def _same_tokens(old: Vocabulary, new: Vocabulary, token: str, number: int) -> Iterator[int]:
    """The old tokens that stand for the same as a new one."""
    if old.ids.get(token) == number:
        yield number
    if token in new.added and token in old.ids:
        yield old.ids[token]
    texts = [token.encode()] if token in new.added else new.spelling.texts(token)
    yield from (old.by_text[text] for text in texts if text in old.by_text)
