"""Adapters as PEFT has them, from a recipe's section."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.errors import UsageError
from llmkit.log import log
from llmkit.models.source import read_json
from llmkit.tasks import Head

if TYPE_CHECKING:
    from llmkit.config.recipe import Adapter

__all__ = ["attach", "brings_head", "load_adapter"]

_TASK_TYPES = {Head.CAUSAL: "CAUSAL_LM", Head.SEQ2SEQ: "SEQ_2_SEQ_LM", Head.SPAN: "QUESTION_ANS"}

_SPAN_HEAD = "qa_outputs"
"""What all span models of Transformers call it."""


def attach(model: Any, section: Adapter, head: Head, *, tokenizer_name: str, new_tokens: Sequence[int] = ()) -> Any:
    """The model with a new adapter, the only part of it that is trained (with ``modules_to_save``).

    Args:
        tokenizer_name: folder of the tokenizer, which prompt tuning reads to begin from a text.
        new_tokens: ids whose embeddings are trained in full and kept with the adapter.

    Raises:
        UsageError: PEFT cannot put this adapter on this model.
    """
    import peft

    settings = section.model_dump()
    kind = settings.pop("peft_type")
    config_class = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind)]
    if kind == "PROMPT_TUNING" and settings["prompt_tuning_init"] == "TEXT":
        settings["tokenizer_name_or_path"] = tokenizer_name
    if settings.get("target_modules") == "all-linear" and settings["exclude_modules"] is None:
        # Of a span model the head is new, so PEFT trains and saves all of it.
        settings["exclude_modules"] = [*([_SPAN_HEAD] if head is Head.SPAN else []), *_not_linear(model, kind)] or None
    if new_tokens:
        if kind != "LORA":
            raise UsageError(f"PEFT trains no new tokens beside {kind}", "use LORA, or leave tokenizer.add_tokens out")
        settings["trainable_token_indices"] = dict.fromkeys(_embeddings(model), sorted(new_tokens))
    given = {name: value for name, value in settings.items() if value is not None}
    try:
        with _quiet_peft():
            return _pass_all(peft.get_peft_model(model, config_class(task_type=_TASK_TYPES[head], **given)))
    except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UsageError(
            f"PEFT cannot put {kind} on {type(model).__name__} ({reason})",
            "choose other target_modules, or another peft_type",
        ) from error


def load_adapter(model: Any, adapter: Path, *, training: bool = False) -> Any:
    """The model with an adapter that was trained before, from its folder."""
    from peft import PeftModel

    _fit_embeddings(model, adapter)
    with _quiet_peft():
        adapted = PeftModel.from_pretrained(model, str(adapter), is_trainable=training, local_files_only=True)
    _fill_in(adapted, adapter)
    return _pass_all(adapted)


@contextmanager
def _quiet_peft() -> Iterator[None]:
    """Without what PEFT says of its own doing: ranks of experts that it sets unasked, weights that `_fill_in` sets."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys did not match")
        warnings.filterwarnings("ignore", "Found missing adapter keys while loading the checkpoint")
        yield


def _pass_all(model: Any) -> Any:
    """The same model, which gives all inputs to the one below: PEFT 0.21's for questions drops token types by name."""
    from peft import PeftModel, PeftModelForQuestionAnswering

    if isinstance(model, PeftModelForQuestionAnswering) and not model.active_peft_config.is_prompt_learning:
        model.__class__ = type("PeftModelForQuestionAnswering", (type(model),), {"forward": PeftModel.forward})
    return model


def brings_head(adapter: Path | None, head: Head) -> bool:
    """Whether an adapter has a head that its base lacks: PEFT saves a new one with it (``modules_to_save``)."""
    if adapter is None or head is not Head.SPAN:
        return False
    return read_json(adapter / "adapter_config.json").get("task_type") == _TASK_TYPES[head]


def _not_linear(model: Any, kind: str) -> Iterator[str]:
    """Names of modules that PEFT takes for linear layers by their class, and that compute something else.

    Routers of experts (Llama 4, Phi-MoE) and grouped projections (DeepSeek V4) are subclasses with a forward of their
    own. The weights of some, as in Mamba's mixers, are read by the layer above, which would pass an adapter by; PEFT
    refuses a few of those.
    """
    import torch
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba as check

    read_by = {cls: _weights_read_by(cls) for cls in {type(module) for module in model.modules()}}
    passed_by = {f"{name}.{child}" for name, module in model.named_modules() for child in read_by[type(module)]}
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        if name in passed_by or (
            type(module).__module__.startswith("transformers.models.") and not _maps_as_linear(module)
        ):
            yield name
        elif kind == "LORA":
            try:
                check(LoraConfig(), model, name.rpartition(".")[2])
            except ValueError:
                yield name


def _weights_read_by(cls: type) -> frozenset[str]:
    """The children whose weights a class multiplies itself, if it is one for which Transformers calls their hooks."""
    methods = [method for method in vars(cls).values() if inspect.isfunction(method)]
    named = [inspect.getclosurevars(method).nonlocals.get("child_module_names") for method in methods]
    if not any(named):
        return frozenset()
    return frozenset(re.findall(r"self\.(\w+)\.weight\b(?!\.)", inspect.getsource(cls)))


def _maps_as_linear(module: Any) -> bool:
    """Whether a subclass of a linear layer takes and gives what its base does (Falcon's); also without weights."""
    import torch

    try:
        with torch.no_grad():
            found = module(torch.zeros(1, module.in_features, dtype=module.weight.dtype, device=module.weight.device))
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False
    return isinstance(found, torch.Tensor) and found.shape == (1, module.out_features)


def _embeddings(model: Any) -> Iterator[str]:
    """The names of the modules that hold a vector for each token; of two that are tied, the first."""
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    tied = outputs is not None and outputs.weight is inputs.weight
    for name, module in model.named_modules():
        if module is inputs or (module is outputs and not tied):
            yield name.rpartition(".")[2]


def _fit_embeddings(model: Any, adapter: Path) -> None:
    """Make room for the new tokens that an adapter has trained."""
    indices = read_json(adapter / "adapter_config.json").get("trainable_token_indices") or []
    ids = [each for part in indices.values() for each in part] if isinstance(indices, dict) else indices
    if ids and max(ids) >= model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)


def _fill_in(model: Any, adapter: Path) -> None:
    """Set the weights that PEFT left out, and say which the adapter lacks.

    It renames those of an adapter as Transformers renames those of older checkpoints, and where a new name looks like
    an old one (Laguna, Inkling) they are lost: the layer keeps its initial ones.
    """
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    file = adapter / "adapter_model.safetensors"
    if not file.is_file() or model.active_peft_config.is_prompt_learning:
        return
    found: dict[str, torch.Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    weights = load_file(file)
    with torch.no_grad():
        for name, saved in weights.items():
            if name in found and found[name].shape == saved.shape:
                found[name].copy_(saved)  # the model's own memory
    if missing := sorted(found.keys() - weights.keys()):
        log.warning("the adapter %s lacks %d weights, which do nothing: %s …", adapter, len(missing), missing[0])
