"""The command ``llmkit evaluate``. Its options for the settings of tasks are generated from what the tasks declare."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from llmkit.cli.display import padded
from llmkit.cli.options import declared, flags, option_parameters
from llmkit.cli.output import AsJson
from llmkit.cli.processes import start
from llmkit.cli.streams import echo
from llmkit.config.declaration import setting_fields
from llmkit.config.settings import GenerationSettings, LoadSettings, RowSettings, column_pairs
from llmkit.errors import UsageError
from llmkit.log import log
from llmkit.models.processes import Worker, is_distributed, join_process_group, on_cpu
from llmkit.tasks import PromptOptions

if TYPE_CHECKING:
    from llmkit.evaluation.evaluate import Evaluation, MetricResult
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
        str | None,
        typer.Option(
            metavar="TASK",
            help="Without RUN: the task; of a mixture, which one; default: all.",
            rich_help_panel="Model",
        ),
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
    examples: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Few-shot examples: other rows, or the same, none of which precedes itself; default: RUN's own.",
            rich_help_panel="Prompt",
        ),
    ] = None,
    shots: Annotated[
        str | None,
        typer.Option(
            metavar="N[,N…]",
            help="Numbers of examples in each prompt, such as 0,1,4, each compared with the first; default: all.",
            rich_help_panel="Prompt",
        ),
    ] = None,
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
            metavar="NAME[,KEY=VALUE…]",
            help="Additional metric: rouge-stemmed, meteor, bertscore, judge,model=MODEL, or the path or Hub name of a "
            "metric of the package evaluate (repeatable).",
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
    **further: Any,
) -> None:
    """Evaluate a model against reference answers.

    Decoding is greedy unless sampling options are set. Metrics have 95 % confidence intervals and are compared with
    trivial answers; --baseline adds the p-value of a paired bootstrap test, and so do several numbers of --shots. Each
    row with its references, prediction and scores is written to results.jsonl. A conversation is evaluated by its last
    reply. All tasks of a mixture are evaluated, each in a folder of its own, unless --task names one.

    Examples:
        llmkit evaluate runs/papers --baseline starter
        llmkit evaluate --task translate --data test.jsonl --to fr -m Helsinki-NLP/opus-mt-en-fr
        llmkit evaluate --task answer --data test.jsonl --examples train.jsonl --shots 0,1,4 -m starter
    """
    if (num_processes or 1) > 1 and not is_distributed():
        raise typer.Exit(start(num_processes or 1, flags.arguments, on_cpu=on_cpu(load.device)))
    member = join_process_group(num_processes, load.device) if is_distributed() else Worker()
    from llmkit.training.evaluation_run import run_evaluation
    from llmkit.training.evaluation_spec import resolve_evaluation

    specs = resolve_evaluation(
        run,
        task,
        data,
        load,
        overrides or (),
        columns=column_pairs(column or ()),
        encoding=encoding,
        header=header,
        delimiter=delimiter,
        options={"examples": examples, **further},
    )
    result = run_evaluation(
        specs,
        generation,
        output,
        baseline=baseline,
        shots=_numbers(shots),
        metrics=metrics or (),
        max_rows=max_rows,
        resume=resume,
        overwrite=overwrite,
        member=member,
    )
    if result is not None:
        echo(json.dumps(result.to_dict(), ensure_ascii=False) if as_json else "\n".join(_table(result)))
        log.info("rows, references, predictions and scores: %s", result.results)


def _numbers(shots: str | None) -> list[int]:
    numbers = [number.strip() for number in (shots or "").split(",") if shots is not None]
    if wrong := next((number for number in numbers if not number.isdecimal()), None):
        raise UsageError(f"`shots`: {wrong!r} is not a number", "write numbers such as 0,1,4", code="invalid_value")
    return [int(number) for number in numbers]


def evaluate_command(tasks: tuple[type[Task], ...]) -> Callable[..., None]:
    """The function of the command for some tasks, for `llmkit.cli.options.command`."""

    def run(**options: Any) -> None:
        evaluate(**options)

    hints = get_type_hints(evaluate, include_extras=True)
    own = [
        each.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        for name, each in inspect.signature(evaluate).parameters.items()
        if name != "further"
    ]
    names = {each.name for each in own}
    prompt = (each.replace(default=None) for each in option_parameters(PromptOptions))
    parameters = [*own, *(each for each in (*_task_options(tasks), *prompt) if each.name not in names)]
    run.__name__, run.__doc__ = "evaluate", evaluate.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def _task_options(tasks: tuple[type[Task], ...]) -> Iterable[inspect.Parameter]:
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
    return found.values()


_CHOSEN = {"random": ", drawn with seed {shots_seed}", "similarity": ", by similarity of words"}


def _table(result: Evaluation) -> Iterator[str]:
    if result.by_task:
        for name, each in result.by_task.items():
            yield from _table(replace(each, task=name))
        return
    compared = result.by_shots or (result,)
    problems = "" if result.by_shots else _problems(result)
    yield f"{result.task}: {result.model}, {result.rows} rows{problems}"
    if result.baseline is not None:
        yield f"baseline: {result.baseline.model}"
    if examples := next((each.examples for each in compared if each.shots), None):
        yield f"examples: {examples['count']}{_CHOSEN.get(str(examples.get('shots_by')), '').format(**examples)}"
    for each in compared:
        yield from _remarks(each, f" ({_label(each)})" if result.by_shots else "")
    yield from _figures_by_shots(compared, compared) if result.by_shots else _figures(result)
    for name, group in result.groups.items():
        yield f"  {name}, {group.rows} rows"
        groups = [each.groups[name] for each in compared]
        yield from (f"  {line}" for line in (_figures_by_shots(compared, groups) if groups[1:] else _figures(group)))
    for name, figures in result.trivial.items():
        yield f"  {name}: " + ", ".join(f"{key} {value:.2f}" for key, value in figures.items())
    for each in compared:
        for name, values in each.others.items():
            shown = f"{name} ({_label(each)})" if result.by_shots else name
            yield f"  {shown}: {json.dumps(values, ensure_ascii=False)}"
    for signature in dict.fromkeys(each.signature for each in result.figures):
        yield f"  signature: {signature}"


def _problems(result: Evaluation) -> str:
    counts = ((result.failed, "failed"), (result.unfinished, "unfinished"))
    return "".join(f", {number} {name}" for number, name in counts if number)


def _remarks(result: Evaluation, label: str) -> Iterator[str]:
    if label and (problems := _problems(result)):
        yield f"rows{label}: {problems.removeprefix(', ')}"
    if result.notes:
        yield f"notes{label}: " + ", ".join(f"{count} {code}" for code, count in result.notes.items())


def _figures(result: Evaluation) -> Iterator[str]:
    """The measures, with the baseline's if there is one."""
    other = result.baseline
    baselines = {} if other is None else {each.name: each.interval.value for each in other.figures}
    for each in result.figures:
        line = f"  {padded(each.name, 12)} {_interval(each)}"
        if each.name in baselines:
            line += f"   baseline {baselines[each.name]:.2f}, {_difference(each, baselines[each.name])}"
        yield line


def _figures_by_shots(evaluations: Sequence[Evaluation], results: Sequence[Evaluation]) -> Iterator[str]:
    """A block for each measure, with a line for each number of shots, compared with the first.

    ``results`` are the evaluations, or a group of rows of each.
    """
    labels = [_label(each) for each in evaluations]
    width = max(map(len, labels))
    for first in results[0].figures:
        for label, result in zip(labels, results, strict=True):
            name = first.name if result is results[0] else ""
            for each in (each for each in result.figures if each.name == first.name):
                compared = f"   {_difference(each, first.interval.value)}" if each.p_value is not None else ""
                yield f"  {padded(name, 12)} {padded(label, width)} {_interval(each)}{compared}"


def _label(result: Evaluation) -> str:
    from llmkit.evaluation.evaluate import shots_label

    return shots_label(result.shots or 0)


def _interval(figure: MetricResult) -> str:
    found = figure.interval
    digits = 4 if max(map(abs, (found.low, found.high))) <= 1 else 2
    return f"{found.value:6.{digits}f}  [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def _difference(figure: MetricResult, other: float) -> str:
    return f"difference {figure.interval.value - other:+.2f}, p = {figure.p_value:.4f}"
