"""Messages that are passed in Python: their content as text or as parts."""

from __future__ import annotations

from typing import Any

import pytest

from llmkit.errors import InputError
from llmkit.tasks import Message
from llmkit.tasks.messages import to_messages


def test_parts_with_text_and_reasoning() -> None:
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "31 degrees"}]}
    assert to_messages(
        [
            {"role": "user", "content": [{"type": "text", "text": "Is it "}, {"type": "text", "text": "hot?"}]},
            {"role": "assistant", "content": [thought, {"type": "text", "text": "Yes."}]},
        ]
    ) == (Message("user", "Is it hot?"), Message("assistant", "Yes.", reasoning="31 degrees"))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            [{"text": "?"}, {"type": "image_url"}],
            r"not text \(image_url\)",
        ),
        ([], "message 1 is not a role and a content"),
        ([{"type": "thinking", "thinking": "?"}], "message 1 of the user has reasoning"),
    ],
)
def test_other_parts_are_refused(content: list[Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        to_messages([{"role": "user", "content": content}])
