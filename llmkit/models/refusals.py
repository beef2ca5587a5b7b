"""Refusals and warnings about a checkpoint before any weight is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmkit.config.settings import LoadSettings
from llmkit.errors import CheckpointError, TaskMismatchError, UsageError
from llmkit.log import warn
from llmkit.models.adapter_files import brings_head, check_adapter, check_base, weights_file
from llmkit.models.checkpoint import weight_bytes, weight_files
from llmkit.models.devices import pick_device
from llmkit.models.known_issues import hub_kernels
from llmkit.models.memory import check_fits
from llmkit.models.quantize import stored_quantization
from llmkit.models.resolve import Resolution
from llmkit.models.source import Source
from llmkit.models.tables import is_native

if TYPE_CHECKING:
    import torch

__all__ = ["check_files", "check_heads", "check_memory", "check_quantized", "refuse_untrusted"]

_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "8bit": 1.0, "4bit": 0.5}


def refuse_untrusted(config: dict[str, Any], source: Source, settings: LoadSettings, resolution: Resolution) -> None:
    native = is_native(resolution.model_type, resolution.head)
    if config.get("auto_map") and not native and not settings.trust_remote_code:
        raise CheckpointError(
            f"{source.name} comes with Python code of its own that would run on this machine",
            "read the code, then pass `trust_remote_code=True` if you trust it",
            code="code_not_trusted",
        )
    named = [*hub_kernels(config), *hub_kernels({"attn_implementation": settings.attn_implementation})]
    if named and not settings.trust_remote_code:
        raise CheckpointError(
            f"{named[0]} is a kernel of the Hub, whose code would run on this machine",
            "leave it out of config.json and `attn_implementation`",
            "pass `trust_remote_code=True` if you trust it",
            code="code_not_trusted",
        )


def check_heads(source: Source, resolution: Resolution, *, training: bool) -> None:
    """Refuse an adapter of another head, and a head that would be new where nothing trains it."""
    if source.adapter is not None:
        check_adapter(source.adapter, resolution.head)
    if resolution.new_head and not training and not brings_head(source.adapter, resolution.head):
        raise TaskMismatchError(
            f"{source.name} has no trained {resolution.head} head: {resolution.model_class} would start with random"
            " weights and give random answers",
            "fine-tune it first, or choose a model that has the head: llmkit models",
            code="untrained_head",
        )


def check_files(source: Source, settings: LoadSettings) -> None:
    pickled = []
    if source.gguf_file:
        if settings.quantize:
            raise UsageError(
                f"{source.name} is a GGUF file, which is unpacked while loading",
                "leave `quantize` out",
                code="not_supported",
            )
        warn("slow_loading", "%s is unpacked to full weights each time it is loaded", source.gguf_file)
    else:
        files = weight_files(source.folder)
        if not files.safetensors and not files.bins:
            raise CheckpointError(
                f"{source.name} has a config.json and no weights",
                "download the checkpoint again",
                code="incomplete_checkpoint",
            )
        pickled += [] if files.safetensors else [path.name for path in files.bins[:2]]
    if source.adapter is not None:
        check_base(source.adapter, source.folder)
        if (file := weights_file(source.adapter)).suffix == ".bin":
            pickled.append(file.name)
    if pickled:
        _check_pickles(source, settings, ", ".join(pickled))


def check_quantized(
    source: Source, settings: LoadSettings, config: dict[str, Any], *, training: bool, weights: bool
) -> Any:
    """Refuse a quantized checkpoint that does not work here; how it is loaded otherwise (see `stored_quantization`)."""
    found = config.get("quantization_config")
    if not isinstance(found, dict) or source.gguf_file or not (weights or training):
        return None
    if settings.quantize:
        raise UsageError(
            f"{source.name} is quantized already ({found.get('quant_method')})",
            "leave `quantize` out",
            code="not_supported",
        )
    adapted = training or source.adapter is not None
    return stored_quantization(source.name, found, pick_device(settings.device), adapted=adapted)


def _check_pickles(source: Source, settings: LoadSettings, names: str) -> None:
    if settings.safetensors_only:
        raise CheckpointError(
            f"{source.name} only has pickled weights ({names})",
            "choose another model or revision",
            code="pickle_not_trusted",
        )
    if settings.allow_pickle:
        warn("pickle_loaded", "%s is loaded as a full pickle, which can run code", names)
    else:
        warn("pickle_loaded", "%s is not in the safetensors format; it is loaded with weights_only=True", names)


def check_memory(
    source: Source, settings: LoadSettings, device: str, dtype: torch.dtype, counts: dict[str, int] | None
) -> None:
    if counts is None:
        needed = float(weight_bytes(source.folder))
    else:
        needed = sum(counts.values()) * _BYTES.get(settings.quantize or str(dtype).removeprefix("torch."), 4.0)
    check_fits(int(needed), device, source.name)
