"""Heads: how prompts and examples become tensors, and what logits mean. One class each; they are independent."""

from __future__ import annotations

from llmkit.heads.base import BaseHead, Encoded
from llmkit.heads.causal import CausalHead
from llmkit.heads.seq2seq import Seq2SeqHead
from llmkit.heads.span import SpanHead
from llmkit.tasks import Head

__all__ = ["BaseHead", "Encoded", "head_of"]

_HEADS: dict[Head, BaseHead] = {each.name: each for each in (CausalHead(), Seq2SeqHead(), SpanHead())}


def head_of(head: Head) -> BaseHead:
    """The head with a name."""
    return _HEADS[head]
