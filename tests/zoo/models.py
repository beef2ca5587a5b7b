"""The checkpoint of a model type, as Transformers would have published it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto

from llmkit.models.tables import AUTO_CLASSES, class_names, masked_lm_types
from llmkit.tasks import Head
from tests.zoo.configs import POSITIONS, shrink
from tests.zoo.tokenizers import make_tokenizer

_ENCODER_DECODER: dict[str, Any] = {"is_decoder": True, "add_cross_attention": True}

FACTS: dict[str, dict[str, Any]] = {}
"""Model type → settings that no name tells."""


def build(head: Head, model_type: str, folder: Path) -> Any:
    """Write a tiny checkpoint of a type with a head, and return its model."""
    tokenizer = make_tokenizer(model_type, folder.parent / f"{folder.name}-tokenizer")
    config = _config(head, model_type, tokenizer)
    torch.manual_seed(0)
    model = _model_class(head, config)._from_config(config)
    model.save_pretrained(folder)
    tokenizer.model_max_length = POSITIONS
    tokenizer.save_pretrained(folder)
    return model


def _model_class(head: Head, config: Any) -> Any:
    """The class of the head. A multimodal type is published whole, though the class of the head is its text side."""
    mapping = getattr(transformers, AUTO_CLASSES[head])._model_mapping
    cls = mapping[type(config)]
    cls = cls[0] if isinstance(cls, tuple) else cls
    if cls.config_class is not type(config):
        for table in (modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING):
            if type(config) in table:
                whole = table[type(config)]
                return whole[0] if isinstance(whole, tuple) else whole
    return cls


def _config(head: Head, model_type: str, tokenizer: Any) -> Any:
    if model_type == "encoder-decoder":
        return _pair(tokenizer)
    config = shrink(transformers.CONFIG_MAPPING[model_type], FACTS.get(model_type))
    _set_tokens(config, tokenizer)
    if head is Head.CAUSAL and model_type in masked_lm_types() and not config.is_encoder_decoder:
        config.is_decoder = True
    return config


def _set_tokens(config: Any, tokenizer: Any) -> None:
    """The vocabulary and the special tokens, in every part that has one."""
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end
    named = {"vocab_size": len(tokenizer), "pad_token_id": pad, "bos_token_id": begin, "eos_token_id": end}
    sizes = ("decoder_vocab_size", "src_vocab_size", "tgt_vocab_size", "vocab_size_per_layer_input", "unpadded_vocab_size")
    for name, value in named.items():
        setattr(config, name, value)
    for name in sizes:
        if hasattr(config, name):
            setattr(config, name, len(tokenizer))
    if config.is_encoder_decoder:
        config.decoder_start_token_id = pad
        for name, value in (("forced_eos_token_id", end), ("forced_bos_token_id", None)):
            if hasattr(config, name):
                setattr(config, name, value)
    for name in ("text_config", "encoder", "decoder"):
        part = getattr(config, name, None)
        if isinstance(part, transformers.PreTrainedConfig):
            _set_tokens(part, tokenizer)


def _pair(tokenizer: Any) -> Any:
    """Two BERTs, as Rothe et al. (2020) have them."""
    encoder, decoder = shrink(transformers.BertConfig), shrink(transformers.BertConfig, _ENCODER_DECODER)
    for part in (encoder, decoder):
        _set_tokens(part, tokenizer)
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id = tokenizer.cls_token_id
    config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.sep_token_id
    return config


def every_type() -> list[tuple[Head, str]]:
    """Each head with each type of its mapping."""
    return [(head, model_type) for head in Head for model_type in class_names(head)]


NOT_TEXT: dict[tuple[str, str], str] = {}
"""Head and type → why it cannot be used with text alone."""
