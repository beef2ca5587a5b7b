"""The raw rows of one source of a recipe: files, folders, patterns, aligned line files, or a data set of the Hub.

Resolves a source to files, in a stable order. Does not know what the columns mean (`llmkit.data.shapes`).
"""

from __future__ import annotations

import glob
import json
from collections.abc import Collection, Iterator, Sequence
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from llmkit.config.paths import user_path
from llmkit.config.recipe import SourceSection
from llmkit.config.row_condition import RowCondition
from llmkit.data.python_rows import live_records, python_records
from llmkit.data.records import Place, without_null_fields
from llmkit.data.rows import SUFFIXES, Layout, Record, is_rows, open_records
from llmkit.data.selection import Selection
from llmkit.errors import HubUnreachableError, InputError, UsageError
from llmkit.files import file_hash, file_stamp
from llmkit.log import log

__all__ = [
    "MANIFEST",
    "aligned_files",
    "commit_of",
    "contents_of",
    "expand",
    "files_of",
    "hub_id",
    "layout_of",
    "open_source",
    "records_from",
    "splits_of",
]

_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval"), "test"),
}
"""Split names, as `datasets` derives them from the names of files and folders."""

MANIFEST = ".run.json"
"""Suffix of the manifest beside the output of an inference run."""

_NOTES = frozenset(
    {
        "readme",
        "license",
        "licence",
        "copying",
        "attribution",
        "notice",
        "changelog",
        "dataset_info",
        "dataset_infos",
        "dataset_dict",
    }
)
"""Names of files that accompany data but are not data."""


def open_source(source: SourceSection, selection: Selection | None = None) -> Iterator[Record]:
    """The raw rows of a source, lazily; ``selection`` counts those left out.

    Raises:
        InputError: a file is missing or cannot be read; partly when the iterator is asked for a row.
    """
    rows: Iterator[Record]
    if source.rows is not None and not source.streaming:
        rows = python_records(source.rows)
    else:
        rows = (record for record, _ in records_from(source, Place()))
    if source.where is not None:
        rows = (selection or Selection()).fulfilling(rows, RowCondition(source.where))
    return islice(rows, source.max_rows)


def records_from(source: SourceSection, start: Place) -> Iterator[tuple[Record, Place]]:
    """The raw rows of a source from a place on, whatever it selects, each with the place behind it."""
    if source.rows is not None:
        yield from live_records(source.rows, start)
    elif name := hub_id(source):
        yield from _from_hub(name, source, start)
    elif source.aligned is not None:
        for rows, record in islice(enumerate(_aligned(source), 1), start.rows, None):
            yield record, Place(0, rows)
    else:
        for number, path in enumerate(_split_files(source)[start.file :], start.file):
            begin = start if number == start.file else Place()
            records = open_records(path, encoding=source.encoding, layout=layout_of(source), start=begin)
            for rows, record in enumerate(records, begin.rows + 1):
                yield record, Place(number, rows, *record.end)


def layout_of(source: SourceSection) -> Layout:
    """The file layout declared by the source."""
    return Layout(
        format=source.format,
        column_names=tuple(source.column_names or ()),
        header=source.header,
        delimiter=source.delimiter,
        named=frozenset(part for path in source.columns.values() for part in (path, path.partition(".")[0])),
        quotes=source.quotes,
        sample_by=source.sample_by or "line",
    )


def files_of(source: SourceSection) -> list[Path]:
    """The files of a source; empty for a Hub id, and for rows passed in Python."""
    if source.aligned is not None:
        return [_existing(name) for name in source.aligned.values()]
    return [] if hub_id(source) else _split_files(source)


def contents_of(source: SourceSection) -> Iterator[tuple[str, str]]:
    """The files of a source with their hashes; of one that is streamed, with what shows most changes (`file_stamp`)."""
    known = file_stamp if source.streaming else file_hash
    yield from ((str(path), known(path)) for path in files_of(source))


def splits_of(paths: Sequence[str]) -> list[str]:
    """The splits in the file names of a folder, such as train and validation; empty for anything else."""
    if len(paths) != 1 or not user_path(paths[0]).is_dir():
        return []
    return sorted({split for path in _in_folder(Path(paths[0])) if (split := _split(path, Path(paths[0])))})


# Files.


def hub_id(source: SourceSection) -> str | None:
    """The Hub data set of a path: owner/name, unless a file has that name."""
    if source.aligned is not None:
        return None
    (first, *more) = source.path or [""]
    local = first.startswith((".", "/", "~")) or user_path(first).exists() or any(sign in first for sign in "*?[")
    if more or local or first.count("/") != 1 or is_rows(Path(first)):
        if named := [name for name in ("name", "revision") if getattr(source, name) is not None]:
            raise UsageError(
                f"{first} is not on the Hub, so {' and '.join(named)} has no effect", "leave it out", code="no_effect"
            )
        return None
    return first


def _split_files(source: SourceSection) -> list[Path]:
    files: list[Path] = []
    for name in source.path or ():
        found = expand(name, any_name=source.format is not None)
        root = user_path(name)
        splits = {path: _split(path, root) for path in found} if root.is_dir() else {}
        known = sorted({split for split in splits.values() if split})
        if source.split is not None:
            wanted = _SPLITS.get(source.split, source.split)
            if wanted not in known:
                raise InputError(
                    f"{name} has no files of the split {source.split}",
                    f"it has: {', '.join(known) or 'none'}",
                    code="file_not_found",
                )
            found = [path for path in found if splits[path] == wanted]
        elif len(known) > 1:
            raise InputError(f"{name} holds several splits ({', '.join(known)})", "name one with split")
        files += found
    return files


def expand(name: str, *, any_name: bool = False, log_skipped: bool = True, also: Collection[str] = ()) -> list[Path]:
    """The files of a folder or pattern, or the one of that name; ``also``: further suffixes that files may have."""
    path = user_path(name)
    if path.is_dir():
        found = _saved(path) or _in_folder(path, log_skipped=log_skipped, also=also)
        if not found:
            raise InputError(
                f"the folder {name} holds no rows",
                f"put files there that end in {', '.join((*SUFFIXES, *also))}",
                code="no_rows",
            )
        return found
    if any(sign in name for sign in "*?[") and not path.exists():
        found = _matching(name)
        found = [
            each
            for each in found
            if each.is_file() and (any_name or is_rows(each) or each.suffix.lower() in also) and not _is_output(each)
        ]
        if not found:
            raise InputError(f"no file of rows matches {name}", "check the pattern", code="file_not_found")
        return found
    return [_existing(name)]


def _matching(pattern: str) -> list[Path]:
    pattern = str(user_path(pattern))
    return sorted(Path(each) for each in glob.glob(pattern, recursive=True))  # noqa: PTH207 - absolute too


def _existing(name: str) -> Path:
    path = user_path(name)
    if not path.is_file():
        near = "a Hub id has the form owner/name" if "/" not in name else "check the path"
        raise InputError(f"{name} does not exist", near, code="file_not_found")
    return path


def _in_folder(folder: Path, *, log_skipped: bool = True, also: Collection[str] = ()) -> list[Path]:
    """All files of rows below a folder, without files that merely accompany them."""
    found: list[Path] = []
    passed: list[Path] = []
    saved = {state.parent: _saved(state.parent) for state in folder.rglob("state.json")}
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_dir() or hidden or _is_output(path):
            continue
        if path.parent in saved:  # beside the data are their state, and what `map` left
            found += [path] if path in saved[path.parent] else []
            continue
        note = path.name.split(".")[0].lower() in _NOTES
        wanted = is_rows(path) or path.suffix.lower() in also
        (found if wanted and not note else passed).append(path)
    if passed and found and log_skipped:
        log.info("not read in %s: %s", folder, ", ".join(path.name for path in passed[:8]))
    return found


def _is_output(path: Path) -> bool:
    """Whether a file is the output of an inference run, or one beside it."""
    name = path.name.partition(".shard-")[0].removesuffix(".lock").removesuffix(MANIFEST)
    return path.suffix == ".lock" or path.with_name(name + MANIFEST).exists()


def _saved(folder: Path) -> list[Path]:
    """The files of a folder saved by `datasets.Dataset.save_to_disk`."""
    state = folder / "state.json"
    if not state.is_file():
        return []
    try:
        content = json.loads(state.read_text(encoding="utf-8"))
        if "_data_files" not in content:
            return []
        return [folder / item["filename"] for item in content["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{state} is damaged ({error})", "save the data set again", code="unreadable_file") from error


def _split(path: Path, root: Path) -> str | None:
    """The split at the start of the name of a file or its folder."""
    for part in reversed(path.relative_to(root).parts):
        word = "".join(char if char.isalpha() else " " for char in part.lower()).split()
        if word and word[0] in _SPLITS:
            return _SPLITS[word[0]]
    return None


# Aligned files.


def aligned_files(paths: Sequence[str]) -> list[str]:
    """The two aligned files that paths refer to, if they do: listed, or matched by a pattern."""
    names = [name for path in paths for name in (map(str, _matching(path)) if "*" in path else [path])]
    files = [user_path(name) for name in names]
    if len(files) != 2 or not all(path.is_file() for path in files) or any(map(is_rows, files)):
        plain = len(files) == 2 and all(path.is_file() and path.suffix == ".txt" for path in files)
        if not plain:
            return []
    return names


def _aligned(source: SourceSection) -> Iterator[Record]:
    assert source.aligned is not None
    names = list(source.aligned.values())
    texts = [_lines(_existing(name), source.encoding) for name in names]
    for number, row in enumerate(zip_longest(*texts), start=1):
        if any(line is None for line in row):
            longer = names[next(place for place, line in enumerate(row) if line is not None)]
            shorter = names[next(place for place, line in enumerate(row) if line is None)]
            raise InputError(
                f"{shorter} has {number - 1} lines and {longer} has more, so they are not aligned",
                "give files with the same number of lines",
                code="unreadable_file",
            )
        where = f"{names[0]}:{number}"
        bad = next((line.error for line in row if isinstance(line, Record)), None)
        if bad is not None:
            yield Record(where, None, bad)
        elif any(line.strip() for line in row):
            yield Record(where, dict(zip(source.aligned, row, strict=True)))


def _lines(path: Path, encoding: str | None) -> Iterator[Any]:
    """Every line of a file, including blank ones; the record with the error for a line that cannot be read."""
    for record in open_records(path, encoding=encoding, layout=Layout(format="txt", blank_lines=True)):
        yield record if record.row is None else record.row["text"]


# The Hub.

_STATE_EVERY = 100
"""Rows between two states of a data set, which take as long as a tenth of a row's tokenization."""


def commit_of(source: SourceSection) -> str | None:
    """The current commit of a source on the Hub; None for files."""
    name = hub_id(source)
    if name is None:
        return None
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(name, revision=source.revision, timeout=10).sha)
    except Exception as error:
        raise _unreachable(name, error) from error


def _unreachable(name: str, error: Exception) -> HubUnreachableError:
    reason = " ".join(str(error).split())[:300]
    return HubUnreachableError(
        f"the data set {name} cannot be read from the Hub ({reason})",
        "check the name (no file has it either), the network, or HF_ENDPOINT if you use a mirror",
    )


def _from_hub(name: str, source: SourceSection, start: Place) -> Iterator[tuple[Record, Place]]:
    """The rows of a data set of the Hub from a place on, which is found without reading the files before it."""
    table = _open_hub(name, source)
    rows, state = start.state or (0, None)
    if state is not None:
        table.load_state_dict(state)
    known, found = start.state, start.rows
    try:
        for found, row in islice(enumerate(table, rows + 1), start.rows - rows, None):
            if hasattr(table, "state_dict") and (found - start.rows) % _STATE_EVERY == 1:
                known = found, table.state_dict()
            yield Record(f"{name}, row {found}", without_null_fields(row)), Place(0, found, state=known)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise HubUnreachableError(
            f"the data set {name} cannot be read after row {found:,} ({reason})",
            "check the network, and try again",
        ) from error


def _open_hub(name: str, source: SourceSection) -> Any:
    import datasets

    try:
        table = datasets.load_dataset(name, source.name, split=source.split, revision=source.revision, streaming=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        offline = isinstance(error, ConnectionError | datasets.exceptions.DatasetNotFoundError) or "offline" in reason
        if offline:
            raise _unreachable(name, error) from error
        raise InputError(
            f"the data set {name} cannot be read ({reason})", "check name, split and revision", code="unreadable_file"
        ) from error
    if isinstance(table, dict):
        raise InputError(f"{name} has the splits {', '.join(table)}", "name one with split")
    return table
