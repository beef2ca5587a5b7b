"""The options that stand for a recipe: task, model and data, for ``finetune`` and ``recipes new``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmkit.cli.options import declared
from llmkit.config.settings import LoadSettings, RowSettings, column_pairs, delimiter_character
from llmkit.errors import UsageError

if TYPE_CHECKING:
    from llmkit.training.new_recipe import NewRecipe

__all__ = [
    "Columns",
    "Data",
    "Delimiter",
    "Encoding",
    "Header",
    "MaxRows",
    "Method",
    "ModelName",
    "SourceLanguage",
    "TargetLanguage",
    "TaskName",
    "Validation",
    "from_options",
    "row_format",
]

_GROUP = "Recipe"

TaskName = Annotated[
    str | None, typer.Option("--task", metavar="TASK", help="Task of the data.", rich_help_panel=_GROUP)
]
Data = Annotated[
    list[str] | None,
    typer.Option("--data", metavar="PATH", help="Training rows: file, folder, or Hub id.", rich_help_panel=_GROUP),
]
Validation = Annotated[
    list[str] | None,
    typer.Option(
        "--validation",
        metavar="PATH",
        help="Validation rows.",
        show_default="a tenth of the training rows",
        rich_help_panel=_GROUP,
    ),
]
ModelName = Annotated[
    str | None,
    declared(
        LoadSettings,
        "model",
        help="Model to train: a Hub id, a folder, or starter.",
        show_default="starter",
        rich_help_panel=_GROUP,
    ),
]
Method = Annotated[
    str | None,
    typer.Option(
        "--method",
        metavar="NAME",
        help="Train with lora, with full (all weights), or with another method of PEFT.",
        show_default="lora for models that generate text",
        rich_help_panel=_GROUP,
    ),
]
SourceLanguage = Annotated[
    str | None, typer.Option("--from", metavar="LANGUAGE", help="Translation: source language.", rich_help_panel=_GROUP)
]
TargetLanguage = Annotated[
    str | None, typer.Option("--to", metavar="LANGUAGE", help="Translation: target language.", rich_help_panel=_GROUP)
]
Columns = Annotated[list[str] | None, declared(RowSettings, "column", rich_help_panel=_GROUP)]
Encoding = Annotated[
    str | None,
    typer.Option("--encoding", metavar="NAME", help="Encoding of the data, if not UTF-8.", rich_help_panel=_GROUP),
]
Header = Annotated[bool | None, declared(RowSettings, "header", rich_help_panel=_GROUP)]
Delimiter = Annotated[str | None, declared(RowSettings, "delimiter", rich_help_panel=_GROUP)]
MaxRows = Annotated[int | None, declared(RowSettings, "max_rows", min=1, rich_help_panel=_GROUP)]


def row_format(
    column: list[str] | None, encoding: str | None, header: bool | None, delimiter: str | None, max_rows: int | None
) -> dict[str, Any]:
    """The keys of a source that options on the format of its rows stand for."""
    keys: dict[str, Any] = {"columns": column_pairs(column or ()) or None, "encoding": encoding, "header": header}
    keys |= {"delimiter": None if delimiter is None else delimiter_character(delimiter), "max_rows": max_rows}
    return {name: value for name, value in keys.items() if value is not None}


def from_options(
    task: str | None,
    data: list[str] | None,
    validation: list[str] | None,
    model: str | None,
    method: str | None,
    languages: dict[str, str | None],
    rows: dict[str, Any],
    output: str | None,
    overrides: list[str],
) -> NewRecipe:
    """The recipe that the options stand for."""
    from llmkit.training.new_recipe import new_recipe

    if task is None or not data:
        raise UsageError("neither a recipe nor a task with data is named", "name a recipe, or pass --task and --data")
    settings = {name: value for name, value in languages.items() if value is not None}
    return new_recipe(
        task,
        {"path": data, **rows},
        validation={"path": validation, **rows} if validation else None,
        model=model,
        method=method,
        output=output,
        settings=settings,
        overrides=overrides,
    )
