"""Differences between the installed PEFT and Transformers: output, arguments and classes that do not match.

Knows PEFT 0.21. Creates and loads no adapter.
"""

from __future__ import annotations

import inspect
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llmkit.models.generation import cache_name

__all__ = ["linear_names", "pseudo_linear_modules", "quiet_peft", "reconcile"]

_PEFT_CACHE = "past_key_values"
"""PEFT's name of the KV cache."""


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Hide PEFT's warnings about what it does itself, such as ranks that it sets for experts, and about newer settings.

    `llmkit.training.merge` takes care of tied embeddings.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Model (has|with) `tie_word_embeddings=True`")
        warnings.filterwarnings("ignore", "Input and output embeddings are no longer tied")
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys did not match")
        warnings.filterwarnings("ignore", "Unexpected keyword arguments")
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")  # peft 0.21 uses it
        yield


def reconcile(model: Any) -> Any:
    """The same model, patched where PEFT 0.21 drops or misses arguments of Transformers.

    PEFT's question answering model drops token types. Methods that prepend keys and values look for the KV cache under
    a name that Transformers no longer uses from 5.24 on.
    """
    from peft import PeftModel, PeftModelForCausalLM, PeftModelForQuestionAnswering

    virtual = model.active_peft_config.is_prompt_learning
    if isinstance(model, PeftModelForQuestionAnswering) and not virtual:
        model.__class__ = type("PeftModelForQuestionAnswering", (type(model),), {"forward": PeftModel.forward})
    same_name = f'"{cache_name()}"' in inspect.getsource(PeftModelForCausalLM.prepare_inputs_for_generation)
    if not same_name and (virtual or _PEFT_CACHE in inspect.getsource(sys.modules[type(model.base_model).__module__])):
        _translate_cache(model)
    return model


def _translate_cache(model: Any) -> None:
    """Rename the KV cache argument between Transformers and PEFT, in both directions."""

    def to_peft(_module: Any, inputs: Any, named: dict[str, Any]) -> Any:
        return inputs, _renamed(named, cache_name(), _PEFT_CACHE)

    def to_transformers(_module: Any, inputs: Any, named: dict[str, Any]) -> Any:
        return inputs, _renamed(named, _PEFT_CACHE, cache_name())

    base = model.get_base_model()
    base.register_forward_pre_hook(to_peft, prepend=True, with_kwargs=True)
    base.register_forward_pre_hook(to_transformers, with_kwargs=True)
    if prepare := getattr(model, "base_model_prepare_inputs_for_generation", None):

        def prepare_for_peft(*inputs: Any, **named: Any) -> dict[str, Any]:
            return _renamed(prepare(*inputs, **named), cache_name(), _PEFT_CACHE)

        model.base_model_prepare_inputs_for_generation = prepare_for_peft
    if backbone := getattr(model, "transformer_backbone_name", None):  # of a span model: PEFT inspects signatures
        for part in (base, base.get_submodule(backbone)):
            part.forward = _with_peft_cache_name(part.forward)


def _with_peft_cache_name(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The same method with PEFT's name of the KV cache added to its signature."""
    signature = inspect.signature(forward)
    if cache_name() not in signature.parameters or _PEFT_CACHE in signature.parameters:
        return forward

    def with_peft_name(*inputs: Any, **named: Any) -> Any:
        return forward(*inputs, **_renamed(named, _PEFT_CACHE, cache_name()))

    *others, last = signature.parameters.values()
    extra = signature.parameters[cache_name()].replace(name=_PEFT_CACHE, kind=inspect.Parameter.KEYWORD_ONLY)
    rest = [extra, last] if last.kind is inspect.Parameter.VAR_KEYWORD else [last, extra]
    with_peft_name.__signature__ = signature.replace(parameters=[*others, *rest])  # type: ignore[attr-defined]
    return with_peft_name


def _renamed(values: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    return {new if name == old else name: value for name, value in values.items()}


def linear_names(model: Any) -> list[str]:
    """The last parts of the names of the linear layers that all-linear stands for: all but the output layer."""
    import torch
    from transformers.pytorch_utils import Conv1D

    output = model.get_output_embeddings()
    linear = (torch.nn.Linear, Conv1D)
    names = [name for name, each in model.named_modules() if isinstance(each, linear) and each is not output]
    return sorted({name.rpartition(".")[2] for name in names})


def pseudo_linear_modules(model: Any, kind: str) -> Iterator[str]:
    """Names of modules that PEFT treats as linear layers because of their class, and that compute something else.

    Routers of experts (Llama 4, Phi-MoE) and grouped projections (DeepSeek V4) are subclasses with a forward of their
    own. The weights of some, as in Mamba's mixers, are used by their parent module directly, which would bypass an
    adapter; PEFT refuses a few of them.
    """
    import torch
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba as check

    used_by = {cls: _weights_used_by(cls) for cls in {type(module) for module in model.modules()}}
    bypassed = {f"{name}.{child}" for name, module in model.named_modules() for child in used_by[type(module)]}
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        if name in bypassed or (
            type(module).__module__.startswith("transformers.models.") and not _is_linear_map(module)
        ):
            yield name
        elif kind == "LORA":
            try:
                check(LoraConfig(), model, name.rpartition(".")[2])
            except ValueError:
                yield name


def _weights_used_by(cls: type) -> frozenset[str]:
    """The children whose weights a class uses directly, if it is a class for which Transformers calls their hooks."""
    methods = [method for method in vars(cls).values() if inspect.isfunction(method)]
    named = [inspect.getclosurevars(method).nonlocals.get("child_module_names") for method in methods]
    if not any(named):
        return frozenset()
    return frozenset(re.findall(r"self\.(\w+)\.weight\b(?!\.)", inspect.getsource(cls)))


def _is_linear_map(module: Any) -> bool:
    """Whether a subclass of a linear layer has the inputs and outputs of its base (Falcon's), on any device."""
    import torch

    try:
        with torch.no_grad():
            found = module(torch.zeros(1, module.in_features, dtype=module.weight.dtype, device=module.weight.device))
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False
    return isinstance(found, torch.Tensor) and found.shape == (1, module.out_features)
