"""What rows say of themselves: that an answer is a bad one, or is not to be learned.

Such a row is refused, so that nothing is taught that its author rejected. Does not know the flags of single turns
(`llmkit.data.conversations`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from llmkit.data.column_names import find_column
from llmkit.data.conversations import is_empty
from llmkit.errors import InputError

__all__ = ["obeyed_flags", "refuse_flagged", "refuse_preferences"]

_LEARN = ("weight", "train", "trainable")
_GOOD = ("label", "kto_tag", "kto_label", "desirable")
"""Whether an answer is a good one: KTO, as in TRL and LLaMA-Factory."""
_MASKS = ("loss_mask", "mask", "masks", "weights")
"""Lists with an item for each turn, or for each reply: programs differ in that."""
_NO, _YES = ("false", "0", "0.0"), ("true", "1", "1.0")


def refuse_preferences(row: Mapping[str, Any], named: Collection[str], task: str) -> None:
    """`InputError` for a row with a chosen and a rejected answer, unless the one to learn was named."""
    texts = {
        str(name): value
        for name, value in row.items()
        if isinstance(value, str | list | Mapping) and not is_empty(value)
    }
    worse = next((name for name in texts if "rejected" in name.lower()), None)
    if worse is None or {"completion", "text", "messages", "summary", "answers", "target"} & set(named):
        return
    better = next((name for name in texts if "chosen" in name.lower()), "chosen")
    prompt = find_column(texts, "prompt", (better, worse))
    if isinstance(texts.get(better), list) and len(texts[better]) > 1:
        fix = f"{{messages: {better}}}"
    elif prompt is not None:
        fix = f"{{prompt: {prompt}, completion: {better}}}"
    else:
        fix = f"{{text: {better}}}" + (", with the task text-generation" if task == "dialogue" else "")
    raise InputError(
        f"has an answer that was rejected ({worse}), and learning from pairs (DPO) is not available",
        f"name the one to learn in a recipe: data.train.columns: {fix}",
    )


def refuse_flagged(others: Mapping[str, Any], learned: Mapping[str, Any]) -> None:
    """`InputError` for a row that is flagged as bad, or as not to be learned.

    Args:
        others: the columns that nothing is made of.
        learned: the row in the task's columns.
    """
    if mask := next((name for name in _MASKS if "messages" in learned and isinstance(others.get(name), list)), None):
        raise InputError(f"has a list that says which turns are learned ({mask})", "write weight: 0 or 1 in each turn")
    for name in _flags(learned):
        text = str(others.get(name)).strip().lower()
        # 0 is also the first of many classes, but not beside a completion.
        number = name in _LEARN or "completion" in learned
        if text == "false" or (number and text in _NO):
            raise InputError(
                f"is flagged as not to be learned ({name}: {others[name]})",
                f"leave such rows out, or remove the column {name} if it says something else",
            )


def obeyed_flags(others: Mapping[str, Any], learned: Mapping[str, Any]) -> Iterator[str]:
    """The flags of a row that let it be learned."""
    yield from (name for name in _flags(learned) if str(others.get(name)).strip().lower() in _YES)


def _flags(learned: Mapping[str, Any]) -> tuple[str, ...]:
    """Those that say something of a row; the label of plain text is its class."""
    return _LEARN if "text" in learned else (*_LEARN, *_GOOD)
