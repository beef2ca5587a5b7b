"""The context length of a checkpoint, from its config.json and tokenizer_config.json.

Knows the keys that configs use for it; how a model uses them is found in its source code (`upstream`). Does not read
files, and does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from llmkit.models.upstream import reads_setting, unused_positions

__all__ = ["ContextLength", "context_length"]

Config = Mapping[str, Any]


@dataclass(frozen=True)
class ContextLength:
    """The maximum input (of the encoder, in encoder-decoder models) in tokens, including special tokens."""

    tokens: int | None
    """None: unknown."""
    hard: bool
    """The model has no positions beyond it. If false, it is the training length, and longer inputs work."""

    def without(self, virtual_tokens: int) -> ContextLength:
        """The context that remains beside an adapter's virtual tokens, which occupy positions too."""
        return self if self.tokens is None else replace(self, tokens=max(0, self.tokens - virtual_tokens))


# The most reliable first: a config with several keeps the others for its own code.
_KEYS = (
    "max_position_embeddings",
    "max_encoder_position_embeddings",  # LED; its decoder has another limit
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_sequence_length",
    "seq_length",
    "model_max_length",
)
# Keys of the text model's config in models of several parts. The encoder's limit counts.
_PARTS = ("text_config", "encoder", "language_config", "llm_config", "thinker_config", "decoder")

# RoPE scalings whose factor extends max_position_embeddings. Configs with the others (llama3, longrope) state the
# scaled length.
_FROM_ORIGINAL = ("yarn", "deepseek_yarn")
_FROM_STATED = ("linear", "dynamic", "ntk")

# Tokenizers without a limit have 1e30; the longest real context is ten million.
_SANE = 100_000_000


def context_length(config: Config, tokenizer_config: Config | None = None) -> ContextLength:
    """The context length of a checkpoint, regardless of sliding windows and caches."""
    limit = _length((tokenizer_config or {}).get("model_max_length"))
    part = _text_part(config)
    stated = next((length for key in _KEYS if (length := _length(part.get(key)))), None)
    if stated is None or _is_soft(part):
        tokens = stated if limit is None else limit
        return ContextLength(tokens, hard=False)
    scaled = max(stated, _scaled_length(part, stated))
    if scaled > stated == limit and not _states_original(part):
        # Some configs state the scaled length beside the factor (DeepSeek Coder), which only the tokenizer shows.
        return ContextLength(stated, hard=False)
    usable = scaled - unused_positions(str(part.get("model_type")), part)
    # A tokenizer's limit that is a few tokens lower indicates unused positions in a model with its own code. A much
    # lower one is only the length of fine-tuning (DeepSeek-R1-Distill: 16,384 of 131,072).
    if limit is not None and 0 < usable - limit <= 4:
        usable = limit
    return ContextLength(usable, hard=True)


def _length(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _SANE:
        return None
    return int(value)


def _text_part(config: Config) -> Config:
    """The config that has the limit: the top level, or otherwise the first part that has it."""
    if any(_length(config.get(key)) for key in _KEYS):
        return config
    for name in _PARTS:
        part = config.get(name)
        if isinstance(part, Mapping) and any(_length((found := _text_part(part)).get(key)) for key in _KEYS):
            return found
    return config


def _ropes(config: Config) -> list[Config]:
    """RoPE parameters for each type of layer, in the form of version 4 (``rope_scaling``) or 5."""
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(rope, Mapping):
        return []
    by_layer = [value for value in rope.values() if isinstance(value, Mapping)]
    # Version 4 scaled only the layers with full attention if a config has another base for the local ones.
    local: list[Config] = [{}] if config.get("rope_local_base_freq") else []
    return (by_layer or [rope]) + local


def _original(config: Config, rope: Config) -> int | None:
    name = "original_max_position_embeddings"
    return _length(config.get(name)) or _length(rope.get(name))


def _states_original(config: Config) -> bool:
    return any(_original(config, rope) for rope in _ropes(config))


def _scaled_length(config: Config, stated: int) -> int:
    """The length with RoPE scaling, as computed by vLLM; 0 without scaling."""
    from_original, from_stated = [0], []
    for rope in _ropes(config):
        kind, factor = str(rope.get("rope_type") or rope.get("type") or "default"), rope.get("factor")
        factor = factor if isinstance(factor, int | float) and math.isfinite(factor) else 1.0
        length = int((_original(config, rope) or stated) * factor)
        from_stated.append(length if kind in _FROM_STATED else 0)
        if kind in _FROM_ORIGINAL:
            from_original.append(length)
    # A layer without scaling attends no further than before, unless the scaling states its original length.
    return max(*from_original, min(from_stated, default=0))


def _is_soft(config: Config) -> bool:
    if config.get("alibi") is True:
        return True
    # DeBERTa v2 and v3 clamp relative positions and have no absolute ones.
    if config.get("relative_attention") and config.get("position_biased_input") is False:
        return True
    # Relative positions or a recurrent state: the config states the training length.
    return not reads_setting(str(config.get("model_type")), _KEYS)
