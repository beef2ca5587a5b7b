"""The generation settings of a loaded model: built from the checkpoint's files and fitted to model and tokenizer."""

from __future__ import annotations

import contextlib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.errors import CheckpointError
from llmkit.log import log, warn
from llmkit.models.generation_settings import (
    FIELDS,
    FILE,
    ONLY_SPEED,
    TOKEN_SETTINGS,
    Cleaned,
    clean,
    fit_vocabulary,
    read_settings,
)

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "apply_settings",
    "cache_name",
    "generation_config",
    "set_ends",
    "settle_tokens",
    "tokenizer_end",
    "vocabulary_rows",
    "without_own_settings",
]


def vocabulary_rows(model: Any) -> int | None:
    """Number of tokens that a model can encode and generate; None if unknown."""
    counts = []
    for layer in (model.get_input_embeddings, model.get_output_embeddings):
        with contextlib.suppress(NotImplementedError, AttributeError):
            found = layer()
            count = getattr(found, "num_embeddings", None) or getattr(found, "out_features", None)
            counts += [int(count)] if count else []
    return min(counts, default=None)


def settle_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Replace tokens that a loaded model lacks in its generation settings, and log each change.

    If no end token is left, the tokenizer's (the separator in BERT's vocabularies) is used.
    """
    config = getattr(model, "generation_config", None)
    if config is None:
        return
    rows = vocabulary_rows(model)
    own: dict[str, Any] = {name: getattr(config, name, None) for name in TOKEN_SETTINGS}
    fitted = fit_vocabulary(own, rows, tokenizer.get_vocab().get)
    notes = list(fitted.notes)
    values = {name: fitted.values.get(name) for name in own}
    if values["eos_token_id"] is None and own["eos_token_id"] is not None:
        values["eos_token_id"] = end = tokenizer_end(tokenizer, rows)
        notes.append(
            "without an end token, output runs to `max_new_tokens`; add eos_token to tokenizer_config.json"
            if end is None
            else f"the tokenizer's {tokenizer.convert_ids_to_tokens(end)} ({end}) is the end token instead"
        )
    for name in ("decoder_start_token_id", "bos_token_id") if model.config.is_encoder_decoder else ():
        start = getattr(model.config, name, None)
        begins = values["decoder_start_token_id"] is not None or values[name] is not None
        if not begins and isinstance(start, int) and (rows is None or start < rows):
            values[name] = start
            notes.append(f"{name} {start} is taken from config.json")
    if values["eos_token_id"] is None and config.exponential_decay_length_penalty is not None:
        config.exponential_decay_length_penalty = None
        notes.append("exponential_decay_length_penalty has no effect without an end token")
    if model.config.is_encoder_decoder and config.guidance_scale is not None:
        config.guidance_scale = None
        notes.append("guidance_scale has no effect on a model with an encoder")
    for name, value in values.items():
        setattr(config, name, value)
    _keep_savable(config)
    notes += _note_unused(config, model)
    for note in notes:
        warn("setting_ignored", "%s: %s", folder / FILE, note)


def set_ends(config: GenerationConfig, ends: list[int]) -> None:
    """Make generation stop at these tokens."""
    if ends:
        config.eos_token_id = ends if len(ends) > 1 else ends[0]
        _keep_savable(config)


def _keep_savable(config: Any) -> None:
    """Let Transformers save changed settings: it otherwise refuses those with combinations that have no effect."""
    config._original_object_hash = hash(config)  # noqa: SLF001


def _note_unused(config: Any, model: Any) -> list[str]:
    """A note on settings that neither Transformers nor the code of the model's class uses."""
    names = [name for name in vars(config) if name not in FIELDS and not name.startswith("_")]
    built = model.get_base_model() if hasattr(model, "get_base_model") else model
    module = sys.modules.get(type(built).__module__)
    if not names or module is None or getattr(model.config, "auto_map", None):
        return []
    code = inspect.getsource(module)
    unread = ", ".join(name for name in names if not re.search(rf"\b{re.escape(name)}\b", code))
    return [f"Transformers has no setting {unread}, which has no effect"] if unread else []


def tokenizer_end(tokenizer: Any, rows: int | None) -> int | None:
    """The end token of a tokenizer, if the model has it."""
    ends = (tokenizer.eos_token_id, tokenizer.sep_token_id)
    return next((int(end) for end in ends if end is not None and (rows is None or end < rows)), None)


def generation_config(folder: Path, config: Mapping[str, Any]) -> GenerationConfig:
    """The generation settings of a checkpoint for Transformers; changes are logged.

    Args:
        folder: where generation_config.json may be.
        config: the content of config.json, where older checkpoints have them.
    """
    import transformers

    own = (folder / FILE).is_file()
    cleaned = clean(read_settings(folder)) if own else _clean_config(config)
    path = folder / (FILE if own else "config.json")
    for note in cleaned.notes:
        warn("setting_ignored", "%s: %s", path, note)
    if own and (speed := sorted(ONLY_SPEED & {name for name, value in read_settings(folder).items() if value})):
        log.info("%s: ignored settings that only affect speed: %s", path, ", ".join(speed))
    try:
        if own:
            return transformers.GenerationConfig(**_with_watermark(cleaned.values))
        return transformers.GenerationConfig.from_model_config(_with_watermark(cleaned.values))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} has settings that cannot be used ({error})", "correct them") from error


def _clean_config(config: Mapping[str, Any]) -> Cleaned:
    """A config with valid generation settings, also in its parts."""
    cleaned = clean({name: value for name, value in config.items() if name in FIELDS})
    values = {name: value for name, value in config.items() if name not in FIELDS} | cleaned.values
    notes = cleaned.notes
    for part in ("decoder", "generator", "text_config"):  # where `from_model_config` looks
        if isinstance(values.get(part), Mapping):
            of_part = _clean_config(values[part])
            values[part] = of_part.values
            notes += of_part.notes
    return Cleaned(values, notes)


def _with_watermark(values: dict[str, Any]) -> dict[str, Any]:
    import transformers

    settings = values.get("watermarking_config")
    if settings is None:
        return values
    for kind in (transformers.WatermarkingConfig, transformers.SynthIDTextWatermarkingConfig):
        with contextlib.suppress(TypeError, ValueError):
            built: Any = kind(**settings)
            built.validate()
            return values | {"watermarking_config": built}
    raise CheckpointError("watermarking_config in generation_config.json is unknown to Transformers", "remove it")


def apply_settings(config: GenerationConfig, settings: Mapping[str, Any]) -> None:
    """Override the model's settings by those in config.json for one task."""
    cleaned = clean({name: value for name, value in settings.items() if hasattr(config, name)})
    config.update(**cleaned.values)
    for note in cleaned.notes:
        warn("setting_ignored", "task_specific_params of config.json: %s", note)


@contextlib.contextmanager
def without_own_settings(model: Any) -> Iterator[None]:
    """Context manager in which ``generate`` uses only the settings of the call, without defaults from the model."""
    own = vars(model.generation_config)
    kept = dict(own)
    own.update(dict.fromkeys(FIELDS & own.keys()))
    try:
        yield
    finally:
        own.update(kept)


def cache_name() -> str:
    """The name of the KV cache among arguments and outputs of `generate`, which 5.24 changed."""
    from transformers.generation.utils import GenerateDecoderOnlyOutput

    return "cache" if "cache" in GenerateDecoderOnlyOutput.__annotations__ else "past_key_values"
