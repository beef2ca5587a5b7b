"""The causal head: the prompt and its continuation are one sequence, padded on the left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmkit.errors import UsageError
from llmkit.heads.base import Encoded, encode_chat, encode_text, pad
from llmkit.heads.decoding import pad_id
from llmkit.tasks import Chat, Prompt, Text

if TYPE_CHECKING:
    import torch

    from llmkit.models.load import Loaded

__all__ = ["CausalOps"]

_CONTEXT_FOR_DECODING = 8
"""Tokens of the prompt that are decoded with the output: enough for one character in single bytes, twice."""


class CausalOps:
    def encode(self, loaded: Loaded, prompt: Prompt) -> Encoded:
        match prompt:
            case Chat():
                return Encoded(tuple(encode_chat(loaded.tokenizer, prompt)))
            case Text():
                ids = encode_text(loaded.tokenizer, prompt.text + prompt.prefill)
                # Tokenizers made for encoders close the text with EOS or SEP; a continuation must not follow that.
                end = {loaded.tokenizer.eos_token_id, loaded.tokenizer.sep_token_id} - {None}
                if len(ids) > 1 and ids[-1] in end and not prompt.text.endswith(str(loaded.tokenizer.decode(ids[-1]))):
                    ids = ids[:-1]
                return Encoded(tuple(ids), continues=tuple(ids[-_CONTEXT_FOR_DECODING:]), stop=prompt.stop)
            case _:
                raise UsageError("a causal model reads text or messages", "render the row for its head")

    def collate(self, loaded: Loaded, batch: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        ids, mask = pad([row.input_ids for row in batch], pad_id(loaded), loaded.device, left=True)
        return {"input_ids": ids, "attention_mask": mask}

    def output_start(self, inputs: dict[str, torch.Tensor]) -> int:
        return int(inputs["input_ids"].shape[1])

    def room(self, loaded: Loaded, encoded: Encoded) -> int | None:
        tokens = loaded.context.tokens
        return None if tokens is None or not loaded.context.hard else tokens - len(encoded.input_ids)
