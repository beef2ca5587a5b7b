"""The command that trains: ``llmkit finetune``."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from llmkit.cli.options import Stopped, declared, flags
from llmkit.cli.processes import Nodes, start
from llmkit.cli.streams import echo
from llmkit.config.commands import command_line, quoted
from llmkit.config.settings import Device, LoadSettings
from llmkit.errors import UsageError
from llmkit.log import log
from llmkit.models.processes import is_distributed, on_cpu
from llmkit.tasks import TASKS

if TYPE_CHECKING:
    from llmkit.config.recipe import Recipe

__all__ = ["finetune"]


def finetune(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a built-in one.")
    ] = None,
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
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="DIR", help="Folder of the result; sets train.output_dir.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key, such as train.learning_rate=1e-4 (repeatable)."),
    ] = None,
    num_processes: Annotated[
        int | None,
        typer.Option(min=1, help="Train in this many processes, one per GPU; sets accelerate.num_processes."),
    ] = None,
    push_to_hub: Annotated[
        bool, typer.Option("--push-to-hub", help="Upload the result; sets train.push_to_hub.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved recipe, parameters and memory, without training.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the last checkpoint in train.output_dir.")
    ] = False,
    device: Annotated[
        Device | None,
        declared(LoadSettings, "device", show_default="auto"),
    ] = None,
    offline: Annotated[bool, declared(LoadSettings, "offline")] = False,
    trust_remote_code: Annotated[bool, declared(LoadSettings, "trust_remote_code")] = False,
    allow_pickle: Annotated[bool, declared(LoadSettings, "allow_pickle")] = False,
) -> None:
    """Train a model on one device or several: from a recipe, or with defaults for a task and its data.

    Examples:
        llmkit finetune --task summarize --data papers.csv -o runs/papers
        llmkit finetune summarization/starter-lora --dry-run
        llmkit finetune papers.yaml --set train.learning_rate=1e-4 --set adapter.r=16
    """
    from llmkit.config.recipe_file import allowing, load_recipe, resolved_yaml

    text = None
    several = [] if num_processes is None else [f"accelerate.num_processes={num_processes}"]
    hub = ["train.push_to_hub=true"] if push_to_hub else []
    code = allowing(trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    model_keys = [*([f"model.device={device}"] if device else []), *(["model.offline=true"] if offline else [])]
    changes = [*hub, *(overrides or ()), *several, *model_keys, *code]
    rows = row_format(column, encoding, header, delimiter, max_rows)
    if recipe is None:
        languages = {"source": source, "target": target}
        new = from_options(task, data_paths, validation, model, method, languages, rows, output, changes)
        loaded = new.recipe()
        text = new.text(Path(loaded.train.output_dir))
        for note in new.notes:
            log.info("%s", note)
    else:
        instead = {"task": task, "data": data_paths, "validation": validation, "model": model, "method": method}
        _refuse_beside_recipe(**instead, **{"from": source, "to": target}, **rows)
        folder = [] if output is None else [f"train.output_dir={json.dumps(output)}"]
        loaded = load_recipe(recipe, [*changes, *folder])
    if dry_run:
        if resume:
            raise UsageError("--dry-run and --resume are mutually exclusive", "leave one of them out", code="no_effect")
        from llmkit.training.dry_run import dry_run as estimate

        echo(text or resolved_yaml(loaded), end="")
        for line in estimate(loaded):
            echo(f"# {line}")
        return
    if (loaded.accelerate.num_processes or 1) > 1 and not is_distributed():
        raise typer.Exit(_start(loaded))
    from llmkit.training.run import finetune as train

    with _graceful_stop(loaded.accelerate.local_sgd_steps) as signals:
        trainer = train(loaded, resume=resume, should_stop=lambda: bool(signals), text=text, keep_model=False)
    if trainer.stopped:
        step = trainer.progress.step
        log.warning("stopped after update %d, with a checkpoint; continue with --resume", step)
        # The signal may have reached another process only.
        raise Stopped(143 if signal.SIGTERM in signals[:1] else 130)
    if trainer.accelerator.is_main_process:
        echo(str(trainer.folder))
        _log_next(loaded)


def _log_next(recipe: Recipe) -> None:
    """Log the commands that use and evaluate the result of a recipe."""
    task, folder = TASKS[recipe.task], recipe.train.output_dir
    unset = any(getattr(recipe.settings, name) is None for name in task.settings_in_rows)
    options = task.sample_options if len(task.columns) > 1 or unset else {}
    prefixes = dict.fromkeys(source.prefix for source in recipe.data.train)
    if len(prefixes) > 1:  # the model has none of its own
        options = {**options, "prefix": next(filter(None, prefixes))}
    log.info("try it: %s", command_line(task.verb, task.sample, **options, model=folder))
    rows: dict[str, Any] = {}
    if recipe.data.validation is None and recipe.data.validation_fraction is None:
        mixed = any(source.task not in (None, recipe.task) for source in recipe.data.train)
        rows = {"task": recipe.task if mixed else "", "data": "FILE"}
    log.info("evaluate it: %s", command_line("evaluate", quoted(folder), **rows))


def _refuse_beside_recipe(**options: Any) -> None:
    names = {"columns": "column", "max_rows": "max-rows"}
    if used := [f"--{names.get(name, name)}" for name, value in options.items() if value is not None and value != []]:
        raise UsageError(
            f"{', '.join(used)} replace a recipe, and one is named", "change the recipe with --set", code="no_effect"
        )


def _start(recipe: Recipe) -> int:
    section, device = recipe.accelerate, str(getattr(recipe.model, "device", "auto"))
    machines = Nodes(section.num_machines, section.machine_rank, section.main_process_ip, section.main_process_port)
    return start(section.num_processes or 1, flags.arguments, on_cpu=on_cpu(device), machines=machines)


@contextmanager
def _graceful_stop(local_sgd_steps: int | None) -> Iterator[list[int]]:
    """Ctrl+C and SIGTERM end the run after an update at which processes synchronize; a second one ends it at once."""
    last = "this update" if local_sgd_steps is None else f"the next multiple of {local_sgd_steps} updates"
    received: list[int] = []
    before: dict[int, Any] = {}

    def stop(number: int, _: object) -> None:
        if received:
            raise Stopped(130 if number == signal.SIGINT else 143)
        received.append(number)
        log.warning("stopping after %s, with a checkpoint; press Ctrl+C again to stop at once", last)

    for each in (signal.SIGINT, signal.SIGTERM):
        before[each] = signal.signal(each, stop)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
