"""The head protocol: prompts to tensors, where new tokens begin in the output, and training examples with labels.

Knows tokenizers and tensors. Does not know tasks, files or batching order.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from llmkit.config.settings import TruncationSide
from llmkit.errors import CheckpointError, InputError
from llmkit.heads.batch import IGNORED, Batch, Line
from llmkit.models.tables import HEADS
from llmkit.tasks import Example, Head, Prompt

if TYPE_CHECKING:
    import torch

    from llmkit.heads.objective import Objective
    from llmkit.models.load import Loaded

__all__ = [
    "IGNORED",
    "BaseHead",
    "Encoded",
    "Features",
    "LossOn",
    "cut_to_fit",
    "embedding_count",
    "encode_text",
    "pad",
    "refuse_halves",
    "refuse_not_finite",
    "refuse_unknown_ids",
]


LossOn = Literal["target", "all", "answer"]
"""What has a loss: the expected output, the prompt too, or only the answer in the output, without the reasoning."""


@dataclass(frozen=True)
class Encoded:
    """One prompt as token ids."""

    input_ids: tuple[int, ...]
    decoder_ids: tuple[int, ...] = ()
    """Seq2seq: ids that the decoder starts from (start token, forced language, prefill)."""
    continues: tuple[int, ...] = ()
    """Last tokens of the prompt, decoded with the output so that a leading space survives."""
    forced_bos_token_id: int | None = None
    """Seq2seq: the forced first token (target language), if it differs from the model's own."""
    stop: tuple[str, ...] = ()
    """Stop strings in addition to the caller's."""
    ends: frozenset[int] = frozenset()
    """End tokens in addition to the model's generation settings."""


@dataclass(frozen=True)
class Features:
    """One training example as token ids for a model of Transformers."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...] = ()
    """`IGNORED` where there is no loss. Causal: one per input id; the model shifts them. Seq2seq: one per decoder input
    id, the token to predict after it. Span: empty."""
    decoder_input_ids: tuple[int, ...] = ()
    token_type_ids: tuple[int, ...] = ()
    start_positions: tuple[int, ...] = ()
    """Span: index in ``input_ids`` of each answer's first token; of the null answer if this window has no answer."""
    end_positions: tuple[int, ...] = ()
    """Span: index of each answer's last token."""
    rejected_input_ids: tuple[int, ...] = ()
    """Preferences: the sequence with the rejected answer; of an undesirable answer the only one."""
    rejected_labels: tuple[int, ...] = ()


class BaseHead(Protocol):
    """How a kind of model encodes prompts and examples, and how its logits are used; one class per kind.

    Stateless: the model is an argument.
    """

    name: ClassVar[Head]
    unit: ClassVar[str] = "predicted token"
    """What the loss is averaged over."""

    @property
    def writes(self) -> bool:
        """Whether it generates text; otherwise it extracts answers from one (`Generation.span_prediction`)."""
        return HEADS[self.name].writes

    @property
    def one_sequence(self) -> bool:
        """Whether prompt and output form one sequence with one context, so that examples can be packed."""
        return HEADS[self.name].one_sequence

    @property
    def target_apart(self) -> bool:
        """Whether the output has its own positions."""
        return self.writes and not self.one_sequence

    # A prompt.

    def encode(self, loaded: Loaded, prompt: Prompt) -> Encoded:
        """Token ids of a prompt, special tokens included."""

    def room(self, loaded: Loaded, encoded: Encoded) -> int | None:
        """How many tokens the model can generate after this prompt; None: no limit."""
        return None

    def output_limit(self, loaded: Loaded) -> int | None:
        """Maximum tokens of an output with its own positions; None: no limit."""
        return None

    def pad_id(self, loaded: Loaded) -> int:
        """A padding id; always masked, so any id serves for a model without a padding token."""

    # Examples.

    def features(self, loaded: Loaded, examples: Sequence[Example], *, loss_on: LossOn) -> list[Features]:
        """Training features from the examples of one row.

        Prompts have the same ids as from `encode`, so that training and inference agree.
        """

    def batch(self, lines: Sequence[Line], *, pad_id: int, packed: bool = False, masked: bool = True) -> Batch:
        """Collate examples into one micro-batch.

        Args:
            packed: as one row, whose ``position_ids`` restart at each example; causal heads only.
            masked: with an attention mask. Padding is on the right, where a causal model needs no mask; attention
                without one takes less memory and time.
        """

    def predictions(self, batch: Batch) -> int:
        """What the loss of an update is divided by: the number of `unit` in a micro-batch."""
        return int((batch.labels != IGNORED).sum())

    def loss(self, model: Any, batch: Batch, objective: Objective) -> torch.Tensor:
        """The summed loss of a micro-batch, on the model's device; a differentiable 0 if nothing is predicted."""

    def logits(self, output: Any) -> torch.Tensor:
        """All logits in a model's output, to compare two models."""

    def probe(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Model inputs from arbitrary ids, for probing."""
        import torch

        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def encode_text(tokenizer: Any, text: str, *, special: bool = True) -> list[int]:
    """Token ids of a text, with the tokenizer's special tokens unless ``special`` is False."""
    refuse_halves(text)
    # Length is checked by the caller, who knows what to do about it; the tokenizer would only warn.
    return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])


_HALF = re.compile("[\ud800-\udfff]")


def refuse_halves(text: str) -> None:
    """`InputError` for a text that is not valid Unicode, which tokenizers reject."""
    if not (found := _HALF.search(text)):
        return
    code, place = ord(found[0]), found.start() + 1
    if 0xDC80 <= code <= 0xDCFF:  # Python's surrogate escape for a byte in another encoding
        raise InputError(
            f"the text is not UTF-8 (byte 0x{code - 0xDC00:02x} at character {place})",
            "convert it to UTF-8",
            code="wrong_encoding",
        )
    raise InputError(
        f"the text has half of a surrogate pair (U+{code:04X}, character {place})",
        "remove it, or complete the pair",
        code="wrong_encoding",
    )


def embedding_count(model: Any) -> int | None:
    """Number of token embeddings of a model; None if it has no embedding table."""
    try:
        table = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    count = getattr(table, "num_embeddings", None)
    shape: Sequence[int] = getattr(getattr(table, "weight", None), "shape", ())
    return count if isinstance(count, int) else int(shape[0]) if len(shape) == 2 else None


def refuse_unknown_ids(loaded: Loaded, ids: Sequence[int]) -> None:
    """`InputError` for a token without an embedding: on a GPU it would make the device unusable."""
    count = embedding_count(loaded.model)
    highest = max(ids, default=0)
    if count is None or highest < count:
        return
    token = loaded.tokenizer.convert_ids_to_tokens(highest)
    raise InputError(
        f"the text has the token {token!r} (id {highest}), and {loaded.source.name} has embeddings of {count} tokens",
        "remove it from the text, or use the tokenizer that the model was trained with",
    )


def cut_to_fit(tokenizer: Any, text: str, side: TruncationSide, excess: Callable[[str], int]) -> str | None:
    """A text truncated at one side, in training as at inference; None if nothing would remain.

    Args:
        excess: how many tokens too long the prompt is with a truncated text; the text is cut until it returns 0.
    """
    kept, rest = len(encode_text(tokenizer, text, special=False)), text
    while (over := excess(rest)) > 0:
        kept -= over
        rest = _kept(tokenizer, text, kept, side) if kept > 0 else ""
        if not rest.strip():
            return None
    return rest


def _kept(tokenizer: Any, text: str, count: int, side: TruncationSide) -> str:
    """About ``count`` tokens of a text, on a character boundary."""
    offsets: Any = None
    if tokenizer.is_fast:
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = encoding.get("offset_mapping")
    if offsets is not None:
        return text[offsets[-count][0] :] if side == "left" else text[: offsets[count][0]]

    def tokens(length: int) -> int:
        part = text[len(text) - length :] if side == "left" else text[:length]
        return len(encode_text(tokenizer, part, special=False))

    length = bisect_right(range(len(text) + 1), count, key=tokens) - 1
    return text[len(text) - length :] if side == "left" else text[:length]


def pad(rows: Sequence[Sequence[int]], pad_id: int, device: Any, *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad rows of ids to ``(ids, mask)``, both ``[batch, longest]``; the mask is 1 on real tokens.

    Done here and not by ``tokenizer.pad``: many models have no pad token, and the mask makes any id do.
    """
    import torch

    longest = max(len(row) for row in rows)
    ids, mask = [], []
    for row in rows:
        fill = longest - len(row)
        ids.append([pad_id] * fill + list(row) if left else list(row) + [pad_id] * fill)
        mask.append([0] * fill + [1] * len(row) if left else [1] * len(row) + [0] * fill)
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def refuse_not_finite(loaded: Loaded, logits: torch.Tensor) -> None:
    """Raise if logits contain NaN or infinity, which would make any answer nonsense; -inf means "never this token"."""
    import torch

    if bool((logits.amax(-1) < math.inf).all()):  # false for NaN too
        return
    dtype = str(loaded.model.dtype).removeprefix("torch.")
    fix = "use another checkpoint" if loaded.model.dtype == torch.float32 else "use `dtype=float32`"
    raise CheckpointError(f"{loaded.source.name} computes NaN or infinity in {dtype}", fix, code="not_finite")
