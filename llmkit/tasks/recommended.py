"""Recommended models, in particular those shared by several tasks. Plain data.

Licences and sizes are from the model pages (archived copies of 2025 and 2026); a size is the total of the weight files
that llmkit would download. Independent of whether a model is on this machine or can be reached.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["QWEN", "QWEN_SMALL", "SMOL", "STARTER", "Recommended"]


@dataclass(frozen=True)
class Recommended:
    """One model."""

    model: str
    parameters: str
    megabytes: int
    licence: str
    languages: str
    note: str

    def noted(self, note: str) -> Recommended:
        """A copy with another note."""
        return replace(self, note=note)


SMOL = Recommended("HuggingFaceTB/SmolLM2-135M-Instruct", "135M", 269, "Apache-2.0", "English", "the default")
STARTER = Recommended(
    *("starter", "135M", 93, "Apache-2.0", "English"), "embedded, from the package index: needs no model hub"
)
QWEN_SMALL = Recommended(
    *("Qwen/Qwen3-0.6B", "0.6B", 1500, "Apache-2.0", "100+ languages"), "stronger, still runs on a CPU"
)
QWEN = Recommended(
    *("Qwen/Qwen3-4B-Instruct-2507", "4B", 8045, "Apache-2.0", "100+ languages"), "much stronger; needs a GPU"
)
