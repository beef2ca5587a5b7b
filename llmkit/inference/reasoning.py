"""Keeps what a model thinks aloud apart from its answer, while the text arrives in pieces.

Knows the marks that model families write around their reasoning. Knows nothing of tokens.
"""

from __future__ import annotations

from llmkit.heads.text_stream import StopScanner

__all__ = ["MARKS", "ReasoningSplitter"]

MARKS: tuple[tuple[str, str], ...] = (
    ("<think>", "</think>"),  # DeepSeek R1, Qwen3, SmolLM3, GLM, and most others
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<|channel|>analysis<|message|>", "<|start|>assistant<|channel|>final<|message|>"),  # gpt-oss
)


class ReasoningSplitter:
    """Divides one answer. A block counts only at the beginning: later marks are part of what is said."""

    def __init__(self, prompt: str = "") -> None:
        """``prompt`` is the rendered prompt: some templates open the block themselves."""
        self._mark = next((mark for mark in MARKS if prompt.rstrip().endswith(mark[0])), None)
        self._scanner = StopScanner(self._mark[1:] if self._mark else ())
        self._held = ""
        self._answering = self._begun = False
        self.reasoning = ""

    def push(self, text: str) -> str:
        """Add text; returns what of it is the answer. The rest is added to `reasoning`."""
        if not self._answering:
            if self._mark is None:
                text = self._open(text)
            text = self._read(text) if self._mark else text
        if self._mark and not self._begun:  # the empty lines after a block are part of its form
            text = text.lstrip()
            self._begun = bool(text)
        return text

    def _open(self, text: str) -> str:
        """Wait until the beginning is a mark, or cannot become one."""
        self._held += text
        begun = self._held.lstrip()
        for mark in MARKS:
            if begun.startswith(mark[0]):
                self._mark, self._scanner, self._held = mark, StopScanner(mark[1:]), ""
                return begun[len(mark[0]) :]
        if any(mark[0].startswith(begun) for mark in MARKS):
            return ""
        self._answering = True
        text, self._held = self._held, ""
        return text

    def _read(self, text: str) -> str:
        assert self._mark is not None
        whole = self._scanner.held + text
        inside = self._scanner.push(text)
        self.reasoning += inside
        if not self._scanner.found:
            return ""
        self._answering = True
        return whole[len(inside) + len(self._mark[1]) :]

    def flush(self) -> str:
        """What was held back, when the text has ended; a block that was never closed is reasoning to its end."""
        if self._mark and not self._answering:
            self.reasoning += self._scanner.flush()
            return ""
        held, self._held = self._held, ""
        return held
