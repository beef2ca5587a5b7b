"""Inference: from rows to typed outputs."""

from __future__ import annotations

from llmkit.inference.pipeline import Pipeline
from llmkit.tasks.output import Output, Usage

__all__ = ["Output", "Pipeline", "Usage"]
