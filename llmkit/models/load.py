"""From files on disk to a model that can run: Auto class, dtype, device, tokenizer, adapter.

Reads local folders only (`llmkit.models.locate` put the files there), so nothing here can reach a network.
Knows nothing of prompts and how output is produced.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import functools
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from llmkit.config.settings import LoadSettings
from llmkit.errors import (
    CheckpointError,
    TaskMismatchError,
    UsageError,
)
from llmkit.log import log
from llmkit.models.adapter_files import brings_head, check_adapter, check_base, weights_file
from llmkit.models.adapters import load_adapter
from llmkit.models.checkpoint import (
    gguf_config,
    gguf_metadata,
    joined_gguf,
    parameter_counts,
    tensor_shapes,
    weight_bytes,
    weight_files,
)
from llmkit.models.context import ContextLength, context_length
from llmkit.models.generation import apply_settings, generation_config, settle_tokens
from llmkit.models.locate import locate
from llmkit.models.memory import check_fits
from llmkit.models.quantize import quantization_config
from llmkit.models.quiet import no_bar_off_a_terminal, one_line_errors, quiet_transformers
from llmkit.models.reach import offline
from llmkit.models.resolve import Resolution, resolve
from llmkit.models.source import Source, read_json
from llmkit.models.tables import is_native, writes
from llmkit.models.tokenizer import load_tokenizer
from llmkit.models.tokenizer_files import has_chat_template
from llmkit.models.traps import hub_kernels
from llmkit.tasks import Head

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Loaded", "has_bfloat16", "load_model", "load_source", "pick_device"]

_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "8bit": 1.0, "4bit": 0.5}


@dataclass(frozen=True)
class Loaded:
    """A model ready to run, with what the layers above need to know of it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    resolution: Resolution
    source: Source
    context: ContextLength
    lock: AbstractContextManager[bool] = field(default_factory=threading.RLock, repr=False, compare=False)
    """Held while the model generates: other threads wait, and the one that holds it may ask again."""

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
) -> Loaded:
    """Locate and load the model for a task. The rest of the arguments is `locate`'s.

    Args:
        training: allow a newly initialised head.
        weights: False neither fetches nor reads any: the model is on the meta device, without its adapter.
        config_overrides: settings of the checkpoint's config that are changed.
        model_kwargs: arguments of ``from_pretrained`` that go before what follows from the settings; with a
            ``device_map`` among them nothing is said of memory.
        tokenizer: in place of the checkpoint's own, which is then not read.

    Raises:
        LlmkitError: one of its kinds, with one line that ends in what to do.
    """
    with offline(settings.offline):
        source = locate(settings, task, weights=weights, fallback=fallback, text=text, defaults=defaults)
        return load_source(
            source,
            settings,
            task,
            training=training,
            weights=weights,
            config_overrides=config_overrides,
            model_kwargs=model_kwargs,
            tokenizer=tokenizer,
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
) -> Loaded:
    """Load files that are on this machine. See `load_model`."""
    config, counts = _describe(source)
    overrides = {**source.config_overrides(), **(config_overrides or {})}
    resolution = resolve(task, config, head=settings.head, model=source.name)
    _refuse_untrusted({**config, **overrides}, source, settings, resolution)
    if source.adapter is not None:
        check_adapter(source.adapter, resolution.head)
    if resolution.new_head and not training and not brings_head(source.adapter, resolution.head):
        raise _new_head(source, resolution)
    if weights:
        _check_files(source, settings)
    with quiet_transformers(), one_line_errors(source):
        if settings.attn_implementation is not None:
            _check_attention(source, settings, resolution, config)
        if tokenizer is None:
            tokenizer = _tokenizer(source, settings)
        if weights:
            device = pick_device(settings.device)
            dtype = _pick_dtype(settings.dtype, device, _stored_dtype(config, counts))
            if "device_map" not in (model_kwargs or {}):
                _check_memory(source, settings, device, dtype, counts)
            own = dict(model_kwargs or {})
            if overrides and "config" not in own:
                own["config"] = _changed_config(source, settings, overrides)
            if not source.gguf_file and writes(resolution.head):
                own.setdefault("generation_config", generation_config(source.folder, config))
            with _in_one_file(source) as whole:
                model = _build(whole, settings, resolution, device, dtype, model_kwargs=own)
            if training:
                _keep_frozen(model)
            model = _with_adapter(model, source, settings, tokenizer, training=training)
        else:
            changed = _changed_config(source, settings, overrides)
            model = _build_on_meta(source, settings, resolution, changed, config)
            if overrides:
                _check_shapes(source, model)
    _apply_task_params(model, resolution.task)
    settle_tokens(model, tokenizer, source.folder)
    tokenizer_file = (source.adapter or source.folder) / "tokenizer_config.json"
    tokenizer_config = read_json(tokenizer_file) if tokenizer_file.is_file() else {}
    return Loaded(
        model=model.eval(),
        tokenizer=tokenizer,
        resolution=resolution,
        source=source,
        context=context_length({**config, **overrides}, tokenizer_config).without(source.virtual_tokens),
    )


# What is read, and refused, before anything heavy happens.


def _describe(source: Source) -> tuple[dict[str, Any], dict[str, int] | None]:
    """The config of a checkpoint and its parameters by dtype, from its small files and headers.

    Reading the headers also refuses a partial download.
    """
    if source.gguf_file:
        metadata = gguf_metadata(source.folder / source.gguf_file)
        return gguf_config(metadata), metadata["parameters_by_dtype"]
    return source.config(), parameter_counts(source.folder)


def _stored_dtype(config: dict[str, Any], counts: dict[str, int] | None) -> str:
    named = config.get("dtype") or config.get("torch_dtype")
    if named is None and counts:
        named = max(counts, key=lambda name: counts[name])
    return str(named or "float32")


def _refuse_untrusted(config: dict[str, Any], source: Source, settings: LoadSettings, resolution: Resolution) -> None:
    native = is_native(resolution.model_type, resolution.head)
    if config.get("auto_map") and not native and not settings.trust_remote_code:
        raise CheckpointError(
            f"{source.name} comes with Python code of its own that would run on this machine",
            "read the code, then pass --trust-remote-code if you trust it",
        )
    named = [*hub_kernels(config), *hub_kernels({"attn_implementation": settings.attn_implementation})]
    if named and not settings.trust_remote_code:
        raise CheckpointError(
            f"{named[0]} is a kernel of the Hub, whose code would run on this machine",
            "leave it out of config.json and --attn-implementation, or pass --trust-remote-code if you trust it",
        )


def _new_head(source: Source, resolution: Resolution) -> TaskMismatchError:
    return TaskMismatchError(
        f"{source.name} has no trained {resolution.head} head: {resolution.model_class} would start with random weights"
        " and give random answers",
        "fine-tune it first, or choose a model that has the head: llmkit models",
    )


def _check_files(source: Source, settings: LoadSettings) -> None:
    pickled = []
    if source.gguf_file:
        if settings.quantize:
            raise UsageError(f"{source.name} is a GGUF file, which is unpacked while loading", "leave --quantize out")
        log.warning("%s is unpacked to full weights each time it is loaded", source.gguf_file)
    else:
        files = weight_files(source.folder)
        if not files.safetensors and not files.bins:
            raise CheckpointError(f"{source.name} has a config.json and no weights", "download the checkpoint again")
        pickled += [] if files.safetensors else [path.name for path in files.bins[:2]]
    if source.adapter is not None:
        check_base(source.adapter, source.folder)
        if (file := weights_file(source.adapter)).suffix == ".bin":
            pickled.append(file.name)
    if pickled:
        _check_pickles(source, settings, ", ".join(pickled))


def _check_pickles(source: Source, settings: LoadSettings, names: str) -> None:
    if settings.safetensors_only:
        raise CheckpointError(f"{source.name} only has pickled weights ({names})", "choose another model or revision")
    if settings.allow_pickle:
        log.warning("%s is loaded as a full pickle, which can run code", names)
    else:
        log.warning("%s is not in the safetensors format; it is loaded with weights_only=True", names)


def _check_memory(
    source: Source, settings: LoadSettings, device: str, dtype: torch.dtype, counts: dict[str, int] | None
) -> None:
    if counts is None:
        needed = float(weight_bytes(source.folder))
    else:
        needed = sum(counts.values()) * _BYTES.get(settings.quantize or str(dtype).removeprefix("torch."), 4.0)
    check_fits(int(needed), device, source.name)


# The steps of loading.


def pick_device(device: str) -> str:
    """The device that a setting means; `UsageError` if this machine has none."""
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if device == "auto":
        return "cuda" if cuda else "mps" if mps else "cpu"
    if (device == "cuda" and not cuda) or (device == "mps" and not mps):
        raise UsageError(f"device={device}: this PyTorch sees no such device", "use --device auto or cpu")
    return device


def _pick_dtype(dtype: str, device: str, stored: str) -> torch.dtype:
    """The checkpoint's own type where the device computes well in it, else the nearest that is."""
    import torch

    if dtype != "auto":
        wanted: torch.dtype = getattr(torch, dtype)
        return wanted
    if stored in ("float32", "float64", "f32"):
        return torch.float32
    # Quantized blocks (GGUF) hold no more than half precision does, and are treated as bfloat16.
    stored = "float16" if stored in ("float16", "f16") else "bfloat16"
    if device == "cuda":
        return torch.bfloat16 if stored == "bfloat16" and has_bfloat16(device) else torch.float16
    if device == "mps":
        return torch.float16 if stored == "float16" else torch.bfloat16
    # Half precision on a processor without instructions for it is many times slower than float32.
    return torch.bfloat16 if has_bfloat16(device) else torch.float32


def has_bfloat16(device: str) -> bool:
    """Whether the hardware computes well in bfloat16."""
    import torch

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device == "mps" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001 - the only way to ask


@contextlib.contextmanager
def _in_one_file(source: Source) -> Iterator[Source]:
    """The source with the parts of its GGUF file joined, which is how Transformers reads them."""
    if source.gguf_file is None:
        yield source
        return
    with joined_gguf(source.folder / source.gguf_file) as path:
        yield replace(source, folder=path.parent, gguf_file=path.name)


def _build(
    source: Source,
    settings: LoadSettings,
    resolution: Resolution,
    device: str,
    dtype: torch.dtype,
    *,
    model_kwargs: Mapping[str, Any],
) -> PreTrainedModel:
    import transformers

    options: dict[str, Any] = {
        "dtype": dtype,
        "local_files_only": True,
        "trust_remote_code": settings.trust_remote_code,
    }
    if settings.attn_implementation is not None:
        options["attn_implementation"] = settings.attn_implementation
    if source.gguf_file:
        options["gguf_file"] = source.gguf_file
        # Left in blocks, the weights would need kernels from the Hub.
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    else:
        options["use_safetensors"] = bool(weight_files(source.folder).safetensors)
    if settings.quantize:
        options["quantization_config"] = quantization_config(settings.quantize, device, dtype)
    if device != "cpu" or settings.quantize:
        options["device_map"] = {"": device}
    options.update(model_kwargs)
    if settings.allow_pickle and options.get("use_safetensors") is False:
        model, info = _from_pickle(source, resolution, options)
    else:
        auto_class: Any = getattr(transformers, resolution.auto_class)
        with no_bar_off_a_terminal() if source.gguf_file else contextlib.nullcontext():
            model, info = auto_class.from_pretrained(source.folder, output_loading_info=True, **options)
            if prefix := _prefix(info):
                options["key_mapping"] = {f"^{re.escape(prefix)}": ""}
                model, info = auto_class.from_pretrained(source.folder, output_loading_info=True, **options)
    _check_missing(source, resolution, model, sorted(info["missing_keys"]))
    _take_own_decoding(source, settings, model)
    loaded: PreTrainedModel = model
    return loaded


def _take_own_decoding(source: Source, settings: LoadSettings, model: Any) -> None:
    """Let a checkpoint generate by code of its own, where that is trusted; Transformers looks for it by this name."""
    if not (source.folder / "custom_generate" / "generate.py").is_file():
        return
    if settings.trust_remote_code:
        own = model.load_custom_generate(source.folder, trust_remote_code=True, local_files_only=True)
        model.generate = functools.partial(own, model=model)
    else:
        log.warning(
            "%s comes with decoding code of its own (custom_generate), which is not run; read it, then pass"
            " --trust-remote-code",
            source.name,
        )


def _changed_config(source: Source, settings: LoadSettings, overrides: Mapping[str, Any]) -> PreTrainedConfig:
    """The checkpoint's config with some settings changed.

    Raises:
        UsageError: the config has no such setting, or its class refuses the value.
    """
    import transformers

    with _in_one_file(source) as whole:
        files = {"gguf_file": whole.gguf_file} if whole.gguf_file else {}
        config: PreTrainedConfig = transformers.AutoConfig.from_pretrained(
            whole.folder, local_files_only=True, trust_remote_code=settings.trust_remote_code, **files
        )
    for name, value in overrides.items():
        if not hasattr(config, name):
            near = difflib.get_close_matches(name, config.to_dict(), n=1)
            raise UsageError(
                f"model.config_overrides: {type(config).__name__} has no {name}",
                f"did you mean {near[0]}?" if near else "leave it out",
            )
        try:
            setattr(config, name, value)
        except Exception as error:  # each class of configs checks in its own way
            reason = " ".join(str(error).split())
            raise UsageError(f"model.config_overrides: {name} is {value!r} ({reason})", "correct it") from error
    return config


def _check_shapes(source: Source, model: PreTrainedModel) -> None:
    """Refuse changed settings with which the weights do not fit."""
    files = weight_files(source.folder).safetensors
    stored = {name: shape for path in files for name, shape in tensor_shapes(path).items()}
    for name, tensor in model.state_dict().items():
        shape = stored.get(name, stored.get(name.removeprefix(f"{model.base_model_prefix}.")))
        if shape is not None and shape != tuple(tensor.shape):
            raise UsageError(
                f"model.config_overrides do not fit {source.name}: {name} is {list(shape)} there, and would be "
                f"{list(tensor.shape)}",
                "leave out those that change sizes",
            )


def _with_adapter(model: Any, source: Source, settings: LoadSettings, tokenizer: Any, *, training: bool) -> Any:
    if source.adapter is None:
        return model
    log.info("adapter: %s on %s", source.adapter, source.folder)
    tokens = len(tokenizer) if _has_tokenizer(source.adapter) else 0
    allowed = settings.allow_pickle
    return load_adapter(model, source.adapter, training=training, tokens=tokens, allow_pickle=allowed)


def _keep_frozen(model: PreTrainedModel) -> None:
    """Freeze what the class never trains, such as sinusoidal positions: `from_pretrained` of version 5 forgets it."""
    import torch

    with torch.device("meta"):
        made = type(model)._from_config(copy.deepcopy(model.config))  # noqa: SLF001 - what AutoModel calls
    frozen = {name for name, each in made.named_parameters() if not each.requires_grad}
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)


def _build_on_meta(
    source: Source,
    settings: LoadSettings,
    resolution: Resolution,
    config: PreTrainedConfig,
    plain: Mapping[str, Any],
) -> PreTrainedModel:
    """The model's structure and settings, without memory for one weight; ``plain`` is its config.json."""
    import torch
    import transformers

    auto_class: Any = getattr(transformers, resolution.auto_class)
    with torch.device("meta"):
        if hasattr(auto_class, "from_config"):
            model: PreTrainedModel = auto_class.from_config(config, trust_remote_code=settings.trust_remote_code)
        else:  # a class that no Auto class lists for this type
            model = auto_class(config)
    if not source.gguf_file and model.can_generate():
        model.generation_config = generation_config(source.folder, plain)
    return model


def _check_attention(source: Source, settings: LoadSettings, resolution: Resolution, plain: Mapping[str, Any]) -> None:
    """Refuse an attention that is not installed or that the model has not, before any weight is read."""
    config = _changed_config(source, settings, {})
    try:
        config._attn_implementation = settings.attn_implementation  # noqa: SLF001 - the only place for it
        _build_on_meta(source, settings, resolution, config, plain)
    except (ImportError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"attn_implementation {settings.attn_implementation} does not work here ({reason})",
            "leave it out, or use sdpa or eager",
        ) from error


def _from_pickle(source: Source, resolution: Resolution, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Read the .bin files here: Transformers 5.23 drops ``weights_only=False`` on the way to ``torch.load``."""
    import torch
    import transformers

    state: dict[str, torch.Tensor] = {}
    for path in weight_files(source.folder).bins:
        content = torch.load(path, map_location="cpu", weights_only=False)
        state |= {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    model_class = getattr(transformers, resolution.model_class, None)
    if model_class is None:
        raise CheckpointError(
            f"{source.name} has a class of its own and its weights are a full pickle", "convert it to safetensors"
        )
    options = {name: value for name, value in options.items() if name not in ("use_safetensors", "trust_remote_code")}
    options.setdefault("config", transformers.AutoConfig.from_pretrained(source.folder, local_files_only=True))
    model, info = model_class.from_pretrained(None, state_dict=state, output_loading_info=True, **options)
    return model, info


def _prefix(info: Mapping[str, Any]) -> str:
    """What stands before the names of all weights that were not found, if they are the text side of a larger model."""
    missing, unexpected = sorted(info["missing_keys"]), set(info["unexpected_keys"])
    if not missing:
        return ""
    longer = (name.removesuffix(missing[0]) for name in sorted(unexpected) if name.endswith(f".{missing[0]}"))
    return next((prefix for prefix in longer if all(f"{prefix}{name}" in unexpected for name in missing)), "")


def _check_missing(source: Source, resolution: Resolution, model: Any, missing: Sequence[str]) -> None:
    """Only a new head may begin from random weights, if it is about to be trained or an adapter has another."""
    if resolution.new_head:
        below = [name for name in missing if name.startswith(f"{model.base_model_prefix}.")]
        if below:
            log.warning("%s lacks weights below the head (%s), which begin random", source.name, _named(below))
    elif missing:
        raise CheckpointError(
            f"{source.name} lacks weights of {resolution.model_class} ({_named(missing)}); they would be random, and so"
            " the answers",
            "download the checkpoint again, or choose one whose config.json names this class",
        )


def _named(weights: Sequence[str]) -> str:
    return f"{weights[0]} and {len(weights) - 1} more" if len(weights) > 1 else weights[0]


def _apply_task_params(model: Any, task: str) -> None:
    """Generation settings that the config keeps for one task (T5, BART), as Transformers 4's pipelines took them."""
    params = getattr(model.config, "task_specific_params", None) or {}
    kept = next((value for name, value in params.items() if name == task or name.startswith(f"{task}_")), None)
    own = getattr(model, "generation_config", None)
    if own is not None and isinstance(kept, dict):
        apply_settings(own, kept)


def _has_tokenizer(adapter: Path) -> bool:
    return (adapter / "tokenizer_config.json").is_file()


def _tokenizer(source: Source, settings: LoadSettings) -> PreTrainedTokenizerBase:
    own_code = settings.trust_remote_code
    # A tuned adapter may have brought tokens and a chat template of its own.
    if source.adapter is not None and _has_tokenizer(source.adapter):
        tokenizer = load_tokenizer(source.adapter, trust_remote_code=own_code)
        if tokenizer.chat_template is None and has_chat_template(source.folder):
            # Uploads by pattern (*.json, *.safetensors) leave chat_template.jinja behind.
            tokenizer.chat_template = load_tokenizer(source.folder, trust_remote_code=own_code).chat_template
            log.warning("the adapter brings a tokenizer without a chat template; its base model's is used")
        return tokenizer
    if source.gguf_file:
        _warn_of_unknown_splits(source)
    extra = {"gguf_file": source.gguf_file} if source.gguf_file else {}
    return load_tokenizer(source.folder, trust_remote_code=own_code, **extra)


def _warn_of_unknown_splits(source: Source) -> None:
    """Transformers knows how some vocabularies cut text before merging, and cuts the others as GPT-2 does, silently."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    metadata = gguf_metadata(source.folder / str(source.gguf_file))
    kind, splits = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "default")
    if kind == "gpt2" and splits not in ("default", "gpt-2", *GGUF_PRE_TOKENIZER_SPLITS):
        log.warning(
            "the tokenizer of %s cuts text as %r, which Transformers does not know: numbers and line breaks may become"
            " other tokens than in training; the checkpoint as safetensors has no such doubt",
            source.gguf_file,
            splits,
        )
