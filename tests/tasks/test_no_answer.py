"""How models say that a text holds no answer."""

from __future__ import annotations

import pytest

from llmkit.tasks import QuestionAnswering


@pytest.mark.parametrize(
    "said",
    [
        "No answer",
        " no answer.\n",
        "“No answer.”",
        "**No answer**",
        "*No answer.*",
        "`No answer`",
        "<No Answer>",
        " ⁇ no answer>",  # https://github.com/allenai/unifiedqa/issues/45
        "[no answer]",
        "- No answer",
        "Answer: No answer",
        "**Answer:** No answer",
        "No answer found in the text.",
        "No answer is given in the passage",
        "No answer: the text is about foxes.",
        "No answer\n\nThe text is about foxes.",
        "There is no answer in the text.",
        "unanswerable",  # https://github.com/EleutherAI/lm-evaluation-harness/issues/3212
        "The answer is not in the text.",
        "The text does not contain the answer.",
        "The provided context doesn't explicitly mention it.",
        "Not mentioned in the text.",
        "The question cannot be answered from the text.",
        "无答案。",
        "文中没有提到答案。",
    ],
)
def test_what_means_that_there_is_none(said: str) -> None:
    assert QuestionAnswering().parse(said) == ""


@pytest.mark.parametrize(
    "said",
    [
        "No",
        "No answers but questions",
        "Not far from Paris",
        "the answer to life",
        "not given",
        "No one",
        "The text was written by Homer",
        "He did not answer",
        "The document",
    ],
)
def test_what_is_an_answer(said: str) -> None:
    assert QuestionAnswering().parse(said) == said
