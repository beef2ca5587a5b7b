"""What rows say of themselves: that an answer is a bad one, or is not to be learned.

Such a row is refused, so that nothing is taught that its author rejected. Does not know the flags of single turns
(`llmkit.data.conversations`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from llmkit.data.conversations import is_empty
from llmkit.errors import InputError

__all__ = ["obeyed_flags", "refuse_flagged", "refuse_preferences"]

_LEARN = ("weight", "train", "trainable")
_GOOD = ("label", "kto_tag", "kto_label", "desirable")
"""Whether an answer is a good one: KTO, as in TRL and LLaMA-Factory."""
_NO, _YES = ("false", "0", "0.0"), ("true", "1", "1.0")


def refuse_preferences(row: Mapping[str, Any], named: Collection[str]) -> None:
    """`InputError` for a row with a chosen and a rejected answer, unless the one to learn was named."""
    texts = [
        str(name) for name, value in row.items() if isinstance(value, str | list | Mapping) and not is_empty(value)
    ]
    worse = next((name for name in texts if "rejected" in name.lower()), None)
    if worse is None or {"completion", "text", "messages", "summary", "answers", "target"} & set(named):
        return
    better = next((name for name in texts if "chosen" in name.lower()), "chosen")
    turns = row.get(better)
    talk = isinstance(turns, list) and len(turns) > 1
    raise InputError(
        f"has an answer that was rejected ({worse}), and learning from pairs (DPO) is not available",
        f"name the one to learn: data.train.columns: {{{'messages' if talk else 'completion'}: {better}}}",
    )


def refuse_flagged(row: Mapping[str, Any], *, pair: bool) -> None:
    """`InputError` for a row that is flagged as bad, or as not to be learned.

    Args:
        row: without the columns that are learned.
        pair: the row has an answer, which a label may be about; the label of plain text is its class.
    """
    for name in _flags(pair):
        value = row.get(name)
        text = str(value).strip().lower()
        # 0 is the first of many classes too, but not beside a prompt and its completion.
        number = name in _LEARN or {"prompt", "completion"} <= row.keys()
        if text == "false" or (number and text in _NO):
            raise InputError(
                f"is flagged as not to be learned ({name}: {value})",
                f"leave such rows out, or remove the column {name} if it says something else",
            )


def obeyed_flags(row: Mapping[str, Any], *, pair: bool) -> Iterator[str]:
    """The flags of a row that let it be learned."""
    yield from (name for name in _flags(pair) if str(row.get(name)).strip().lower() in _YES)


def _flags(pair: bool) -> tuple[str, ...]:
    return (*_LEARN, *_GOOD) if pair else _LEARN
