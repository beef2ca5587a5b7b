"""ROUGE agrees with rouge-score on ASCII, and takes any script for what it is."""

from __future__ import annotations

import random

import pytest
from rouge_score.rouge_scorer import RougeScorer

from llmkit.metrics.rouge import ROUGE, rouge
from llmkit.metrics.words import words


def texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    vocabulary = ["the", "quick", "Fox", "fox's", "a-b", "12.5", "dog", "over", "x_y", "lazy", "&", "U.S."]
    return [
        "\n".join(" ".join(draw.choices(vocabulary, k=draw.randint(0, 9))) for _ in range(draw.randint(1, 4)))
        for _ in range(count)
    ]


def test_it_is_that_of_rouge_score_on_ascii() -> None:
    scorer = RougeScorer(list(ROUGE))
    for prediction, one, other in zip(texts(300, 0), texts(300, 1), texts(300, 2), strict=True):
        theirs = scorer.score_multi([one, other], prediction)
        assert rouge(prediction, [one, other]) == pytest.approx(
            {name: score.fmeasure for name, score in theirs.items()}, abs=1e-6
        )


@pytest.mark.parametrize(
    "text", ["今天天气很好。", "これはテストです", "วันนี้อากาศดี", "الطقس جميل اليوم", "Où est le café ?", "नमस्ते दुनिया"]
)
def test_the_same_text_scores_one_in_any_script(text: str) -> None:
    found = rouge(text, [text])
    assert found["rouge1"] == found["rougeL"] == found["rougeLsum"] == 1.0


def test_accents_are_letters_however_they_are_written() -> None:
    assert words("Café cafe\u0301 cafe") == ["café", "café", "cafe"]
    assert rouge("café", ["cafe"])["rouge1"] == 0.0


def test_words_between_characters() -> None:
    assert words("用GPT-2写诗 3.5次") == ["用", "gpt", "2", "写", "诗", "3", "5", "次"]
    assert words("วันนี้") == ["วั", "น", "นี้"]
