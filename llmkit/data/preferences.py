"""Rows with a better and a worse answer, or with one answer and a label: their columns, and both as rows of one answer.

Knows the layouts of TRL, OpenAI, LLaMA-Factory, Axolotl and ms-swift. What a row with one answer looks like is known by
the shapes (`llmkit.data.shapes`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

from llmkit.data.column_names import find_column, look_up
from llmkit.data.conversations import as_flag, is_empty, read_turns, turn_columns
from llmkit.errors import InputError
from llmkit.tasks import Task
from llmkit.tasks.base import COMPLETION, LABEL, PROMPT, REJECTED

__all__ = ["GOOD", "answers_of", "method_for", "numbered_answers", "pair_columns", "texts_of", "with_one_answer"]

GOOD = ("label", "kto_tag", "kto_label", "desirable")
"""Columns that tell whether an answer is good, as in TRL and LLaMA-Factory."""
_WORSE = re.compile(
    r"reject(?:ed|ion)?|(?:non|un|dis|not)_?(?:preferred|chosen|desired)|(?:^|_)(?:worse|lose|loser|losing)(?:_|$)"
)
_BETTER = re.compile(r"chosen|preferred|(?:^|_)(?:better|win|winner|winning)(?:_|$)")
_NUMBERED = re.compile(r"(.*?)_?(?:\d|[abjkABJK])")
_CHOSEN = "chosen"
_Fields = Mapping[str, str]
"""The columns that the recipe sets for fields."""


def texts_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that can hold an answer."""
    return {
        str(name): value
        for name, value in row.items()
        if isinstance(value, str | list | Mapping) and not is_empty(value)
    }


def pair_columns(row: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The columns of the better and of the worse answer, by their names."""
    texts = texts_of(row)
    bad = {name: found for name in texts if (found := _WORSE.search(name.lower()))}
    good = {name: found for name in texts if name not in bad and (found := _BETTER.search(name.lower()))}

    def rank(name: str) -> tuple[bool, int]:
        """First conversations and names of answers, as opposed to ``chosen_model``; of these, the shortest name."""
        found = (bad | good)[name]
        rest = (name[: found.start()] + name[found.end() :]).lower().strip("_-. ")
        return isinstance(texts[name], str) and rest not in ("", *COMPLETION), len(name)

    return min(good, key=rank, default=None), min(bad, key=rank, default=None)


def numbered_answers(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """Two columns named like answers, with a number or letter at the end: ``response_0``, ``response_b``."""
    stems: dict[str, str] = {}
    for name in texts_of(row):
        if (found := _NUMBERED.fullmatch(name)) and find_column([found[1]], COMPLETION, ()):
            if found[1] in stems:
                return stems[found[1]], name
            stems[found[1]] = name
    return None


def _label_column(row: Mapping[str, Any], columns: _Fields) -> str | None:
    if LABEL in columns:
        return columns[LABEL]
    return next((name for name in GOOD if row.get(name) is not None), None)


def method_for(rows: Sequence[Mapping[str, Any]], columns: Collection[str], task: Task) -> str | None:
    """The method of tuning on preferences that rows are for: dpo, or kto; None if they have answers to learn."""
    if set(task.learned_columns or (task.target_column,)) & set(columns):
        return None
    if any(pair_columns(row)[1] is not None for row in rows):
        return "dpo"
    flags = next((found for name in GOOD if len(found := {str(row.get(name)).lower() for row in rows}) > 1), set())
    answered = all(turn_columns(row) or find_column(map(str, row), COMPLETION, ()) for row in rows)
    return "kto" if answered and flags in ({"true", "false"}, {"1", "0"}) else None


def with_one_answer(row: Mapping[str, Any], columns: _Fields, task: Task) -> dict[str, Any]:
    """A row as if it had no other answer, to detect its shape."""
    return next(answers_of(row, columns, task))[0]


def answers_of(
    row: Mapping[str, Any], columns: _Fields, task: Task
) -> Iterator[tuple[dict[str, Any], dict[str, Any] | bool]]:
    """The row with its better answer only, and with its worse answer only; or its one answer with its label.

    Raises:
        InputError: the row has other answers than the task learns from.
    """
    found = pair_columns(row)
    better, worse = columns.get(_CHOSEN, found[0]), columns.get(REJECTED, found[1])
    label = _label_column(row, columns) if task.learns_from == "labels" else None
    if label is not None and worse is None:
        flag = as_flag(label, look_up(row, label))
        yield {name: value for name, value in row.items() if name != label}, flag
        return
    if worse is None or is_empty(look_up(row, worse)):
        raise _no_preference(row, task)
    chosen, rejected = _rows_of_pair(row, better, worse, task, has_prompt="prompt" in columns)
    if task.learns_from == "labels":
        yield chosen, True
        yield rejected, False
    else:
        yield chosen, rejected


def _no_preference(row: Mapping[str, Any], task: Task) -> InputError:
    labels = task.learns_from == "labels"
    what = "no label of its answer and no rejected one" if labels else "no rejected answer"
    if pair := numbered_answers(row):
        columns = f"{{chosen: {pair[0]}, rejected: {pair[1]}}}"
        fix = f"if the first of its answers is always the better one, set data.train.columns: {columns}"
    else:
        columns = "{label: …}" if labels else "{chosen: …, rejected: …}"
        fix = f"name its columns in a recipe: data.train.columns: {columns}"
    return InputError(
        f"has {what}, which `method: {'kto' if labels else 'dpo'}` learns from",
        fix,
        "leave the recipe's `method` out, to learn the answers",
        code="not_a_preference",
    )


def _rows_of_pair(
    row: Mapping[str, Any], better: str | None, worse: str, task: Task, *, has_prompt: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The row with each of its answers."""
    rest = {name: value for name, value in row.items() if name not in (better, worse)}
    one, other = None if better is None else look_up(row, better), look_up(row, worse)
    if is_empty(one):
        return _beside_conversation(rest, other, worse)
    values: list[Any] = [[value] if isinstance(value, Mapping) else value for value in (one, other)]
    if "messages" in task.aliases and all(map(_is_conversation, values)):
        rest = _without_repeated_prompt(rest, values[0])
        return {**rest, "messages": values[0]}, {**rest, "messages": values[1]}
    if "messages" in task.aliases and (prompt := _prompt_turns(rest)) is not None:
        name, turns = prompt
        rest = {key: value for key, value in rest.items() if key != name} | _beside_turns(row[name])
        chosen, rejected = ({**rest, "messages": [*turns, *_as_replies(value)]} for value in values)
        return chosen, rejected
    if any(not isinstance(value, str) for value in values) and "messages" not in task.aliases:
        raise InputError("has messages as answers", "use the task dialogue", code="column_mismatch")
    answer = "output" if "instruction" in rest and "output" not in rest and "completion" in task.aliases else None
    answer = answer or ("completion" if "completion" in task.aliases else task.target_column)
    if answer == "completion" and not has_prompt and find_column(map(str, rest), PROMPT, ()) is None:
        rest, values = _implicit_prompt(rest, values)
    return {**rest, answer: values[0]}, {**rest, answer: values[1]}


def _beside_conversation(rest: dict[str, Any], other: Any, worse: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rows of a conversation whose last reply is the better one (ms-swift)."""
    name = next(iter(turn_columns(rest)), None)
    if name is None:
        raise InputError(
            f"has a rejected answer ({worse}) and no chosen one",
            "name it in a recipe: data.train.columns: {chosen: …}",
            code="column_mismatch",
        )
    turns, rest = rest[name], {key: value for key, value in rest.items() if key != name}
    if _is_conversation(other):
        return {**rest, "messages": turns}, {**rest, "messages": other}
    return {**rest, "messages": turns}, {**rest, "messages": [*turns[:-1], *_as_replies(other)]}


def _is_conversation(value: Any) -> bool:
    """Whether a value is a list of turns that begins with the prompt."""
    if not isinstance(value, list) or not turn_columns({"": value}):
        return False
    return next(iter(read_turns(value[:2])), {}).get("role") != "assistant"


def _as_replies(value: Any) -> list[Any]:
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    return value if isinstance(value, list) else [value]


def _prompt_turns(row: Mapping[str, Any]) -> tuple[str, list[Any]] | None:
    """The column with the conversation before an answer, and its turns; also in an object (OpenAI)."""
    for name, value in row.items():
        inner = value if isinstance(value, Mapping) else {"": value}
        if found := turn_columns(inner):
            return str(name), inner[found[0]]
    return None


def _beside_turns(value: Any) -> dict[str, Any]:
    """What an object with turns has beside them, such as tools."""
    turns = turn_columns(value) if isinstance(value, Mapping) else []
    return {name: each for name, each in value.items() if name not in turns} if turns else {}


def _without_repeated_prompt(rest: dict[str, Any], turns: Sequence[Any]) -> dict[str, Any]:
    """The other columns, without the prompt that the conversations begin with (UltraFeedback)."""
    name = find_column(map(str, rest), PROMPT, ())
    if name is None or is_empty(rest[name]):
        return rest
    first = [message for message in read_turns(turns) if message["role"] == "user"][:1]
    prompt = read_turns(rest[name]) if isinstance(rest[name], list) else [{"role": "user", "content": str(rest[name])}]
    if [message["content"].strip() for message in first] != [
        message["content"].strip() for message in prompt if message["role"] == "user"
    ][:1]:
        raise InputError(
            f"has a prompt ({name}) beside conversations that begin with another one", f"remove the column {name}"
        )
    return {key: value for key, value in rest.items() if key != name}


def _shared(one: str, other: str) -> int:
    """Number of characters that two texts begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _implicit_prompt(rest: dict[str, Any], values: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The common beginning of two texts as the prompt, without a space at its end, as TRL extracts it."""
    prompt = values[0][: _shared(*values)]
    if len(prompt) < min(map(len, values)):
        prompt = prompt.removesuffix(" ")
    if not prompt.strip():
        raise InputError(
            "has no prompt, and its answers do not begin with the same text",
            "name the prompt in a recipe: data.train.columns: {prompt: …}",
            code="column_mismatch",
        )
    return {**rest, "prompt": prompt}, [value[len(prompt) :] for value in values]
