"""From a folder to the tokenizer that the checkpoint was trained with.

Transformers 5 builds many tokenizers anew by code of their class, and takes little more than the vocabulary from
tokenizer.json. Where the two differ the file counts here, as it did in version 4: the model has seen what it says.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

__all__ = ["load_tokenizer"]

_MODEL = '\n  "model": {'
"""How tokenizers writes the start of the vocabulary, which comes last and is nearly all of the file."""


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False, **kwargs: Any) -> PreTrainedTokenizerBase:
    """`AutoTokenizer.from_pretrained` for a local folder.

    Args:
        kwargs: for ``from_pretrained``.
    """
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=trust_remote_code, **kwargs
    )
    file = folder / "tokenizer.json"
    if tokenizer.is_fast and file.is_file() and "gguf_file" not in kwargs:
        _as_written(tokenizer, file)
    loaded: PreTrainedTokenizerBase = tokenizer
    return loaded


def _as_written(tokenizer: Any, file: Path) -> None:
    """Cut texts as the file says where that is SentencePiece's way, and join pairs as it says.

    mBART has no normalizer in version 5, and DeBERTa two separators between the texts of a pair.
    """
    written, backend = _without_vocabulary(file), tokenizer.backend_tokenizer
    if "Metaspace" in str(written.pre_tokenizer):
        for part in ("normalizer", "pre_tokenizer", "decoder"):
            setattr(backend, part, getattr(written, part))
    own, other = backend.post_processor, written.post_processor
    if own is None or other is None:
        return
    # Settings and languages may put marks of their own around a text: the file's way counts where one text is alike.
    text = backend.encode("a", add_special_tokens=False)
    if own.process(text).ids == other.process(text).ids:
        backend.post_processor = other


def _without_vocabulary(file: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    text = file.read_text(encoding="utf-8")
    head, found, vocabulary = text.rpartition(_MODEL)
    last = found and '\n  "' not in vocabulary
    parts = json.loads(f"{head.rstrip().removesuffix(',')}}}" if last else text)
    parts |= {"added_tokens": [], "model": {"type": "WordLevel", "vocab": {}, "unk_token": ""}}
    return Tokenizer.from_str(json.dumps(parts))
