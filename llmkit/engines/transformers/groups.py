"""Which prompts of a batch can be generated together: none may change the output of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmkit.engines.transformers.batch_invariance import BatchCompatibility, probe_batch_invariance
from llmkit.heads.end_tokens import text_ends

if TYPE_CHECKING:
    from llmkit.heads.base import Encoded
    from llmkit.heads.writing import WritingHead
    from llmkit.models.load import Loaded

__all__ = ["Group", "batch_key", "compatibility", "divide"]

_DEPENDS_ON_PADDING = ("encoder_no_repeat_ngram_size", "encoder_repetition_penalty", "min_length")
"""Settings whose effect on a causal model would change with the padding in front of a prompt."""


@dataclass(frozen=True)
class Group:
    """Prompts that can be generated together, by their index in the batch."""

    indices: list[int]
    limit: int
    forced_bos_token_id: int | None
    ends: frozenset[int]


def batch_key(loaded: Loaded, head: WritingHead) -> object:
    """What requests for adapters of one base model need to have in common to share a batch."""
    if loaded.shared is None or loaded.adapter not in loaded.shared.mixed:
        return loaded.adapter
    return head.pad_id(loaded), text_ends(loaded)


def compatibility(loaded: Loaded, head: WritingHead, batch: Sequence[Encoded]) -> BatchCompatibility:
    """Which prompts may share a batch."""
    own = loaded.model.generation_config
    if head.one_sequence and any(getattr(own, name, None) for name in _DEPENDS_ON_PADDING):
        return "none"
    return probe_batch_invariance(loaded, head, batch) if len(batch) > 1 else "any"


def divide(
    batch: Sequence[Encoded], rooms: Sequence[int | None], max_new_tokens: int, shared: BatchCompatibility
) -> list[Group]:
    """Divide prompts into groups that can be generated together, each with its output limit.

    A prompt whose context fills up before ``max_new_tokens`` runs alone: in a batch it would continue with the others,
    past its last position. All prompts of a group have the same forced language and the same end tokens.
    """
    together: dict[tuple[int | None, frozenset[int], int], list[int]] = {}
    alone = []
    for index, (encoded, room) in enumerate(zip(batch, rooms, strict=True)):
        if room is None or room >= max_new_tokens:
            kind = {"any": 0, "equally long": len(encoded.input_ids), "none": index}[shared]
            together.setdefault((encoded.forced_bos_token_id, encoded.ends, kind), []).append(index)
        else:
            alone.append(Group([index], room, encoded.forced_bos_token_id, encoded.ends))
    return [Group(indices, max_new_tokens, forced, ends) for (forced, ends, _), indices in together.items()] + alone
