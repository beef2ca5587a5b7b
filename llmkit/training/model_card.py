"""The model card of a run and the plot of its losses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmkit.config.commands import command_line
from llmkit.config.paths import without_folders
from llmkit.config.recipe import Recipe
from llmkit.config.yaml12 import dump
from llmkit.log import printable
from llmkit.tasks import find_task
from llmkit.training.provenance import Provenance

__all__ = ["draw_losses", "model_card"]


def model_card(
    recipe: Recipe, provenance: Provenance, metrics: Mapping[str, Any], name: str, ledgers: Sequence[Sequence[str]]
) -> str:
    """A README with metadata for the Hub: data, licenses, settings that are not defaults, results, loss curve.

    Args:
        ledgers: counts of rows, in sentences.
    """
    return "\n".join(_lines(recipe, provenance, metrics, name, ledgers)) + "\n"


def _lines(
    recipe: Recipe, provenance: Provenance, metrics: Mapping[str, Any], name: str, ledgers: Sequence[Sequence[str]]
) -> Iterator[str]:
    from huggingface_hub import ModelCardData

    task, fresh = find_task(recipe.task), getattr(recipe.model, "config", None) is not None
    metadata = ModelCardData(
        library_name="transformers" if provenance.method is None else "peft",
        pipeline_tag=task.pipeline_tag or task.name,
        tags=["llmkit", recipe.task],
        base_model=None if fresh else provenance.hub_id,
        license=provenance.license,
    )
    yield f"---\n{metadata.to_yaml()}\n---"
    yield f"\n# {_plain(name)}\n"
    how = "all weights" if provenance.method is None else f"a PEFT adapter ({provenance.method})"
    begun = "random weights" if fresh else _base(provenance)
    names = " and ".join(dict.fromkeys([recipe.task, *(each.task for each in recipe.data.train if each.task)]))
    yield f"Trained for {names} from {begun}, {how}, with llmkit {provenance.versions['llmkit']}.\n"
    yield _fenced(command_line(task.verb, model=_line(name)))
    yield "It needs no other options: `llmkit.json` has the prompt and settings of training.\n"
    yield "## Data and licenses\n"
    yield "| data | part | license | SHA-256 or commit |\n|---|---|---|---|"
    for each in provenance.data:
        yield f"| {_plain(_shown(each.name))} | {each.part} | {_license(each.license)} | {each.shown} |"
    yield ""
    for sentences in ledgers:
        yield from (f"- {_plain(sentence)}" for sentence in sentences)
    if not fresh:
        yield f"\nLicense of the base model: {_license(provenance.license)}."
    yield "\n## Settings that are not defaults\n"
    content = without_folders(recipe.model_dump(mode="json", exclude_defaults=True))
    for part in ("train", "validation"):
        content["data"].pop(part, None)  # they are in the table above, without local folders
    content = {name: section for name, section in content.items() if section != {}}
    yield _fenced(dump(content).rstrip(), "yaml")
    yield "## Results\n"
    yield "| measure | value |\n|---|---|"
    for key, value in metrics.items():
        yield f"| {key} | {json.dumps(value) if not isinstance(value, float) else f'{value:.6g}'} |"
    yield "\n![Loss by update](loss.png)"


def _base(provenance: Provenance) -> str:
    """The base model, and how it differs from the one on the Hub."""
    name = without_folders(provenance.base)
    shown = name if provenance.hub_id in (None, name) else f"{provenance.hub_id} ({name})"
    return _plain(shown) + (f", {_plain(provenance.changes)}" if provenance.changes else "")


def _line(text: str) -> str:
    """A text on one line, without control characters."""
    return printable(" ".join(text.split()))


def _plain(text: str) -> str:
    """A text with Markdown and HTML escaped."""
    return re.sub(r"[\\`*_{}\[\]<>#|~$&!]|:(?=//)|(?<=www)\.", r"\\\g<0>", _line(text))


def _license(name: str | None) -> str:
    return _plain(name) if name else "not stated"


def _shown(name: str) -> str:
    """The name of a file, or the id of a data set on the Hub."""
    return Path(name).name if Path(name).is_absolute() else name


def _fenced(text: str, language: str = "") -> str:
    """A fenced code block, with a fence that does not occur in the text."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 0)
    return f"{fence}{language}\n{text}\n{fence}\n"


def draw_losses(log: Sequence[Mapping[str, Any]], path: Path, unit: str) -> None:
    """Plot the losses of training and validation by update, as PNG. ``unit``: what losses are averaged over."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    for key, label, mark in (("loss", "training", ""), ("eval_loss", "validation", "o")):
        points = [(entry["step"], entry[key]) for entry in log if key in entry]
        if points:
            steps, losses = zip(*points, strict=True)
            # A single point has no line.
            axes.plot(steps, losses, label=label, marker=mark or ("." if len(points) == 1 else ""))
    axes.set_xlabel("update")
    axes.set_ylabel(f"loss per {unit} (nats)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False)
    figure.savefig(path)
