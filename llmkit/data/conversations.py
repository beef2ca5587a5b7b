"""Conversations in rows: speakers, texts, and which replies are learned.

Knows the common formats of turns: OpenAI's messages, ShareGPT, pairs of a user's text and its reply, and conversations
split into ``prompt`` and ``completion`` as in TRL. A turn that is flagged as not learned (``weight: 0``,
``train: false``) gets ``"weight": 0``. Unsupported turns, such as tool calls, are errors. Does not know which column
holds the conversation (`llmkit.data.shapes`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmkit.errors import InputError

__all__ = ["as_flag", "is_empty", "plain_text", "read_turns", "turn_columns", "unused_in_turns"]

_ROLES = {
    **dict.fromkeys(("user", "human", "customer", "client", "prompter", "usr", "用户", "客户", "问"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bard", "bing", "bot", "chatbot", "model", "ai"), "assistant"),
    **dict.fromkeys(("agent", "助手", "客服", "答"), "assistant"),
    **dict.fromkeys(("system", "sys", "developer", "系统"), "system"),
}  # fmt: skip
_ROLE_KEYS = ("role", "from", "speaker", "author", "name", "sender")
_TEXT_KEYS = ("content", "value", "utterance", "text", "message", "body")

_LEARN_WORDS = frozenset(("weight", "train", "trained", "trainable", "training", "learn", "loss"))
"""Words in the names of flags for learned turns: OpenAI's ``weight``, ``train_on_turn``, ``loss_mask``."""
_UNCLEAR_WORDS = frozenset(("mask", "masked"))
"""Ambiguous flags: programs differ in whether true means that a turn is learned."""
_CALL_KEYS = ("tool_calls", "function_call")


@dataclass(frozen=True)
class _Turn:
    speaker: str
    text: str
    learned: bool | None
    """The value of its flag; None without a flag."""


def is_empty(value: Any) -> bool:
    """Whether a value is empty, as in columns of Parquet that only other rows use."""
    return value is None or (isinstance(value, str | list | tuple | Mapping) and not value)


def as_flag(name: str, value: Any) -> bool:
    """Whether a flag is set; `InputError` if its value is not a boolean."""
    text = str(value).strip().lower()
    if text in ("true", "1", "1.0"):
        return True
    if text in ("false", "0", "0.0"):
        return False
    raise InputError(f"has {name}: {value!r}, which is neither 0 nor 1", f"set {name} to 0 or 1, or remove it")


def turn_columns(row: Mapping[str, Any]) -> list[str]:
    """The columns of a row that are lists of turns."""
    return [str(name) for name, value in row.items() if isinstance(value, list) and any(map(_is_turn, value))]


def _is_turn(value: Any) -> bool:
    return isinstance(value, Mapping) and (_keys(value) is not None or _is_pair(value))


def _keys(turn: Mapping[str, Any]) -> tuple[str, str] | None:
    """The names of a turn's speaker and text."""
    role = next((key for key in _ROLE_KEYS if isinstance(turn.get(key), str)), None)
    text = next((key for key in _TEXT_KEYS if plain_text(turn.get(key)) is not None), None)
    if text is None and any(not is_empty(turn.get(key)) for key in _CALL_KEYS):
        text = next((key for key in _TEXT_KEYS if key in turn), "content")
    return None if role is None or text is None else (role, text)


def plain_text(value: Any) -> str | None:
    """A text, also from a list of text parts as in OpenAI's format; None for anything else, such as an image."""
    if isinstance(value, list) and value:
        parts = [part.get("text") if _part_type(part) == "text" else None for part in value]
        return "".join(map(str, parts)) if all(isinstance(part, str) for part in parts) else None
    return value if isinstance(value, str) else None


def _part_type(part: Any) -> str:
    """The type of a part of a message: ``text``, an image, a tool call, reasoning."""
    if not isinstance(part, Mapping):
        return type(part).__name__
    kind = str(part.get("type") or next((name for name, value in part.items() if not is_empty(value)), "text"))
    return "text" if kind in ("text", "input_text", "output_text") else kind


def _is_pair(turn: Mapping[str, Any]) -> bool:
    """Whether a turn holds a user's text and the reply under the names of their roles (Firefly)."""
    return {_ROLES.get(str(key).lower()) for key in turn} >= {"user", "assistant"}


def read_turns(turns: Sequence[Any]) -> list[dict[str, Any]]:
    """Messages with ``role`` and ``content``, and ``weight: 0`` for turns that are not learned.

    Raises:
        InputError: a turn is not supported; the message has its number.
    """
    parts = [part for number, turn in enumerate(turns, start=1) for part in _divided(turn, number)]
    messages: list[dict[str, Any]] = []
    for role, turn in zip(_roles([turn.speaker for turn in parts]), parts, strict=True):
        ignored = {"weight": 0} if role == "assistant" and turn.learned is False else {}
        if not messages or messages[-1]["role"] != role:
            messages.append({"role": role, "content": turn.text, **ignored})
            continue
        if messages[-1].get("weight", 1) != ignored.get("weight", 1):
            raise InputError(
                "has consecutive replies, of which only some are learned", "put a user message between them"
            )
        messages[-1]["content"] += f"\n{turn.text}"
    return messages


def _divided(turn: Any, number: int) -> Iterator[_Turn]:
    if isinstance(turn, Mapping) and _keys(turn) is None and _is_pair(turn):
        for key, text in turn.items():
            if str(key).lower() in _ROLES and isinstance(text, str) and text:
                yield _Turn(str(key), text, None)
        return
    keys = _keys(turn) if isinstance(turn, Mapping) else None
    if keys is None:
        if isinstance(turn, Mapping) and (other := _other_part(turn)):
            raise InputError(f"has a part in turn {number} that is not text ({other})", "remove the row")
        raise InputError(
            f"has a turn without speaker and text (number {number})", 'write {"role": "user", "content": "…"}'
        )
    if called := next((key for key in _CALL_KEYS if not is_empty(turn.get(key))), None):
        raise InputError(f"has {called} in turn {number}, and tool calls are not supported", "remove the row")
    yield _Turn(str(turn[keys[0]]).strip(), plain_text(turn[keys[1]]) or "", _is_learned(turn))


def _other_part(turn: Mapping[str, Any]) -> str | None:
    """The type of the first part of a turn that is not text."""
    parts = next((value for key in _TEXT_KEYS if isinstance(value := turn.get(key), list)), [])
    return next((kind for part in parts if (kind := _part_type(part)) != "text"), None)


def _is_learned(turn: Mapping[str, Any]) -> bool | None:
    learn = _learn_keys(turn)
    unclear = [key for key in _keys_of_words(turn, _UNCLEAR_WORDS) if key not in learn]
    if unclear:
        raise InputError(f"has {unclear[0]} in a turn, whose meaning is ambiguous", "replace it with weight: 0 or 1")
    flags = [as_flag(key, turn[key]) for key in learn]
    return all(flags) if flags else None


def _learn_keys(turn: Mapping[str, Any]) -> list[str]:
    return _keys_of_words(turn, _LEARN_WORDS)


def _keys_of_words(turn: Mapping[str, Any], words: Collection[str]) -> list[str]:
    """The keys of a turn that have a value, and one of the words in their names."""
    return [key for key, value in turn.items() if not is_empty(value) and set(str(key).lower().split("_")) & set(words)]


def _roles(speakers: Sequence[str]) -> list[str]:
    """The role of each turn. Two unknown speakers are the user and the assistant, in the order in which they speak.

    If a "system" speaks several times and no assistant does, it is the assistant. The role of an unknown speaker in
    addition to a user or an assistant is ambiguous: it may be a tool.
    """
    found = [_ROLES.get(speaker.lower()) for speaker in speakers]
    if "assistant" not in found and found.count("system") > 1:
        found = ["assistant" if role == "system" else role for role in found]
    strangers = list(dict.fromkeys(speaker for speaker, role in zip(speakers, found, strict=True) if role is None))
    if len(strangers) > 2 or (strangers and not {"user", "assistant"}.isdisjoint(found)):
        raise InputError(
            f"has speakers with unknown roles ({', '.join(strangers[:5])})",
            "name them user and assistant; tool messages are not supported",
        )
    named = dict(zip(strangers, ("user", "assistant"), strict=False))
    return [role or named[speaker] for speaker, role in zip(speakers, found, strict=True)]


def unused_in_turns(turns: Sequence[Any]) -> Iterator[str]:
    """The fields of turns that are not used, once each."""
    seen: dict[str, None] = {}
    for turn in turns:
        if not isinstance(turn, Mapping) or (keys := _keys(turn)) is None:
            continue
        reply = _ROLES.get(str(turn[keys[0]]).strip().lower()) == "assistant"
        obeyed = {key for key in _learn_keys(turn) if reply or not as_flag(key, turn[key])}
        seen |= {str(key): None for key, value in turn.items() if key not in {*keys, *obeyed} and not is_empty(value)}
    yield from seen
