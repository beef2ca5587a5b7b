"""Metrics beyond those of the task: built-in ones by name, metrics of the package evaluate, and a judge.

Knows how they are named with their options, what each is computed from, and which of their results have intervals.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmkit.config.settings import LoadSettings
from llmkit.config.yaml12 import parse
from llmkit.errors import UsageError
from llmkit.evaluation.answered import AdditionalMetric, Answered, Computed
from llmkit.evaluation.groups import Scored, score_rows
from llmkit.evaluation.judge import Judge
from llmkit.metrics.bootstrap import mean_of
from llmkit.metrics.score import METRICS, Measure, find_metric
from llmkit.metrics.wrapped import Inputs, arguments_of, figures_of, load_metric, row_values

__all__ = ["open_metrics"]


@dataclass(frozen=True)
class BuiltIn:
    """A metric of `llmkit.metrics.score`."""

    name: str
    options: Mapping[str, Any]

    def check(self, answered: Answered) -> None:
        if self.name in answered.task.metrics:
            raise UsageError(
                f"{self.name} is computed for {answered.task.name} anyway",
                "leave it out of `metrics`",
                code="no_effect",
            )
        self.compute(answered)

    def compute(self, answered: Answered) -> Computed:
        metrics = [find_metric(self.name, **self.options)]
        found = score_rows(answered.task, answered.rows, answered.predictions, answered.references, metrics)
        return Computed(found)


@dataclass(frozen=True)
class Wrapped:
    """A metric of the package evaluate."""

    name: str
    metric: Any
    options: Mapping[str, Any] = field(default_factory=dict)

    def check(self, answered: Answered) -> None:
        arguments_of(self.metric, self.name, _inputs(answered), self.options)

    def compute(self, answered: Answered) -> Computed:
        found = figures_of(self.metric, self.name, _inputs(answered), self.options)
        values = row_values(found, len(answered.rows))
        measures = [_measure(f"{self.name}_{key}", each, self.signature) for key, each in values.items()]
        return Computed(Scored(measures, {}), {key: each for key, each in found.items() if key not in values})

    @property
    def signature(self) -> str:
        """The name with the options and a hash of the code."""
        code = hashlib.sha256(Path(inspect.getfile(type(self.metric))).read_bytes()).hexdigest()[:12]
        return "|".join([self.name, f"code:{code}", *(f"{key}:{value}" for key, value in self.options.items())])


def _inputs(answered: Answered) -> Inputs:
    task, rows = answered.task, answered.rows
    languages = frozenset(filter(None, map(task.target_language, rows)))
    sources = [str(row[task.input_column]) for row in rows]
    return Inputs([text or "" for text in answered.predictions], answered.references, sources, rows, languages)


def _measure(name: str, values: Sequence[float], signature: str) -> Measure:
    import numpy as np

    return Measure(name, np.asarray([(value, 1.0) for value in values]), mean_of, signature)


def open_metrics(metrics: Mapping[str, Any] | Sequence[str], load: LoadSettings) -> dict[str, AdditionalMetric]:
    """Additional metrics by name, ready to compute.

    Args:
        metrics: metrics of the package evaluate, loaded, by name; or ``NAME[,KEY=VALUE…]``: a built-in metric,
            ``judge``, the path of a script, or a metric on the Hub.
        load: whether code of the Hub may run.

    Raises:
        UsageError: a metric does not exist, or its options are wrong.
        LlmkitError: a metric cannot be loaded.
    """
    if isinstance(metrics, Mapping):
        return {name: Wrapped(name, metric) for name, metric in metrics.items()}
    found: dict[str, AdditionalMetric] = {}
    for spec in metrics:
        name, options = _divided(spec)
        label = Path(name).stem if Path(name).stem not in found else spec
        if label in found:
            raise UsageError(f"the metric {spec} is named twice", "name it once", code="invalid_value")
        found[label] = _open(name, label, options, load)
    return found


def _open(name: str, label: str, options: Mapping[str, Any], load: LoadSettings) -> AdditionalMetric:
    if name == "judge":
        return Judge.from_options(label, options, load)
    if name in METRICS:
        find_metric(name, **options)
        return BuiltIn(name, options)
    return Wrapped(label, load_metric(name, trust_remote_code=load.trust_remote_code), options)


def _divided(spec: str) -> tuple[str, dict[str, Any]]:
    """The name of a metric and its options, from ``NAME,KEY=VALUE,…``."""
    if Path(spec).exists():
        return spec, {}
    name, *pairs = spec.split(",")
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise UsageError(
                f"{pair!r} in the metric {spec} is not of the form KEY=VALUE",
                f"write options as in `{name},lang=en`",
                code="invalid_value",
            )
        options[key] = parse(value, f"the option {key} of the metric {name}")[0]
    return name, options
