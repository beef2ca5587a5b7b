"""A tokenizer of the class that a model type has, trained in process; byte-level BPE where it has none."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from llmkit.models.fresh import train_tokenizer as train_byte_level
from llmkit.tasks import Head
from tests import tiny

_NEED_A_PACKAGE = ("cpmant", "roformer")
"""Their tokenizers cut Chinese into words with rjieba; published models in other languages have others."""

_CHARACTERS = sorted({character for text in tiny.SENTENCES for character in text.lower() + text if character != " "})


def make_tokenizer(model_type: str, folder: Path) -> Any:
    """The tokenizer of a model type. ``folder`` is for files of the training."""
    name = TOKENIZER_MAPPING_NAMES.get(model_type)
    cls = getattr(transformers, name, None) if name else None
    if cls is None or cls is transformers.PreTrainedTokenizerFast or model_type in _NEED_A_PACKAGE:
        return train_byte_level(tiny.SENTENCES * 4, vocab_size=400, min_frequency=2, head=Head.CAUSAL)
    if name in (*tiny.UNIGRAM, *tiny.WORDPIECE, "MarianTokenizer", "M2M100Tokenizer"):
        return tiny.train_tokenizer(name, folder)
    if not issubclass(cls, transformers.PreTrainedTokenizerFast):
        return _from_files(cls, folder)
    empty = cls()
    kind = type(empty.backend_tokenizer.model).__name__
    if kind == "WordPiece":
        special = _special_tokens(cls)
        return cls(vocab={piece: n for n, piece in enumerate([*special, *tiny._wordpieces(empty.backend_tokenizer)])})
    return empty.train_new_from_iterator(tiny.SENTENCES * 4, vocab_size=400, show_progress=False)


def _special_tokens(cls: Any) -> list[str]:
    """Those that the class names itself, each once, padding first."""
    named: dict[str, None] = {}
    padding = inspect.signature(cls.__init__).parameters.get("pad_token")
    if padding is not None and isinstance(padding.default, str):
        named[padding.default] = None
    for parameter in inspect.signature(cls.__init__).parameters.values():
        if parameter.name.endswith("_token") and isinstance(parameter.default, str):
            named[parameter.default] = None
    return list(named)


def _from_files(cls: Any, folder: Path) -> Any:
    """A tokenizer in Python reads a vocabulary: every character, alone, inside a word, and at its end."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = [piece for c in _CHARACTERS for piece in (c, f"{c}</w>", f"{c}@@", f"##{c}")]
    vocabulary = [*_special_tokens(cls), *pieces]
    files: dict[str, Any] = {}
    for argument, name in cls.vocab_files_names.items():
        path = folder / name
        if name.endswith((".model", ".spm")):
            tiny._train_sentencepiece(path)
        elif name in ("merges.txt", "bpe.codes"):
            path.write_text("#version: 0.2\n", encoding="utf-8")
        elif name == "emoji.json":
            path.write_text(json.dumps({"emoji": {}, "emoji_inv": {}}), encoding="utf-8")
        elif name.startswith("word_"):
            path.write_text(json.dumps(dict.fromkeys(vocabulary, 0)), encoding="utf-8")
        elif name.endswith(".json") and name.startswith("vocab"):
            path.write_text(json.dumps({piece: n for n, piece in enumerate(vocabulary)}), encoding="utf-8")
        elif name.endswith((".txt", ".tokenizer")):
            path.write_text("".join(f"{piece}\n" for piece in vocabulary), encoding="utf-8")
        else:
            continue
        files[argument] = str(path)
    more = {"langs": ["en", "de"]} if "langs" in inspect.signature(cls.__init__).parameters else {}
    return cls(**files, **more)
