"""What a model was tuned for: task, settings, data and metrics, from the files that a training run writes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmkit.files import read_json
from llmkit.models.source import CONTRACT_FILE

__all__ = ["Tuned", "run_folder", "tuned_for", "tuned_lines"]

_RECIPE, _METRICS, _PROGRESS = "resolved.yaml", "metrics.json", "progress.json"
_SHOWN = ("eval_loss", "train_loss", "updates", "epochs", "best_update")
"""Measures shown beside the task's own; the others are about the machine."""
_LABEL = 16
"""Width of the labels, by which lines of a text are indented."""
_PROMPT_LABELS = {"system": "system message"}
_HIDDEN = ("tokens", "train_seconds", "tokens_per_second", "peak_memory_bytes", "processes", "best_eval_loss")


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """A training run, as its result records it."""

    task: str
    settings: dict[str, Any] = field(default_factory=dict)
    more_tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Further tasks of a mixture, with their settings."""
    prompt: dict[str, Any] = field(default_factory=dict)
    """Prompt options, such as ``system``."""
    base: str | None = None
    """The base model, as the recipe names it."""
    method: str | None = None
    """PEFT's name of the adapter; None if all weights were trained, or it is not recorded."""
    quantization: dict[str, Any] = field(default_factory=dict)
    """``quantize`` of the base and fields of BitsAndBytesConfig."""
    data: dict[str, list[str]] = field(default_factory=dict)
    """Files or Hub ids of the training and validation data, and classes of rows passed in Python."""
    languages: dict[str, str] = field(default_factory=dict)
    """Languages that were added to the vocabulary, each with the one from which its embedding started."""
    metrics: dict[str, Any] = field(default_factory=dict)
    update: int | None = None
    """Of a checkpoint: the updates done."""


def run_folder(folder: Path) -> tuple[Path, int | None]:
    """The run of a checkpoint folder, with the number of its updates; any other folder unchanged."""
    found = re.fullmatch(r"checkpoint-(\d+)", folder.absolute().name)
    if found is None or not (folder / _PROGRESS).is_file():
        return folder, None
    return folder.absolute().parent, int(found[1])


def tuned_for(folder: Path, update: int | None = None) -> Tuned | None:
    """What the model in a folder was tuned for; None if no training run of llmkit wrote it."""
    contract = read_json(folder / CONTRACT_FILE) if (folder / CONTRACT_FILE).is_file() else {}
    recipe = _recipe(folder / _RECIPE)
    task = contract.get("task") or recipe.get("task")
    if not isinstance(task, str):
        return None
    return Tuned(
        task=task,
        settings=_set(contract.get("settings") or recipe.get("settings")),
        more_tasks={name: _set(each.get("settings")) for name, each in contract.get("more_tasks", {}).items()},
        prompt=_prompt(contract),
        base=(recipe.get("model") or {}).get("name_or_path"),
        quantization={
            name: value
            for name, value in (recipe.get("model") or {}).items()
            if name.startswith(("quantize", "bnb_4bit_", "llm_int8_")) and value is not None
        },
        method=(recipe.get("adapter") or {}).get("peft_type"),
        data={part: list(_paths((recipe.get("data") or {}).get(part))) for part in ("train", "validation")},
        languages=(recipe.get("tokenizer") or {}).get("add_languages") or {},
        metrics=read_json(folder / _METRICS) if (folder / _METRICS).is_file() else {},
        update=update,
    )


def _set(settings: Any) -> dict[str, Any]:
    return {name: value for name, value in (settings or {}).items() if value is not None}


def _prompt(contract: dict[str, Any]) -> dict[str, Any]:
    options = contract.get("prompt")
    if isinstance(options, dict):
        return options
    return {name: contract[name] for name in ("system", "raw") if contract.get(name)}  # version 1


def _recipe(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    from llmkit.config.yaml12 import parse

    content = parse(path.read_text(encoding="utf-8"), str(path))[0]
    return content if isinstance(content, dict) else {}


def _paths(sources: Any) -> Iterator[str]:
    for source in sources if isinstance(sources, list) else [sources] if sources else []:
        if isinstance(source, dict) and (rows := source.get("rows")):
            yield f"{rows['kind']} ({rows['count']} rows)"
        paths = source.get("path") if isinstance(source, dict) else source
        yield from map(str, paths if isinstance(paths, list) else [paths] if paths else [])


def tuned_lines(tuned: Tuned) -> Iterator[tuple[str, str]]:
    """Labels and texts for a terminal."""
    for task, settings in {tuned.task: tuned.settings, **tuned.more_tasks}.items():
        shown = ", ".join(f"{name}={value}" for name, value in settings.items())
        yield "tuned for", task + (f" ({shown})" if shown else "")
    for name, value in tuned.prompt.items():
        text = value.strip() if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if value != "auto":
            yield _PROMPT_LABELS.get(name, name.replace("_", " ")), text.replace("\n", f"\n{' ' * _LABEL}")
    if tuned.base:
        yield "tuned from", tuned.base + (f" ({tuned.method})" if tuned.method else "")
    if tuned.languages:
        yield "new languages", ", ".join(f"{new} (from {like})" for new, like in tuned.languages.items())
    if tuned.update is not None:
        yield "checkpoint", f"after update {tuned.update}"
    for part, paths in tuned.data.items():
        if paths:
            yield f"{part} data", ", ".join(paths)
    names = [*(name for name in tuned.metrics if name not in (*_SHOWN, *_HIDDEN)), *_SHOWN]
    measures = [f"{name} {_number(tuned.metrics[name])}" for name in names if name in tuned.metrics]
    if measures:
        yield "metrics", ", ".join(measures)


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
