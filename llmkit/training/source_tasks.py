"""The tasks of a recipe's sources: its own, or in a mixture those that the sources name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from llmkit.config.declaration import explicitly_set, setting_fields
from llmkit.config.recipe import Recipe, SourceSection
from llmkit.errors import UsageError
from llmkit.tasks import Task, find_task

__all__ = [
    "chosen_task",
    "common_settings",
    "is_for",
    "labelled",
    "recipe_of",
    "task_groups",
    "task_of",
    "tasks_by_name",
]


def task_of(source: SourceSection, default: Task) -> Task:
    """The task of a source with its settings; ``default`` is the recipe's task."""
    if source.task in (None, default.name) and not source.settings:
        return default
    kind = find_task(source.task or default.name)
    if kind.name != default.name:
        return kind(kind.settings_class(**source.settings))
    return default.with_settings(kind.settings_class(**{**_explicit(default), **source.settings}))


def _explicit(task: Task) -> dict[str, Any]:
    return {name: getattr(task.settings, name) for name in explicitly_set(task.settings)}


def is_for(source: SourceSection, task: Task, default: Task) -> bool:
    """Whether a source has rows of a task, and no other settings for it."""
    settings = source.settings.items()
    return (source.task or default.name) == task.name and all(
        getattr(task.settings, name) == value for name, value in settings
    )


def tasks_by_name(sources: Sequence[SourceSection], default: Task) -> dict[str, list[Task]]:
    """The tasks of sources, each with the settings of every source that has it."""
    found: dict[str, list[Task]] = {}
    for source in sources:
        task = task_of(source, default)
        found.setdefault(task.name, []).append(task)
    return found


def recipe_of(recipe: Recipe, name: str) -> Recipe:
    """The recipe with the training sources of one of its tasks."""
    sources = [source for source in recipe.data.train if (source.task or recipe.task) == name]
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"train": sources})})


def chosen_task(sources: Sequence[SourceSection], default: Task, name: str | None) -> Task:
    """One task of a recipe's sources, with the settings that they have in common.

    Raises:
        UsageError: a mixture has several tasks, and none of them is named; or there is only one, and one is named.
    """
    found = tasks_by_name(sources, default)
    if name is None and len(found) > 1:
        raise UsageError("the recipe is a mixture of tasks", f"name one: {_choices(found)}")
    own = found[_checked(name, found) or next(iter(found))]
    kind = type(own[0])
    return own[0].with_settings(kind.settings_class(**common_settings([_explicit(task) for task in own])))


def _checked(name: str | None, found: Mapping[str, Any]) -> str | None:
    """The full name of a task of a mixture."""
    if name is None:
        return None
    if len(found) == 1:
        raise UsageError("`task` has no effect on a recipe, which names its own", "leave it out", code="no_effect")
    if (full := find_task(name).name) not in found:
        raise UsageError(f"the recipe does not train {full}", f"name one of its tasks: {_choices(found)}")
    return full


def _choices(names: Iterable[str]) -> str:
    return ", ".join(f"`task={each}`" for each in names)


def task_groups(
    sources: Sequence[SourceSection], default: Task, name: str | None
) -> list[tuple[Task, list[SourceSection]]]:
    """Each task of sources with each of its settings, and the sources that have them; only the task of that name.

    Raises:
        UsageError: there is no such task, or only one.
    """
    tasks = [task_of(source, default) for source in sources]
    found: dict[str, tuple[Task, list[SourceSection]]] = {}
    for source, task in zip(sources, tasks, strict=True):
        found.setdefault(f"{task.name} {task.settings}", (task, []))[1].append(source)
    chosen = _checked(name, dict.fromkeys(task.name for task in tasks))
    return [part for part in found.values() if chosen in (None, part[0].name)]


def labelled(tasks: Sequence[Task]) -> list[str]:
    """A name for each task: its own, and of several of that name also the settings in which they differ."""
    return [
        "-".join((task.name, *_differences(task, [each for each in tasks if each.name == task.name]))) for task in tasks
    ]


def _differences(task: Task, others: Sequence[Task]) -> Iterator[str]:
    for item in setting_fields(task.settings_class):
        value = getattr(task.settings, item.name)
        if value is not None and any(getattr(each.settings, item.name) != value for each in others):
            yield str(value)


def common_settings(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings that sources of one task have in common."""
    first, *others = settings
    return {
        name: value for name, value in first.items() if all(name in each and each[name] == value for each in others)
    }
