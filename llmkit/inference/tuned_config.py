"""The task and prompt settings a model was tuned with, saved with its weights so that inference needs no flags.

``llmkit.json`` holds the task, its settings and the system prompt. Knows that file; the caller decides when it is
written.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from llmkit.config.settings import GenerationSettings, TruncationSide, explicitly_set, setting_fields
from llmkit.errors import CheckpointError
from llmkit.files import read_json
from llmkit.log import log, warn
from llmkit.models.load import Loaded
from llmkit.models.source import CONTRACT_FILE
from llmkit.tasks import PromptOptions, Task

__all__ = ["CONTRACT_FILE", "Contract", "apply_contract", "read_contract", "write_contract"]

_VERSION = 1


@dataclass(frozen=True)
class Contract:
    """The task that a model was tuned for, and how it was prompted."""

    task: str
    settings: dict[str, Any] = field(default_factory=dict)
    """The task's settings, including defaults, since another version may have different defaults."""
    system: str = ""
    raw: bool = False
    """Without the chat template."""
    longest_target: int = 0
    """Tokens of the longest training answer, 0 for spans; the output limit is at least this unless the user sets it."""
    truncation_side: TruncationSide | None = None
    """Side at which long texts were truncated, if the recipe sets it."""
    config_overrides: dict[str, Any] | None = None
    """For an adapter: settings of its base's config that were changed for training, and apply at inference too."""
    base: dict[str, Any] | None = None
    """The embedded model that was tuned, if any: its name in llmkit, the Hub model it was made from, how its weights
    differ from that, and their hash."""
    version: int = _VERSION


def write_contract(folder: Path, contract: Contract) -> None:
    """Write the contract to a model's folder."""
    content = {name: value for name, value in asdict(contract).items() if value is not None}
    text = json.dumps(content, ensure_ascii=False, indent=2)
    (folder / CONTRACT_FILE).write_text(f"{text}\n", encoding="utf-8")


def read_contract(loaded: Loaded) -> Contract | None:
    """The contract of a loaded model (of its adapter, if it has one); None if it was not tuned by llmkit.

    Raises:
        CheckpointError: a newer llmkit wrote it, or it is damaged.
    """
    path = (loaded.source.adapter or loaded.source.folder) / CONTRACT_FILE
    if not path.is_file():
        return None
    content = read_json(path)
    if content.get("version") != _VERSION:
        raise CheckpointError(
            f"{path} has version {content.get('version')}, and this llmkit supports {_VERSION}", "upgrade llmkit"
        )
    known = {item.name for item in fields(Contract)}
    if not isinstance(content.get("task"), str) or not content.keys() <= known:
        raise CheckpointError(f"{path} is not what llmkit wrote", "train again, or remove it and give the settings")
    return Contract(**content)


def apply_contract(
    loaded: Loaded, task: Task, prompt_options: PromptOptions, settings: GenerationSettings
) -> tuple[Task, PromptOptions, GenerationSettings]:
    """Task, wording and length as the model was tuned, unless the caller set them explicitly."""
    contract = read_contract(loaded)
    if contract is None:
        return task, prompt_options, settings
    if contract.task != task.name:
        log.info("%s was tuned for %s", loaded.source.name, contract.task)
        return task, prompt_options, settings
    explicit = set(explicitly_set(task.settings))
    for name in explicit & contract.settings.keys():
        if getattr(task.settings, name) != contract.settings[name]:
            warn("tuned_differently", "%s was tuned with %s=%s", loaded.source.name, name, contract.settings[name])
    known = {item.name for item in setting_fields(task.settings_class)}
    new = {name: value for name, value in contract.settings.items() if name in known - explicit}
    if new:
        task = type(task)(replace(task.settings, **new))
    system = prompt_options.system or contract.system
    if settings.max_new_tokens is None and contract.longest_target > task.max_new_tokens:
        settings = replace(settings, max_new_tokens=contract.longest_target)
    if settings.on_overflow == "truncate" and settings.truncation_side is None:
        settings = replace(settings, truncation_side=contract.truncation_side)
    return task, replace(prompt_options, system=system, raw=prompt_options.raw or contract.raw), settings
