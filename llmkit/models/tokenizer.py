"""From a folder to the tokenizer that the checkpoint was trained with.

Transformers 5 rebuilds most tokenizers from their vocabulary, by code of their class. Version 4 loaded tokenizer.json
and then applied a few settings of tokenizer_config.json. The model was trained with what version 4 made of its files,
so this module loads the file too, and applies the same settings.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.errors import CheckpointError
from llmkit.files import check_encoding, read_json
from llmkit.models.families import FRAMED
from llmkit.models.slow_tokenizer import arguments, convert_slow
from llmkit.models.tokenizer_files import has_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["load_tokenizer"]

_MODEL = '\n  "model": {'
"""How tokenizers writes the start of the vocabulary, which comes last and is nearly all of the file."""

_PARTS = ("normalizer", "pre_tokenizer", "decoder", "post_processor")


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False, **kwargs: Any) -> PreTrainedTokenizerBase:
    """`AutoTokenizer.from_pretrained` for a local folder.

    Args:
        kwargs: for ``from_pretrained``.
    """
    from transformers import AutoTokenizer

    config = _read(folder / "tokenizer_config.json")
    kwargs = _listed_tokens(folder, config) | kwargs
    file = folder / _file_name(config)
    other = "gguf_file" in kwargs or (config.get("auto_map") and trust_remote_code)
    cls = None if other else _find_class(folder, config)
    kwargs = _named_tokens(cls, config) | kwargs
    if cls is not None and file.is_file():
        check_encoding(file)
        tokenizer: Any = _from_file(cls, folder, kwargs)
        _restore(tokenizer, _without_vocabulary(file), config, kwargs)
    elif cls is not None and (backend := convert_slow(cls, folder, _texts(folder) | config | kwargs)) is not None:
        tokenizer = _from_file(cls, folder, kwargs | {"tokenizer_object": backend})
        _restore(tokenizer, _emptied(json.loads(backend.to_str())), config, kwargs)
        # A token of the vocabulary that added_tokens.json lists too loses its properties.
        kept = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        lost = [token for token in backend.get_added_tokens_decoder().values() if token.content not in kept]
        tokenizer.backend_tokenizer.add_special_tokens([token for token in lost if token.special])
    elif cls is not None and any((folder / name).is_file() for name in cls.vocab_files_names.values()):
        tokenizer = cls.from_pretrained(folder, local_files_only=True, **kwargs)
    elif cls is not None and not has_vocabulary(folder):
        # Transformers 5 would make a tokenizer of the special tokens alone, which loses every text.
        raise CheckpointError(
            f"{folder} has no vocabulary of a tokenizer (tokenizer.json, {', '.join(_own_files(cls))})",
            "copy or download the missing file",
            code="incomplete_checkpoint",
        )
    else:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code, **kwargs
        )
    if tokenizer.chat_template is None:
        tokenizer.chat_template = _read(folder / "chat_template.json").get("chat_template")  # a processor's file
    loaded: PreTrainedTokenizerBase = tokenizer
    return loaded


def _own_files(cls: Any) -> list[str]:
    return [name for name in cls.vocab_files_names.values() if name != "tokenizer.json"] or ["tokenizer.model"]


def _from_file(cls: Any, folder: Path, kwargs: dict[str, Any]) -> Any:
    """A tokenizer of a class, with the backend of its file: Transformers loads it for classes without a constructor."""
    from transformers import PreTrainedTokenizerFast

    content: dict[str, Any] = {"__module__": cls.__module__}
    if "tokenizer_object" in kwargs:  # there is nothing to convert
        content["convert_to_native_format"] = classmethod(_unconverted)
    for known in (cls, PreTrainedTokenizerFast):
        subclass: Any = type(known.__name__, (known,), content)
        try:
            tokenizer = subclass.from_pretrained(folder, local_files_only=True, **kwargs)
        except (ValueError, TypeError):  # Pegasus: a constructor that needs the vocabulary
            continue
        tokenizer.__class__ = known
        break
    return tokenizer


def _unconverted(_: Any, /, *, trust_remote_code: bool = False, **kwargs: Any) -> dict[str, Any]:  # noqa: ARG001
    return kwargs


def _read(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _listed_tokens(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Special tokens of special_tokens_map.json that are listed with their properties: version 5 takes texts only."""
    from tokenizers import AddedToken

    lists = {
        name: value for name, value in _read(folder / "special_tokens_map.json").items() if isinstance(value, list)
    }
    if "added_tokens_decoder" in config:  # which version 5 takes instead
        return {}
    return {
        name: [AddedToken(**each | {"special": True}) if isinstance(each, dict) else each for each in tokens]
        for name, tokens in lists.items()
    }


def _texts(folder: Path) -> dict[str, Any]:
    return {name: token for name, token in _read(folder / "special_tokens_map.json").items() if token}


def _named_tokens(cls: Any, config: dict[str, Any]) -> dict[str, Any]:
    """The class's own special tokens where the config has empty texts (LLaMA 1)."""
    empty = [name for name, text in config.items() if name.endswith("_token") and text == ""]
    return {name: arguments(cls).get(name) for name in empty} if cls is not None else {}


def _file_name(config: dict[str, Any]) -> str:
    from transformers.tokenization_utils_base import get_fast_tokenizer_file

    return str(get_fast_tokenizer_file(config.get("fast_tokenizer_files", [])))


def _find_class(folder: Path, config: dict[str, Any]) -> Any:
    """The class that the files name, else that of the model's type; None where `AutoTokenizer` has to decide."""
    from transformers import PreTrainedTokenizerFast
    from transformers.models.auto.auto_mappings import CONFIG_MAPPING_NAMES
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name

    model = _read(folder / "config.json")
    named = config.get("tokenizer_class") or model.get("tokenizer_class")
    cls = tokenizer_class_from_name(str(named)) if named else None
    if cls is None:  # also of a class that version 5 no longer has (MT5Tokenizer)
        model_type = str(model.get("model_type"))
        family = CONFIG_MAPPING_NAMES.get(model_type, "").removesuffix("Config")
        cls = tokenizer_class_from_name(TOKENIZER_MAPPING_NAMES.get(model_type) or f"{family}Tokenizer")
    return cls if cls is not None and issubclass(cls, PreTrainedTokenizerFast) else None


def _restore(tokenizer: Any, parts: dict[str, Any], config: dict[str, Any], kwargs: dict[str, Any]) -> None:
    """Undo what the constructor of the class changed in its file, and apply the settings that version 4 applied."""
    from tokenizers import Tokenizer

    by_4 = "backend" not in config  # version 5 writes it, and what it writes needs no settings
    if by_4:
        _apply_settings(type(tokenizer), parts, config | kwargs)
    backend = tokenizer.backend_tokenizer
    file = Tokenizer.from_str(json.dumps(parts))
    # The language of the text is set by the class.
    keep = hasattr(tokenizer, "set_src_lang_special_tokens")
    for name in _PARTS:
        if name != "post_processor" or not keep:
            setattr(backend, name, getattr(file, name))
    if {"add_bos_token", "add_eos_token"} & kwargs.keys() or (by_4 and type(tokenizer).__name__ in FRAMED):
        _frame(tokenizer, config | kwargs)


def _apply_settings(cls: type, parts: dict[str, Any], settings: dict[str, Any]) -> None:
    """Change the parts of a file as version 4 did when it loaded them."""
    normalizer, pre_tokenizer, post_processor = (parts[name] or {} for name in _PARTS if name != "decoder")
    if normalizer.get("type") == "BertNormalizer" and "tokenize_chinese_chars" in arguments(cls):
        normalizer["lowercase"] = settings.get("do_lower_case", True)
        normalizer["strip_accents"] = settings.get("strip_accents")
        normalizer["handle_chinese_chars"] = settings.get("tokenize_chinese_chars", True)
    default = None if cls.__name__ in FRAMED and arguments(cls).get("add_prefix_space", ...) is None else False
    prefix = settings.get("add_prefix_space", default)
    if prefix is not None and "add_prefix_space" in pre_tokenizer:
        pre_tokenizer["add_prefix_space"] = prefix
    if "trim_offsets" in arguments(cls) and "trim_offsets" in post_processor:
        post_processor["trim_offsets"] = settings.get("trim_offsets", True)
        post_processor["add_prefix_space"] = bool(prefix)


def _frame(tokenizer: Any, settings: dict[str, Any]) -> None:
    """Add the first and the last token of a text according to the settings."""
    begins = settings.get("add_bos_token", FRAMED.get(type(tokenizer).__name__, False))
    tokenizer.add_bos_token = begins and tokenizer.bos_token is not None
    tokenizer.add_eos_token = settings.get("add_eos_token", False) and tokenizer.eos_token is not None


def _without_vocabulary(file: Path) -> dict[str, Any]:
    """The content of a tokenizer.json, with an empty vocabulary."""
    text = file.read_text(encoding="utf-8")
    head, found, vocabulary = text.rpartition(_MODEL)
    last = found and '\n  "' not in vocabulary
    parts: dict[str, Any] = json.loads(f"{head.rstrip().removesuffix(',')}}}" if last else text)
    return _emptied(parts)


def _emptied(parts: dict[str, Any]) -> dict[str, Any]:
    return parts | {"added_tokens": [], "model": {"type": "WordLevel", "vocab": {}, "unk_token": ""}}
