"""Facts about a checkpoint's files without importing torch: file lists, sizes, parameter counts, GGUF metadata.

Reads headers only, so that a partial download is refused in milliseconds. Knows nothing of heads and tasks.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.config.commands import quoted
from llmkit.errors import CheckpointError, NotEnoughMemoryError
from llmkit.files import in_units, read_json
from llmkit.hub.repo_files import part_names
from llmkit.log import warn
from llmkit.models.families import FAMILIES
from llmkit.models.tables import decoder_class, encoder_decoder_class
from llmkit.models.upstream import type_of_gguf

if TYPE_CHECKING:
    from gguf import GGUFReader

__all__ = [
    "WeightFiles",
    "gguf_config",
    "gguf_metadata",
    "gguf_parts",
    "joined_gguf",
    "parameter_counts",
    "tensor_counts",
    "tensor_shapes",
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
            raise CheckpointError(
                f"{strays[0]} is a part of a checkpoint whose {index.name} is missing",
                _AGAIN,
                code="incomplete_checkpoint",
            )
        return ()
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{index} names no weights", _AGAIN, code="incomplete_checkpoint")
    paths = tuple(folder / name for name in sorted(set(map(str, names.values()))))
    for path in paths:
        if not path.is_file():
            raise CheckpointError(f"{path} is missing and {index.name} names it", _AGAIN, code="incomplete_checkpoint")
    return paths


def weight_bytes(folder: Path) -> int:
    """Size on disk of the weights that would be loaded."""
    files = weight_files(folder)
    return sum(path.stat().st_size for path in files.safetensors or files.bins or files.gguf)


# safetensors, read by the package that defines it.

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
    """Elements by dtype of the parameters in one safetensors file."""
    counts: Counter[str] = Counter()
    for name, dtype, shape in _tensors(path):
        if not _is_buffer(name, shape):
            counts[torch_dtype_name(dtype)] += math.prod(shape)
    return dict(counts)


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes in one safetensors file."""
    return {name: tuple(shape) for name, _, shape in _tensors(path)}


def _tensors(path: Path) -> list[tuple[str, str, list[int]]]:
    """Name, dtype and shape of each tensor. A file that its header does not describe to the byte is refused."""
    from safetensors import SafetensorError, safe_open

    _refuse_pointer(path)
    try:
        with safe_open(path, framework="numpy") as file:
            parts = [(name, file.get_slice(name)) for name in file.keys()]  # noqa: SIM118 - no mapping
            return [(name, str(part.get_dtype()), part.get_shape()) for name, part in parts]
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a complete safetensors file ({error})", _AGAIN) from error


def _is_buffer(name: str, shape: list[int]) -> bool:
    """Saved, and no parameter: position ids, causal masks (12 million in the Hub's gpt2), Marian's output bias."""
    if name.endswith(("position_ids", "rotary_emb.inv_freq", "masked_bias", "final_logits_bias")):
        return True
    return len(shape) == 4 and shape[:2] == [1, 1] and name.endswith(("attn.bias", "attention.bias"))


def _refuse_pointer(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(8) == b"version ":
            raise CheckpointError(
                f"{path} is a Git LFS pointer in place of the file", "run: git lfs pull", code="incomplete_checkpoint"
            )


# GGUF, read by the package that defines it.

_LONG = 64  # longer arrays are the vocabulary


def gguf_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a GGUF file under its own keys (``general.architecture``), long arrays left out.

    Of a file in parts, any of which may be given, they are those of the first. Added are ``parameters``, counted from
    the shapes of the tensors of all parts, and ``parameters_by_dtype``, by GGML type (``q4_1``). Takes about 2 s for a
    vocabulary of 50,000.

    Raises:
        CheckpointError: it is no GGUF file, is cut off, or a part is missing.
    """
    metadata: dict[str, Any] = {}
    counts: Counter[str] = Counter()
    for part in gguf_parts(path):
        with _explained(part):
            reader = _read_gguf(part)
            if not metadata:
                metadata = {name: field.contents() for name, field in reader.fields.items() if len(field.data) <= _LONG}
            for tensor in reader.tensors:
                counts[tensor.tensor_type.name.lower()] += int(tensor.n_elements)
    return metadata | {"parameters": sum(counts.values()), "parameters_by_dtype": dict(counts)}


def gguf_parts(path: Path) -> tuple[Path, ...]:
    """The files of a GGUF model, by the names that llama.cpp's gguf-split gives them: of one file, itself.

    Raises:
        CheckpointError: a part is missing.
    """
    parts = tuple(path.with_name(name) for name in part_names(path.name))
    for part in parts:
        if len(parts) > 1 and not part.is_file():
            raise CheckpointError(
                f"{part} is missing, one of {len(parts)} parts",
                "put it beside the others",
                code="incomplete_checkpoint",
            )
    return parts


@contextmanager
def joined_gguf(path: Path) -> Iterator[Path]:
    """A GGUF model as one file; of several parts that is a temporary one, with the metadata of the first.

    Raises:
        NotEnoughMemoryError: the disk has no room for it.
    """
    parts = gguf_parts(path)
    if len(parts) == 1:
        yield path
        return
    size, target = sum(part.stat().st_size for part in parts), Path(tempfile.gettempdir())
    if size > shutil.disk_usage(target).free:
        raise NotEnoughMemoryError(
            f"the {len(parts)} parts of {path.name} are joined in {target}, which lacks room for {in_units(size)}",
            "set TMPDIR to a folder with more, or join them yourself: llama-gguf-split --merge FIRST_PART NEW_FILE",
            code="disk_full",
        )
    warn(
        "slow_loading",
        "the %d parts of %s are joined in %s each time they are loaded; `llama-gguf-split --merge %s NEW.gguf` joins"
        " them once",
        *(len(parts), path.name, target, quoted(parts[0].name)),
    )
    with tempfile.TemporaryDirectory(dir=target) as folder:
        joined = Path(folder) / path.name
        with _explained(path):
            _join(parts, joined)
        yield joined


def _join(parts: Sequence[Path], joined: Path) -> None:
    from gguf import GGUFValueType, GGUFWriter

    readers = [_read_gguf(part) for part in parts]
    first = readers[0]
    writer = GGUFWriter(joined, str(first.fields["general.architecture"].contents()))
    for name, value in first.fields.items():
        if not name.startswith(("GGUF.", "split.")) and name != "general.architecture":
            kind = value.types[0]
            writer.add_key_value(name, value.contents(), kind, value.types[-1] if kind == GGUFValueType.ARRAY else None)
    for reader in readers:
        for tensor in reader.tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _read_gguf(path: Path) -> GGUFReader:
    import numpy as np
    from gguf import GGUFReader, GGUFValueType

    if path.is_file():
        _refuse_pointer(path)

    class Reader(GGUFReader):
        """Refuses an array that is longer than its file before it is gone through."""

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            if raw_type == GGUFValueType.ARRAY:
                count = int(self._get(orig_offs + 4, np.uint64)[0])
                if count > len(self.data) - orig_offs:
                    raise ValueError(f"an array of {count:,} items in a file of {len(self.data):,} bytes")
            return super()._get_field_parts(orig_offs, raw_type)

    return Reader(path)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a complete GGUF file ({error})", _AGAIN) from error


def gguf_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json for a GGUF file: model type, context and special tokens."""
    architecture = str(metadata.get("general.architecture", ""))
    named = str(metadata.get("general.name", "")).lower()
    shared = (name for name, each in FAMILIES.items() if each.gguf_architecture == architecture and name in named)
    model_type = next(shared, None) or type_of_gguf(architecture)
    is_pair = encoder_decoder_class(model_type) is not None and decoder_class(model_type) is None
    config: dict[str, Any] = {"model_type": model_type, "is_encoder_decoder": is_pair}
    keys = {
        "max_position_embeddings": f"{architecture}.context_length",
        "bos_token_id": "tokenizer.ggml.bos_token_id",
        "eos_token_id": "tokenizer.ggml.eos_token_id",
        "pad_token_id": "tokenizer.ggml.padding_token_id",
        "unk_token_id": "tokenizer.ggml.unknown_token_id",
    }
    return config | {name: metadata[key] for name, key in keys.items() if key in metadata}
