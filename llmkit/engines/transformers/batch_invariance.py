"""Which rows a model can generate in one batch without changing any row's output, found by running it.

No attribute of a model shows it. Decoders that count positions from the first column (BART's, Whisper's, XLNet) and
block attention change a row's output when other rows pad it: such a model gets batches of equally long rows. A few mix
the rows of any batch (the state of RWKV in Transformers 5): they get one row at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from llmkit.models.generation import without_own_settings
from llmkit.models.logits import difference, tolerance

if TYPE_CHECKING:
    from llmkit.heads.base import Encoded
    from llmkit.heads.writing import WritingHead
    from llmkit.models.load import Loaded

__all__ = ["BatchCompatibility", "probe_batch_invariance"]

_SHORT, _LONG = 7, 40
"""Lengths of the probe rows, in tokens."""

BatchCompatibility = Literal["any", "equally long", "none"]

_known: WeakKeyDictionary[Any, BatchCompatibility] = WeakKeyDictionary()


def probe_batch_invariance(loaded: Loaded, head: WritingHead, batch: Sequence[Encoded]) -> BatchCompatibility:
    """Which rows may share a batch. Probed once per model, with its own prompts."""
    model: Any = loaded.model
    if model not in _known:
        by_length = sorted(batch, key=lambda encoded: len(encoded.input_ids))
        first, last = by_length[0], by_length[-1]
        row, longer, other = _of_length(first, _SHORT), _of_length(last, _LONG), _of_length(last, _SHORT)
        alone, padded = (_logits(loaded, head, rows) for rows in ([row], [row, longer]))
        most = tolerance(model.dtype)
        if not _differ(alone, padded, most):
            _known[model] = "any"
        else:
            beside = _logits(loaded, head, [row, other])
            _known[model] = "none" if _differ(alone, beside, most) else "equally long"
    return _known[model]


def _differ(alone: Sequence[Any], padded: Sequence[Any], most: float) -> bool:
    for one, other in zip(alone, padded, strict=False):
        if difference(one, other) > most:
            return True
        if one.argmax() != other.argmax():  # a tie, after which the two went on differently
            return False
    return False


def _of_length(encoded: Encoded, count: int) -> Encoded:
    ids = encoded.input_ids or (0,)
    return replace(encoded, input_ids=(ids * (count // len(ids) + 1))[:count])


def _logits(loaded: Loaded, head: WritingHead, batch: Sequence[Encoded]) -> list[Any]:
    """Logits of the first row's first two tokens, the second computed from the cache: ``[vocabulary]`` each."""
    import torch
    from transformers import GenerationConfig

    model: Any = loaded.model
    own = model.generation_config
    config = GenerationConfig(max_new_tokens=2, pad_token_id=head.pad_id(loaded), eos_token_id=own.eos_token_id)
    config.update(output_logits=True, return_dict_in_generate=True, bos_token_id=own.bos_token_id)
    config.update(decoder_start_token_id=own.decoder_start_token_id, use_cache=own.use_cache)
    inputs = head.collate(loaded, [replace(each, decoder_ids=batch[0].decoder_ids) for each in batch])
    with loaded.active(), torch.inference_mode(), without_own_settings(model):
        output = model.generate(**inputs, generation_config=config)
    # Infinities mark tokens that a head cannot write.
    return [step[0].float().nan_to_num(0.0, 0.0, 0.0) for step in output.logits]
