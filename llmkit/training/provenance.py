"""What a run was made from: versions, the base model's commit and license, the hashes of the data."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llmkit.config.paths import user_path, without_folders
from llmkit.config.recipe import Recipe, SourceSection
from llmkit.config.recipe_file import resolved_yaml
from llmkit.config.yaml12 import dump
from llmkit.data.sources import commit_of, contents_of
from llmkit.errors import UsageError
from llmkit.files import read_json
from llmkit.hub.card import card_metadata
from llmkit.inference.run_manifest import model_hashes
from llmkit.models.load import Loaded
from llmkit.models.source import ADAPTER_CONFIG, Source
from llmkit.reporting.records import facts_and_recipe

__all__ = [
    "EXAMPLES",
    "MAY_CHANGE",
    "RESOLVED",
    "SHORT_RECIPE",
    "DataOrigin",
    "Provenance",
    "changes",
    "check_hashes",
    "commented_recipe",
    "file_hashes",
    "license_of",
    "may_change",
    "provenance_of",
    "published_recipe",
    "with_length_of",
]

EXAMPLES = "way llmkit prepares rows"
"""Name of the hash of the examples. Data and recipe are compared before it, so that nothing else can have changed."""
RESOLVED = "resolved.yaml"
"""The file of `commented_recipe` in the folder of a result."""
SHORT_RECIPE = "recipe.yaml"
"""The recipe of a run that was started without a recipe file."""
MAY_CHANGE = ("output_dir", "max_steps", "num_train_epochs", "early_stopping_patience", "num_completions_to_print")
"""Keys of the train section that may change when a run is resumed: where it is, how long it trains, what it logs."""
_MAY_CHANGE_IN_STREAM = ("on_bad_row", "on_no_label", "on_overflow")
"""Keys of the data section that may change when a run that was ended by one of its streamed rows is resumed. No earlier
row was concerned, and those in memory are compared."""
_PACKAGES = ("llmkit", "torch", "transformers", "accelerate", "peft", "datasets")


@dataclass(frozen=True)
class DataOrigin:
    """A file, a dataset of the Hub, or rows passed in Python."""

    name: str
    part: str
    """train or validation."""
    hash: str
    """SHA-256 of a file or of rows, commit of a dataset, or `llmkit.files.file_stamp` of a file that is streamed."""
    license: str | None
    kind: str = ""
    """The class of rows passed in Python, with which the name begins."""

    @property
    def key(self) -> str:
        """What the hash is of; rows are the same in any class."""
        return Path(self.name).name.removeprefix(f"{self.kind}, ")

    @property
    def shown(self) -> str:
        """The beginning of the hash; the size of a file that is streamed."""
        size, stamp, _ = self.hash.partition("-")
        return f"{int(size):,} bytes" if stamp else f"`{self.hash[:16]}`"


@dataclass(frozen=True)
class Provenance:
    """What is needed to repeat a run, besides the recipe."""

    versions: dict[str, str]
    base: str
    """The base model as the recipe names it."""
    hub_id: str | None
    """The base model on the Hub, if it is there."""
    changes: str
    """How its weights differ from those on the Hub; empty if they do not."""
    commit: str | None
    license: str | None
    """License of the base model according to its card."""
    method: str | None
    """PEFT's name for the method of the adapter; None if all weights were trained."""
    data: tuple[DataOrigin, ...]
    files: dict[str, str]
    """SHA-256 of the files of the base model and of an adapter that is trained further; empty if they have a commit."""
    teacher: str | None
    """The teacher as the recipe names it."""
    teacher_commit: str | None
    teacher_files: dict[str, str]
    """As ``files``."""


def provenance_of(recipe: Recipe, loaded: Loaded, teacher: Loaded | None) -> Provenance:
    """The provenance of a run, from the files of its data and models."""
    source = loaded.source
    return Provenance(
        versions={"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        base=source.name,
        hub_id=_hub_id(source),
        changes="" if source.origin is None else source.origin.changes,
        commit=source.commit,
        license=license_of(source.folder / "README.md"),
        method=_method(recipe, source),
        data=tuple(_data(recipe)),
        files=file_hashes(source),
        teacher=None if teacher is None else teacher.source.name,
        teacher_commit=None if teacher is None else teacher.source.commit,
        teacher_files={} if teacher is None else file_hashes(teacher.source),
    )


def file_hashes(source: Source) -> dict[str, str]:
    """SHA-256 of the files of a model and of its adapter; empty if they have a commit."""
    hashes = model_hashes(source)
    return hashes["files"] | {f"adapter {name}": each for name, each in hashes["adapter_files"].items()}


def _hub_id(source: Source) -> str | None:
    if source.origin is not None:
        return source.origin.hub_id
    name = source.base or source.name
    if user_path(name).exists() or not (source.commit or "/" in name):
        return None
    return "/".join(name.split("/")[:2])  # without the name of a GGUF file


def _method(recipe: Recipe, source: Source) -> str | None:
    if recipe.adapter is not None:
        return str(recipe.adapter.peft_type)
    return None if source.adapter is None else str(read_json(source.adapter / ADAPTER_CONFIG).get("peft_type"))


def _data(recipe: Recipe) -> Iterator[DataOrigin]:
    for part, sources in (("train", recipe.data.train), ("validation", recipe.data.validation or [])):
        for source in sources:
            yield from _of_source(source, part)


def _of_source(source: SourceSection, part: str) -> Iterator[DataOrigin]:
    for name, content in contents_of(source):
        yield DataOrigin(name, part, content, source.license)
    if source.rows is not None:
        count = "streamed" if source.streaming else f"{source.rows.count:,} rows"
        yield DataOrigin(f"{source.rows.kind}, {count}", part, source.rows.sha256, source.license, source.rows.kind)
    if (commit := commit_of(source)) is not None:
        yield DataOrigin(", ".join(source.path or ()), part, commit, source.license)


def license_of(card: Path) -> str | None:
    """The license that a model card declares."""
    found = card_metadata(card).get("license")
    return found if isinstance(found, str) and found else None


def commented_recipe(recipe: Recipe, provenance: Provenance) -> str:
    """The resolved recipe, with its provenance as comments at the top."""
    teacher = {"name": provenance.teacher, "commit": provenance.teacher_commit, "files": provenance.teacher_files}
    facts: dict[str, Any] = {
        "versions": provenance.versions,
        "base": {"name": provenance.base, "commit": provenance.commit, "files": provenance.files},
        **({} if provenance.teacher is None else {"teacher": teacher}),
        "data": [{"name": each.name, "part": each.part, "hash": each.hash} for each in provenance.data],
    }
    return _commented(facts) + resolved_yaml(recipe)


def _commented(facts: dict[str, Any]) -> str:
    lines = dump(facts).splitlines()
    return "".join(f"# {line}\n" for line in lines) + "\n"


def published_recipe(text: str) -> str:
    """The text of `commented_recipe` for publication: without local folders."""
    facts, recipe = map(without_folders, facts_and_recipe(text))
    return (_commented(facts) if facts else "") + dump(recipe)


def may_change(recipe: Recipe) -> dict[str, set[str]]:
    """The keys of each section that may change when a run is resumed."""
    found = {"train": set(MAY_CHANGE)}
    return found | {"data": set(_MAY_CHANGE_IN_STREAM)} if recipe.data.streaming else found


def with_length_of(recipe: Recipe, text: str) -> str:
    """The text of a short recipe, with the number of updates of this one: the run was extended."""
    for name in MAY_CHANGE[1:]:
        value = getattr(recipe.train, name)
        line = f"  {name}: {json.dumps(value)}"
        if re.search(rf"(?m)^  {name}:", text):
            text = re.sub(rf"(?m)^  {name}:.*$", line, text)
        elif recipe.train.changed(name):
            text = re.sub(r"(?m)^train:$", f"train:\n{line}", text)
    return text


def changes(before: Recipe, after: Recipe) -> list[str]:
    """The keys that differ, each with both values, except those that may change and the class of rows."""
    allowed = {f"{section}.{name}" for section, names in may_change(after).items() for name in names}

    def flat(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict) and value:
            for key, each in value.items():
                yield from flat(each, f"{place}.{key}" if place else key)
        elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
            yield from flat(dict(enumerate(value)), place)
        elif place not in allowed and not place.endswith(".rows.kind"):
            yield place, value

    old, new = (dict(flat(each.model_dump(mode="json"))) for each in (before, after))
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return [f"{name}: {old.get(name)} → {new.get(name)}" for name in names]


def check_hashes(before: Mapping[str, str], now: Mapping[str, str], checkpoint: Path) -> None:
    """Compare what must be the same when a run is resumed, by hashes of it.

    Raises:
        UsageError: something changed.
    """
    new_run = "or start a new run in another train.output_dir"
    for name, found in before.items():
        if now.get(name) != found:
            raise UsageError(
                f"the {name} changed since {checkpoint} was written, so this would not be a resume of the same run",
                f"restore what it was, {new_run}"
                if name != EXAMPLES
                else f"resume with the version of llmkit that {RESOLVED} in the folder names, {new_run}",
                code="resume_mismatch",
            )
