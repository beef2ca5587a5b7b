"""How a chat template turns a model's reasoning on and off: by a variable, or by a text in the system message.

The switch is found in the template: one of the names below counts only if the template renders its two values
differently. Knows neither models nor how reasoning is split from answers (`llmkit.heads.reasoning`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmkit.tasks import Message

__all__ = ["Render", "Switch", "find_switch"]

Render = Callable[[Sequence[Message], Mapping[str, Any]], str | None]
"""Renders a prompt of these messages with these template arguments; None if the template refuses them."""

_VARIABLES: tuple[tuple[str, Any, Any], ...] = (
    ("enable_thinking", True, False),  # Qwen 3 (its card), GLM 4.5, SmolLM3, Hunyuan, Gemma 4; vLLM's documentation
    ("thinking", True, False),  # DeepSeek V3.1 (its card), Granite 3.2, Kimi K2.5
    ("reasoning", True, False),  # Command A Reasoning
    ("thinking_mode", "enabled", "disabled"),  # MiniMax M3
    ("reasoning_effort", "high", "none"),  # Mistral Small 4 (its card)
    ("thinking_budget", -1, 0),  # Seed-OSS: -1 is unlimited (its card)
)
"""Variables with their values for on and off, each with a model whose template has it."""
_TEXTS = (
    ("/think", "/no_think"),  # Nemotron Nano 2 (its card), SmolLM3
    ("detailed thinking on", "detailed thinking off"),  # Llama Nemotron (its card)
)
"""Texts in the system message."""
_UNKNOWN = "Qxvalue"
"""A value that no template knows."""
_QUESTION = Message("user", "?")


@dataclass(frozen=True)
class Switch:
    """A template's switch for reasoning."""

    name: str
    """The variable; empty if ``on`` and ``off`` are texts in the system message."""
    on: Any
    off: Any

    def arguments(self, think: bool) -> dict[str, Any]:
        """The template arguments that turn reasoning on or off."""
        return {self.name: self.on if think else self.off} if self.name else {}

    def messages(self, messages: Sequence[Message], think: bool) -> Sequence[Message]:
        """The messages that turn reasoning on or off."""
        if self.name:
            return messages
        text = self.on if think else self.off
        if not messages or messages[0].role != "system":
            return (Message("system", text), *messages)
        return (replace(messages[0], content=f"{messages[0].content}\n{text}"), *messages[1:])


def find_switch(template: str, render: Render) -> Switch | None:
    """The switch of a template; None if it has none."""
    for name, on, off in _VARIABLES:
        if name in template and _is_variable(render, name, on, off):
            return Switch(name, on, off)
    for on, off in _TEXTS:
        if off in template and _is_text(render, on, off):
            return Switch("", on, off)
    return None


def _is_variable(render: Render, name: str, on: Any, off: Any) -> bool:
    shown, hidden = (render([_QUESTION], {name: value}) for value in (on, off))
    if shown is None or hidden is None or shown == hidden:
        return False
    if not isinstance(off, str):
        return True
    # gpt-oss renders any effort as it is, also those that the model does not know.
    other = render([_QUESTION], {name: _UNKNOWN})
    return other is None or other.replace(_UNKNOWN, off) != hidden


def _is_text(render: Render, on: str, off: str) -> bool:
    shown, hidden = (render([Message("system", f"{text}\n"), _QUESTION], {}) for text in (on, off))
    return None not in (shown, hidden) and str(shown).replace(on, "") != str(hidden).replace(off, "")
