"""Flags of rows: rejected answers, and rows that are not to be learned.

Such rows are errors, so that rejected answers are not learned. Flags of single turns are in
`llmkit.data.conversations`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from llmkit.data.column_names import find_column
from llmkit.data.conversations import turn_columns
from llmkit.data.preferences import GOOD, numbered_answers, pair_columns, texts_of
from llmkit.errors import InputError
from llmkit.tasks import Task
from llmkit.tasks.base import PROMPT

__all__ = ["obeyed_flags", "refuse_flagged", "refuse_preferences"]

_LEARN = ("weight", "train", "trainable")
_MASKS = ("loss_mask", "mask", "masks", "weights")
"""Lists with an item for each turn or for each reply, depending on the program."""
_NO, _YES = ("false", "0", "0.0"), ("true", "1", "1.0")


def refuse_preferences(row: Mapping[str, Any], named: Collection[str], task: Task) -> None:
    """Raise `InputError` for a row with a better and a worse answer, unless the one to learn is mapped."""
    if set(task.learned_columns or (task.target_column,)) & set(named):
        return
    better, worse = pair_columns(row)
    preferred = "train on both with method: dpo in the recipe"
    if worse is not None:
        problem = f"has a rejected answer ({worse})"
    elif pair := numbered_answers(row):
        better, worse = pair
        problem = f"has several answers ({better}, {worse}), and only one of them can be learned"
        preferred += f" and data.train.columns: {{chosen: {better}, rejected: {worse}}}"
    else:
        return
    learned = _to_learn(texts_of(row), better, worse, task)
    raise InputError(
        problem, preferred, f"name the one to learn in a recipe: data.train.columns: {learned}", code="preferences"
    )


def _to_learn(texts: Mapping[str, Any], better: str | None, worse: str, task: Task) -> str:
    """The mapping to learn the better answer; with only a worse one, the conversation before it."""
    if "completion" not in task.aliases:
        return f"{{{task.target_column}: {better or '…'}}}"
    others = [name for name in turn_columns(texts) if name not in (better, worse)]
    if better is None:
        return f"{{messages: {others[0]}}}" if others else "{completion: …}"
    answer = texts[better]
    if isinstance(answer, list) and len(answer) > 1:
        return f"{{messages: {better}}}"
    prompt = find_column(texts, PROMPT, (better, worse))
    if prompt is not None and isinstance(texts[prompt], Mapping):
        prompt = next((f"{prompt}.{name}" for name in turn_columns(texts[prompt])), None)
    if prompt is None and others:
        prompt = others[0]
    if prompt is not None:
        return f"{{prompt: {prompt}, completion: {better}}}"
    return f"{{text: {better}}}" + ("" if "text" in task.aliases else ", with the task text-generation")


def refuse_flagged(others: Mapping[str, Any], learned: Mapping[str, Any], task: Task) -> None:
    """Raise `InputError` for a row that is flagged as bad, or as not to be learned.

    Args:
        others: the columns that are not used.
        learned: the row in the task's columns.
    """
    if mask := next((name for name in _MASKS if "messages" in learned and isinstance(others.get(name), list)), None):
        raise InputError(
            f"has a list of flags for turns ({mask}), which is ambiguous", "put weight: 0 or 1 in each turn"
        )
    for name in _flags(learned, task):
        text = str(others.get(name)).strip().lower()
        # 0 is also the first of many classes, but not in rows with a completion.
        number = name in _LEARN or "completion" in learned
        if text == "false" or (number and text in _NO):
            raise InputError(
                f"is flagged as not to be learned ({name}: {others[name]})",
                f"remove such rows, or the column {name} if it means something else",
            )


def obeyed_flags(others: Mapping[str, Any], learned: Mapping[str, Any], task: Task) -> Iterator[str]:
    """The flags of a row that mark it as learned."""
    yield from (name for name in _flags(learned, task) if str(others.get(name)).strip().lower() in _YES)


def _flags(learned: Mapping[str, Any], task: Task) -> tuple[str, ...]:
    """The names of flags that apply to a row; the label of plain text is its class."""
    return _LEARN if task.is_plain(learned) else (*_LEARN, *GOOD)
