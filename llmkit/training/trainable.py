"""Which parameters a recipe trains: new tokens, an adapter or all weights, and what is frozen."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from llmkit.config.recipe import Recipe
from llmkit.errors import UsageError
from llmkit.heads.base import IGNORED, BaseHead
from llmkit.log import log, warn
from llmkit.models.adapter_init import InitialBatches
from llmkit.models.adapters import attach, outline_adapter
from llmkit.models.load import Loaded
from llmkit.models.quantize import is_quantized

__all__ = ["check_gradients", "check_reached", "freeze_as", "initial_batches", "is_swept_in", "make_trainable"]

_INITIAL_BATCHES = 16
_EXPERT = re.compile(r"\bexperts?\b")
"""Names of expert layers, some of which the first update may not route to."""


def make_trainable(recipe: Recipe, loaded: Loaded, batches: InitialBatches | None = None) -> Any:
    """The model of a recipe with its adapter, and ``requires_grad`` set on the parameters to train.

    Args:
        batches: of training data, for adapters whose initial values depend on it.

    Raises:
        UsageError: ``train.freeze`` or ``train.unfreeze`` matches nothing, everything is frozen, or the adapter cannot
            be combined with the rest.
    """
    model: Any = loaded.model
    if recipe.train.activation_checkpointing:
        _checkpoint_activations(model)  # before the adapter, so that PEFT refuses methods that do not support it
    source = loaded.source
    if is_quantized(model) and recipe.adapter is None and source.adapter is None:
        raise UsageError(
            f"{source.name} is quantized, and quantized weights cannot be trained directly",
            "add an adapter, or choose a checkpoint that is not quantized",
            code="not_supported",
        )
    if source.adapter is not None and not hasattr(model, "peft_config"):
        model = outline_adapter(model, source.adapter)  # without weights
    if source.adapter is not None and model.active_peft_config.is_prompt_learning:
        raise UsageError(
            f"{source.name} is an adapter of virtual tokens, which is saved without the parameters that produce them",
            "train a new adapter on its base model",
            code="not_supported",
        )
    if recipe.adapter is not None:
        model = attach(
            model,
            recipe.adapter,
            loaded.head,
            tokenizer_name=str(source.folder),
            new_tokens=loaded.new_tokens,
            new_vocabulary=source.token_ids is not None,
            batches=batches,
        )
    _freeze_other_inputs(loaded.model)
    _freeze(model, recipe.train.freeze, recipe.train.unfreeze)
    return model


def initial_batches(examples: Any, head: BaseHead, pad_id: int, device: Any, seed: int) -> InitialBatches:
    """Batches of training examples for an adapter's initial values, the same in each process."""
    order = random.Random(seed).sample(range(len(examples)), len(examples))  # noqa: S311 - not for security

    def batches(tokens: int) -> Iterator[dict[str, Any]]:
        lines: list[Any] = []
        found = 0
        for index in order:
            lines.append(examples[index])
            parts = [name for name in ("input_ids", "decoder_input_ids") if lines[0].get(name)]
            if min(sum(len(line[name]) for line in lines) for name in parts) < tokens:
                continue
            batch = head.batch(lines, pad_id=pad_id).to(device)
            more = {"decoder_attention_mask": (batch.labels != IGNORED).long()} if len(parts) > 1 else {}
            yield batch.inputs | more
            lines, found = [], found + 1
            if found == _INITIAL_BATCHES:
                return

    return batches


def check_reached(recipe: Recipe, model: Any, unreached: Sequence[str]) -> None:
    """Freeze trained tensors that have no part in the loss, if the recipe does not name them.

    Raises:
        UsageError: one of them is new, or named by the recipe: it would be saved as trained.
    """
    wrong = [name for name in unreached if not is_swept_in(recipe, name)]
    if wrong:
        raise _untrained(wrong, sum(each.requires_grad for each in model.parameters()))
    for name in unreached:
        model.get_parameter(name).requires_grad_(False)
    if unreached:
        warn("tensors_not_trained", "not trained, because they have no part in the loss: %s", _some(unreached))


def check_gradients(trained: Mapping[str, Any], *, alone: bool, may_be_unused: Callable[[str], bool]) -> None:
    """Stop after the first update if a parameter would be saved as trained without ever getting a gradient.

    Every parameter that is new or named by the recipe gets a gradient in the first update. Others were frozen before
    (`check_reached`), except for model classes that depend on tensor values, which only show it here: a single process
    leaves them unchanged, several cannot (DistributedDataParallel waits for all gradients). Experts may not be routed
    to.
    """
    unused = [name for name, each in trained.items() if each.grad is None and not _EXPERT.search(name)]
    if wrong := [name for name in unused if not (alone and may_be_unused(name))]:
        raise _untrained(wrong, len(trained))
    if unused:
        text = "%d tensors such as %s are not trained: they have no part in the loss"
        warn("tensors_not_trained", text, len(unused), unused[0])


def _untrained(names: Sequence[str], count: int) -> UsageError:
    return UsageError(
        f"{len(names)} of {count} trained tensors have no part in the loss: {names[0]}"
        + (f" … {names[-1]}" if len(names) > 1 else ""),
        "exclude them with train.freeze, a list of regular expressions that match their names",
        code="not_supported",
    )


def freeze_as(model: Any, outline: Any) -> None:
    """Freeze the parameters that are frozen in an outline of the model without weights."""
    trained = {name: each.requires_grad for name, each in outline.named_parameters()}
    for name, each in model.named_parameters():
        if not trained.get(name, True):
            each.requires_grad_(False)


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} tensors ({names[0]} … {names[-1]})"


def is_swept_in(recipe: Recipe, name: str) -> bool:
    """Whether a tensor is trained only because all weights or linear layers are: not named, and not new."""
    if recipe.adapter is None:
        return True
    return getattr(recipe.adapter, "target_modules", None) == "all-linear" and ".lora_" in name


def _checkpoint_activations(model: Any) -> None:
    try:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    except ValueError as error:
        raise UsageError(
            f"train.activation_checkpointing: {type(model).__name__} does not support it",
            "leave it out; a smaller train.per_device_train_batch_size needs less memory too",
            code="not_supported",
        ) from error
    model.enable_input_require_grads()


def _freeze_other_inputs(model: Any) -> None:
    """Freeze parameters that only images or sound pass through, which training on text does not reach."""
    if model.config.is_encoder_decoder or model.config.get_text_config() is model.config:
        return
    text = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())
    reached = {id(each) for part in text if part is not None for each in part.parameters()}
    frozen = 0
    for parameter in model.parameters():
        if parameter.requires_grad and id(parameter) not in reached:
            parameter.requires_grad_(False)
            frozen += 1
    if frozen:
        log.info("%d tensors that only images or sound pass through are not trained", frozen)


def _freeze(model: Any, frozen: Sequence[str], unfrozen: Sequence[str]) -> None:
    """Leave only those trained that one of ``unfrozen`` matches, if it is given, and none of ``frozen``."""
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    kept = (
        {name for pattern in unfrozen for name in _matching("unfreeze", pattern, trained)} if unfrozen else {*trained}
    )
    kept -= {name for pattern in frozen for name in _matching("freeze", pattern, trained)}
    for name, each in trained.items():
        each.requires_grad_(name in kept)
    if not kept and trained:
        raise UsageError(
            "train.freeze matches all parameters, so nothing is left to train",
            "match fewer",
            code="not_supported",
        )


def _matching(key: str, pattern: str, trained: Mapping[str, Any]) -> list[str]:
    matched = [name for name in trained if re.search(pattern, name)]
    if not matched:
        raise UsageError(
            f"train.{key}: {pattern!r} matches no trained parameter",
            f"leave it out, or match names such as {next(iter(trained), '')}",
            code="not_supported",
        )
    return matched
