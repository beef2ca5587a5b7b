"""What a head does: prompts to tensors, where in the output the new tokens begin, and what is learned from examples.

Knows tokenizers and tensors. Does not know tasks, files or batching order.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

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
    "cut_to_fit",
    "embedding_count",
    "encode_text",
    "pad",
    "refuse_halves",
    "refuse_not_finite",
    "refuse_unknown_ids",
]


@dataclass(frozen=True)
class Encoded:
    """One prompt as token ids."""

    input_ids: tuple[int, ...]
    decoder_ids: tuple[int, ...] = ()
    """Seq2seq: what the decoder starts from (start token, forced language, prefill)."""
    continues: tuple[int, ...] = ()
    """Tokens whose text the output continues, so that a leading space survives decoding."""
    forced_bos_token_id: int | None = None
    """Seq2seq: the token that must come first, where it is another than the model's own (the target language)."""
    stop: tuple[str, ...] = ()
    """Texts that end the output, beside those of the caller."""
    ends: frozenset[int] = frozenset()
    """Tokens that end the output, beside those of the model's generation settings."""


@dataclass(frozen=True)
class Features:
    """One training example as ids, as the models of Transformers take them."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...] = ()
    """`IGNORED` where there is no loss. Causal: one for each input id, which the model shifts itself. Seq2seq: one for
    each of ``decoder_input_ids``, what the decoder is to write after it. Span: none."""
    decoder_input_ids: tuple[int, ...] = ()
    token_type_ids: tuple[int, ...] = ()
    start_positions: tuple[int, ...] = ()
    """Span: index in ``input_ids`` of each answer's first token; that of the null answer if there is none here."""
    end_positions: tuple[int, ...] = ()
    """Span: of their last tokens."""


class BaseHead(Protocol):
    """How a kind of model takes prompts and examples and what becomes of its logits; one class each.

    Has no state: the model is an argument.
    """

    name: ClassVar[Head]
    unit: ClassVar[str] = "predicted token"
    """What a loss is the mean of."""

    @property
    def writes(self) -> bool:
        """Whether it generates text; else it marks answers in one (`Generation.reading`)."""
        return HEADS[self.name].writes

    @property
    def one_sequence(self) -> bool:
        """Whether prompt and output are one sequence, which share a context and can be packed."""
        return HEADS[self.name].one_sequence

    @property
    def target_apart(self) -> bool:
        """Whether the output has positions of its own."""
        return self.writes and not self.one_sequence

    # A prompt.

    def encode(self, loaded: Loaded, prompt: Prompt) -> Encoded:
        """A prompt to ids, special tokens included."""

    def room(self, loaded: Loaded, encoded: Encoded) -> int | None:
        """How many tokens the model can write after this prompt; None where nothing limits it."""
        return None

    def output_limit(self, loaded: Loaded) -> int | None:
        """How many tokens an output may have, where it has positions of its own; None: any number."""
        return None

    def pad_id(self, loaded: Loaded) -> int:
        """An id to fill batches with; masked everywhere, so any will do where the model has none of its own."""

    # Examples.

    def features(self, loaded: Loaded, examples: Sequence[Example], *, loss_on_all: bool) -> list[Features]:
        """What is learned from the examples of one row.

        The ids of a prompt are those of `encode`, so that what was trained is what is asked later.
        """

    def batch(self, lines: Sequence[Line], *, pad_id: int, packed: bool = False, masked: bool = True) -> Batch:
        """Examples to one micro-batch.

        Args:
            packed: as one row, whose ``position_ids`` begin anew at each example; for one sequence only.
            masked: with an attention mask. Padding stands on the right, where a model that sees nothing ahead needs
                none, and attention without one takes less memory and time.
        """

    def predictions(self, batch: Batch) -> int:
        """What the loss of an update is divided by: the `unit` in a micro-batch."""
        return int((batch.labels != IGNORED).sum())

    def loss(self, model: Any, batch: Batch, objective: Objective) -> torch.Tensor:
        """The sum of the losses of a micro-batch on the model's device; 0 with a gradient if nothing is predicted."""

    def logits(self, output: Any) -> torch.Tensor:
        """All logits in what a model gave, to compare it with another."""

    def probe(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Inputs of a model from any ids, to try it with."""
        import torch

        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def encode_text(tokenizer: Any, text: str, *, special: bool = True) -> list[int]:
    """Ids of a text, with the tokenizer's own special tokens unless ``special`` is False."""
    refuse_halves(text)
    # Length is checked by the caller, who knows what to do about it; the tokenizer would only warn.
    return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])


_HALF = re.compile("[\ud800-\udfff]")


def refuse_halves(text: str) -> None:
    """`InputError` for a text that is no Unicode, which tokenizers do not take."""
    if not (found := _HALF.search(text)):
        return
    code, place = ord(found[0]), found.start() + 1
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte of a command line in another encoding
        raise InputError(f"the text is not UTF-8 (byte 0x{code - 0xDC00:02x} at character {place})", "give it as UTF-8")
    raise InputError(
        f"the text has half of a surrogate pair (U+{code:04X}, character {place})", "remove it, or complete the pair"
    )


def embedding_count(model: Any) -> int | None:
    """How many tokens a model has embeddings for; None where it has no table of them."""
    try:
        table = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    count = getattr(table, "num_embeddings", None)
    shape: Sequence[int] = getattr(getattr(table, "weight", None), "shape", ())
    return count if isinstance(count, int) else int(shape[0]) if len(shape) == 2 else None


def refuse_unknown_ids(loaded: Loaded, ids: Sequence[int], count: int | None = None) -> None:
    """`InputError` where a text has a token that the model does not have: on a GPU nothing would work after it.

    Args:
        count: how many it has, where embeddings are still to be added.
    """
    count = embedding_count(loaded.model) if count is None else count
    highest = max(ids, default=0)
    if count is None or highest < count:
        return
    token = loaded.tokenizer.convert_ids_to_tokens(highest)
    raise InputError(
        f"the text has the token {token!r} (id {highest}), and {loaded.source.name} has embeddings of {count} tokens",
        "remove it from the text, or use the tokenizer that the model was trained with",
    )


def cut_to_fit(tokenizer: Any, text: str, side: TruncationSide, excess: Callable[[str], int]) -> str | None:
    """What is left of a text that is cut at one side, in training as at inference; None if nothing is.

    Args:
        excess: how many tokens too long the prompt is with what is left; the text is cut until there are none.
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
    """Rows of ids to ``(ids, mask)``, both ``[batch, longest]``; the mask is 1 on real tokens.

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
    """Raise if logits hold NaN or infinity, of which any answer would be nonsense; -inf stands for "never this"."""
    import torch

    if bool((logits.amax(-1) < math.inf).all()):  # which NaN is not either
        return
    dtype = str(loaded.model.dtype).removeprefix("torch.")
    fix = "use another checkpoint" if loaded.model.dtype == torch.float32 else "use `dtype=float32`"
    raise CheckpointError(f"{loaded.source.name} computes NaN or infinity in {dtype}", fix)
