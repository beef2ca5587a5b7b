"""The figures and signatures are sacreBLEU's, whole or resampled."""

from __future__ import annotations

import numpy as np
import pytest
import sacrebleu

from llmkit.metrics.bootstrap import interval, p_value
from llmkit.metrics.translation import tokenization, translation_metrics

SAID = ["The cat sat on the mat.", "A dog barks loudly", "It rains."]
WANTED = [
    ["The cat is on the mat.", "A cat sat on the mat."],
    ["A dog barks loud", "The dog barks"],
    ["It is raining."],
]


def test_the_score_of_a_row_is_the_sentences() -> None:
    """Also of a row that is too short for 4-grams, which would score near zero."""
    bleu = translation_metrics("en", WANTED)[0]
    for text, references, statistics in zip(SAID, WANTED, bleu.statistics(SAID, WANTED), strict=True):
        assert bleu.row_figure(statistics) == pytest.approx(sacrebleu.sentence_bleu(text, references).score)


def test_they_are_sacrebleus() -> None:
    found = {}
    for each in translation_metrics("en", WANTED):
        statistics = each.statistics(SAID, WANTED)
        assert statistics.shape[0] == 3
        found[each.name] = (each.figure(statistics.sum(axis=0)), each.signature)
    streams = [[row[0] for row in WANTED], [*(row[1] for row in WANTED[:2]), None]]
    bleu, chrf, ter = sacrebleu.BLEU(), sacrebleu.CHRF(word_order=2), sacrebleu.TER()
    for name, metric in (("bleu", bleu), ("chrf++", chrf), ("ter", ter)):
        score = metric.corpus_score(SAID, streams).score  # type: ignore[arg-type]
        assert found[name][0] == pytest.approx(score, abs=1e-6)
        assert found[name][1] == str(metric.get_signature())
    assert "tok:13a" in found["bleu"][1]


@pytest.mark.parametrize(
    ("language", "text", "divided"),
    [("zh-Hans", "今天天气很好", "zh"), ("ja", "テストです", "char"), ("th", "วันนี้อากาศดี", "char"),
     (None, "今天天气很好", "zh"), (None, "วันนี้อากาศดี", "char"), ("ar", "الطقس جميل اليوم هنا", "13a")],
)  # fmt: skip
def test_the_same_text_scores_a_hundred_in_any_script(language: str | None, text: str, divided: str) -> None:
    assert tokenization(language, [[text]]) == divided
    bleu, chrf, ter = translation_metrics(language, [[text]])
    scores = [each.figure(each.statistics([text], [[text]]).sum(axis=0)) for each in (bleu, chrf, ter)]
    assert scores == pytest.approx([100, 100, 0])


def test_an_interval_holds_the_figure_and_two_like_systems_do_not_differ() -> None:
    draw = np.random.default_rng(0)
    values = draw.normal(0.5, 0.1, 400)
    rows = np.stack([values, np.ones(400)], axis=1)
    found = interval(rows)
    assert found.value == pytest.approx(values.mean())
    assert found.low < found.value < found.high
    # The standard error of a mean.
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.15)
    noise = np.stack([values + draw.normal(0, 0.1, 400), np.ones(400)], axis=1)
    better = np.stack([values + 0.02 + draw.normal(0, 0.1, 400), np.ones(400)], axis=1)
    assert p_value(noise, rows) > 0.05
    assert p_value(better, rows) < 0.01
    assert p_value(rows, rows) == 1.0
