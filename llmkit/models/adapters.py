"""Creates and loads PEFT adapters."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.errors import CheckpointError, MissingDependencyError, UsageError
from llmkit.files import read_json
from llmkit.log import warn
from llmkit.models.adapter_embeddings import embedding_settings
from llmkit.models.adapter_files import OTHER_BASE, adapter_weights, place_names, vocabulary_size
from llmkit.models.adapter_init import InitialBatches, base_weights, initialize_eva, keep_initial
from llmkit.models.adapter_methods import check_patterns, refuse_unmatched, refuse_untrainable
from llmkit.models.embeddings import embedding_groups, resize_embeddings
from llmkit.models.peft_compat import linear_names, pseudo_linear_modules, quiet_peft, reconcile
from llmkit.models.source import ADAPTER_CONFIG
from llmkit.models.tables import HEADS, writes
from llmkit.tasks import Head

if TYPE_CHECKING:
    import torch

    from llmkit.config.recipe import AdapterSection

__all__ = ["NeedsWeightsError", "attach", "load_adapter", "outline_adapter"]

_SPAN_HEAD = "qa_outputs"
"""Its name in all span models of Transformers."""


class NeedsWeightsError(Exception):
    """PEFT creates an adapter from the weights of its base model, of which only the structure is there."""


def attach(
    model: Any,
    section: AdapterSection,
    head: Head,
    *,
    tokenizer_name: str,
    new_tokens: Sequence[int] = (),
    new_vocabulary: bool = False,
    batches: InitialBatches | None = None,
) -> Any:
    """The model with a new adapter; nothing but the adapter is trained (with ``modules_to_save``).

    Args:
        tokenizer_name: folder of the tokenizer, for prompt tuning that is initialised from a text.
        new_tokens: ids whose embeddings are trained and saved with the adapter.
        new_vocabulary: whether all embeddings differ from the base's, and are trained and saved with the adapter.
        batches: of training data, for initial values that depend on it; not needed on the meta device.

    Raises:
        UsageError: PEFT cannot add this adapter to this model.
        NeedsWeightsError: PEFT looks at the weights of the base model, which is on the meta device.
    """
    import peft

    kind = section.peft_type
    refuse_untrainable(section)
    config_class: Any = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind)]
    settings, known = _settings(section, config_class), {item.name for item in dataclasses.fields(config_class)}
    if settings.get("prompt_tuning_init") == "TEXT":
        settings["tokenizer_name_or_path"] = tokenizer_name
    if settings.get("target_modules") == "all-linear":
        settings |= _all_linear(model, settings, known, kind, head)
    if new_tokens or new_vocabulary:
        settings |= embedding_settings(model, settings, known, kind, () if new_vocabulary else new_tokens)
    refuse_unmatched(model, section)
    mutating = isinstance(settings.get("init_lora_weights"), str) and model.device.type != "meta"
    before = base_weights(model) if mutating else {}
    try:
        adapted = _add(model, config_class(task_type=HEADS[head].task_type, **settings))
        if mutating and settings["init_lora_weights"] == "eva" and batches is not None:
            initialize_eva(adapted, batches)
    except ImportError as error:
        raise MissingDependencyError(f"adapter.peft_type {kind}: {error}", "install it, or use LORA") from error
    except (ValueError, TypeError, AttributeError, RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:300]
        if isinstance(error, NotImplementedError) and model.device.type == "meta":
            raise NeedsWeightsError from error
        fix = "correct the settings of the adapter, such as target_modules, or use another peft_type"
        if "target_modules" not in known:
            fix = "use another peft_type, such as LORA"
            if getattr(model, "is_activation_checkpointing", False):
                fix += ", or remove train.activation_checkpointing"
        raise UsageError(
            f"PEFT cannot add {kind} to {type(model).__name__} ({reason})", fix, code="not_supported"
        ) from error
    if not any(each.requires_grad for each in adapted.parameters()):
        raise UsageError(
            f"PEFT adds no trained parameters to {type(model).__name__} with {kind}",
            "set adapter.target_modules, or use another peft_type, such as LORA",
            code="not_supported",
        )
    check_patterns(adapted, section)
    if mutating:
        keep_initial(adapted, before)
    return adapted


def _settings(section: AdapterSection, config_class: Any) -> dict[str, Any]:
    """The settings of a recipe section that differ from PEFT's defaults."""
    defaults = {item.name: item.default for item in dataclasses.fields(config_class)}
    settings = section.model_dump(exclude={"peft_type"})
    found = {name: value for name, value in settings.items() if value is not None and value != defaults[name]}
    if found.get("init_lora_weights") == "eva":
        import peft

        found.setdefault("eva_config", peft.EvaConfig())  # PEFT warns of this default
    return found


def _all_linear(
    model: Any, settings: Mapping[str, Any], known: Collection[str], kind: str, head: Head
) -> dict[str, Any]:
    """The settings that make all-linear what it says, where they are not set."""
    found: dict[str, Any] = {}
    if "exclude_modules" in known and "exclude_modules" not in settings:
        # The head of a span model is new, so PEFT trains and saves all of it.
        heads = [] if writes(head) else [_SPAN_HEAD]
        found["exclude_modules"] = [*heads, *pseudo_linear_modules(model, kind)] or None
    if settings.get("layers_to_transform") is not None:  # which PEFT does not combine with all-linear
        found["target_modules"] = linear_names(model)
    return found


def _add(model: Any, config: Any) -> Any:
    import peft

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with quiet_peft():
            # With low_cpu_mem_usage, weights of the adapter are on the meta device too.
            options: Any = {"low_cpu_mem_usage": True} if model.device.type == "meta" else {}
            adapted = reconcile(peft.get_peft_model(model, config, **options))
    if adapted.device.type == "meta":  # warned once: a second model is the one trained
        for message in dict.fromkeys(" ".join(str(each.message).split()) for each in caught):
            warn("peft_warning", "PEFT on adapter %s: %s", config.peft_type.value, message)
    return adapted


def outline_adapter(model: Any, adapter: Path) -> Any:
    """The model with the structure of an adapter whose training continues, without its weights."""
    import peft

    config = _config(adapter)
    config.inference_mode = False
    kind = peft.MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, peft.PeftModel)
    with quiet_peft():
        return reconcile(kind(model, config, low_cpu_mem_usage=True))


def load_adapter(
    model: Any,
    adapter: Path,
    *,
    training: bool = False,
    tokens: int = 0,
    allow_pickle: bool = False,
    name: str = "default",
    task_type: str | None = None,
) -> Any:
    """The model with a trained adapter from its folder.

    Args:
        model: may have other adapters, of which one stays active.
        tokens: size of the adapter's own tokenizer, for which the embeddings need room.
        allow_pickle: load a .bin file that can run code.
        name: PEFT's name of the adapter.
        task_type: PEFT's, in place of the one in the adapter's config.

    Raises:
        CheckpointError: the adapter was trained on another model, or its files are incomplete.
    """
    import peft
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

    weights, config = adapter_weights(adapter, allow_pickle=allow_pickle), _config(adapter)
    config.inference_mode, config.task_type = not training, task_type or config.task_type
    prefix = PEFT_TYPE_TO_PREFIX_MAPPING.get(config.peft_type) or "lora_"
    _fit_embeddings(model, adapter, weights, config, prefix, tokens)
    kind = peft.MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, peft.PeftModel)
    first = not isinstance(model, peft.PeftModel)
    with quiet_peft():
        warnings.simplefilter("ignore", UserWarning)  # on the method, which are logged in training
        if first:
            adapted = kind(model, config, adapter_name=name)
        else:
            adapted = model
            adapted.add_adapter(name, config)
        own: dict[str, torch.Tensor] = get_peft_model_state_dict(
            adapted, adapter_name=name, save_embedding_layers=False
        )
        names = place_names(weights, [*adapted.state_dict(), *own], prefix)
        weights = {names[name]: each for name, each in weights.items()}
        _check_shapes(adapter, weights, own)
        # PEFT assumes that modules saved in full are in the file.
        saved_in_full = {name: each for name, each in own.items() if prefix not in name}
        result: Any = set_peft_model_state_dict(adapted, saved_in_full | weights, adapter_name=name)
    if not config.is_prompt_learning:
        unset = own.keys() & {each.replace(f".{name}", "") for each in result.missing_keys}
        _load_missed_weights(adapter, weights, own, result, unset, prefix)
    adapted = adapted if training else adapted.eval()
    return reconcile(adapted) if first else adapted


def _config(adapter: Path) -> Any:
    """PEFT's settings of an adapter, without those of a newer PEFT; a warning names them."""
    import peft

    with quiet_peft():
        config = peft.PeftConfig.from_pretrained(str(adapter))
    saved = read_json(adapter / ADAPTER_CONFIG)
    unknown = sorted(name for name, value in saved.items() if value and not hasattr(config, name))
    if unknown:
        warn(
            "setting_ignored",
            "%s sets %s, which the installed PEFT does not support and ignores; pip install -U peft",
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
    sizes = [vocabulary_size(shapes, names, prefix) for names in embedding_groups(model)]
    trained = _trained_tokens(config)
    wanted = max(size or 0 for size in sizes) or max(rows, trained, tokens)
    if wanted == rows:
        return
    _resize(model, adapter, wanted)
    if wanted > max(rows, trained) and None in sizes:
        warn(
            "adapter_incomplete",
            "the adapter %s was trained with %d more tokens than its base model has, but lacks their embeddings; they"
            " are set to the mean of all others",
            adapter,
            wanted - rows,
        )


def _trained_tokens(config: Any) -> int:
    """Number of tokens needed by an adapter that trains the embeddings of some."""
    indices = getattr(config, "trainable_token_indices", None) or getattr(config, "token_indices", None) or []
    parts = indices.values() if isinstance(indices, dict) else [indices]
    return max((token + 1 for part in parts for token in part), default=0)


def _resize(model: Any, adapter: Path, rows: int) -> None:
    """Resize the embeddings; new ones are the mean of the others, so that each loading gives the same model."""
    import torch

    before = int(model.get_input_embeddings().weight.shape[0])
    try:
        resize_embeddings(model, rows)
    except (NotImplementedError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"the adapter {adapter} was trained with {rows:,} tokens, {type(model).__name__} has {before:,}, and "
            "Transformers cannot resize it",
            "use it in the program that trained it",
            code="adapter_mismatch",
        ) from error
    with torch.no_grad():
        for table in (model.get_input_embeddings(), model.get_output_embeddings()):
            if table is not None and table.weight.shape[0] > before:
                table.weight[before:] = table.weight[:before].mean(dim=0)


def _check_shapes(adapter: Path, weights: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> None:
    for name, each in weights.items():
        if name in own and own[name].shape != each.shape:
            found, expected = (tuple(tensor.shape) for tensor in (each, own[name]))
            raise CheckpointError(
                f"the adapter {adapter} does not fit its base model: {name} has shape {found} in its file and"
                f" {expected} in the model",
                f"{OTHER_BASE}, or check {ADAPTER_CONFIG}",
                code="adapter_mismatch",
            )


def _load_missed_weights(
    adapter: Path,
    weights: Mapping[str, torch.Tensor],
    own: Mapping[str, torch.Tensor],
    result: Any,
    unset: set[str],
    prefix: str,
) -> None:
    """Load weights that PEFT missed, and refuse an adapter whose weights match no layer of the model.

    PEFT renames the weights of adapters as Transformers renames those of older checkpoints. Where a new name looks like
    an old one (Laguna, Inkling), they are lost, and the layer keeps its initial weights.
    """
    import torch

    unset = unset | {name for name in own.keys() - weights.keys() if prefix not in name}
    late = unset & weights.keys()
    with torch.no_grad():
        for name in late:
            own[name].copy_(weights[name])
    strange = [name for name in result.unexpected_keys if prefix in name]
    missing = sorted(unset - late)
    if len(strange) > len(late) or (own and missing and len(missing) == len(own)):
        raise CheckpointError(
            f"{len(strange)} weights of the adapter {adapter} match no layer of its base model"
            f" ({(strange or missing)[0]})",
            OTHER_BASE,
            code="adapter_mismatch",
        )
    if others := [name for name in result.unexpected_keys if prefix not in name]:
        warn(
            "adapter_incomplete",
            "ignored %d weights of the adapter %s that match no layer, such as %s",
            len(others),
            adapter,
            others[0],
        )
    if missing:
        warn(
            "adapter_incomplete",
            "the adapter %s lacks %d weights, which have no effect: %s …",
            adapter,
            len(missing),
            missing[0],
        )
