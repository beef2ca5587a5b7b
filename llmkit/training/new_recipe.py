"""Recipes for data that has none: columns as detected, and default hyperparameters.

Knows good defaults; the defaults of the schema (`llmkit.config.recipe`) are Transformers'.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from llmkit.config.declaration import setting_fields
from llmkit.config.peft_methods import peft_methods
from llmkit.config.recipe import VERSION, Recipe, SourceSection
from llmkit.config.recipe_file import make_recipe
from llmkit.config.recipe_paths import relative_paths, resolve_paths
from llmkit.config.user import chosen_model
from llmkit.config.yaml12 import dump
from llmkit.data.proposals import propose, suggest_method
from llmkit.data.shapes import mapped_rows
from llmkit.data.sources import splits_of
from llmkit.errors import HubUnreachableError, UsageError
from llmkit.hub.reachability import offline
from llmkit.models.bundled import EMBEDDED
from llmkit.models.locate import locate
from llmkit.models.resolve import resolve
from llmkit.models.tables import writes
from llmkit.tasks import Task, find_task
from llmkit.training.recipe_model import load_settings, open_task
from llmkit.training.row_table import need_hub

__all__ = ["DEFAULT_MODEL", "NewRecipe", "new_recipe", "short_source"]

DEFAULT_MODEL = "starter"
ALL_WEIGHTS = "full"
"""The name for training without an adapter."""
_BLOCK = 512
"""Tokens of the blocks that plain text is cut into."""
_ORDER = (
    "version",
    "task",
    "settings",
    "prompt",
    "model",
    "tokenizer",
    "adapter",
    "method",
    "data",
    "train",
    "accelerate",
)
_COMMENTS = {
    ("adapter",): "The weights that are trained. Without this section all are; then lower train.learning_rate to 5e-5.",
    ("adapter", "r"): "Rank: more learns more, and takes more memory.",
    ("data",): "Inspect what the model will see with: llmkit data check RECIPE",
    ("data", "validation"): "Rows that are not trained on.",
    ("data", "validation_fraction"): "Share of the rows that is not trained on, but used for validation.",
    ("data", "max_length"): "Tokens of an example; longer ones take more memory.",
    ("train", "output_dir"): "Folder of the result. Every command takes it as a model.",
    ("train", "num_train_epochs"): "How often each row is seen. Raise it and resume to train further.",
    ("train", "per_device_train_batch_size"): "Lower it if memory runs out.",
    ("train", "learning_rate"): "Lower it if the loss jumps.",
    ("train", "warmup_steps"): "Share of the updates in which the learning rate rises.",
}
"""Comments above keys of a new recipe."""


@dataclass(frozen=True)
class NewRecipe:
    """A recipe for some data."""

    content: dict[str, Any]
    """Its keys, without those at their defaults; local paths are absolute."""
    notes: tuple[str, ...]
    """What was detected in the data, in sentences."""

    def recipe(self) -> Recipe:
        """The validated recipe."""
        return make_recipe(copy.deepcopy(self.content))

    def text(self, folder: Path) -> str:
        """YAML with comments, for a file in a folder."""
        content = copy.deepcopy(self.content)
        relative_paths(content, folder)
        return "".join(self._lines({name: content[name] for name in _ORDER if name in content}))

    def _lines(self, content: dict[str, Any]) -> Iterator[str]:
        yield f"# {content['task'].capitalize()} with llmkit. Train with: llmkit finetune RECIPE (this file)\n"
        yield "# All keys: llmkit recipes schema\n"
        yield from (f"# {note}\n" for note in self.notes)
        yield "\n"
        section = ""
        for line in dump(content).splitlines(keepends=True):
            if key := re.match(r"(  )?(\w+):", line):
                place = (section, key[2]) if key[1] else (key[2],)
                section = section if key[1] else key[2]
                if comment := _COMMENTS.get(place):
                    yield f"{key[1] or ''}# {comment}\n"
            yield line


def new_recipe(
    task: str,
    data: Mapping[str, Any],
    *,
    validation: Mapping[str, Any] | None = None,
    model: str | None = None,
    method: str | None = None,
    output: str | None = None,
    settings: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> NewRecipe:
    """A recipe for some data.

    Args:
        task: name or verb.
        data: keys of a source: ``path`` (files, folders, patterns or Hub ids) or ``rows``.
        validation: as ``data``; by default a fraction of the training rows, or the validation split of a folder.
        model: Hub id or folder; by default the user's default model, or else the starter.
        method: a PEFT method such as ``lora``, or ``full`` for all weights; by default LoRA if the model generates
            text.
        output: folder of the result.
        settings: settings of the task.
        overrides: changes of any key, such as ``train.learning_rate=1e-4``.

    Raises:
        UsageError: a name or an override is wrong.
        InputError: the data does not fit the task.
    """
    kind = find_task(task)
    _check_settings(kind, settings or {})
    changed = {each.partition("=")[0].strip(): each for each in overrides}
    if not {"model", "model.name_or_path", "model.config"} & changed.keys():
        model = chosen_model(model, kind)
    content: dict[str, Any] = {
        "version": VERSION,
        "task": kind.name,
        "settings": dict(settings or {}),
        "model": {"name_or_path": model or DEFAULT_MODEL},
        "data": _sources(data, validation),
        "train": {"output_dir": output or f"runs/{kind.name}-{_stem(data)}"},
    }
    if method is None and not {"adapter", "adapter.peft_type"} & changed.keys():
        of_model = [each for key, each in changed.items() if key.partition(".")[0] == "model"]
        method = "lora" if _takes_adapter(make_recipe(copy.deepcopy(content), of_model)) else ALL_WEIGHTS
    if method is not None:
        content["adapter"] = _adapter(method)
    drafted = make_recipe(content, overrides)
    if drafted.method is None and (found := suggest_method(drafted.data.train[0], open_task(drafted))):
        content["method"] = found
        drafted = make_recipe(content, overrides)
    notes = _set_columns(content, drafted)
    if model is None and content["model"].get("name_or_path") == DEFAULT_MODEL:
        notes = (f"the model is {DEFAULT_MODEL}, the default; name another with `model`", *notes)
    _set_defaults(content, drafted)
    content = {name: value for name, value in content.items() if value not in (None, {})}
    resolve_paths(content, Path())
    return NewRecipe(content, notes)


def _check_settings(kind: type[Task], settings: Mapping[str, Any]) -> None:
    unknown = settings.keys() - {item.name for item in setting_fields(kind.settings_class)}
    if unknown:
        raise UsageError(
            f"{kind.name} has no setting {' or '.join(sorted(unknown))}", "leave it out", code="unknown_setting"
        )


def _sources(data: Mapping[str, Any], validation: Mapping[str, Any] | None) -> dict[str, Any]:
    if validation:
        return {"train": dict(data), "validation": dict(validation)}
    splits = splits_of(data.get("path", ()))
    if "train" not in splits:
        return {"train": dict(data)}
    return {part: {**data, "split": part} for part in ("train", "validation") if part in splits}


def _stem(data: Mapping[str, Any]) -> str:
    name = Path(data["path"][0]).name.partition(".")[0] if "path" in data else data["rows"]["kind"].rpartition(".")[2]
    return re.sub(r"[^\w-]+", "-", name).strip("-") or "data"


def _adapter(method: str) -> dict[str, Any] | None:
    """The adapter section of a method."""
    if method.lower() == ALL_WEIGHTS:
        return None
    name = method.upper().replace("-", "_")
    if name not in peft_methods():
        near = get_close_matches(name, peft_methods(), n=1)
        raise UsageError(
            f"`method={method}` is not a method",
            f"{f'did you mean {near[0].lower()}? ' if near else ''}use lora, {ALL_WEIGHTS} for all weights, or another "
            "method of PEFT",
            code="invalid_value",
        )
    if name == "LORA":
        return {"peft_type": name, "r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
    return {"peft_type": name}


def _set_columns(content: dict[str, Any], drafted: Recipe) -> tuple[str, ...]:
    """Set the detected form and columns of each source; returns what was detected."""
    task = open_task(drafted)
    notes: dict[str, None] = {}
    with offline(getattr(drafted.model, "offline", False)):
        for part in ("train", "validation"):
            sources: Sequence[SourceSection] = getattr(drafted.data, part) or ()
            need_hub(sources)
            proposals = [propose(source, task) for source in sources]
            notes |= dict.fromkeys(note for proposal in proposals for note in proposal.notes)
            if not proposals:
                continue
            found = [short_source(proposal.source) for proposal in proposals]
            content["data"][part] = found if len(found) > 1 else found[0]
            if part == "train":
                content["settings"] = {**proposals[0].settings, **content["settings"]}
                if _is_plain(proposals[0].source, task):
                    content["data"].setdefault("max_length", _BLOCK)
    return tuple(notes)


def _is_plain(source: SourceSection, task: Task) -> bool:
    first = next((record.row for record in mapped_rows(source, task) if record.row is not None), None)
    return first is not None and task.is_plain(first)


def short_source(source: SourceSection) -> Any:
    """A source as short as possible: a path if nothing else is set."""
    content = source.model_dump(exclude_defaults=True)
    if len(content.get("path", ())) == 1:
        content["path"] = content["path"][0]
    return content["path"] if list(content) == ["path"] else content


def _takes_adapter(drafted: Recipe) -> bool:
    """Whether LoRA is the default for a model: it generates text, and is not an adapter itself."""
    settings = load_settings(drafted)
    if settings.model is None:  # random weights
        return False
    if settings.model in EMBEDDED:  # without downloading it
        return EMBEDDED[settings.model].generates
    try:
        with offline(settings.offline):
            source = locate(settings, drafted.task, weights=False, fallback=False)
    except HubUnreachableError:  # for a recipe that is only written
        return True
    if source.adapter is not None:
        return False
    if source.gguf_file:
        return True
    return writes(resolve(drafted.task, source.config(), head=settings.head, model=source.name).head)


def _set_defaults(content: dict[str, Any], drafted: Recipe) -> None:
    """Set default hyperparameters where nothing else is set."""
    data, train = content["data"], content["train"]
    if not {"validation", "validation_fraction"} & data.keys():
        data["validation_fraction"] = 0.1
    defaults: dict[str, Any] = {
        "num_train_epochs": 3,
        "per_device_train_batch_size": 8,
        "learning_rate": (2e-4 if content.get("adapter") else 5e-5) * (1 if drafted.method is None else 0.1),
    }
    if "max_steps" in train:
        del defaults["num_train_epochs"]
    if not {"lr_scheduler_type", "warmup_steps"} & train.keys() and not 0 < drafted.train.max_steps < 10:
        defaults |= {"lr_scheduler_type": "cosine", "warmup_steps": 0.1}
    content["train"] = train | {key: value for key, value in defaults.items() if key not in train}
