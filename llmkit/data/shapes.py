"""From rows as they are found to the columns of a task.

The task's columns are: ``text``, or ``prompt`` and ``completion`` (text generation); ``document``, ``summary``;
``question``, ``context``, ``answers`` (``{"text": […], "answer_start": […]}``, empty lists if there is no answer);
``messages``; ``source``, ``target``. Where a row has several targets, all of them are its ``references``.

Knows the shapes that data have in the wild. Does not know files (`llmkit.data.sources`), nor how the shape of some data
is found (`llmkit.data.proposals`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from llmkit.config.recipe import SourceSection
from llmkit.data.conversations import as_flag, is_empty, plain_text, read_turns, unused_in_turns
from llmkit.data.flags import obeyed_flags, refuse_flagged, refuse_preferences
from llmkit.data.rows import Record
from llmkit.data.sources import open_source
from llmkit.errors import InputError
from llmkit.tasks.question_answering import to_answers

__all__ = ["INPUTS", "TARGETS", "look_up", "mapped_rows", "two_ways"]

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
            refuse_preferences(record.row, source.columns, task)
            for suffix, row in convert(record.row, source, task):
                used = _used(record.row, source, task)
                others = {name: value for name, value in record.row.items() if name not in used}
                refuse_flagged(others, row)
                unused = _unused(record.row, {*used, *obeyed_flags(others, row)})
                yield Record(record.where + suffix, row, unused=tuple(unused))
        except InputError as error:
            yield Record(record.where, None, InputError(f"{record.where} {error.problem}", error.fix))


def look_up(row: Mapping[str, Any], path: str, missing: Any = None) -> Any:
    """The value of a column; ``a.b`` looks into an object where no column has that name."""
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        value = value.get(part, missing) if isinstance(value, Mapping) else missing
    return value


# What is used of a row.


def _used(row: Mapping[str, Any], source: SourceSection, task: str) -> set[str]:
    """The columns that a row is made of, by their paths."""
    match source.shape:
        case "squad":
            names = {"paragraphs", "qas", "question", "context", "answers", "answer_start", "is_impossible"}
        case "alpaca":
            names = {"instruction", "input", "output", "system", "history"}
        case shape if shape == "messages" or task not in TARGETS:  # dialogue has no columns of its own
            names = {"system", *_conversation(row, source.columns).values()}
        case _:
            extras = _ANSWER_EXTRAS if task == "question-answering" else ()
            names = {*_named(row, source, task).values(), *(source.columns.get(name, name) for name in extras)}
    return names | {"id"}


def _unused(row: Mapping[str, Any], used: Collection[str]) -> Iterator[str]:
    """The columns that something is in, and that are not used; of a list of turns or questions, their fields."""
    for name, value in row.items():
        inner = {path.partition(".")[2] for path in used if path.startswith(f"{name}.")}
        if is_empty(value):
            continue
        if name in used:
            yield from (f"{name}.{field}" for field in unused_in_turns(value if isinstance(value, list) else ()))
        elif inner and isinstance(value, Mapping):
            yield from (f"{name}.{field}" for field in _unused(value, inner))
        else:
            yield str(name)


# Named columns.


def _named(row: Mapping[str, Any], source: SourceSection, task: str) -> dict[str, str]:
    """From the columns of the task that a row has to where they are in it."""
    names: tuple[str, ...] = (*INPUTS[task], TARGETS[task])
    if task == "text-generation":
        names = ("text",) if _is_plain(row, source.columns) else ("prompt", "completion")
    return {name: source.columns.get(name, name) for name in names}


def _columns(row: Mapping[str, Any], source: SourceSection, task: str) -> Found:
    if task not in TARGETS:  # the one column of a conversation is its messages
        yield from _messages(row, source, task)
        return
    result: dict[str, Any] = {}
    for name, path in _named(row, source, task).items():
        value = look_up(row, path, _MISSING)
        if value is None and name != "answers":
            raise InputError(f"has null as its {name}", "give text")
        if value is _MISSING:
            raise InputError(
                f"has no column {path!r} (its columns: {', '.join(map(str, row))})",
                f"say which one is the {name}: data.train.columns: {{{name}: …}}",
            )
        if name == "answers":
            start, impossible = (look_up(row, source.columns.get(extra, extra)) for extra in _ANSWER_EXTRAS)
            result[name] = _answers(value, start, impossible)
        elif name == TARGETS[task]:
            result |= _target(name, value)
        else:
            result[name] = _text(name, value, source.join)
    if row.get("id") is not None:
        result["id"] = row["id"]
    yield "", result


def _is_plain(row: Mapping[str, Any], columns: Mapping[str, str]) -> bool:
    """Whether a row is text to be learned whole, and not a prompt with its completion."""
    if named := columns.keys() & {"text", "prompt", "completion"}:
        if "text" in named and len(named) > 1:
            raise InputError("has both text and a prompt with its completion named", "name one of them in columns")
        return "text" in named
    present = {name for name in ("text", "prompt", "completion") if look_up(row, name) is not None}
    if present >= {"prompt", "completion"}:
        if not is_empty(look_up(row, "text")):
            raise two_ways("prompt", "completion")
        return False
    return "text" in present


def two_ways(prompt: str, completion: str) -> InputError:
    """The error of a row that can be learned as plain text, or as a prompt and its completion."""
    return InputError(
        f"has a text beside {prompt} and {completion}, and only one of them can be learned",
        f"say which in a recipe: data.train.columns: {{text: text}} or {{prompt: {prompt}, completion: {completion}}}",
    )


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


_MISSING = object()
_ANSWER_EXTRAS = ("answer_start", "is_impossible")


def _answers(value: Any, start: Any, impossible: Any) -> dict[str, list[Any]]:
    if impossible is not None and as_flag("is_impossible", impossible):
        return to_answers(None)
    return to_answers(value, start)


def _squad(row: Mapping[str, Any], _: SourceSection, __: str) -> Found:
    """SQuAD v1.1 and v2.0, CMRC 2018: an article with paragraphs with questions; or a paragraph, or a question."""
    if "paragraphs" not in row and "qas" not in row:
        yield "", _question(row, row.get("context"))
        return
    paragraphs = row.get("paragraphs", [row])
    for paragraph in paragraphs if isinstance(paragraphs, list) else [paragraphs]:
        context = paragraph.get("context") if isinstance(paragraph, Mapping) else None
        if not isinstance(context, str) or not isinstance(paragraph.get("qas"), list):
            raise InputError("has a paragraph without context and qas", "give SQuAD's form")
        for number, question in enumerate(paragraph["qas"], start=1):
            if not isinstance(question, Mapping):
                raise InputError(f"has a question that is not an object (number {number})", "give SQuAD's form")
            yield f", question {question.get('id', number)}", _question(question, context)


def _question(item: Mapping[str, Any], context: Any) -> dict[str, Any]:
    question = item.get("question")
    if not isinstance(question, str) or not isinstance(context, str):
        raise InputError("has a question without its text or its context", "give SQuAD's form")
    impossible = item.get("is_impossible")
    if "answers" not in item and impossible is None:
        raise InputError("has a question without answers", "write answers: [] if its text holds none")
    identity = {"id": item["id"]} if item.get("id") is not None else {}
    answers = _answers(item.get("answers"), item.get("answer_start"), impossible)
    return {"question": question, "context": context, "answers": answers, **identity}


# Conversations.


def _messages(row: Mapping[str, Any], source: SourceSection, task: str) -> Found:
    """A list of turns; or a prompt and a completion, of which one is such a list and the second alone is learned."""
    if task == "text-generation":
        raise InputError("is a conversation", "use the task dialogue")
    found = {name: look_up(row, path) for name, path in _conversation(row, source.columns).items()}
    turns = found.get("messages")
    if "messages" not in found:
        prompt = [
            {**turn, "weight": 0} if isinstance(turn, Mapping) else turn for turn in _as_turns(found["prompt"], "user")
        ]
        turns = [*prompt, *_as_turns(found["completion"], "assistant")]
    if not isinstance(turns, list) or not turns:
        name = source.columns.get("messages", "messages")
        raise InputError(f"has no list of messages in {name!r}", "name it: data.train.columns: {messages: …}")
    messages, opening = read_turns(turns), plain_text(row.get("system"))
    if opening is None and not is_empty(row.get("system")):
        raise InputError("has a system message that is not text", "write it as text")
    if opening and opening.strip():
        said = [messages.pop(0)["content"]] if messages[0]["role"] == "system" else []
        messages = [{"role": "system", "content": "\n".join([opening, *said])}, *messages]
    yield "", {"messages": messages}


def _conversation(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, str]:
    """Where a conversation is: ``messages``, or ``prompt`` and ``completion``."""
    pair = {name: columns.get(name, name) for name in ("prompt", "completion")}
    named = "messages" in columns or not is_empty(row.get("messages"))
    if (named and not columns.keys() & pair.keys()) or any(is_empty(look_up(row, path)) for path in pair.values()):
        return {"messages": columns.get("messages", "messages")}
    return pair


def _as_turns(value: Any, speaker: str) -> list[Any]:
    if isinstance(value, str):
        return [{"role": speaker, "content": value}]
    return value if isinstance(value, list) else [value]


def _alpaca(row: Mapping[str, Any], _: SourceSection, task: str) -> Found:
    """``instruction``, ``input``, ``output`` (Taori et al. 2023), with LLaMA-Factory's ``system`` and ``history``."""
    parts = [row.get("instruction"), row.get("input")]
    asked = "\n\n".join(part for part in parts if isinstance(part, str) and part.strip())
    answer, system, history = row.get("output"), row.get("system"), row.get("history") or []
    if not asked or not isinstance(answer, str):
        raise InputError("has no instruction or no output", "fix the row")
    if task == "text-generation":
        if system or history:
            raise InputError("has a system message or a history, which are turns", "use the task dialogue")
        yield "", {"prompt": asked, "completion": answer}
        return
    messages = [{"role": "system", "content": str(system)}] if system else []
    for pair in (*(history if isinstance(history, list) else [history]), (asked, answer)):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise InputError("has a history that is not pairs of texts", "fix the row")
        messages += [{"role": "user", "content": str(pair[0])}, {"role": "assistant", "content": str(pair[1])}]
    yield "", {"messages": messages}


_SHAPES: dict[str, Callable[[Mapping[str, Any], SourceSection, str], Found]] = {
    "columns": _columns,
    "squad": _squad,
    "messages": _messages,
    "alpaca": _alpaca,
}
