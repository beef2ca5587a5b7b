"""The command ``llmkit env``: what a report of a problem needs to know, without passwords and tokens."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from llmkit.cli.output import AsJson
from llmkit.cli.streams import echo
from llmkit.errors import without_password
from llmkit.log import printable

__all__ = ["env"]

_PACKAGES = (
    *("llmkit", "torch", "transformers", "accelerate", "peft", "datasets", "huggingface_hub", "tokenizers"),
    *("evaluate", "typer", "bitsandbytes"),
)
_VARIABLES = (
    *("LLMKIT_CACHE", "LLMKIT_CONFIG", "LLMKIT_MODEL", "LLMKIT_STARTER_WHEEL"),
    *("HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"),
    *("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HTTPS_PROXY", "https_proxy"),
)


def env(as_json: AsJson = False) -> None:
    """Show versions, devices, folders, network settings and default models.

    Contains no passwords and tokens, so that it can be part of a bug report.

    Examples:
        llmkit env
        llmkit env --json
    """
    found = {"schema_version": 1, **_collect()}
    if as_json:
        echo(without_password(json.dumps(found, ensure_ascii=False)))
        return
    for line in _lines(found):
        echo(without_password(printable(line)))


def _collect() -> dict[str, Any]:
    from huggingface_hub import constants, get_token

    from llmkit.config.paths import cache_dir
    from llmkit.config.user import config_path
    from llmkit.hub.reachability import is_offline

    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "system": {"platform": platform.platform(), "executable": sys.executable},
        "devices": _devices(),
        "threads": _threads(),
        "folders": {
            "configuration": f"{config_path()}{'' if config_path().exists() else ' (does not exist)'}",
            "llmkit_cache": str(cache_dir()),
            "hub_cache": str(constants.HF_HUB_CACHE),
        },
        "hub": {
            "endpoint": str(constants.ENDPOINT),
            "offline": is_offline(),
            "token": "set" if get_token() else "not set",
        },
        "default_models": _default_models(),
        "variables": {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)},
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _devices() -> dict[str, str]:
    """The devices that ``--device`` can name, with their memory."""
    import torch

    from llmkit.files import in_units
    from llmkit.models.memory import available_memory

    found = {"cpu": f"{os.cpu_count()} cores, {in_units(available_memory('cpu'))} of memory available"}
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = f"{about.name}, {in_units(about.total_memory)}"
    if torch.backends.mps.is_available():
        found["mps"] = "Apple GPU"
    return found


def _threads() -> dict[str, Any]:
    import torch

    from llmkit.models.threads import usable_cpus

    load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    return {"usable_cpus": usable_cpus(), "torch_threads": torch.get_num_threads(), "load_average": load}


def _default_models() -> dict[str, str]:
    """The default model of each task, and where it is set."""
    from llmkit.config.user import default_model
    from llmkit.tasks import TASKS

    found = {}
    for task in TASKS.values():
        chosen, own = default_model(task), task.shown_defaults()["model"]
        found[task.verb] = f"{chosen.model} ({chosen.origin})" if chosen else f"{own} (default of the task)"
    return found


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    for title, content in found.items():
        if not isinstance(content, Mapping):
            continue
        if content:
            yield f"{title.replace('_', ' ')}:"
            width = max(map(len, content))
            yield from (f"  {name:{width}}  {_shown(value)}" for name, value in content.items())


def _shown(value: Any) -> str:
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)
