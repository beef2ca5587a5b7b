"""The rows of a recipe's sources, read once and kept in a table on the disk, bad ones with the reason."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.config.recipe import SourceSection
from llmkit.data.proposals import task_rows
from llmkit.data.sources import commit_of, files_of, hub_id
from llmkit.errors import HubUnreachableError, InputError
from llmkit.files import file_hash
from llmkit.models.reachability import hub_name, hub_reachable, is_offline
from llmkit.tasks import Task
from llmkit.training.disk_cache import cached_table, code_version, digest

if TYPE_CHECKING:
    import datasets

__all__ = ["Rows", "need_hub", "read_rows"]


@dataclass(frozen=True)
class Rows:
    """The rows of some sources in the task's own columns, in a table on the disk."""

    table: datasets.Dataset
    """``where``, ``row`` (JSON), ``error`` (empty unless it is bad), ``source`` (its number), ``unused`` (columns)."""
    key: str
    origin: str
    """A hash of the sources and their settings, whatever llmkit makes of them."""
    names: tuple[str, ...]
    """Of the sources."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = json.loads(self.table[index]["row"])
        return row

    def where(self, index: int) -> str:
        """Where it stands in its file."""
        return str(self.table[index]["where"])


def source_name(source: SourceSection) -> str:
    """What a source is called in reports."""
    paths = source.path or list((source.aligned or {}).values())
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


def need_hub(sources: Sequence[SourceSection]) -> None:
    """Say within seconds that the Hub of a data set cannot be reached: its client tries again for half a minute.

    Raises:
        HubUnreachableError: it cannot, or offline mode is on.
    """
    name = next(filter(None, map(hub_id, sources)), None)
    if name and not hub_reachable():
        why = "offline mode is on" if is_offline() else f"{hub_name()} cannot be reached"
        raise HubUnreachableError(
            f"the data set {name} is not a file here, and {why}",
            "check the name and the network, or name files",
            code="offline",
        )


def read_rows(sources: Sequence[SourceSection], task: Task) -> Rows:
    """Read all rows of the sources, or find them as they were read before. Bad rows are kept, with their error."""
    need_hub(sources)
    # The bytes of files, the commit of what is on the Hub.
    content = [commit_of(source) or [(str(path), file_hash(path)) for path in files_of(source)] for source in sources]
    origin = digest([source.model_dump(exclude_defaults=True) for source in sources], content)
    key = digest("rows", origin, task.name, task.settings, code_version())

    def write() -> Iterator[dict[str, Any]]:
        for number, source in enumerate(sources):
            for record in task_rows(source, task):
                row = "" if record.row is None else json.dumps(record.row, ensure_ascii=False, default=str)
                yield {
                    "where": record.where,
                    "row": row,
                    "error": str(record.error or ""),
                    "source": number,
                    "unused": list(record.unused),
                }

    def build(scratch: Path) -> datasets.Dataset:
        import datasets

        names: dict[str, Any] = {name: datasets.Value("string") for name in ("where", "row", "error")}
        unused = datasets.List(datasets.Value("string"))
        columns = datasets.Features({**names, "source": datasets.Value("int32"), "unused": unused})
        # Not from_generator, which pickles the generator for a key of its own and hides its errors.
        writer = datasets.arrow_writer.ArrowWriter(features=columns, path=str(scratch / "rows.arrow"))
        count = 0
        for line in write():
            writer.write(line)
            count += 1
        if not count:
            raise InputError("there are no rows", "check data.train", code="no_rows")
        writer.finalize()
        return datasets.Dataset.from_file(str(scratch / "rows.arrow"))

    return Rows(cached_table(key, build), key, origin, tuple(map(source_name, sources)))
