"""Loads a model from local files: Auto class, dtype, device, tokenizer, adapter.

Reads local folders only (`llmkit.models.locate` downloads the files), so nothing here uses the network. Knows nothing
of prompts and generation.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmkit.config.settings import LoadSettings
from llmkit.errors import UsageError
from llmkit.files import read_json
from llmkit.hub.reachability import offline
from llmkit.log import log, warn
from llmkit.models.adapters import load_adapter
from llmkit.models.build import (
    build,
    build_on_meta,
    changed_config,
    check_attention,
    check_shapes,
    in_one_file,
    keep_frozen,
)
from llmkit.models.bundled import is_embedded
from llmkit.models.checkpoint import gguf_config, gguf_metadata, parameter_counts
from llmkit.models.context import ContextLength, context_length
from llmkit.models.devices import pick_device, pick_dtype
from llmkit.models.generation import apply_settings, generation_config, settle_tokens
from llmkit.models.locate import locate
from llmkit.models.quantize import quiet_quantizers
from llmkit.models.quiet import as_checkpoint_error, quiet_transformers
from llmkit.models.refusals import check_files, check_heads, check_memory, check_quantized, refuse_untrusted
from llmkit.models.resolve import Resolution, resolve
from llmkit.models.source import Source
from llmkit.models.tables import writes
from llmkit.models.threads import CpuUse, settle_threads
from llmkit.models.tokenizer import load_tokenizer
from llmkit.models.tokenizer_files import has_chat_template
from llmkit.progress import activity
from llmkit.tasks import Head

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llmkit.models.shared_base import SharedBase

__all__ = ["Loaded", "context_of", "describe", "has_tokenizer", "load_model", "load_source", "tokenizer_of"]


@dataclass(frozen=True)
class Loaded:
    """A model ready to run, with what the layers above need to know of it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    resolution: Resolution
    source: Source
    context: ContextLength
    new_tokens: tuple[int, ...] = ()
    """Ids that a recipe adds to the vocabulary."""
    lock: AbstractContextManager[bool] = field(default_factory=threading.RLock, repr=False, compare=False)
    """Held while the model generates: other threads wait, and the one that holds it may ask again."""
    adapter: str = ""
    """Its name among the adapters of a shared base model."""
    shared: SharedBase | None = field(default=None, repr=False, compare=False)
    """The base model that it shares with other adapters."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In another process, which has a lock of its own."""
        vars(self).update(state, lock=threading.RLock())

    @property
    def head(self) -> Head:
        return self.resolution.head

    @property
    def device(self) -> torch.device:
        return self.model.device

    def view(self, adapter: str) -> Loaded:
        """The model with another adapter of its shared base."""
        return self if self.shared is None else self.shared.views[adapter]

    def active(self, adapters: Sequence[str] = (), copies: int = 1) -> AbstractContextManager[None]:
        """Context manager in which the model runs with its adapter, or with one for each row (`SharedBase.active`)."""
        return nullcontext() if self.shared is None else self.shared.active(adapters or (self.adapter,), copies)


def load_model(
    settings: LoadSettings,
    task: str,
    *,
    training: bool = False,
    weights: bool = True,
    fallback: bool = True,
    text: str = "",
    defaults: Sequence[str] = (),
    config_overrides: Mapping[str, Any] | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    quantization: Mapping[str, Any] | None = None,
    dequantize: bool = False,
) -> Loaded:
    """Locate and load the model for a task. The rest of the arguments is `locate`'s.

    Args:
        training: allow a newly initialised head.
        weights: False neither fetches nor reads any: the model is on the meta device, without its adapter.
        config_overrides: settings of the checkpoint's config that are changed.
        model_kwargs: arguments of ``from_pretrained`` that go before what follows from the settings; with a
            ``device_map`` among them, memory is not checked.
        tokenizer: in place of the checkpoint's own, which is then not read.
        quantization: further fields of ``BitsAndBytesConfig``, if the settings quantize.
        dequantize: unpack quantized weights again, after their values were rounded.

    Raises:
        LlmkitError: one of its kinds, with one line that ends in what to do.
    """
    with offline(settings.offline):
        source = locate(settings, task, weights=weights, fallback=fallback, text=text, defaults=defaults)
        with activity(f"loading {source.name}") if weights else nullcontext():
            return load_source(
                source,
                settings,
                task,
                training=training,
                weights=weights,
                config_overrides=config_overrides,
                model_kwargs=model_kwargs,
                tokenizer=tokenizer,
                quantization=quantization,
                dequantize=dequantize,
            )


def load_source(
    source: Source,
    settings: LoadSettings,
    task: str,
    *,
    training: bool = False,
    weights: bool = True,
    config_overrides: Mapping[str, Any] | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    quantization: Mapping[str, Any] | None = None,
    dequantize: bool = False,
) -> Loaded:
    """Load files that are on this machine. See `load_model`."""
    begun = CpuUse.now() if weights else None
    config, counts = describe(source)
    overrides = {**source.config_overrides(), **(config_overrides or {})}
    resolution = resolve(task, config, head=settings.head, model=source.name)
    refuse_untrusted({**config, **overrides}, source, settings, resolution)
    check_heads(source, resolution, training=training)
    stored = check_quantized(source, settings, config, training=training or dequantize, weights=weights)
    if weights:
        check_files(source, settings)
    with quiet_transformers(), as_checkpoint_error(source):
        if settings.attn_implementation is not None:
            check_attention(source, settings, resolution, config)
        if tokenizer is None:
            tokenizer = tokenizer_of(source, settings)
        if weights:
            device = pick_device(settings.device)
            dtype = pick_dtype(settings.dtype, device, config, counts)
            if "device_map" not in (model_kwargs or {}):
                check_memory(source, settings, device, dtype, counts)
            own = _arguments(source, settings, resolution, config, overrides) | dict(model_kwargs or {})
            if stored is not None:
                own.setdefault("quantization_config", stored)
            with in_one_file(source) as whole, quiet_quantizers(config):
                model = build(whole, settings, resolution, device, dtype, model_kwargs=own, quantization=quantization)
            if dequantize:
                model = _dequantized(model, source, dtype)
            if training:
                keep_frozen(model)
            model = _with_adapter(model, source, settings, tokenizer, training=training)
            if device == "cpu" or settings.threads is not None:
                settle_threads(settings.threads, None if training else begun)
        else:
            changed = changed_config(source, settings, overrides)
            model = build_on_meta(source, settings, resolution, changed, config)
            if overrides:
                check_shapes(source, model)
        _apply_task_params(model, resolution.task)
        settle_tokens(model, tokenizer, source.generation_folder)
        context = context_of(source, {**config, **overrides})
    if weights:
        log.debug("%s is a %s on %s in %s", source.name, type(model).__name__, model.device, model.dtype)
    return Loaded(
        model=model.eval(),
        tokenizer=tokenizer,
        resolution=resolution,
        source=source,
        context=context,
    )


def context_of(source: Source, config: Mapping[str, Any]) -> ContextLength:
    """The context length of a model with its adapter's tokenizer and virtual tokens."""
    file = (source.adapter or source.folder) / "tokenizer_config.json"
    return context_length(config, read_json(file) if file.is_file() else {}).without(source.virtual_tokens)


def describe(source: Source) -> tuple[dict[str, Any], dict[str, int] | None]:
    """The config of a checkpoint and its parameters by dtype, from its small files and headers.

    Reading the headers also refuses a partial download.
    """
    if source.gguf_file:
        metadata = gguf_metadata(source.folder / source.gguf_file)
        return gguf_config(metadata), metadata["parameters_by_dtype"]
    return source.config(), parameter_counts(source.folder)


def _arguments(
    source: Source,
    settings: LoadSettings,
    resolution: Resolution,
    config: dict[str, Any],
    overrides: Mapping[str, Any],
) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` that follow from the files and settings."""
    found: dict[str, Any] = {"config": changed_config(source, settings, overrides)} if overrides else {}
    if not source.gguf_file and writes(resolution.head):
        found["generation_config"] = generation_config(source.generation_folder, config)
    return found


def _with_adapter(model: Any, source: Source, settings: LoadSettings, tokenizer: Any, *, training: bool) -> Any:
    if source.adapter is None:
        return model
    if not is_embedded(source.name):  # whose base is no concern of the user's
        log.info("adapter: %s on %s", source.name, source.base or source.folder)
    tokens = len(tokenizer) if has_tokenizer(source.adapter) else 0
    allowed = settings.allow_pickle
    return load_adapter(model, source.adapter, training=training, tokens=tokens, allow_pickle=allowed)


def _apply_task_params(model: Any, task: str) -> None:
    """Generation settings that the config keeps for one task (T5, BART), as Transformers 4's pipelines took them."""
    params = getattr(model.config, "task_specific_params", None) or {}
    kept = next((value for name, value in params.items() if name == task or name.startswith(f"{task}_")), None)
    own = getattr(model, "generation_config", None)
    if own is not None and isinstance(kept, dict):
        apply_settings(own, kept)


def _dequantized(model: Any, source: Source, dtype: torch.dtype) -> Any:
    if not getattr(model, "is_quantized", False):
        return model
    try:
        return model.dequantize(dtype)
    except NotImplementedError as error:
        raise UsageError(
            f"Transformers cannot dequantize {source.name}", "use the adapter as it is", code="not_supported"
        ) from error


def has_tokenizer(adapter: Path) -> bool:
    """Whether an adapter has a tokenizer of its own."""
    return (adapter / "tokenizer_config.json").is_file()


def tokenizer_of(source: Source, settings: LoadSettings) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, or of its adapter if that has one."""
    own_code = settings.trust_remote_code
    # A tuned adapter may have brought tokens and a chat template of its own.
    if source.adapter is not None and has_tokenizer(source.adapter):
        tokenizer = load_tokenizer(source.adapter, trust_remote_code=own_code)
        if tokenizer.chat_template is None and has_chat_template(source.folder):
            # Uploads by pattern (*.json, *.safetensors) leave chat_template.jinja behind.
            tokenizer.chat_template = load_tokenizer(source.folder, trust_remote_code=own_code).chat_template
            warn(
                "chat_template_chosen",
                "the adapter brings a tokenizer without a chat template; its base model's is used",
            )
        return tokenizer
    if source.gguf_file:
        _warn_of_unknown_splits(source)
    extra = {"gguf_file": source.gguf_file} if source.gguf_file else {}
    return load_tokenizer(source.folder, trust_remote_code=own_code, **extra)


def _warn_of_unknown_splits(source: Source) -> None:
    """Warn of a GGUF pre-tokenizer that Transformers does not know: it silently uses GPT-2's instead."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    metadata = gguf_metadata(source.folder / str(source.gguf_file))
    kind, splits = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "default")
    if kind == "gpt2" and splits not in ("default", "gpt-2", *GGUF_PRE_TOKENIZER_SPLITS):
        warn(
            "tokenizer_uncertain",
            "%s has the pre-tokenizer %r, which Transformers does not know: numbers and line breaks may be tokenized"
            " differently than in training; prefer the safetensors checkpoint",
            source.gguf_file,
            splits,
        )
