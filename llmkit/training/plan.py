"""What a training run will take, before it begins: parameters, memory, updates.

The memory is an estimate. Weights, gradients, the optimizer's state and the activations that a forward pass keeps are
counted; activations that cannot be follow Korthikanti et al. (2022, equation 2 without the attention scores, which
fused kernels do not keep). Logits and their gradient are those of label tokens.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import Any

from llmkit.config.recipe import Recipe
from llmkit.errors import UsageError
from llmkit.models.load import Loaded
from llmkit.models.memory import available_memory
from llmkit.training.collate import collate
from llmkit.training.dataset import Part
from llmkit.training.objective import Objective
from llmkit.training.saved import saved_bytes
from llmkit.training.trainable import make_trainable

__all__ = ["Plan", "make_plan"]

_FP32 = 4
_BYTES_A_TOKEN_AND_WIDTH = 34
"""Of one layer, in half precision."""
_CHECKPOINTED = 2
"""The same where only the inputs of layers are kept."""
_STATES = {"adamw_bnb_8bit": 2.0, "paged_adamw_8bit": 2.0, "adafactor": 0.1, "sgd": 0.0}
"""Bytes of optimizer state a trained parameter; AdamW keeps two float32 values."""
_HOLES = 1.5
"""On a CPU, what is taken for activations by what they need: glibc leaves holes between aligned blocks. With it, the
estimates of the adapters in ``benchmarks/quality`` are 1 to 6 % below what they took."""
_QUANTIZED = {"8bit": 1.0, "4bit": 0.55}
"""Bytes a parameter, scales included."""


@dataclass(frozen=True)
class Plan:
    """Sizes are bytes, on each device."""

    parameters: int
    trainable: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    available: int
    updates: int
    """Optimizer steps."""

    @property
    def memory(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def make_plan(recipe: Recipe, loaded: Loaded, part: Part, *, half: bool, device: str) -> Plan:
    """Count what the recipe trains.

    Args:
        loaded: without weights.
        part: the training examples; the longest stand for all.
        half: whether the run computes in half precision.

    Raises:
        UsageError: nothing is trained, or a pattern of ``train.freeze`` matches nothing.
    """
    vocabulary = len(loaded.tokenizer)
    model = make_trainable(recipe, loaded)
    parameters = {id(each): each for each in model.parameters()}.values()
    total = sum(each.numel() for each in parameters)
    trainable = sum(each.numel() for each in parameters if each.requires_grad)
    if not trainable:
        raise UsageError("nothing is left to train", "let train.freeze match less")
    quantize = getattr(recipe.model, "quantize", None)
    frozen_bytes = _QUANTIZED.get(str(quantize), 2.0 if half else float(_FP32))
    targets = max(part.examples["targets"][:], default=0) * recipe.train.per_device_train_batch_size
    return Plan(
        parameters=total,
        trainable=trainable,
        weights=int((total - trainable) * frozen_bytes + trainable * _FP32),
        gradients=trainable * _FP32,
        optimizer=int(trainable * _STATES.get(recipe.train.optim, 8.0)),
        activations=int(_activations(recipe, model, loaded, part, half=half) * (_HOLES if device == "cpu" else 1)),
        logits=targets * vocabulary * _FP32 * 2 if part.examples["labels"][0] else 0,
        available=available_memory(device),
        updates=_updates(recipe, len(part.examples)),
    )


def _activations(recipe: Recipe, model: Any, loaded: Loaded, part: Part, *, half: bool) -> int:
    """Of the longest examples in one micro-batch."""
    train, lengths = recipe.train, part.examples["length"][:]
    longest = heapq.nlargest(train.per_device_train_batch_size, range(len(lengths)), key=lengths.__getitem__)
    per_token = _CHECKPOINTED
    if not train.activation_checkpointing:
        lines = [part.examples[index] for index in longest]
        batch = collate(lines, loaded.head, pad_id=loaded.tokenizer.pad_token_id or 0, packed=False, masked=False)
        objective = Objective.of(model, loaded.head, train.label_smoothing_factor)
        if (saved := saved_bytes(model, objective, batch, half=half)) is not None:
            return saved
        per_token = _BYTES_A_TOKEN_AND_WIDTH
    config = loaded.model.config.get_text_config()
    layers = int(getattr(config, "num_hidden_layers", 0)) + int(getattr(config, "decoder_layers", 0) or 0)
    tokens = len(longest) * max(lengths)  # padding included
    size: int = tokens * int(getattr(config, "hidden_size", 0)) * layers * per_token
    return size if half else 2 * size


def _updates(recipe: Recipe, examples: int) -> int:
    train = recipe.train
    if train.max_steps > 0:
        return train.max_steps
    processes = recipe.accelerate.num_processes or 1
    batch = train.per_device_train_batch_size * train.gradient_accumulation_steps * processes
    return math.ceil(math.ceil(examples / batch) * train.num_train_epochs)
