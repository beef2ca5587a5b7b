"""The engine of PyTorch models in this process, by Transformers."""

from __future__ import annotations

from llmkit.engines.transformers.engine import TransformersEngine

__all__ = ["TransformersEngine"]
