"""What the name of an optimizer and its arguments mean: Transformers decides, and for Muon, what peers do.

An argument that is not used is found by what was looked up. Does not know groups of parameters
(`llmkit.training.optimizer`).
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from llmkit.config.optimizer_names import MUON
from llmkit.config.recipe import TrainSection
from llmkit.errors import MissingDependencyError, UsageError
from llmkit.training.schedule import warmup_steps

if TYPE_CHECKING:
    import torch

__all__ = ["ADAM", "Choice", "choose", "construct", "without_params"]

ADAM = ("adam_beta1", "adam_beta2", "adam_epsilon")


@dataclass(frozen=True)
class Choice:
    """What the settings of an optimizer mean."""

    factory: Callable[..., torch.optim.Optimizer]
    options: dict[str, Any]
    groups: list[dict[str, Any]] | None
    """The parameters that have options of their own, such as those whose gradients GaLore projects."""
    arguments: _Arguments

    @property
    def of_parameter(self) -> dict[int, dict[str, Any]]:
        """Further options of single parameters, by their ids."""
        return {id(each): without_params(group) for group in self.groups or () for each in group["params"]}

    @property
    def outline(self) -> tuple[Any, ...]:
        """All options, without parameters."""
        return self.options, [without_params(group) for group in self.groups or ()]


class _Arguments(dict[str, Any]):
    """Arguments of an optimizer, which remember the names that were looked up."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(
            {name: _Flag(str(each).lower()) if isinstance(each, bool) else each for name, each in values.items()}
        )
        self.known: dict[str, None] = {}

    def __contains__(self, name: object) -> bool:
        self.known[str(name)] = None
        return super().__contains__(name)

    def __getitem__(self, name: str) -> Any:
        self.known[name] = None
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """As of any dict."""
        self.known[name] = None
        return super().get(name, default)

    def pop(self, name: str, default: Any = None) -> Any:
        """As of any dict."""
        self.known[name] = None
        return super().pop(name, default)


class _Flag(str):
    """A truth value for code that expects the text of one; ``bool("False")``, which some of it calls, is true."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return self == "true"


def without_params(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: each for name, each in group.items() if name != "params"}


def choose(model: torch.nn.Module, train: TrainSection, updates: int) -> Choice:
    """What Transformers would construct.

    Raises:
        MissingDependencyError: it needs a package that is not installed.
        UsageError: it does not accept the arguments.
    """
    from transformers.trainer_optimizer import _OPTIMIZER_HANDLERS, OptimizerContext
    from transformers.training_args import OptimizerNames, ParallelMode

    handler: Callable[..., Any] = _muon if train.optim == MUON else _OPTIMIZER_HANDLERS[OptimizerNames(train.optim)]
    settings = ("learning_rate", "weight_decay", *ADAM, "optim_target_modules", "gradient_accumulation_steps")
    arguments = _Arguments(train.optim_args)
    args: Any = SimpleNamespace(
        optim=train.optim if train.optim == MUON else OptimizerNames(train.optim),
        warmup_steps=warmup_steps(train, updates),
        parallel_mode=ParallelMode.NOT_PARALLEL,
        **{name: getattr(train, name) for name in settings},
    )
    context = OptimizerContext(
        args=args,
        model=model,  # type: ignore[arg-type]
        optimizer_kwargs={"lr": train.learning_rate},
        adam_kwargs={"betas": (train.adam_beta1, train.adam_beta2), "eps": train.adam_epsilon},
        optim_args=arguments,
    )
    try:
        factory, options = handler(context)
    except Exception as error:
        if missing := _missing_packages(handler):
            named = re.search(r"pip install (?:-U )?([^\s`']+)", str(error))
            package = named[1].rstrip(".") if named else missing[0]
            raise MissingDependencyError(
                f"train.optim: {train.optim} needs {missing[0]}", f"pip install {package}, or use adamw_torch"
            ) from error
        raise refusal(train, error) from error
    if "model" in options or "optimizer_dict" in options:
        raise UsageError(
            f"train.optim: {train.optim} updates weights during the backward pass, which is not supported",
            f"use {train.optim.removesuffix('_layerwise')}" if train.optim.endswith("_layerwise") else "use adafactor",
            code="not_supported",
        )
    groups = options.pop("params", None)
    if groups is not None:
        groups = [{**group, "params": [each for each in group["params"] if each.requires_grad]} for group in groups]
    return Choice(factory, options, groups, arguments)


def construct(train: TrainSection, choice: Choice, groups: Sequence[Mapping[str, Any]]) -> torch.optim.Optimizer:
    try:
        return choice.factory([dict(group) for group in groups], **choice.options)
    except Exception as error:
        raise refusal(train, error) from error


def refusal(train: TrainSection, error: Exception) -> UsageError:
    reason = " ".join(str(error).split()) or type(error).__name__
    fix = "correct train.optim_args or train.optim_target_modules, or use another train.optim"
    return UsageError(f"train.optim {train.optim}: {reason}", fix, code="not_supported")


def _missing_packages(handler: Callable[..., Any]) -> list[str]:
    """The packages that a function imports and that are not installed."""
    imported = [each for each in ast.walk(ast.parse(inspect.getsource(handler))) if isinstance(each, ast.ImportFrom)]
    names = [str(each.module).partition(".")[0] for each in imported if not each.level]
    return [name for name in dict.fromkeys(names) if find_spec(name) is None]


def _muon(context: Any) -> tuple[Any, dict[str, Any]]:
    """As the functions of Transformers that this stands beside: Muon for the matrices of linear layers."""
    from torch import nn
    from torch.optim import Muon

    from llmkit.training.combined_optimizer import muon_with_adamw

    output = context.model.get_output_embeddings()
    matrices = {
        id(module.weight): module.weight
        for module in context.model.modules()
        if isinstance(module, nn.Linear) and module is not output and module.weight.ndim == 2
    }
    known = [name for name in inspect.signature(Muon).parameters if name not in ("params", "lr", "weight_decay")]
    # So that one learning rate suits both: updates of the size of AdamW's (Liu et al. 2025).
    muon = {"adjust_lr_fn": "match_rms_adamw"} | {
        name: context.optim_args[name] for name in known if name in context.optim_args
    }
    rest = [each for each in context.model.parameters() if id(each) not in matrices]
    groups = [{"params": list(matrices.values()), "muon": True}, {"params": rest, "muon": False}]
    return muon_with_adamw, {**context.optimizer_kwargs, **context.adam_kwargs, "muon": muon, "params": groups}
