"""The command ``llmkit evaluate``. Its options for the settings of tasks are generated from what the tasks declare."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from llmkit.cli.display import padded
from llmkit.cli.options import declared, flags
from llmkit.cli.output import AsJson
from llmkit.cli.processes import start
from llmkit.cli.streams import echo
from llmkit.config.settings import GenerationSettings, LoadSettings, RowSettings, column_pairs, setting_fields
from llmkit.log import log
from llmkit.models.processes import Worker, is_distributed, join_process_group, on_cpu

if TYPE_CHECKING:
    from llmkit.evaluation.evaluate import Evaluation
    from llmkit.tasks import Task

__all__ = ["evaluate_command"]


def evaluate(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN", help="Folder of a run, or a recipe: evaluates its trained model on its validation data."
        ),
    ] = None,
    *,
    load: LoadSettings,
    generation: GenerationSettings,
    task: Annotated[
        str | None, typer.Option(metavar="TASK", help="Without RUN: the task.", rich_help_panel="Model")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Rows with reference answers; default with RUN: its validation data.",
            rich_help_panel="Rows",
        ),
    ] = None,
    column: Annotated[list[str] | None, declared(RowSettings, "column", metavar="FIELD=COLUMN")] = None,
    encoding: Annotated[
        str | None, typer.Option(metavar="NAME", help="Encoding of the rows, if not UTF-8.", rich_help_panel="Rows")
    ] = None,
    header: Annotated[bool | None, declared(RowSettings, "header")] = None,
    delimiter: Annotated[str | None, declared(RowSettings, "delimiter")] = None,
    max_rows: Annotated[int | None, declared(RowSettings, "max_rows", min=1)] = None,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Another model to compare with, on the same rows.", rich_help_panel="Model"),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe, such as data.on_bad_row=skip."),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            metavar="NAME",
            help="Additional metric of the package evaluate: a path, or a name on the Hub (repeatable).",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Folder for the results; default: evaluation/MODEL-on-DATA.",
            rich_help_panel="Output",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue an interrupted evaluation in its folder.", rich_help_panel="Output"),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier evaluation.", rich_help_panel="Output")
    ] = False,
    num_processes: Annotated[int | None, declared(RowSettings, "num_processes", min=1)] = None,
    as_json: AsJson = False,
    **task_settings: Any,
) -> None:
    """Evaluate a model against reference answers.

    Decoding is greedy unless sampling options are set. Metrics have 95 % confidence intervals and are compared with
    trivial answers; --baseline adds the p-value of a paired bootstrap test. Each row with its references, prediction
    and scores is written to results.jsonl.

    Examples:
        llmkit evaluate runs/papers --baseline starter
        llmkit evaluate --task translate --data test.jsonl --to fr -m Helsinki-NLP/opus-mt-en-fr
    """
    if (num_processes or 1) > 1 and not is_distributed():
        raise typer.Exit(start(num_processes or 1, flags.arguments, on_cpu=on_cpu(load.device)))
    member = join_process_group(num_processes, load.device) if is_distributed() else Worker()
    from llmkit.training.evaluation_spec import resolve_evaluation, run_evaluation

    spec = resolve_evaluation(
        run,
        task,
        data,
        load,
        overrides or (),
        columns=column_pairs(column or ()),
        encoding=encoding,
        header=header,
        delimiter=delimiter,
        settings={name: value for name, value in task_settings.items() if value is not None},
    )
    loaded = {}
    if metrics:
        from llmkit.metrics.wrapped import load_metric

        loaded = {Path(name).stem: load_metric(name, trust_remote_code=load.trust_remote_code) for name in metrics}
    result = run_evaluation(
        spec,
        generation,
        output,
        baseline=baseline,
        metrics=loaded,
        max_rows=max_rows,
        resume=resume,
        overwrite=overwrite,
        member=member,
    )
    if result is not None:
        echo(json.dumps(result.to_dict(), ensure_ascii=False) if as_json else "\n".join(_table(result)))
        log.info("rows, references, predictions and scores: %s", result.results)


def evaluate_command(tasks: tuple[type[Task], ...]) -> Callable[..., None]:
    """The function of the command for some tasks, for `llmkit.cli.options.command`."""

    def run(**options: Any) -> None:
        evaluate(**options)

    hints = get_type_hints(evaluate, include_extras=True)
    own = [
        each.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        for name, each in inspect.signature(evaluate).parameters.items()
        if name != "task_settings"
    ]
    names = {each.name for each in own}
    parameters = [*own, *(each for name, each in _task_options(tasks).items() if name not in names)]
    run.__name__, run.__doc__ = "evaluate", evaluate.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def _task_options(tasks: tuple[type[Task], ...]) -> Mapping[str, inspect.Parameter]:
    """An option for each setting of the tasks, with the names of the tasks that have it."""
    verbs: dict[str, list[str]] = {}
    for task in tasks:
        for item in setting_fields(task.settings_class):
            verbs.setdefault(item.name, []).append(task.verb)
    found: dict[str, inspect.Parameter] = {}
    for task in tasks:
        kinds = get_type_hints(task.settings_class)
        for item in setting_fields(task.settings_class):
            help_text = f"{', '.join(verbs[item.name])}: {item.metadata['help']}"
            option = declared(
                task.settings_class, item.name, help=help_text, show_default=False, rich_help_panel="Task"
            )
            kind = list[str] if kinds[item.name] == tuple[str, ...] else kinds[item.name]
            parameter = inspect.Parameter(
                item.name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind | None, option], default=None
            )
            found.setdefault(item.name, parameter)
    return found


def _table(result: Evaluation) -> Iterator[str]:
    other = result.baseline
    counts = ((result.failed, "failed"), (result.unfinished, "unfinished"))
    problems = "".join(f", {number} {name}" for number, name in counts if number)
    yield f"{result.task}: {result.model}, {result.rows} rows{problems}"
    if result.notes:
        yield "notes: " + ", ".join(f"{count} {code}" for code, count in result.notes.items())
    if other is not None:
        yield f"baseline: {other.model}"
    yield from _figures(result)
    for name, group in result.groups.items():
        yield f"  {name}, {group.rows} rows"
        yield from (f"  {line}" for line in _figures(group))
    for name, figures in result.trivial.items():
        yield f"  {name}: " + ", ".join(f"{key} {value:.2f}" for key, value in figures.items())
    for name, values in result.others.items():
        yield f"  {name}: {json.dumps(values, ensure_ascii=False)}"
    for signature in dict.fromkeys(each.signature for each in result.figures):
        yield f"  signature: {signature}"


def _figures(result: Evaluation) -> Iterator[str]:
    other = result.baseline
    baselines = {} if other is None else {each.name: each.interval.value for each in other.figures}
    for each in result.figures:
        value, low, high = each.interval.value, each.interval.low, each.interval.high
        line = f"  {padded(each.name, 12)} {value:6.2f}  [{low:.2f}, {high:.2f}]"
        if each.p_value is not None:
            before = baselines[each.name]
            line += f"   baseline {before:.2f}, difference {value - before:+.2f}, p = {each.p_value:.4f}"
        yield line
