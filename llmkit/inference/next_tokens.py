"""The distribution of the next token, in readable form."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from llmkit.errors import ContextOverflowError
from llmkit.heads import head_of
from llmkit.heads.base import refuse_not_finite, refuse_unknown_ids
from llmkit.heads.text_stream import readable_token
from llmkit.heads.writing import WritingHead
from llmkit.models.load import Loaded
from llmkit.tasks import Prompt, Text

__all__ = ["NextToken", "next_tokens"]


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
    limit = loaded.context.tokens
    if limit is not None and loaded.context.hard and len(encoded.input_ids) > limit:
        raise ContextOverflowError(
            f"the text has {len(encoded.input_ids)} tokens and the context of {loaded.source.name} is {limit}",
            "shorten it",
        )
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
