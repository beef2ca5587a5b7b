"""Builds a model of the right class from a checkpoint's files, with weights or on the meta device."""

from __future__ import annotations

import contextlib
import copy
import difflib
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llmkit.config.settings import LoadSettings
from llmkit.errors import CheckpointError, UsageError
from llmkit.log import warn
from llmkit.models.checkpoint import joined_gguf, tensor_shapes, weight_files
from llmkit.models.generation import generation_config
from llmkit.models.quantize import quantization_config
from llmkit.models.quiet import hide_progress_unless_tty
from llmkit.models.resolve import Resolution
from llmkit.models.source import Source

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

__all__ = ["build", "build_on_meta", "changed_config", "check_attention", "check_shapes", "in_one_file", "keep_frozen"]


def build(
    source: Source,
    settings: LoadSettings,
    resolution: Resolution,
    device: str,
    dtype: torch.dtype,
    *,
    model_kwargs: Mapping[str, Any],
    quantization: Mapping[str, Any] | None = None,
) -> PreTrainedModel:
    import transformers

    options: dict[str, Any] = {
        "dtype": dtype,
        "local_files_only": True,
        "trust_remote_code": settings.trust_remote_code,
    }
    if settings.attn_implementation is not None:
        options["attn_implementation"] = settings.attn_implementation
    if source.gguf_file:
        options["gguf_file"] = source.gguf_file
        # Left in blocks, the weights would need kernels from the Hub.
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    else:
        options["use_safetensors"] = bool(weight_files(source.folder).safetensors)
    if settings.quantize:
        options["quantization_config"] = quantization_config(settings.quantize, device, dtype, quantization)
    if device != "cpu" or settings.quantize:
        options["device_map"] = {"": device}
    options.update(model_kwargs)
    if settings.allow_pickle and options.get("use_safetensors") is False:
        model, info = _from_pickle(source, resolution, options)
    else:
        auto_class: Any = getattr(transformers, resolution.auto_class)
        with hide_progress_unless_tty() if source.gguf_file else contextlib.nullcontext():
            model, info = auto_class.from_pretrained(source.folder, output_loading_info=True, **options)
            if prefix := _prefix(info):
                options["key_mapping"] = {f"^{re.escape(prefix)}": ""}
                model, info = auto_class.from_pretrained(source.folder, output_loading_info=True, **options)
    _check_missing(source, resolution, model, sorted(info["missing_keys"]))
    _take_own_decoding(source, settings, model)
    loaded: PreTrainedModel = model
    return loaded


@contextlib.contextmanager
def in_one_file(source: Source) -> Iterator[Source]:
    """The source with the parts of its GGUF file joined, which is how Transformers reads them."""
    if source.gguf_file is None:
        yield source
        return
    with joined_gguf(source.folder / source.gguf_file) as path:
        yield replace(source, folder=path.parent, gguf_file=path.name)


def _from_pickle(source: Source, resolution: Resolution, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Read the .bin files here: Transformers 5.23 drops ``weights_only=False`` on the way to ``torch.load``."""
    import torch
    import transformers

    state: dict[str, torch.Tensor] = {}
    for path in weight_files(source.folder).bins:
        content = torch.load(path, map_location="cpu", weights_only=False)
        state |= {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    model_class = getattr(transformers, resolution.model_class, None)
    if model_class is None:
        raise CheckpointError(
            f"{source.name} has a class of its own and its weights are a full pickle",
            "convert it to safetensors",
            code="code_not_trusted",
        )
    options = {name: value for name, value in options.items() if name not in ("use_safetensors", "trust_remote_code")}
    options.setdefault("config", transformers.AutoConfig.from_pretrained(source.folder, local_files_only=True))
    model, info = model_class.from_pretrained(None, state_dict=state, output_loading_info=True, **options)
    return model, info


def _prefix(info: Mapping[str, Any]) -> str:
    """Common prefix of the names of missing weights, if the checkpoint is part of a larger model."""
    missing, unexpected = sorted(info["missing_keys"]), set(info["unexpected_keys"])
    if not missing:
        return ""
    longer = (name.removesuffix(missing[0]) for name in sorted(unexpected) if name.endswith(f".{missing[0]}"))
    return next((prefix for prefix in longer if all(f"{prefix}{name}" in unexpected for name in missing)), "")


def _check_missing(source: Source, resolution: Resolution, model: Any, missing: Sequence[str]) -> None:
    """Allow random weights only in a new head that will be trained, or that an adapter replaces."""
    if resolution.new_head:
        below = [name for name in missing if name.startswith(f"{model.base_model_prefix}.")]
        if below:
            warn(
                "weights_random",
                "backbone weights of %s are missing (%s) and were randomly initialised",
                source.name,
                _named(below),
            )
    elif missing:
        raise CheckpointError(
            f"{source.name} lacks weights of {resolution.model_class} ({_named(missing)}); they would be random, and so"
            " the answers",
            "download the checkpoint again, or choose one whose config.json names this class",
            code="incomplete_checkpoint",
        )


def _named(weights: Sequence[str]) -> str:
    return f"{weights[0]} and {len(weights) - 1} more" if len(weights) > 1 else weights[0]


def _take_own_decoding(source: Source, settings: LoadSettings, model: Any) -> None:
    """Let a checkpoint generate by code of its own, where that is trusted; Transformers looks for it by this name."""
    if not (source.folder / "custom_generate" / "generate.py").is_file():
        return
    if settings.trust_remote_code:
        own = model.load_custom_generate(source.folder, trust_remote_code=True, local_files_only=True)
        model.generate = functools.partial(own, model=model)
    else:
        warn(
            "code_not_run",
            "%s comes with decoding code of its own (custom_generate), which is not run; read it, then pass"
            " `trust_remote_code=True`",
            source.name,
        )


def keep_frozen(model: PreTrainedModel) -> None:
    """Freeze what the class never trains, such as sinusoidal positions: `from_pretrained` of version 5 forgets it."""
    import torch

    with torch.device("meta"):
        made = type(model)._from_config(copy.deepcopy(model.config))  # noqa: SLF001 - what AutoModel calls
    frozen = {name for name, each in made.named_parameters() if not each.requires_grad}
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)


def changed_config(source: Source, settings: LoadSettings, overrides: Mapping[str, Any]) -> PreTrainedConfig:
    """The checkpoint's config with some settings changed.

    Raises:
        UsageError: the config has no such setting, or its class refuses the value.
    """
    import transformers

    with in_one_file(source) as whole:
        files = {"gguf_file": whole.gguf_file} if whole.gguf_file else {}
        config: PreTrainedConfig = transformers.AutoConfig.from_pretrained(
            whole.folder, local_files_only=True, trust_remote_code=settings.trust_remote_code, **files
        )
    for name, value in overrides.items():
        if not hasattr(config, name):
            near = difflib.get_close_matches(name, config.to_dict(), n=1)
            raise UsageError(
                f"model.config_overrides: {type(config).__name__} has no {name}",
                f"did you mean {near[0]}?" if near else "leave it out",
                code="invalid_recipe_key",
            )
        try:
            setattr(config, name, value)
        except Exception as error:  # each class of configs checks in its own way
            reason = " ".join(str(error).split())
            raise UsageError(
                f"model.config_overrides: {name} is {value!r} ({reason})", "correct it", code="invalid_recipe_key"
            ) from error
    return config


def check_shapes(source: Source, model: PreTrainedModel) -> None:
    """Refuse changed settings with which the weights do not fit."""
    files = weight_files(source.folder).safetensors
    stored = {name: shape for path in files for name, shape in tensor_shapes(path).items()}
    for name, tensor in model.state_dict().items():
        shape = stored.get(name, stored.get(name.removeprefix(f"{model.base_model_prefix}.")))
        if shape is not None and shape != tuple(tensor.shape):
            raise UsageError(
                f"model.config_overrides do not fit {source.name}: {name} is {list(shape)} there, and would be "
                f"{list(tensor.shape)}",
                "leave out those that change sizes",
                code="invalid_recipe_key",
            )


def build_on_meta(
    source: Source,
    settings: LoadSettings,
    resolution: Resolution,
    config: PreTrainedConfig,
    plain: Mapping[str, Any],
) -> PreTrainedModel:
    """The model's structure and settings, without memory for one weight; ``plain`` is its config.json."""
    import torch
    import transformers

    auto_class: Any = getattr(transformers, resolution.auto_class)
    with torch.device("meta"):
        if hasattr(auto_class, "from_config"):
            model: PreTrainedModel = auto_class.from_config(config, trust_remote_code=settings.trust_remote_code)
        else:  # a class that no Auto class lists for this type
            model = auto_class(config)
    if not source.gguf_file and model.can_generate():
        model.generation_config = generation_config(source.generation_folder, plain)
    return model


def check_attention(source: Source, settings: LoadSettings, resolution: Resolution, plain: Mapping[str, Any]) -> None:
    """Refuse an attention that is not installed or that the model has not, before any weight is read."""
    config = changed_config(source, settings, {})
    try:
        config._attn_implementation = settings.attn_implementation  # noqa: SLF001 - the only place for it
        build_on_meta(source, settings, resolution, config, plain)
    except (ImportError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"attn_implementation {settings.attn_implementation} does not work here ({reason})",
            "leave it out, or use sdpa or eager",
            code="not_supported",
        ) from error
