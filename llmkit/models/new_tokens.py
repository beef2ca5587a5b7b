"""Tokens from a file, as part of a tokenizer's own vocabulary.

``add_tokens`` of Transformers finds a token wherever its characters occur, also inside of words, and SentencePiece
tokenizers put a space after it. What is added here is tokenized like all other tokens: by merges (BPE), by its score
(Unigram), or as a word or a part of one (WordPiece). Text without a new token keeps its tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from llmkit.errors import InputError, UsageError
from llmkit.models.vocabulary import Spelling, begins_words, spelling_of

__all__ = ["Extension", "Piece", "extend_tokenizer", "read_pieces"]


@dataclass(frozen=True)
class Piece:
    """A token of a file."""

    text: bytes
    """As in `llmkit.models.vocabulary`: the beginning of a word has a space."""
    score: float | None = None
    """Logarithm of its probability, in a unigram vocabulary."""


# Files.


def read_pieces(path: Path) -> list[Piece]:
    """The tokens of a file: a SentencePiece model, a tokenizer.json, or a text with one token per line.

    Raises:
        InputError: it has no tokens, or is none of these.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        if file.suffix == ".model":
            pieces = list(_of_sentencepiece(file))
        elif file.suffix == ".json":
            pieces = list(_of_tokenizer(json.loads(file.read_text(encoding="utf-8"))))
        else:
            pieces = list(_of_lines(file.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"tokenizer.add_tokens: {file} has no tokens that can be read ({reason})",
            "name a text file with one token per line, a SentencePiece model (.model), or a tokenizer.json",
        ) from error
    if not pieces:
        raise InputError(f"tokenizer.add_tokens: {file} is empty", "name a file with tokens", code="no_rows")
    return list(dict.fromkeys(pieces))


def _of_sentencepiece(file: Path) -> Iterator[Piece]:
    import sentencepiece

    model: Any = sentencepiece.SentencePieceProcessor(model_file=str(file))
    spelling = Spelling("sentencepiece")
    proto = _scored(model)
    for number in range(len(model)):
        special = (model.is_control, model.is_unknown, model.is_byte, model.is_unused)
        if not any(each(number) for each in special):
            yield Piece(spelling.texts(model.id_to_piece(number))[0], model.get_score(number) if proto else None)


def _scored(model: Any) -> bool:
    """Whether scores are probabilities; those of BPE are ranks, which are whole numbers."""
    return any(not model.get_score(number).is_integer() for number in range(len(model)))


def _of_tokenizer(content: Mapping[str, Any]) -> Iterator[Piece]:
    vocabulary, added = content["model"]["vocab"], {each["content"] for each in content.get("added_tokens", ())}
    scores = dict(vocabulary) if isinstance(vocabulary, list) else dict.fromkeys(vocabulary)
    if isinstance(vocabulary, dict):
        scores = dict.fromkeys(sorted(vocabulary, key=vocabulary.__getitem__))
    spelling = spelling_of(scores)
    for token, score in scores.items():
        if token not in added:
            yield Piece(spelling.texts(token)[0], score)


def _of_lines(lines: Iterable[str]) -> Iterator[Piece]:
    for line in lines:
        token = line.rstrip()
        if token.startswith(("▁", "##")):
            yield Piece(Spelling("sentencepiece" if token[0] == "▁" else "wordpiece").texts(token)[0])
        elif token:
            yield Piece(f" {token}".encode() if begins_words(token) else token.encode())


# Tokenizers.


@dataclass(frozen=True)
class Extension:
    """What was added to a tokenizer."""

    tokens: list[str]
    known: int
    """Tokens of the file that the tokenizer already has."""
    parts: int
    """Further tokens, from which BPE builds those of the file."""
    left_out: int
    """Tokens that this vocabulary cannot spell, such as parts of characters."""


def extend_tokenizer(tokenizer: Any, pieces: Iterable[Piece]) -> Extension:
    """Add tokens to the vocabulary of a tokenizer. Ids of its other tokens stay.

    Raises:
        UsageError: the tokenizer has no vocabulary to which this can be done.
    """
    from tokenizers import Tokenizer

    if not tokenizer.is_fast:
        raise _not_extensible(type(tokenizer).__name__)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model, spelling = state["model"], spelling_of(tokenizer.get_vocab())
    grow = {"BPE": _grow_bpe, "Unigram": _grow_unigram, "WordPiece": _grow_wordpiece}.get(model["type"])
    if grow is None or model.get("end_of_word_suffix") or (model["type"] == "BPE" and spelling.kind == "wordpiece"):
        raise _not_extensible(f"{type(tokenizer).__name__} ({model['type']})")
    wanted = {piece: spelling.spell(piece.text) for piece in pieces}
    vocabulary = tokenizer.get_vocab()
    new = {token: piece for piece, token in wanted.items() if token is not None and token not in vocabulary}
    before = tokenizer.get_vocab()
    grow(model, new, max(before.values()) + 1, tokenizer)
    backend = Tokenizer.from_str(json.dumps(state))
    tokenizer._tokenizer = backend  # noqa: SLF001 - there is no other way to replace a vocabulary
    if unseen := [token for token in new if model["type"] == "WordPiece" and not _occurs(tokenizer, token)]:
        tokenizer.add_tokens(unseen)
    added = tokenizer.get_vocab().keys() - before.keys()
    left_out = sum(token is None for token in wanted.values())
    return Extension(sorted(added), len(wanted) - len(new) - left_out, len(added) - len(new), left_out)


def _not_extensible(name: str) -> UsageError:
    return UsageError(
        f"tokenizer.add_tokens: the vocabulary of {name} cannot be extended by a file",
        "list the tokens in add_tokens, so that they are found wherever they occur in a text",
        code="not_supported",
    )


def _occurs(tokenizer: Any, token: str) -> bool:
    """Whether a word is tokenized as one token. BERT's tokenizer splits Chinese text into characters before."""
    word = token.removeprefix("##")
    return len(tokenizer.backend_tokenizer.encode(word, add_special_tokens=False).ids) == 1 or token != word


def _grow_bpe(model: dict[str, Any], new: Mapping[str, Piece], first: int, _: Any) -> None:
    """Add merges after all others, so that they change no text without a new token."""
    vocabulary: dict[str, int] = model["vocab"]
    merges: list[Any] = model["merges"]
    ranks = {tuple(each.split(" ", 1)) if isinstance(each, str) else tuple(each): n for n, each in enumerate(merges)}
    if merges and isinstance(merges[0], str):
        merges[:] = [list(pair) for pair in ranks]

    def add(token: str) -> None:
        nonlocal first
        if token not in vocabulary:
            vocabulary[token] = first
            first += 1

    for token in new:
        for character in token:
            add(character)
        left, *others = _merged(list(token), ranks)
        for right in others:
            ranks[left, right] = len(merges)
            merges.append([left, right])
            left += right
            add(left)


def _merged(parts: list[str], ranks: Mapping[tuple[str, ...], int]) -> list[str]:
    """The tokens of a word by BPE."""
    while True:
        pairs = [(ranks[pair], place) for place, pair in enumerate(pairwise(parts)) if pair in ranks]
        if not pairs:
            return parts
        _, place = min(pairs)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


_UNKNOWN_PENALTY, _PREFERENCE = 10.0, 0.1
"""What `tokenizers` subtracts from the lowest score for an unknown character; by how much a new token is preferred to
its old pieces."""


def _grow_unigram(model: dict[str, Any], new: Mapping[str, Piece], first: int, tokenizer: Any) -> None:
    """Add scores that are higher than those of a token's pieces. Added tokens keep their ids, which are positions."""
    vocabulary: list[list[Any]] = model["vocab"]
    scores = dict(map(tuple, vocabulary))
    lowest = min(scores.values())
    added = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items()}
    vocabulary += [[added.get(number, f"<unused_{number}>"), lowest] for number in range(len(vocabulary), first)]
    whole = tokenizer.backend_tokenizer.model
    for token, piece in new.items():
        pieces = [scores.get(each.value, lowest - _UNKNOWN_PENALTY) for each in whole.tokenize(token)]
        own = lowest if piece.score is None else piece.score
        vocabulary.append([token, max(own, sum(pieces) + _PREFERENCE)])


def _grow_wordpiece(model: dict[str, Any], new: Mapping[str, Piece], first: int, _: Any) -> None:
    model["vocab"] |= {token: first + number for number, token in enumerate(new)}
