"""The models that can be installed without a model hub, by name."""

from __future__ import annotations

from llmkit.models.minilm import MINILM
from llmkit.models.starter import STARTER
from llmkit.models.wheels import Wheel

__all__ = ["EMBEDDED"]

EMBEDDED: dict[str, Wheel] = {wheel.name: wheel for wheel in (STARTER, MINILM)}
