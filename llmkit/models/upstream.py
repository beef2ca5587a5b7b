"""Facts about model types and tokenizer classes, parsed from the source of Transformers without importing it.

Importing a class loads torch (2 s), and some things no attribute tells; reading a file takes a millisecond. Knows the
forms in which Transformers writes such things, and no model type by name. What it cannot read it answers as of a type
that Transformers does not have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from llmkit.models.tables import config_class, model_types, module_name, package

__all__ = [
    "has_offsets",
    "lets_packed_examples_leak",
    "needs_vocabulary",
    "reads_setting",
    "tokenizer_class",
    "type_of_gguf",
    "unused_positions",
]


@cache
def _source(model_type: str, kind: str) -> str:
    """The modules of a type that name its config: ``modeling`` or ``configuration``. Empty for an unknown type."""
    name, folder = config_class(model_type), package() / "models" / module_name(model_type)
    texts = (path.read_text(encoding="utf-8") for path in sorted(folder.glob(f"{kind}_*.py")))
    return "\n".join(text for text in texts if name in text) if name else ""


def reads_setting(model_type: str, names: tuple[str, ...]) -> bool:
    """Whether the model, or a part of it, reads one of the settings: some are only a record of the training."""
    source = _source(model_type, "modeling")
    in_parts = not source or "AutoModel.from_config(" in source
    return in_parts or re.search(rf"onfig\.({'|'.join(names)})\b", source) is not None


def unused_positions(model_type: str, config: Mapping[str, Any]) -> int:
    """How many rows of the position table are never used: RoBERTa's kind counts from padding_idx + 1."""
    source = _source(model_type, "modeling")
    table = re.search(r"(?<!Positional)Embedding\(\s*config\.max_position_embeddings", source)
    if not table or "create_position_ids_from_input_ids(" not in source:
        return 0
    if "position_embedding_type" in source and config.get("position_embedding_type", "absolute") != "absolute":
        return 0
    fixed = re.search(r"self\.padding_idx = (\d+)", source)
    padding = fixed[1] if fixed else config.get("pad_token_id", _default(model_type, "pad_token_id"))
    return 0 if padding is None else int(padding) + 1


def _default(model_type: str, setting: str) -> str | None:
    """The number of a setting that config.json leaves out, as Transformers does with defaults."""
    _, _, source = _source(model_type, "configuration").partition(f"class {config_class(model_type)}(")
    found = re.search(rf"^    {setting}: .*= (\d+)$", source.partition("\nclass ")[0], re.MULTILINE)
    return found[1] if found else None


def lets_packed_examples_leak(model_type: str) -> bool:
    """Whether positions do not reach the masks of a decoder, so that packed examples see each other.

    True is sure. False is not (states and convolutions leak past any mask): training tries it.
    """
    source = _source(model_type, "modeling")
    masks = re.findall(r"create_causal_mask\(\s*(.*?)\n\s*\)", source, re.DOTALL)
    return bool(source) and not any("position_ids" in mask for mask in masks or [source])


def type_of_gguf(architecture: str) -> str:
    """The model type for an architecture of GGUF files, which hold the text side of a model alone.

    Both are spelled from one name (qwen2moe, gpt-oss). Transformers has no table of them, only code with conditions.
    """
    types = {re.sub("[-_.]", "", model_type): model_type for model_type in model_types()}
    plain = re.sub("[-_.]", "", architecture)
    return types.get(f"{plain}text") or types.get(plain, architecture)


# Tokenizers.


def tokenizer_class(model_type: str) -> str:
    """The class for a type where no file names one; empty where Transformers has none."""
    text = (package() / "models" / "auto" / "tokenization_auto.py").read_text(encoding="utf-8")
    found = re.search(rf'\("{re.escape(model_type)}", "(\w+)"', text)
    return found[1] if found else ""


@cache
def _tokenizer_source(name: str) -> str:
    """The module that defines a class; empty for a class that Transformers does not have."""
    files = sorted((package() / "models").glob("*/tokenization_*.py"))
    texts = (path.read_text(encoding="utf-8") for path in files)
    return next((text for text in texts if f"class {name}(" in text), "") if name else ""


def has_offsets(tokenizer: str) -> bool:
    """Whether a class gives each token's place in the text; those without the library of tokenizers do not."""
    own = rf"^class {re.escape(tokenizer)}\((PreTrainedTokenizer|SentencePieceBackend)\)"
    return re.search(own, _tokenizer_source(tokenizer), re.MULTILINE) is None


def needs_vocabulary(tokenizer: str) -> bool:
    """Whether a class reads a vocabulary, and does not count bytes or characters."""
    return has_offsets(tokenizer) or "vocab_files_names" in _tokenizer_source(tokenizer)
