"""What a task returns. Plain data with stable JSON keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["SCHEMA_VERSION", "Output", "Usage"]

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Usage:
    """Tokens read and written; the end token counts as written."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, kw_only=True)
class Output:
    """One answer.

    ``finish_reason`` is ``stop`` (the model ended, or a stop string came) or ``length`` (max_new_tokens or a
    full context cut it). ``truncated`` counts the input tokens that were cut under ``on_overflow="truncate"``.
    ``score``, ``start`` and ``end`` (character offsets) are set by extractive question answering only.
    """

    text: str
    task: str
    model: str
    commit: str | None
    """Commit hash of the Hub snapshot that answered (of the adapter, if it is one); None for local files."""
    head: str
    finish_reason: str
    usage: Usage
    truncated: int = 0
    score: float | None = None
    start: int | None = None
    end: int | None = None
    base_commit: str | None = None
    """Commit hash of an adapter's base model."""
    alternatives: tuple[Output, ...] = ()
    """The other sequences, with ``num_return_sequences`` above 1."""

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """The object that ``--json`` prints."""
        result: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "task": self.task,
            "model": self.model,
            "commit": self.commit,
            "head": self.head,
            "text": self.text,
            "finish_reason": self.finish_reason,
            "usage": {
                "prompt_tokens": self.usage.prompt_tokens,
                "completion_tokens": self.usage.completion_tokens,
            },
            "truncated": self.truncated,
        }
        if self.base_commit is not None:
            result["base_commit"] = self.base_commit
        if self.score is not None:
            result |= {"score": self.score, "start": self.start, "end": self.end}
        if self.alternatives:
            result["alternatives"] = [
                {
                    "text": other.text,
                    "finish_reason": other.finish_reason,
                    "completion_tokens": other.usage.completion_tokens,
                }
                for other in self.alternatives
            ]
        return result
