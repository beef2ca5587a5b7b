"""A model whose output is forced: every position names the next token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers


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
