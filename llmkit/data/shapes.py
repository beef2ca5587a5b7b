"""From rows as they are found to the columns of a task.

The task's columns are: ``text``, or ``prompt`` and ``completion`` (text generation); ``document``, ``summary``;
``question``, ``context``, ``answers`` (``{"text": […], "answer_start": […]}``, empty lists if there is no answer);
``messages``; ``source``, ``target``. Where a row has several targets, all of them are its ``references``.

Knows the shapes that data have in the wild. Does not know files (`llmkit.data.sources`), nor how the shape of some data
is found (`llmkit.data.proposals`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from llmkit.config.recipe import SourceSection
from llmkit.data.rows import Record
from llmkit.data.sources import open_source
from llmkit.errors import InputError

__all__ = ["INPUTS", "TARGETS", "find_messages", "look_up", "mapped_rows"]

INPUTS: dict[str, tuple[str, ...]] = {
    "text-generation": ("text", "prompt"),
    "summarization": ("document",),
    "question-answering": ("question", "context"),
    "dialogue": ("messages",),
    "translation": ("source",),
}
"""The columns of each task that a model reads."""

TARGETS: dict[str, str] = {
    "text-generation": "completion",
    "summarization": "summary",
    "question-answering": "answers",
    "translation": "target",
}
"""The column that a model learns to write; those of a dialogue are in its messages."""

Found = Iterator[tuple[str, dict[str, Any]]]
"""What is added to the place of a row, and the row in the task's columns."""


def mapped_rows(source: SourceSection, task: str) -> Iterator[Record]:
    """The rows of a source whose shape is known, in the columns of the task. A bad one is a record with an error."""
    convert = _SHAPES[source.shape or "columns"]
    for record in open_source(source):
        if record.row is None:
            yield record
            continue
        try:
            for suffix, row in convert(record.row, source, task):
                yield Record(record.where + suffix, row)
        except InputError as error:
            yield Record(record.where, None, InputError(f"{record.where} {error.problem}", error.fix))


def look_up(row: Mapping[str, Any], path: str) -> Any:
    """The value of a column; ``a.b`` looks into an object where no column has that name. None if there is none."""
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


# Named columns.


def _columns(row: Mapping[str, Any], source: SourceSection, task: str) -> Found:
    target = TARGETS.get(task)
    named = {name: source.columns.get(name, name) for name in (*INPUTS[task], *((target,) if target else ()))}
    if task == "text-generation":
        plain = "text" in source.columns or ("prompt" not in source.columns and look_up(row, "text") is not None)
        named = {name: path for name, path in named.items() if (name == "text") == plain}
    result: dict[str, Any] = {}
    for name, path in named.items():
        value = look_up(row, path)
        if value is None and name != "answers":
            raise InputError(
                f"has no column {path!r} (its columns: {', '.join(map(str, row))})",
                f"say which one is the {name}: data.train.columns: {{{name}: …}}",
            )
        if name == "answers":
            result[name] = _answers(value, look_up(row, source.columns.get("answer_start", "answer_start")))
        elif name == target:
            result |= _target(name, value)
        else:
            result[name] = _text(name, value, source.join)
    if row.get("id") is not None:
        result["id"] = row["id"]
    yield "", result


def _text(name: str, value: Any, join: str | None) -> str:
    if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        if join is None and len(value) != 1:
            raise InputError(f"has a list of texts as its {name}", "say what joins them, such as data.train.join: ' '")
        return (join or "").join(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(f"has a {type(value).__name__} as its {name}", "give text")
    return str(value)


def _target(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        several = {"references": list(value)} if len(value) > 1 else {}
        return {name: value[0] if value else "", **several}
    return {name: _text(name, value, None)}


# Questions.


def _answers(value: Any, start: Any = None) -> dict[str, list[Any]]:
    """What data sets call answers: a text, texts, ``{"text": […], "answer_start": […]}``, or a list of such."""
    if isinstance(value, str):
        value = [value] if value.strip() else []
    if isinstance(value, Mapping):
        texts, starts = value.get("text"), value.get("answer_start")
        texts = [texts] if isinstance(texts, str) else list(texts or ())
        starts = [starts] if isinstance(starts, int) else list(starts or ())
    else:
        items = list(value) if isinstance(value, list | tuple) else [value] if value is not None else []
        objects = [item for item in items if isinstance(item, Mapping)]
        texts = [item.get("text") for item in objects] if objects else items
        starts = [item.get("answer_start") for item in objects]
    if start is not None and not starts:
        starts = list(start) if isinstance(start, list | tuple) else [start]
    if not all(isinstance(text, str | int | float) and not isinstance(text, bool) for text in texts):
        raise InputError("has answers that are not text", 'write {"text": ["…"], "answer_start": [0]}')
    if len(starts) != len(texts) or not all(isinstance(place, int) for place in starts):
        starts = []  # they are looked for in the text
    return {"text": [str(text) for text in texts], "answer_start": starts}


def _squad(row: Mapping[str, Any], _: SourceSection, __: str) -> Found:
    """SQuAD v1.1 and v2.0, CMRC 2018: an article with paragraphs with questions; or a paragraph, or a question."""
    if "paragraphs" not in row and "qas" not in row:
        yield "", _question(row, row.get("context"))
        return
    for paragraph in row.get("paragraphs", [row]):
        context = paragraph.get("context") if isinstance(paragraph, Mapping) else None
        if not isinstance(context, str) or not isinstance(paragraph.get("qas"), list):
            raise InputError("has a paragraph without context and qas", "give SQuAD's form")
        for number, question in enumerate(paragraph["qas"], start=1):
            yield f", question {question.get('id', number)}", _question(question, context)


def _question(item: Mapping[str, Any], context: Any) -> dict[str, Any]:
    question = item.get("question")
    if not isinstance(question, str) or not isinstance(context, str):
        raise InputError("has a question without its text or its context", "give SQuAD's form")
    answers = [] if item.get("is_impossible") else item.get("answers")
    identity = {"id": item["id"]} if item.get("id") is not None else {}
    return {"question": question, "context": context, "answers": _answers(answers), **identity}


# Conversations.

_ROLES = {
    **dict.fromkeys(("user", "human", "customer", "client", "prompter", "usr", "用户", "客户", "问"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "chatbot", "model", "ai", "agent", "助手", "客服", "答"), "assistant"),
    **dict.fromkeys(("system", "sys", "developer", "系统"), "system"),
}
_ROLE_KEYS = ("role", "from", "speaker", "author", "name", "sender")
_TEXT_KEYS = ("content", "value", "utterance", "text", "message", "body")


def find_messages(row: Mapping[str, Any]) -> str | None:
    """The column of a row that is a list of turns, each with a speaker and a text."""
    for name, value in row.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping) and _keys(value[0]) is not None:
            return str(name)
    return None


def _keys(turn: Mapping[str, Any]) -> tuple[str, str] | None:
    role = next((key for key in _ROLE_KEYS if isinstance(turn.get(key), str)), None)
    text = next((key for key in _TEXT_KEYS if isinstance(turn.get(key), str)), None)
    return None if role is None or text is None else (role, text)


def _messages(row: Mapping[str, Any], source: SourceSection, task: str) -> Found:
    name = source.columns.get("messages", "messages")
    turns = look_up(row, name)
    if not isinstance(turns, list) or not turns:
        raise InputError(f"has no list of messages in {name!r}", "name it: data.train.columns: {messages: …}")
    said: list[tuple[str, str]] = []
    for number, turn in enumerate(turns, start=1):
        keys = _keys(turn) if isinstance(turn, Mapping) else None
        if keys is None:
            raise InputError(f"has a turn without speaker and text (number {number})", "mend the row")
        said.append((str(turn[keys[0]]).strip(), str(turn[keys[1]])))
    opening = row.get("system")
    messages = [{"role": "system", "content": opening}] if isinstance(opening, str) and opening.strip() else []
    for role, text in zip(_roles([speaker for speaker, _ in said]), (text for _, text in said), strict=True):
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += f"\n{text}"
        else:
            messages.append({"role": role, "content": text})
    if task == "text-generation":
        raise InputError("is a conversation", "use the task dialogue")
    yield "", {"messages": messages}


def _roles(speakers: Sequence[str]) -> list[str]:
    """The role of each turn. Where a "system" talks with the user throughout, it is the assistant."""
    found = [_ROLES.get(speaker.lower()) for speaker in speakers]
    if "assistant" not in found and found.count("system") > 1:
        found = ["assistant" if role == "system" else role for role in found]
    if None not in found:
        return [str(role) for role in found]
    strangers = list(dict.fromkeys(speaker for speaker, role in zip(speakers, found, strict=True) if role is None))
    free = [role for role in ("user", "assistant") if role not in found]
    if len(strangers) > len(free):
        raise InputError(
            f"has speakers whose roles are not known ({', '.join(strangers[:5])})", "use user and assistant"
        )
    named = dict(zip(strangers, free, strict=False))
    return [role or named[speaker] for speaker, role in zip(speakers, found, strict=True)]


def _alpaca(row: Mapping[str, Any], _: SourceSection, task: str) -> Found:
    """``instruction``, ``input``, ``output`` (Taori et al. 2023), with LLaMA-Factory's ``system`` and ``history``."""
    parts = [row.get("instruction"), row.get("input")]
    asked = "\n\n".join(part for part in parts if isinstance(part, str) and part.strip())
    answer, system, history = row.get("output"), row.get("system"), row.get("history") or []
    if not asked or not isinstance(answer, str):
        raise InputError("has no instruction or no output", "mend the row")
    if task == "text-generation":
        if system or history:
            raise InputError("has a system message or a history, which are turns", "use the task dialogue")
        yield "", {"prompt": asked, "completion": answer}
        return
    messages = [{"role": "system", "content": str(system)}] if system else []
    for pair in (*history, (asked, answer)):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise InputError("has a history that is not pairs of texts", "mend the row")
        messages += [{"role": "user", "content": str(pair[0])}, {"role": "assistant", "content": str(pair[1])}]
    yield "", {"messages": messages}


_SHAPES: dict[str, Callable[[Mapping[str, Any], SourceSection, str], Found]] = {
    "columns": _columns,
    "squad": _squad,
    "messages": _messages,
    "alpaca": _alpaca,
}
