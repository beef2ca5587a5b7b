"""The scores of tasks as metrics of the package evaluate, and other metrics of that package. Its import takes seconds.

Other metrics are code: a script named explicitly is run, others only if the caller allows it.
"""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.errors import LlmkitError, UsageError
from llmkit.log import warn
from llmkit.metrics.score import score
from llmkit.tasks import find_task

__all__ = ["Inputs", "arguments_of", "figures_of", "load_metric", "row_values", "task_metric"]


def task_metric(task: str, *, language: str | None = None) -> Any:
    """The metrics of a task as an ``evaluate.Metric``, without access to the Hub.

    ``compute(predictions=[…], references=[[…], …])`` returns the task's scores, 0 to 100, by name.
    """
    import datasets
    import evaluate

    metrics = find_task(task).metrics

    class TaskMetric(evaluate.Metric):  # type: ignore[misc]  # it has no types
        def _info(self) -> Any:
            text = datasets.Value("string")
            return evaluate.MetricInfo(
                description=f"llmkit's figures of {task}",
                citation="",
                inputs_description="predictions: texts; references: a list of texts for each",
                features=datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
            )

        def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
            return {each.name: each.value for each in score(metrics, predictions, references, language=language)}

    return TaskMetric()


def load_metric(name: str, *, trust_remote_code: bool) -> Any:
    """Another metric of the package evaluate: a local script or folder, or a name on the Hub.

    Raises:
        UsageError: the caller does not allow its code to run.
        LlmkitError: it cannot be loaded.
    """
    script = _script(Path(name))
    if script is None and not trust_remote_code:
        raise UsageError(
            f"the metric script {name} does not exist here, and metrics on the Hub are code to download and run",
            "give the path of a script, or add `trust_remote_code=True`",
            code="unknown_metric",
        )
    if script is not None and not name.endswith(".py") and not trust_remote_code:
        raise UsageError(
            f"the metric {name} is a folder whose program would run on this machine",
            f"read it, then name the program itself ({script}), or add `trust_remote_code=True`",
            code="unknown_metric",
        )
    import evaluate

    try:
        with _offline_alike():
            return evaluate.load(name if script is None else str(script))
    except Exception as error:
        reason = " ".join((str(error).strip() or type(error).__name__).splitlines()[:2])
        raise LlmkitError(
            f"the metric {name} cannot be loaded ({reason})", "check its name and what it imports", code="metric_failed"
        ) from error


@contextmanager
def _offline_alike() -> Iterator[None]:
    """Make evaluate offline if the Hub client is; it only checks its variable at import."""
    from evaluate import config
    from huggingface_hub import constants

    before = config.HF_EVALUATE_OFFLINE
    config.HF_EVALUATE_OFFLINE = before or constants.HF_HUB_OFFLINE
    try:
        yield
    finally:
        config.HF_EVALUATE_OFFLINE = before


def _script(path: Path) -> Path | None:
    """The script of a path: the file itself or ``name/name.py``; evaluate looks up anything else on the Hub."""
    if path.is_dir():
        path = path / f"{path.resolve().name}.py"
    return path.absolute() if path.suffix == ".py" and path.is_file() else None


@dataclass(frozen=True)
class Inputs:
    """What a metric may be computed from."""

    predictions: Sequence[str]
    references: Sequence[Sequence[str]]
    sources: Sequence[str] = ()
    """The input text of each row."""
    rows: Sequence[Mapping[str, Any]] = ()
    languages: frozenset[str] = frozenset()
    """BCP 47 tags of the languages of the references, as far as they are known."""

    def column(self, name: str) -> Sequence[Any] | None:
        """The values of a metric's input by its name: the predictions, the sources, or a column of the rows."""
        if name == "sources" and self.sources:
            return self.sources
        if name in ("predictions", "references"):
            return list(getattr(self, name))
        key = next((key for key in (name, name.removesuffix("s")) if self.rows and key in self.rows[0]), None)
        return None if key is None else [row.get(key) for row in self.rows]


def arguments_of(metric: Any, name: str, inputs: Inputs, options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a loaded metric: its inputs, the language if it takes one, and the caller's options.

    Raises:
        UsageError: it has no such option, or an input is missing.
    """
    columns = list(_features(metric)[0])
    parameters = inspect.signature(metric._compute).parameters  # noqa: SLF001 - where evaluate's metrics declare them
    free = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    known = [key for key, each in parameters.items() if key not in columns and each.kind is not each.VAR_KEYWORD]
    if unknown := next((key for key in options if key not in known and not free), None):
        choices = f"choose from {', '.join(known)}" if known else "leave it out"
        raise UsageError(f"the metric {name} has no option {unknown}", choices, code="invalid_value")
    found = {column: inputs.column(column) for column in columns}
    if missing := next((column for column, values in found.items() if values is None), None):
        raise UsageError(
            f"the metric {name} needs {missing}, which the rows do not have",
            f"evaluate on rows with a column named {missing}",
            code="column_mismatch",
        )
    if languages := [key for key in ("lang", "language", "target_lang") if key in known and key not in options]:
        tags = sorted({tag.split("-")[0].lower() for tag in inputs.languages})
        if len(tags) > 1:
            raise UsageError(
                f"the metric {name} is for one language, and the references are in {', '.join(tags)}",
                "evaluate each language alone",
                code="not_supported",
            )
        found |= dict(zip(languages, tags, strict=False))
    return {**found, **options}


def _features(metric: Any) -> list[Any]:
    """The layouts of inputs that a metric takes."""
    return list(metric.features) if isinstance(metric.features, list) else [metric.features]


def figures_of(metric: Any, name: str, inputs: Inputs, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Compute a loaded metric; if it takes one reference per row, use the first and log how many are dropped.

    Raises:
        UsageError: see `arguments_of`.
        LlmkitError: the metric fails.
    """
    arguments = arguments_of(metric, name, inputs, options or {})
    try:
        try:
            found = metric.compute(**arguments)
        except ValueError:
            if "references" not in arguments or not _takes_texts(metric):
                raise
            references = arguments["references"]
            found = metric.compute(**{**arguments, "references": [row[0] if row else "" for row in references]})
            if others := sum(map(len, references)) - sum(map(bool, references)):
                warn(
                    "references_ignored",
                    "%s takes one reference a row: the first of each counts (%d left out)",
                    name,
                    others,
                )
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        known = [key for key in inspect.signature(metric._compute).parameters if key not in _features(metric)[0]]  # noqa: SLF001
        fix = f"give its options, as in `{name},{known[0]}=VALUE` (it has {', '.join(known)})" if known else ""
        raise LlmkitError(f"the metric {name} failed ({reason})", fix, "leave it out", code="metric_failed") from error
    return dict(found or {})


def _takes_texts(metric: Any) -> bool:
    """Whether a metric takes one reference a row."""
    import datasets

    return any(isinstance(features.get("references"), datasets.Value) for features in _features(metric))


def row_values(found: Mapping[str, Any], rows: int) -> dict[str, list[float]]:
    """The results that have one number a row, which have confidence intervals."""
    return {
        key: [float(value) for value in values]
        for key, values in found.items()
        if not isinstance(values, str | bytes) and hasattr(values, "__len__") and len(values) == rows > 1
        if all(isinstance(value, numbers.Real) for value in values)
    }
