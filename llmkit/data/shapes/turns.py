"""Conversations: lists of turns, prompts with completions, and instructions with their history."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmkit.config.recipe import SourceSection
from llmkit.data.conversations import is_empty, plain_text, read_turns, turn_columns
from llmkit.data.shapes.base import Found, Rows, Shape, Suggested, by_name, look_up, nothing_fits, renamed
from llmkit.errors import InputError
from llmkit.tasks import Task

__all__ = ["Alpaca", "Messages", "PairOfTurns"]

_PAIR = ("prompt", "completion")


class Messages(Shape):
    """A list of turns; or a prompt and a completion, of which one is such a list and the second alone is learned."""

    written = "messages"

    def suggest(self, source: SourceSection, rows: Rows, task: Task) -> Suggested | None:
        row, given = _telling(rows), source.columns
        if given.keys() & {"messages", *_PAIR}:
            return self._suggested(given)
        found = turn_columns(row)
        if "messages" in found or (not found and isinstance(row.get("messages"), list)):
            return self._suggested({})
        pair = by_name(row, _PAIR, {}, task)
        if len(pair) == 2 and set(pair.values()) & set(found):
            return self._suggested(renamed(pair, given))
        if len(found) > 1:
            raise InputError(
                f"there are several conversations in a row ({', '.join(found)})",
                f"name the one to learn: data.train.columns: {{messages: {found[0]}}}",
            )
        return self._suggested({"messages": found[0]}) if found else None

    def _suggested(self, columns: Mapping[str, str]) -> Suggested:
        return Suggested({"shape": self.written, "columns": dict(columns)})

    def used(self, row: Mapping[str, Any], source: SourceSection, task: Task) -> set[str]:
        return {"system", "id", *_places(row, source.columns).values()}

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
        messages, opening = read_turns(turns), plain_text(row.get("system"))
        if opening is None and not is_empty(row.get("system")):
            raise InputError("has a system message that is not text", "write it as text")
        if opening and opening.strip():
            said = [messages.pop(0)["content"]] if messages[0]["role"] == "system" else []
            messages = [{"role": "system", "content": "\n".join([opening, *said])}, *messages]
        yield "", {"messages": messages}


class PairOfTurns(Messages):
    """The same with a prompt and a completion that are texts, known by their names alone."""

    def suggest(self, source: SourceSection, rows: Rows, task: Task) -> Suggested | None:
        pair = by_name(_telling(rows), _PAIR, {}, task)
        if len(pair) == 2:
            return self._suggested(renamed(pair, {}))
        if any(isinstance(value, str) and value.lstrip().startswith("[{") for value in rows[0].values()):
            raise InputError("the turns are in a text", "write them as a list, such as in JSON Lines")
        form = "{messages: …}, a list with role and content, or {prompt: …, completion: …}"
        raise nothing_fits(rows, task, ["messages"], f"name them: data.train.columns: {form}")


class Alpaca(Shape):
    """``instruction``, ``input``, ``output`` (Taori et al. 2023), with LLaMA-Factory's ``system`` and ``history``."""

    written = "alpaca"

    def suggest(self, source: SourceSection, rows: Rows, task: Task) -> Suggested | None:
        if source.columns.keys() & {"text", *_PAIR} or not {"instruction", "output"} <= _telling(rows).keys():
            return None
        return Suggested({"shape": self.written})

    def used(self, row: Mapping[str, Any], source: SourceSection, task: Task) -> set[str]:
        return {"instruction", "input", "output", "system", "history", "id"}

    def convert(self, row: Mapping[str, Any], source: SourceSection, task: Task) -> Found:
        parts = [row.get("instruction"), row.get("input")]
        asked = "\n\n".join(part for part in parts if isinstance(part, str) and part.strip())
        answer, system, history = row.get("output"), row.get("system"), row.get("history") or []
        if not asked or not isinstance(answer, str):
            raise InputError("has no instruction or no output", "fix the row")
        if "messages" not in task.aliases:
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


def _telling(rows: Rows) -> Mapping[str, Any]:
    """The first row with turns, if there is one."""
    return next((row for row in rows if turn_columns(row)), rows[0])


def _places(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, str]:
    """Where a conversation is: ``messages``, or ``prompt`` and ``completion``."""
    pair = {name: columns.get(name, name) for name in _PAIR}
    named = "messages" in columns or not is_empty(row.get("messages"))
    if (named and not columns.keys() & pair.keys()) or any(is_empty(look_up(row, path)) for path in pair.values()):
        return {"messages": columns.get("messages", "messages")}
    return pair


def _as_turns(value: Any, speaker: str) -> list[Any]:
    if isinstance(value, str):
        return [{"role": speaker, "content": value}]
    return value if isinstance(value, list) else [value]
