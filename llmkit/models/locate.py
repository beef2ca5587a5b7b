"""Locates the files of a model from its name, and downloads them if necessary.

Knows the forms of a name (none, ``starter``, a folder, an adapter, a GGUF file, a Hub id) and the default models.
The network is used by `llmkit.hub` only; embedded models are in `llmkit.models.bundled`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from glob import escape
from pathlib import Path
from typing import Any

from llmkit.config.commands import quoted
from llmkit.config.paths import user_path
from llmkit.config.settings import LoadSettings
from llmkit.errors import CheckpointError, HubUnreachableError, LlmkitError, ModelNotFoundError, UsageError
from llmkit.files import read_json
from llmkit.hub.client import exists, fetch, is_cached
from llmkit.hub.reachability import hub_reachable, is_offline, mirror_hint
from llmkit.hub.repo_files import part_names
from llmkit.log import log, warn
from llmkit.models.bundled import EMBEDDED, embedded_source, is_embedded, limits, needs_no_download
from llmkit.models.source import ADAPTER_CONFIG, CONTRACT_FILE, Source
from llmkit.models.wheels import Wheel, weights_hash, wheel_source
from llmkit.tasks import find_task

__all__ = ["locate", "locate_tokenizer"]

_NAME_IT = "name the base model with `base`"


def locate(
    settings: LoadSettings,
    task: str = "",
    *,
    weights: bool = True,
    fallback: bool = True,
    text: str = "",
    defaults: Sequence[str] = (),
) -> Source:
    """Locate the model named in ``settings``; it is downloaded if that is allowed.

    Args:
        settings: with ``model`` None, the task's default is used.
        task: name of the task whose default is used.
        weights: False downloads only configs and tokenizer files.
        fallback: without a named model and without the Hub, True uses the task's embedded model with a warning, False
            raises.
        text: the user's text, on which the default may depend.
        defaults: the task's default models, if they depend on its settings or the text; the first that exists is used.

    Raises:
        ModelNotFoundError, HubUnreachableError, CheckpointError, NotEnoughMemoryError: one line each.
    """
    if settings.model is None:
        candidates = defaults or find_task(task)().default_models(text)
        return _default(settings, task, candidates, weights=weights, fallback=fallback)
    found = _named(settings.model, settings, weights=weights)
    if settings.base is not None and found.adapter is None:
        raise UsageError(
            f"base applies to adapters, and {settings.model} is not one", "leave `base` out", code="no_effect"
        )
    return found


def locate_tokenizer(settings: LoadSettings, task: str) -> Source:
    """Locate the tokenizer of the model in ``settings``; a folder of ``tokenizer.save_pretrained`` suffices."""
    folder = user_path(str(settings.model))
    if any((folder / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json")):
        return Source(name=str(settings.model), folder=folder)
    return locate(settings, task, weights=False, fallback=False)


def _default(settings: LoadSettings, task: str, candidates: Sequence[str], *, weights: bool, fallback: bool) -> Source:
    if Path(candidates[0]).is_absolute():
        log.info("model: %s (the default for %s)", candidates[0], task)
        return _named(candidates[0], settings, weights=weights)
    cached = next((name for name in candidates if is_cached(name)), None)
    if not is_offline() and hub_reachable():
        # A single candidate is downloaded unchecked; of several, the last always exists.
        model = next((name for name in candidates[:-1] if exists(name)), candidates[-1])
        log.info("model: %s (the default for %s)", model, task)
        return _from_hub(model, settings, weights=weights)
    if cached is not None:
        log.info("model: %s (the default for %s)", cached, task)
        return _from_hub(cached, settings, weights=weights)
    if not fallback:
        raise HubUnreachableError(
            f"the model hub cannot be reached and the default for {task} is not on this machine",
            *(() if is_offline() else (mirror_hint(),)),
            "name a model: `model=starter`, or a folder",
            code="offline" if is_offline() else "hub_unreachable",
        )
    source = _embedded(find_task(task).embedded)
    warn(
        "fallback_model",
        "%s, so the embedded model answers (`model=%s`). %s",
        "offline" if is_offline() else f"the model hub cannot be reached ({mirror_hint()})",
        source.name,
        limits(source.name),
    )
    return source


def _embedded(names: Sequence[str]) -> Source:
    """The first of a task's embedded models or, if it is unavailable, another one that is on this machine."""
    first, *others = names
    try:
        return embedded_source(first, offline=is_offline())
    except LlmkitError as error:
        other = next((name for name in others if needs_no_download(name)), None)
        if other is None:
            raise
        warn("fallback_model", "%s, which answers better than %s, is missing: %s", first, other, error)
        return embedded_source(other, offline=is_offline())


def _named(model: str, settings: LoadSettings, *, weights: bool) -> Source:
    path = user_path(model)
    if settings.revision is not None and (is_embedded(model) or path.exists()):
        raise UsageError(f"{model} is not on the Hub and has no revisions", "leave `revision` out", code="no_effect")
    if is_embedded(model):
        return embedded_source(model, offline=is_offline())
    if path.is_dir():
        return _from_folder(model, path, settings, weights=weights)
    if path.is_file():
        if path.suffix == ".gguf":
            return Source(name=model, folder=path.parent, gguf_file=part_names(path.name)[0])
        _refuse_pieces(path)
        raise CheckpointError(f"{model} is a file, and not a GGUF file", "give the folder that contains config.json")
    if _looks_like_a_path(model):
        raise ModelNotFoundError(
            f"the folder {model} does not exist", "check the path; Hub ids have the form owner/name"
        )
    return _from_hub(model, settings, weights=weights)


def _looks_like_a_path(model: str) -> bool:
    if model.endswith(".gguf") and model.count("/") >= 2 and not model.startswith((".", "/", "~")):
        return False  # owner/name/file.gguf on the Hub
    return model.startswith((".", "/", "~")) or model.count("/") > 1 or os.sep in model.replace("/", "")


def _from_folder(model: str, folder: Path, settings: LoadSettings, *, weights: bool) -> Source:
    if (folder / ADAPTER_CONFIG).is_file():
        return _with_base(model, folder, None, settings, weights=weights)
    if (folder / "config.json").is_file():
        return Source(name=model, folder=folder)
    ggufs = sorted({part_names(path.name)[0] for path in folder.glob("*.gguf")})
    if len(ggufs) == 1:
        return Source(name=model, folder=folder, gguf_file=ggufs[0])
    if ggufs:
        raise CheckpointError(f"{model} contains {len(ggufs)} GGUF models", f"name one: `model={folder / ggufs[0]}`")
    for path in sorted(folder.glob("*.gguf[.-]*")):
        _refuse_pieces(path)
    below = sorted(path.parent for name in ("config.json", ADAPTER_CONFIG) for path in folder.glob(f"*/{name}"))
    if below:
        raise CheckpointError(
            f"{model} has no config.json, but subfolders have",
            f"name one: `model={below[0]}`",
            code="incomplete_checkpoint",
        )
    raise CheckpointError(
        f"{model} has no config.json", "give a folder written by save_pretrained", code="incomplete_checkpoint"
    )


def _refuse_pieces(path: Path) -> None:
    """Raise an error with the command that joins the pieces of a GGUF file that was split at any byte."""
    if found := re.fullmatch(r"(.+\.gguf)[.-](?:part|split-)?(?:\d+of\d+|[a-z]{1,2}|\d+)", path.name):
        pieces = " ".join(quoted(piece.name) for piece in sorted(path.parent.glob(f"{escape(found[1])}[.-]*")))
        raise CheckpointError(
            f"{path} is a piece of a GGUF file", f"join them in its folder: cat {pieces} > {quoted(found[1])}"
        )


def _from_hub(model: str, settings: LoadSettings, *, weights: bool) -> Source:
    repo, filename = model, None
    if model.endswith(".gguf"):
        owner, name, filename = model.split("/", 2)
        repo = f"{owner}/{name}"
    snapshot = fetch(
        repo,
        revision=settings.revision,
        filename=filename,
        safetensors_only=settings.safetensors_only,
        code=settings.trust_remote_code,
        weights=weights or filename is not None,  # a GGUF file is its own config
    )
    if (snapshot.folder / ADAPTER_CONFIG).is_file():
        return _with_base(model, snapshot.folder, snapshot.commit, settings, weights=weights)
    part = None if filename is None else part_names(filename)[0]
    return Source(name=model, folder=snapshot.folder, commit=snapshot.commit, gguf_file=part)


def _with_base(
    model: str, adapter: Path, adapter_commit: str | None, settings: LoadSettings, *, weights: bool
) -> Source:
    config, file = read_json(adapter / ADAPTER_CONFIG), adapter / ADAPTER_CONFIG
    if "peft_type" not in config:
        raise CheckpointError(
            f"{file} has no peft_type, so the adapter is not in PEFT's format (mlx-lm and AdapterHub have others)",
            "merge it with the program that trained it, such as mlx_lm.fuse, and use the merged model",
            code="adapter_mismatch",
        )
    base = settings.base or config.get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise CheckpointError(f"{file} names no base model", _NAME_IT)
    beside = adapter / str(base)
    if settings.base is None and not Path(base).is_absolute() and beside.is_dir():
        base = str(beside.resolve())
    if base == model or (user_path(base) / ADAPTER_CONFIG).is_file():
        raise _is_adapter(model, base)
    try:
        wheel = None if settings.base or config.get("revision") else _embedded_base(adapter, base)
        if wheel is not None:
            found = wheel_source(wheel, offline=is_offline())
            _check_weights(model, adapter, wheel, found.folder)
        else:
            found = _named(base, _for_base(settings, base, config.get("revision")), weights=weights)
    except (CheckpointError, HubUnreachableError, ModelNotFoundError) as error:
        if settings.base is not None:
            raise
        raise type(error)(
            f"{model} is an adapter, and its base model was not found: {error.problem}"
            f" (base_model_name_or_path in {file})",
            _NAME_IT,
            *(
                f"use its embedded version{f' ({wheel.changes})' if wheel.changes else ''}: `base={wheel.name}`"
                for wheel in EMBEDDED.values()
                if wheel.hub_id == base
            ),
            code=error.code,
        ) from error
    if found.adapter is not None:
        raise _is_adapter(model, base)
    return Source(
        name=model,
        folder=found.folder,
        commit=found.commit,
        gguf_file=found.gguf_file,
        adapter=adapter,
        adapter_commit=adapter_commit,
        base=base,
        origin=found.origin,
    )


def _base_record(adapter: Path) -> dict[str, Any]:
    """What llmkit recorded about the embedded base of an adapter (`llmkit.inference.tuned_config.Contract.base`)."""
    path = adapter / CONTRACT_FILE
    record = read_json(path).get("base") if path.is_file() else None
    return record if isinstance(record, dict) else {}


def _embedded_base(adapter: Path, base: str) -> Wheel | None:
    """The embedded model that is an adapter's base, although the adapter's config names the Hub model it was made from.

    If their weights differ, the embedded one is used only if llmkit recorded that the adapter was trained on it.
    """
    wheel = next((wheel for wheel in EMBEDDED.values() if wheel.hub_id == base), None)
    if wheel is None or _base_record(adapter).get("embedded") == wheel.name:
        return wheel
    return None if wheel.changes or is_cached(base) else wheel


def _check_weights(model: str, adapter: Path, wheel: Wheel, folder: Path) -> None:
    recorded = _base_record(adapter).get("sha256")
    if recorded is not None and recorded != weights_hash(folder):
        warn(
            "tuned_differently",
            "%s was trained on another version of the %s, whose weights differ: its answers may differ too",
            model,
            wheel.name,
        )


def _is_adapter(model: str, base: str) -> CheckpointError:
    merged = f"run `llmkit merge {quoted(base)} -o FOLDER`, and name the result with `base=FOLDER`"
    return CheckpointError(
        f"the base model of {model}, {base}, is an adapter itself",
        _NAME_IT if base == model else merged,
        code="adapter_mismatch",
    )


def _for_base(settings: LoadSettings, base: str, revision: str | None) -> LoadSettings:
    """Settings for loading the base. The user's revision is the adapter's; the base has the one it was trained from."""
    local = settings.base is not None or user_path(base).exists()
    return replace(settings, model=base, base=None, revision=None if local else revision)
