"""The command that trains: ``llmkit finetune``."""

from __future__ import annotations

from typing import Annotated

import typer

from llmkit.errors import UsageError

__all__ = ["finetune"]


def finetune(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped one.")],
    *,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key, such as train.learning_rate=1e-4 (repeatable)."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved recipe and what training will take; train nothing.")
    ] = False,
) -> None:
    """Train a model by a recipe."""
    from llmkit.config.recipe_file import load_recipe, resolved_yaml

    loaded = load_recipe(recipe, overrides or ())
    if not dry_run:
        raise UsageError("this version of llmkit checks recipes and does not train yet", "add --dry-run")
    from llmkit.training.report import dry_run as estimate

    typer.echo(resolved_yaml(loaded), nl=False)
    for line in estimate(loaded):
        typer.echo(f"# {line}")
