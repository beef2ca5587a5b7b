"""The manifest of a run over a file of rows, kept beside its output so that a resumed run gives the same answers.

Knows what affects a run's answers (input, model, settings, window size) and compares it. Does not know rows, the
output's lines, or when a run may be resumed (`llmkit.inference.row_files`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.config.settings import LoadSettings, RowSettings
from llmkit.data.inputs import input_files
from llmkit.errors import InputError, UsageError
from llmkit.files import file_hash, write_whole
from llmkit.models.source import Source

if TYPE_CHECKING:
    from llmkit.inference.pipeline import Pipeline

__all__ = ["describe_run", "model_hashes", "read_manifest", "refuse_changes", "write_manifest"]

SCHEMA_VERSION = 1

_LOADING = ("revision", "base", "head", "dtype", "quantize", "attn_implementation")
"""The load settings that affect answers."""

_MODEL_FILES = frozenset({".bin", ".codes", ".jinja", ".json", ".model", ".py", ".safetensors", ".spm", ".txt"})
_NO_MODEL_FILES = frozenset({"trainer_state.json", "training_args.bin"})
_SHOWN = 3
_WIDTH = 80


def describe_run(
    pipeline: Pipeline,
    settings: RowSettings,
    load: LoadSettings,
    *,
    encoding: str | None,
    max_batch_tokens: int,
    num_processes: int,
) -> dict[str, Any]:
    """The manifest of a run, as plain JSON values. Hashes the whole input and the files of a local model.

    Raises:
        InputError: the input cannot be read.
    """
    model, prompt_options = pipeline.engine.facts, pipeline.prompt_options
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "made_with": {  # for information, not compared
            **{name: _version(name) for name in ("llmkit", "torch", "transformers")},
            "device": model.device,
        },
        "input": _inputs(settings),
        "model": {
            **_model(model.source),
            "head": str(model.head),
            "dtype": model.dtype,
        },
        "settings": {
            "task": pipeline.task.name,
            "task_settings": asdict(pipeline.task.settings),
            "generation": asdict(pipeline.settings),
            "wording": {
                **asdict(prompt_options),
                "examples": [dict(example) for example in prompt_options.examples],
            },
            "loading": {name: getattr(load, name) for name in _LOADING},
            "columns": settings.columns(),
            "max_rows": settings.max_rows,
            "encoding": encoding,
            "header": settings.header,
            "delimiter": settings.delimiter,
            "sample_by": settings.sample_by,
            "window": settings.window,
        },
        "max_batch_tokens": max_batch_tokens,
        "num_processes": num_processes,
    }
    plain: dict[str, Any] = json.loads(json.dumps(manifest, default=str))
    return plain


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _inputs(settings: RowSettings) -> dict[str, Any]:
    """One file; or what was named, and each file with its hash."""
    files = input_files(settings)
    if list(settings.input) == files and len(files) == 1:
        return _input(files[0])
    hashes = {name: _input(name)["sha256"] for name in files}
    return {"file": ", ".join(settings.input), "bytes": None, "sha256": None, "files": hashes}


def _input(name: str) -> dict[str, Any]:
    path = Path(name)
    if name == "-" or path.is_fifo():  # a pipe cannot be read twice
        return {"file": "standard input" if name == "-" else name, "bytes": None, "sha256": None}
    try:
        # As given by the user: error records contain it.
        return {"file": name, "bytes": path.stat().st_size, "sha256": file_hash(path)}
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror})", "check the path and its permissions", code="unreadable_file"
        ) from error


def _model(source: Source) -> dict[str, Any]:
    return {
        "name": source.name,
        "commit": source.commit,
        "adapter_commit": source.adapter_commit,
        **model_hashes(source),
    }


def model_hashes(source: Source) -> dict[str, dict[str, str]]:
    """SHA-256 of each file that defines a model: ``files`` and ``adapter_files``.

    Both are empty if a commit identifies the model.
    """
    if source.commit is not None:
        files = []
    elif source.gguf_file is not None:
        files = [source.folder / source.gguf_file]
    else:
        files = _model_files(source.folder)
    adapter = _model_files(source.adapter) if source.adapter is not None and source.adapter_commit is None else []
    return {
        "files": {path.name: file_hash(path) for path in files},
        "adapter_files": {path.name: file_hash(path) for path in adapter},
    }


def _model_files(folder: Path) -> list[Path]:
    """Configuration, tokenizer, code and weights; pickled weights only if nothing else would be loaded."""
    files = [
        path
        for path in sorted(folder.iterdir())
        if path.suffix in _MODEL_FILES and path.name not in _NO_MODEL_FILES and path.is_file()
    ]
    safe = any(path.suffix == ".safetensors" for path in files)
    return [path for path in files if not (safe and path.suffix == ".bin")]


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest atomically.

    File names that are not UTF-8 contain lone surrogates, which Python's escapes write as JSON does.
    """
    write_whole(path, f"{json.dumps(manifest, indent=2, ensure_ascii=False)}\n", "backslashreplace")


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of an earlier run; `UsageError` if it cannot be compared."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        known = manifest["schema_version"] == SCHEMA_VERSION and manifest["max_batch_tokens"] > 0
    except (OSError, ValueError, LookupError, TypeError):
        known = False
    if not known:
        raise UsageError(
            f"{path} is not a valid manifest",
            "start again with `overwrite`",
            "name another `output`",
            code="resume_mismatch",
        )
    return dict(manifest)


def refuse_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise one `UsageError` that names every difference that would change the answers."""
    # Not max_batch_tokens: after running out of memory, it has to be lowered.
    parts = ("input", "model", "settings", "num_processes")
    changes = [_phrase(*change) for part in parts for change in _changes((part,), before.get(part), now.get(part))]
    if not changes:
        return
    more = f" and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
    raise UsageError(
        f"the run to resume used different settings: {', '.join(changes[:_SHOWN])}{more}",
        "run without `resume` into another `output`",
        "with `overwrite`",
        code="resume_mismatch",
    )


_Keys = tuple[str, ...]


def _changes(keys: _Keys, before: Any, now: Any) -> Iterator[tuple[_Keys, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*before, *now)):
            if (*keys, key) != ("input", "bytes"):  # covered by the hash
                yield from _changes((*keys, key), before.get(key), now.get(key))
    elif before != now:
        yield keys, before, now


def _phrase(keys: _Keys, before: Any, now: Any) -> str:
    match keys:
        case ("input", "sha256"):
            return "the input has changed"
        case ("input", "files", name):
            return f"the input file {name} {_change_of(before, now)}"
        case ("settings", "wording", "examples"):
            return "the examples have changed"
        case ("model", "files" | "adapter_files", name):
            return f"{name} of the model has changed"
        case ("input", "file"):
            name = "the input"
        case ("model", "name"):
            name = "the model"
        case ("model", key):
            name = f"the model's {key}"
        case ("settings", "columns", key):
            name = f"the column of {key}"
        case _:
            name = keys[-1]
    return f"{name} was {_shown(before)} and is {_shown(now)}"


def _change_of(before: object, now: object) -> str:
    return "is new" if before is None else "is gone" if now is None else "has changed"


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH // 2]}…{text[-_WIDTH // 2 :]}"
