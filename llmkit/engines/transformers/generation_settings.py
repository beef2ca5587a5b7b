"""The GenerationConfig of a call: the model's own, overridden by the caller's settings."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING

from llmkit.config.settings import GenerationSettings
from llmkit.errors import UsageError
from llmkit.heads.end_tokens import text_ends
from llmkit.log import warn

if TYPE_CHECKING:
    from transformers import GenerationConfig

    from llmkit.models.load import Loaded

__all__ = ["generation_config"]


def generation_config(
    loaded: Loaded,
    settings: GenerationSettings,
    max_new_tokens: int,
    forced_bos_token_id: int | None = None,
    ends: Iterable[int] = (),
) -> GenerationConfig:
    """The model's own generation_config, overridden by the caller's settings; ``ends`` are additional end tokens."""
    config = copy.deepcopy(loaded.model.generation_config)
    config.max_length = None  # max_new_tokens counts the output alone, whatever the prompt's length
    config.max_new_tokens = max_new_tokens
    if settings.min_new_tokens is not None:
        config.min_length = None
        config.min_new_tokens = min(settings.min_new_tokens, max_new_tokens)
    if forced_bos_token_id is not None:
        config.forced_bos_token_id = forced_bos_token_id
    for name in ("repetition_penalty", "no_repeat_ngram_size", "num_beams", "length_penalty"):
        if getattr(settings, name) is not None:
            setattr(config, name, getattr(settings, name))
    config.num_return_sequences = settings.num_return_sequences
    _set_sampling(config, settings)
    _refuse_without_effect(config, settings)
    if not config.do_sample:
        config.temperature = config.top_p = config.top_k = config.min_p = None
    config.eos_token_id = sorted(text_ends(loaded) | set(ends)) or None
    if (config.min_length or 0) > max_new_tokens:
        _warn_lowered(config.min_length or 0, max_new_tokens)
        config.min_length = max_new_tokens
    return config


@cache
def _warn_lowered(own: int, longest: int) -> None:
    warn("setting_adjusted", "the model's own min_length %d is lowered to %d", own, longest)


def _set_sampling(config: GenerationConfig, settings: GenerationSettings) -> None:
    """Greedy or sampling, by the caller's settings or else the model's own."""
    if settings.temperature == 0:
        config.do_sample = False
    elif settings.samples:
        config.do_sample = True
        for name in ("temperature", "top_p", "top_k", "min_p"):
            if getattr(settings, name) is not None:
                setattr(config, name, getattr(settings, name))
        if config.top_k is None:
            config.top_k = 0  # Transformers would silently use 50


def _refuse_without_effect(config: GenerationConfig, settings: GenerationSettings) -> None:
    """Remove the model's own settings that only apply to beam search or sampling when it is not used."""
    beams = config.num_beams or 1
    if settings.num_return_sequences > beams and (beams > 1 or not config.do_sample):
        raise UsageError(
            f"num_return_sequences={settings.num_return_sequences} would give the same text each time",
            "sample (temperature above 0) or use at least as many beams (num_beams)",
        )
    if settings.length_penalty is not None and beams == 1:
        raise UsageError("length_penalty only applies to beam search", "set num_beams above 1", code="no_effect")
