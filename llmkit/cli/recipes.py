"""The commands about recipes: list, show, copy, validate, schema."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from llmkit.cli.new_recipe import (
    Columns,
    Data,
    Delimiter,
    Encoding,
    Header,
    MaxRows,
    Method,
    ModelName,
    SourceLanguage,
    TargetLanguage,
    TaskName,
    Validation,
    from_options,
    row_format,
)
from llmkit.cli.output import AsJson
from llmkit.cli.streams import echo
from llmkit.errors import InvalidRecipeError, LlmkitError, UsageError
from llmkit.files import write_whole
from llmkit.log import log

__all__ = ["recipes_copy", "recipes_list", "recipes_new", "recipes_schema", "recipes_show", "recipes_validate"]


def recipes_list(*, as_json: AsJson = False) -> None:
    """List the built-in recipes.

    Examples:
        llmkit recipes list
    """
    from llmkit.config.recipe_file import shipped_recipes

    found = [{"name": name, "task": path.parent.name, **_opening(path)} for name, path in shipped_recipes().items()]
    if as_json:
        echo(json.dumps(found, ensure_ascii=False))
        return
    width = max(len(each["name"]) for each in found)
    for each in found:
        echo(f"{each['name']:<{width}}  {each['about']}")


def _opening(path: Path) -> dict[str, str]:
    """The command and the description at the top of a built-in recipe."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [line.removeprefix("#").strip() for line in lines if line.startswith("#")]
    return {"command": comments[0], "about": comments[1]}


def recipes_show(name: Annotated[str, typer.Argument(metavar="NAME", help="See: llmkit recipes list.")]) -> None:
    """Print a built-in recipe.

    Examples:
        llmkit recipes show summarization/starter-lora
    """
    echo(_shipped(name).read_text(encoding="utf-8"), end="")


def _shipped(name: str) -> Path:
    from llmkit.config.recipe_file import find_recipe, shipped_recipes

    path = find_recipe(name)
    if path not in shipped_recipes().values():
        raise UsageError(f"{name} is not a built-in recipe", "name one of: llmkit recipes list")
    return path


def recipes_copy(
    name: Annotated[str, typer.Argument(metavar="NAME", help="See: llmkit recipes list.")],
    destination: Annotated[
        Path | None, typer.Argument(metavar="DIR", show_default="the current folder", help="Folder for the copies.")
    ] = None,
) -> None:
    """Copy a recipe and its sample data, to edit them.

    Examples:
        llmkit recipes copy summarization/starter-lora mine
    """
    path = _shipped(name)
    root, folder = path.parent.parent, destination or Path()
    for original in (path, *_data_of(path)):
        copy = folder / original.relative_to(root)
        if copy.exists() and (original == path or copy.read_bytes() != original.read_bytes()):
            raise UsageError(f"{copy} exists already", "remove it, or name another folder", code="output_exists")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(original, copy)
        echo(str(copy))


def _data_of(path: Path) -> Iterator[Path]:
    from llmkit.config.recipe_file import MAY_RUN_CODE, load_recipe

    data = load_recipe(str(path), trusted=MAY_RUN_CODE).data
    for source in (*data.train, *(data.validation or ())):
        for name in (*(source.path or ()), *(source.aligned or {}).values()):
            if Path(name).is_file():
                yield Path(name)


def recipes_new(
    *,
    task: TaskName = None,
    data_paths: Data = None,
    validation: Validation = None,
    model: ModelName = None,
    method: Method = None,
    source: SourceLanguage = None,
    target: TargetLanguage = None,
    column: Columns = None,
    encoding: Encoding = None,
    header: Header = None,
    delimiter: Delimiter = None,
    max_rows: MaxRows = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key (repeatable).")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", show_default="standard output", help="Recipe file.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output file.")] = False,
) -> None:
    """Write a recipe for some data, with comments: columns as detected, and default hyperparameters.

    Examples:
        llmkit recipes new --task summarize --data papers.csv -o papers.yaml
    """
    languages = {"source": source, "target": target}
    if output is not None and output.exists() and not overwrite:
        raise UsageError(
            f"{output} exists", "name another `output`", "replace it with `overwrite`", code="output_exists"
        )
    rows = row_format(column, encoding, header, delimiter, max_rows)
    new = from_options(task, data_paths, validation, model, method, languages, rows, None, overrides or [])
    if output is None:
        echo(new.text(Path()), end="")
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, new.text(output.parent))
    echo(str(output))


def recipes_validate(
    names: Annotated[list[str] | None, typer.Argument(metavar="RECIPE", help="Files, or names.")] = None,
    *,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key (repeatable).")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Validate all built-in recipes.")] = False,
) -> None:
    """Check recipes against the schema, without loading data or a model.

    Examples:
        llmkit recipes validate papers.yaml
        llmkit recipes validate --all
    """
    from llmkit.config.recipe_file import MAY_RUN_CODE, load_recipe, shipped_recipes

    if bool(names) == every:
        raise UsageError("name recipes, or pass --all", "see: llmkit recipes list")
    bad = 0
    for name in shipped_recipes() if every else names or ():
        try:
            load_recipe(name, overrides or (), trusted=MAY_RUN_CODE)
        except LlmkitError as error:
            bad += 1
            for each in error.mistakes if isinstance(error, InvalidRecipeError) else (error,):
                log.error("%s", each, extra={"code": each.code})
        else:
            echo(f"{name}: ok")
    if bad:
        raise typer.Exit(UsageError.exit_code)


def recipes_schema() -> None:
    """Print the JSON Schema of recipes, for editors.

    Examples:
        llmkit recipes schema > recipe.schema.json
    """
    from llmkit.config.recipe_file import json_schema

    schema: dict[str, Any] = json_schema()
    echo(json.dumps(schema, ensure_ascii=False, indent=2))
