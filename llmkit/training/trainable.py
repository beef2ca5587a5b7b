"""Which parameters of a model a recipe trains: new tokens, an adapter or all weights, and what is frozen."""

from __future__ import annotations

import re
from typing import Any

from llmkit.config.recipe import Recipe
from llmkit.errors import UsageError
from llmkit.models.adapters import attach
from llmkit.models.load import Loaded

__all__ = ["make_trainable"]


def make_trainable(recipe: Recipe, loaded: Loaded) -> Any:
    """The model of a recipe with its adapter, and ``requires_grad`` set on what is trained.

    Raises:
        UsageError: a pattern of ``train.freeze`` matches nothing, or the adapter does not go with the rest.
    """
    model: Any = loaded.model
    added = recipe.tokenizer.add_tokens
    if added and len(loaded.tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(loaded.tokenizer), mean_resizing=False)
    if recipe.adapter is not None:
        ids: Any = loaded.tokenizer.convert_tokens_to_ids(added) if added else []
        model = attach(model, recipe.adapter, loaded.head, tokenizer_name=str(loaded.source.folder), new_tokens=ids)
    _freeze(model, recipe.train.freeze)
    return model


def _freeze(model: Any, patterns: list[str]) -> None:
    for pattern in patterns:
        try:
            wanted = re.compile(pattern)
        except re.error as error:
            raise UsageError(f"train.freeze: {pattern!r} is no regular expression ({error})", "mend it") from error
        names = [parameter for name, parameter in model.named_parameters() if wanted.search(name)]
        if not names:
            raise UsageError(f"train.freeze: {pattern!r} matches no parameter", "see their names in the checkpoint")
        for parameter in names:
            parameter.requires_grad_(False)
