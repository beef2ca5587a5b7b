"""Loads several adapters onto one base model, and refuses those that cannot share it.

Whether one changes the base model, which it must not, is found by running it. Knows the files of adapters.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.config.commands import command_line
from llmkit.config.settings import LoadSettings
from llmkit.errors import CheckpointError
from llmkit.files import read_json
from llmkit.log import log
from llmkit.models.adapters import load_adapter
from llmkit.models.load import Loaded, context_of, describe, has_tokenizer, tokenizer_of
from llmkit.models.locate import locate
from llmkit.models.logits import LAST_BITS, difference
from llmkit.models.refusals import check_files, check_heads
from llmkit.models.shared_base import BASE, SharedBase, probe_logits
from llmkit.models.source import ADAPTER_CONFIG, Source
from llmkit.models.tables import HEADS

if TYPE_CHECKING:
    import torch

__all__ = ["attach_adapters"]


def attach_adapters(loaded: Loaded, adapters: Mapping[str, str], settings: LoadSettings) -> Loaded:
    """A loaded model with adapters, which share its weights; they are its `Loaded.view`.

    Args:
        adapters: folders or Hub ids by name.
        settings: of the base model.

    Raises:
        CheckpointError: an adapter does not fit the model, or does not leave it as it is for the others.
    """
    sources = {name: _locate(loaded, folder, settings) for name, folder in adapters.items()}
    _refuse_methods(sources.values())
    tokenizers = {name: tokenizer_of(each, settings) for name, each in sources.items() if has_tokenizer(_folder(each))}
    names = {name: f"adapter{number}" for number, name in enumerate(adapters)}
    model, before = loaded.model, probe_logits(loaded.model, 1)[0]
    for name, source in sources.items():
        model = load_adapter(
            model,
            _folder(source),
            tokens=len(tokenizers[name]) if name in tokenizers else 0,
            allow_pickle=settings.allow_pickle,
            name=names[name],
            task_type=HEADS[loaded.head].task_type,
        )
        _refuse_changed_base(model, source, before)
    shared = SharedBase(model, names)
    shared.find_mixed()
    shared.views[BASE] = replace(loaded, model=model, shared=shared)
    for name, source in sources.items():
        shared.views[name] = replace(
            shared.views[BASE],
            tokenizer=tokenizers.get(name, loaded.tokenizer),
            source=source,
            context=context_of(source, describe(source)[0]),
            adapter=name,
        )
        if name not in shared.mixed:
            log.info("adapter %s takes turns with the others, instead of sharing their batches", name)
    base: Loaded = shared.views[BASE]
    return base


def _locate(loaded: Loaded, folder: str, settings: LoadSettings) -> Source:
    """The files of an adapter, which was trained on this model as far as they show."""
    base = loaded.source
    own = replace(settings, model=folder, base=base.name, revision=None)
    source = locate(own)
    file = _folder(source) / ADAPTER_CONFIG
    named = read_json(file).get("base_model_name_or_path")
    if named and not _is_named(base, named):
        raise CheckpointError(
            f"{folder} is an adapter of {named}, and {base.name} is served",
            f"serve {named}",
            f"if they are the same, correct base_model_name_or_path in {file}",
            code="adapter_mismatch",
        )
    check_heads(source, loaded.resolution, training=False)
    check_files(source, own)
    if source.config_overrides() or source.generation_folder != base.generation_folder:
        raise _alone(folder, "settings of its base model are changed with it")
    return source


def _folder(source: Source) -> Path:
    assert source.adapter is not None
    return source.adapter


def _is_named(base: Source, named: str) -> bool:
    """Whether an adapter's base model is this one. A folder may have been moved, and a Hub id been downloaded."""
    names = {base.name, base.lasting_base, str(base.folder)}
    return named in names or Path(named).name in {Path(name).name for name in names}


def _refuse_methods(sources: Iterable[Source]) -> None:
    """Refuse adapters that PEFT cannot put beside each other on one model, by their settings."""
    methods: dict[str, str] = {}
    for source in sources:
        config = read_json(_folder(source) / ADAPTER_CONFIG)
        if source.virtual_tokens or config.get("layer_replication"):
            raise _alone(source.name, "it adds virtual tokens or layers")
        methods.setdefault(config["peft_type"], source.name)
    if len(methods) > 1:
        (first, one), (second, other), *_ = methods.items()
        raise _alone(other, f"it has peft_type {second}, and {one} has {first}")


def _refuse_changed_base(model: Any, source: Source, before: torch.Tensor) -> None:
    """Refuse an adapter that changes the base model, for example its biases, its vocabulary or its initial values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, on trained biases
        model.base_model.disable_adapter_layers()
    after = probe_logits(model, 1)[0]
    model.base_model.enable_adapter_layers()
    if before.shape != after.shape or difference(before, after) > LAST_BITS:
        raise _alone(source.name, "it changes weights of its base model, such as biases or embeddings")


def _alone(name: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{name} cannot share its base model with other adapters: {reason}",
        f"serve it as a model: {command_line('serve', name)}",
        code="not_supported",
    )
