"""An estimate of what a training run needs: parameters, memory, updates.

Weights, gradients, optimizer states and the activations of a forward and a backward pass are counted. Activations that
cannot be counted are estimated after Korthikanti et al. (2022, equation 2 without the attention scores, which fused
kernels do not keep). Logits are counted for label tokens, or for one chunk of them (`llmkit.heads.projection`).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any

from llmkit.heads import head_of
from llmkit.heads.objective import Objective
from llmkit.heads.preference import make_objective
from llmkit.heads.projection import CHUNK, chunk_size
from llmkit.heads.token_loss import make_token_loss
from llmkit.models.memory import available_memory
from llmkit.training.activation_memory import ActivationBytes, activation_bytes
from llmkit.training.optimizer_check import state_bytes
from llmkit.training.prepare import Preparation
from llmkit.training.sampler import CPU_TOKENS, divide

__all__ = ["Plan", "make_plan"]

_FP32, _HALF = 4, 2
_LOGITS = 4 * _FP32
"""Bytes per logit: itself, its log probability and their gradients; in half precision, its first value too."""
_DISTILLED, _MIXED = 6 * _FP32, 10 * _FP32
"""Bytes per logit in addition, with a teacher: its logits, log-probabilities and divergences; with a mixture, more."""
_DTYPES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
_BYTES_PER_TOKEN_AND_WIDTH = 34
"""Activations of one layer, in half precision."""
_CHECKPOINTED = 2
"""The same with activation checkpointing, which keeps only the inputs of layers but for one."""
_CPU_FRAGMENTATION = 1.5
"""Factor for activations on a CPU without activation checkpointing, where glibc leaves gaps between aligned blocks.
With it, the estimates for the adapters in ``benchmarks/quality`` are 1 to 6 % below their actual memory."""
_QUANTIZED = {"8bit": 1.0, "4bit": 0.55}
"""Bytes per parameter, including scales."""


@dataclass(frozen=True)
class Plan:
    """Sizes in bytes, on each device."""

    parameters: int
    trainable: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    teacher: int
    """Its weights, and its part of the logits and of what is computed from them."""
    available: int
    updates: int
    """Optimizer steps."""

    @property
    def memory(self) -> int:
        """The total."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits + self.teacher


def make_plan(ready: Preparation) -> Plan:
    """The estimate for a recipe, with its longest examples in each batch."""
    recipe, part, device = ready.recipe, ready.examples.train, ready.device
    half = ready.half or recipe.train.fp16
    vocabulary = len(ready.loaded.tokenizer)
    parameters = {id(each): each for each in ready.model.parameters()}.values()
    total = sum(each.numel() for each in parameters)
    trainable = sum(each.numel() for each in parameters if each.requires_grad)
    quantize = getattr(recipe.model, "quantize", None)
    frozen_bytes = _QUANTIZED.get(str(quantize), 2.0 if half else float(_FP32))
    whole = recipe.train.torch_compile or recipe.accelerate.fsdp_config is not None
    objective = make_objective(ready.model, head_of(ready.loaded.head), make_token_loss(recipe.train), recipe.method)
    objective = objective.without_logits(ready.model)
    longest = _longest_batch(ready, objective)
    targets = max(part.examples["targets"][:], default=0) * len(longest)
    logits = targets * vocabulary if part.examples["labels"][0] else 0
    if objective.projection is not None and not whole and logits > CHUNK:
        output = ready.model.get_output_embeddings()
        trained = any(each.requires_grad for each in output.parameters())
        logits = chunk_size(device, trained=trained)
    logits_bytes = logits * (_LOGITS + half * _HALF)
    activations = _activations(ready, objective, longest, half=half)
    gaps = _CPU_FRAGMENTATION if device == "cpu" and not recipe.train.activation_checkpointing else 1
    return Plan(
        parameters=total,
        trainable=trainable,
        weights=int((total - trainable) * frozen_bytes + trainable * _FP32),
        gradients=trainable * _FP32,
        optimizer=int(trainable * state_bytes(ready.model, recipe.train, ready.updates, device)),
        # The peak is at the loss, with all that the backward pass needs, or in the backward pass.
        activations=int(max(activations.saved, activations.peak - logits_bytes) * gaps),
        logits=logits_bytes,
        teacher=0 if ready.teacher is None else _teacher_bytes(ready, logits, half=half),
        available=available_memory(device),
        updates=ready.updates,
    )


def _teacher_bytes(ready: Preparation, logits: int, *, half: bool) -> int:
    assert ready.teacher is not None
    section: Any = ready.recipe.teacher
    default = "bfloat16" if half else "float32"
    size = _QUANTIZED.get(str(section.quantize)) or _DTYPES[default if section.dtype == "auto" else section.dtype]
    count = sum(each.numel() for each in ready.teacher.model.parameters())
    return int(count * size) + logits * (_MIXED if 0 < section.beta < 1 else _DISTILLED)


def _longest_batch(ready: Preparation, objective: Objective) -> list[int]:
    """The longest examples that are computed at once."""
    lengths, size = ready.examples.train.examples["length"][:], ready.recipe.train.per_device_train_batch_size
    longest = heapq.nlargest(size, range(len(lengths)), key=lengths.__getitem__)
    if ready.device != "cpu" or not objective.is_sum or not longest:
        return longest
    parts = divide(longest, lengths, CPU_TOKENS)
    return max(parts, key=lambda part: len(part) * lengths[part[0]])


def _activations(ready: Preparation, objective: Objective, longest: list[int], *, half: bool) -> ActivationBytes:
    """Activations for a micro-batch of the longest examples."""
    train, part, loaded, model = ready.recipe.train, ready.examples.train, ready.loaded, ready.model
    lengths = part.examples["length"][:]
    lines = [part.examples[index] for index in longest]
    batch = objective.batch(lines, pad_id=loaded.tokenizer.pad_token_id or 0, masked=False)
    if (counted := activation_bytes(model, objective, batch, half=half)) is not None:
        return counted
    config = loaded.model.config.get_text_config()
    layers = int(getattr(config, "num_hidden_layers", 0)) + int(getattr(config, "decoder_layers", 0) or 0)
    tokens = len(longest) * max(lengths)  # padding included
    layer = tokens * int(getattr(config, "hidden_size", 0)) * (1 if half else 2)
    if train.activation_checkpointing:
        saved = layer * layers * _CHECKPOINTED
        return ActivationBytes(saved, saved + layer * _BYTES_PER_TOKEN_AND_WIDTH)
    return ActivationBytes(*[layer * layers * _BYTES_PER_TOKEN_AND_WIDTH] * 2)
