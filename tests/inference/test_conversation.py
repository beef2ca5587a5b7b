"""A conversation: a turn reads its own tokens only, history is cut by whole messages, files bring it back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import llmkit
from llmkit.engines.transformers.prompt_cache import PromptCache
from llmkit.errors import ContextOverflowError, InputError, UsageError
from llmkit.tasks import Message
from llmkit.tasks.messages import shortened
from tests.conftest import Checkpoint, noted
from tests.fakes import fake

GREEDY: dict[str, Any] = {"dtype": "float32", "device": "cpu", "max_new_tokens": 6}


def start(folder: Path, **options: Any) -> llmkit.Conversation:
    return llmkit.Conversation(llmkit.load("dialogue", str(folder), **{**GREEDY, **options}))


FAMILIES = [
    ("gpt2", {"n_positions": 2048}),
    ("llama", {"max_position_embeddings": 2048}),
    ("qwen3", {"max_position_embeddings": 2048}),
    ("gemma3", {"max_position_embeddings": 2048, "sliding_window": 32}),
]


@pytest.mark.parametrize(("family", "size"), FAMILIES)
def test_thirty_turns_never_read_again_what_is_known(family: str, size: dict[str, int], checkpoint: Checkpoint) -> None:
    conversation = start(checkpoint(family, chat=True, **size), temperature=1.5, seed=1)
    known = 0
    for turn in range(30):
        usage = conversation.send(f"The quick brown fox {turn}, 今天天气?").usage
        assert usage.cached_tokens == known, f"turn {turn}"
        # The last token that was written has not been read yet.
        known = usage.prompt_tokens + usage.completion_tokens - 1
    assert known > 500


@pytest.mark.parametrize(("family", "size"), FAMILIES)
def test_what_is_known_changes_nothing(
    family: str, size: dict[str, int], checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint(family, chat=True, **size)
    lines = ["The quick brown fox", "今天天气?", "jumps over", "the lazy dog", "emoji 😀"]

    def play() -> list[str]:
        conversation = start(folder, temperature=1.5, seed=1)
        replies = [conversation.send(line).text for line in lines]
        conversation.undo()
        conversation.undo()
        return [*replies, *(conversation.send(line).text for line in ("What is the meaning", "of life?"))]

    with_cache = play()
    monkeypatch.setattr(PromptCache, "take", lambda self, loaded, ids: None)
    assert play() == with_cache
    assert len(set(with_cache)) > 1


def test_after_undo_the_common_beginning_is_known(checkpoint: Checkpoint) -> None:
    conversation = start(checkpoint("llama", chat=True, max_position_embeddings=2048))
    first = conversation.send("The quick brown fox").usage
    conversation.send("jumps")
    assert conversation.undo() == Message("user", "jumps")
    usage = conversation.send("over").usage
    assert usage.cached_tokens >= first.prompt_tokens + first.completion_tokens - 1


def test_models_whose_memory_cannot_be_cut_back_read_everything(checkpoint: Checkpoint) -> None:
    conversation = start(checkpoint("t5", chat=True))
    for line in ("The quick", "brown fox"):
        assert conversation.send(line).usage.cached_tokens == 0


def pretend(*said: str, **options: Any) -> llmkit.Conversation:
    """A conversation without a model."""
    return llmkit.Conversation(fake("dialogue", *said, **options)[0])


def test_history_is_cut_by_whole_messages_and_noted() -> None:
    conversation = pretend("I am the lazy dog.", context=40, max_new_tokens=8)
    conversation.system = "Be the quick fox."
    before = 0
    for turn in range(12):
        output = conversation.send(f"The quick brown fox {turn}")
        assert output.usage.prompt_tokens <= 32
        assert conversation.forgotten % 2 == 0
        if conversation.forgotten > before:
            assert f"the oldest {conversation.forgotten - before} messages" in noted(output)["messages_dropped"]
            before = conversation.forgotten
    assert before > 2
    assert len(conversation.messages) == 24, "what the model no longer sees is still there"


def test_one_message_that_does_not_fit_changes_nothing() -> None:
    conversation = pretend(context=128, max_new_tokens=6)
    conversation.send("The fox")
    before = list(conversation.messages)
    with pytest.raises(ContextOverflowError, match="the input has"):
        conversation.send("The quick brown fox 1 " * 60)
    assert conversation.messages == before
    assert conversation.send("The fox").text


def test_shortened_keeps_system_and_the_last_message() -> None:
    messages = [
        Message("system", "s"),
        *(Message("assistant" if n % 2 else "user", str(n)) for n in range(5)),
    ]
    kept = shortened(messages, lambda some: len(some) <= 4)
    assert [message.content for message in kept] == ["s", "2", "3", "4"]
    assert [message.content for message in shortened(messages, lambda some: False)] == ["s", "4"]


def test_a_history_that_does_not_fit_in_one_call() -> None:
    turns = [{"role": "assistant" if n % 2 else "user", "content": f"The quick brown fox {n}"} for n in range(31)]
    output = fake("dialogue", context=128, max_new_tokens=6)[0](
        {"messages": [{"role": "system", "content": "fox"}, *turns]}
    )
    assert "of 32 messages do not fit" in noted(output)["messages_dropped"]
    assert output.usage.prompt_tokens <= 122
    with pytest.raises(ContextOverflowError):
        fake("dialogue", context=128, on_overflow="error")[0]({"messages": turns})


def test_an_interrupted_reply_is_kept_and_the_conversation_goes_on(checkpoint: Checkpoint) -> None:
    conversation = start(checkpoint("llama", chat=True, max_position_embeddings=2048), max_new_tokens=50)
    pieces: list[str] = []
    output = conversation.send("The quick", on_text=pieces.append, cancelled=lambda: len(pieces) > 2)
    assert output.finish_reason == "interrupted"
    assert "".join(pieces) == output.text
    assert conversation.messages[-1].content.strip() == output.text
    usage = conversation.send("brown fox").usage
    assert usage.cached_tokens == output.usage.prompt_tokens + output.usage.completion_tokens - 1
    nothing = conversation.send("jumps", cancelled=lambda: True)
    assert (nothing.text == "") == (len(conversation.messages) == 4)


def test_retry_gives_another_reply(checkpoint: Checkpoint) -> None:
    conversation = start(checkpoint("llama", chat=True, max_position_embeddings=2048), max_new_tokens=20)
    first = conversation.send("The quick")
    second = conversation.retry()
    assert second.text != first.text
    assert "sampled at temperature" in noted(second)["reply_sampled"]
    assert [message.role for message in conversation.messages] == ["user", "assistant"]


def test_retry_of_a_seeded_reply_draws_again(checkpoint: Checkpoint) -> None:
    folder = checkpoint("llama", chat=True, max_position_embeddings=2048)
    conversation = start(folder, max_new_tokens=20, temperature=1.0, seed=1)
    assert conversation.send("The quick").text != conversation.retry().text


def test_a_prefill_is_part_of_the_history(checkpoint: Checkpoint) -> None:
    folder = checkpoint("llama", chat=True, max_position_embeddings=2048)
    conversation = start(folder, prefill="The quick")
    first = conversation.send("fox")
    assert conversation.messages[-1].content.startswith("The quick")
    known = first.usage.prompt_tokens + first.usage.completion_tokens - 1
    assert conversation.send("jumps").usage.cached_tokens == known


def test_save_and_load(tmp_path: Path) -> None:
    conversation = pretend()
    conversation.system = "系统"
    conversation.send("今天天气?")
    conversation.send("fox")
    path = tmp_path / "talk.json"
    conversation.save(path)
    assert json.loads(path.read_text(encoding="utf-8"))["messages"][0] == {"role": "system", "content": "系统"}
    assert "今天" in path.read_text(encoding="utf-8")
    other = pretend()
    other.load(path)
    assert (other.system, other.messages) == (conversation.system, conversation.messages)
    for text, message in (
        ("{", "is not JSON"),
        ('{"messages": []}', "not alternating turns of user and assistant"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "not alternating turns of user and assistant"),
        ('{"messages": [{"role": "user"}]}', "message 1 is not a role and a content"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=message):
            other.load(path)
        assert other.messages == conversation.messages


def test_what_is_refused() -> None:
    conversation = pretend()
    for call in (conversation.undo, conversation.retry):
        with pytest.raises(InputError, match="send a message first"):
            call()
    with pytest.raises(InputError, match="the message is empty"):
        conversation.send(" ")
    for bad in ([Message("judge", "b"), Message("user", "c")], [Message("user", None)]):  # type: ignore[arg-type]
        with pytest.raises(InputError, match="message"):
            conversation.pipeline({"messages": bad})
    with pytest.raises(UsageError, match="a conversation needs the task dialogue"):
        llmkit.Conversation(fake("generate")[0])
