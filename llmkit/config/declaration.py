"""How settings are declared: name, type, default, bounds and help text in one place, and checked when they are passed.

Does not know any setting but their common names in other programs. Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import Field, field, fields
from difflib import get_close_matches
from types import UnionType
from typing import Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from llmkit.errors import UsageError

__all__ = [
    "MOST",
    "Checked",
    "bounds",
    "explicitly_set",
    "file_settings",
    "nested_kind",
    "non_default",
    "setting",
    "setting_fields",
    "split_options",
]

MOST = 2**31 - 1
"""Upper bound of token, row and step counts: more than any run needs, and within what the libraries accept."""


def setting(
    default: Any,
    help: str,  # noqa: A002
    *,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    option: str | None = None,
    short: str | None = None,
    metavar: str | None = None,
    group: str = "",
    shown_default: str = "",
    may_be_file: bool = False,
    inference_only: bool = False,
) -> Any:
    """Declare a field.

    Args:
        default: its value unless set.
        help: one or more sentences.
        minimum: of a number.
        maximum: of a number.
        option: its name on the command line, if not the field's own name.
        short: its letter on the command line.
        metavar: what stands for the value in help texts, if not the kind or the choices.
        group: the heading of help texts that it is listed under.
        shown_default: the default in words, if ``default`` is None; tasks can replace it (`Task.shown_defaults`).
        may_be_file: whether the value can be the name of the file that contains it, as mappings and rows always can.
        inference_only: whether it is neither a key of recipes nor saved with a tuned model.
    """
    extra = {"option": option, "short": short, "metavar": metavar, "group": group, "shown_default": shown_default}
    limits = {"minimum": minimum, "maximum": maximum}
    flags = {"may_be_file": may_be_file, "inference_only": inference_only}
    return field(default=default, metadata={"help": help, **limits, **extra, **flags})


def nested_kind(hint: Any) -> Literal["mapping", "rows"] | None:
    """What a setting of this type holds, if not a single value; it can be the name of a file too."""
    origins = {get_origin(part) for part in _members(hint)}
    return "rows" if origins & {Sequence, list} else "mapping" if origins & {Mapping, dict} else None


def file_settings(settings: type[Any]) -> list[str]:
    """The settings whose value can be the name of a file that contains it."""
    hints = get_type_hints(settings)
    return [
        item.name
        for item in setting_fields(settings)
        if item.metadata["may_be_file"] or nested_kind(hints[item.name]) is not None
    ]


def _members(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


class Checked:
    """Validates each value against its declaration, so that a bad one is refused before torch is imported.

    Remembers which fields were passed, for `explicitly_set`.
    """

    named: frozenset[str]

    def __new__(cls, **given: Any) -> Self:
        made = super().__new__(cls)
        object.__setattr__(made, "named", frozenset(name for name, value in given.items() if value is not None))
        return made

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for item in setting_fields(type(self)):
            value = getattr(self, item.name)
            if value is not None:
                _check(item, hints[item.name], value)


def _check(item: Field[Any], hint: Any, value: Any) -> None:
    choices = [choice for part in (hint, *get_args(hint)) for choice in get_args(part) if isinstance(choice, str)]
    if choices and value not in choices:
        raise UsageError(
            f"{item.name}={value!r} is not a choice", f"choose from {', '.join(choices)}", code="invalid_value"
        )
    if (kind := nested_kind(hint)) and not isinstance(value, Mapping if kind == "mapping" else list | tuple):
        fix = "give a mapping" if kind == "mapping" else "give a list of rows"
        raise UsageError(f"{item.name} is a {type(value).__name__}", fix, code="invalid_value")
    if str in _members(hint) and not isinstance(value, str):
        raise UsageError(f"{item.name}={value!r} is not text", "give a string", code="invalid_value")
    numeric = next((kind for kind in (int, float) if kind in (hint, *get_args(hint))), None)
    if numeric is None:
        return
    low, high = bounds(item, hint)
    if isinstance(value, bool) or not isinstance(value, (int, float) if numeric is float else int):
        raise UsageError(f"{item.name}={value!r} is not a number", f"give {_range(low, high)}", code="invalid_value")
    if not low <= value <= high:
        shown = value if isinstance(value, float) or abs(value) < 10**20 else "…"
        raise UsageError(f"{item.name}={shown} is out of range", f"give {_range(low, high)}", code="invalid_value")


def bounds(item: Field[Any], hint: Any) -> tuple[float, float]:
    """The minimum and maximum of a numeric setting of this type."""
    low, high = item.metadata["minimum"], item.metadata["maximum"]
    return low, MOST if int in (hint, *get_args(hint)) and high == math.inf else high


def _range(low: float, high: float) -> str:
    if math.isinf(high):
        return f"a number of {low:g} or more" if math.isfinite(low) else "a number"
    return f"a number from {low:g} to {high:.10g}"


def setting_fields(settings: type[Any]) -> tuple[Field[Any], ...]:
    """The declared settings of a class, in order."""
    return fields(settings)


def explicitly_set(settings: Any) -> list[str]:
    """The settings that the caller passed explicitly, even if equal to the default; None counts as not passed.

    In a copy made by `dataclasses.replace` all settings with a value count as passed.
    """
    return [item.name for item in setting_fields(type(settings)) if item.name in settings.named]


def non_default(settings: Any, *names: str) -> list[str]:
    """The settings that differ from their defaults, among ``names`` or all of them."""
    return [
        item.name
        for item in setting_fields(type(settings))
        if (not names or item.name in names) and getattr(settings, item.name) != item.default
    ]


_SYNONYMS = {
    **dict.fromkeys(("max_length", "max_tokens", "num_predict"), "max_new_tokens"),
    **dict.fromkeys(("load_in_4bit", "load_in_8bit", "quantization"), "quantize"),
    **dict.fromkeys(("device_map", "gpu"), "device"),
    **dict.fromkeys(("torch_dtype", "precision"), "dtype"),
    **dict.fromkeys(("tgt_lang", "target_lang", "to"), "target"),
    **dict.fromkeys(("src_lang", "source_lang"), "source"),
    **dict.fromkeys(("top_n", "n_best"), "top"),
    **dict.fromkeys(("n", "num_samples"), "num_return_sequences"),
    **dict.fromkeys(("random_seed", "random_state"), "seed"),
    **dict.fromkeys(("stop_strings", "stop_sequences"), "stop"),
    **dict.fromkeys(("schema", "guided_json", "response_format"), "json_schema"),
    **dict.fromkeys(("guided_regex", "pattern"), "regex"),
    **dict.fromkeys(("guided_choice", "choices"), "choice"),
    "do_sample": "temperature",
    "local_files_only": "offline",
    "truncation": "on_overflow",
    "source_prefix": "prefix",
    **dict.fromkeys(("prompt_template", "instruction_template"), "template"),
    "adapter": "model",
    "base_model": "base",
}
"""Names of settings in other programs."""


def split_options(options: Mapping[str, Any], *classes: type[Any]) -> tuple[Any, ...]:
    """Split keyword arguments into one object per settings class; `UsageError` suggests the nearest known name."""
    known = {item.name: settings for settings in classes for item in setting_fields(settings)}
    for name in options:
        if name not in known:
            near = [_SYNONYMS[name]] if _SYNONYMS.get(name) in known else get_close_matches(name, known, n=1)
            fix = f"did you mean {near[0]!r}?" if near else f"settings: {', '.join(known)}"
            raise UsageError(f"unknown setting {name!r}", fix, code="unknown_setting")
    return tuple(
        settings(**{name: value for name, value in options.items() if known[name] is settings}) for settings in classes
    )
