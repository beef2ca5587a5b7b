"""The causal head: the prompt and its continuation are one sequence, padded on the left."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llmkit.errors import UsageError
from llmkit.heads.base import IGNORED, Encoded, Features, encode_text, pad
from llmkit.heads.chat_template import encode_chat, render_chat, reply_frame
from llmkit.heads.decoding import pad_id
from llmkit.heads.end_tokens import end_id, turn_ends
from llmkit.heads.reasoning import ReasoningFormat, reasoning_format
from llmkit.tasks import Chat, Example, Prompt, Text

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
                return Encoded(tuple(encode_chat(loaded.tokenizer, prompt)), ends=turn_ends(loaded))
            case Text():
                ids = encode_text(loaded.tokenizer, prompt.text + prompt.prefill)
                # Tokenizers made for encoders close the text with EOS or SEP; a continuation must not follow that.
                end = {loaded.tokenizer.eos_token_id, loaded.tokenizer.sep_token_id} - {None}
                if len(ids) > 1 and ids[-1] in end and not prompt.text.endswith(str(loaded.tokenizer.decode(ids[-1]))):
                    ids = ids[:-1]
                return Encoded(tuple(ids), continues=tuple(ids[-_CONTEXT_FOR_DECODING:]), stop=prompt.stop)
            case _:
                raise UsageError("a causal model reads text or messages", "render the row for its head")

    def features(self, loaded: Loaded, examples: Sequence[Example], *, loss_on_all: bool) -> list[Features]:
        """See `HeadOps`. Replies of one conversation are one sequence where each prompt goes on from the one before."""
        sequences: list[tuple[list[int], list[int]]] = []
        for example in examples:
            prompt = [] if example.prompt is None else list(self.encode(loaded, example.prompt).input_ids)
            target = _target(loaded, example, prompt)
            ids, labels = sequences[-1] if sequences else ([], [])
            if not sequences or prompt[: len(ids)] != ids:
                ids, labels = [], []
                sequences.append((ids, labels))
            new = prompt[len(ids) :]
            ids += [*new, *target]
            labels += [*(new if loss_on_all else [IGNORED] * len(new)), *target]
        return [Features(tuple(ids), tuple(labels)) for ids, labels in sequences]

    def collate(self, loaded: Loaded, batch: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        ids, mask = pad([row.input_ids for row in batch], pad_id(loaded), loaded.device, left=True)
        return {"input_ids": ids, "attention_mask": mask}

    def output_start(self, inputs: dict[str, torch.Tensor]) -> int:
        return int(inputs["input_ids"].shape[1])

    def room(self, loaded: Loaded, encoded: Encoded) -> int | None:
        tokens = loaded.context.tokens
        return None if tokens is None or not loaded.context.hard else tokens - len(encoded.input_ids)


# What the model writes after a prompt.


def _target(loaded: Loaded, example: Example, prompt: Sequence[int]) -> list[int]:
    """Ids of the answer and of what ends it."""
    tokenizer, text = loaded.tokenizer, example.target
    match example.prompt:
        case None:
            return [*CausalOps().encode(loaded, Text(text)).input_ids, end_id(loaded)]
        case Chat() as chat:
            before = render_chat(tokenizer, chat)
            reply = _reply(tokenizer, chat, before, text)
            return [*_continuation(tokenizer, before, reply, prompt, False), *_turn_end(loaded, chat)]
        case Text(text=before, prefill=prefill):
            return [*_continuation(tokenizer, before + prefill, text, prompt, True), end_id(loaded)]
        case _:
            raise UsageError("a causal model reads text or messages", "render the row for its head")


def _continuation(tokenizer: Any, before: str, text: str, prompt: Sequence[int], special: bool) -> list[int]:
    """Ids of a text after a prompt whose ids are given.

    Tokenizers may merge across the border, which a model that goes on from the prompt cannot do; then, and where
    something closes the text, the ids are those of the text behind a line break.
    """
    whole, end = encode_text(tokenizer, before + text, special=special), len(prompt)
    closing = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None} if special else set()
    if whole[:end] == list(prompt):
        return whole[end:-1] if len(whole) > end and whole[-1] in closing else whole[end:]
    anchor = encode_text(tokenizer, "\n", special=False)
    behind = encode_text(tokenizer, f"\n{text}", special=False)
    if behind[: len(anchor)] == anchor:
        return behind[len(anchor) :]
    return encode_text(tokenizer, text, special=False)


_PROBE = "Yes"
"""A reply that holds no mark."""


def _reply(tokenizer: Any, chat: Chat, prompt: str, text: str) -> str:
    """What the model is to write so that the text is its reply: marks around reasoning as template and prompt ask."""
    if chat.prefill:
        return text
    reasoning = reasoning_format(tokenizer)
    opened, begun = reasoning.opened(prompt), text.lstrip()
    if opened is None and any(begun.startswith(mark[0]) for mark in reasoning.marks):
        return text
    if opened is not None and begun.startswith(opened[0]):
        return begun[len(opened[0]) :].removeprefix("\n" if prompt.endswith("\n") else "")
    if opened is not None and opened[1] in text:
        return text
    return _opening(tokenizer, chat, reasoning, prompt) + text


def _opening(tokenizer: Any, chat: Chat, reasoning: ReasoningFormat, prompt: str) -> str:
    """What comes before a reply without reasoning, so that the splitter finds the reply whole."""
    between, _ = reply_frame(tokenizer, thinking=chat.thinking)
    for opening, closing in reasoning.marks:  # an empty block costs tokens and says nothing
        between = re.sub(rf"{re.escape(opening)}\s*{re.escape(closing)}\s*", "", between)
    opened = reasoning.opened(prompt)
    if not between and opened is None:
        return ""
    line = "\n" if prompt.endswith("\n") else ""
    closing = f"{line}{opened[1]}\n\n" if opened else ""
    for opening in (between, closing):
        ids = encode_text(tokenizer, opening + _PROBE, special=False)
        splitter = reasoning.splitter(prompt)
        found = splitter.push(str(tokenizer.decode(ids))) + splitter.flush()
        if found == _PROBE:
            return opening
    return ""  # the tokenizer cannot write the mark: the end of the reply ends the block


def _turn_end(loaded: Loaded, chat: Chat) -> list[int]:
    """What the chat template puts behind a reply, up to the token that ends the output."""
    _, text = reply_frame(loaded.tokenizer, thinking=chat.thinking)
    ids, stops = encode_text(loaded.tokenizer, text, special=False), turn_ends(loaded)
    last = next((place for place, token in enumerate(ids) if token in stops), None)
    return [end_id(loaded)] if last is None else ids[: last + 1]
