"""Selects the files to download from a repository on the Hub.

Knows the names that checkpoints give their files, and their sizes. Reads no file, meets no network, and does not know
whether a file is here already.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from llmkit.config.commands import command_line
from llmkit.errors import CheckpointError, ModelNotFoundError

__all__ = ["Wanted", "choose", "part_names", "weights_of"]

_SMALL = 100_000_000  # bytes; some repositories keep their training text as .txt or .json
_SMALL_FILES = (
    *("*.json", "*.jinja", "*.model", "*.spm", "*.txt", "*.bpe", "*.codes", "*.tiktoken"),
    *("tokenizer*", "vocab*", "merges*", "README.md", "LICENSE*", "additional_chat_templates/*.jinja"),
)


@dataclass(frozen=True)
class Wanted:
    """The files that a caller requests."""

    repo_id: str
    revision: str | None = None
    filename: str | None = None
    safetensors_only: bool = False
    code: bool = False
    weights: bool = True
    patient: bool = False

    @property
    def command(self) -> str:
        return command_line("download", self.repo_id, revision=self.revision or "")


def part_names(name: str) -> list[str]:
    """The names of all parts of a GGUF file of which one is given, as llama.cpp's gguf-split writes them."""
    if not (found := re.fullmatch(r"(.+-)\d{5}(-of-(\d{5})\.gguf)", name)):
        return [name]
    return [f"{found[1]}{number:05}{found[2]}" for number in range(1, int(found[3]) + 1)]


def _model_files(names: Collection[str], stem: str, kind: str) -> list[str]:
    """The files of a complete model: one file, or every shard that the names of those present announce."""
    if f"{stem}.{kind}" in names:
        return [f"{stem}.{kind}"]
    totals = [match[1] for name in names if (match := re.fullmatch(rf"{stem}-\d{{5}}-of-(\d{{5}})\.{kind}", name))]
    if not totals:
        return []
    total = max(totals)
    return [f"{stem}.{kind}.index.json", *(f"{stem}-{i:05}-of-{total}.{kind}" for i in range(1, int(total) + 1))]


def weights_of(wanted: Wanted, names: Collection[str]) -> list[str]:
    """The weight files to have: safetensors before pickles, no variants and no other frameworks' files."""
    if not wanted.weights:
        return []
    if wanted.filename:
        return part_names(wanted.filename)
    # Beside an adapter a whole model may lie, which is not what is loaded.
    adapted = any(name.startswith("adapter_model.") for name in names)
    stems = ("adapter_model", "adapter_model") if adapted else ("model", "pytorch_model")
    found = {kind: _model_files(names, stem, kind) for stem, kind in zip(stems, ("safetensors", "bin"), strict=True)}
    if wanted.safetensors_only and found["bin"] and not found["safetensors"]:
        raise CheckpointError(
            f"{wanted.repo_id} has only pickled weights ({found['bin'][-1]}) and safetensors are required",
            "choose a model with safetensors, or allow .bin weights",
            code="pickle_not_trusted",
        )
    return found["safetensors"] or found["bin"]


def _small_files(wanted: Wanted, sizes: dict[str, int]) -> list[str]:
    """Configuration, tokenizer and the like; Python files only where their code is to be run."""
    return [
        name
        for name, size in sizes.items()
        if (wanted.code and name.endswith(".py"))
        or (size <= _SMALL and any(fnmatchcase(name, p) and name.count("/") == p.count("/") for p in _SMALL_FILES))
    ]


def choose(wanted: Wanted, sizes: dict[str, int]) -> list[str]:
    """The files to have of a repository on the Hub."""
    weights = weights_of(wanted, sizes)
    if wanted.weights and not weights:
        ggufs = [name for name in sizes if name.endswith(".gguf")]
        fix = f"name one of its GGUF files: {wanted.repo_id}/{ggufs[0]}" if ggufs else "choose another model"
        raise CheckpointError(
            f"{wanted.repo_id} has no weights as safetensors or .bin", fix, code="incomplete_checkpoint"
        )
    for name in weights:
        if name not in sizes and name == wanted.filename:
            near = ", ".join(other for other in sizes if Path(other).suffix == Path(name).suffix) or "none"
            raise ModelNotFoundError(f"{wanted.repo_id} has no file {name}", f"files of that kind: {near}")
        if name not in sizes:
            raise CheckpointError(
                f"{wanted.repo_id} lacks {name} on the hub",
                "choose another revision or model",
                code="incomplete_checkpoint",
            )
    return list(dict.fromkeys([*_small_files(wanted, sizes), *weights]))
