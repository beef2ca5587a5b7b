"""Checks of an optimizer before a run: that it runs on the device, can be resumed, and uses all of its settings."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmkit.config.optimizer_names import MUON
from llmkit.config.recipe import TrainSection
from llmkit.errors import UsageError
from llmkit.training.optimizer import parameter_groups, place_state, set_training_mode
from llmkit.training.optimizer_choice import ADAM, Choice, choose, construct

if TYPE_CHECKING:
    import torch

__all__ = ["check_optimizer", "state_bytes", "state_classes", "state_names"]

_INSTEAD = {"lr": "learning_rate", "weight_decay": "weight_decay"}
"""Arguments of optimizers that have keys of their own, whose values replace them in each parameter group."""


def check_optimizer(
    model: torch.nn.Module, train: TrainSection, updates: int, device: str, *, averaged: bool = False
) -> torch.optim.Optimizer:
    """The optimizer, after a step of a small one like it on the device of the run.

    Args:
        averaged: whether processes average its state.

    Raises:
        MissingDependencyError: its package is not installed.
        UsageError: it does not run on the device, or a setting is wrong or has no effect.
    """
    choice = choose(model, train, updates)
    _check_arguments(train, choice)
    _check_effects(model, train, updates, choice)
    groups = parameter_groups(model, train, choice)
    optimizer = construct(train, choice, groups)
    if hasattr(optimizer, "eval") and train.lr_scheduler_type != "constant":
        raise UsageError(
            f"train.optim {train.optim} takes the place of a schedule",
            "set train.lr_scheduler_type: constant",
            code="no_effect",
        )
    try:
        restored = _restores(choice, groups, device)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(
            f"train.optim {train.optim} does not run on {device} ({reason})",
            "use another train.optim, or correct train.optim_args",
            code="device_unavailable",
        ) from error
    if not restored:
        raise UsageError(
            f"train.optim: {train.optim} does not restore its state from a checkpoint",
            "use another train.optim",
            code="not_supported",
        )
    if averaged and not all(_is_averaged(each) for each in _state(_small(choice, groups, device))):
        raise UsageError(
            f"accelerate.local_sgd_steps averages the states of optimizers, which {train.optim} does not support",
            "use adamw_torch, or leave it out",
            code="not_supported",
        )
    return optimizer


def _check_arguments(train: TrainSection, choice: Choice) -> None:
    known = [name for name in {**choice.arguments.known, **choice.options} if name not in _INSTEAD]
    for name in train.optim_args:
        if name in _INSTEAD:
            raise UsageError(f"train.optim_args.{name} has no effect", f"set train.{_INSTEAD[name]}", code="no_effect")
        if name not in known:
            takes = [each for each in known if each in choice.arguments.known]
            raise UsageError(
                f"train.optim_args.{name} is not an argument of {train.optim}",
                f"choose from {', '.join(takes)}" if takes else "leave train.optim_args out",
                code="no_effect",
            )


def _check_effects(model: torch.nn.Module, train: TrainSection, updates: int, choice: Choice) -> None:
    """Refuse settings without which Transformers would construct the same optimizer."""
    for name in (*ADAM, "optim_target_modules"):
        default = type(train).model_fields[name].default
        if getattr(train, name) == default:
            continue
        if name == "optim_target_modules" and choice.groups is not None and train.optim != MUON:
            _check_targets(model, train)
        elif choose(model, train.model_copy(update={name: default}), updates).outline == choice.outline:
            raise UsageError(
                f"train.{name} has no effect on train.optim {train.optim}", "leave it out", code="no_effect"
            )


def _check_targets(model: torch.nn.Module, train: TrainSection) -> None:
    """Refuse names and patterns that match no linear layer that is trained."""
    from torch import nn
    from transformers.trainer_utils import check_target_module_exists

    wanted = train.optim_target_modules
    assert wanted is not None
    trained = [
        name for name, each in model.named_modules() if isinstance(each, nn.Linear) and each.weight.requires_grad
    ]
    for target in [wanted] if isinstance(wanted, str) else wanted:
        pattern = wanted if isinstance(wanted, str) else [target]
        if target.replace("_", "-") != "all-linear" and not any(
            check_target_module_exists(pattern, name) for name in trained
        ):
            raise UsageError(
                f"train.optim_target_modules: {target!r} matches no trained linear layer",
                f"remove it, or match names such as {next(iter(trained), '')}",
                code="not_supported",
            )
    if not trained:
        raise UsageError(f"train.optim {train.optim} needs trained linear layers", "use adamw_torch")


# A small optimizer like it.


def state_classes(model: torch.nn.Module, train: TrainSection, updates: int, device: str) -> set[type]:
    """The classes of objects in the optimizer's state, such as GaLore's projections: numbers and tensors aside."""
    return _classes(_small_like(model, train, updates, device))


def state_names(model: torch.nn.Module, train: TrainSection, updates: int, device: str) -> set[str]:
    """The names of what the optimizer keeps of parameters."""
    small = _small_like(model, train, updates, device)
    return {name for state in small.state.values() for name in state}


def state_bytes(model: torch.nn.Module, train: TrainSection, updates: int, device: str) -> float:
    """Bytes of the optimizer's state per trained parameter: those of small matrices, of which GaLore keeps more."""
    small = _small_like(model, train, updates, device)
    kept = {each.data_ptr(): each for each in _state(small) if getattr(each, "ndim", 0)}
    size: int = sum(each.numel() * each.element_size() for each in kept.values())
    elements: int = sum(each.numel() for group in small.param_groups for each in group["params"])
    return size / elements


def _state(optimizer: torch.optim.Optimizer) -> list[Any]:
    return [each for state in optimizer.state.values() for each in state.values()]


def _classes(optimizer: torch.optim.Optimizer) -> set[type]:
    return {type(each) for each in _state(optimizer) if hasattr(each, "__dict__") and not hasattr(each, "dtype")}


def _is_averaged(value: Any) -> bool:
    return value is None or isinstance(value, int | float) or (hasattr(value, "dtype") and value.is_floating_point())


def _small_like(model: torch.nn.Module, train: TrainSection, updates: int, device: str) -> torch.optim.Optimizer:
    choice = choose(model, train, updates)
    return _small(choice, parameter_groups(model, train, choice), device)


def _small(choice: Choice, groups: Sequence[Mapping[str, Any]], device: str) -> torch.optim.Optimizer:
    """An optimizer with the same options, of small parameters, after one step."""
    import torch

    small = []
    for group in groups:
        shapes = [(64,) * ndim if ndim < 3 else (8,) * ndim for ndim in sorted({each.ndim for each in group["params"]})]
        small.append({**group, "params": [torch.zeros(shape, device=device, requires_grad=True) for shape in shapes]})
    optimizer = choice.factory(small, **choice.options)
    _step(optimizer)
    return optimizer


def _step(optimizer: torch.optim.Optimizer) -> None:
    import torch

    for group in optimizer.param_groups:
        for each in group["params"]:
            each.grad = torch.linspace(-1, 1, each.numel(), device=each.device).reshape(each.shape)
    set_training_mode(optimizer, training=True)
    optimizer.step()


def _restores(choice: Choice, groups: Sequence[Mapping[str, Any]], device: str) -> bool:
    """Whether the next step is the same after saving and loading the state."""
    import torch

    one, other = (_small(choice, groups, device) for _ in range(2))
    _step(one)
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    with torch.serialization.safe_globals(list(_classes(one))):
        other.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    place_state(other)
    pairs = [
        pair
        for mine, theirs in zip(one.param_groups, other.param_groups, strict=True)
        for pair in zip(mine["params"], theirs["params"], strict=True)
    ]
    with torch.no_grad():
        for mine, theirs in pairs:
            theirs.copy_(mine)
    _step(one)
    _step(other)
    return all(mine.equal(theirs) for mine, theirs in pairs)
