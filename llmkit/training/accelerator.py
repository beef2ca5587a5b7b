"""The setup of Accelerate for a run: device, precision, trackers, and sharding of the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmkit.config.recipe import Recipe
from llmkit.errors import LlmkitError, MissingDependencyError, UsageError
from llmkit.log import warn
from llmkit.models.processes import Worker

__all__ = [
    "TRACKERS",
    "check_sharding",
    "check_trackers",
    "load_optimizer_state",
    "load_parameter",
    "make_accelerator",
    "optimizer_state",
    "whole",
]

TRACKERS = "trackers"
"""Subfolder of the output folder for the files of trackers."""


def make_accelerator(recipe: Recipe, device: str, precision: str, worker: Worker) -> Any:
    """The Accelerator of this process."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    # The state is global; another run in this process may use another precision.
    AcceleratorState._reset_state(reset_partial_state=worker.world == 1)  # noqa: SLF001 - there is no public way
    sharded = _fsdp(recipe)
    trackers = recipe.train.report_to
    folder = Path(recipe.train.output_dir)
    accelerator = Accelerator(
        mixed_precision=precision,
        cpu=device == "cpu",
        fsdp_plugin=sharded,
        log_with=trackers or None,
        project_dir=folder / TRACKERS if trackers else None,
    )
    if sharded is not None and not accelerator.is_fsdp2:
        raise LlmkitError(
            "Accelerate did not shard the model, although accelerate.fsdp_config is set",
            "leave it out",
            code="process_failed",
        )
    if trackers:
        accelerator.init_trackers(folder.name, config=_flat(recipe))
    return accelerator


def check_sharding(recipe: Recipe, device: str) -> None:
    """Refuse sharding without GPUs, which Accelerate 1.15 would silently ignore."""
    if recipe.accelerate.fsdp_config is not None and device != "cuda":
        raise UsageError(
            "accelerate.fsdp_config needs GPUs",
            "leave it out: on a CPU, each process has the complete model",
            code="device_unavailable",
        )


def _fsdp(recipe: Recipe) -> Any:
    section = recipe.accelerate.fsdp_config
    if section is None:
        return None
    from accelerate import FullyShardedDataParallelPlugin

    warn("untested", "FSDP2 is untested: compare its losses with a run without it")
    return FullyShardedDataParallelPlugin(
        fsdp_version=section.fsdp_version,
        auto_wrap_policy=section.fsdp_auto_wrap_policy.lower(),
        transformer_cls_names_to_wrap=(
            None
            if section.fsdp_transformer_layer_cls_to_wrap is None
            else section.fsdp_transformer_layer_cls_to_wrap.split(",")
        ),
        min_num_params=section.fsdp_min_num_params,
        reshard_after_forward=section.fsdp_reshard_after_forward,
        cpu_offload=section.fsdp_offload_params,
        cpu_ram_efficient_loading=section.fsdp_cpu_ram_efficient_loading,
        activation_checkpointing=section.fsdp_activation_checkpointing,
        state_dict_type=section.fsdp_state_dict_type,
    )


def check_trackers(wanted: list[str]) -> None:
    """Refuse trackers that Accelerate does not know or whose package is missing.

    Raises:
        UsageError: a tracker is unknown.
        MissingDependencyError: a tracker is not installed.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    available = {str(getattr(each, "value", each)) for each in get_available_trackers()}
    for name in wanted:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(LOGGER_TYPE_TO_CLASS)
            fix = "leave train.report_to out" if name == "none" else f"use {known}"
            raise UsageError(f"train.report_to: no tracker is called {name}", fix)
        if name not in available:
            raise MissingDependencyError(f"train.report_to: {name} is not installed", f"pip install {name}")


def _flat(recipe: Recipe) -> dict[str, Any]:
    """The recipe for trackers: one level, simple values."""
    found: dict[str, Any] = {}
    pending: list[tuple[str, Any]] = [("", recipe.model_dump(mode="json", exclude_defaults=True))]
    while pending:
        place, value = pending.pop()
        if isinstance(value, dict):
            pending += [(f"{place}.{key}" if place else key, each) for key, each in value.items()]
        elif value is not None:
            found[place] = value if isinstance(value, str | int | float | bool) else str(value)
    return found


# The state of sharded parameters, as that of complete ones. All processes must call these functions together.


def whole(tensor: Any) -> Any:
    """The complete tensor of a sharded one."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def optimizer_state(model: Any, optimizer: Any) -> dict[str, Any]:
    """The state of an optimizer, whose parameters may be sharded."""
    if not _in_shards(model):
        return dict(optimizer.state_dict())
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return dict(get_optimizer_state_dict(model, optimizer, options=options))


def load_optimizer_state(model: Any, optimizer: Any, state: dict[str, Any]) -> None:
    """Restore a state from `optimizer_state`."""
    if not _in_shards(model):
        optimizer.load_state_dict(state)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    set_optimizer_state_dict(model, optimizer, state, options=StateDictOptions(full_state_dict=True))


def load_parameter(parameter: Any, saved: Any) -> None:
    """Copy a complete tensor into a parameter, which may be sharded."""
    if not hasattr(parameter, "full_tensor"):
        parameter.copy_(saved)
        return
    from torch.distributed.tensor import distribute_tensor

    moved = saved.to(device=parameter.device, dtype=parameter.dtype)
    parameter.copy_(distribute_tensor(moved, parameter.device_mesh, parameter.placements))


def _in_shards(model: Any) -> bool:
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())
