"""Adapters above quantized checkpoints against adapters above the same weights in float32, one row for each method.

    python -m benchmarks.quantized [--output benchmarks/quantized.md]

From the root of a checkout with the development tools, and bitsandbytes, compressed-tensors and torchao; a method whose
package is missing has no row. Below the rows stands what llmkit says of all other methods of Transformers on this
machine, with a config of nothing but the method's name.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from llmkit.config.settings import LoadSettings
from llmkit.errors import LlmkitError
from llmkit.models.quantize import stored_quantization
from llmkit.training.merge import merge
from llmkit.training.run import finetune
from tests.forked import quiet
from tests.quantized import KINDS, write_quantized
from tests.training.test_quantized import losses, recipe

_PACKAGES = ("transformers", "torch", "peft", "bitsandbytes", "compressed-tensors", "torchao")

_TRIED = ("bitsandbytes_4bit", "bitsandbytes_8bit", "compressed-tensors", "fp8", "gguf", "mxfp4", "torchao")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    quiet()
    lines = ["| | largest relative difference of the loss | merging |", "|---|---|---|", *map(row, KINDS)]
    refusals = [f"- {method}: {refusal(method)}" for method in sorted(AUTO_QUANTIZER_MAPPING) if method not in _TRIED]
    versions = ", ".join(map(installed, _PACKAGES))
    head = (
        f"# Quantized checkpoints\n\n`python -m benchmarks.quantized` on commit {commit()}, {versions}, CPU; tiny"
        " random models, LoRA on all linear layers, two updates. Merging compares logits before and after it (*drift*),"
        " and above packed weights with those above the dequantized ones (*packed*).\n"
    )
    text = "\n".join(
        [head, *lines, "", "Other methods of Transformers, by their names alone, to train above:", "", *refusals, ""]
    )
    print(text)
    if options.output is not None:
        options.output.write_text(text, encoding="utf-8")


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def installed(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"no {package}"


def row(kind: str) -> str:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            packed, plain = write_quantized(kind, folder)
        except pytest.skip.Exception as reason:
            return f"| {kind} | – | {reason} |"
        found, expected = (losses(finetune(recipe(folder, each, {}, each.name + "-run"))) for each in (packed, plain))
        apart = max(abs(one - other) / other for one, other in zip(found, expected, strict=True))
        try:
            merged = merge(str(folder / "packed-run"), folder / "merged", settings=LoadSettings(offline=True))
        except LlmkitError as error:
            return f"| {kind} | {apart:.0e} | refused: {str(error).replace(name, '…')} |"
        above = "" if merged.quantized is None else f", packed {merged.quantized:.0e}"
        return f"| {kind} | {apart:.0e} | drift {merged.drift:.0e}{above} |"


def refusal(method: str) -> str:
    try:
        stored_quantization("the model", {"quant_method": method, "bits": 4}, "cpu", adapted=True)
    except LlmkitError as error:
        return str(error).removeprefix("the model is ")
    return "accepted, and not tried"


if __name__ == "__main__":
    main()
