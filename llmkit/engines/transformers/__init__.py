"""The engine that runs PyTorch models in this process with Transformers."""

from __future__ import annotations

from llmkit.engines.transformers.engine import TransformersEngine

__all__ = ["TransformersEngine"]
