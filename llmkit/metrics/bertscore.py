"""BERTScore (Zhang et al. 2020) by the package bert-score, which supports any language of its encoder.

Corrects what that package, written for Transformers 4, does otherwise with version 5.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from llmkit.errors import LlmkitError, UsageError
from llmkit.metrics.packages import require_package

__all__ = ["BERTSCORE", "bertscore"]

BERTSCORE = ("bertscore_precision", "bertscore_recall", "bertscore_f1")


def bertscore(
    predictions: Sequence[str], references: Sequence[Sequence[str]], *, lang: str | None = None, **options: Any
) -> tuple[dict[str, list[float]], str]:
    """The values of each row under each name of `BERTSCORE`, and bert-score's own signature.

    An empty prediction has 0. ``options`` are those of ``bert_score.BERTScorer``.

    Raises:
        UsageError: the language or the number of layers is needed.
        LlmkitError: the encoder cannot be loaded.
    """
    package = require_package("bert_score", "bertscore")
    lang = lang and lang.lower().split("-")[0]
    _check(package, lang, options)
    try:
        scorer = package.BERTScorer(lang=lang, **options)
        _restore_tokenizer(scorer)
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LlmkitError(
            f"the encoder of the metric bertscore cannot be loaded ({reason})",
            "download it first, or name a local one: `bertscore,model_type=FOLDER,num_layers=N`",
            code="metric_failed",
        ) from error
    rows = [row for row, text in enumerate(predictions) if text.strip() and any(map(str.strip, references[row]))]
    found: dict[str, list[float]] = {name: [0.0] * len(predictions) for name in BERTSCORE}
    if rows:
        if options.get("idf"):
            scorer.compute_idf([text for row in references for text in row if text.strip()])
        expected = [[text for text in references[row] if text.strip()] for row in rows]
        for name, values in zip(BERTSCORE, scorer.score([predictions[row] for row in rows], expected), strict=True):
            for row, value in zip(rows, values.tolist(), strict=True):
                found[name][row] = value
    return found, f"{scorer.hash}|refs:best"


def _check(package: Any, lang: str | None, options: dict[str, Any]) -> None:
    known = [name for name in inspect.signature(package.BERTScorer).parameters if name != "all_layers"]
    if unknown := next((name for name in options if name not in known), None):
        raise UsageError(
            f"the metric bertscore has no option {unknown}", f"choose from {', '.join(known)}", code="invalid_value"
        )
    model = options.get("model_type")
    if (lang is None and model is None) or (options.get("rescale_with_baseline") and lang is None):
        raise UsageError(
            "the metric bertscore needs the language of the references, which is not known",
            "give it, as in `bertscore,lang=en`",
            code="language_missing",
        )
    if model is not None and model not in package.utils.model2layers and "num_layers" not in options:
        raise UsageError(
            f"the metric bertscore does not know which layer of {model} to use",
            "give it, as in `bertscore,model_type=FOLDER,num_layers=9`",
            code="invalid_value",
        )


def _restore_tokenizer(scorer: Any) -> None:
    """Transformers 5 ignores a space to add before the first word when it encodes, and some have no maximum length."""
    from transformers import AutoTokenizer

    if getattr(scorer._tokenizer, "add_prefix_space", None) is False:  # noqa: SLF001 - it has no public setting
        scorer._tokenizer = AutoTokenizer.from_pretrained(scorer.model_type, add_prefix_space=True)  # noqa: SLF001
    for name, module in scorer._model.named_modules():  # noqa: SLF001
        if name.endswith("position_embeddings"):
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            limit = min(scorer._tokenizer.model_max_length, module.num_embeddings - unused)  # noqa: SLF001
            scorer._tokenizer.model_max_length = limit  # noqa: SLF001
