"""`pipeline` as in Transformers 4: its arguments, and the loading of models.

Tasks that version 5 still has are passed on to it. The pipelines themselves are in `text_to_text` and
`question_answering`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.config.settings import LoadSettings
from llmkit.errors import TaskMismatchError, UsageError
from llmkit.log import warn
from llmkit.models.load import load_model
from llmkit.models.locate import locate
from llmkit.models.tokenizer import load_tokenizer
from llmkit.tasks import Head

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
    from transformers.pipelines.base import Pipeline

__all__ = ["REMOVED", "build_pipeline"]

REMOVED: dict[str, str] = {
    "summarization": "sshleifer/distilbart-cnn-12-6",
    "translation": "google-t5/t5-base",
    "text2text-generation": "google-t5/t5-base",
    "question-answering": "distilbert/distilbert-base-cased-distilled-squad",
}
"""Tasks removed in version 5, each with the default model of version 4."""

_NO_EFFECT = ("feature_extractor", "image_processor", "processor", "modelcard", "args_parser")
_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token", "code_revision")


def build_pipeline(
    task: str | None,
    model: str | Path | PreTrainedModel | None,
    config: str | PreTrainedConfig | None,
    tokenizer: Any,
    *,
    bug_compatible: bool,
    **options: Any,
) -> Pipeline:
    """See `llmkit.pipeline`."""
    if (framework := options.pop("framework", None)) not in (None, "pt"):
        raise UsageError(
            f"framework={framework!r} is not supported since Transformers 5",
            "leave it out; PyTorch is the only one",
            code="not_supported",
        )
    removed = _removed(task)
    if bug_compatible and removed != "question-answering":
        raise UsageError(
            f"bug_compatible applies to question-answering only, not to {task}", "leave it out", code="no_effect"
        )
    if task is None or removed is None:
        import transformers

        options = {"config": config, "tokenizer": tokenizer, **options}
        build: Any = transformers.pipeline
        built: Pipeline = build(
            task, model=model, **{name: value for name, value in options.items() if value is not None}
        )
        return built
    if model is None:
        raise UsageError(
            f"{task} has no default model",
            f"name one with model=, such as {REMOVED[removed]}, the default of Transformers 4",
            code="model_not_found",
        )
    given, loading = _split(options)
    if isinstance(model, str | Path):
        model, tokenizer = _load(removed, str(model), config, tokenizer, loading)
    else:
        tokenizer = _fitting_tokenizer(model, removed, config, tokenizer, loading)
    cls = loading.get("pipeline_class") or _pipeline_class(removed)
    if removed == "question-answering" and bug_compatible:
        given["bug_compatible"] = True
    pipeline: Pipeline = cls(model=model, tokenizer=tokenizer, task=_task_of(task, model), **given)
    return pipeline


def _removed(task: str | None) -> str | None:
    """The key of `REMOVED` for the name of a task."""
    parts = (task or "").split("_")
    if parts[0] == "translation" and len(parts) > 1:
        if len(parts) != 4 or parts[2] != "to":
            raise UsageError(f"{task} is not a translation task", "write translation_xx_to_yy, or translation")
        return "translation"
    return task if task in REMOVED else None


def _pipeline_class(removed: str) -> type[Pipeline]:
    from llmkit.compat import question_answering, text_to_text

    classes: dict[str, type[Pipeline]] = {
        "summarization": text_to_text.SummarizationPipeline,
        "translation": text_to_text.TranslationPipeline,
        "text2text-generation": text_to_text.Text2TextGenerationPipeline,
        "question-answering": question_answering.QuestionAnsweringPipeline,
    }
    return classes[removed]


def _task_of(task: str, model: Any) -> str:
    """The name of the task; for ``translation``, that of the first language pair with settings in the config."""
    params = getattr(model.config, "task_specific_params", None) or {}
    pair: str | None = next((name for name in params if name.startswith("translation")), None)
    if task == "translation" and pair is not None:
        warn("languages_assumed", "no translation languages were given; using the settings and languages of %s", pair)
        return pair
    return task


# Arguments of loading, apart from those of the pipeline itself.

_LOADING = ("revision", "use_fast", "token", "trust_remote_code", "dtype", "torch_dtype", "device_map", "model_kwargs")


def _split(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    for name in _NO_EFFECT:
        if options.pop(name, None) is not None:
            raise UsageError(f"{name} has no effect on a text pipeline", "leave it out", code="no_effect")
    loading = {name: options.pop(name) for name in (*_LOADING, "pipeline_class") if name in options}
    if loading.get("token") not in (None, True):
        raise UsageError(
            "pipeline() does not support token=", "run hf auth login, or set HF_TOKEN", code="not_supported"
        )
    if not loading.get("use_fast", True):
        warn("no_effect", "use_fast=False has no effect: Transformers 5 has one tokenizer for each model")
    if options.get("device") is not None and loading.get("device_map") is not None:
        raise UsageError("device and device_map are mutually exclusive", "leave one of them out", code="no_effect")
    return options, loading


def _model_kwargs(loading: dict[str, Any], config: Any) -> dict[str, Any]:
    """Arguments of ``from_pretrained``, in the names of version 5."""
    kwargs = dict(loading.get("model_kwargs") or {})
    if names := [name for name in _HUB if name in kwargs]:
        raise UsageError(
            f"model_kwargs: {', '.join(names)} is not supported",
            "use revision=, HF_HOME, HF_TOKEN or HF_HUB_OFFLINE",
            code="not_supported",
        )
    dtype = loading.get("dtype", "auto")
    if dtype == "auto":
        dtype = loading.get("torch_dtype") or "auto"
    if inner := [kwargs.pop(name) for name in ("torch_dtype", "dtype") if name in kwargs]:
        if dtype != "auto":
            raise UsageError(
                "dtype is set both directly and in model_kwargs", "leave one of them out", code="not_supported"
            )
        dtype = inner[-1]
    kwargs["dtype"] = "float32" if dtype is None else dtype
    if loading.get("device_map") is not None:
        kwargs["device_map"] = loading["device_map"]
    if config is not None:
        kwargs["config"] = _config(config, loading)
    return kwargs


def _settings(model: str, loading: dict[str, Any], **more: Any) -> LoadSettings:
    return LoadSettings(
        model=model,
        revision=loading.get("revision"),
        trust_remote_code=bool(loading.get("trust_remote_code")),
        device="cpu",  # the pipeline moves it, as in version 4
        **more,
    )


def _load(
    removed: str, model: str, config: Any, tokenizer: Any, loading: dict[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    span = removed == "question-answering"
    if tokenizer is not None:
        tokenizer = _tokenizer(tokenizer, loading)
    loaded = load_model(
        _settings(model, loading, head=Head.SPAN if span else Head.SEQ2SEQ),
        # Under this name nothing of task_specific_params is applied: the pipeline does so, in its own order.
        "question-answering" if span else "text-generation",
        model_kwargs=_model_kwargs(loading, config),
        tokenizer=tokenizer,
    )
    return loaded.model, loaded.tokenizer


def _fitting_tokenizer(model: Any, removed: str, config: Any, tokenizer: Any, loading: dict[str, Any]) -> Any:
    """The tokenizer for a loaded model."""
    useless = [name for name in loading if name not in ("use_fast", "pipeline_class", "trust_remote_code")]
    useless = [name for name in useless if loading[name] not in (None, "auto", {})]
    if useless and not isinstance(tokenizer or config, str):
        raise UsageError(f"{', '.join(useless)} has no effect on a loaded model", "leave it out", code="no_effect")
    if removed != "question-answering" and not (model.config.is_encoder_decoder and model.can_generate()):
        raise TaskMismatchError(
            f"{type(model).__name__} is not an encoder-decoder with a language modeling head",
            f"use a model that is, as {removed} requires",
        )
    if tokenizer is None and not isinstance(config, str):
        raise UsageError("a model object does not contain its tokenizer", "pass tokenizer= too")
    return _tokenizer(config if tokenizer is None else tokenizer, loading)


def _tokenizer(tokenizer: Any, loading: dict[str, Any]) -> Any:
    """A tokenizer from a name, or a name and arguments of ``from_pretrained``; an object is returned unchanged."""
    name, kwargs = tokenizer if isinstance(tokenizer, tuple) else (tokenizer, {})
    if not isinstance(name, str | Path):
        return tokenizer
    settings = _settings(str(name), loading)
    folder = locate(settings, weights=False).folder
    return load_tokenizer(folder, trust_remote_code=settings.trust_remote_code, **kwargs)


def _config(config: Any, loading: dict[str, Any]) -> Any:
    if not isinstance(config, str | Path):
        return config
    from transformers import AutoConfig

    settings = _settings(str(config), loading)
    folder = locate(settings, weights=False).folder
    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=settings.trust_remote_code)
