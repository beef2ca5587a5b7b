"""Few-shot examples: which of them precede a row. Never the row itself; the same in every process and order."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from llmkit.errors import InputError, UsageError
from llmkit.inference.few_shot import FewShot
from llmkit.tasks import Dialogue, PromptOptions, QuestionAnswering, Summarization, Task, TextGeneration

POOL = [{"prompt": f"Question {number}?", "completion": f"answer {number}"} for number in range(8)]


def chosen(row: dict[str, Any], task: Task | None = None, **options: Any) -> list[Any]:
    return list(FewShot(task or TextGeneration(), PromptOptions(**options)).options_for(row).examples)


@pytest.mark.parametrize("by", ["random", "similarity"])
@pytest.mark.parametrize("shots", [1, 7, None])
def test_a_row_is_never_its_own_example(by: Any, shots: int | None) -> None:
    """Rows of an evaluation have further keys, and copies differ in white space and in other columns."""
    copies = [{**POOL[3], "prompt": " Question  3?\n", "completion": "other", "level": 2}, *POOL]
    row = {"prompt": "Question 3?", "references": ["answer 3"], "origin": {"where": "rows.jsonl:4"}}
    found = chosen(row, examples=copies, shots=shots, shots_by=by if shots else None)
    assert len(found) == (shots or 7)
    assert not any("3" in example["prompt"] for example in found)


def test_copies_are_used_once() -> None:
    found = chosen({"prompt": "new"}, examples=[*POOL, *POOL], shots=8)
    assert sorted(example["prompt"] for example in found) == sorted(example["prompt"] for example in POOL)


@pytest.mark.parametrize("by", ["random", "similarity"])
def test_more_shots_are_added_in_front(by: Any) -> None:
    """So that numbers of shots differ by these examples alone, and a prompt cut to fit equals one with fewer shots."""
    found = [chosen({"prompt": "Question 5 or 6?"}, examples=POOL, shots=n, shots_by=by) for n in range(8)]
    assert found[0] == []
    assert all(found[n][-m:] == found[m] for n in range(8) for m in range(1, n))


def test_the_seed_draws_for_all_rows_alike_and_another_seed_draws_others() -> None:
    few_shot = FewShot(TextGeneration(), PromptOptions(examples=POOL, shots=3))
    first = few_shot.options_for({"prompt": "a"})
    for number in range(20):
        few_shot.options_for(POOL[number % 8])
    assert few_shot.options_for({"prompt": "b"}) == first
    seeds = {str(chosen({"prompt": "a"}, examples=POOL, shots=3, shots_seed=seed)) for seed in range(5)}
    assert len(seeds) > 1
    assert list(first.examples) == chosen({"prompt": "a"}, examples=POOL, shots=3, shots_seed=42)


def test_the_most_similar_example_is_next_to_the_row() -> None:
    pool = [
        {"prompt": "What is the capital of France?", "completion": "Paris"},
        {"prompt": "What is the boiling point of water?", "completion": "100 °C"},
        {"prompt": "Who wrote the book about the whale?", "completion": "Melville"},
    ]
    found = chosen({"prompt": "What is the capital of Peru?"}, examples=pool, shots=2, shots_by="similarity")
    assert [example["completion"] for example in found] == ["100 °C", "Paris"]


def test_chinese_is_compared_by_words_and_not_only_by_characters() -> None:
    pool = [
        {"prompt": "中国开会", "completion": "同样的字"},
        {"prompt": "国会大厦在华盛顿", "completion": "同样的词"},
        {"prompt": "天气很好", "completion": "无关"},
    ]
    found = chosen({"prompt": "国会是什么？"}, examples=pool, shots=3, shots_by="similarity")
    assert [example["completion"] for example in found] == ["无关", "同样的字", "同样的词"]


def test_a_choice_is_the_same_in_another_process() -> None:
    options = PromptOptions(examples=POOL, shots=3, shots_by="similarity")
    few_shot = FewShot(TextGeneration(), options)
    before = few_shot.options_for({"prompt": "Question 1 or 2?"})
    assert pickle.loads(pickle.dumps(few_shot)).options_for({"prompt": "Question 1 or 2?"}) == before


def test_too_few_examples_are_refused_before_any_row_is_answered() -> None:
    few_shot = FewShot(TextGeneration(), PromptOptions(examples=POOL, shots=8))
    few_shot.require([{"prompt": "new"}])
    with pytest.raises(InputError, match="`shots=8`: only 7 examples differ from the row itself"):
        few_shot.require([{"prompt": "new"}, POOL[0]])
    with pytest.raises(InputError, match="only 7 examples"):
        few_shot.options_for(POOL[0])
    with pytest.raises(UsageError, match="there are only 8 different examples"):
        chosen({"prompt": "new"}, examples=[*POOL, *POOL], shots=9)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"shots": 2}, "`shots=2` has no effect without examples"),
        ({"examples": POOL, "shots_by": "similarity"}, "`shots_by` has no effect on prompts with all examples"),
        ({"examples": POOL, "shots_seed": 1}, "`shots_seed` has no effect on prompts with all examples"),
        ({"examples": POOL, "shots": 1, "shots_by": "similarity", "shots_seed": 1}, "`shots_seed` has no effect with"),
    ],
)
def test_a_setting_without_an_effect_is_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        FewShot(TextGeneration(), PromptOptions(**options))


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]


def test_conversations_are_the_same_up_to_the_last_message_of_the_user() -> None:
    pool = [{"messages": turns("Hi", "Hello", "Who?", "Me")}, {"messages": turns("Hi", "Hello")}]
    system = {"role": "system", "content": "Be brief."}
    assert chosen({"messages": [system, *turns("Hi", "Hello", "Who?")]}, Dialogue(), examples=pool) == pool[1:]
    assert chosen({"messages": turns("Hi")}, Dialogue(), examples=pool) == pool[:1]
    assert chosen({"messages": turns("Hello")}, Dialogue(), examples=pool) == pool


def test_questions_on_one_text_are_examples_of_each_other() -> None:
    rows = [{"question": question, "context": "The fox jumps.", "answer": "fox"} for question in ("Who?", "What?")]
    assert chosen(rows[0], QuestionAnswering(), examples=rows) == rows[1:]
    assert chosen({"document": "a"}, Summarization(), examples=[{"document": "a", "summary": "b"}]) == []
