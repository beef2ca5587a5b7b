"""Continuing runs of Transformers' Trainer, and of TRL, Axolotl and LLaMA-Factory, whose checkpoints it writes.

Its optimizer numbers parameters without their names; their order is `trainer_order`. Pickled files are loaded only as
far as they consist of tensors and numbers. Checkpoints of llmkit itself are in `llmkit.training.checkpoint`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from llmkit.errors import CheckpointError, UsageError
from llmkit.files import read_json
from llmkit.log import log, warn
from llmkit.models.quiet import quiet_transformers
from llmkit.models.source import ADAPTER_CONFIG
from llmkit.training.checkpoint import STATE_FILES, Progress, checkpoints
from llmkit.training.loop import Trainer
from llmkit.training.optimizer import place_state, trainer_order
from llmkit.training.optimizer_check import state_classes, state_names
from llmkit.training.optimizer_choice import choose
from llmkit.training.schedule import follows_metric, set_learning_rates

__all__ = ["continue_trainer_run", "find_trainer_checkpoint"]

_STATE, _OPTIMIZER, _SCHEDULER = "trainer_state.json", "optimizer.pt", "scheduler.pt"
_SHARDED = {
    "global_step*": "run zero_to_fp32.py, which is in it,",
    "zero_to_fp32.py": "run zero_to_fp32.py, which is in it,",
    "pytorch_model_fsdp*": "run `accelerate merge-weights`",
}
"""Files and folders of sharded weights, and what joins them."""
_OF_ADAPTERS_FILE = (
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "auto_mapping",
    "peft_version",
    "task_type",
)
"""Fields of an adapter's config that differ without changing what is computed."""
_OF_IMPLEMENTATION = {"params", "lr", "initial_lr", "fused", "foreach", "capturable"}
"""Values of parameter groups that a run has of its own."""
_TIMING = ("_runtime", "_per_second")


def find_trainer_checkpoint(folder: Path) -> Path:
    """The checkpoint of Trainer that a folder is, or the last one in it.

    Raises:
        UsageError: there is none, or it cannot be continued.
    """
    found = folder if (folder / _STATE).is_file() else next(iter(reversed(checkpoints(folder))), folder)
    key = f"train.resume_from_checkpoint: {found}"
    if any((found / name).is_file() for name in STATE_FILES):
        fix = "set train.output_dir to the folder it is in, and continue with `resume`"
        raise UsageError(f"{key} is a checkpoint of llmkit", fix, code="not_supported")
    for pattern, tool in _SHARDED.items():
        if next(found.glob(pattern), None) is not None:
            raise UsageError(
                f"{key} is divided among processes",
                f"{tool} and train the result as a new run, with model.name_or_path",
                code="not_supported",
            )
    if not (found / _STATE).is_file():
        fix = "name a folder checkpoint-N of Transformers' Trainer, or the folder that it is in"
        raise UsageError(f"{key} has no {_STATE}", fix, code="nothing_to_resume")
    if not (found / _OPTIMIZER).is_file():
        fix = "train its weights as a new run, with model.name_or_path"
        raise UsageError(f"{key} has no {_OPTIMIZER}, only weights", fix, code="nothing_to_resume")
    return found


def continue_trainer_run(trainer: Trainer, folder: Path) -> None:
    """Give a new run the weights, the optimizer's state and the position of a run of Trainer.

    Raises:
        UsageError: it trained other parameters, or has no updates left.
        CheckpointError: it is damaged.
    """
    saved = read_json(folder / _STATE)
    step = int(saved["global_step"])
    if step >= trainer.updates:
        raise UsageError(
            f"{folder} is after update {step}, and the recipe ends at {trainer.updates}",
            f"set train.max_steps to more than {step}, or train.num_train_epochs higher",
            code="resume_mismatch",
        )
    if trainer.stream is not None or trainer.sharded:
        raise UsageError(
            "train.resume_from_checkpoint supports neither data.streaming nor sharded models", "leave one of them out"
        )
    _load_weights(trainer, folder)
    _load_optimizer(trainer, folder)
    before = _load_schedule(trainer, folder, step)
    epoch, update = divmod(step, trainer.sampler.updates)
    trainer.progress = Progress(
        step=step,
        updates=trainer.updates,
        epoch=epoch,
        update=update,
        tokens=int(saved.get("num_input_tokens_seen") or 0),
        log=list(_log(saved.get("log_history", ()))),
        hashes=trainer.progress.hashes,
    )
    _report(trainer, folder, saved, before)


def _report(trainer: Trainer, folder: Path, saved: Mapping[str, Any], before: float | None) -> None:
    step, rate = trainer.progress.step, float(trainer.optimizer.param_groups[0]["lr"])
    order = "in their order" if trainer.train.train_sampling_strategy == "sequential" else "in another order"
    text = "continuing %s after update %d: learning rate %.2e; rows come %s, and dropout has other random numbers"
    log.info(text, folder, step, rate, order)
    if before is not None and not math.isclose(rate, before, rel_tol=1e-3, abs_tol=1e-12):
        text = "the learning rate continues at %.2e, by the recipe's schedule of %d updates; %s would continue at %.2e"
        warn("tuned_differently", text, rate, trainer.updates, folder, before)
    theirs, ours = step / (float(saved.get("epoch") or 0) or math.inf), trainer.sampler.updates
    if theirs and abs(theirs - ours) >= 1:
        text = "an epoch has %d updates, and had %.0f in %s: its batch size or its rows were others"
        warn("tuned_differently", text, ours, theirs, folder)


def _log(history: Any) -> Iterator[dict[str, Any]]:
    """The log entries of Trainer, as those of this run."""
    for entry in history:
        values = {
            name: value
            for name, value in entry.items()
            if (name in ("loss", "learning_rate", "grad_norm") or name.startswith("eval_"))
            and not name.endswith(_TIMING)
            and isinstance(value, int | float)
        }
        if values:
            yield {"step": int(entry["step"]), **values}


# Weights.


def _load_weights(trainer: Trainer, folder: Path) -> None:
    model = trainer.plain_model
    of_adapter = (folder / ADAPTER_CONFIG).is_file()
    if of_adapter != hasattr(model, "peft_config"):
        raise UsageError(
            f"{folder} is of an adapter" if of_adapter else f"{folder} is of a run that trained all weights",
            "add the adapter section it was trained with" if of_adapter else "leave adapter out",
            code="resume_mismatch",
        )
    with quiet_transformers():
        wrong = _load_adapter(model, folder) if of_adapter else _load_model(model, folder)
    if missing := sorted(wrong & trainer.trained.keys()):
        raise _mismatch(folder, f"it lacks {missing[0]}")


def _load_adapter(model: Any, folder: Path) -> set[str]:
    """The names of parameters that are not in the checkpoint."""
    from peft import PeftConfig, set_peft_model_state_dict
    from peft.utils import load_peft_weights

    theirs, ours = (
        {
            name: sorted(each) if isinstance(each, set | list | tuple) else each
            for name, each in config.to_dict().items()
        }
        for config in (PeftConfig.from_pretrained(str(folder)), model.active_peft_config)
    )
    for name in ours.keys() - _OF_ADAPTERS_FILE:
        if name in theirs and theirs[name] != ours[name]:
            raise _mismatch(folder, f"its adapter has {name} {theirs[name]} instead of {ours[name]}")
    try:
        result: Any = set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
    except RuntimeError as error:
        raise _mismatch(folder, " ".join(str(error).split())[:200]) from error
    if result.unexpected_keys:
        raise _mismatch(folder, f"{result.unexpected_keys[0]} is not in this one")
    return set(result.missing_keys)


def _load_model(model: Any, folder: Path) -> set[str]:
    import torch

    try:
        found, info = type(model).from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder} is damaged ({error})", "use an earlier checkpoint") from error
    try:
        model.load_state_dict(found.state_dict())
    except RuntimeError as error:
        raise _mismatch(folder, " ".join(str(error).split())[:200]) from error
    return {*info["missing_keys"], *(str(key[0] if isinstance(key, tuple) else key) for key in info["mismatched_keys"])}


def _mismatch(folder: Path, reason: str) -> UsageError:
    fix = "use the model, the adapter, train.freeze and train.optim it was trained with"
    return UsageError(f"{folder} is of another model or training run: {reason}", fix, code="resume_mismatch")


# Optimizer and schedule.


def _load_optimizer(trainer: Trainer, folder: Path) -> None:
    model, train, optimizer = trainer.plain_model, trainer.train, trainer.optimizer
    small = (model, train, trainer.updates, str(trainer.accelerator.device))
    saved = _load_tensors(folder / _OPTIMIZER, state_classes(*small))
    groups = [group for group in saved["param_groups"] if group["params"]]
    order = trainer_order(model, train, trainer.updates)
    sizes, expected = ([len(each) for each in parts] for parts in ([group["params"] for group in groups], order))
    if sizes != expected:
        raise _mismatch(folder, f"its optimizer has groups of {sizes} parameters instead of {expected}")
    of_parameter = {
        id(parameter): (number, group)
        for group, parameters in zip(groups, order, strict=True)
        for number, parameter in zip(group["params"], parameters, strict=True)
    }
    names = {name for state in saved["state"].values() for name in state}
    known = state_names(*small)
    if not names <= known or (known and not names):
        raise _mismatch(folder, f"its optimizer keeps {', '.join(sorted(names)) or 'nothing'}")
    state = optimizer.state_dict()
    fixed = {*choose(model, train, trainer.updates).options, "weight_decay"}
    for mine, packed in zip(optimizer.param_groups, state["param_groups"], strict=True):
        theirs = of_parameter[id(mine["params"][0])][1]
        for name in mine.keys() & theirs.keys() - _OF_IMPLEMENTATION:
            if name not in fixed:
                packed[name] = theirs[name]
            elif theirs[name] != mine[name] and not train.param_groups:
                raise _mismatch(folder, f"its optimizer has {name} {theirs[name]} instead of {mine[name]}")
        for number, parameter in zip(packed["params"], mine["params"], strict=True):
            if (old := of_parameter[id(parameter)][0]) in saved["state"]:
                state["state"][number] = saved["state"][old]
                _check_shapes(folder, parameter, saved["state"][old], projected=train.optim_target_modules is not None)
    optimizer.load_state_dict(state)
    place_state(optimizer)


def _check_shapes(folder: Path, parameter: Any, state: Mapping[str, Any], *, projected: bool) -> None:
    """The order of parameters is all that names them, so their shapes are compared where the state has them."""
    for name, value in () if projected else state.items():
        if getattr(value, "ndim", 0) == parameter.ndim and value.shape != parameter.shape:
            shapes = f"{tuple(value.shape)} instead of {tuple(parameter.shape)}"
            raise _mismatch(folder, f"its optimizer has {name} of shape {shapes}")


def _load_schedule(trainer: Trainer, folder: Path, step: int) -> float | None:
    """Set the schedule to its position; returns the learning rate with which the other run would continue."""
    scheduler = trainer.scheduler
    saved = _load_tensors(folder / _SCHEDULER) if (folder / _SCHEDULER).is_file() else {}
    rates = [float(rate) for rate in saved.get("_last_lr") or ()]
    if follows_metric(scheduler):
        scheduler.load_state_dict(
            {name: each for name, each in saved.items() if name not in ("_last_lr", "min_lrs", "max_lrs")}
        )
        for group in trainer.optimizer.param_groups if len(set(rates)) == 1 else ():
            group["lr"] = rates[0]
    else:
        scheduler.last_epoch = int(saved.get("last_epoch", step))
        set_learning_rates(trainer.optimizer, scheduler)
    return rates[0] if rates else None


def _load_tensors(path: Path, classes: Iterable[type] = ()) -> dict[str, Any]:
    """A pickled file of numbers and tensors."""
    import torch

    try:
        with torch.serialization.safe_globals(list(classes)):
            return dict(torch.load(path, map_location="cpu", weights_only=True))
    except UnpicklingError as error:
        raise CheckpointError(
            f"{path} contains more than tensors, and loading it could run code",
            "train the weights beside it as a new run, with model.name_or_path",
        ) from error
    except (OSError, EOFError, LookupError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged ({type(error).__name__})", "use an earlier checkpoint") from error
