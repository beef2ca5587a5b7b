"""Creates and loads PEFT adapters."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.errors import CheckpointError, MissingDependencyError, UsageError
from llmkit.log import warn
from llmkit.models.adapter_files import OTHER_BASE, adapter_weights, place_names, vocabulary_size
from llmkit.models.generation import cache_name
from llmkit.models.source import ADAPTER_CONFIG, read_json
from llmkit.models.tables import HEADS, writes
from llmkit.tasks import Head

if TYPE_CHECKING:
    import torch

    from llmkit.config.recipe import AdapterSection

__all__ = ["attach", "embedding_names", "load_adapter", "outline_adapter", "quiet_peft", "resize_embeddings"]

_SPAN_HEAD = "qa_outputs"
"""What all span models of Transformers call it."""
_PEFT_CACHE = "past_key_values"
"""What PEFT 0.21 calls keys and values."""


def attach(
    model: Any, section: AdapterSection, head: Head, *, tokenizer_name: str, new_tokens: Sequence[int] = ()
) -> Any:
    """The model with a new adapter, the only part of it that is trained (with ``modules_to_save``).

    Args:
        tokenizer_name: folder of the tokenizer, which prompt tuning reads to begin from a text.
        new_tokens: ids whose embeddings are trained in full and kept with the adapter.

    Raises:
        UsageError: PEFT cannot put this adapter on this model.
    """
    import peft

    kind = section.peft_type
    _refuse_partial(section)
    config_class: Any = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind)]
    settings, known = _settings(section, config_class), {item.name for item in dataclasses.fields(config_class)}
    if settings.get("prompt_tuning_init") == "TEXT":
        settings["tokenizer_name_or_path"] = tokenizer_name
    if settings.get("target_modules") == "all-linear" and "exclude_modules" in known - settings.keys():
        # Of a span model the head is new, so PEFT trains and saves all of it.
        settings["exclude_modules"] = [*([] if writes(head) else [_SPAN_HEAD]), *_not_linear(model, kind)] or None
    if new_tokens:
        if "trainable_token_indices" not in known:
            raise UsageError(
                f"PEFT trains no new tokens beside {kind}",
                "use LORA, or leave tokenizer.add_tokens out",
                code="not_supported",
            )
        settings["trainable_token_indices"] = dict.fromkeys(_own_names(model), sorted(new_tokens))
    _refuse_unmatched(model, section)
    try:
        return _put_on(model, config_class(task_type=HEADS[head].task_type, **settings))
    except ImportError as error:
        raise MissingDependencyError(f"adapter.peft_type {kind}: {error}", "install it, or use LORA") from error
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        if isinstance(error, RuntimeError) and model.device.type == "meta":
            reason = "it is made from the weights of the base, which are only read when all else was checked"
        fix = "correct the settings of the adapter, such as target_modules, or use another peft_type"
        if "target_modules" not in known:
            fix = "use another peft_type, such as LORA"
            if getattr(model, "is_activation_checkpointing", False):
                fix += ", or leave train.activation_checkpointing out"
        raise UsageError(
            f"PEFT cannot put {kind} on {type(model).__name__} ({reason})", fix, code="not_supported"
        ) from error


def _settings(section: AdapterSection, config_class: Any) -> dict[str, Any]:
    """The settings of a recipe section that differ from PEFT's defaults."""
    defaults = {item.name: item.default for item in dataclasses.fields(config_class)}
    given = section.model_dump(exclude={"peft_type"})
    return {name: value for name, value in given.items() if value is not None and value != defaults[name]}


def _put_on(model: Any, config: Any) -> Any:
    import peft

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with quiet_peft():
            adapted = _fit_together(peft.get_peft_model(model, config))
    if adapted.device.type == "meta":  # the model that is then trained is a second one
        for message in dict.fromkeys(" ".join(str(each.message).split()) for each in caught):
            warn("peft_warning", "PEFT on adapter %s: %s", config.peft_type.value, message)
    return adapted


_NEEDS_MORE = {
    "ADALORA": "between updates PEFT would have to be asked for other ranks, and it adds to the loss",
    "CPT": "it computes a loss of its own",
    "MULTITASK_PROMPT_TUNING": "each example would need the number of a task",
    "POLY": "each example would need the number of a task",
    "SHADOW": "it adds a loss of its own",
    "XLORA": "it combines adapters that were trained before",
}
"""Methods that need more than a loss and its gradient; PEFT does not check this when it creates them."""
_WITH_A_LOSS = ("kasa_config", "monteclora_config")
_FROM_DATA = ("eva", "corda", "lora_ga")
"""Initialisations that need data; without it, PEFT silently uses another one."""


def _refuse_partial(section: AdapterSection) -> None:
    if section.peft_type in _NEEDS_MORE:
        raise UsageError(
            f"adapter.peft_type {section.peft_type} cannot be trained here: {_NEEDS_MORE[section.peft_type]}",
            "use another one, such as LORA",
            code="not_supported",
        )
    for name in _WITH_A_LOSS:
        if getattr(section, name, None) is not None:
            raise UsageError(
                f"adapter.{name} adds a loss of its own, which is not computed here",
                "leave it out",
                code="not_supported",
            )
    if (beginning := getattr(section, "init_lora_weights", None)) in _FROM_DATA:
        raise UsageError(
            f"adapter.init_lora_weights {beginning} needs training data for initialisation, which is not supported",
            "use another one, such as gaussian",
            code="not_supported",
        )


def _own_names(model: Any) -> list[str]:
    """The embedding modules; refuses a model in which PEFT, which compares name endings, would match another module."""
    modules = list(model.named_modules(remove_duplicate=False))
    names = embedding_names(model)
    for name in names:
        found = {id(module): each for each, module in modules if each.endswith(name)}
        if len(found) > 1:
            one, other, *_ = found.values()
            raise UsageError(
                f"PEFT cannot train new tokens of {type(model).__name__}: it takes {one} and {other} for one",
                "leave tokenizer.add_tokens out, or train all weights without the section adapter",
                code="not_supported",
            )
    return names


def _refuse_unmatched(model: Any, section: AdapterSection) -> None:
    """Refuse names that match no module: PEFT ignores them as long as another name in the list matches."""
    modules = [name for name, _ in model.named_modules()]
    for key in ("target_modules", "exclude_modules", "feedforward_modules", "modules_to_save"):
        names = getattr(section, key, None)
        dot = "" if key == "modules_to_save" else "."  # where PEFT takes any ending
        for name in names if isinstance(names, list) else ():
            if not any(f"{dot}{module}".endswith(f"{dot}{name}") for module in modules):
                near = get_close_matches(name, {module.rpartition(".")[2] for module in modules}, n=1)
                raise UsageError(
                    f"adapter.{key}: {type(model).__name__} has no module {name}",
                    f"did you mean {near[0]}?" if near else f"leave it out, or name one such as {modules[-1]}",
                    code="not_supported",
                )


def outline_adapter(model: Any, adapter: Path) -> Any:
    """The model with the structure of an adapter that will be trained on, without its weights."""
    import peft

    config = _config(adapter)
    config.inference_mode = False
    kind = peft.MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, peft.PeftModel)
    with quiet_peft():
        return _fit_together(kind(model, config))


def load_adapter(
    model: Any, adapter: Path, *, training: bool = False, tokens: int = 0, allow_pickle: bool = False
) -> Any:
    """The model with an adapter that was trained before, from its folder.

    Args:
        tokens: of the adapter's own tokenizer, for which there has to be room.
        allow_pickle: load a .bin file that can run code.

    Raises:
        CheckpointError: the adapter was trained on another model, or its files are not whole.
    """
    import peft
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

    weights, config = adapter_weights(adapter, allow_pickle=allow_pickle), _config(adapter)
    config.inference_mode = not training
    prefix = PEFT_TYPE_TO_PREFIX_MAPPING.get(config.peft_type) or "lora_"
    _fit_embeddings(model, adapter, weights, config, prefix, tokens)
    kind = peft.MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, peft.PeftModel)
    with quiet_peft():
        adapted = kind(model, config)
        own: dict[str, torch.Tensor] = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        called = place_names(weights, [*adapted.state_dict(), *own], prefix)
        weights = {called[name]: each for name, each in weights.items()}
        _check_shapes(adapter, weights, own)
        # PEFT takes it for granted that a module which is saved whole is in the file.
        whole = {name: each for name, each in own.items() if prefix not in name}
        result = set_peft_model_state_dict(adapted, whole | weights)
    if not config.is_prompt_learning:
        _settle(adapter, weights, own, result, prefix)
    return _fit_together(adapted if training else adapted.eval())


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Without what PEFT says of its own doing: ranks of experts that it sets unasked, settings of a newer version.

    That shared embeddings may part is what `llmkit.training.merge` sees to.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Model (has|with) `tie_word_embeddings=True`")
        warnings.filterwarnings("ignore", "Input and output embeddings are no longer tied")
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys did not match")
        warnings.filterwarnings("ignore", "Unexpected keyword arguments")
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")  # peft 0.21 reads it
        yield


def _fit_together(model: Any) -> Any:
    """The same model, where PEFT 0.21 does not pass on what Transformers takes and gives.

    PEFT's model for questions drops token types by name. Where an adapter brings keys and values of its own, PEFT looks
    for those of the model under a name that Transformers no longer uses from 5.24 on.
    """
    from peft import PeftModel, PeftModelForCausalLM, PeftModelForQuestionAnswering

    virtual = model.active_peft_config.is_prompt_learning
    if isinstance(model, PeftModelForQuestionAnswering) and not virtual:
        model.__class__ = type("PeftModelForQuestionAnswering", (type(model),), {"forward": PeftModel.forward})
    known = f'"{cache_name()}"' in inspect.getsource(PeftModelForCausalLM.prepare_inputs_for_generation)
    if not known and (virtual or _PEFT_CACHE in inspect.getsource(sys.modules[type(model.base_model).__module__])):
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
    if backbone := getattr(model, "transformer_backbone_name", None):  # of a span model: PEFT reads signatures
        for part in (base, base.get_submodule(backbone)):
            part.forward = _as_peft_reads_it(part.forward)


def _as_peft_reads_it(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The same method with PEFT's name of the KV cache added to its signature."""
    signature = inspect.signature(forward)
    if cache_name() not in signature.parameters or _PEFT_CACHE in signature.parameters:
        return forward

    def shown(*inputs: Any, **named: Any) -> Any:
        return forward(*inputs, **_renamed(named, _PEFT_CACHE, cache_name()))

    *others, last = signature.parameters.values()
    extra = signature.parameters[cache_name()].replace(name=_PEFT_CACHE, kind=inspect.Parameter.KEYWORD_ONLY)
    rest = [extra, last] if last.kind is inspect.Parameter.VAR_KEYWORD else [last, extra]
    shown.__signature__ = signature.replace(parameters=[*others, *rest])  # type: ignore[attr-defined]
    return shown


def _renamed(values: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    return {new if name == old else name: value for name, value in values.items()}


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


def embedding_names(model: Any) -> list[str]:
    """The modules that hold a vector for each token; of two that are tied, the first.

    By the shortest name that is theirs alone, of the names that the model itself reads them by: Marian keeps its
    embeddings under three, and uses two.
    """
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    parts = [(inputs, model.get_input_embeddings)]
    if outputs is not None and outputs.weight is not inputs.weight:
        parts.append((outputs, model.get_output_embeddings))
    modules = list(model.named_modules(remove_duplicate=False))
    every = [name for name, _ in modules]
    found = []
    for part, read in parts:
        name = next(name for name, module in modules if module is part and _is_read_by(model, name, read))
        tail = name.rpartition(".")[2]
        found.append(tail if sum(each.endswith(tail) for each in every) == 1 else name)
    return found


def _is_read_by(model: Any, name: str, read: Callable[[], Any]) -> bool:
    """Whether another module under a name would be the one that is read."""
    parent, _, attribute = name.rpartition(".")
    holder = model.get_submodule(parent)
    before = getattr(holder, attribute)
    other = copy.copy(before)
    setattr(holder, attribute, other)
    try:
        return read() is other
    finally:
        setattr(holder, attribute, before)


def _config(adapter: Path) -> Any:
    """PEFT's settings of an adapter; what only a newer PEFT knows is left out, and said where it is in use."""
    import peft

    with quiet_peft():
        config = peft.PeftConfig.from_pretrained(str(adapter))
    said = read_json(adapter / ADAPTER_CONFIG)
    unknown = sorted(name for name, value in said.items() if value and not hasattr(config, name))
    if unknown:
        warn(
            "setting_ignored",
            "%s sets %s, which the installed PEFT does not know and leaves out; pip install -U peft",
            adapter / ADAPTER_CONFIG,
            ", ".join(unknown),
        )
    return config


def _fit_embeddings(
    model: Any, adapter: Path, weights: Mapping[str, torch.Tensor], config: Any, prefix: str, tokens: int
) -> None:
    """Resize the embeddings to the size that the adapter was trained with."""
    rows = int(model.get_input_embeddings().weight.shape[0])
    shapes = {name: tuple(each.shape) for name, each in weights.items()}
    sizes = [vocabulary_size(shapes, names, prefix) for names in _tables(model)]
    trained = _trained_tokens(config)
    wanted = max(size or 0 for size in sizes) or max(rows, trained, tokens)
    if wanted == rows:
        return
    _resize(model, adapter, wanted)
    if wanted > max(rows, trained) and None in sizes:
        warn(
            "adapter_incomplete",
            "the adapter %s was trained with %d tokens more than its base model has, and lacks vectors of theirs; the"
            " mean of all others stands for them",
            adapter,
            wanted - rows,
        )


def _tables(model: Any) -> list[list[str]]:
    """The names of the modules that hold a vector for each token, one list for each set that shares a weight."""
    parts = (model.get_input_embeddings(), model.get_output_embeddings())
    weights = {id(each.weight): each.weight for each in parts if each is not None}.values()
    modules = list(model.named_modules(remove_duplicate=False))
    return [[name for name, module in modules if getattr(module, "weight", None) is each] for each in weights]


def _trained_tokens(config: Any) -> int:
    """How many tokens there must be for those that an adapter trains alone."""
    indices = getattr(config, "trainable_token_indices", None) or getattr(config, "token_indices", None) or []
    parts = indices.values() if isinstance(indices, dict) else [indices]
    return max((token + 1 for part in parts for token in part), default=0)


def _resize(model: Any, adapter: Path, rows: int) -> None:
    """The mean of the others stands for vectors that the adapter does not bring: the same at each loading."""
    import torch

    before = int(model.get_input_embeddings().weight.shape[0])
    try:
        resize_embeddings(model, rows)
    except (NotImplementedError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"the adapter {adapter} was trained with {rows:,} tokens and {type(model).__name__} has {before:,}, which "
            "Transformers cannot change",
            "use it in the program that trained it",
            code="adapter_mismatch",
        ) from error
    with torch.no_grad():
        for table in (model.get_input_embeddings(), model.get_output_embeddings()):
            if table is not None and table.weight.shape[0] > before:
                table.weight[before:] = table.weight[:before].mean(dim=0)


def resize_embeddings(model: Any, rows: int) -> None:
    """As Transformers does it without ``mean_resizing``, which Marian's classes do not pass on."""
    name = "_init_added_embeddings_weights_with_mean"
    setattr(model, name, lambda *_, **__: None)
    try:
        model.resize_token_embeddings(rows, mean_resizing=False)
    finally:
        delattr(model, name)


def _check_shapes(adapter: Path, weights: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> None:
    for name, each in weights.items():
        if name in own and own[name].shape != each.shape:
            found, place = (tuple(tensor.shape) for tensor in (each, own[name]))
            raise CheckpointError(
                f"the adapter {adapter} does not fit its base model: {name} is {found} in its file and {place} here",
                f"{OTHER_BASE}, or check {ADAPTER_CONFIG}",
                code="adapter_mismatch",
            )


def _settle(
    adapter: Path, weights: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], result: Any, prefix: str
) -> None:
    """Set the weights that PEFT left out, and refuse an adapter whose weights have no place in the model.

    PEFT renames those of an adapter as Transformers renames those of older checkpoints, and where a new name looks like
    an old one (Laguna, Inkling) they are lost: the layer keeps its initial ones.
    """
    import torch

    unset = {name.replace(".default", "") for name in result.missing_keys} & own.keys()
    unset |= {name for name in own.keys() - weights.keys() if prefix not in name}
    late = unset & weights.keys()
    with torch.no_grad():
        for name in late:
            own[name].copy_(weights[name])  # the model's own memory
    strange = [name for name in result.unexpected_keys if prefix in name]
    missing = sorted(unset - late)
    if len(strange) > len(late) or (own and missing and len(missing) == len(own)):
        raise CheckpointError(
            f"{len(strange)} weights of the adapter {adapter} have no place in its base model"
            f" ({(strange or missing)[0]})",
            OTHER_BASE,
            code="adapter_mismatch",
        )
    if others := [name for name in result.unexpected_keys if prefix not in name]:
        warn(
            "adapter_incomplete",
            "left out of the adapter %s: %d weights that no layer has, as %s",
            adapter,
            len(others),
            others[0],
        )
    if missing:
        warn(
            "adapter_incomplete",
            "the adapter %s lacks %d weights, which do nothing: %s …",
            adapter,
            len(missing),
            missing[0],
        )
