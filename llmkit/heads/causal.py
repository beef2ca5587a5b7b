"""The causal head: the prompt and its continuation are one sequence, padded on the left."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from llmkit.errors import UsageError
from llmkit.heads.base import IGNORED, Encoded, Features, LossOn, encode_text, pad
from llmkit.heads.batch import Batch, Line, fill, padded, shifted
from llmkit.heads.chat_template import encode_chat, render_chat, render_reply, reply_frame
from llmkit.heads.end_tokens import end_id, turn_ends
from llmkit.heads.objective import Objective
from llmkit.heads.reasoning import ReasoningFormat, reasoning_format
from llmkit.heads.text_stream import TextStream
from llmkit.heads.writing import WritingHead
from llmkit.models.families.reasoning_marks import AROUND_ANSWERS
from llmkit.tasks import Chat, Example, Head, Message, Prompt, Text

if TYPE_CHECKING:
    import torch

    from llmkit.models.load import Loaded

__all__ = ["CausalHead", "windows"]

_CONTEXT_FOR_DECODING = 8
"""Prompt tokens that are decoded with the output: enough for two characters of single-byte tokens."""


class CausalHead(WritingHead):
    name = Head.CAUSAL

    def encode(self, loaded: Loaded, prompt: Prompt) -> Encoded:
        match prompt:
            case Chat():
                return Encoded(tuple(encode_chat(loaded.tokenizer, prompt)), ends=turn_ends(loaded))
            case Text(ids=given) if given:
                return Encoded(given, continues=given[-_CONTEXT_FOR_DECODING:], stop=prompt.stop)
            case Text():
                ids = encode_text(loaded.tokenizer, prompt.text + prompt.prefill)
                # Tokenizers made for encoders close the text with EOS or SEP; a continuation must not follow that.
                end = {loaded.tokenizer.eos_token_id, loaded.tokenizer.sep_token_id} - {None}
                if len(ids) > 1 and ids[-1] in end and not prompt.text.endswith(str(loaded.tokenizer.decode(ids[-1]))):
                    ids = ids[:-1]
                return Encoded(tuple(ids), continues=tuple(ids[-_CONTEXT_FOR_DECODING:]), stop=prompt.stop)
            case _:
                raise UsageError(
                    "a causal model takes text or messages", "render the row for its head", code="not_supported"
                )

    def features(self, loaded: Loaded, examples: Sequence[Example], *, loss_on: LossOn) -> list[Features]:
        """See `BaseHead`. Replies of one conversation form one sequence if each prompt extends the previous one."""
        sequences: list[tuple[list[int], list[int]]] = []
        for example in examples:
            prompt = [] if example.prompt is None else list(self.encode(loaded, example.prompt).input_ids)
            target = _target(loaded, example, prompt)
            ids, labels = sequences[-1] if sequences else ([], [])
            if not sequences or prompt[: len(ids)] != ids:
                ids, labels = [], []
                sequences.append((ids, labels))
            new = prompt[len(ids) :]
            hidden = _reasoning_length(loaded, example, target) if loss_on == "answer" else 0
            ids += [*new, *target]
            labels += [*(new if loss_on == "all" else [IGNORED] * len(new)), *[IGNORED] * hidden, *target[hidden:]]
        return [Features(tuple(ids), tuple(labels)) for ids, labels in sequences]

    def collate(self, loaded: Loaded, batch: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        ids, mask = pad([row.input_ids for row in batch], self.pad_id(loaded), loaded.device, left=True)
        return {"input_ids": ids, "attention_mask": mask}

    def output_start(self, inputs: dict[str, torch.Tensor]) -> int:
        return int(inputs["input_ids"].shape[1])

    def room(self, loaded: Loaded, encoded: Encoded) -> int | None:
        tokens = loaded.context.tokens
        return None if tokens is None or not loaded.context.hard else tokens - len(encoded.input_ids)

    def batch(self, lines: Sequence[Line], *, pad_id: int, packed: bool = False, masked: bool = True) -> Batch:
        if packed:
            return _packed(lines)
        labels, keep = shifted(fill([line["labels"] for line in lines], IGNORED))
        return Batch(padded(lines, pad_id, masked=masked), labels, keep)

    def loss(self, model: Any, batch: Batch, objective: Objective) -> torch.Tensor:
        output, states = self.states(model, batch, objective)
        loss = objective.label_loss(states, batch)
        if objective.balances and (count := self.predictions(batch)):
            loss = loss + objective.balance(output, count)
        return loss

    def states(self, model: Any, batch: Batch, objective: Objective) -> tuple[Any, torch.Tensor]:
        assert batch.keep is not None
        routers = {"output_router_logits": True} if objective.balances else {}
        # The default cache leaks between packed examples, and is useless here.
        arguments = {**batch.inputs, **routers, "use_cache": False}
        if (projection := objective.projection_for(batch)) is not None:
            output, hidden = projection.run(model, arguments)
            return output, _kept(hidden, batch)
        if objective.keeps:
            output = model(**arguments, logits_to_keep=batch.keep)
            return output, output.logits
        output = model(**arguments)
        return output, _kept(output.logits, batch)

    def target_loss(self, loaded: Loaded, features: Features, objective: Objective) -> tuple[float, int]:
        """See `WritingHead`. A text longer than the context is read in `windows`."""
        total, count = 0.0, 0
        for begin, end, fresh in windows(len(features.input_ids), loaded.context.tokens):
            labels = [*[IGNORED] * (fresh - begin), *features.labels[fresh:end]]
            if wanted := len(labels) - labels.count(IGNORED):
                line = {"input_ids": features.input_ids[begin:end], "labels": labels}
                total += self.line_loss(loaded, line, objective)
                count += wanted
        return total, count


def _kept(states: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Logits or hidden states at the positions that predict a label; prompt tuning puts virtual tokens in front."""
    return states[:, states.shape[1] - batch.inputs["input_ids"].shape[1] :][:, batch.keep]


def windows(length: int, context: int | None) -> Iterator[tuple[int, int, int]]:
    """Start and end of each window of a long text, and its first token that counts.

    Windows overlap by half, and a token counts in the first window that has it, so that at least half a context
    precedes it, except in the first window. (As in the perplexity guide of Transformers.)
    """
    size = min(length, context or length)
    end = size
    yield 0, end, 1
    while end < length:
        fresh = end
        end = min(length, end + max(1, size // 2))
        yield end - size, end, fresh


def _packed(lines: Sequence[Line]) -> Batch:
    import torch

    ids = [token for line in lines for token in line["input_ids"]]
    positions = [place for line in lines for place in range(len(line["input_ids"]))]
    labels = [label for line in lines for label in line["labels"]]
    for start in accumulate(len(line["labels"]) for line in lines[:-1]):
        labels[start] = IGNORED  # would be predicted from the preceding example
    kept, keep = shifted(torch.tensor([labels]))
    inputs = {"input_ids": torch.tensor([ids]), "position_ids": torch.tensor([positions])}
    return Batch(inputs, kept, keep)


# What the model writes after a prompt.


def _target(loaded: Loaded, example: Example, prompt: Sequence[int]) -> list[int]:
    """Ids of the answer and of the tokens that end it."""
    tokenizer, text = loaded.tokenizer, example.target
    match example.prompt:
        case None:
            return [*CausalHead().encode(loaded, Text(text)).input_ids, end_id(loaded)]
        case Chat() as chat:
            before = render_chat(tokenizer, chat)
            if example.reply is not None:
                return _rendered(loaded, chat, example.reply, before, prompt)
            reply = _reply(tokenizer, chat, before, text)
            return [*_continuation(tokenizer, before, reply, prompt, False), *_turn_end(loaded, chat)]
        case Text(text=before, prefill=prefill):
            return [*_continuation(tokenizer, before + prefill, text, prompt, True), end_id(loaded)]
        case _:
            raise UsageError(
                "a causal model takes text or messages", "render the row for its head", code="not_supported"
            )


def _reasoning_length(loaded: Loaded, example: Example, target: Sequence[int]) -> int:
    """How many tokens of a reply are its reasoning, as it is split from the answer at inference."""
    if not isinstance(example.prompt, Chat):
        return 0
    reasoning = reasoning_format(loaded.tokenizer)
    splitter = reasoning.splitter("" if example.prompt.prefill else render_chat(loaded.tokenizer, example.prompt))
    stream = TextStream(loaded.tokenizer, shown=reasoning.shown)
    pieces = [stream.push(token) for token in target]
    answer = "".join((*map(splitter.push, pieces), splitter.push(stream.flush()), splitter.flush()))
    text = "".join(pieces)
    if not splitter.marked or (start := text.rfind(answer)) < 0:
        return 0
    before = text[:start].rstrip()
    around = next((opening for opening, _ in AROUND_ANSWERS if before.endswith(opening)), "")
    start = len(before) - len(around) if around else start
    ends = enumerate(accumulate(map(len, pieces)), start=1)
    # Tokens without a text of their own are bytes of the answer's first character, or special tokens.
    return max((count for count, end in ends if end <= start and pieces[count - 1]), default=0)


def _rendered(loaded: Loaded, chat: Chat, reply: Message, before: str, prompt: Sequence[int]) -> list[int]:
    """Ids of a reply that the template renders, up to the token that ends its turn."""
    text = render_reply(loaded.tokenizer, chat, reply)
    if not reply.reasoning:
        text = _without_empty_block(reasoning_format(loaded.tokenizer), text)
    ids, stops = _continuation(loaded.tokenizer, before, text, prompt, False), turn_ends(loaded)
    last = max((place for place, token in enumerate(ids) if token in stops), default=None)
    return [*ids, end_id(loaded)] if last is None else ids[: last + 1]


def _without_empty_block(reasoning: ReasoningFormat, text: str) -> str:
    """A text that does not begin with an empty block of reasoning, which only costs tokens."""
    for opening, closing in reasoning.marks:
        text = re.sub(rf"\A{re.escape(opening)}\s*{re.escape(closing)}\s*", "", text)
    return text


def _continuation(tokenizer: Any, before: str, text: str, prompt: Sequence[int], special: bool) -> list[int]:
    """Ids of a text that follows a prompt with known ids.

    Tokenizers may merge across the border, which a model that continues the prompt cannot do. In that case, and if the
    tokenizer appends tokens, the ids are taken from tokenizing the text after a line break.
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
"""A reply without reasoning tags."""


def _reply(tokenizer: Any, chat: Chat, prompt: str, text: str) -> str:
    """The tokens to learn for a reply: the text, with reasoning tags where template and prompt require them."""
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
    """Tags before a reply without reasoning, so that the splitter returns the whole reply."""
    between = _without_empty_block(reasoning, reply_frame(tokenizer, chat)[0])
    opened = reasoning.opened(prompt)
    if not between and opened is None:
        return ""
    line = "\n" if prompt.endswith("\n") else ""
    closing = f"{line}{opened[1]}\n\n" if opened else ""
    for opening in (between, closing):
        ids = encode_text(tokenizer, opening + _PROBE, special=False)
        splitter = reasoning.splitter(prompt)
        found = splitter.push(str(tokenizer.decode(ids))) + splitter.flush()
        if found.lstrip() == _PROBE:  # Mistral's template puts a space before a reply
            return opening
    return ""  # the tokenizer has no such tag: the end of the reply ends the block


def _turn_end(loaded: Loaded, chat: Chat) -> list[int]:
    """What the chat template adds after a reply, up to the token that ends the output."""
    _, text = reply_frame(loaded.tokenizer, chat)
    ids, stops = encode_text(loaded.tokenizer, text, special=False), turn_ends(loaded)
    last = next((place for place, token in enumerate(ids) if token in stops), None)
    return [end_id(loaded)] if last is None else ids[: last + 1]
