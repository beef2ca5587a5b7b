"""Recipe files: loading, overrides, and the built-in recipes.

The schema is declared in `llmkit.config.recipe`; mistakes are explained in `llmkit.config.recipe_errors`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llmkit.config.paths import shipped_recipes, user_path
from llmkit.config.recipe import VERSION, Recipe, recipe_adapter
from llmkit.config.recipe_errors import recipe_error, recipe_place
from llmkit.config.recipe_paths import resolve_paths
from llmkit.config.yaml12 import Place, dump, parse
from llmkit.errors import UsageError
from llmkit.tasks import find_task

__all__ = [
    "MAY_RUN_CODE",
    "allowing",
    "find_recipe",
    "json_schema",
    "load_recipe",
    "make_recipe",
    "resolved_yaml",
    "shipped_recipes",
]

_MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""For each schema version, the function that converts to the next one."""


# Files.


def load_recipe(
    name: str,
    overrides: Sequence[str] = (),
    *,
    trusted: Collection[str] = (),
    change: Callable[[dict[str, Any]], None] = lambda _: None,
) -> Recipe:
    """Load a recipe from a file or by its built-in name, with overrides such as ``train.learning_rate=1e-4``.

    Paths in it are first resolved relative to its file; paths in ``overrides``, to the working directory.

    Args:
        name: path, or name of a built-in recipe.
        overrides: changes by the user, who may allow what the file itself cannot allow.
        trusted: keys in `MAY_RUN_CODE` that the file may set.
        change: changes the content of the file in place, before the overrides.

    Raises:
        UsageError: all mistakes, with file and line.
    """
    path = find_recipe(name)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{name} is not UTF-8 text (byte {error.start})", "save it as UTF-8", code="invalid_recipe"
        ) from error
    except OSError as error:
        raise UsageError(
            f"{name} cannot be read ({error.strerror})", "check the path and its permissions", code="invalid_recipe"
        ) from error
    content, lines = parse(text, name)
    if not isinstance(content, dict):
        raise UsageError(
            f"{name} does not contain a recipe",
            "write keys and values, or start with: llmkit recipes copy NAME",
            code="invalid_recipe",
        )
    content = _migrate(content, name, lines)
    resolve_paths(content, path.parent)
    _refuse_code(content, overrides, trusted, name, lines)
    change(content)
    return make_recipe(content, overrides, name=name, lines=lines)


MAY_RUN_CODE = ("trust_remote_code", "allow_pickle")
"""Keys of the model section that let code from others run."""


def allowing(**allowed: bool) -> list[str]:
    """The overrides by which the user allows a model's code to run, whether or not the recipe sets the keys."""
    return [f"model.{key}=true" for key in MAY_RUN_CODE if allowed[key]]


def _refuse_code(
    content: Mapping[str, Any],
    overrides: Sequence[str],
    trusted: Collection[str],
    name: str,
    lines: Mapping[Place, int],
) -> None:
    """Refuse a file that allows a model's code to run without the user's consent."""
    section = content.get("model")
    overridden = {override.partition("=")[0].strip() for override in overrides}
    for key in MAY_RUN_CODE:
        if isinstance(section, dict) and section.get(key) and key not in trusted and f"model.{key}" not in overridden:
            where = f"{name}:{lines.get(('model', key), 1)}"
            raise UsageError(
                f"{where}: model.{key} lets code of the model run, which a recipe cannot allow by itself",
                f"if you trust the model, give `overrides=model.{key}=true`",
                f"add `{key}=True`",
                code="code_not_trusted",
            )


def make_recipe(
    content: dict[str, Any],
    overrides: Sequence[str] = (),
    *,
    name: str = "the recipe",
    lines: Mapping[Place, int] | None = None,
) -> Recipe:
    """Validate the content of a recipe in the current schema version; the overrides change it in place.

    Args:
        name: what errors call it.
        lines: the line of each key in its file.

    Raises:
        UsageError: all mistakes.
    """
    lines = lines or {}
    changed = [_override(content, override) for override in overrides]
    if isinstance(content.get("task"), str):
        with suppress(UsageError):  # a verb is replaced by the name of its task
            content["task"] = find_task(content["task"]).name
    try:
        return recipe_adapter(content).validate_python(content)
    except ValidationError as error:
        if (texts := _as_texts(error, content, overrides, changed)) != list(overrides):
            return make_recipe(content, texts, name=name, lines=lines)
        raise recipe_error(error, content, name, lines, changed) from error


def _as_texts(
    error: ValidationError, content: Mapping[str, Any], overrides: Sequence[str], changed: Sequence[Place]
) -> Sequence[str]:
    """The overrides, with quotation marks around numbers where text is expected, such as a folder ``1e-4``."""
    problems = [each for each in error.errors(include_url=False) if each["type"] == "string_type"]
    places = [recipe_place(each["loc"], content) for each in problems if isinstance(each["input"], bool | int | float)]
    parts = [override.partition("=") for override in overrides]
    return [
        f"{path}={json.dumps(text.strip())}" if place in places and '"' not in text else f"{path}={text}"
        for (path, _, text), place in zip(parts, changed, strict=True)
    ]


def find_recipe(name: str) -> Path:
    """The file of a recipe, by its path or built-in name."""
    path = user_path(name)
    if path.is_file():
        return path
    shipped = shipped_recipes()
    known = name.removesuffix(".yaml").removeprefix("recipes/")
    if known in shipped:
        return shipped[known]
    if path.is_dir():
        raise UsageError(
            f"{name} is a folder, not a recipe",
            "name the file of a recipe",
            code="invalid_recipe",
        )
    near = get_close_matches(known, shipped, n=1)
    fix = f"did you mean {near[0]}?" if near else "see: llmkit recipes list"
    raise UsageError(f"no recipe file or built-in recipe is named {name}", fix, code="recipe_not_found")


def _migrate(content: dict[str, Any], name: str, lines: Mapping[Place, int]) -> dict[str, Any]:
    """The content in the current schema version."""
    where = f"{name}:{lines.get(('version',), 1)}"
    if "version" not in content:
        raise UsageError(f"{where}: version is missing", f"add: version: {VERSION}", code="invalid_recipe")
    version = content["version"]
    if not isinstance(version, int) or isinstance(version, bool):
        raise UsageError(f"{where}: version is {version!r}", f"write version: {VERSION}", code="invalid_recipe")
    if version > VERSION:
        raise UsageError(
            f"{where}: this llmkit reads recipes up to version {VERSION}", "upgrade llmkit", code="invalid_recipe"
        )
    while version < VERSION:
        if version not in _MIGRATIONS:
            raise UsageError(
                f"{where}: version {version} is no longer supported",
                "start from a current one: llmkit recipes copy NAME",
                code="invalid_recipe",
            )
        content = _MIGRATIONS[version](content)
        version += 1
    return {**content, "version": VERSION}


_INDEX = re.compile("[0-9]{1,9}")


def _override(content: dict[str, Any], override: str) -> Place:
    """Set one key in place, and return its location."""
    path, equals, text = override.partition("=")
    if not equals or not path.strip():
        fix = "write KEY=VALUE, such as `overrides=train.learning_rate=1e-4`"
        raise UsageError(f"`overrides={override}` is not of the form KEY=VALUE", fix, code="invalid_recipe")
    value, _ = parse(text, f"`overrides={path}`")
    *parents, last = place = tuple(int(part) if _INDEX.fullmatch(part) else part for part in path.strip().split("."))
    _spell_out_paths(content, place)
    inner: Any = content
    for depth, part in enumerate(parents):
        if isinstance(inner, dict):
            inner = inner.setdefault(str(part), {})
        elif isinstance(inner, list) and isinstance(part, int) and part < len(inner):
            inner = inner[part]
        else:
            inner = None
        if not isinstance(inner, dict | list):
            raise UsageError(
                f"`overrides={path}`: {'.'.join(map(str, place[: depth + 1]))} has no keys",
                "set its entire value",
                code="invalid_recipe_key",
            )
    if isinstance(inner, list):
        if not isinstance(last, int) or last >= len(inner):
            raise UsageError(
                f"`overrides={path}`: item {last} does not exist",
                f"items are 0 to {len(inner) - 1}",
                code="invalid_recipe_key",
            )
        inner[last] = value
    else:
        inner[str(last)] = value
    return place


def _spell_out_paths(content: dict[str, Any], place: Place) -> None:
    """Write a source that was given as a path as a mapping, if the override sets one of its keys."""
    match place:
        case ("data", "train" | "validation" as part, str(), *_):
            data = content.get("data")
            if isinstance(data, dict) and isinstance(data.get(part), str):
                data[part] = {"path": data[part]}
        case ("data", "train" | "validation" as part, int(number), str(), *_):
            data = content.get("data")
            sources = data.get(part) if isinstance(data, dict) else None
            if isinstance(sources, list) and number < len(sources) and isinstance(sources[number], str):
                sources[number] = {"path": sources[number]}


# Output.


def resolved_yaml(recipe: Recipe) -> str:
    """The complete recipe as YAML, including defaults; `load_recipe` can load it again."""
    return dump(recipe.model_dump(mode="json"))


def json_schema() -> dict[str, Any]:
    """The JSON schema of recipes, for editors (``# yaml-language-server: $schema=…``)."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "llmkit recipe",
        **recipe_adapter().json_schema(),
    }
