"""The optimizer of a recipe, and the groups of its parameters, which have their own learning rate or weight decay."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from llmkit.config.recipe import TrainSection
from llmkit.errors import UsageError
from llmkit.training.optimizer_choice import Choice, choose, construct, without_params

if TYPE_CHECKING:
    import torch

__all__ = ["make_optimizer", "parameter_groups", "place_state", "set_training_mode", "trainer_order"]

_NOT_DECAYED = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
"""As ``Trainer.get_decay_parameter_names`` of Transformers 5.24 has them."""


def make_optimizer(model: torch.nn.Module, train: TrainSection, updates: int) -> torch.optim.Optimizer:
    """The optimizer of the trained parameters; biases and norms have no weight decay.

    Raises:
        MissingDependencyError: the package of the optimizer is not installed.
        UsageError: its arguments are wrong.
    """
    choice = choose(model, train, updates)
    optimizer = construct(train, choice, parameter_groups(model, train, choice))
    if choice.options.get("optim_bits") == 8:  # as Trainer.create_optimizer
        import bitsandbytes
        from torch import nn

        manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
        manager.initialize()  # it is global, and names parameters of earlier runs by their place
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                manager.register_module_override(module, "weight", {"optim_bits": 32})
    return optimizer


def set_training_mode(optimizer: torch.optim.Optimizer, *, training: bool) -> None:
    """Give the parameters the values for training or evaluation, which are different in schedule-free optimizers."""
    switch = getattr(optimizer, "train" if training else "eval", None)
    if switch is not None:
        switch()


def place_state(optimizer: torch.optim.Optimizer) -> None:
    """Move the tensors of objects in a loaded state, such as GaLore's projections, to the devices of the parameters.

    PyTorch does it for all others.
    """
    import torch

    for parameter, state in optimizer.state.items():
        for value in state.values():
            for name, each in (getattr(value, "__dict__", None) or {}).items():
                if isinstance(each, torch.Tensor) and not isinstance(value, torch.Tensor):
                    setattr(value, name, each.to(parameter.device))


# Parameter groups.


def parameter_groups(model: torch.nn.Module, train: TrainSection, choice: Choice) -> list[dict[str, Any]]:
    """Groups of trained parameters with the same options: in the order of Trainer, then those of the recipe."""
    decayed, of_parameter = _decayed(model), choice.of_parameter
    rules = [(re.compile(group.params), group) for group in train.param_groups]
    found: dict[tuple[int, bool, int, float], dict[str, Any]] = {}
    kinds = [without_params(group) for group in choice.groups or [{}]]
    for name, parameter in _trained(model):
        number = next((number for number, (pattern, _) in enumerate(rules) if pattern.search(name)), -1)
        own = of_parameter.get(id(parameter), {})
        options = {"weight_decay": train.weight_decay if name in decayed else 0.0}
        rate = _loraplus_rate(train, name, parameter)
        options |= {} if rate is None else {"lr": rate}
        if number >= 0:
            rule = rules[number][1]
            options |= {} if rule.weight_decay is None else {"weight_decay": rule.weight_decay}
            options |= {} if rule.learning_rate is None else {"lr": rule.learning_rate}
        # Trainer separates parameters with and without weight decay, except for the groups of low-rank optimizers.
        plain = options["weight_decay"] == 0.0 if choice.groups is not None else name not in decayed
        key = (number, plain, kinds.index(own) if own in kinds else -1, options.get("lr", 0.0))
        found.setdefault(key, {"params": [], **own, **options})["params"].append(parameter)
    for number, (_, group) in enumerate(rules):
        if not any(number == key[0] for key in found):
            shadowed = number and any(rules[number][0].search(name) for name, _ in _trained(model))
            raise UsageError(
                f"train.param_groups: {group.params!r} matches no trained parameter"
                + (" that no group before it matches" if shadowed else ""),
                f"remove it, or match names such as {next((name for name, _ in _trained(model)), '')}",
                code="not_supported",
            )
    return [group for _, group in sorted(found.items(), key=lambda item: item[0])]


def _loraplus_rate(train: TrainSection, name: str, parameter: torch.nn.Parameter) -> float | None:
    """The learning rate of LoRA+, as ``peft.optimizers.create_loraplus_optimizer`` assigns it; None: the usual one."""
    if train.loraplus_lr_ratio is None:
        return None
    if "lora_embedding_" in name:
        return train.loraplus_lr_embedding
    return train.learning_rate * train.loraplus_lr_ratio if "lora_B" in name or parameter.ndim == 1 else None


def trainer_order(model: torch.nn.Module, train: TrainSection, updates: int) -> list[list[torch.nn.Parameter]]:
    """The trained parameters in the groups that Trainer has, which it numbers in the states that it saves."""
    choice = choose(model, train, updates)
    if choice.groups is not None:
        groups = [group["params"] for group in choice.groups]
    else:
        decayed = _decayed(model)
        groups = [[each for name, each in _trained(model) if (name in decayed) is wanted] for wanted in (True, False)]
    return [list(group) for group in groups if group]


def _decayed(model: torch.nn.Module) -> set[str]:
    from torch import nn
    from transformers.trainer_pt_utils import get_parameter_names

    return set(get_parameter_names(model, [nn.LayerNorm], _NOT_DECAYED))


def _trained(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, each) for name, each in model.named_parameters() if each.requires_grad]
