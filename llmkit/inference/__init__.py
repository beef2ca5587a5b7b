"""Inference: rows in, typed outputs out."""

from __future__ import annotations

from llmkit.inference.output import Output, Usage
from llmkit.inference.pipeline import Pipeline

__all__ = ["Output", "Pipeline", "Usage"]
