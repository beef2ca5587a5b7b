"""The optimizer and the schedule of its learning rate, by the names of Transformers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from llmkit.config.recipe import TrainSection
from llmkit.errors import MissingDependencyError

if TYPE_CHECKING:
    import torch

__all__ = ["make_optimizer", "make_scheduler", "warmup_steps"]

_NOT_DECAYED = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
"""As ``Trainer.get_decay_parameter_names`` of Transformers 5.23 has them."""


def make_optimizer(model: torch.nn.Module, train: TrainSection) -> torch.optim.Optimizer:
    """Over the parameters that are trained; biases and norms do not decay."""
    import torch
    from transformers.trainer_pt_utils import get_parameter_names

    decayed = set(get_parameter_names(model, [torch.nn.LayerNorm], _NOT_DECAYED))
    trained = [(name, each) for name, each in model.named_parameters() if each.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [each for name, each in trained if name in decayed], "weight_decay": train.weight_decay},
        {"params": [each for name, each in trained if name not in decayed], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    adam: dict[str, Any] = {
        "lr": train.learning_rate,
        "betas": (train.adam_beta1, train.adam_beta2),
        "eps": train.adam_epsilon,
    }
    match train.optim:
        case "adamw_torch" | "adamw_torch_fused":
            return torch.optim.AdamW(groups, **adam, fused=train.optim == "adamw_torch_fused")
        case "sgd":
            return torch.optim.SGD(groups, lr=train.learning_rate)
        case "adafactor":
            from transformers import Adafactor

            return Adafactor(groups, lr=train.learning_rate, scale_parameter=False, relative_step=False)
        case _:
            try:
                import bitsandbytes
            except ImportError as error:
                raise MissingDependencyError(
                    f"train.optim: {train.optim} needs bitsandbytes", "pip install bitsandbytes, or use adamw_torch"
                ) from error
            paged = train.optim.startswith("paged")
            made: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(groups, **adam, is_paged=paged)
            return made


def warmup_steps(train: TrainSection, updates: int) -> int:
    """Steps of rising learning rate; below 1 the setting is a share of all."""
    return math.ceil(updates * train.warmup_steps) if train.warmup_steps < 1 else int(train.warmup_steps)


def make_scheduler(optimizer: torch.optim.Optimizer, train: TrainSection, updates: int) -> Any:
    """The learning rate at each update."""
    from transformers import get_scheduler

    return get_scheduler(
        train.lr_scheduler_type,
        optimizer,
        num_warmup_steps=warmup_steps(train, updates),
        num_training_steps=updates,
        scheduler_specific_kwargs=dict(train.lr_scheduler_kwargs) or None,
    )
