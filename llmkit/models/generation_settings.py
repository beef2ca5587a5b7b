"""The generation settings of a checkpoint as plain values: parsed, checked, and reduced to what `generate` supports.

What others published is used where it is valid; otherwise it is replaced or ignored, and a note says so. Knows the
settings of `transformers.GenerationConfig`. Imports neither torch nor Transformers, so that ``inspect`` shows the same
notes as loading.
"""

from __future__ import annotations

import ast
import contextlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.errors import CheckpointError

__all__ = [
    "FIELDS",
    "FILE",
    "ONLY_SPEED",
    "TOKEN_SETTINGS",
    "Cleaned",
    "clean",
    "fit_vocabulary",
    "read_settings",
]

FILE = "generation_config.json"


class _InvalidError(Exception):
    """An invalid value; the message completes "``name value`` …"."""


# Parsers of one value each, which return what `generate` supports or raise `_InvalidError`.

_Reader = Callable[[Any], Any]
_IntegerReader = Callable[[Any], int]


def _boolean(value: Any) -> bool:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    found = words.get(str(value).strip().lower()) if isinstance(value, bool | int | str) else None
    if found is None:
        raise _InvalidError("is neither true nor false")
    return found


def _early_stopping(value: Any) -> bool | str:
    return "never" if value == "never" else _boolean(value)


def _number(value: Any) -> float:
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise _InvalidError("is not a number")
    return number


def _in_range(least: float, most: float = math.inf, *, open_below: bool = False) -> _Reader:
    def read(value: Any) -> float:
        number = _number(value)
        if not least <= number <= most or (open_below and number == least):
            below = f"above {least:g}" if open_below else f"at least {least:g}"
            raise _InvalidError(f"is not {below}" + ("" if most == math.inf else f" and at most {most:g}"))
        return number

    return read


def _integer(least: int) -> _IntegerReader:
    def read(value: Any) -> int:
        number = _number(value)
        if number != int(number) or number < least:
            raise _InvalidError(f"is not a whole number from {least}")
        return int(number)

    return read


def _top_k(value: Any) -> int:
    return max(0, _integer(-1)(value))  # vLLM uses -1 for "all"


def _token(value: Any) -> int | str:
    """An id, or the text of a token."""
    if isinstance(value, str) and value.strip() and not value.strip().lstrip("-").isdecimal():
        return value
    try:
        return _integer(0)(value)
    except _InvalidError as error:
        raise _InvalidError("is not a token") from error


def _padding(value: Any) -> int:
    token = _first_token(value)
    if isinstance(token, str):  # Transformers needs an id, and can take it from the tokenizer
        raise _InvalidError("is not an id")
    return token


def _tokens(value: Any) -> list[int | str] | int | str:
    if not isinstance(value, list):
        return _token(value)
    return [_token(each) for each in value]


def _valid_tokens(value: Any) -> list[int | str]:
    """The valid tokens of a list; old files pad lists with -1."""
    found = []
    for each in value if isinstance(value, list) else [value]:
        with contextlib.suppress(_InvalidError):
            found.append(_token(each))
    if not found:
        raise _InvalidError("contains no valid token")
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
        raise _InvalidError("is not a list of strings")
    return [text for text in texts if text]


def _start_and_factor(value: Any) -> tuple[int, float]:
    if not isinstance(value, list) or len(value) != 2:
        raise _InvalidError("is not a pair of a start and a factor")
    return _integer(0)(value[0]), _in_range(0, open_below=True)(value[1])


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _InvalidError("is not an object")
    return value


def _unchanged(value: Any) -> Any:
    return value


def _not_in_files(_: Any) -> Any:
    raise _InvalidError("cannot be set in a file")


_POSITIVE = _in_range(0, open_below=True)
_SHARE = _in_range(0, 1)
_USED: dict[str, _Reader] = {
    "max_length": _integer(1),
    "max_new_tokens": _integer(1),
    "min_length": _integer(0),
    "min_new_tokens": _integer(0),
    "early_stopping": _early_stopping,
    "max_time": _POSITIVE,
    "stop_strings": _texts,
    "do_sample": _boolean,
    "num_beams": _integer(1),
    "use_cache": _boolean,
    "temperature": _in_range(0),
    "top_k": _top_k,
    "top_p": _SHARE,
    "min_p": _SHARE,
    "top_h": _in_range(0, 1, open_below=True),
    "typical_p": _in_range(0, 1, open_below=True),
    "epsilon_cutoff": _SHARE,
    "eta_cutoff": _SHARE,
    "repetition_penalty": _POSITIVE,
    "encoder_repetition_penalty": _POSITIVE,
    "length_penalty": _number,
    "no_repeat_ngram_size": _integer(0),
    "encoder_no_repeat_ngram_size": _integer(0),
    "bad_words_ids": _sequences,
    "renormalize_logits": _boolean,
    "forced_bos_token_id": _first_token,
    "forced_eos_token_id": _tokens,
    "remove_invalid_values": _boolean,
    "exponential_decay_length_penalty": _start_and_factor,
    "suppress_tokens": _valid_tokens,
    "begin_suppress_tokens": _valid_tokens,
    "sequence_bias": _biases,
    "guidance_scale": _POSITIVE,
    "watermarking_config": _mapping,
    "pad_token_id": _padding,
    "bos_token_id": _first_token,
    "eos_token_id": _valid_tokens,
    "decoder_start_token_id": _first_token,
}
_REPLACED = {
    "penalty_alpha": "Transformers 5 has no contrastive search; greedy decoding is used",
    "dola_layers": "Transformers 5 has no DoLa decoding; only the last layer is used",
    "num_beam_groups": "Transformers 5 has no group beam search; ordinary beam search is used",
    "constraints": "Transformers 5 has no constrained beam search; no output is forced",
    "force_words_ids": "Transformers 5 has no constrained beam search; no output is forced",
    "token_healing": "the last token of the prompt is kept",
    "num_return_sequences": "one output is generated per prompt; request more with `num_return_sequences`",
}
"""Settings that nothing implements → what happens instead."""
ONLY_SPEED = frozenset(
    {
        *("assistant_confidence_threshold", "assistant_early_exit", "assistant_ensemble_weight"),
        *("assistant_lookbehind", "cache_config", "cache_implementation", "compile_config"),
        *("continuous_batching_config", "disable_compile", "is_assistant", "low_memory", "max_cache_len"),
        *("max_matching_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule", "prefill_chunk_size"),
        *("prompt_lookup_num_tokens", "speculation_type", "target_lookbehind", "use_mtp"),
    }
)
"""Settings that change how fast the same output is computed, which the engine decides."""
_NO_EFFECT = frozenset(
    {
        *("diversity_penalty", "output_attentions", "output_hidden_states", "output_logits", "output_scores"),
        *("return_dict_in_generate", "_from_model_config", "_commit_hash", "transformers_version"),
    }
)
"""Other settings that do not change the output."""
_ARGUMENTS = (
    *("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "synced_gpus", "assistant_model"),
    *("streamer", "negative_prompt_ids", "negative_prompt_attention_mask", "custom_generate"),
)
"""Arguments of ``generate`` that `GenerationConfig` refuses."""
FIELDS = frozenset({*_USED, *_REPLACED, *ONLY_SPEED, *_NO_EFFECT})
"""Every setting of Transformers."""
_ONE_TOKEN = ("pad_token_id", "bos_token_id", "forced_bos_token_id", "decoder_start_token_id")
_SEVERAL_TOKENS = ("eos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens")
_TOKEN_LISTS = ("bad_words_ids", "sequence_bias")
TOKEN_SETTINGS = (*_ONE_TOKEN, *_SEVERAL_TOKENS, *_TOKEN_LISTS)
"""Every setting that holds token ids."""


@dataclass(frozen=True)
class Cleaned:
    """Settings that `generate` supports, and a note on each that was changed or ignored."""

    values: dict[str, Any]
    notes: tuple[str, ...] = ()


def clean(settings: Mapping[str, Any]) -> Cleaned:
    """Settings of a checkpoint with valid types and values. Keys of a model's own code are not changed."""
    values: dict[str, Any] = {}
    notes: list[str] = []
    for name, value in settings.items():
        if value is None or value == [] or name in ONLY_SPEED or name in _NO_EFFECT:
            continue
        if name in _REPLACED:
            if _has_effect(name, value):
                notes.append(f"{name} {_shortened(value)} has no effect: {_REPLACED[name]}")
            continue
        try:
            values[name] = _reader(name)(value)
        except _InvalidError as error:
            notes.append(f"{name} {_shortened(value)} {error}, and is ignored")
    if values.get("temperature") == 0:
        del values["temperature"]
        if values.get("do_sample"):
            values["do_sample"] = False
            notes.append("temperature 0 selects the most probable token, so do_sample is off")
    return Cleaned(values, tuple(notes))


def _reader(name: str) -> _Reader:
    return _not_in_files if name in _ARGUMENTS else _USED.get(name, _unchanged)


def _has_effect(name: str, value: Any) -> bool:
    """Whether a value differs from the default, which version 4 wrote into config.json for all settings."""
    return bool(value) and not (name in ("num_beam_groups", "num_return_sequences") and value == 1)


def _shortened(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else f"{text[:40]}…"


# Tokens, checked against a vocabulary.


def fit_vocabulary(
    settings: Mapping[str, Any], rows: int | None, look_up: Callable[[str], int | None] | None = None
) -> Cleaned:
    """Settings without the tokens that the model lacks.

    Args:
        settings: as `clean` returns them.
        rows: size of the vocabulary; None: unknown.
        look_up: text of a token → its id; None keeps texts.
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
            notes.append(f"{name} {lost} is not among the model's {rows:,} tokens, and is ignored")
        if kept:
            values[name] = kept if name in _SEVERAL_TOKENS and (len(kept) > 1 or "suppress" in name) else kept[0]
        else:
            del values[name]
    for name in _TOKEN_LISTS:
        if value := values.get(name):
            pairs = [(each, None) for each in value] if name == "bad_words_ids" else value
            kept = [(list(map(fitted, ids)), bias) for ids, bias in pairs]
            kept = [(ids, bias) for ids, bias in kept if None not in ids]
            if len(kept) < len(value):
                notes.append(f"{name} has tokens that are not among the model's {rows:,}, which are ignored")
            values[name] = [ids if name == "bad_words_ids" else [ids, bias] for ids, bias in kept] or None
    return Cleaned(values, tuple(notes))


def read_settings(folder: Path) -> dict[str, Any]:
    """The content of generation_config.json; empty if the file is missing.

    Raises:
        CheckpointError: it is not a JSON object.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error})", "correct it, or remove it") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} does not hold a JSON object", "correct it, or remove it")
    return content
