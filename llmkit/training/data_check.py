"""The check of training data: a recipe, or files with a proposed recipe, and what a model would see of them.

Knows recipes and proposals; `llmkit.training.data_report` examines the examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmkit.config.declaration import explicitly_set, setting_fields
from llmkit.config.settings import LoadSettings
from llmkit.errors import UsageError
from llmkit.training.data_report import Report, check

if TYPE_CHECKING:
    from llmkit.config.recipe import Recipe, SourceSection
    from llmkit.training.encoding import Encoder

__all__ = ["DataCheck", "check_data"]

SCHEMA_VERSION = 1
"""Version of the JSON object; increased when the meaning of a key changes or a key is removed."""
_PROBLEMS = (
    ("bad", "cannot be read", "on_bad_row"),
    ("no_label", "have nothing to learn", "on_no_label"),
    ("too_long", "are too long", "on_overflow"),
)
"""The problems of rows, and the key of the recipe's ``data`` that allows each."""


@dataclass(frozen=True)
class DataCheck:
    """Result of a data check: how the data are mapped to the task, and the report on their examples."""

    task: str
    proposal: dict[str, Any]
    """The part of a recipe that describes the data."""
    notes: tuple[str, ...]
    """How the proposal was found."""
    report: Report
    recipe: Recipe
    encoder: Encoder

    @property
    def stops(self) -> tuple[str, ...]:
        """Reasons for which training would stop before its first update."""
        return tuple(self._stops())

    def _stops(self) -> Iterator[str]:
        parts = {"train": self.report.train, "validation": self.report.validation}
        for name, part in parts.items():
            if part is None:
                continue
            for problem, phrase, key in _PROBLEMS:
                if part.ledger[problem] and getattr(self.recipe.data, key) in (None, "error"):
                    yield f"{part.ledger[problem]:,} {name} rows {phrase} (data.{key})"
            if not part.ledger["examples"]:
                yield f"no {name} examples"

    def __repr__(self) -> str:
        examples = self.report.train.ledger["examples"]
        problems = {name: len(lines) for name, lines in self.report.train.problems.items()}
        return f"DataCheck(task={self.task!r}, examples={examples}, problems={problems}, proposal={self.proposal})"

    def to_dict(self) -> dict[str, Any]:
        """The JSON object, as printed by the command: the fields of this class and of `Report`, and

        - ``tokenizer``: the model whose tokenizer counted the tokens;
        - ``stops``: reasons for which training would stop; empty if it would not.
        """
        return {
            "schema_version": SCHEMA_VERSION,
            "task": self.task,
            "tokenizer": self.encoder.loaded.source.name,
            "stops": list(self.stops),
            "proposal": self.proposal,
            "notes": list(self.notes),
            **self.report.to_dict(),
        }


def check_data(
    data: Mapping[str, Any],
    load: LoadSettings,
    *,
    task: str | None = None,
    languages: Mapping[str, str | None] | None = None,
    validation: Mapping[str, Any] | None = None,
    max_length: int | None = None,
    samples: int = 2,
    overrides: Sequence[str] = (),
) -> DataCheck:
    """Examine the data of a recipe, or other data, for which a recipe is proposed.

    Args:
        data: keys of a source: ``path`` (a recipe, or files, folders, patterns or Hub ids) or ``rows``, and for what is
            not a recipe also the format of the rows, such as ``encoding`` and ``columns``.
        validation: the same, beside data that is not a recipe.

    Raises:
        UsageError: settings that have no effect on a recipe, or no task for files.
        InputError: the data cannot be used.
    """
    from llmkit.hub.reachability import offline
    from llmkit.training.dataset import make_examples
    from llmkit.training.encoding import make_encoder
    from llmkit.training.recipe_model import open_model, open_task

    named = {key: value for key, value in (languages or {}).items() if value is not None}
    notes: tuple[str, ...] = ()
    form = [name for name in data if name not in ("path", "rows")]
    if _is_recipe(data.get("path", ())):
        only_files = {"task": task, **named, "validation": validation, "max_length": max_length}
        without_effect = [name for name, value in only_files.items() if value is not None]
        without_effect += ["column" if name == "columns" else name for name in form]
        recipe = _recipe(data["path"][0], overrides, load, without_effect)
    elif overrides:
        raise UsageError(
            "`overrides` changes a recipe, but the data are files", "name a recipe, or leave it out", code="no_effect"
        )
    else:
        recipe, notes = _propose(data, task, named, validation, max_length, load)
    opened = open_task(recipe)
    with offline(getattr(recipe.model, "offline", False)):
        encoder = make_encoder(recipe, opened, open_model(recipe, opened, weights=False))
        report = check(make_examples(recipe, encoder, strict=False), encoder, samples=samples)
    return DataCheck(recipe.task, _data_part(recipe), notes, report, recipe, encoder)


def _is_recipe(paths: Sequence[str]) -> bool:
    if len(paths) != 1:
        return False
    if paths[0].endswith((".yaml", ".yml")):
        return True
    from llmkit.config.recipe_file import shipped_recipes

    return paths[0] in shipped_recipes()


def _recipe(path: str, overrides: Sequence[str], load: LoadSettings, without_effect: Sequence[str]) -> Recipe:
    from llmkit.config.recipe_file import MAY_RUN_CODE, allowing, load_recipe

    named = [*without_effect, *(name for name in explicitly_set(load) if name not in MAY_RUN_CODE)]
    if named:
        raise UsageError(
            f"{', '.join(f'`{name}`' for name in named)} has no effect on a recipe",
            "change the recipe with `overrides`",
            code="no_effect",
        )
    code = allowing(trust_remote_code=load.trust_remote_code, allow_pickle=load.allow_pickle)
    return load_recipe(path, [*overrides, *code])


def _propose(
    data: Mapping[str, Any],
    task: str | None,
    languages: Mapping[str, str],
    validation: Mapping[str, Any] | None,
    max_length: int | None,
    load: LoadSettings,
) -> tuple[Recipe, tuple[str, ...]]:
    """A recipe for some data, with the detected format set explicitly."""
    from llmkit.config.recipe import SourceSection, recipe_adapter
    from llmkit.config.recipe_method import learning_from
    from llmkit.config.user import chosen_model
    from llmkit.data.proposals import propose, suggest_method
    from llmkit.data.sources import splits_of
    from llmkit.tasks import find_task
    from llmkit.training.row_table import need_hub

    if task is None:
        raise UsageError("the task of the data is missing", "name it, such as `task=summarization`")
    kind = find_task(task)
    if languages and not languages.keys() <= {item.name for item in setting_fields(kind.settings_class)}:
        raise UsageError(f"{kind.name} has no languages", "leave out `source` and `target`", code="no_effect")
    made = kind(kind.settings_class(**languages))
    if "rows" in data and (useless := [name for name in ("encoding", "header", "delimiter") if name in data]):
        raise UsageError(f"`{useless[0]}` has no effect on rows", "leave it out", code="no_effect")
    parts = {"train": SourceSection(**data)}
    if validation is not None:
        parts["validation"] = SourceSection(**validation)
    elif "train" in (found := splits_of(data.get("path", ()))):
        parts = {part: SourceSection(**data, split=part) for part in ("train", "validation") if part in found}
    need_hub(list(parts.values()))
    method = suggest_method(parts["train"], made)
    made.learns_from = learning_from(method)
    proposals = {part: propose(section, made) for part, section in parts.items()}
    model = {"name_or_path": chosen_model(load.model, kind) or "starter"}
    model |= {key: getattr(load, key) for key in explicitly_set(load) if key != "model"}
    sources: dict[str, Any] = {part: [_set(proposal.source)] for part, proposal in proposals.items()}
    recipe = recipe_adapter({}).validate_python(
        {
            "version": 1,
            "task": made.name,
            "settings": dict(languages) | proposals["train"].settings,
            "model": model,
            "method": method,
            "data": sources | {"max_length": max_length},
            "train": {"output_dir": "unused"},
        }
    )
    return recipe, proposals["train"].notes


def _set(source: SourceSection) -> dict[str, Any]:
    return source.model_dump(exclude_defaults=True)


def _data_part(recipe: Recipe) -> dict[str, Any]:
    """The part of the recipe that describes the data, without defaults."""
    found: dict[str, Any] = {"task": recipe.task}
    if recipe.method is not None:
        found["method"] = recipe.method.name
    if settings := recipe.settings.model_dump(exclude_defaults=True):
        found["settings"] = settings
    parts = {"train": recipe.data.train, "validation": recipe.data.validation}
    found["data"] = {
        part: [_short(source) for source in sources] if len(sources) > 1 else _short(sources[0])
        for part, sources in parts.items()
        if sources
    }
    return found


def _short(source: SourceSection) -> Any:
    content = _set(source)
    if len(content.get("path", ())) == 1:
        content["path"] = content["path"][0]
    return content["path"] if list(content) == ["path"] else content
