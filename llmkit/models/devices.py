"""The device and dtype that a model runs with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmkit.errors import UsageError

if TYPE_CHECKING:
    import torch

__all__ = ["has_bfloat16", "pick_device", "pick_dtype"]


def pick_device(device: str) -> str:
    """The device that a setting means; `UsageError` if this machine has none."""
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if device == "auto":
        return "cuda" if cuda else "mps" if mps else "cpu"
    if (device == "cuda" and not cuda) or (device == "mps" and not mps):
        raise UsageError(
            f"device={device} is not available in this PyTorch installation",
            "use `device=auto` or cpu",
            code="device_unavailable",
        )
    return device


def pick_dtype(dtype: str, device: str, config: Mapping[str, Any], counts: Mapping[str, int] | None) -> torch.dtype:
    """For ``auto`` the checkpoint's dtype if the device supports it well, or else the nearest that it does."""
    import torch

    if dtype != "auto":
        wanted: torch.dtype = getattr(torch, dtype)
        return wanted
    stored = _stored_dtype(config, counts)
    if stored in ("float32", "float64", "f32"):
        return torch.float32
    # Quantized blocks (GGUF) hold no more than half precision does, and are treated as bfloat16.
    stored = "float16" if stored in ("float16", "f16") else "bfloat16"
    if device == "cuda":
        return torch.bfloat16 if stored == "bfloat16" and has_bfloat16(device) else torch.float16
    if device == "mps":
        return torch.float16 if stored == "float16" else torch.bfloat16
    # Half precision on a processor without instructions for it is many times slower than float32.
    return torch.bfloat16 if has_bfloat16(device) else torch.float32


def _stored_dtype(config: Mapping[str, Any], counts: Mapping[str, int] | None) -> str:
    named = config.get("dtype") or config.get("torch_dtype")
    if named is None and counts:
        named = max(counts, key=lambda name: counts[name])
    return str(named or "float32")


def has_bfloat16(device: str) -> bool:
    """Whether the hardware supports bfloat16 efficiently."""
    import torch

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device == "mps" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001 - the only way to ask
