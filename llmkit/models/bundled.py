"""Models that need no model hub, by name: wheels of the package index, and an adapter that is part of this package.

Knows what each can do. How a wheel is downloaded and prepared is in `llmkit.models.wheels`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from llmkit.models.minilm import MINILM
from llmkit.models.source import Source
from llmkit.models.starter import STARTER, STARTER_LIMITS
from llmkit.models.wheels import Wheel, is_prepared, wheel_source

__all__ = ["EMBEDDED", "EMBEDDED_ADAPTERS", "embedded_source", "is_embedded", "limits", "needs_no_download"]

EMBEDDED: dict[str, Wheel] = {wheel.name: wheel for wheel in (STARTER, MINILM)}
"""Models from wheels, by name."""

EMBEDDED_ADAPTERS: Mapping[str, tuple[Wheel, Path]] = {"minilm-squad": (MINILM, Path(__file__).parent / "minilm_squad")}
"""Base and folder of the adapters of this package, by name."""

_LIMITS = {
    "starter": STARTER_LIMITS,
    "minilm": "minilm is an English encoder for fine-tuning, and answers nothing by itself",
    "minilm-squad": "minilm-squad extracts an answer from English text, and always finds one",
}
"""What a user should know before relying on a model's answers."""


def is_embedded(name: str) -> bool:
    """Whether this is the name of a model or adapter that needs no model hub."""
    return name in EMBEDDED or name in EMBEDDED_ADAPTERS


def _wheel(name: str) -> Wheel:
    return EMBEDDED[name] if name in EMBEDDED else EMBEDDED_ADAPTERS[name][0]


def embedded_source(name: str, *, offline: bool, verify: bool = False) -> Source:
    """The files of an embedded model, prepared first if needed. Arguments and errors as in `wheel_source`."""
    source = wheel_source(_wheel(name), offline=offline, verify=verify)
    if name in EMBEDDED:
        return source
    wheel, adapter = EMBEDDED_ADAPTERS[name]
    return replace(source, name=name, adapter=adapter, base=wheel.hub_id)


def needs_no_download(name: str) -> bool:
    """Whether an embedded model is complete on this machine."""
    return is_prepared(_wheel(name))


def limits(name: str) -> str:
    """The limits of an embedded model."""
    return _LIMITS[name]
