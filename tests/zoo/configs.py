"""A small config of any class, from the names of its fields: what a size is called tells what it is the size of.

Fields without a default are left to the class, which derives them from the others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

WIDTH, HEADS, HEAD, INNER, POSITIONS, WINDOW, EXPERTS, STATE = 32, 4, 8, 32, 512, 16, 4, 8

# The first pattern that a whole name matches gives the size. What matches none keeps its default.
_SIZES: tuple[tuple[str, int], ...] = (
    (r"hidden_size_per_layer_input|xpath_unit_hidden_size|d_rel", HEAD),
    (r"num_kv_shared_layers", 0),
    (r"n_layers_per_attn_res_block|num_adapter_layers|num_mem_blocks", 1),
    (r"(.*_)?(num_hidden_layers|n_layers?|num_layers|layers|num_blocks|depth)|num_(en|de)coder_layers", 2),
    (r"linear_num_key_heads|.*index_n_heads|swa_num_key_value_heads", 2),
    (r"n_mamba_heads|mamba_num_heads|mamba_n_heads", 8),
    (r"(.*_)?(attention_heads|n_heads?|num_heads|num_value_heads)", HEADS),
    (r"index_head_dim", 16),
    (r"(.*_)?(head_dim|d_kv|d_head|dim_head|kv_channels|attention_head_size|rotary_dim|headdim|lora_rank|rank)", HEAD),
    (r"(.*_)?(lowrank|state_size|d_state)", STATE),
    (r"mamba_d_ssm", 2 * WIDTH),
    (r"(.*_)?(hidden_size|d_model|n_embd|dim|emb_dim|embed_dim|embedding_dim|bottleneck_size)", WIDTH),
    (r"(.*_)?(emb_size|embedding_size)", WIDTH),
    (r"dim_model_base|lru_width|prediction_head_size|word_embed_proj_dim|hidden_size_global|adapter_input_size", WIDTH),
    (r"(.*_)?(intermediate_size|ffn_dim|d_ff|d_inner|dff|dim_ff|hidden_dim|feed_forward_size|mid_dim|size_mlp)", INNER),
    (r"(.*_)?(num_experts|num_local_experts|n_routed_experts)|zero_expert_num", EXPERTS),
    (r"num_experts_per_tok(en)?|moe_topk|moe_k|n_group|num_expert_group", 2),
    (r"topk_group|.*_shared_experts|first_k_dense_replace|num_dense_layers", 1),
    (r"(.*_)?index_topk", 64),
    (r"(.*_)?(max_position_embeddings|n_positions|n_ctx|max_(source|target)_positions)", POSITIONS),
    (r"max_seq_len|context_length", POSITIONS),
    (r"max_(en|de)coder_position_embeddings|model_max_length|seq_length", POSITIONS),
    (r"sliding_window(_size)?|window_size|.*attention_window(_size|_len)?|local_attention|keep_window_size", WINDOW),
    (r"attention_chunk_size|mamba_chunk_size|chunk_size|block_size|.*_attn_chunk_length|num_landmarks", WINDOW),
    (r"(entity|shape|pronunciation|char|t2u|unit_hifi_gan)_vocab_size|encoder_hash_byte_group_vocab", 64),
    (r"num_hash_buckets|ngram_vocab_size_base", 64),
)  # fmt: skip
_PATTERNS = [(re.compile(pattern), size) for pattern, size in _SIZES]
_NO_NOISE = re.compile(r"(.*_)?(dropout|drop|pdrop|layerdrop|dropout_prob|router_jitter_noise)(_\w+)?")

INITIALIZER_RANGE = 0.2
"""Wide, so that greedy choices differ clearly from row to row and rounding cannot flip one."""


def shrink(cls: Any, given: Mapping[str, Any] | None = None) -> Any:
    """A config of the class in which every size is small.

    Args:
        given: fields that are set as they are; a part's (``text_config``) as a mapping of its own.
    """
    given = dict(given or {})
    settings: dict[str, Any] = {}
    for name, default in _defaults(cls).items():
        small = _small(name, default)
        if small is not None:
            settings[name] = small
    whole = cls()  # its own defaults tell the classes of its parts and its pattern of layers
    settings |= _heads(cls, whole)
    settings |= _layers(cls, whole)
    for name in cls.sub_configs:
        part = getattr(whole, name, None)
        if part is not None:
            settings[name] = shrink(type(part), given.pop(name, None))
    return cls(**{**settings, **given})


def _defaults(cls: Any) -> dict[str, Any]:
    found = {}
    for field in fields(cls):
        if field.default is not MISSING:
            found[field.name] = field.default
        elif field.default_factory is not MISSING:
            found[field.name] = field.default_factory()
    return found


def _small(name: str, default: Any) -> Any:
    if name == "initializer_range" or (name.endswith("init_std") and isinstance(default, float)):
        return INITIALIZER_RANGE
    if isinstance(default, float) and _NO_NOISE.fullmatch(name):
        return 0.0
    if isinstance(default, bool) or not isinstance(default, int) or default <= 0:
        return None
    size = next((size for pattern, size in _PATTERNS if pattern.fullmatch(name)), None)
    return None if size is None else min(size, default)


def _heads(cls: Any, whole: Any) -> dict[str, int]:
    """Half as many heads of keys and values where the class has fewer of them than of queries.

    What the class neither states nor derives is set too, since its model needs it.
    """
    defaults = _defaults(cls)
    found = {
        name: size
        for name, size in (("head_dim", HEAD), ("num_key_value_heads", HEADS))
        if name in defaults and vars(whole).get(name) is None
    }
    many, few = defaults.get("num_attention_heads"), defaults.get("num_key_value_heads")
    if isinstance(many, int) and isinstance(few, int):
        found["num_key_value_heads"] = 1 if few == 1 else HEADS if few == many else HEADS // 2
    return found


_KINDS = ("layer_types", "layers_block_type", "mlp_layer_types")


def _layers(cls: Any, whole: Any) -> dict[str, Any]:
    """One layer of each kind that a model of the class has, two at least."""
    lists = {name: list(value) for name in _KINDS if isinstance(value := getattr(whole, name, None), list) and value}
    names = {field.name for field in fields(cls)}
    lists = {name: value for name, value in lists.items() if name in names}
    if not lists:
        return {}
    kinds = list(zip(*lists.values(), strict=False))
    chosen = sorted({kind: place for place, kind in reversed(list(enumerate(kinds)))}.values())
    if len(chosen) == 1:
        chosen *= 2
    chosen = chosen[:4]
    found: dict[str, Any] = {name: [value[place] for place in chosen] for name, value in lists.items()}
    count = next((name for name in ("num_hidden_layers", "num_layers", "n_layers") if name in names), None)
    return found | ({count: len(chosen)} if count else {})
