"""Scoring predictions with the metrics of tasks, by name.

Works on texts only: metrics and references come from the task, predictions from the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

from llmkit.errors import UsageError
from llmkit.metrics import answers, bertscore, meteor, rouge, stemmed
from llmkit.metrics.bootstrap import Figure, mean_of
from llmkit.metrics.translation import translation_metrics

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LOWER_IS_BETTER", "METRICS", "Measure", "Metric", "find_metric", "joined", "measure_names", "score"]

LOWER_IS_BETTER = frozenset({"ter", "perplexity", "loss"})
"""Measures, and the loss, where lower is better."""


@dataclass(frozen=True)
class Measure:
    """One measure of some predictions."""

    name: str
    statistics: NDArray[np.float64]
    """Statistics of each row: ``[rows, statistics]``."""
    figure: Figure
    """Computes the value from their sums."""
    signature: str
    row_figure: Figure | None = None
    """Computes the value of a single row, if that needs another formula (sentence-level BLEU)."""

    @property
    def higher_is_better(self) -> bool:
        return self.name not in LOWER_IS_BETTER

    @property
    def value(self) -> float:
        """The value over all rows."""
        return self.figure(self.statistics.sum(axis=0))

    def of_row(self, number: int) -> float | None:
        """The value of one row; None if the row does not count."""
        value = (self.row_figure or self.figure)(self.statistics[number])
        return value if math.isfinite(value) else None


@dataclass(frozen=True)
class Metric:
    names: tuple[str, ...]
    """Names of its measures; there may be more for some data."""
    measure: Callable[..., list[Measure]]
    """Computes the measures from predictions, references and their language."""
    options: Mapping[str, tuple[Any, ...]] | None = field(default_factory=dict)
    """Keyword arguments of ``measure`` and their values; None: it checks them itself."""


def score(
    metrics: Sequence[str | Metric],
    predictions: Sequence[str | None],
    references: Sequence[Sequence[str]],
    *,
    language: str | None = None,
) -> list[Measure]:
    """Compute the measures of some metrics, on a scale of 0 to 100.

    Args:
        metrics: these, or their names in `METRICS`.
        predictions: one for each row; empty means "no answer". None: the model did not produce a prediction, which
            counts as wrong even if there is no answer.
        references: one or several per row; for questions, an empty list means that there is no answer.
        language: BCP 47 tag of the language of the references, if known.
    """
    return [each for metric in _found(metrics) for each in metric.measure(predictions, references, language)]


def joined(parts: Sequence[tuple[Sequence[int], Sequence[Measure]]]) -> list[Measure]:
    """The measures of all rows, from those of parts that were scored apart, such as by language.

    Args:
        parts: the indices of the rows of a part, and its measures.
    """
    import numpy as np

    rows, found = sum(len(indices) for indices, _ in parts), []
    for name in dict.fromkeys(each.name for _, measures in parts for each in measures):
        own = [(indices, each) for indices, measures in parts for each in measures if each.name == name]
        first = own[0][1]
        statistics = np.zeros((rows, first.statistics.shape[1]))
        for indices, each in own:
            statistics[list(indices)] = each.statistics
        signature = " + ".join(dict.fromkeys(each.signature for _, each in own))
        found.append(replace(first, statistics=statistics, signature=signature))
    return found


def measure_names(metrics: Sequence[str]) -> tuple[str, ...]:
    """The names of the measures of some metrics."""
    return tuple(name for metric in _found(metrics) for name in metric.names)


def _found(metrics: Sequence[str | Metric]) -> list[Metric]:
    return [find_metric(each) if isinstance(each, str) else each for each in metrics]


def find_metric(name: str, **options: Any) -> Metric:
    """A metric by its name, with options of its own.

    Raises:
        UsageError: there is none, or it does not have such an option or value.
    """
    if name not in METRICS:
        raise UsageError(f"unknown metric {name!r}", f"choose from {', '.join(METRICS)}", code="unknown_metric")
    metric = METRICS[name]
    for key, value in options.items():
        if metric.options is not None and value not in metric.options.get(key, ()):
            known = [f"{key}={str(each).lower()}" for key, values in metric.options.items() for each in values]
            raise UsageError(
                f"the metric {name} has no option {key}={value}",
                f"choose from {', '.join(known)}" if known else "leave it out",
                code="invalid_value",
            )
    return replace(metric, measure=partial(metric.measure, **options))


def _of_rouge(
    predictions: Sequence[str | None], references: Sequence[Sequence[str]], _language: str | None
) -> list[Measure]:
    rows = [rouge.rouge(predicted or "", expected) for predicted, expected in zip(predictions, references, strict=True)]
    return [_of_rows(name, [row[name] for row in rows], rouge.SIGNATURE) for name in rouge.ROUGE]


def _of_stemmed_rouge(
    predictions: Sequence[str | None],
    references: Sequence[Sequence[str]],
    language: str | None,
    split: stemmed.Split = "punkt",
) -> list[Measure]:
    stemmed.require_english("rouge-stemmed", references, language)
    pairs = zip(predictions, references, strict=True)
    rows = [stemmed.stemmed_rouge(predicted or "", expected, split=split) for predicted, expected in pairs]
    return [
        _of_rows(f"stemmed_{name}", [row[name] for row in rows], stemmed.rouge_signature(split)) for name in rouge.ROUGE
    ]


def _of_meteor(
    predictions: Sequence[str | None],
    references: Sequence[Sequence[str]],
    language: str | None,
    synonyms: bool = True,
) -> list[Measure]:
    stemmed.require_english("meteor", references, language)
    values = meteor.meteor([predicted or "" for predicted in predictions], references, synonyms=synonyms)
    return [_of_rows("meteor", values, meteor.meteor_signature(synonyms=synonyms))]


def _of_bertscore(
    predictions: Sequence[str | None], references: Sequence[Sequence[str]], language: str | None, **options: Any
) -> list[Measure]:
    texts = [predicted or "" for predicted in predictions]
    found, signature = bertscore.bertscore(texts, references, **{"lang": language, **options})
    return [_of_rows(name, values, signature) for name, values in found.items()]


def _of_translations(
    predictions: Sequence[str | None], references: Sequence[Sequence[str]], language: str | None
) -> list[Measure]:
    texts = [predicted or "" for predicted in predictions]
    return [
        Measure(each.name, each.statistics(texts, references), each.figure, each.signature, each.row_figure)
        for each in translation_metrics(language, references)
    ]


def _of_answers(
    predictions: Sequence[str | None], references: Sequence[Sequence[str]], _language: str | None
) -> list[Measure]:
    """SQuAD v1's measures; if some questions have no answer, also v2's for either kind of question."""
    pairs = list(zip(predictions, references, strict=True))
    exact = [0.0 if predicted is None else answers.exact_match(predicted, expected) for predicted, expected in pairs]
    overlap = [0.0 if predicted is None else answers.f1(predicted, expected) for predicted, expected in pairs]
    figures: list[tuple[str, list[float], list[bool] | None]] = [("exact_match", exact, None), ("f1", overlap, None)]
    known = [bool(expected) for expected in references]
    if any(known) and not all(known):
        figures += [("has_answer_exact_match", exact, known), ("has_answer_f1", overlap, known)]
        figures += [("no_answer_exact_match", exact, [not each for each in known])]
    return [_of_rows(name, values, answers.SIGNATURE, counted) for name, values, counted in figures]


def _of_rows(name: str, values: Sequence[float], signature: str, counted: Sequence[bool] | None = None) -> Measure:
    """The mean of values between 0 and 1 over the rows that count."""
    import numpy as np

    weights = np.ones(len(values)) if counted is None else np.asarray(counted, dtype=np.float64)
    return Measure(name, np.stack([100 * np.asarray(values) * weights, weights], axis=1), mean_of, signature)


METRICS = {
    "rouge": Metric(rouge.ROUGE, _of_rouge),
    "rouge-stemmed": Metric(
        tuple(f"stemmed_{name}" for name in rouge.ROUGE), _of_stemmed_rouge, {"split": get_args(stemmed.Split)}
    ),
    "meteor": Metric(("meteor",), _of_meteor, {"synonyms": (True, False)}),
    "bertscore": Metric(bertscore.BERTSCORE, _of_bertscore, None),
    "squad": Metric(("exact_match", "f1"), _of_answers),
    "sacrebleu": Metric(("bleu", "chrf++", "ter"), _of_translations),
}
