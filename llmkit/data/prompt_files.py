"""Prompt options from what a caller, a command or a recipe gives: long values may be names of files.

Knows which fields can be files and their formats. Does not know what prompts are made of them (`llmkit.tasks`). Modules
that read files are imported when there is one, since every command has prompt options.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import Field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from llmkit.config.declaration import file_settings, nested_kind, setting_fields
from llmkit.config.paths import user_path
from llmkit.config.settings import GenerationSettings
from llmkit.errors import UsageError
from llmkit.tasks import PromptOptions, Task

if TYPE_CHECKING:
    from llmkit.config.recipe import Recipe

__all__ = ["open_prompt", "open_template", "prompt_values", "read_template", "with_contents"]


def open_prompt(recipe: Recipe, task: Task) -> PromptOptions:
    """The prompt options of a recipe, with the contents of files; those at their defaults count as not set.

    Examples in a file may have the layout of the training rows.
    """
    section: Any = recipe.prompt
    values = section.model_dump(exclude_defaults=True)
    prefixes = {source.prefix for source in recipe.data.train}
    if len(prefixes) == 1 and None not in prefixes:  # of all rows, so that the tuned model is prompted with it too
        values["prefix"] = prefixes.pop()
    if isinstance(path := values.get("examples"), str):
        from llmkit.data.example_rows import read_examples

        values["examples"] = read_examples(path, recipe.data.train[0], task)
    return PromptOptions(**prompt_values(values))


def open_template(recipe: Recipe) -> str | None:
    """The template of a recipe's prompts."""
    section: Any = recipe.prompt
    found: str | None = prompt_values({"template": section.template})["template"]
    return found


def with_contents(recipe: Recipe, task: Task) -> Recipe:
    """The recipe with the contents of files in its section ``prompt``, so that it is complete in another place."""
    section: Any = recipe.prompt
    options = open_prompt(recipe, task)
    named = [name for name, value in section.model_dump(exclude_defaults=True).items() if isinstance(value, str)]
    contents = {name: getattr(options, name) for name in named if name in file_settings(PromptOptions)}
    contents = {name: list(value) if isinstance(value, tuple) else value for name, value in contents.items()}
    return recipe.model_copy(update={"prompt": section.model_copy(update=contents)}) if contents else recipe


def prompt_values(
    values: Mapping[str, Any], task: Task | None = None, columns: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The prompt options and generation settings among ``values``, with the contents of files in place of their names.

    Args:
        task: whose examples may be in a file with any layout of its data.
        columns: the column for each field of the task, if the file of examples has these columns.

    Raises:
        LlmkitError: a file cannot be read.
    """
    path = values.get("examples")
    if task is not None and isinstance(path, str | Path) and path and Path(path).suffix not in _YAML:
        values = {**values, "examples": _examples(str(path), task, columns or {})}
    return {
        item.name: _content(item, hints[item.name], values[item.name])
        for settings in (PromptOptions, GenerationSettings)
        for hints in [get_type_hints(settings)]
        for item in setting_fields(settings)
        if item.name in values
    }


def _examples(path: str, task: Task, columns: Mapping[str, str]) -> tuple[Any, ...]:
    from llmkit.config.recipe import SourceSection
    from llmkit.data.example_rows import read_examples

    return read_examples(path, SourceSection(path=[path], columns=dict(columns)), task)


_YAML = (".yaml", ".yml")


def _content(item: Field[Any], hint: Any, value: Any) -> Any:
    if callable(of_model := getattr(value, "model_json_schema", None)):  # of Pydantic
        return of_model()
    if not isinstance(value, str | Path) or not value:
        return value
    match nested_kind(hint):
        case "rows":
            return _rows(item.name, user_path(str(value)))
        case "mapping":
            return _mapping(item.name, str(value))
    return read_template(item.name, str(value)) if item.metadata["may_be_file"] else value


def read_template(name: str, value: str) -> str:
    """A Jinja template, or the text of a file."""
    if "{{" in value or "{%" in value:
        return value
    from llmkit.data.text import read_text_file

    path = user_path(value)
    if not path.is_file():
        raise UsageError(
            f"`{name}`: {value[:80]!r} is neither a file nor a Jinja template",
            "name a file, or write the template itself, with columns as {{ NAME }}",
            code="file_not_found",
        )
    return read_text_file(path)


def _rows(name: str, path: Path) -> tuple[Any, ...]:
    """The rows of a file: of data, or a list in YAML."""
    if path.suffix not in _YAML:
        from llmkit.data.rows import read_rows

        return tuple(read_rows(path))
    from llmkit.config.yaml12 import parse
    from llmkit.data.text import read_text_file

    content, _ = parse(read_text_file(path), str(path))
    rows = content.get(name) if isinstance(content, dict) and name in content else content
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"{path} is not a list of objects", f"write the {name} as a list", code="unreadable_file")
    return tuple(rows)


def _mapping(name: str, value: str) -> Any:
    """A mapping from JSON or a JSON file."""
    from llmkit.data.text import read_text_file

    text = value if value.lstrip().startswith("{") else read_text_file(user_path(value))
    try:
        return json.loads(text)
    except ValueError as error:
        raise UsageError(f"`{name}` is not valid JSON ({error})", "correct it", code="invalid_value") from error
