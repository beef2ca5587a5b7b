"""Which PEFT methods and settings can be trained by a loss and its gradient alone, found in PEFT's source.

PEFT does not check this: what a method needs besides is missing without an error. Creates no adapter.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from llmkit.errors import UsageError

if TYPE_CHECKING:
    from llmkit.config.recipe import AdapterSection

__all__ = ["check_patterns", "refuse_unmatched", "refuse_untrainable"]

_OWN_LOSS = re.compile(r"\.loss\b\s*\+?=[^=]")


def refuse_untrainable(section: AdapterSection) -> None:
    """Refuse a method or setting that needs more than a loss and its gradient."""
    import peft
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    kind = section.peft_type
    tuner: Any = PEFT_TYPE_TO_TUNER_MAPPING[peft.PeftType(kind)]
    if needs := [*_needs(section, tuner)]:
        raise UsageError(
            f"adapter.peft_type {kind} cannot be trained here: {' and '.join(needs)}",
            "use another one, such as LORA",
            code="not_supported",
        )
    for name in type(section).model_fields:
        if name.endswith("_config") and getattr(section, name) and hasattr(tuner, f"_get_{name[:-7]}_loss"):
            raise UsageError(
                f"adapter.{name} adds a loss of its own, which is not supported", "remove it", code="not_supported"
            )
    beginning = getattr(section, "init_lora_weights", None)
    if _is_preprocessed(beginning):
        raise UsageError(
            f"adapter.init_lora_weights {beginning} runs the model on data before the adapter is created, which is not "
            "supported",
            "use another one, such as pissa, or eva, which is initialised from the training data",
            code="not_supported",
        )


def _is_preprocessed(beginning: object) -> bool:
    """Whether an initialisation of LoRA uses what one of PEFT's functions leaves in the layers of the base model."""
    from peft.tuners.lora.layer import LoraLayer

    initialize = getattr(LoraLayer, f"{beginning}_init", None)
    return initialize is not None and "preprocess_" in inspect.getsource(initialize)


def _needs(section: AdapterSection, tuner: Any) -> Iterator[str]:
    source = inspect.getsource(sys.modules[tuner.__module__])
    if "adapters" in type(section).model_fields:
        yield "it combines trained adapters"
    if any("task_ids" in arguments for arguments in _arguments_of(source, "forward")):
        yield "each example needs a task id"
    if _OWN_LOSS.search(source):
        yield "it computes a loss of its own"
    if update := getattr(tuner, "update_and_allocate", None):
        switches = set(re.findall(r"\.(use_\w+)", inspect.getsource(update)))
        if not switches or any(getattr(section, name, False) for name in switches):
            yield "it changes ranks between updates"


def _arguments_of(source: str, function: str) -> Iterator[set[str]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name == function:
            yield {each.arg for each in [*node.args.args, *node.args.kwonlyargs]}


def refuse_unmatched(model: Any, section: AdapterSection) -> None:
    """Refuse names that match no module: PEFT ignores them if another name in the list matches."""
    modules = [name for name, _ in model.named_modules()]
    for key in ("target_modules", "exclude_modules", "feedforward_modules", "modules_to_save"):
        names = getattr(section, key, None)
        dot = "" if key == "modules_to_save" else "."  # where PEFT matches any suffix
        for name in names if isinstance(names, list) else ():
            if not any(f"{dot}{module}".endswith(f"{dot}{name}") for module in modules):
                near = get_close_matches(name, {module.rpartition(".")[2] for module in modules}, n=1)
                raise UsageError(
                    f"adapter.{key}: {type(model).__name__} has no module {name}",
                    f"did you mean {near[0]}?" if near else f"remove it, or name one such as {modules[-1]}",
                    code="not_supported",
                )


def check_patterns(adapted: Any, section: AdapterSection) -> None:
    """Refuse patterns and layers that match no adapted module, which PEFT ignores."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import get_pattern_key

    names = [
        name.removeprefix("base_model.model.")
        for name, module in adapted.named_modules()
        if isinstance(module, BaseTunerLayer)
    ]
    for key in (key for key in type(section).model_fields if key.endswith("_pattern")):
        patterns = getattr(section, key)
        for pattern in patterns if isinstance(patterns, dict) else ():
            if not any(get_pattern_key([pattern], name) == pattern for name in names):
                raise UsageError(
                    f"adapter.{key}: {pattern} matches no adapted module",
                    f"match the end of a name such as {names[-1]}, from one of its dots on",
                    code="no_effect",
                )
    layers = getattr(section, "layers_to_transform", None)
    for layer in [layers] if isinstance(layers, int) else layers or ():
        if not any(re.search(rf"\.{layer}\.", name) for name in names):
            raise UsageError(
                f"adapter.layers_to_transform: {type(adapted.get_base_model()).__name__} has no adapted layer {layer}",
                "count from 0",
                code="no_effect",
            )
