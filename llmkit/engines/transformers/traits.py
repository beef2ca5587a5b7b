"""The traits of a loaded model that tasks use, from its config, tokenizer and generation settings."""

from __future__ import annotations

import functools
from contextlib import suppress
from typing import Any

from llmkit.errors import CheckpointError, UsageError
from llmkit.heads import head_of
from llmkit.heads.chat_template import alternates, takes_reasoning, takes_tools, thinking_switch
from llmkit.hub.card import card_metadata, declared_languages
from llmkit.models.families import family
from llmkit.models.load import Loaded
from llmkit.models.source import Source
from llmkit.tasks import TASKS, Task, Traits
from llmkit.text.languages import find_language

__all__ = ["own_max_new_tokens", "traits_of"]


def traits_of(loaded: Loaded, task: Task) -> Traits:
    """The traits of a model for a task."""
    config, head = loaded.model.config, head_of(loaded.head)
    known = family(loaded.resolution.model_type)
    chat = head.writes and bool(getattr(loaded.tokenizer, "chat_template", None))
    prefix, languages = "", None
    if head.target_apart and task.names_languages:
        languages = known.languages(loaded.source.name, config.to_dict(), loaded.tokenizer)
    elif head.target_apart and task.takes_prefix:
        params = (getattr(config, "task_specific_params", None) or {}).get(task.name) or {}
        prefix = params.get("prefix") or getattr(config, "prefix", None) or known.prefixes.get(task.name, "")
    return Traits(
        extracts_spans=not head.writes,
        continues=head.one_sequence,
        chat=chat,
        prefix=prefix if prefix.strip() else "",
        takes_tools=chat and task.calls_tools and takes_tools(loaded.tokenizer),
        takes_reasoning=chat and task.calls_tools and takes_reasoning(loaded.tokenizer),
        switches_thinking=chat and _switches_thinking(loaded.tokenizer),
        separator=known.separator,
        alternates=chat and task.converses and alternates(loaded.tokenizer),
        languages=languages,
        declared_languages=_declared_languages(loaded.source),
    )


def _switches_thinking(tokenizer: Any) -> bool:
    with suppress(CheckpointError):  # an ambiguous template is refused where it is used
        return thinking_switch(tokenizer) is not None
    return False


@functools.cache
def _declared_languages(source: Source) -> frozenset[str]:
    """The languages in the model card or, without any, in the table of recommended models."""
    card = declared_languages(card_metadata((source.adapter or source.folder) / "README.md"))
    for task in () if card else TASKS.values():
        for each in task.recommended:
            if each.model == source.name:
                with suppress(UsageError):  # such as "100+ languages"
                    return frozenset((find_language(each.languages).alpha2,))
    return card


def own_max_new_tokens(loaded: Loaded) -> int | None:
    """The output limit in the model's own generation settings."""
    own: Any = getattr(loaded.model, "generation_config", None)
    head = head_of(loaded.head)
    if not head.writes or own is None:
        return None
    if own.max_new_tokens:
        return int(own.max_new_tokens)
    if head.target_apart and own.max_length:
        return max(1, int(own.max_length) - 1)  # max_length counts the start token
    return None
