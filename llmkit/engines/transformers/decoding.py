"""Generation with causal and seq2seq heads: the outputs of requests that share their settings.

Knows which requests of a batch may run in one call. Pieces of the outputs are emitted as they become final.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmkit.engines.base import Answer, Request
from llmkit.engines.transformers.batching import take_batch
from llmkit.engines.transformers.generation_settings import generation_config
from llmkit.engines.transformers.groups import Group, compatibility, divide
from llmkit.engines.transformers.joined_batch import JoinedBatch, supports_joining
from llmkit.engines.transformers.model_calls import ModelCalls
from llmkit.engines.transformers.output_rows import OutputRow
from llmkit.engines.transformers.outputs import RequestOutput, settings_of

if TYPE_CHECKING:
    from llmkit.config.settings import GenerationSettings
    from llmkit.engines.transformers.prompt_cache import PromptCache
    from llmkit.heads.base import Encoded
    from llmkit.heads.writing import WritingHead
    from llmkit.models.load import Loaded

__all__ = ["generate", "model_calls", "prefill_tokens"]

_PREFILL_TOKENS = {"cpu": 512, "mps": 2048}
"""Prompts of this many tokens in total, padding included, fill the device. Longer prompts are prefilled alone, where
attention needs no mask, which is twice as fast on a CPU."""
_PREFILL_TOKENS_ELSEWHERE = 8192


def prefill_tokens(loaded: Loaded) -> int:
    """Maximum number of tokens of prompts that are prefilled together."""
    return _PREFILL_TOKENS.get(loaded.device.type, _PREFILL_TOKENS_ELSEWHERE)


def generate(
    loaded: Loaded, head: WritingHead, requests: Sequence[Request], cache: PromptCache | None = None
) -> list[Answer]:
    """The outputs of requests with the same settings and ``scored``, whose adapters can share a batch.

    Each output stops at EOS, at a stop string, at ``max_new_tokens`` (which must be set) or when the context is full.
    Beam search emits an output when the beams are done. The outputs of a cancelled request end after the next token,
    as ``interrupted``.

    Args:
        cache: KV cache of an earlier prompt, for a single request; the shared prefix is not processed again.
    """
    settings = settings_of(requests[0])
    assert settings.max_new_tokens is not None
    outputs = [RequestOutput.of(loaded.view(request.adapter), request) for request in requests]
    batch = [request.encoded for request in requests]
    rooms = [head.room(loaded.view(request.adapter), request.encoded) for request in requests]
    with loaded.lock:
        shared = compatibility(loaded, head, batch)
    for group in divide(batch, rooms, settings.max_new_tokens, shared):
        if all(requests[index].cancelled() for index in group.indices):
            continue
        calls = model_calls(loaded, head, settings, group, scored=requests[0].scored)
        texts = (*settings.stop, *calls.stop)
        rows = [row for index in group.indices for row in outputs[index].rows(calls.config, texts)]
        with loaded.lock:
            _generate(calls, head, [batch[index] for index in group.indices], rows, settings.seed, cache)
    return [each.answer() for each in outputs]


def model_calls(
    loaded: Loaded, head: WritingHead, settings: GenerationSettings, group: Group, *, scored: bool
) -> ModelCalls:
    """The calls of the model for a group of prompts."""
    config = generation_config(loaded, settings, group.limit, group.forced_bos_token_id, group.ends)
    config.pad_token_id = head.pad_id(loaded)
    return ModelCalls(loaded, config, scored, settings.logprobs)


def _generate(
    calls: ModelCalls,
    head: WritingHead,
    batch: Sequence[Encoded],
    rows: Sequence[OutputRow],
    seed: int | None,
    cache: PromptCache | None,
) -> None:
    """Generate all rows to their ends."""
    import torch

    devices = [calls.loaded.device] if calls.loaded.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices, enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        if cache is None and len(rows) > 1 and supports_joining(calls, head):
            _generate_joined(calls, head, batch, rows)
        else:
            _generate_at_once(calls, head, batch, rows, cache)
    for row in rows:
        if not row.done:
            if row.cancelled():
                row.interrupt()
            else:
                row.run_out()


def _generate_at_once(
    calls: ModelCalls,
    head: WritingHead,
    batch: Sequence[Encoded],
    rows: Sequence[OutputRow],
    cache: PromptCache | None,
) -> None:
    """Generate in one call of the model."""
    inputs, kept = head.collate(calls.loaded, batch), None
    if cache is not None and not calls.beams:
        kept = cache.take(calls.loaded, inputs["input_ids"][0].tolist())
    output = calls.run(rows, inputs, kept)
    if calls.beams:
        sequences = output.sequences[:, head.output_start(inputs) :].tolist()
        for row, sequence in zip(rows, sequences, strict=True):
            if not row.cancelled():
                row.push_all(sequence)
    elif cache is not None:
        cache.put(output.sequences[0].tolist())


def _generate_joined(calls: ModelCalls, head: WritingHead, batch: Sequence[Encoded], rows: Sequence[OutputRow]) -> None:
    """Prefill prompts of similar length together, decode all rows together, and drop rows as they end."""
    joined, per_prompt, at = JoinedBatch(calls, head), len(rows) // len(batch), 0
    while at < len(batch):
        some = take_batch(batch, at, lambda encoded: len(encoded.input_ids), prefill_tokens(calls.loaded))
        own = rows[at * per_prompt : (at + len(some)) * per_prompt]
        at += len(some)
        if not all(row.cancelled() for row in own):
            joined.admit(some, own)
    while joined.active:
        joined.advance()
