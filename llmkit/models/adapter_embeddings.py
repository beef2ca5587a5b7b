"""How PEFT trains and saves the embeddings of a changed vocabulary with an adapter.

Single rows (``trainable_token_indices``) are cheap; whole modules (``modules_to_save``) are needed where all rows
changed, and where PEFT would drop a bias. With either, plain PEFT loads what was trained.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmkit.errors import UsageError
from llmkit.log import log
from llmkit.models.embeddings import embedding_groups, embedding_names

__all__ = ["embedding_settings"]


@dataclass(frozen=True)
class _Table:
    """The modules with one weight."""

    name: str
    """By which PEFT finds the first of them, and no other module."""
    modules: tuple[str, ...]
    bias: bool

    def is_named(self, names: Sequence[str], *, all_of_it: bool = False) -> bool:
        """Whether names in ``modules_to_save``, which match as suffixes, include one or all of the modules."""
        found = [any(module.endswith(each) for each in names) for module in self.modules]
        return all(found) if all_of_it else any(found)


def embedding_settings(
    model: Any, settings: Mapping[str, Any], known: Collection[str], kind: str, new_tokens: Sequence[int]
) -> dict[str, Any]:
    """Settings of an adapter that train and save the embeddings of new tokens, or all of them if there are none.

    Args:
        settings: of the adapter; embeddings in its ``modules_to_save`` are trained as a whole.
        known: names of the settings that the method has.

    Raises:
        UsageError: PEFT cannot do it with this method or model.
    """
    from peft.utils.constants import EMBEDDING_LAYER_NAMES  # which PEFT ties

    named, tables = list(settings.get("modules_to_save") or ()), _tables(model)
    whole = [each for each in tables if not new_tokens or each.bias or each.is_named(named)]
    rows = [each.name for each in tables if each not in whole]
    if rows and "trainable_token_indices" not in known:
        raise UsageError(
            f"PEFT cannot train single tokens with {kind}",
            "use LORA, name the embeddings in adapter.modules_to_save, or remove tokenizer.add_tokens",
            code="not_supported",
        )
    found: dict[str, Any] = {"trainable_token_indices": dict.fromkeys(rows, sorted(new_tokens))} if rows else {}
    wanted = list(named)
    for table in whole:
        if len(table.modules) > 1 and model.config.is_encoder_decoder:
            alone = (
                ["leave them out of adapter.modules_to_save: new tokens are trained"] if table.is_named(named) else []
            )
            raise UsageError(
                f"PEFT does not train the embeddings that both parts of {type(model).__name__} share",
                *alone,
                "leave out the section adapter, to train all weights",
                code="not_supported",
            )
        tied = len(table.modules) > 1 and not table.is_named(named, all_of_it=True)
        if tied and "ensure_weight_tying" in known and table.name.rpartition(".")[2] in EMBEDDING_LAYER_NAMES:
            found["ensure_weight_tying"] = True
            wanted += [] if table.is_named(named) else [table.name]
        else:
            wanted += [each for each in table.modules if not any(each.endswith(name) for name in named)]
    if new := wanted[len(named) :]:
        found["modules_to_save"] = wanted
        if model.device.type == "meta":  # logged once: a second model is the one trained
            log.info("trained in full and saved with the adapter: %s", ", ".join(new))
    return found


def _tables(model: Any) -> list[_Table]:
    modules = dict(model.named_modules(remove_duplicate=False))
    return [
        _Table(name, tuple(group), any(getattr(modules[each], "bias", None) is not None for each in group))
        for name, group in zip(_unambiguous_names(model), embedding_groups(model), strict=True)
    ]


def _unambiguous_names(model: Any) -> list[str]:
    """The embedding modules. Raises if PEFT, which matches suffixes of names, would match another module too."""
    modules = list(model.named_modules(remove_duplicate=False))
    names = embedding_names(model)
    for name in names:
        found = {id(module): each for each, module in modules if each.endswith(name)}
        if len(found) > 1:
            one, other, *_ = found.values()
            raise UsageError(
                f"PEFT cannot train new tokens of {type(model).__name__}: it does not tell {one} and {other} apart",
                "remove tokenizer.add_tokens, or train all weights without the section adapter",
                code="not_supported",
            )
    return names
