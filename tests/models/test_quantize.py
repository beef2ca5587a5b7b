"""Quantization without bitsandbytes at hand: what is refused, and that its import cannot reach the Hub."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from llmkit.errors import MissingDependencyError, UsageError
from llmkit.models import quantize


def test_without_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="run: pip install bitsandbytes"):
        quantize.quantization_config("8bit", "cpu", torch.float32)


def test_where_it_would_need_kernels_from_the_hub() -> None:
    with pytest.raises(UsageError, match="does not work on mps"):
        quantize.quantization_config("4bit", "mps", torch.float32)


def test_its_import_cannot_fetch_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = "try:\n    import kernels\n    fetched = True\nexcept ImportError:\n    fetched = False\n"
    (tmp_path / "bitsandbytes.py").write_text(fake)
    (tmp_path / "kernels.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
    quantize._import_without_kernels()
    assert sys.modules["bitsandbytes"].fetched is False
    import kernels

    assert kernels is sys.modules["kernels"]
    for name in ("bitsandbytes", "kernels"):
        del sys.modules[name]  # monkeypatch would restore these
