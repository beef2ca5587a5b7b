"""The checkpoint of a model type, as Transformers would have published it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto

from llmkit.models.tables import HEADS, class_names, masked_lm_types, multimodal_class
from llmkit.tasks import Head
from tests.zoo.configs import POSITIONS, shrink
from tests.zoo.tokenizers import make_tokenizer

_ENCODER_DECODER: dict[str, Any] = {"is_decoder": True, "add_cross_attention": True}

_INDEXER = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 64,
    "indexer_compress_ratio": 4,
}
_SOUND = {"num_filters": 4, "depths": [1] * 7}

_THREE_AXES = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}

FACTS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}},
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dory": {
        "num_hidden_layers": 4,
        "n_input_layers": 1,
        "n_output_layers": 1,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "emu3": {
        "vocabulary_map": {"<image>": 5, "<|extra_200|>": 6},
        "vq_config": {"base_channels": 32, "channel_multiplier": [1, 1], "codebook_size": 64},
    },
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lilt": {"hidden_size": 48},  # six coordinates share it
    "mamba2": {"num_heads": 8},
    "nystromformer": {"num_landmarks": 64},  # as many as its segments, as in every published model
    "qwen2_vl": {"text_config": {"rope_parameters": _THREE_AXES}},
    "qwen4_exp": {"text_config": _INDEXER},
    "qwen4_exp_text": _INDEXER,
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {"axial_pos_shape": [16, 32], "axial_pos_embds_dim": [8, 24], "num_buckets": 8},
    "vibevoice_asr": {"acoustic_tokenizer_encoder_config": _SOUND, "semantic_tokenizer_encoder_config": _SOUND},
    "xlstm": {"qk_dim_factor": 2.0, "v_dim_factor": 2.0},  # a width that is a multiple of 64
    "flaubert": {"mask_token_id": 5},  # the default is the padding of these tiny tokenizers, and masked
    "xlm": {"mask_token_id": 5},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2},
}
"""Model type → settings that no name tells: mostly where a pattern of layers is given by numbers."""


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


def write_config(head: Head, model_type: str, folder: Path) -> None:
    """Write the config of a tiny checkpoint alone."""
    cls: Any = transformers.CONFIG_MAPPING[model_type]
    if model_type == "gemma4_assistant":  # its defaults contradict each other
        part = {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
        config = cls(text_config={"model_type": "gemma4_text", **part})
    elif model_type == "encoder-decoder":
        config = cls.from_encoder_decoder_configs(*(shrink(transformers.BertConfig) for _ in range(2)))
    else:
        config = shrink(cls, FACTS.get(model_type))
    config.architectures = [class_names(head)[model_type]]
    folder.mkdir(parents=True)
    config.to_json_file(folder / "config.json", use_diff=False)


def _model_class(head: Head, config: Any) -> Any:
    """The class of the head. A multimodal type is published whole, though the class of the head is its text side."""
    mapping = getattr(transformers, HEADS[head].auto_class)._model_mapping
    cls = _first(mapping[type(config)]) if type(config) in mapping else None
    whole = modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING
    if (cls is None or cls.config_class is not type(config)) and type(config) in whole:
        return _first(whole[type(config)])
    return cls


def _first(classes: Any) -> Any:
    return classes[0] if isinstance(classes, tuple) else classes


def class_of(head: Head, model_type: str) -> str:
    """The class that llmkit is to load a type with."""
    found = class_names(head).get(model_type) or multimodal_class(model_type)
    assert found is not None
    return found


def _config(head: Head, model_type: str, tokenizer: Any) -> Any:
    if model_type == "encoder-decoder":
        return _pair(tokenizer)
    config = shrink(transformers.CONFIG_MAPPING[model_type], FACTS.get(model_type))
    _set_tokens(config, tokenizer)
    if head is Head.CAUSAL and model_type in masked_lm_types() and not config.is_encoder_decoder:
        config.is_decoder = True
    return config


_SIZES_OF_VOCABULARY = (
    "decoder_vocab_size",
    "src_vocab_size",
    "tgt_vocab_size",
    "vocab_size_per_layer_input",
    "unpadded_vocab_size",
)


def _set_tokens(config: Any, tokenizer: Any) -> None:
    """The vocabulary and the special tokens, in every part that has one."""
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end
    named = {"vocab_size": len(tokenizer), "pad_token_id": pad, "bos_token_id": begin, "eos_token_id": end}
    if hasattr(config, "sep_token_id") and tokenizer.sep_token_id is not None:
        named["sep_token_id"] = tokenizer.sep_token_id
    for name, value in named.items():
        setattr(config, name, value)
    for name in _SIZES_OF_VOCABULARY:
        if hasattr(config, name):
            setattr(config, name, len(tokenizer))
    if config.is_encoder_decoder:
        config.decoder_start_token_id = pad
        for name, value in (("forced_eos_token_id", end), ("forced_bos_token_id", None)):
            if hasattr(config, name):
                setattr(config, name, value)
    for name in ("text_config", "encoder", "decoder", "encoder_config", "decoder_config", "patcher_config"):
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


NOT_TEXT: dict[tuple[str, str], str] = {
    ("causal", "gemma4_assistant"): "drafts for another model, whose hidden states it reads",
    ("causal", "gemma4_unified_assistant"): "drafts for another model, whose hidden states it reads",
    ("causal", "musicgen"): "reads and writes codes of sound, several a step",
    ("causal", "musicgen_melody"): "reads and writes codes of sound, several a step",
    ("seq2seq", "voxtral_realtime"): "writes a token for each stretch of sound that it hears",
    ("span", "layoutlmv2"): "needs images (and the package detectron2)",
    ("span", "layoutlmv3"): "its tokenizer reads words with their boxes on a page",
    ("span", "lxmert"): "needs features of images, and chooses among fixed answers",
    ("span", "markuplm"): "its tokenizer reads the nodes of a web page",
}
"""Head and type → why it cannot be used with text alone."""


_OFFSETS = "its tokenizer is written in Python and does not tell where its tokens stand in the text"
NO_OFFSETS = {("span", model_type): _OFFSETS for model_type in ("canine", "flaubert", "roc_bert", "xlm")}
"""Types whose answers llmkit cannot locate, as `llmkit inspect` says."""

REASONS = NOT_TEXT | NO_OFFSETS

KNOWN_FAILURES = {
    ("causal", "blt"): "Transformers 5.23 makes no cache for it: its config names no number of layers",
    ("causal", "ctrl"): "has no token that ends a text, and llmkit trains no model that cannot stop",
    ("causal", "doge"): "keeps the best keys of a row, chosen among padding and other examples too",
    ("causal", "gemma3n"): "Transformers builds its vision part with the package timm, which is not installed here",
    ("causal", "openai-gpt"): "has no token that ends a text, and llmkit trains no model that cannot stop",
    ("causal", "reformer"): "hashes by random rotations, and trains only on lengths that are multiples of its chunks",
    ("span", "ibert"): "its linear layers are a quantized class of its own, on which PEFT puts no adapter",
    ("span", "reformer"): "hashes by random rotations, and trains only on lengths that are multiples of its chunks",
    ("causal", "youtu"): "Transformers 5.23 zeroes the embedding of its padding token on every load",
}
"""Types that are not green, and why."""
