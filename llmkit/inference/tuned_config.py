"""The task and prompt settings a model was tuned with, saved with its weights so that inference needs no flags.

``llmkit.json`` holds the task, its settings and the prompt options. Knows that file; the caller decides when it is
written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from textwrap import shorten
from typing import Any

from llmkit.config.declaration import explicitly_set, setting_fields
from llmkit.config.recipe import Recipe
from llmkit.config.settings import GenerationSettings, TruncationSide
from llmkit.data.prompt_files import open_prompt
from llmkit.engines.transformers.traits import traits_of
from llmkit.errors import CheckpointError
from llmkit.files import read_json
from llmkit.log import log, warn
from llmkit.models.load import Loaded
from llmkit.models.source import CONTRACT_FILE
from llmkit.tasks import PromptOptions, Task
from llmkit.tasks.wording import for_model, has_wording

__all__ = [
    "CONTRACT_FILE",
    "Contract",
    "apply_contract",
    "read_contract",
    "recipe_prompt",
    "tuned_prompt",
    "write_contract",
]

_VERSION = 2
_SHOWN = 80
"""Characters of a value in a warning."""
_PROMPT_DEFAULTS: dict[str, Any] = {
    item.name: item.default for item in setting_fields(PromptOptions) if not item.metadata["inference_only"]
}
"""The prompt options of a model that was tuned without any."""


@dataclass(frozen=True)
class Contract:
    """The task that a model was tuned for, and how it was prompted."""

    task: str
    settings: dict[str, Any] = field(default_factory=dict)
    """The task's settings, including defaults, since another version may have different defaults."""
    prompt: dict[str, Any] = field(default_factory=dict)
    """Prompt options, see `tuned_prompt`."""
    longest_target: int = 0
    """Tokens of the longest training answer, 0 for spans; the output limit is at least this unless the user sets it."""
    truncation_side: TruncationSide | None = None
    """Side at which long texts were truncated, if the recipe sets it."""
    config_overrides: dict[str, Any] | None = None
    """For an adapter: settings of its base's config that were changed for training, and apply at inference too."""
    base: dict[str, Any] | None = None
    """The embedded model that was tuned, if any: its name in llmkit, the Hub model it was made from, how its weights
    differ from that, and their hash."""
    more_tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """In a mixture of tasks, the fields ``settings``, ``prompt`` and ``longest_target`` of each further task."""
    version: int = _VERSION

    def of(self, task: str) -> Contract | None:
        """The contract as one of this task; None if the model was not tuned for it."""
        if task == self.task:
            return self
        return replace(self, task=task, **self.more_tasks[task]) if task in self.more_tasks else None


def write_contract(folder: Path, contract: Contract) -> None:
    """Write the contract to a model's folder."""
    content = {name: value for name, value in asdict(contract).items() if value is not None}
    if not contract.more_tasks:
        del content["more_tasks"]
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
    if content.get("version") == 1:
        content = _from_version_1(content)
    if content.get("version") != _VERSION:
        raise CheckpointError(
            f"{path} has version {content.get('version')}, and this llmkit supports {_VERSION}", "upgrade llmkit"
        )
    known = {item.name for item in fields(Contract)}
    if not isinstance(content.get("task"), str) or not content.keys() <= known:
        raise CheckpointError(f"{path} is not what llmkit wrote", "train again, or remove it and give the settings")
    prompts = [content.get("prompt", {}), *(each.get("prompt", {}) for each in content.get("more_tasks", {}).values())]
    if unknown := {name for prompt in prompts for name in prompt} - _PROMPT_DEFAULTS.keys():
        names = ", ".join(sorted(unknown))
        raise CheckpointError(
            f"{path} has the prompt option {names}, which this llmkit does not know", "upgrade llmkit"
        )
    return Contract(**content)


def _from_version_1(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content as version 2 has it: version 1 had two prompt options, beside the other keys, and English prompts."""
    others = {name: value for name, value in content.items() if name not in ("system", "raw")}
    prompt = {name: content[name] for name in ("system", "raw") if content.get(name)} | {"prompt_language": "en"}
    return {**others, "prompt": prompt, "version": 2}


def recipe_prompt(recipe: Recipe, loaded: Loaded, task: Task) -> PromptOptions:
    """The prompt options of a recipe for the model that is trained."""
    return for_model(open_prompt(recipe, task), traits_of(loaded, task), task)


def tuned_prompt(prompt_options: PromptOptions) -> dict[str, Any]:
    """The prompt options to save with a tuned model: all that have an effect, at their defaults too."""
    values = {name: getattr(prompt_options, name) for name in _PROMPT_DEFAULTS}
    return {name: value for name, value in values.items() if value or value != _PROMPT_DEFAULTS[name]}


def apply_contract(
    loaded: Loaded, task: Task, prompt_options: PromptOptions, settings: GenerationSettings
) -> tuple[Task, PromptOptions, GenerationSettings]:
    """Task, wording and length as the model was tuned, unless the caller set them explicitly."""
    found = read_contract(loaded)
    contract = None if found is None else found.of(task.name)
    if found is not None and contract is None:
        log.info("%s was tuned for %s", loaded.source.name, ", ".join((found.task, *found.more_tasks)))
    if contract is None:
        return task, for_model(prompt_options, traits_of(loaded, task), task), settings
    name = loaded.source.name
    from_rows = [setting for setting in task.settings_in_rows if contract.settings.get(setting) is None]
    tuned_settings = {key: value for key, value in contract.settings.items() if key not in from_rows}
    if new := _not_overridden(task.settings, tuned_settings, name):
        task = task.with_settings(replace(task.settings, **new))
    tuned = _PROMPT_DEFAULTS | contract.prompt
    new = _not_overridden(prompt_options, tuned, name)
    if "prompt_language" in new and not has_wording(task, traits_of(loaded, task), tuned["template"]):
        new["prompt_language"] = "auto"  # older versions recorded one without effect
    prompt_options = replace(prompt_options, **new)
    if settings.max_new_tokens is None and contract.longest_target > task.max_new_tokens:
        settings = replace(settings, max_new_tokens=contract.longest_target)
    if settings.on_overflow == "truncate" and settings.truncation_side is None:
        settings = replace(settings, truncation_side=contract.truncation_side)
    return task, prompt_options, settings


def _json(value: Any) -> str:
    return json.dumps(value, default=str)


def _not_overridden(settings: Any, tuned: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The values a model was tuned with, without those that the caller set; warns of others in their place."""
    kept = dict(tuned)
    for name in explicitly_set(settings):
        if name in kept and _json(value := kept.pop(name)) != _json(getattr(settings, name)):
            how = f"without {name}" if value in ("", (), None) else f"with {name}={shorten(str(value), _SHOWN)}"
            warn("tuned_differently", "%s was tuned %s", model, how)
    known = {item.name for item in setting_fields(type(settings))}
    return {name: value for name, value in kept.items() if name in known}
