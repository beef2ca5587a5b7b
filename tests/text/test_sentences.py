import builtins
import logging
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from llmkit.text.graphemes import graphemes
from llmkit.text.sentences import _crfcut, pack, script_language, sentences

NASTY = [
    *"aB .!?,;\n\r\t\0\x85\u2028\u3000「」。，\"'“”()«»1-*#>éกขา",
    *["e\u0301", "👨‍👩‍👧", "🇩🇪", "\r\n", "\n\n", "Mr.", "http://a.b", "\ud83d", "\ude00", "\u0301"],
]


def nasty(rng: random.Random, most: int) -> str:
    return "".join(rng.choice(NASTY) for _ in range(rng.randint(0, most)))


@pytest.mark.parametrize("language", ["en", "de-AT", "zh_Hant", "ja", "fr", "hi", "ar", "th", "qq", ""])
def test_nothing_is_lost_and_whitespace_stays_with_the_sentence_before(language: str) -> None:
    rng = random.Random(language)
    for _ in range(300):
        text = nasty(rng, 40)
        found = sentences(text, language)
        assert "".join(found) == text
        assert all(found)
        assert not any(sentence[0].isspace() for sentence in found[1:])


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        ("en", ["Mr. Smith went to Rome.  ", "He stayed."]),
        ("de-AT", ["Am 1. Mai kam z. B. Herr Dr. Müller. ", "Es war 5 Uhr."]),
        ("fr", ["Voici M.\u00a0Dupont. ", "Il va bien."]),
        ("zh", ["他说：“你好。”", "然后走了。", "再见！"]),
        ("ja", ["はい。", "「こんにちは。」と言った。"]),
        ("hi", ["यह है। ", "वह है।"]),
        ("en", ["\n\nThere is no sentence before. ", "This one ends."]),
    ],
)
def test_sentences_end_where_their_language_ends_them(language: str, expected: list[str]) -> None:
    if language == "ja":  # both readings of a quotation are right
        assert sentences("".join(expected), language)[0] == expected[0]
    else:
        assert sentences("".join(expected), language) == expected


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_a_blank_line_ends_a_sentence_and_the_end_of_a_wrapped_line_does_not(newline: str) -> None:
    expected = ["It is a truth\nuniversally\nacknowledged. ", "So they say\n \n\n", "a second paragraph"]
    expected = [sentence.replace("\n", newline) for sentence in expected]
    assert sentences("".join(expected)) == expected


@pytest.mark.parametrize(
    "expected",
    [
        ["# Of truth\n", "It is one. ", "Universally so"],
        ["There are two\n", "- one that is\nlong\n", "- and another"],
        ["Some text\n", "## A heading\n", "more text"],
        ["There are two\n", "• one that is\nlong\n", "• and another"],
        ["Chapter 1\n", "It was a dark and stormy night and the rain fell."],
        ["Rough winds do shake the darling buds of May,\n", "And summer's lease\n", "Hath all too short a date"],
        ["I gave it to\nMary, who went to the store yesterday with her brother"],
        ["Then we met Anna and\nPeter, who went to the store yesterday with\nher brother"],
    ],
)
def test_headings_items_and_verses_end_with_their_line(expected: list[str]) -> None:
    assert sentences("".join(expected)) == expected


def test_thai_is_divided_at_the_boundaries_that_crfcut_finds() -> None:
    pytest.importorskip("pythainlp")
    pytest.importorskip("pycrfsuite")
    assert sentences("ฉันไปโรงเรียน เธอไปตลาด\n\nวันนี้ฝนตก", "th-TH") == ["ฉันไปโรงเรียน ", "เธอไปตลาด\n\n", "วันนี้ฝนตก"]


def test_thai_is_divided_at_its_spaces_without_the_library(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith(("pythainlp", "pycrfsuite")):
            raise ImportError(name)
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    _crfcut.cache_clear()
    try:
        with caplog.at_level(logging.INFO, "llmkit"):
            for _ in range(2):
                assert sentences("ไป New York กับเธอ วันนี้", "th") == ["ไป New York กับเธอ ", "วันนี้"]
    finally:
        _crfcut.cache_clear()
    assert caplog.text.count("pip install pythainlp") == 1


def test_a_megabyte_without_a_paragraph_takes_seconds() -> None:
    text = "你好。" * 100_000
    start = time.process_time()
    assert len(sentences(text, "zh")) == 100_000
    assert time.process_time() - start < 10  # sentencex alone takes half a minute: its time grows with the square


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("ChatGPT 是一个模型", "zh"),
        ("東京都知事選挙の結果", "ja"),
        ("한국어", "ko"),
        ("สวัสดี", "th"),
        ("नमस्ते", "hi"),
        ("مرحبا", "ar"),
        ("γειά", "el"),
        ("Привет, world", "ru"),
        ("hello", "en"),
        ("123", "en"),
        ("", "en"),
    ],
)
def test_the_script_says_which_marks_to_look_for(text: str, language: str) -> None:
    assert script_language(text) == language


def counts(text: str) -> int:
    """Like a tokenizer, and more for the whole than for its parts now and then."""
    longer: float = len(text) ** 1.1
    return int(longer / 2)


@pytest.mark.parametrize("count", [len, counts, lambda text: len(text) // 3, lambda text: len(text.split())])
def test_chunks_are_within_the_budget_and_nothing_is_lost(count: Callable[[str], int]) -> None:
    rng = random.Random(3)
    for _ in range(500):
        pieces = [nasty(rng, 20) for _ in range(rng.randint(0, 8))]
        budget = rng.randint(-1, 15)
        chunks = pack(pieces, budget, count)
        assert "".join(chunks) == "".join(pieces)
        assert all(chunks)
        assert all(count(chunk) <= budget or len(graphemes(chunk)) == 1 for chunk in chunks)


def test_chunks_are_about_equally_full_and_no_more_than_needed() -> None:
    assert [len(chunk) for chunk in pack(["x" * 10] * 7, 60, len)] in ([30, 40], [40, 30])
    # The greedy way would end in a chunk of 20.
    assert [len(chunk) for chunk in pack(["x" * 100, *["y" * 20] * 6], 100, len)] == [100, 60, 60]
    assert pack(["One. ", "Two."], 100, len) == ["One. Two."]


@pytest.mark.parametrize(
    ("text", "budget", "expected"),
    [
        ("one two, three\nfour five, six", 20, ["one two, three\n", "four five, six"]),
        ("one two three, four 1,000", 18, ["one two three, ", "four 1,000"]),
        ("一二三四五六，七八九", 8, ["一二三四五六，", "七八九"]),
        ("one two three", 9, ["one two ", "three"]),
        ("abcd", 2, ["ab", "cd"]),
        ("👨‍👩‍👧e\u0301\ud83d\ude00", 1, ["👨‍👩‍👧", "e\u0301", "\ud83d\ude00"]),
        ("ab", 0, ["a", "b"]),
    ],
)
def test_a_piece_over_the_budget_is_divided_where_it_hurts_least(text: str, budget: int, expected: list[str]) -> None:
    assert pack([text], budget, len) == expected


@pytest.mark.parametrize("text", ["Hello world, this is it. " * 4000, "a" * 100_000, "word\n" * 20_000, " \n" * 50_000])
@pytest.mark.parametrize("whole", [True, False])
def test_counting_is_asked_for_as_seldom_as_there_are_pieces_and_chunks(text: str, whole: bool) -> None:
    calls = 0

    def count(part: str) -> int:
        nonlocal calls
        calls += 1
        return (len(part) + 3) // 4

    pieces = [text] if whole else sentences(text)
    chunks = pack(pieces, 400, count)
    assert "".join(chunks) == text
    assert calls <= 1.2 * (len(pieces) + 5 * len(chunks))
