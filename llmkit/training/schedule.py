"""Learning rate schedules by their names in Transformers, computed and checked before a run."""

from __future__ import annotations

import inspect
import math
import warnings
from typing import TYPE_CHECKING, Any

from llmkit.config.recipe import TrainSection
from llmkit.errors import UsageError
from llmkit.log import warn
from llmkit.metrics.score import LOWER_IS_BETTER

if TYPE_CHECKING:
    import torch

__all__ = [
    "check_schedule",
    "follows_metric",
    "greater_is_better",
    "make_scheduler",
    "set_learning_rates",
    "warmup_steps",
]


def warmup_steps(train: TrainSection, updates: int) -> int:
    """Number of warmup steps; a setting below 1 is a fraction of all updates."""
    return math.ceil(updates * train.warmup_steps) if train.warmup_steps < 1 else int(train.warmup_steps)


def greater_is_better(train: TrainSection) -> bool:
    """Whether a higher value is better for the metric that evaluations are compared by."""
    if train.greater_is_better is not None:
        return train.greater_is_better
    return train.best_metric not in LOWER_IS_BETTER


def make_scheduler(optimizer: torch.optim.Optimizer, train: TrainSection, updates: int, **more: Any) -> Any:
    """The scheduler, which steps after each update, or after each evaluation if it `follows_metric`."""
    from transformers import get_scheduler

    options = {**train.lr_scheduler_kwargs, **more}
    if train.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"):
        options = {"mode": "max" if greater_is_better(train) else "min", **options}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Both num_training_steps and num_stable_steps")
        return get_scheduler(
            train.lr_scheduler_type,
            optimizer,
            num_warmup_steps=warmup_steps(train, updates),
            num_training_steps=updates,
            scheduler_specific_kwargs=options or None,
        )


def set_learning_rates(optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
    """Set the learning rates to the scheduler's at its present step, after its number of updates changed."""
    if not follows_metric(scheduler):
        rates = [
            base * factor(scheduler.last_epoch)
            for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        ]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        scheduler._last_lr = rates  # noqa: SLF001 - as LRScheduler.step sets it


def follows_metric(scheduler: Any) -> bool:
    """Whether a scheduler steps after each evaluation, by its metric, rather than after each update."""
    return "metrics" in inspect.signature(scheduler.step).parameters


# Schedules are checked before a run: each type raises other exceptions, some of them only at a late update.


def check_schedule(train: TrainSection, updates: int, groups: int, *, own_warmup: bool = False) -> None:
    """Refuse a schedule that fails, has a setting without effect, or gives learning rates that cannot be meant.

    Args:
        groups: parameter groups of the optimizer.
        own_warmup: whether the optimizer has a warmup of its own.
    """
    kind, steps = train.lr_scheduler_type, warmup_steps(train, updates)
    rates = _rates(train, updates, groups)
    if problem := _problem(train, updates, rates):
        raise UsageError(problem, _fix(train), code="not_supported")
    if not any(rates[:-1]):
        raise UsageError(
            f"the learning rate is 0 at each of {updates} updates", "lower train.warmup_steps", code="not_supported"
        )
    if train.lr_scheduler_kwargs and _ignores_arguments(train, updates):
        raise UsageError(
            f"train.lr_scheduler_kwargs has no effect on lr_scheduler_type {kind}", "leave it out", code="no_effect"
        )
    for name in _without_effect(train, updates, groups, rates):
        raise UsageError(
            f"train.lr_scheduler_kwargs.{name} has no effect beside the others", "leave it out", code="no_effect"
        )
    if steps and not own_warmup and rates == _rates(train.model_copy(update={"warmup_steps": 0}), updates, groups):
        raise UsageError(
            f"train.warmup_steps has no effect on lr_scheduler_type {kind}",
            "leave it out, or use constant_with_warmup or another type with warmup",
            code="no_effect",
        )
    if steps >= updates > 1:
        warn("long_warmup", "train.warmup_steps: the learning rate rises for %d of %d updates", steps, updates)


def _problem(train: TrainSection, updates: int, rates: list[Any]) -> str | None:
    """What is wrong with the learning rates of a schedule, if anything."""
    place = f"train.lr_scheduler_type {train.lr_scheduler_type}"
    if not all(isinstance(rate, int | float) and math.isfinite(rate) and rate >= 0 for rate in rates):
        return f"{place} gives a learning rate that is not a positive number"
    if max(rates) > train.learning_rate * (1 + 1e-6):
        return f"{place} gives a learning rate of {max(rates):.2e}, above train.learning_rate"
    if updates > 4 and len(rates) > 4 and not any(rates[-3:-1]) and any(rates):
        return f"{place} gives a learning rate of 0 before the last update"
    phases = {name: each for name, each in train.lr_scheduler_kwargs.items() if name.endswith("_steps")}
    total = warmup_steps(train, updates) + sum(phases.values())
    if phases and total > updates:
        return f"train.lr_scheduler_kwargs: {' and '.join(phases)} with warmup_steps make {total} of {updates} updates"
    return None


def _without_effect(train: TrainSection, updates: int, groups: int, rates: list[Any]) -> list[str]:
    """Arguments without which the learning rates are the same, though they are not the defaults."""
    parameters, found = _parameters(train), []
    for name in train.lr_scheduler_kwargs if len(rates) > _METRICS else ():
        others = {each: value for each, value in train.lr_scheduler_kwargs.items() if each != name}
        if train.lr_scheduler_kwargs[name] == parameters[name].default:
            continue
        try:
            same = rates == _rates(train.model_copy(update={"lr_scheduler_kwargs": others}), updates, groups)
        except UsageError:  # it is required
            continue
        found += [name] if same else []
    return found


def _rates(train: TrainSection, updates: int, groups: int) -> list[Any]:
    """The learning rates at some updates of a run, including the first ones, the last, and the one after it."""
    import torch

    parameters = [{"params": [torch.zeros(1, requires_grad=True)]} for _ in range(groups)]
    optimizer = torch.optim.SGD(parameters, lr=train.learning_rate)
    try:
        scheduler = make_scheduler(optimizer, train, updates)
        if follows_metric(scheduler):
            return _rates_of_metrics(scheduler, optimizer, train)
        some = {
            *range(min(updates, 10)),
            *(updates * part // 50 for part in range(51)),
            *range(updates - 2, updates + 1),
        }
        return [train.learning_rate * scheduler.lr_lambdas[0](step) for step in sorted(some) if step >= 0]
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(
            f"train.lr_scheduler_type {train.lr_scheduler_type}: {reason}", _fix(train), code="not_supported"
        ) from error


_METRICS = 4
"""Number of `_rates` of a schedule that follows a metric."""


def _rates_of_metrics(scheduler: Any, optimizer: torch.optim.Optimizer, train: TrainSection) -> list[Any]:
    if min(scheduler.min_lrs) > train.learning_rate:
        raise ValueError(f"min_lr {min(scheduler.min_lrs)} is above train.learning_rate, so it never falls")
    rates = [train.learning_rate]
    for metric in (1.0, 0.5, 2.0):
        scheduler.step(metric)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def _ignores_arguments(train: TrainSection, updates: int) -> bool:
    """Whether the type of schedule silently ignores unknown arguments."""
    import torch

    try:
        make_scheduler(torch.optim.SGD([torch.zeros(1)], lr=1.0), train, updates, no_such_argument=0)
    except TypeError:
        return False
    return True


def _parameters(train: TrainSection) -> dict[str, inspect.Parameter]:
    """The arguments of the type of schedule that a recipe can set."""
    from torch.optim.lr_scheduler import ReduceLROnPlateau
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, GreedyLR
    from transformers.trainer_utils import SchedulerType

    classes: dict[str, Any] = {"reduce_lr_on_plateau": ReduceLROnPlateau, "greedy": GreedyLR}
    kind = train.lr_scheduler_type
    taken = inspect.signature(classes.get(kind, TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(kind)])).parameters
    own = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch", "verbose"}
    return {name: each for name, each in taken.items() if name not in own}


def _fix(train: TrainSection) -> str:
    names = ", ".join(_parameters(train))
    return f"set train.lr_scheduler_kwargs, with {names}" if names else "leave train.lr_scheduler_kwargs out"
