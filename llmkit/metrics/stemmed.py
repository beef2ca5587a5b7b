"""ROUGE with stems, as papers on summarization report it; for English only.

Computed like rouge-score with ``use_stemmer=True`` on texts with one sentence a line, which is what Transformers'
``run_summarization.py`` did. Tokens are runs of a-z and 0-9; NLTK's Porter stemmer and Punkt come from their packages.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib import import_module
from itertools import chain
from typing import Any, Literal

from llmkit.errors import UsageError
from llmkit.metrics.packages import require_package
from llmkit.metrics.rouge import rouge
from llmkit.text.detection import detect_language

__all__ = ["Split", "require_english", "rouge_signature", "stemmed_rouge"]

Split = Literal["punkt", "lines"]
"""What the sentences of ``rougeLsum`` are."""

_TOKEN = re.compile("[a-z0-9]+")
_CERTAIN = 0.9


def rouge_signature(split: Split) -> str:
    how = f"punkt-{import_module('punkt').__version__}" if split == "punkt" else split
    return f"words:rouge-score|case:lower|stem:porter|lsum-split:{how}|refs:best"


def stemmed_rouge(prediction: str, references: Sequence[str], *, split: Split = "punkt") -> dict[str, float]:
    """F1 between 0 and 1 under each name of `llmkit.metrics.rouge.ROUGE`."""
    stem = _stemmer()

    def tokens(text: str) -> list[str]:
        return [stem(token) if len(token) > 3 else token for token in _TOKEN.findall(text.lower())]

    return rouge(prediction, references, tokens=tokens, sentences=partial(_sentences, split=split))


@cache
def _stemmer() -> Callable[[str], str]:
    stemmer: Any = require_package("nltk.stem.porter", "rouge-stemmed").PorterStemmer()
    return cache(stemmer.stem)


def _sentences(text: str, split: Split) -> list[str]:
    if split == "lines":
        return text.split("\n")
    found = require_package("punkt", "rouge-stemmed").sent_tokenize(text.strip())
    return list(chain.from_iterable(sentence.split("\n") for sentence in found))


def require_english(metric: str, references: Sequence[Sequence[str]], language: str | None) -> None:
    """Refuse other languages; if the language is not known, those that are detected with certainty.

    Raises:
        UsageError: the references are not English.
    """
    if language is None:
        found = detect_language("\n".join(chain.from_iterable(references)))
        language = found.language.tag if found.probability > _CERTAIN else "en"
    if language.lower().split("-")[0] != "en":
        raise UsageError(
            f"the metric {metric} is for English, and the references are in {language}",
            "leave it out; rouge and chrF++ suit any language",
            code="not_supported",
        )
