"""Models whose output is forced: every position names the next token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from tests import tiny
from tests.heads.tool_templates import HERMES, MISTRAL_SMALL


def save_forced_model(folder: Path, tokenizer: Any, turns: Sequence[tuple[Sequence[int], str]], positions: int) -> None:
    """Save a GPT-2 that answers each prompt, given by its ids, with a text, and its tokenizer.

    No two prompts may have replies at the same positions.
    """
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=len(tokenizer), n_embd=positions, n_layer=1, n_head=1, n_positions=positions, n_inner=8,
            tie_word_embeddings=False, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.zero_()
        model.transformer.wpe.weight.copy_(torch.eye(positions))
        for prompt, reply in turns:
            for place, token in enumerate(tokenizer(reply, add_special_tokens=False)["input_ids"]):
                model.lm_head.weight[token, len(prompt) + place - 1] = 1.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL: dict[str, Any] = {
    "type": "function",
    "id": "call00001",
    "function": {"name": "get_weather", "arguments": {"city": "北京"}},
}
QUESTION = {"role": "user", "content": "天气？"}
BROKEN = '<tool_call>\n{"name": "get_weather", "arguments": {"city": }}\n</tool_call>'
REPLIES = {
    "hermes": (HERMES, '嗯。\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "北京"}}\n</tool_call>'),
    "mistral": (MISTRAL_SMALL, '嗯。[TOOL_CALLS]get_weather[ARGS]{"city": "北京"}'),
    "broken": (HERMES, f"嗯。{BROKEN}"),
}
END = "<|end|>"


def save_tool_model(folder: Path, template: str, reply: str, fields: Mapping[str, Any] | None = None) -> Path:
    """A model that answers the question with a call, and its result with a text."""
    tokenizer: Any = tiny.train_tokenizer("Qwen2Tokenizer", folder)
    tokenizer.add_special_tokens({"additional_special_tokens": [END, "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[INST]"]})
    tokenizer.eos_token, tokenizer.chat_template = END, template.replace("<|im_end|>", END).replace("</s>", END)
    called = {"role": "assistant", "content": "嗯。", "tool_calls": [CALL], **(fields or {})}
    result = {"role": "tool", "content": "晴", "tool_call_id": "call00001", "name": "get_weather"}
    prompts = [
        tokenizer.apply_chat_template(messages, tools=[TOOL], add_generation_prompt=True)["input_ids"]
        for messages in ([QUESTION], [QUESTION, called, result])
    ]
    save_forced_model(folder, tokenizer, list(zip(prompts, (reply + END, f"晴天。{END}"), strict=True)), 1024)
    return folder
