"""How families mark reasoning in their replies, for tokenizers whose files do not say so.

A response template, or pairs of tags among the added tokens and in the chat template, come first
(`llmkit.heads.reasoning`). Tuned models are of any type, so that none of this goes by the type.
"""

from __future__ import annotations

from typing import Any

__all__ = ["AROUND_ANSWERS", "MARKS", "MESSAGES", "PHRASES", "Mark"]

Mark = tuple[str, str]
"""The tags that open and close a block of reasoning."""

MARKS: tuple[Mark, ...] = (
    ("<think>", "</think>"),  # DeepSeek R1, Qwen3, SmolLM3, GLM, and most others
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),  # EXAONE Deep
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<|channel>thought\n", "<channel|>"),  # Gemma 4
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    ("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
)
"""Those in common use. A model may write them though nothing in its files does."""
PHRASES: tuple[Mark, ...] = (("Here is my thought process:", "Here is my response:"),)
"""Marks in plain words, which count only where the chat template names both (Granite 3.2)."""
AROUND_ANSWERS: tuple[Mark, ...] = tuple(
    (f"<{name}>", f"</{name}>") for name in ("answer", "response", "output", "Output")
)
"""Tags around an answer that follows reasoning (Hunyuan, Granite 3.3, Reflection, Marco)."""

_MESSAGE_ENDS = ["<|end|>", "<|return|>", "<|call|>", "<|eom|>", "<|eot|>"]
MESSAGES: dict[str, Any] = {
    "start_anchor": "<|start|>assistant",
    "fields": {
        "answer": {
            "open_pattern": r"(<\|start\|>[^<]*)?"
            r"(<\|channel\|>final[^<]*(<\|constrain\|>[^<]*)?| to=user)<\|message\|>",
            "close": _MESSAGE_ENDS,
        },
        "reasoning": {
            "open_pattern": r"(<\|start\|>[^<]*| to=[^<]*)?"
            r"<\|channel\|>(?!final)[^<]*(<\|constrain\|>[^<]*)?<\|message\|>"
            r"|(<\|start\|>[^<]*)? to=(?!user<)[^<]*<\|message\|>",
            "close": _MESSAGE_ENDS,
        },
        "content": {},
    },
}
"""Replies of several messages as a response template. The answer is gpt-oss's channel ``final``, or what is addressed
to the user; text outside of messages is too, since tuned models may write no marks."""
