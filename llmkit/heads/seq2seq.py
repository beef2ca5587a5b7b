"""The seq2seq head: an encoder reads the prompt, a decoder writes from its start token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmkit.errors import CheckpointError, UsageError
from llmkit.heads.base import Encoded, encode_chat, encode_text, pad
from llmkit.heads.decoding import pad_id
from llmkit.tasks import Chat, Prompt, Text

if TYPE_CHECKING:
    import torch

    from llmkit.models.load import Loaded

__all__ = ["Seq2SeqOps"]


class Seq2SeqOps:
    def encode(self, loaded: Loaded, prompt: Prompt) -> Encoded:
        match prompt:
            case Chat(messages=messages, prefill=prefill):
                ids = encode_chat(loaded.tokenizer, Chat(messages))
            case Text(text=text, prefill=prefill):
                ids = encode_text(loaded.tokenizer, text)
            case _:
                raise UsageError("a seq2seq model reads text or messages", "render the row for its head")
        begun = encode_text(loaded.tokenizer, prefill, special=False) if prefill else []
        return Encoded(tuple(ids), decoder_ids=tuple(self._start(loaded, begun)), continues=tuple(begun))

    def _start(self, loaded: Loaded, begun: list[int]) -> list[int]:
        """The ids the decoder begins with. Generation forces a language token only right after the start."""
        config = loaded.model.generation_config
        start = config.decoder_start_token_id
        if start is None:
            start = config.bos_token_id
        if start is None:
            raise CheckpointError(
                f"{loaded.source.name} names no decoder_start_token_id", "add it to its generation_config.json"
            )
        start = start if isinstance(start, list) else [start]
        forced = [config.forced_bos_token_id] if begun and config.forced_bos_token_id is not None else []
        return [*start, *forced, *begun]

    def collate(self, loaded: Loaded, batch: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        import torch

        ids, mask = pad([row.input_ids for row in batch], pad_id(loaded), loaded.device, left=False)
        started = torch.tensor([row.decoder_ids for row in batch], device=loaded.device)
        return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": started}

    def output_start(self, inputs: dict[str, torch.Tensor]) -> int:
        return int(inputs["decoder_input_ids"].shape[1])

    def room(self, loaded: Loaded, encoded: Encoded) -> int | None:
        tokens = loaded.context.tokens
        return None if tokens is None or not loaded.context.hard else tokens - len(encoded.decoder_ids)
