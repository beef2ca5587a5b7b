"""BLEU, chrF++ and TER of translations, by sacreBLEU (Post 2018), with its signatures.

Chooses the tokenization for a language; sacreBLEU does the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from llmkit.metrics.words import has_unspaced

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["TranslationMetric", "tokenization", "translation_metrics"]


def tokenization(language: str | None, references: Sequence[Sequence[str]]) -> str:
    """The name of sacreBLEU's tokenizer for a target language.

    ``zh`` for Chinese; ``char`` for other languages without spaces, whose tokenizers would need downloads or further
    packages; ``13a`` for the rest. Without a language, it is chosen by the script of the references.
    """
    short = (language or "").split("-")[0].lower()
    if short in ("zh", "yue", "wuu", "lzh", "cmn"):
        return "zh"
    if short in ("ja", "th", "lo", "km", "my"):
        return "char"
    if language is None and any(has_unspaced(text) for row in references for text in row):
        return (
            "zh"
            if any("\u4e00" <= character <= "\u9fff" for row in references for text in row[:1] for character in text)
            else "char"
        )
    return "13a"


@dataclass(frozen=True)
class TranslationMetric:
    """A metric of sacreBLEU, as a function of sums of statistics over rows."""

    name: str
    """bleu, chrf++ or ter."""
    metric: Any
    sentence_metric: Any = None
    """The metric for single rows, if it differs."""

    def statistics(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        """Statistics of each row, ``[rows, statistics]``, as used by sacreBLEU's own significance tests."""
        import numpy as np

        streams = [list(stream) for stream in zip_longest(*references)]
        found = self.metric._extract_corpus_statistics(list(predictions), streams)  # noqa: SLF001 - as its own tests
        return np.asarray(found, dtype=np.float64)

    def figure(self, sums: NDArray[np.float64]) -> float:
        """The score of the corpus, between 0 and 100 (TER: 0 is best, and it may be more)."""
        return _score(self.metric, sums)

    def row_figure(self, statistics: NDArray[np.float64]) -> float:
        """The score of one row: of BLEU, only over n-gram orders that the row is long enough for."""
        return _score(self.sentence_metric or self.metric, statistics)

    @property
    def signature(self) -> str:
        """sacreBLEU's signature; complete after `statistics`."""
        return str(self.metric.get_signature())


def _score(metric: Any, statistics: NDArray[np.float64]) -> float:
    return float(metric._compute_score_from_stats(statistics.tolist()).score)  # noqa: SLF001 - as sacreBLEU's own tests


def translation_metrics(language: str | None, references: Sequence[Sequence[str]]) -> list[TranslationMetric]:
    """BLEU, chrF++ and TER for a target language (BCP 47), or chosen by the references."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.metrics.ter import TER

    divided = tokenization(language, references)
    asian = divided != "13a"
    return [
        TranslationMetric("bleu", BLEU(tokenize=divided), BLEU(tokenize=divided, effective_order=True)),
        TranslationMetric("chrf++", CHRF(word_order=2)),
        TranslationMetric("ter", TER(normalized=asian, asian_support=asian)),
    ]
