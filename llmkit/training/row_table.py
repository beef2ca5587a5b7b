"""The rows of a recipe's sources, parsed once and cached in a table on disk; bad rows with the reason."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.config.recipe import SourceSection
from llmkit.data.proposals import task_rows
from llmkit.data.records import Record
from llmkit.data.selection import Selection
from llmkit.data.sources import commit_of, contents_of, files_of, hub_id, open_source
from llmkit.errors import HubUnreachableError, InputError, UsageError
from llmkit.hub.reachability import hub_name, hub_reachable, is_offline, mirror_hint
from llmkit.tasks import Task
from llmkit.training.disk_cache import cached_table, code_version, digest
from llmkit.training.source_tasks import task_of

if TYPE_CHECKING:
    import datasets

__all__ = ["Rows", "need_hub", "read_rows", "row_text"]


@dataclass(frozen=True)
class Rows:
    """The rows of some sources in the task's columns, in a table on disk."""

    table: datasets.Dataset
    """``where``, ``row`` (JSON), ``error`` (empty unless it is bad), ``source`` (its number), ``unused`` (columns)."""
    key: str
    origin: str
    """A hash of the sources and their settings, independent of llmkit's version."""
    names: tuple[str, ...]
    """The names of the sources."""
    tasks: tuple[Task, ...]
    """The tasks of the sources, with their settings."""

    @property
    def left_out(self) -> dict[str, int]:
        """Number of rows that the sources' settings leave out of the table, by the name of the setting."""
        return dict(json.loads(self.table.info.description or "{}"))

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = json.loads(self.table[index]["row"])
        return row

    def where(self, index: int) -> str:
        """Its file and line."""
        return str(self.table[index]["where"])

    def task(self, index: int) -> Task:
        """Its task."""
        return self.tasks[int(self.table[index]["source"])]


def source_name(source: SourceSection) -> str:
    """The name of a source in reports."""
    if source.rows is not None:
        return source.rows.kind
    paths = source.path or list((source.aligned or {}).values())
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


def need_hub(sources: Sequence[SourceSection]) -> None:
    """Check within seconds that the Hub can be reached, if a source is there: its client retries for half a minute.

    Raises:
        HubUnreachableError: it cannot be reached, or offline mode is on.
    """
    name = next(filter(None, map(hub_id, sources)), None)
    if name and not hub_reachable():
        off = is_offline()
        raise HubUnreachableError(
            f"the data set {name} is not a local file, and "
            + ("offline mode is on" if off else f"{hub_name()} cannot be reached"),
            "check the name and the network, or name files",
            "" if off else mirror_hint(),
            code="offline" if off else "hub_unreachable",
        )


def _require_columns(missing: Collection[str], sources: Sequence[SourceSection]) -> None:
    """Refuse a template with a variable that no row has, which is most likely misspelled."""
    if not missing:
        return
    first = next((record.row for record in open_source(sources[0]) if record.row is not None), {})
    names, columns = " and ".join(sorted(missing)), ", ".join(map(str, first))
    raise UsageError(
        f"prompt.template uses {names}, and no row has such a column (columns: {columns})",
        "correct the name",
        "test whether it exists: {% if " + min(missing) + " is defined %} … {% endif %}",
        code="column_mismatch",
    )


def row_text(record: Record) -> str:
    """The row of a record as JSON; empty if it is bad."""
    return "" if record.row is None else json.dumps(record.row, ensure_ascii=False, default=str)


def read_rows(sources: Sequence[SourceSection], task: Task) -> Rows:
    """Parse all rows of the sources, or load them from the cache. Bad rows are included, with their error.

    Args:
        task: of the sources that do not name another.
    """
    need_hub(sources)
    # Hashes of files, commits of Hub data sets.
    content = [commit_of(source) or list(contents_of(source)) for source in sources]
    # The same rows are one origin, however they were passed in Python.
    origin = digest(
        [source.model_dump(exclude_defaults=True, exclude={"rows": {"kind"}}) for source in sources], content
    )
    kinds = [source.rows.kind for source in sources if source.rows is not None]  # of which errors speak
    tasks = tuple(task_of(source, task) for source in sources)
    settings = [(each.name, each.settings, each.further_columns, each.learns_from) for each in tasks]
    # The hashes of streamed files do not show every change.
    times = [path.stat().st_mtime_ns for source in sources if source.streaming for path in files_of(source)]
    key = digest("rows", origin, settings, *([times] if times else []), *kinds, code_version())

    selection = Selection()
    missing = {name for name, needed in task.further_columns.items() if needed}

    def write() -> Iterator[dict[str, Any]]:
        for number, source in enumerate(sources):
            for record in task_rows(source, tasks[number], selection):
                missing.difference_update(record.row or ())
                yield {
                    "where": record.where,
                    "row": row_text(record),
                    "error": str(record.error or ""),
                    "source": number,
                    "unused": list(record.unused),
                }

    def build(scratch: Path) -> datasets.Dataset:
        import datasets

        names: dict[str, Any] = {name: datasets.Value("string") for name in ("where", "row", "error")}
        unused = datasets.List(datasets.Value("string"))
        columns = datasets.Features({**names, "source": datasets.Value("int32"), "unused": unused})
        # Not from_generator, which pickles the generator for its own cache key and hides its errors.
        writer = datasets.arrow_writer.ArrowWriter(features=columns, path=str(scratch / "rows.arrow"))
        count = 0
        for line in write():
            writer.write(line)
            count += 1
        if not count:
            raise InputError("no rows found", "check data.train", code="no_rows")
        _require_columns(missing, sources)
        writer.finalize()
        table = datasets.Dataset.from_file(str(scratch / "rows.arrow"))
        table.info.description = json.dumps(selection.left_out, sort_keys=True)  # which is saved with the table
        return table

    return Rows(cached_table(key, build), key, origin, tuple(map(source_name, sources)), tasks)
