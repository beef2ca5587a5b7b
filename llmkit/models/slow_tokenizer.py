"""The tokenizer.json that a folder lacks, as Transformers 4 made it from the files of a slow tokenizer.

Transformers 5 keeps version 4's converters and does not call them: it takes the pieces of a SentencePiece model, and
leaves its normalizer and its kind of model (unigram or BPE) to the code of each class. Knows SentencePiece models and
byte-level BPE (vocab.json and merges.txt), of which both versions have a converter.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.files import read_json
from llmkit.models.tokenizer_files import added_tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["arguments", "convert_slow"]

_MERGES = "merges.txt"


def convert_slow(cls: Any, folder: Path, settings: Mapping[str, Any]) -> Tokenizer | None:
    """The backend of a tokenizer without tokenizer.json; None where version 5 builds it as version 4 did.

    Args:
        settings: of tokenizer_config.json and special_tokens_map.json.
    """
    from transformers.convert_slow_tokenizer import SLOW_TO_FAST_CONVERTERS, SpmConverter

    converter: Any = SLOW_TO_FAST_CONVERTERS.get(cls.__name__)
    named = cls.vocab_files_names.get("vocab_file")  # which version 5 has forgotten for Gemma and XGLM
    file = folder / named if named else next(folder.glob("*.model"), None)
    if converter is None or file is None or not file.is_file():
        return None
    if issubclass(converter, SpmConverter):
        slow = _Slow(cls, file, settings, add_prefix_space=True)
        converter = type(converter.__name__, (converter,), {"tokenizer": _build_model(converter)})
    elif file.suffix == ".json" and (folder / _MERGES).is_file():
        slow = _Slow(cls, file, settings, add_prefix_space=False)
    else:
        return None
    try:
        backend: Tokenizer = converter(slow).converted()
    except _UnknownError:  # such as the languages of Whisper, which hears
        return None
    return backend


class _UnknownError(AttributeError):
    """A converter needs something that only the slow tokenizer of version 4 had."""


class _Slow:
    """What the converters ask of a slow tokenizer: its files, its settings, and the ids of its tokens."""

    def __init__(self, cls: Any, file: Path, settings: Mapping[str, Any], *, add_prefix_space: bool) -> None:
        self.vocab_file = str(file)
        self._added = added_tokens(file.parent, settings)
        self.backend: Tokenizer | None = None
        """The converted model, once it is there."""
        self.pieces: list[str] = []
        """Those of the SentencePiece model."""
        defaults = {name: value for name, value in arguments(cls).items() if value is not inspect.Parameter.empty}
        self._settings = defaults | {"add_prefix_space": add_prefix_space, "legacy": True} | _texts_of_tokens(settings)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name.removesuffix("_id") not in self._settings:
            raise _UnknownError(name)
        value = self._settings[name.removesuffix("_id")]
        return self.convert_tokens_to_ids(value) if name.endswith("_token_id") else value

    @cached_property
    def encoder(self) -> dict[str, int]:
        file = Path(self.vocab_file)
        return dict(read_json(file)) if file.suffix == ".json" else {}

    @cached_property
    def bpe_ranks(self) -> dict[tuple[str, ...], int]:
        lines = (Path(self.vocab_file).parent / _MERGES).read_text(encoding="utf-8").split("\n")
        merges = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
        return {merge: rank for rank, merge in enumerate(merges)}

    @property
    def _extra_ids(self) -> int:
        return int(self._settings["extra_ids"])

    def convert_tokens_to_ids(self, token: str) -> int:
        if token in self._added:
            return self._added[token]
        known = self.backend.token_to_id if self.backend else self.encoder.get
        return known(token) or 0

    def convert_ids_to_tokens(self, token: int) -> str:
        return next((text for text, number in self._added.items() if number == token), self.pieces[token])


def _texts_of_tokens(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the text of each token that was saved with its properties."""
    texts = {
        name: value["content"] if isinstance(value, Mapping) and "content" in value else value
        for name, value in settings.items()
    }
    return {name: value for name, value in texts.items() if value not in (None, "")}


def _build_model(converter: Any) -> Any:
    def tokenizer(self: Any, proto: Any) -> Tokenizer:
        from tokenizers import AddedToken, Tokenizer, models
        from transformers.tokenization_utils_base import generate_merges

        self.original_tokenizer.pieces = [piece.piece for piece in proto.pieces]
        if proto.trainer_spec.model_type != 2:
            built: Tokenizer = converter.tokenizer(self, proto)
        else:  # which version 5 does not finish
            scores = self.vocab(proto)
            vocabulary = {piece: number for number, (piece, _) in enumerate(scores)}
            merges = generate_merges({piece.piece: number for number, piece in enumerate(proto.pieces)}, scores)
            model = models.BPE(
                vocabulary,
                merges,
                unk_token=proto.trainer_spec.unk_piece,
                fuse_unk=True,
                byte_fallback=self.handle_byte_fallback,
            )
            built = Tokenizer(model)
            for piece in proto.pieces:
                if piece.type in (3, 4):  # control tokens, user-defined symbols
                    special = piece.type == 3 or piece.piece in self.special_tokens
                    built.add_tokens([AddedToken(piece.piece, normalized=False, special=special)])
        self.original_tokenizer.backend = built
        return built

    return tokenizer


def arguments(cls: type) -> dict[str, Any]:
    """The arguments of a constructor with their defaults, those that it passes on to the classes above it too."""
    found: dict[str, Any] = {}
    for each in reversed(cls.__mro__):
        if "__init__" in vars(each) and each is not object:
            found |= {name: item.default for name, item in inspect.signature(vars(each)["__init__"]).parameters.items()}
    return found
