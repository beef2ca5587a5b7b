"""Runs and evaluations as their folders record them.

Knows the files that `llmkit.training` and `llmkit.evaluation` write. Does not know how they are shown.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmkit.config.paths import without_folders
from llmkit.config.yaml12 import dump, parse
from llmkit.errors import InputError
from llmkit.files import read_json
from llmkit.models.tuned import Tuned, run_folder, tuned_for

__all__ = ["DATA", "PAGE", "EvaluationRecord", "RunRecord", "facts_and_recipe", "read_evaluation", "read_run"]

DATA = "data.json"
"""The file of a run with the counts of its rows, samples of what was learned, and licenses."""

PAGE = "report.html"
"""The report in the folder of a run."""

_RESOLVED, _LOG, _METRICS, _RESULTS = "resolved.yaml", "log.jsonl", "metrics.json", "results.jsonl"


@dataclass(frozen=True)
class RunRecord:
    """A training run."""

    name: str
    tuned: Tuned
    log: tuple[Mapping[str, Any], ...]
    """An entry for each logged update, with ``step`` and ``loss`` or ``eval_loss``."""
    facts: Mapping[str, Any]
    """Versions, the base and the data, with hashes."""
    recipe: str
    """The resolved recipe as YAML, without local folders."""
    ledger: tuple[str, ...] = ()
    """Counts of rows, in sentences."""
    samples: tuple[Sequence[Mapping[str, Any]], ...] = ()
    """Training examples, each as parts with ``text`` and ``learned``."""
    licenses: Mapping[str, str | None] = field(default_factory=dict)
    """Of the base model and the data, by name."""


@dataclass(frozen=True)
class EvaluationRecord:
    """An evaluation."""

    name: str
    result: Mapping[str, Any]
    """What `llmkit.evaluation.evaluate.Evaluation.to_dict` returns."""
    rows: tuple[Mapping[str, Any], ...]
    """Each row's columns, references, prediction and scores."""


def read_run(folder: Path) -> RunRecord:
    """The run in a folder.

    Raises:
        InputError: it is no run of llmkit, or a file is missing or damaged.
    """
    run, _ = run_folder(folder)
    tuned = tuned_for(run)
    if tuned is None or not (run / _RESOLVED).is_file():
        raise InputError(f"{folder} is not the folder of a training run", "name the output folder of one")
    facts, recipe = facts_and_recipe((run / _RESOLVED).read_text(encoding="utf-8"))
    data = read_json(run / DATA) if (run / DATA).is_file() else {}
    return RunRecord(
        run.resolve().name,
        tuned,
        tuple(_lines(run / _LOG)),
        without_folders(facts),
        dump(without_folders(recipe)),
        tuple(data.get("ledger", ())),
        tuple(data.get("samples", ())),
        data.get("licenses", {}),
    )


def read_evaluation(folder: Path) -> EvaluationRecord:
    """The evaluation in a folder.

    Raises:
        InputError: it is none of llmkit, or a file is missing or damaged.
    """
    result = read_json(folder / _METRICS) if (folder / _METRICS).is_file() else {}
    if "figures" not in result:
        raise InputError(f"{folder} is not the folder of an evaluation", "name the output folder of one")
    return EvaluationRecord(folder.resolve().name, without_folders(result), tuple(_lines(folder / _RESULTS)))


def facts_and_recipe(text: str) -> tuple[Any, Any]:
    """The provenance in the comments of a resolved recipe, and the recipe itself."""
    comments = "".join(line[2:] for line in text.splitlines(keepends=True) if line.startswith("# "))
    facts, recipe = (parse(each, _RESOLVED)[0] for each in (comments, text))
    return facts or {}, recipe


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            yield json.loads(line)
        except ValueError as error:
            raise InputError(
                f"{path}, line {number}: not JSON ({error})", "write the folder again", code="unreadable_file"
            ) from error
