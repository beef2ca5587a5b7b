"""The scores of tasks as metrics of the package evaluate, and other metrics of that package. Its import takes seconds.

Other metrics are code: a script named explicitly is run, others only if the caller allows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmkit.errors import LlmkitError, UsageError
from llmkit.log import warn
from llmkit.metrics.score import score
from llmkit.tasks import find_task

__all__ = ["figures_of", "load_metric", "task_metric"]


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
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
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


def figures_of(
    metric: Any, name: str, predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """Compute a loaded metric; if it takes one reference per row, use the first and log how many are dropped.

    Raises:
        LlmkitError: the metric fails.
    """
    try:
        try:
            found = metric.compute(predictions=list(predictions), references=[list(row) for row in references])
        except ValueError:
            first = [row[0] if row else "" for row in references]
            found = metric.compute(predictions=list(predictions), references=first)
            if others := sum(map(len, references)) - sum(map(bool, references)):
                warn(
                    "references_ignored",
                    "%s takes one reference a row: the first of each counts (%d left out)",
                    name,
                    others,
                )
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LlmkitError(f"the metric {name} failed ({reason})", "leave it out", code="metric_failed") from error
    return dict(found or {})
