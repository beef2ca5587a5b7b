"""Conversations: lists of turns, prompts with completions, and instructions with their history.

Beside them a row may have a system message, tools, and variables of the chat template.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

from llmkit.config.recipe import SourceSection
from llmkit.data.conversations import is_empty, read_turns, turn_columns, turn_tools
from llmkit.data.shapes.base import Found, InputPlan, Rows, Shape, Suggested, by_name, look_up, nothing_fits, renamed
from llmkit.errors import InputError
from llmkit.tasks import Task
from llmkit.tasks.messages import plain_text, to_tools

__all__ = ["Alpaca", "Messages", "PairOfTurns"]

_PAIR = ("prompt", "completion")
_SYSTEM = ("system", "system_prompt", "system_message")
_TOOLS = ("tools", "tool_defs", "functions")
_OPTIONS = "chat_template_kwargs"
"""Variables of the chat template for one row, as in TRL."""


class Messages(Shape):
    """A list of turns; or a prompt and a completion, one of them a list of turns. Only the completion is learned."""

    written = "messages"

    def suggest(self, source: SourceSection, rows: Rows, task: Task) -> Suggested | None:
        row, named = _row_with_turns(rows), source.columns
        if named.keys() & {"messages", *_PAIR}:
            return self._suggested(named)
        found = turn_columns(row)
        if "messages" in found or (not found and isinstance(row.get("messages"), list)):
            return self._suggested(named)
        pair = by_name(row, _PAIR, {}, task)
        if len(pair) == 2 and set(pair.values()) & set(found):
            return self._suggested(renamed(pair, named))
        if len(found) > 1:
            raise _several(found, f"name the one to learn: data.train.columns: {{messages: {found[0]}}}")
        return self._suggested({**named, "messages": found[0]}) if found else None

    def plan_input(self, rows: Rows, columns: Mapping[str, str], task: Task) -> InputPlan | None:
        named = columns.get("messages")
        found = turn_columns(_row_with_turns(rows)) if named is None else [named]
        prompt = by_name(_row_with_turns(rows), ("prompt",), {}, task).get("prompt")
        if chosen := next((name for name in ("messages", prompt) if name in found), None):
            found = [chosen]
        if len(found) > 1:
            raise _several(found, f"name the one to continue: `column=messages={found[0]}`")
        if not found:
            return None
        others = {name: column for name, column in columns.items() if name != "messages"}
        return InputPlan(others, partial(_input_messages, path=found[0]))

    def _suggested(self, columns: Mapping[str, str]) -> Suggested:
        return Suggested({"shape": self.written, "columns": dict(columns)})

    def used(self, row: Mapping[str, Any], source: SourceSection, task: Task) -> set[str]:
        return {"id", *_places(row, source.columns).values(), *_places_beside(row, source.columns).values()}

    def convert(self, row: Mapping[str, Any], source: SourceSection, task: Task) -> Found:
        found = {name: look_up(row, path) for name, path in _places(row, source.columns).items()}
        turns = found.get("messages")
        if "messages" not in found:
            prompt = [
                {**turn, "weight": 0} if isinstance(turn, Mapping) else turn
                for turn in _as_turns(found["prompt"], "user")
            ]
            turns = [*prompt, *_as_turns(found["completion"], "assistant")]
        if not isinstance(turns, list) or not turns:
            name = source.columns.get("messages", "messages")
            raise InputError(f"has no list of messages in {name!r}", "name it: data.train.columns: {messages: …}")
        yield "", _conversation(row, source.columns, turns)


def _conversation(row: Mapping[str, Any], columns: Mapping[str, str], turns: Sequence[Any]) -> dict[str, Any]:
    """The columns of the task: messages, and tools and variables of the template if there are any."""
    beside = {name: look_up(row, path) for name, path in _places_beside(row, columns).items()}
    given, own = beside.get("tools"), turn_tools(turns)
    if given is not None and own is not None:
        raise InputError("has tools in a turn and in a column", "remove one of them")
    tools, options = to_tools(own if given is None else given, "has"), beside.get(_OPTIONS)
    return {
        "messages": _messages(turns, beside.get("system")),
        **({"tools": list(tools)} if tools else {}),
        **({} if is_empty(options) else {_OPTIONS: _as_object(options)}),
    }


def _places_beside(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, str]:
    """The paths of what a row has beside its turns."""
    found = {}
    for name, usual in (("system", _SYSTEM), ("tools", _TOOLS), (_OPTIONS, (_OPTIONS,))):
        places = [columns[name]] if name in columns else usual
        if path := next((place for place in places if not is_empty(look_up(row, place))), None):
            found[name] = path
    return found


def _as_object(value: Any) -> Mapping[str, Any]:
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    if not isinstance(found, Mapping):
        raise InputError(f"has {_OPTIONS} that are not an object", 'write {"name": value}')
    return found


def _messages(turns: Sequence[Any], system: Any) -> list[dict[str, Any]]:
    """Messages from turns and the system message beside them."""
    messages, opening = read_turns(turns), plain_text(system)
    if opening is None and not is_empty(system):
        raise InputError("has a system message that is not text", "write it as text")
    if opening and opening.strip():
        own = [messages.pop(0)["content"]] if messages and messages[0]["role"] == "system" else []
        messages = [{"role": "system", "content": "\n".join([opening, *own])}, *messages]
    return messages


def _several(columns: Sequence[str], fix: str) -> InputError:
    return InputError(f"a row has several conversations ({', '.join(columns)})", fix, code="column_mismatch")


def _input_messages(row: Mapping[str, Any], path: str) -> Found:
    """The conversation up to the last message of the user; the reply to it, if it has one, becomes a column."""
    turns = look_up(row, path)
    if not isinstance(turns, list) or not turns:
        yield "", {**_without(row, {path}), "messages": turns}
        return
    others = _without(row, {path, *_places_beside(row, {}).values()})
    found = _conversation(row, {}, turns)
    messages = found["messages"]
    if messages[-1]["role"] == "assistant" and "reply" not in others:
        reply = messages.pop()
        others["reply"] = reply["content"] if set(reply) <= {"role", "content", "weight"} else reply
    yield "", {**others, **found}


class PairOfTurns(Messages):
    """A prompt and a completion that are texts, detected by their names."""

    def suggest(self, source: SourceSection, rows: Rows, task: Task) -> Suggested | None:
        pair = by_name(_row_with_turns(rows), _PAIR, {}, task)
        if len(pair) == 2:
            return self._suggested(renamed(pair, {}))
        if any(isinstance(value, str) and value.lstrip().startswith("[{") for value in rows[0].values()):
            raise InputError("the turns are a string", "write them as a list, such as in JSON Lines")
        form = "{messages: …}, a list with role and content, or {prompt: …, completion: …}"
        raise nothing_fits(rows, task, ["messages"], f"name them: data.train.columns: {form}")

    def plan_input(self, rows: Rows, columns: Mapping[str, str], task: Task) -> InputPlan | None:
        if "messages" in rows[0] or "messages" in columns:
            return None
        found = by_name(rows[0], ("prompt",), {}, task)
        return InputPlan({"messages": found["prompt"], **columns}) if found else None


class Alpaca(Shape):
    """``instruction``, ``input``, ``output`` (Taori et al. 2023), with LLaMA-Factory's ``system`` and ``history``."""

    written = "alpaca"

    def suggest(self, source: SourceSection, rows: Rows, task: Task) -> Suggested | None:
        if source.columns.keys() & {"text", *_PAIR} or not {"instruction", "output"} <= _row_with_turns(rows).keys():
            return None
        return Suggested({"shape": self.written})

    def used(self, row: Mapping[str, Any], source: SourceSection, task: Task) -> set[str]:
        beside = _places_beside(row, {}).values() if "messages" in task.aliases else {"system"}
        return {"instruction", "input", "output", "history", "id", *beside}

    def convert(self, row: Mapping[str, Any], source: SourceSection, task: Task) -> Found:
        prompt, answer = _instruction(row, task), row.get("output")
        if not prompt or not isinstance(answer, str):
            raise InputError("has no instruction or no output", "fix the row")
        if "messages" in task.aliases:
            yield "", _conversation(row, {}, [*_history(row), *_exchange(prompt, answer)])
            return
        if row.get("system") or row.get("history"):
            raise InputError("has a system message or a history, which are turns", "use the task dialogue")
        yield "", {"prompt": prompt, "completion": answer}

    def plan_input(self, rows: Rows, columns: Mapping[str, str], task: Task) -> InputPlan | None:
        if columns.keys() & set(task.columns) or not {"instruction", "input"} <= rows[0].keys():
            return None
        return InputPlan(columns, partial(self._input, task=task))

    def _input(self, row: Mapping[str, Any], task: Task) -> Found:
        """The instruction with its input; its output stays a column."""
        parts = {"instruction", "input"}
        if "messages" not in task.columns:
            yield "", {**_without(row, parts - {*task.further_columns}), task.input_column: _instruction(row, task)}
            return
        beside = set(_places_beside(row, {}).values())
        turns = [*_history(row), {"role": "user", "content": _instruction(row, task)}]
        yield "", {**_without(row, parts | {"history"} | beside), **_conversation(row, {}, turns)}


def _instruction(row: Mapping[str, Any], task: Task) -> str:
    """The instruction with its input, unless the prompt's template has a place for that."""
    parts = [row.get("instruction"), None if "input" in task.further_columns else row.get("input")]
    return "\n\n".join(part for part in parts if isinstance(part, str) and part.strip())


def _history(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The exchanges before an instruction."""
    history = row.get("history") or []
    messages = []
    for pair in history if isinstance(history, list) else [history]:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise InputError("has a history that is not pairs of texts", "fix the row")
        messages += _exchange(*pair)
    return messages


def _exchange(prompt: Any, reply: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": str(prompt)}, {"role": "assistant", "content": str(reply)}]


def _without(row: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


def _row_with_turns(rows: Rows) -> Mapping[str, Any]:
    """The first row with turns, otherwise the first row."""
    return next((row for row in rows if turn_columns(row)), rows[0])


def _places(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, str]:
    """The paths of a conversation: ``messages``, or ``prompt`` and ``completion``."""
    pair = {name: columns.get(name, name) for name in _PAIR}
    named = "messages" in columns or not is_empty(row.get("messages"))
    if (named and not columns.keys() & pair.keys()) or any(is_empty(look_up(row, path)) for path in pair.values()):
        return {"messages": columns.get("messages", "messages")}
    return pair


def _as_turns(value: Any, speaker: str) -> list[Any]:
    if isinstance(value, str):
        return [{"role": speaker, "content": value}]
    return value if isinstance(value, list) else [value]
