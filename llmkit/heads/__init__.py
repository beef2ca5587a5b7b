"""Heads: how a prompt becomes ids, and how output is produced. One module a head."""

from __future__ import annotations

from llmkit.errors import UsageError
from llmkit.heads.base import Encoded, HeadOps
from llmkit.heads.causal import CausalOps
from llmkit.heads.seq2seq import Seq2SeqOps
from llmkit.tasks import Head

__all__ = ["Encoded", "HeadOps", "head_ops"]

_OPS: dict[Head, HeadOps] = {Head.CAUSAL: CausalOps(), Head.SEQ2SEQ: Seq2SeqOps()}


def head_ops(head: Head) -> HeadOps:
    """The operations of a head."""
    if head not in _OPS:
        raise UsageError(f"the {head} head generates no text", "use a causal or seq2seq model")
    return _OPS[head]
