"""Text generation: continue a text, or answer a prompt.

Knows that a prompt is its own wording. Does not know chat templates: a model that has one gets the prompt
as the user's message, others continue it.
"""

from __future__ import annotations

from typing import ClassVar

from llmkit.tasks.base import Head, Task

__all__ = ["TextGeneration"]


class TextGeneration(Task):
    name = "text-generation"
    noun = "generate"
    heads: ClassVar[tuple[Head, ...]] = (Head.CAUSAL, Head.SEQ2SEQ)
    input_column = "prompt"
    target_column = "completion"
    max_new_tokens = 256
