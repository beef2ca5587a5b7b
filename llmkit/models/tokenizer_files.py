"""Facts about a tokenizer from its files, without building it: special tokens, chat template, offsets.

Knows the files that `save_pretrained` writes. Does not import torch, transformers or tokenizers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmkit.files import check_encoding, read_json
from llmkit.models.upstream import has_offsets, needs_vocabulary, tokenizer_class

__all__ = ["SpecialToken", "TokenizerFiles", "added_tokens", "has_chat_template", "has_vocabulary", "read_tokenizer"]

_KINDS = ("bos", "eos", "pad", "unk")
_VOCABULARIES = (
    *("tokenizer.json", "tokenizer.*.json", "vocab*", "*merges.txt", "*.model", "*.spm", "*.bpe.codes"),
    *("tekken*.json", "*.tiktoken", "*.vocab", "spiece*"),
)
_ADDED = '"added_tokens":'
_HEAD = 2_000_000  # characters of tokenizer.json: the added tokens come before the vocabulary


@dataclass(frozen=True, kw_only=True)
class SpecialToken:
    """Text and ids of a special token; end tokens can have several ids."""

    text: str | None = None
    ids: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TokenizerFiles:
    present: bool = False
    class_name: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    chat_template: bool = False
    tokens: Mapping[str, SpecialToken] = field(default_factory=dict)
    """The special tokens that a file names, by kind (bos, eos, pad, unk)."""
    own_eos: int | None = None
    """The id of the tokenizer's end token, if its files have one: generation may stop at others."""
    largest_added_id: int = -1

    @property
    def offsets(self) -> bool:
        """Whether the tokenizer returns each token's position in the text."""
        return has_offsets(self.class_name)


def read_tokenizer(folder: Path, config: Mapping[str, Any], generation: Mapping[str, Any]) -> TokenizerFiles:
    """Read the tokenizer files in a folder; ids that they lack are taken from ``config`` and ``generation``."""
    tokenizer_config = _optional(folder / "tokenizer_config.json")
    special = _optional(folder / "special_tokens_map.json")
    added = added_tokens(folder, tokenizer_config)
    # If the config lists the added tokens, Transformers ignores the older file; otherwise that file takes precedence.
    files = (tokenizer_config, special) if "added_tokens_decoder" in tokenizer_config else (special, tokenizer_config)
    texts = {
        kind: next((text for file in files if (text := _text(file.get(f"{kind}_token")))), None) for kind in _KINDS
    }
    return TokenizerFiles(
        present=has_vocabulary(folder) or _needs_none(tokenizer_config, _class_name(config, tokenizer_config)),
        class_name=_class_name(config, tokenizer_config),
        config=tokenizer_config,
        chat_template=has_chat_template(folder),
        tokens=_tokens(texts, added, config, generation),
        own_eos=added.get(texts["eos"] or ""),
        largest_added_id=max(added.values(), default=-1),
    )


def _needs_none(tokenizer_config: Mapping[str, Any], class_name: str) -> bool:
    """Whether a tokenizer uses bytes or characters (ByT5, Canine), or may have its own code."""
    return bool(tokenizer_config) and (not needs_vocabulary(class_name) or "auto_map" in tokenizer_config)


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _class_name(config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]) -> str:
    named = tokenizer_config.get("tokenizer_class") or config.get("tokenizer_class")
    return str(named or tokenizer_class(str(config.get("model_type"))))


def has_chat_template(folder: Path) -> bool:
    """Whether the files of a tokenizer have a chat template."""
    files = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")
    named = _optional(folder / "tokenizer_config.json").get("chat_template")
    return bool(named) or any((folder / name).exists() and (folder / name).stat().st_size for name in files)


def has_vocabulary(folder: Path) -> bool:
    """Whether a folder has a vocabulary file."""
    return any(next(folder.glob(pattern), None) for pattern in _VOCABULARIES)


def _text(token: object) -> str | None:
    """The text of a saved token: a string, or an AddedToken with the text in it."""
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) and content else None


def added_tokens(folder: Path, tokenizer_config: Mapping[str, Any]) -> dict[str, int]:
    """Tokens beside the vocabulary, including special ones: text → id."""
    added: dict[str, int] = {}
    older = folder / "added_tokens.json"
    if older.is_file():
        added |= {text: number for text, number in read_json(older).items() if isinstance(number, int)}
    for entry in _added_in_tokenizer_json(folder / "tokenizer.json"):
        if isinstance(entry, dict) and isinstance(entry.get("id"), int):
            added[str(entry.get("content"))] = entry["id"]
    decoder = tokenizer_config.get("added_tokens_decoder")
    for number, token in decoder.items() if isinstance(decoder, dict) else ():
        if (text := _text(token)) and str(number).isdecimal():
            added[text] = int(number)
    return added


def _added_in_tokenizer_json(path: Path) -> Iterable[Any]:
    """The list of added tokens. Parsing the whole file would take half a second for a large vocabulary."""
    if not path.is_file():
        return ()
    check_encoding(path)
    with path.open(encoding="utf-8", errors="replace") as file:
        head = file.read(_HEAD)
    start = head.find(_ADDED)
    if start < 0:
        return ()
    text = head[start + len(_ADDED) :].lstrip()
    try:
        entries, _ = json.JSONDecoder().raw_decode(text)
    except ValueError:  # not an error: the list is longer than the part that was read
        return ()
    return entries if isinstance(entries, list) else ()


def _tokens(
    texts: Mapping[str, str | None],
    added: Mapping[str, int],
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
) -> dict[str, SpecialToken]:
    tokens = {}
    for kind in _KINDS:
        text = texts[kind]
        ids = [added[text]] if text is not None and text in added else []
        # The tokenizer's own id takes precedence; only end tokens can have several.
        if kind == "eos" or not ids:
            ids += _ids(generation, f"{kind}_token_id") or _ids(config, f"{kind}_token_id")
        if text is not None or ids:
            tokens[kind] = SpecialToken(text=text, ids=tuple(dict.fromkeys(ids)))
    return tokens


def _ids(config: Mapping[str, Any], key: str) -> list[int]:
    part = config.get("text_config")
    value = config.get(key)
    if value is None and isinstance(part, Mapping):
        value = part.get(key)
    values = value if isinstance(value, list) else [value]
    return [number for number in values if isinstance(number, int) and number >= 0]
