"""Exporting a model: saved as plain Transformers, converted, compared, and only then put in its place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, get_args

from llmkit.config.settings import LoadSettings
from llmkit.errors import MissingDependencyError, UsageError
from llmkit.exporters import ctranslate2, gguf, onnx
from llmkit.exporters.check import Check, TransformersModel, compare, compare_spans, record, record_spans
from llmkit.files import disk_errors, file_hash, whole_folder, write_whole
from llmkit.log import log
from llmkit.models.load import Loaded, load_model
from llmkit.models.logits import LAST_BITS, tolerance
from llmkit.models.source import CONTRACT_FILE
from llmkit.models.tuned import tuned_for
from llmkit.progress import activity
from llmkit.training.merge import OpenedModel, open_merged
from llmkit.training.provenance import file_hashes, license_of

__all__ = ["RECORD", "Exported", "Target", "default_output", "export"]

Target = Literal["safetensors", "gguf", "ctranslate2", "onnx"]
RECORD = "llmkit_export.json"
"""The file that states what an export was made from, and how it was compared with it."""
_FLOATS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Format:
    """What a target needs and has."""

    packages: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = _FLOATS
    quantized: tuple[str, ...] = ()
    """Dtypes that round weights further."""
    generates: bool | None = None
    """Whether its models generate text; None for both kinds."""


_FORMATS: dict[Target, Format] = {
    "safetensors": Format(),
    "gguf": Format((gguf.CONVERTER,), quantized=("q8_0",), generates=True),
    "ctranslate2": Format(
        ("ctranslate2",),
        quantized=("int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16"),
        generates=True,
    ),
    "onnx": Format(("onnx", "onnxruntime", "onnxscript"), ("float32",), generates=False),
}


@dataclass(frozen=True)
class Exported:
    """The result of an export."""

    folder: Path
    to: Target
    dtype: str
    check: Check


def default_output(model: str, to: Target) -> Path:
    """A folder beside the model's own, or in the current one."""
    path = Path(model)
    return path.with_name(f"{path.name}-{to}") if path.exists() else Path(f"{path.name}-{to}")


def export(
    model: str,
    to: Target,
    output: Path | None = None,
    *,
    dtype: str = "auto",
    overwrite: bool = False,
    settings: LoadSettings | None = None,
) -> Exported:
    """Export a model, with its adapter merged.

    Raises:
        UsageError: the folder exists, or the format does not suit the model.
        MissingDependencyError: the converter is not installed.
        CheckpointError: the exported model is not its source; nothing is written.
    """
    form = _checked(to, dtype)
    folder = default_output(model, to) if output is None else output
    if folder.exists() and (not overwrite or not folder.is_dir()):
        raise UsageError(
            f"{folder} exists", "name another `output`", "replace it with `overwrite`", code="output_exists"
        )
    opened = open_merged(model, settings)
    _check_head(opened, to, form)
    with whole_folder(folder) as building, disk_errors(folder.parent, "or name another folder"):
        with activity(f"exporting {opened.loaded.source.name} to {to}"):
            written, check = _write(opened, to, building, dtype, folder.name)
        _record(building, opened.loaded, {"to": to, "dtype": written, "check": asdict(check)}, form)
    log.info("%d of %d answers are equal, %s: %.1e", check.equal, check.compared, check.measure, check.difference)
    return Exported(folder, to, written, check)


def _checked(to: Target, dtype: str) -> Format:
    if to not in get_args(Target):
        raise UsageError(f"unknown format {to}", f"choose one of {', '.join(get_args(Target))}", code="invalid_value")
    form = _FORMATS[to]
    choices = ("auto", *form.dtypes, *form.quantized)
    if dtype not in choices:
        raise UsageError(
            f"{to} has no dtype {dtype}", f"set `dtype` to one of {', '.join(choices)}", code="invalid_value"
        )
    for name in form.packages:
        try:
            version(name)
        except PackageNotFoundError as error:
            raise MissingDependencyError(
                f"exporting to {to} needs {name}, which is not installed", f'pip install "llmkit[{to}]"'
            ) from error
    return form


def _check_head(opened: OpenedModel, to: Target, form: Format) -> None:
    if form.generates is None or form.generates == opened.head.writes:
        return
    others = [name for name, each in _FORMATS.items() if each.generates in (None, opened.head.writes)]
    kind = "generates text" if opened.head.writes else "extracts answers"
    raise UsageError(
        f"{opened.loaded.source.name} {kind}, which an export to {to} cannot do",
        f"export it to {' or '.join(others)}",
        code="not_supported",
    )


def _write(opened: OpenedModel, to: Target, building: Path, dtype: str, name: str) -> tuple[str, Check]:
    """Fill the folder; the dtype of the weights, and the comparison."""
    if to == "safetensors":
        return _write_safetensors(opened, building, dtype)
    plain, converted = building / "plain", building / "converted"
    wanted: Any = "float32" if to == "onnx" else dtype if dtype in _FLOATS else "auto"
    stored, _ = opened.save(plain, wanted)
    written = stored if dtype == "auto" else dtype
    source = _load(plain, opened)
    check = _CONVERT[to](source, plain, converted, written, name)
    for path in converted.iterdir():
        path.rename(building / path.name)
    converted.rmdir()
    if to != "gguf":  # which has the tokenizer in its file
        source.tokenizer.save_pretrained(building)
    if (plain / CONTRACT_FILE).is_file():
        shutil.copy(plain / CONTRACT_FILE, building / CONTRACT_FILE)
    shutil.rmtree(plain)
    return written, check


def _write_safetensors(opened: OpenedModel, building: Path, dtype: Any) -> tuple[str, Check]:
    source, writes = replace(opened.loaded, model=opened.model), opened.head.writes
    answers: Any = record(source) if writes else record_spans(source)
    stored, rounding = opened.save(building, dtype)
    exact = rounding <= LAST_BITS
    exported = _load(building, opened)
    if writes:
        return stored, compare(answers, TransformersModel(exported), exact=exact)
    limit = {} if exact else {"limit": tolerance(stored) * float(opened.logits.abs().max())}
    return stored, compare_spans(answers, record_spans(exported), exact=exact, **limit)


def _to_gguf(source: Loaded, plain: Path, folder: Path, dtype: str, name: str) -> Check:
    folder.mkdir()
    file = folder / f"{name}-{dtype}.gguf"
    gguf.convert(plain, file, dtype, source.tokenizer, source.resolution.model_type)
    exported = TransformersModel(gguf.load_again(file, source))
    return compare(record(source), exported, exact=dtype in _FLOATS)


def _to_ctranslate2(source: Loaded, plain: Path, folder: Path, dtype: str, _: str) -> Check:
    ctranslate2.convert(plain, folder, dtype, source.resolution.model_type)
    return compare(record(source), ctranslate2.CTranslate2Model(folder, source), exact=dtype in _FLOATS)


def _to_onnx(source: Loaded, _: Path, folder: Path, __: str, ___: str) -> Check:
    onnx.convert(source, folder)
    exported = replace(source, model=onnx.open_onnx(source.model, folder))
    return compare_spans(record_spans(source), record_spans(exported))


_CONVERT: dict[Target, Callable[[Loaded, Path, Path, str, str], Check]] = {
    "gguf": _to_gguf,
    "ctranslate2": _to_ctranslate2,
    "onnx": _to_onnx,
}


def _load(folder: Path, opened: OpenedModel) -> Loaded:
    """A folder of plain Transformers, in float32."""
    settings = LoadSettings(model=str(folder), dtype="float32", device="cpu", offline=True)
    return load_model(settings, opened.loaded.resolution.task, fallback=False)


def _record(folder: Path, loaded: Loaded, result: dict[str, Any], form: Format) -> None:
    """Write `RECORD`."""
    source = loaded.source
    tuned = None if source.adapter is not None else tuned_for(source.folder)
    cards = [place / "README.md" for place in (source.adapter, source.folder) if place is not None]
    content = {
        **result,
        "model": source.name,
        "base": source.base or (None if tuned is None else tuned.base),
        "commit": source.commit,
        "adapter_commit": source.adapter_commit,
        "license": next(filter(None, map(license_of, cards)), None),
        "versions": {name: version(name) for name in ("llmkit", "transformers", *form.packages)},
        "source_files": file_hashes(source),
        "files": {path.name: file_hash(path) for path in sorted(folder.iterdir()) if path.is_file()},
    }
    write_whole(folder / RECORD, json.dumps(content, ensure_ascii=False, indent=2) + "\n")
