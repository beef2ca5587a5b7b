"""Data passed in Python, as paths or as rows: the keys of a source, once the rows are kept in the cache.

Rows are named by the hash of their content, so that a run that is resumed can tell whether they are the same.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from llmkit.config.paths import make_cache_dir
from llmkit.config.recipe import PythonRows
from llmkit.config.recipe_sections import FILE_KEYS
from llmkit.data.python_rows import KEPT_ROWS, encoded_row, hold, kept_key, rows_of
from llmkit.errors import InputError, UsageError
from llmkit.files import disk_errors
from llmkit.models.processes import is_distributed
from llmkit.training.disk_cache import cached_folder, scratch_folder

_FIRST_ROWS = 1000
"""Rows that name an iterable that is streamed."""
__all__ = ["data_source", "evaluation_data", "keep_rows", "replace_data"]


def data_source(data: Any, *, streaming: bool = False) -> dict[str, Any]:
    """The keys of a source for data: ``path`` for a path or several, ``rows`` for rows.

    Raises:
        UsageError: it is neither, or this is one of several processes.
        InputError: there are no rows.
    """
    if isinstance(data, str | os.PathLike):
        return {"path": [os.fspath(data)]}
    if isinstance(data, list | tuple) and data and all(isinstance(each, str | os.PathLike) for each in data):
        return {"path": [os.fspath(each) for each in data]}
    return {"rows": (_hold if streaming else _keep)(data).model_dump()}


def evaluation_data(data: Any) -> str | PythonRows:
    """A path as text, or rows, which are kept."""
    return os.fspath(data) if isinstance(data, str | os.PathLike) else _keep(data)


def replace_data(content: dict[str, Any], **parts: Any) -> None:
    """Put data in place of a part of a recipe's content; keys on how its rows are used stay.

    Raises:
        UsageError: the part has several sources.
    """
    for part, data in parts.items():
        if data is None:
            continue
        section = content.setdefault("data", {})
        before = section.get(part)
        if isinstance(before, list) and len(before) > 1:
            raise UsageError(
                f"data.{part} has {len(before)} sources, and `{part}` replaces one",
                "give the recipe as a mapping, with `rows` in a source",
            )
        kept = before[0] if isinstance(before, list) and before else before
        kept = kept if isinstance(kept, Mapping) else {}
        section[part] = {
            **{key: value for key, value in kept.items() if key not in FILE_KEYS},
            **data_source(data, streaming=kept.get("streaming", False) is True),
        }
        if part == "validation":
            section.pop("validation_fraction", None)


def keep_rows(content: dict[str, Any]) -> None:
    """Keep the rows that are in the sources of a recipe's content, under the key ``rows``."""
    section = content.get("data")
    if not isinstance(section, dict):
        return
    for part in ("train", "validation"):
        sources = section.get(part)
        for source in sources if isinstance(sources, list) else [sources]:
            if isinstance(source, dict) and "rows" in source and not isinstance(source["rows"], Mapping):
                source |= data_source(source["rows"], streaming=source.get("streaming", False) is True)


def _refuse_several_processes() -> None:
    if is_distributed():
        raise UsageError(
            "rows passed in Python would have to be the same in each of several processes",
            "save them to a file, and pass its path",
            code="not_supported",
        )


def _hold(data: Any) -> PythonRows:
    """Keep an iterable that is streamed, named by its first rows."""
    _refuse_several_processes()
    if isinstance(data, Iterator):
        raise UsageError(
            f"a {_kind(data)} ends after one pass, and streaming needs the rows several times",
            "pass the function that makes it, without calling it",
        )
    digest, count = hashlib.sha256(), 0
    for row in islice(rows_of(data() if callable(data) else data), _FIRST_ROWS):
        digest.update(encoded_row(row))
        count += 1
    if not count:
        raise InputError(f"the {_kind(data)} has no rows", "make it yield some", code="no_rows")
    hold(digest.hexdigest(), data)
    return PythonRows(kind=_kind(data), count=count, sha256=digest.hexdigest())


def _keep(data: Any) -> PythonRows:
    """Write rows to the cache."""
    _refuse_several_processes()
    root = make_cache_dir() / "training"
    with disk_errors(root, "or set LLMKIT_CACHE to another folder"):
        root.mkdir(mode=0o700, exist_ok=True)
        with scratch_folder(root) as scratch:
            found = _write(data, scratch / KEPT_ROWS)
            cached_folder(kept_key(found.sha256), lambda folder: _move(scratch / KEPT_ROWS, folder))
    return found


def _write(data: Any, path: Path) -> PythonRows:
    digest, count = hashlib.sha256(), 0
    with path.open("wb") as file:
        for line in map(encoded_row, rows_of(data)):
            digest.update(line)
            file.write(line)
            count += 1
    if not count:
        raise InputError(f"the {_kind(data)} has no rows", "add at least one", code="no_rows")
    return PythonRows(kind=_kind(data), count=count, sha256=digest.hexdigest())


def _move(path: Path, folder: Path) -> None:
    path.rename(folder / path.name)


def _kind(data: Any) -> str:
    """The class of data with its package, such as pandas.DataFrame."""
    package = type(data).__module__.partition(".")[0]
    return type(data).__name__ if package in ("builtins", "__main__") else f"{package}.{type(data).__name__}"
