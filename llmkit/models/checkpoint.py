"""What the files of a checkpoint tell before torch is imported: which there are, sizes, counts, GGUF metadata.

Reads headers only, so that a partial download is refused in milliseconds. Knows nothing of heads and tasks.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.errors import CheckpointError
from llmkit.models.source import read_json

__all__ = [
    "WeightFiles",
    "gguf_config",
    "gguf_metadata",
    "parameter_counts",
    "tensor_counts",
    "torch_dtype_name",
    "weight_bytes",
    "weight_files",
]

_AGAIN = "download it again"


@dataclass(frozen=True)
class WeightFiles:
    """The weight files that Transformers would load; of safetensors and bins at most one kind is loaded."""

    safetensors: tuple[Path, ...] = ()
    bins: tuple[Path, ...] = ()
    gguf: tuple[Path, ...] = ()


def weight_files(folder: Path) -> WeightFiles:
    """The weight files of a folder. Variants and the files of other libraries beside them are left out.

    Raises:
        CheckpointError: an index names a file that is missing, or there are parts without their index.
    """
    return WeightFiles(
        safetensors=_parts(folder, "model", ".safetensors"),
        bins=_parts(folder, "pytorch_model", ".bin"),
        gguf=tuple(sorted(folder.glob("*.gguf"))),
    )


def _parts(folder: Path, stem: str, suffix: str) -> tuple[Path, ...]:
    whole, index = folder / f"{stem}{suffix}", folder / f"{stem}{suffix}.index.json"
    if whole.is_file():
        return (whole,)
    if not index.is_file():
        strays = sorted(folder.glob(f"{stem}-*-of-*{suffix}"))
        if strays:
            raise CheckpointError(f"{strays[0]} is a part of a checkpoint whose {index.name} is missing", _AGAIN)
        return ()
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{index} names no weights", _AGAIN)
    paths = tuple(folder / name for name in sorted(set(map(str, names.values()))))
    for path in paths:
        if not path.is_file():
            raise CheckpointError(f"{path} is missing and {index.name} names it", _AGAIN)
    return paths


def weight_bytes(folder: Path) -> int:
    """Size on disk of the weights that would be loaded."""
    files = weight_files(folder)
    return sum(path.stat().st_size for path in files.safetensors or files.bins or files.gguf)


# safetensors: 8 bytes of length, JSON, data.

_HEADER_LIMIT = 100_000_000  # what the safetensors library itself accepts

_DTYPES = {
    "BF16": "bfloat16",
    "BOOL": "bool",
    "C64": "complex64",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "I8": "int8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "U8": "uint8",
}


def torch_dtype_name(name: str) -> str:
    """The name torch has for a dtype of a safetensors header, as the Hub also reports it."""
    return _DTYPES.get(name, name.lower())


def parameter_counts(folder: Path) -> dict[str, int] | None:
    """How many parameters of each dtype the safetensors headers of a checkpoint list, e.g. ``{"bfloat16": 135}``.

    None where there is no header, or where the weights are quantized: a packed tensor holds several parameters
    in one element, so that a count would be wrong. The headers are checked all the same.

    Raises:
        CheckpointError: a header is corrupt, or a file is missing or shorter than its header says.
    """
    files = weight_files(folder).safetensors
    counts: Counter[str] = Counter()
    for path in files:
        counts.update(tensor_counts(path))
    config = folder / "config.json"
    if not files or (config.is_file() and read_json(config).get("quantization_config")):
        return None
    return dict(counts)


def tensor_counts(path: Path) -> dict[str, int]:
    """Elements by dtype of the parameters in one safetensors file, checked against the file's size."""
    counts: Counter[str] = Counter()
    header, data_size = _header(path)
    end = 0
    for name, entry in header.items():
        try:
            dtype, shape, (begin, stop) = str(entry["dtype"]), [int(n) for n in entry["shape"]], entry["data_offsets"]
            end, valid = max(end, stop), 0 <= begin <= stop
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} has a corrupt header (tensor {name!r})", _AGAIN) from error
        if not valid:
            raise CheckpointError(f"{path} has a corrupt header (tensor {name!r})", _AGAIN)
        if not _is_buffer(name, shape):
            counts[torch_dtype_name(dtype)] += math.prod(shape)
    if end != data_size:
        raise CheckpointError(f"{path} holds {data_size:,} bytes of weights and its header lists {end:,}", _AGAIN)
    return dict(counts)


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header without its metadata, and how many bytes of data follow it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start == b"version ":
            raise CheckpointError(f"{path} is a Git LFS pointer in place of the file", "run: git lfs pull")
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(_HEADER_LIMIT, size - 8):
            raise CheckpointError(f"{path} is cut off or corrupt ({size:,} bytes)", _AGAIN)
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise CheckpointError(f"{path} has a corrupt header", _AGAIN) from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} has a corrupt header", _AGAIN)
    header.pop("__metadata__", None)
    return header, size - 8 - length


def _is_buffer(name: str, shape: list[int]) -> bool:
    """Saved, and no parameter: position ids, causal masks (12 million in the Hub's gpt2), Marian's output bias."""
    if name.endswith(("position_ids", "rotary_emb.inv_freq", "masked_bias", "final_logits_bias")):
        return True
    return len(shape) == 4 and shape[:2] == [1, 1] and name.endswith(("attn.bias", "attention.bias"))


# GGUF. The package's GGUFReader makes an array of every token of the vocabulary: 2 s for 98 MB, this 0.05 s.

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LONG = 64  # longer arrays are the vocabulary


class _Walker:
    """A position in a GGUF file, and how to read what stands there."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0
        self.order = "<"

    def scalar(self, code: str) -> Any:
        kind = self.order + code
        (value,) = struct.unpack_from(kind, self.data, self.at)
        self.at += struct.calcsize(kind)
        return value

    def skip(self, size: int) -> None:
        self.at += size
        if self.at > len(self.data):
            raise ValueError("the file ends early")

    def string(self) -> str:
        start, length = self.at + 8, self.scalar("Q")
        self.skip(length)
        return self.data[start : start + length].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        """The next value; None for a long array, which is passed over."""
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array(self.scalar("I"), self.scalar("Q"))
        return self.scalar(_SCALARS[kind])

    def _array(self, kind: int, length: int) -> list[Any] | None:
        if length <= _LONG:
            return [self.value(kind) for _ in range(length)]
        if kind in _SCALARS:
            self.skip(length * struct.calcsize(self.order + _SCALARS[kind]))
            return None
        for _ in range(length):
            if kind == _STRING:
                self.skip(self.scalar("Q"))
            else:
                self.value(kind)
        return None


def gguf_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a GGUF file under its own keys (``general.architecture``), long arrays left out.

    Added are ``parameters``, counted from the shapes of the tensors, and ``parameters_by_dtype``, by GGML type
    (``q4_1``).

    Raises:
        CheckpointError: it is no GGUF file, or a part of one.
    """
    try:
        with path.open("rb") as file:
            if file.read(8) == b"version ":
                raise CheckpointError(f"{path} is a Git LFS pointer in place of the file", "run: git lfs pull")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _walk_gguf(data)
    except (OSError, ValueError, KeyError, ArithmeticError, RecursionError, struct.error) as error:
        raise CheckpointError(f"{path} is no complete GGUF file ({error})", _AGAIN) from error


def _walk_gguf(data: mmap.mmap) -> dict[str, Any]:
    walker = _Walker(data)
    if data[:4] != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    walker.skip(4)
    version = walker.scalar("I")
    if version & 0xFFFF == 0:  # written on a machine of the other byte order
        walker.order, version = ">", version >> 24
    if version not in (2, 3):
        raise ValueError(f"version {version}")
    tensors, fields = walker.scalar("Q"), walker.scalar("Q")
    metadata: dict[str, Any] = {}
    for _ in range(fields):
        key = walker.string()
        value = walker.value(walker.scalar("I"))
        if value is not None:
            metadata[key] = value
    counts = _gguf_tensors(walker, tensors, int(metadata.get("general.alignment", 32)))
    return metadata | {"parameters": sum(counts.values()), "parameters_by_dtype": counts}


def _gguf_tensors(walker: _Walker, number: int, alignment: int) -> dict[str, int]:
    """Elements by GGML type, checked against the size of the file."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    counts: Counter[str] = Counter()
    end = 0
    for _ in range(number):
        walker.string()
        dimensions = walker.scalar("I")
        if dimensions > 8:
            raise ValueError(f"a tensor of {dimensions} dimensions")
        elements = math.prod(walker.scalar("Q") for _ in range(dimensions))
        kind = GGMLQuantizationType(walker.scalar("I"))
        block, size = GGML_QUANT_SIZES[kind]
        end = max(end, walker.scalar("Q") + elements * size // block)
        counts[kind.name.lower()] += elements
    start = math.ceil(walker.at / alignment) * alignment
    if number and start + end > len(walker.data):
        raise ValueError(f"{len(walker.data):,} of {start + end:,} bytes")
    return dict(counts)


# As modeling_gguf_pytorch_utils does it: GGUF architecture → model type, where the names differ.
_GGUF_TYPES = {
    "gemma3": "gemma3_text",
    "gemma4": "gemma4_text",
    "gpt-oss": "gpt_oss",
    "minimax-m2": "minimax_m2",
    "qwen2moe": "qwen2_moe",
    "qwen3moe": "qwen3_moe",
    "t5encoder": "t5",
}


def gguf_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What a config.json beside a GGUF file would say, as far as heads, context and special tokens go."""
    architecture = str(metadata.get("general.architecture", ""))
    model_type = _GGUF_TYPES.get(architecture, architecture)
    if model_type == "t5" and "umt5" in str(metadata.get("general.name", "")).lower():
        model_type = "umt5"
    config: dict[str, Any] = {"model_type": model_type, "is_encoder_decoder": model_type in ("t5", "umt5")}
    keys = {
        "max_position_embeddings": f"{architecture}.context_length",
        "bos_token_id": "tokenizer.ggml.bos_token_id",
        "eos_token_id": "tokenizer.ggml.eos_token_id",
        "pad_token_id": "tokenizer.ggml.padding_token_id",
        "unk_token_id": "tokenizer.ggml.unknown_token_id",
    }
    return config | {name: metadata[key] for name, key in keys.items() if key in metadata}
