"""Exact match and F1 are those of the evaluation scripts of SQuAD and CMRC."""

from __future__ import annotations

import collections
import math
import random
import re
import string

import pytest

from llmkit.metrics.answers import best_threshold, exact_match, f1
from llmkit.metrics.bootstrap import interval, p_value
from llmkit.metrics.score import score


def squad_normal(text: str) -> str:
    """``normalize_answer`` of SQuAD's evaluate-v2.0.py."""
    lower = text.lower()
    bare = "".join(character for character in lower if character not in set(string.punctuation))
    return " ".join(re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", bare).split())


def squad_f1(gold: str, said: str) -> float:
    """``compute_f1`` of the same."""
    wanted, found = squad_normal(gold).split(), squad_normal(said).split()
    common = collections.Counter(wanted) & collections.Counter(found)
    same = sum(common.values())
    if len(wanted) == 0 or len(found) == 0:
        return float(wanted == found)
    if same == 0:
        return 0
    precision, recall = 1.0 * same / len(found), 1.0 * same / len(wanted)
    return (2 * precision * recall) / (precision + recall)


def test_they_are_squads() -> None:
    draw = random.Random(0)
    vocabulary = ["the", "A", "an", "Fox!", "fox", "über", "café", "12,000", "dog's", "the-end"]
    for _ in range(500):
        said, *wanted = (" ".join(draw.choices(vocabulary, k=draw.randint(0, 4))) for _ in range(3))
        assert f1(said, wanted) == pytest.approx(max(squad_f1(each, said) for each in wanted), abs=1e-6)
        assert exact_match(said, wanted) == max(squad_normal(said) == squad_normal(each) for each in wanted)


def test_chinese_answers_are_compared_by_characters() -> None:
    assert exact_match("北京大学。", ["《北京大学》"]) == 1.0
    assert f1("在北京大学", ["北京大学"]) == pytest.approx(2 * (4 / 5) / (4 / 5 + 1))
    # CMRC counts the longest run that both have.
    assert f1("北大京学", ["北京大学"]) == pytest.approx(0.25)
    assert f1("1998年", ["1998年"]) == 1.0


def test_no_answer_is_an_empty_text() -> None:
    assert (exact_match("", []), f1("", [])) == (1.0, 1.0)
    assert (exact_match("fox", []), f1("fox", [])) == (0.0, 0.0)
    assert f1("", ["fox"]) == 0.0


def test_the_threshold_is_the_best_there_is() -> None:
    draw = random.Random(0)
    # Rounded, so that some scores are the same.
    rows = [(round(draw.uniform(-5, 5)), draw.random(), float(draw.random() < 0.4)) for _ in range(50)]
    scores, answered, empty = (list(part) for part in zip(*rows, strict=True))

    def mean(threshold: float) -> float:
        return sum(gain if score <= threshold else none for score, gain, none in rows) / len(rows)

    found = best_threshold(scores, answered, empty)
    assert found.figure == pytest.approx(max(mean(each) for each in [float("-inf"), *scores]))
    assert mean(found.value) == pytest.approx(found.figure)


def test_a_threshold_lies_between_two_scores() -> None:
    """So that rounding, when the rows are answered again in other batches, changes no answer."""
    found = best_threshold([1.0, 3.0, math.inf], [1.0, 0.0, 0.0], [0.0, 1.0, 1.0])
    assert found.value == 2.0
    assert best_threshold([1.0, math.inf], [1.0, 0.0], [0.0, 1.0]).value == 2.0


def test_where_no_answer_is_always_better_the_threshold_is_below_all_scores() -> None:
    found = best_threshold([1.0, 2.0], [0.0, 0.0], [1.0, 1.0])
    assert math.isfinite(found.value)
    assert found.value < 1.0
    assert found.figure == 1.0


def test_questions_without_an_answer_are_counted_apart_where_there_are_both_kinds() -> None:
    """As SQuAD v2's script does (HasAns_f1, NoAns_exact)."""
    said, wanted = ["fox", "a big dog", "", "cat"], [["fox"], ["dog"], [], []]
    found = {each.name: each.value for each in score(["squad"], said, wanted)}
    assert found == pytest.approx(
        {
            "exact_match": 50.0,
            "f1": 100 * (1 + 2 / 3 + 1) / 4,
            "has_answer_exact_match": 50.0,
            "has_answer_f1": 100 * (1 + 2 / 3) / 2,
            "no_answer_exact_match": 50.0,
        }
    )
    measure = next(each for each in score(["squad"], said, wanted) if each.name == "no_answer_exact_match")
    around = interval(measure.statistics, measure.figure)
    assert (around.low, around.high) == (0.0, 100.0)
    assert 0 < p_value(measure.statistics, measure.statistics) <= 1
    assert [each.name for each in score(["squad"], said[:2], wanted[:2])] == ["exact_match", "f1"]
