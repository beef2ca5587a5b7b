"""The generation settings that come with a checkpoint, made usable: generation_config.json, else those in config.json.

What others published is used where it means something; else it is replaced, and a note says by what. Knows the
settings of `transformers.GenerationConfig`. `clean` and `fit_vocabulary` work on plain values, so that ``inspect``
shows the same notes without torch.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.errors import CheckpointError
from llmkit.log import log, warn

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "FIELDS",
    "apply_settings",
    "cache_name",
    "clean",
    "fit_vocabulary",
    "generation_config",
    "read_settings",
    "set_ends",
    "settle_tokens",
    "tokenizer_end",
    "vocabulary_rows",
    "without_own_settings",
]

_FILE = "generation_config.json"


class _InvalidError(Exception):
    """A value that means nothing; the message completes "``name value`` …"."""


# Readers of one value each: what `generate` can use, or `_InvalidError`.

_Reader = Callable[[Any], Any]
_WholeReader = Callable[[Any], int]


def _flag(value: Any) -> bool:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    found = words.get(str(value).strip().lower()) if isinstance(value, bool | int | str) else None
    if found is None:
        raise _InvalidError("is neither true nor false")
    return found


def _early_stopping(value: Any) -> bool | str:
    return "never" if value == "never" else _flag(value)


def _number(value: Any) -> float:
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise _InvalidError("is no number")
    return number


def _between(least: float, most: float = math.inf, *, open_below: bool = False) -> _Reader:
    def read(value: Any) -> float:
        number = _number(value)
        if not least <= number <= most or (open_below and number == least):
            below = f"above {least:g}" if open_below else f"at least {least:g}"
            raise _InvalidError(f"is not {below}" + ("" if most == math.inf else f" and at most {most:g}"))
        return number

    return read


def _whole(least: int) -> _WholeReader:
    def read(value: Any) -> int:
        number = _number(value)
        if number != int(number) or number < least:
            raise _InvalidError(f"is not a whole number from {least}")
        return int(number)

    return read


def _top_k(value: Any) -> int:
    return max(0, _whole(-1)(value))  # -1 is how vLLM spells "all"


def _token(value: Any) -> int | str:
    """An id, or the text of a token."""
    if isinstance(value, str) and value.strip() and not value.strip().lstrip("-").isdecimal():
        return value
    try:
        return _whole(0)(value)
    except _InvalidError as error:
        raise _InvalidError("is no token") from error


def _padding(value: Any) -> int:
    token = _first_token(value)
    if isinstance(token, str):  # Transformers compares it with numbers, and the tokenizer has one too
        raise _InvalidError("is no id")
    return token


def _tokens(value: Any) -> list[int | str] | int | str:
    if not isinstance(value, list):
        return _token(value)
    return [_token(each) for each in value]


def _some_tokens(value: Any) -> list[int | str]:
    """The valid ones of a list; old files fill lists up with -1."""
    found = []
    for each in value if isinstance(value, list) else [value]:
        with contextlib.suppress(_InvalidError):
            found.append(_token(each))
    if not found:
        raise _InvalidError("names no token")
    return found


def _first_token(value: Any) -> int | str:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return _token(value)


def _sequences(value: Any) -> list[list[int | str]]:
    if not isinstance(value, list) or not all(isinstance(each, list) and each for each in value) or not value:
        raise _InvalidError("is not a list of lists of tokens")
    return [[_token(token) for token in each] for each in value]


def _biases(value: Any) -> list[list[Any]]:
    """Pairs of tokens and a bias. JSON has no tuples as keys, and `save_pretrained` writes them as text."""
    with contextlib.suppress(ValueError, SyntaxError, TypeError):
        pairs = value.items() if isinstance(value, dict) else value
        read = [(ast.literal_eval(each) if isinstance(each, str) else each, bias) for each, bias in pairs]
        return [[_sequences([[ids] if isinstance(ids, int) else list(ids)])[0], _number(bias)] for ids, bias in read]
    raise _InvalidError("does not pair tokens with numbers")


def _texts(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise _InvalidError("is not a list of texts")
    return [text for text in texts if text]


def _start_and_factor(value: Any) -> tuple[int, float]:
    if not isinstance(value, list) or len(value) != 2:
        raise _InvalidError("is not a pair of a start and a factor")
    return _whole(0)(value[0]), _between(0, open_below=True)(value[1])


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _InvalidError("is not an object")
    return value


def _as_it_is(value: Any) -> Any:
    return value


def _absent(_: Any) -> Any:
    raise _InvalidError("has no place in a file")


_POSITIVE = _between(0, open_below=True)
_SHARE = _between(0, 1)
_USED: dict[str, _Reader] = {
    "max_length": _whole(1),
    "max_new_tokens": _whole(1),
    "min_length": _whole(0),
    "min_new_tokens": _whole(0),
    "early_stopping": _early_stopping,
    "max_time": _POSITIVE,
    "stop_strings": _texts,
    "do_sample": _flag,
    "num_beams": _whole(1),
    "use_cache": _flag,
    "temperature": _between(0),
    "top_k": _top_k,
    "top_p": _SHARE,
    "min_p": _SHARE,
    "top_h": _between(0, 1, open_below=True),
    "typical_p": _between(0, 1, open_below=True),
    "epsilon_cutoff": _SHARE,
    "eta_cutoff": _SHARE,
    "repetition_penalty": _POSITIVE,
    "encoder_repetition_penalty": _POSITIVE,
    "length_penalty": _number,
    "no_repeat_ngram_size": _whole(0),
    "encoder_no_repeat_ngram_size": _whole(0),
    "bad_words_ids": _sequences,
    "renormalize_logits": _flag,
    "forced_bos_token_id": _first_token,
    "forced_eos_token_id": _tokens,
    "remove_invalid_values": _flag,
    "exponential_decay_length_penalty": _start_and_factor,
    "suppress_tokens": _some_tokens,
    "begin_suppress_tokens": _some_tokens,
    "sequence_bias": _biases,
    "guidance_scale": _POSITIVE,
    "watermarking_config": _mapping,
    "pad_token_id": _padding,
    "bos_token_id": _first_token,
    "eos_token_id": _some_tokens,
    "decoder_start_token_id": _first_token,
}
_REPLACED = {
    "penalty_alpha": "contrastive search is not in Transformers 5; the likeliest token is taken",
    "dola_layers": "DoLa decoding is not in Transformers 5; the last layer decides alone",
    "num_beam_groups": "group beam search is not in Transformers 5; the beams are searched as one group",
    "constraints": "constrained beam search is not in Transformers 5; nothing is forced into the output",
    "force_words_ids": "constrained beam search is not in Transformers 5; nothing is forced into the output",
    "token_healing": "the prompt's last token is not replaced",
    "num_return_sequences": "one output is written for each prompt; ask for more with `num_return_sequences`",
}
"""Settings that are left out because nothing does what they say, and what happens in their place."""
_ONLY_SPEED = frozenset(
    {
        *("assistant_confidence_threshold", "assistant_early_exit", "assistant_ensemble_weight"),
        *("assistant_lookbehind", "cache_config", "cache_implementation", "compile_config"),
        *("continuous_batching_config", "disable_compile", "is_assistant", "low_memory", "max_cache_len"),
        *("max_matching_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule", "prefill_chunk_size"),
        *("prompt_lookup_num_tokens", "speculation_type", "target_lookbehind", "use_mtp"),
    }
)
"""How the same output is computed; the engine decides that by itself."""
_NO_EFFECT = frozenset(
    {
        *("diversity_penalty", "output_attentions", "output_hidden_states", "output_logits", "output_scores"),
        *("return_dict_in_generate", "_from_model_config", "_commit_hash", "transformers_version"),
    }
)
"""What else a file may hold that changes no output."""
_ARGUMENTS = (
    *("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "synced_gpus", "assistant_model"),
    *("streamer", "negative_prompt_ids", "negative_prompt_attention_mask", "custom_generate"),
)
"""Arguments of ``generate`` that `GenerationConfig` refuses."""
FIELDS = frozenset({*_USED, *_REPLACED, *_ONLY_SPEED, *_NO_EFFECT})
"""Every setting that Transformers knows."""
_ONE_TOKEN = ("pad_token_id", "bos_token_id", "forced_bos_token_id", "decoder_start_token_id")
_SEVERAL_TOKENS = ("eos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens")


@dataclass(frozen=True)
class Cleaned:
    """Settings that `generate` can use, and a line for each that is not used as the file says."""

    values: dict[str, Any]
    notes: tuple[str, ...] = ()


def clean(settings: Mapping[str, Any]) -> Cleaned:
    """Settings of a checkpoint with the types and bounds that they need. Keys of models' own code stay as they are."""
    values: dict[str, Any] = {}
    notes: list[str] = []
    for name, value in settings.items():
        if value is None or value == [] or name in _ONLY_SPEED or name in _NO_EFFECT:
            continue
        if name in _REPLACED:
            if _has_effect(name, value):
                notes.append(f"{name} {_shown(value)} has no effect: {_REPLACED[name]}")
            continue
        try:
            values[name] = _reader(name)(value)
        except _InvalidError as error:
            notes.append(f"{name} {_shown(value)} {error}, and is left out")
    if values.get("temperature") == 0:
        del values["temperature"]
        if values.get("do_sample"):
            values["do_sample"] = False
            notes.append("temperature 0 with sampling means the likeliest token, so nothing is sampled")
    return Cleaned(values, tuple(notes))


def _reader(name: str) -> _Reader:
    return _absent if name in _ARGUMENTS else _USED.get(name, _as_it_is)


def _has_effect(name: str, value: Any) -> bool:
    """Version 4 wrote the defaults of all settings into config.json."""
    return bool(value) and not (name in ("num_beam_groups", "num_return_sequences") and value == 1)


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else f"{text[:40]}…"


# Tokens, once it is known which there are.


def fit_vocabulary(
    settings: Mapping[str, Any], rows: int | None, look_up: Callable[[str], int | None] | None = None
) -> Cleaned:
    """Settings without tokens that the model does not have.

    Args:
        settings: as `clean` gives them.
        rows: how many tokens the model has; None: unknown.
        look_up: the id of a token by its text; None leaves texts as they are.
    """
    values, notes = dict(settings), []

    def fitted(token: Any) -> Any:
        found = look_up(token) if isinstance(token, str) and look_up else token
        return found if isinstance(found, str) or (found is not None and (rows is None or found < rows)) else None

    for name in _ONE_TOKEN + _SEVERAL_TOKENS:
        if (value := values.get(name)) is None:
            continue
        tokens = value if isinstance(value, list) else [value]
        kept = [token for token in map(fitted, tokens) if token is not None]
        if len(kept) < len(tokens):
            lost = ", ".join(str(token) for token in tokens if fitted(token) is None)
            notes.append(f"{name} {lost} is not among the model's {rows:,} tokens, and is left out")
        if kept:
            values[name] = kept if name in _SEVERAL_TOKENS and (len(kept) > 1 or "suppress" in name) else kept[0]
        else:
            del values[name]
    for name in ("bad_words_ids", "sequence_bias"):
        if value := values.get(name):
            pairs = [(each, None) for each in value] if name == "bad_words_ids" else value
            kept = [(list(map(fitted, ids)), bias) for ids, bias in pairs]
            kept = [(ids, bias) for ids, bias in kept if None not in ids]
            if len(kept) < len(value):
                notes.append(f"{name} has tokens that are not among the model's {rows:,}, which are left out")
            values[name] = [ids if name == "bad_words_ids" else [ids, bias] for ids, bias in kept] or None
    return Cleaned(values, tuple(notes))


def vocabulary_rows(model: Any) -> int | None:
    """How many tokens a model can write and read; None if it does not say."""
    counts = []
    for layer in (model.get_input_embeddings, model.get_output_embeddings):
        with contextlib.suppress(NotImplementedError, AttributeError):
            found = layer()
            count = getattr(found, "num_embeddings", None) or getattr(found, "out_features", None)
            counts += [int(count)] if count else []
    return min(counts, default=None)


def settle_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Make a loaded model's generation settings name only tokens that it has; what is replaced is logged.

    Where none of its end tokens is one, the tokenizer's end (the separator in BERT's vocabularies) takes their place.
    """
    config = getattr(model, "generation_config", None)
    if config is None:
        return
    rows = vocabulary_rows(model)
    own: dict[str, Any] = {name: getattr(config, name, None) for name in (*_ONE_TOKEN, *_SEVERAL_TOKENS)}
    own |= {name: getattr(config, name, None) for name in ("bad_words_ids", "sequence_bias")}
    fitted = fit_vocabulary(own, rows, functools.partial(_look_up, tokenizer))
    notes = list(fitted.notes)
    values = {name: fitted.values.get(name) for name in own}
    if values["eos_token_id"] is None and own["eos_token_id"] is not None:
        values["eos_token_id"] = end = tokenizer_end(tokenizer, rows)
        notes.append(
            "no token ends an output before `max_new_tokens`; add eos_token to tokenizer_config.json"
            if end is None
            else f"an output ends at the tokenizer's {tokenizer.convert_ids_to_tokens(end)} ({end}) instead"
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
    notes += _unknown(config, model)
    for note in notes:
        warn("setting_ignored", "%s: %s", folder / _FILE, note)


def set_ends(config: GenerationConfig, ends: list[int]) -> None:
    """Let a model stop at these tokens."""
    if ends:
        config.eos_token_id = ends if len(ends) > 1 else ends[0]
        _keep_savable(config)


def _keep_savable(config: Any) -> None:
    """Transformers saves what was loaded, and refuses it if it was changed and sets what has no effect."""
    config._original_object_hash = hash(config)  # noqa: SLF001


def _unknown(config: Any, model: Any) -> list[str]:
    """A note on settings that neither Transformers nor the code of the model's class reads."""
    names = [name for name in vars(config) if name not in FIELDS and not name.startswith("_")]
    built = model.get_base_model() if hasattr(model, "get_base_model") else model
    module = sys.modules.get(type(built).__module__)
    if not names or module is None or getattr(model.config, "auto_map", None):
        return []
    code = inspect.getsource(module)
    unread = ", ".join(name for name in names if not re.search(rf"\b{re.escape(name)}\b", code))
    return [f"Transformers has no setting {unread}, which has no effect"] if unread else []


def _look_up(tokenizer: Any, text: str) -> int | None:
    return tokenizer.get_vocab().get(text)  # type: ignore[no-any-return]


def tokenizer_end(tokenizer: Any, rows: int | None) -> int | None:
    """The token that ends a text by the tokenizer's files, if the model has it."""
    ends = (tokenizer.eos_token_id, tokenizer.sep_token_id)
    return next((int(end) for end in ends if end is not None and (rows is None or end < rows)), None)


# Reading and building.


def read_settings(folder: Path) -> dict[str, Any]:
    """What generation_config.json holds; empty where there is none.

    Raises:
        CheckpointError: it is not a JSON object.
    """
    path = folder / _FILE
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error})", "correct it, or remove it") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} does not hold a JSON object", "correct it, or remove it")
    return content


def generation_config(folder: Path, config: Mapping[str, Any]) -> GenerationConfig:
    """The generation settings of a checkpoint, as Transformers takes them; what is replaced is logged.

    Args:
        folder: where generation_config.json may be.
        config: the content of config.json, which older checkpoints keep them in.
    """
    import transformers

    own = (folder / _FILE).is_file()
    cleaned = clean(read_settings(folder)) if own else _clean_config(config)
    path = folder / (_FILE if own else "config.json")
    for note in cleaned.notes:
        warn("setting_ignored", "%s: %s", path, note)
    if own and (speed := sorted(_ONLY_SPEED & {name for name, value in read_settings(folder).items() if value})):
        log.info("%s: %s would change speed only and is left to llmkit", path, ", ".join(speed))
    try:
        if own:
            return transformers.GenerationConfig(**_with_watermark(cleaned.values))
        return transformers.GenerationConfig.from_model_config(_with_watermark(cleaned.values))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} has settings that cannot be used ({error})", "correct them") from error


def _clean_config(config: Mapping[str, Any]) -> Cleaned:
    """A config whose generation settings, its own and those of its parts, are usable."""
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
    raise CheckpointError("watermarking_config of generation_config.json is none that Transformers knows", "remove it")


def apply_settings(config: GenerationConfig, settings: Mapping[str, Any]) -> None:
    """Put settings that config.json keeps for one task over those of the model."""
    cleaned = clean({name: value for name, value in settings.items() if hasattr(config, name)})
    config.update(**cleaned.values)
    for note in cleaned.notes:
        warn("setting_ignored", "task_specific_params of config.json: %s", note)


@contextlib.contextmanager
def without_own_settings(model: Any) -> Iterator[None]:
    """Let ``generate`` use the settings of the call alone, which Transformers would fill up with the model's."""
    own = vars(model.generation_config)
    kept = dict(own)
    own.update(dict.fromkeys(FIELDS & own.keys()))
    try:
        yield
    finally:
        own.update(kept)


def cache_name() -> str:
    """What `generate` calls keys and values, as an argument and in its output: another name from 5.24 on."""
    from transformers.generation.utils import GenerateDecoderOnlyOutput

    return "cache" if "cache" in GenerateDecoderOnlyOutput.__annotations__ else "past_key_values"
