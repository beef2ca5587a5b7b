"""The distribution of the next token, in readable form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from llmkit.errors import ContextOverflowError, InputError, UsageError
from llmkit.heads import head_of
from llmkit.heads.base import refuse_not_finite, refuse_unknown_ids
from llmkit.heads.batch import IGNORED
from llmkit.heads.objective import Objective
from llmkit.heads.text_stream import readable_token
from llmkit.heads.writing import WritingHead
from llmkit.models.load import Loaded
from llmkit.tasks import Prompt, Text, TokenLogprob

__all__ = ["NextToken", "next_tokens", "token_logprobs"]

_CONTEXT = 8
"""Tokens in front of one that are decoded with it."""
_LOGITS = 2**22
"""Logits whose log probabilities are computed at once."""


@dataclass(frozen=True)
class NextToken:
    """One candidate. ``text`` is what it adds to the text; bytes of a partial character are shown as ``<E5 A4>``."""

    id: int
    token: str
    text: str
    probability: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def next_tokens(loaded: Loaded, text: str | Prompt, *, top: int = 10) -> list[NextToken]:
    """The ``top`` most probable next tokens after ``text``, with probabilities over the whole vocabulary.

    A text is continued as it is, without a chat template. With a seq2seq model it is the encoder's input, and the
    distribution is over the first output token.
    """
    head = head_of(loaded.head)
    assert isinstance(head, WritingHead)  # the task is always text generation
    encoded = head.encode(loaded, Text(text) if isinstance(text, str) else text)
    refuse_unknown_ids(loaded, encoded.input_ids)
    _check_length(loaded, encoded.input_ids)
    logits = head.next_logits(loaded, encoded)
    refuse_not_finite(loaded, logits)
    probabilities = logits.float().cpu().softmax(dim=-1)
    values, ids = probabilities.topk(min(top, len(probabilities)))
    return [
        NextToken(
            id=token_id,
            token=str(loaded.tokenizer.convert_ids_to_tokens(token_id)),
            text=readable_token(loaded.tokenizer, token_id, encoded.continues),
            probability=value,
        )
        for value, token_id in zip(values.tolist(), ids.tolist(), strict=True)
    ]


def _check_length(loaded: Loaded, ids: Sequence[int]) -> None:
    if not ids:
        raise InputError("the text has no tokens", "give at least one character", code="empty_input")
    limit = loaded.context.tokens
    if limit is not None and loaded.context.hard and len(ids) > limit:
        raise ContextOverflowError(
            f"the text has {len(ids)} tokens and the context of {loaded.source.name} is {limit}", "shorten it"
        )


def token_logprobs(loaded: Loaded, prompt: Text, *, top: int = 0) -> list[TokenLogprob]:
    """The tokens of a text with the log probability of each after those before it, which for the first is NaN.

    Args:
        top: number of the most probable tokens at each place.

    Raises:
        UsageError: the model is an encoder-decoder, whose input has no probabilities.
    """
    import torch

    head = head_of(loaded.head)
    if not (isinstance(head, WritingHead) and head.one_sequence):
        raise UsageError(
            f"{loaded.source.name} does not predict its input, whose tokens have no probabilities",
            "use a causal model",
            code="not_supported",
        )
    ids = head.encode(loaded, prompt).input_ids
    refuse_unknown_ids(loaded, ids)
    _check_length(loaded, ids)
    found = [_logprob(loaded, ids, 0, math.nan)]
    if len(ids) == 1:
        return found
    batch = head.batch([{"input_ids": ids, "labels": [IGNORED, *ids[1:]]}], pad_id=head.pad_id(loaded), masked=False)
    batch = batch.to(loaded.device)
    objective = Objective.of(loaded.model, head).for_evaluation().in_chunks(loaded.model, len(ids), ())
    projection = objective.projection_for(batch)
    with torch.inference_mode():
        (states,) = head.states(loaded.model, batch, objective)[1]
        width = states.shape[-1] if projection is None else projection.width
        for part in states.split(max(1, _LOGITS // width)):
            logits = part if projection is None else projection.logits(part)
            refuse_not_finite(loaded, logits)
            values = logits.float().log_softmax(dim=-1)
            best = values.topk(top)
            for row, top_values, top_ids in zip(values, best.values.tolist(), best.indices.tolist(), strict=True):
                place = len(found)
                others = zip(top_ids, top_values, strict=True)
                likely = tuple(_logprob(loaded, (*ids[:place], token), place, value) for token, value in others)
                found.append(replace(_logprob(loaded, ids, place, float(row[ids[place]])), top=likely))
    return found


def _logprob(loaded: Loaded, ids: Sequence[int], place: int, value: float) -> TokenLogprob:
    text = readable_token(loaded.tokenizer, ids[place], ids[max(0, place - _CONTEXT) : place])
    return TokenLogprob(ids[place], text, value)
