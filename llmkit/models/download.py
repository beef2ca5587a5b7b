"""Downloads of whole models: into the caches, or into a folder that works on a machine without a network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from llmkit.config.settings import LoadSettings
from llmkit.errors import NotEnoughMemoryError, UsageError
from llmkit.files import HASHES, disk_errors, in_units, read_json, whole_folder
from llmkit.hub import client
from llmkit.hub.reachability import is_offline
from llmkit.hub.repo_files import part_names
from llmkit.models.bundled import embedded_source, is_embedded
from llmkit.models.locate import locate
from llmkit.models.source import ADAPTER_CONFIG, Source
from llmkit.models.wheels import MARKER

__all__ = ["download_model"]

_BASE = "base-model"
"""Folder of the base model inside a copied adapter."""


def download_model(model: str, *, revision: str | None = None, to: Path | None = None) -> Path:
    """Download a model, and the base model of an adapter; a damaged starter or minilm is prepared again.

    Args:
        model: Hub id, GGUF file on the Hub (``owner/name/file.gguf``), or an embedded model such as ``starter``.
        revision: branch, tag or commit on the Hub.
        to: a new folder for a copy of all files; None leaves them in the cache.

    Returns:
        The folder of the model.
    """
    if revision is not None and is_embedded(model):
        raise UsageError(f"the {model} has no revisions", "leave `revision` out", code="no_effect")
    if to is not None and to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UsageError(f"{to} is not empty", "name another folder", code="output_exists")
    source = _fetched(model, revision, code=to is not None)
    if to is None:
        return source.adapter or source.folder
    _copy(source, to)
    return to


def _fetched(model: str, revision: str | None, *, code: bool) -> Source:
    if is_embedded(model):
        return embedded_source(model, offline=is_offline(), verify=True)
    if not model.endswith(".gguf"):
        client.download(model, revision=revision, code=code)
    return locate(LoadSettings(model=model, revision=revision), fallback=False)


def _copy(source: Source, to: Path) -> None:
    """Copy a model to a folder that can be moved: no links, and the base of an adapter inside."""
    base = list(_files(source.folder, source.gguf_file))
    adapter = [] if source.adapter is None else list(_files(source.adapter, None))
    size = sum(file.stat().st_size for file in (*base, *adapter))
    parent = to.absolute().parent
    with disk_errors(parent, "or name another folder"):
        parent.mkdir(parents=True, exist_ok=True)
        if size > (free := shutil.disk_usage(parent).free):
            raise NotEnoughMemoryError(
                f"{source.name} needs {in_units(size)} in {parent}, which has {in_units(free)} free",
                "free some space, or name another folder",
                code="disk_full",
            )
        with whole_folder(to) as building:
            if source.adapter is None:
                _copy_files(base, source.folder, building)
            else:
                _copy_files(adapter, source.adapter, building)
                _copy_files(base, source.folder, building / _BASE)
                config = read_json(building / ADAPTER_CONFIG) | {"base_model_name_or_path": _BASE, "revision": None}
                (building / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _files(folder: Path, gguf_file: str | None) -> Iterator[Path]:
    """The files of a model, without other GGUF models in the folder, and without llmkit's own records."""
    parts = {gguf_file, *part_names(gguf_file)} if gguf_file else set()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in (MARKER, HASHES) and (path.suffix != ".gguf" or not parts or name in parts):
            yield path


def _copy_files(files: list[Path], folder: Path, to: Path) -> None:
    for path in files:
        target = to / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
