"""Token ids in the settings of a model, changed for another vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llmkit.errors import UsageError
from llmkit.models.vocabulary import Origins, Vocabulary

__all__ = ["change_token_ids", "refuse_moved_padding"]

_SUFFIXES = ("_token_id", "_token_ids", "suppress_tokens", "bad_words_ids", "sequence_bias")


def change_token_ids(
    model: Any, old: Vocabulary, new: Vocabulary, origins: Origins, tables: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """Change the ids in the config and in the generation settings of a model.

    Args:
        tables: names of the tensors with a value for each token.

    Returns:
        The changed settings of config.json, and the names of those that lost a token which the new vocabulary lacks.
    """
    ids = {each[0]: number for number, each in reversed(list(enumerate(origins.ids))) if len(each) == 1}
    ids |= {old.roles[role]: number for role, number in new.roles.items() if role in old.roles}
    generation = getattr(model, "generation_config", None)
    changes = [(config, _changes(vars(config), new, ids)) for config in (*_configs(model.config), generation) if config]
    for config, values in changes:
        for name, (value, _) in values.items():
            setattr(config, name, value)
    for name in tables:
        module = model.get_submodule(name.rpartition(".")[0])
        if getattr(module, "padding_idx", None) is not None:
            module.padding_idx = new.roles.get("pad")
    lost = dict.fromkeys(name for _, values in changes for name, (_, whole) in values.items() if not whole)
    return {name: value for name, (value, _) in changes[0][1].items()}, list(lost)


def _configs(config: Any) -> Iterator[Any]:
    """A config and those of its parts."""
    yield config
    for value in vars(config).values():
        if hasattr(value, "to_diff_dict"):
            yield from _configs(value)


def _changes(settings: Mapping[str, Any], new: Vocabulary, ids: Mapping[int, int]) -> dict[str, tuple[Any, bool]]:
    """The settings that hold ids: their value for the new vocabulary, and whether all of it could be mapped."""
    found: dict[str, tuple[Any, bool]] = {}
    for name, value in settings.items():
        if value in (None, []) or not name.endswith(_SUFFIXES):
            continue
        mapped = _mapped(value, ids)
        whole = mapped is not None and (not isinstance(value, list) or len(mapped) == len(value))
        own = new.roles.get(name.removesuffix("_token_id"))
        if own is not None:
            rest = [each for each in mapped if each != own] if isinstance(value, list) else []
            mapped, whole = [own, *rest] if rest else own, whole or not isinstance(value, list)
        found[name] = (None if mapped == [] else mapped, whole)
    return found


def _mapped(value: Any, ids: Mapping[int, int], *, inner: bool = False) -> Any:
    """A value with the ids of the new vocabulary; None for an id that it lacks, and for an inner list with one."""
    if isinstance(value, list | tuple):
        parts = [_mapped(each, ids, inner=True) for each in value]
        return None if inner and None in parts else [each for each in parts if each is not None]
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        return value  # the text of a token, or a bias
    return ids.get(value)


def refuse_moved_padding(model: Any, old: Vocabulary, new: Vocabulary) -> None:
    """Refuse another padding id for models that count positions from it, such as RoBERTa."""
    before, after = old.roles.get("pad"), new.roles.get("pad")
    if before == after:
        return
    rows = model.get_input_embeddings().weight.shape[0]
    for module in model.modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if getattr(module, "padding_idx", None) is not None and own and all(each.shape[0] != rows for each in own):
            raise UsageError(
                f"{type(model).__name__} counts positions from the id of its padding token, which is {before}, and "
                f"{after} in the other tokenizer",
                f"use a tokenizer whose padding token has the id {before}",
                code="not_supported",
            )
