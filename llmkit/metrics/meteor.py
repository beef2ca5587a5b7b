"""METEOR (Banerjee and Lavie 2005) by NLTK, on NLTK's word tokens as the package evaluate has them; for English only.

Its synonyms are those of WordNet, a download of NLTK; without it the scores are lower than published ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmkit.errors import MissingDependencyError
from llmkit.metrics.packages import require_package

__all__ = ["meteor", "meteor_signature"]


class _NoSynonyms:
    def synsets(self, _word: str) -> list[Any]:
        return []


def meteor_signature(*, synonyms: bool) -> str:
    modules = "exact+stem+wordnet" if synonyms else "exact+stem"
    return f"nltk-{require_package('nltk', 'meteor').__version__}|modules:{modules}|case:lower|refs:best"


def meteor(predictions: Sequence[str], references: Sequence[Sequence[str]], *, synonyms: bool = True) -> list[float]:
    """The score of each row between 0 and 1, with the best of its references.

    Raises:
        MissingDependencyError: NLTK or its WordNet is not installed.
    """
    score = require_package("nltk.translate.meteor_score", "meteor").meteor_score
    wordnet = _wordnet() if synonyms else _NoSynonyms()
    return [
        score([_words(text) for text in expected], _words(predicted), wordnet=wordnet) if expected else 0.0
        for predicted, expected in zip(predictions, references, strict=True)
    ]


def _wordnet() -> Any:
    wordnet = require_package("nltk.corpus", "meteor").wordnet
    try:
        wordnet.ensure_loaded()
    except LookupError as error:
        raise MissingDependencyError(
            "the metric meteor needs NLTK's WordNet, which is not in its data folders",
            "run: python -m nltk.downloader wordnet",
            "leave its synonyms out with `meteor,synonyms=false`, which gives lower scores than published ones",
        ) from error
    return wordnet


def _words(text: str) -> list[str]:
    """The words of NLTK's ``word_tokenize``, whose sentences need no download here."""
    tokenizer = require_package("nltk.tokenize.destructive", "meteor").NLTKWordTokenizer()
    sentences = require_package("punkt", "meteor").sent_tokenize(text)
    return [word for sentence in sentences for word in tokenizer.tokenize(sentence)]
