"""Quantized weights: by bitsandbytes while loading, or in the checkpoint by one of the methods of Transformers.

Knows devices, packages and settings of quantization, and prevents downloads of kernels. Does not load a model.
"""

from __future__ import annotations

import inspect
import logging
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from llmkit.errors import CheckpointError, MissingDependencyError, UsageError
from llmkit.models.quiet import hide_progress_unless_tty

if TYPE_CHECKING:
    import torch

__all__ = ["is_quantized", "quantization_config", "quiet_quantizers", "stored_quantization"]


_BARS = (
    "compressed_tensors.compressors.model_compressors.model_compressor",
    "compressed_tensors.offload.dispatch",
)
"""Modules that draw a progress bar when a model first runs, without a switch."""


def quantization_config(bits: str, device: str, dtype: torch.dtype, options: Mapping[str, Any] | None = None) -> Any:
    """The Transformers config for ``8bit`` or ``4bit`` (NF4).

    Args:
        options: fields of ``BitsAndBytesConfig``, which go before these.

    Raises:
        MissingDependencyError: bitsandbytes is not installed.
        UsageError: it does not work on this device without kernels from the Hub.
    """
    if device == "mps":
        raise UsageError(
            f"`quantize={bits}` does not work on mps",
            "use `device=cpu`, or leave `quantize` out",
            code="device_unavailable",
        )
    if find_spec("bitsandbytes") is None:
        raise MissingDependencyError(f"`quantize={bits}` needs bitsandbytes", "run: pip install bitsandbytes")
    _import_without_kernels()
    from transformers import BitsAndBytesConfig

    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, **(options or {}))
    defaults = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    return BitsAndBytesConfig(load_in_4bit=True, **(defaults | dict(options or {})))


def stored_quantization(name: str, config: Mapping[str, Any], device: str, *, adapted: bool) -> Any:
    """How a quantized checkpoint is loaded: its own config if Transformers is to dequantize it, or else None.

    Args:
        name: of the checkpoint, for messages.
        config: ``quantization_config`` of its config.json.
        adapted: whether it gets an adapter, which needs weights that can be trained above.

    Raises:
        CheckpointError: Transformers does not know the method.
        MissingDependencyError: a package is not installed.
        UsageError: the method does not work on this device, or cannot be trained above.
    """
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, AutoHfQuantizer, AutoQuantizationConfig

    method = str(config.get("quant_method") or "an unnamed method")
    bits = next((f"_{bits}" for bits in ("4bit", "8bit") if config.get(f"load_in_{bits}")), "")
    known = AUTO_QUANTIZER_MAPPING.get(f"bitsandbytes{bits}" if bits else method)
    if known is None:
        raise CheckpointError(
            f"{name} is quantized by {method}, which the installed Transformers does not know",
            "upgrade it: pip install -U transformers",
            "choose another checkpoint",
            code="not_supported",
        )
    module = inspect.getsource(sys.modules[known.__module__])
    if bits and find_spec("bitsandbytes"):
        _import_without_kernels()
    try:
        stored: Any = AutoQuantizationConfig.from_dict(dict(config))
        # If it has a choice, an adapter is trained above plain weights, in half precision.
        dense = adapted and "dequantize" in getattr(stored, "get_loading_attributes", dict)()
        if dense:
            stored.dequantize = True
        quantizer: Any = AutoHfQuantizer.from_config(stored, pre_quantized=True)
        quantizer.validate_environment(device_map={"": device}, weights_only=True)
        trainable = dense or not adapted or quantizer.is_trainable
    except ImportError as error:
        gpu = ", and may need a GPU" if device == "cpu" and "cuda" in module else ""
        if packages := _missing_packages(module) or [each for each in (error.name,) if each]:
            needed, fix = " and ".join(packages), f"run: pip install {' '.join(packages)}"
        else:
            reason = " ".join(str(error).split())[:200]
            needed, fix = f"a package that is missing ({reason})", "choose a checkpoint that is not quantized"
        raise MissingDependencyError(f"{name} is quantized by {method}, which needs {needed}{gpu}", fix) from error
    except (ValueError, RuntimeError, TypeError, LookupError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"{name} is quantized by {method}, which does not work on {device} ({reason})",
            "choose a checkpoint that is not quantized",
            code="device_unavailable",
        ) from error
    if not trainable:
        raise UsageError(
            f"{name} is quantized by {method}, above which Transformers does not train",
            "choose a checkpoint that is not quantized; `quantize=4bit` quantizes it while loading",
            code="not_supported",
        )
    return stored if dense else None


@contextmanager
def quiet_quantizers(config: Mapping[str, Any]) -> Iterator[None]:
    """Hide the bars of packages that load a quantized checkpoint, and what Transformers warns of its own config."""
    if not config.get("quantization_config"):
        yield
        return
    with warnings.catch_warnings(), hide_progress_unless_tty():
        warnings.filterwarnings("ignore", "You passed `quantization_config`")
        yield
    for name in _BARS if "compressed_tensors" in sys.modules else ():
        with suppress(ImportError):
            module: Any = import_module(name)
            module.tqdm = lambda items, **_: items


def is_quantized(model: Any) -> bool:
    """Whether a model's weights are packed, or were dequantized from those of a quantized checkpoint."""
    return bool(getattr(model, "is_quantized", False)) or getattr(model.config, "quantization_config", None) is not None


def _missing_packages(source: str) -> list[str]:
    """The packages that the source of a quantizer tells to install, and that are not."""
    named = re.findall(r"pip install (?:-\w+ )?[\"'`]*([A-Za-z][\w.-]*)", source)
    return [each for each in dict.fromkeys(named) if not _is_installed(each)]


def _is_installed(package: str) -> bool:
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True


def _import_without_kernels() -> None:
    """Import bitsandbytes while the package ``kernels`` cannot be: with it, the import alone asks the Hub for code.

    It does not ask on processors without bfloat16, and its own loops are what runs here then and now.
    """
    # One line for every matrix product otherwise.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    before = {name: sys.modules.pop(name) for name in ("kernels",) if name in sys.modules}
    sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        import bitsandbytes  # noqa: F401
    finally:
        del sys.modules["kernels"]
        sys.modules.update(before)
