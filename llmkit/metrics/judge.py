"""Which figures judge the answers of a task, and what they say of some answers.

Knows texts only: what a row's references are is the task's business, what was answered the model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmkit.metrics import answers, rouge
from llmkit.metrics.bootstrap import Figure, mean_of
from llmkit.metrics.translation import translation_metrics

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LOWER_IS_BETTER", "MEASURES", "Measure", "judge", "trivial_answers"]

MEASURES = {
    "summarization": rouge.ROUGE,
    "text-generation": rouge.ROUGE,
    "dialogue": rouge.ROUGE,
    "question-answering": ("exact_match", "f1"),  # and of rows with or without an answer, where there are both
    "translation": ("bleu", "chrf++", "ter"),
}
"""The names of each task's measures."""
LOWER_IS_BETTER = frozenset({"ter", "perplexity", "loss"})
"""Measures, and the loss, of which less is more."""


@dataclass(frozen=True)
class Measure:
    """A figure of some answers."""

    name: str
    statistics: NDArray[np.float64]
    """What each row adds: ``[rows, statistics]``."""
    figure: Figure
    """From their sums."""
    signature: str

    @property
    def higher_is_better(self) -> bool:
        return self.name not in LOWER_IS_BETTER

    @property
    def value(self) -> float:
        """Of all rows."""
        return self.figure(self.statistics.sum(axis=0))


def judge(
    task: str, predictions: Sequence[str | None], references: Sequence[Sequence[str]], *, language: str | None = None
) -> list[Measure]:
    """The measures of a task, on a scale of 0 to 100.

    Args:
        task: its name, such as ``summarization``.
        predictions: an answer for each row; empty: that there is none. None: the model gave no answer at all, which is
            wrong, also where there is none.
        references: what was expected, one or several a row; of questions none means that there is no answer.
        language: BCP 47 tag of the language translated to, if it is known.
    """
    if task == "question-answering":
        return _of_answers(predictions, references)
    texts = [said or "" for said in predictions]
    if task == "translation":
        return [
            Measure(each.name, each.statistics(texts, references), each.figure, each.signature)
            for each in translation_metrics(language, references)
        ]
    rows = [rouge.rouge(said, wanted) for said, wanted in zip(texts, references, strict=True)]
    return [_of_rows(name, [row[name] for row in rows], rouge.SIGNATURE) for name in rouge.ROUGE]


def _of_answers(predictions: Sequence[str | None], references: Sequence[Sequence[str]]) -> list[Measure]:
    """SQuAD v1's figures; where some questions have no answer, v2's of either kind too."""
    pairs = list(zip(predictions, references, strict=True))
    exact = [0.0 if said is None else answers.exact_match(said, wanted) for said, wanted in pairs]
    overlap = [0.0 if said is None else answers.f1(said, wanted) for said, wanted in pairs]
    figures: list[tuple[str, list[float], list[bool] | None]] = [("exact_match", exact, None), ("f1", overlap, None)]
    known = [bool(wanted) for wanted in references]
    if any(known) and not all(known):
        figures += [("has_answer_exact_match", exact, known), ("has_answer_f1", overlap, known)]
        figures += [("no_answer_exact_match", exact, [not each for each in known])]
    return [_of_rows(name, values, answers.SIGNATURE, counted) for name, values, counted in figures]


def _of_rows(name: str, values: Sequence[float], signature: str, counted: Sequence[bool] | None = None) -> Measure:
    """The mean of values between 0 and 1, of the rows that count."""
    import numpy as np

    weights = np.ones(len(values)) if counted is None else np.asarray(counted, dtype=np.float64)
    return Measure(name, np.stack([100 * np.asarray(values) * weights, weights], axis=1), mean_of, signature)


def trivial_answers(task: str, text: str) -> dict[str, str]:
    """Answers that no model is needed for, which a model has to beat: by name, of one row's input text."""
    if task == "summarization":
        from llmkit.text.sentences import script_language, sentences

        first = sentences(text, script_language(text))[:1]
        return {"lead-1": "".join(first).strip()}
    if task == "translation":
        return {"copy of the source": text}
    if task == "question-answering":
        return {"always no answer": ""}
    return {}
