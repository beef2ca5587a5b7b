"""8-bit and 4-bit loading by bitsandbytes, without what it would fetch behind the user's back.

Knows devices and settings of quantization. Does not load a model.
"""

from __future__ import annotations

import logging
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from llmkit.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    import torch

__all__ = ["quantization_config"]


def quantization_config(bits: str, device: str, dtype: torch.dtype) -> Any:
    """The Transformers config for ``8bit`` or ``4bit`` (NF4).

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
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


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
