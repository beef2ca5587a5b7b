"""The files of a PEFT adapter: its settings, its weights, and the names that programs give them.

Imports torch only where weights are read, and PEFT never: `llmkit inspect` reads adapters too. How an adapter is put on
a model is the business of `llmkit.models.adapters`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from llmkit.errors import CheckpointError, TaskMismatchError
from llmkit.files import read_json
from llmkit.models.checkpoint import tensor_shapes, weight_files
from llmkit.models.source import ADAPTER_CONFIG
from llmkit.models.tables import HEADS, writes
from llmkit.tasks import Head

if TYPE_CHECKING:
    import torch

__all__ = [
    "OTHER_BASE",
    "adapter_weights",
    "brings_head",
    "check_adapter",
    "check_base",
    "embedding_rows",
    "place_names",
    "vocabulary_size",
    "weights_file",
]

OTHER_BASE = "name the base that it was trained on with `base`"

_WRAPPERS = frozenset({"_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_orig_mod", "default", "module"})
"""Parts of a tensor's name added by model wrappers, and PEFT's default adapter name."""


def brings_head(adapter: Path | None, head: Head) -> bool:
    """Whether an adapter has a head that its base lacks: PEFT saves a new one with it (``modules_to_save``)."""
    if adapter is None or writes(head):
        return False
    return read_json(adapter / ADAPTER_CONFIG).get("task_type") == HEADS[head].task_type


def check_adapter(adapter: Path, head: Head) -> None:
    """Refuse an adapter that cannot be loaded for a head, by its settings alone.

    Raises:
        CheckpointError: a method that the installed PEFT does not know.
        TaskMismatchError: it was trained for something else.
    """
    config = read_json(adapter / ADAPTER_CONFIG)
    method, task_type = config.get("peft_type"), config.get("task_type")
    if method not in _methods():
        raise CheckpointError(
            f"{adapter / ADAPTER_CONFIG} has peft_type {method}, which the installed PEFT does not know",
            f"write {written}" if (written := str(method).upper()) in _methods() else "upgrade it: pip install -U peft",
            code="adapter_mismatch",
        )
    fitting = [None, *(facts.task_type for facts in HEADS.values() if facts.writes or not writes(head))]
    if task_type not in fitting:
        raise TaskMismatchError(
            f"the adapter {adapter} was trained for another kind of model (task_type {task_type})",
            "choose an adapter that was trained for this task",
        )


def _methods() -> frozenset[str]:
    spec = find_spec("peft")
    assert spec is not None
    assert spec.origin is not None
    source = (Path(spec.origin).parent / "utils" / "peft_types.py").read_text(encoding="utf-8")
    return frozenset(re.findall(r'^    ([A-Z0-9_]+) = "', source, re.MULTILINE))


def weights_file(adapter: Path) -> Path:
    """The file of an adapter's weights.

    Raises:
        CheckpointError: the file is missing.
    """
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        if (adapter / name).is_file():
            return adapter / name
    raise CheckpointError(
        f"{adapter} has an {ADAPTER_CONFIG} and no adapter_model.safetensors",
        f"copy the missing file to it, or remove {ADAPTER_CONFIG} if the folder holds a merged model",
        code="adapter_mismatch",
    )


def adapter_weights(adapter: Path, *, allow_pickle: bool = False) -> dict[str, torch.Tensor]:
    """The tensors of an adapter, by the names that they have in its file.

    Args:
        allow_pickle: load a .bin file that holds more than tensors, which can run code.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = weights_file(adapter)
    if file.suffix == ".bin":
        content = torch.load(file, map_location="cpu", weights_only=not allow_pickle)
        return {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    try:
        return load_file(file)
    except SafetensorError as error:
        raise CheckpointError(f"{file} is cut off or corrupt ({error})", "copy or download it again") from error


def check_base(adapter: Path, folder: Path) -> None:
    """Refuse a LoRA adapter that was trained on another model, as far as the headers of both show.

    Raises:
        CheckpointError: a layer has another size, or is not in the base at all.
    """
    settings, weights = read_json(adapter / ADAPTER_CONFIG), _shapes(adapter)
    in_blocks = settings.get("use_qalora") or settings.get("use_bdlora")
    if settings.get("peft_type") != "LORA" or in_blocks or not weights:
        return
    base = _base_shapes(folder)
    layers = {_unnumbered(name) for name in base}
    ranks = None if settings.get("rank_pattern") or settings.get("target_parameters") else settings.get("r")
    for name, shape in weights.items():
        for *module, part in map(_core_of_part, _cores(name, "lora_")):
            if part not in ("lora_A", "lora_B") or len(shape) != 2:
                continue
            rank, size = shape if part == "lora_A" else reversed(shape)
            place = (*module, "weight")
            if isinstance(ranks, int) and rank != ranks:
                raise _no_fit(adapter, f"{name} has rank {rank}, but r is {ranks} in {ADAPTER_CONFIG}", "correct its r")
            if len(base.get(place, ())) == 2 and size not in base[place] and not _is_table(base[place], folder):
                raise _no_fit(adapter, f"{name} is for {size} values and the layer is {base[place]}", OTHER_BASE)
            if place not in base and _unnumbered(place) in layers and not settings.get("layer_replication"):
                raise _no_fit(adapter, f"{name} has no place in it", OTHER_BASE)


def _no_fit(adapter: Path, reason: str, fix: str) -> CheckpointError:
    return CheckpointError(f"the adapter {adapter} does not fit its base model: {reason}", fix, code="adapter_mismatch")


def _shapes(adapter: Path) -> dict[str, tuple[int, ...]]:
    """Tensor shapes by name; empty for pickles, which have no header."""
    file = weights_file(adapter)
    return {} if file.suffix == ".bin" else tensor_shapes(file)


def _base_shapes(folder: Path) -> dict[tuple[str, ...], tuple[int, ...]]:
    """By `core`; empty where no header has the shapes of the layers."""
    if _config(folder).get("quantization_config"):
        return {}
    files = weight_files(folder).safetensors
    return {core(name): shape for path in files for name, shape in tensor_shapes(path).items()}


def _config(folder: Path) -> dict[str, object]:
    return read_json(folder / "config.json") if (folder / "config.json").is_file() else {}


def _is_table(shape: Sequence[int], folder: Path) -> bool:
    """Whether a weight has one vector per token, whose number an adapter may have changed."""
    return shape[0] == _config(folder).get("vocab_size")


def _unnumbered(name: Iterable[str]) -> tuple[str, ...]:
    return tuple("#" if part.isdecimal() else part for part in name)


def embedding_rows(adapter: Path, folder: Path) -> int | None:
    """Number of token embeddings when an adapter was trained, by its header; None if unknown."""
    tables = [
        ".".join(name[:-1])
        for name, shape in _base_shapes(folder).items()
        if name[-1] == "weight" and len(shape) == 2 and _is_table(shape, folder)
    ]
    return vocabulary_size(_shapes(adapter), tables, "lora_")


def place_names(names: Iterable[str], places: Iterable[str], prefix: str) -> dict[str, str]:
    """Names in an adapter's file → the names that the model has for the same; the last one counts of several.

    Programs write the same weight with and without PEFT's ``base_model.model.``, with the name of the adapter, and as
    their wrappers (torch.compile, FSDP) call it.

    Args:
        prefix: how the names of the method's own tensors begin, such as ``lora_``.
    """
    by_core = {core(place): place for place in places}
    found = ((name, next((by_core[each] for each in _cores(name, prefix) if each in by_core), name)) for name in names)
    return dict(found)


def core(name: str) -> tuple[str, ...]:
    """A tensor's name without prefixes and wrappers."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS and part != "modules_to_save"]
    while len(parts) > 1 and parts[0] in ("base_model", "model"):
        del parts[0]
    return tuple(parts)


def _cores(name: str, prefix: str) -> Iterator[tuple[str, ...]]:
    """What a name may mean: as it is, and without the name of the adapter, which follows the method's own part."""
    yield core(name)
    parts = name.split(".")
    for place, part in enumerate(parts[:-1]):
        if part.startswith((prefix, "modules_to_save", "trainable_tokens_delta")):
            yield core(".".join([*parts[: place + 1], *parts[place + 2 :]]))


def vocabulary_size(shapes: Mapping[str, tuple[int, ...]], tables: Iterable[str], prefix: str) -> int | None:
    """Number of token embeddings when an adapter was trained; None if its tensors do not show it.

    Args:
        tables: the names of the modules that hold a vector for each token.
        prefix: as in `place_names`.
    """
    known = {core(table) for table in tables}
    for part, axis in (("weight", 0), ("lora_embedding_A", -1), ("lora_B", 0)):
        for name, shape in shapes.items():
            for *module, last in map(_core_of_part, _cores(name, prefix)):
                if last == part and tuple(module) in known:
                    return shape[axis]
    return None


def _core_of_part(name: tuple[str, ...]) -> tuple[str, ...]:
    """Without the wrappers around a module, and without the ``weight`` of a part of the method's own."""
    parts = [part for part in name if part not in ("base_layer", "original_module")]
    return tuple(parts[:-1] if len(parts) > 1 and parts[-2].startswith("lora_") else parts)
