"""The command that judges: ``llmkit evaluate``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmkit.cli.options import flags
from llmkit.cli.output import AsJson
from llmkit.cli.processes import start
from llmkit.errors import UsageError
from llmkit.models.processes import Member, is_member, join, on_cpu

if TYPE_CHECKING:
    from llmkit.evaluation.evaluate import Evaluation

__all__ = ["evaluate"]


def evaluate(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="Its tuned model on its validation data.")
    ] = None,
    *,
    task: Annotated[str | None, typer.Option(help="Without a recipe: the task.")] = None,
    model: Annotated[str | None, typer.Option(help="The model; of a recipe its train.output_dir.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Rows with expected answers; of a recipe its data.validation.")
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="Another model, to be compared with on the same rows.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe, such as settings.target=de."),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Another metric of the package evaluate: a path, or a name on the Hub (repeatable)."
        ),
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Download and run the code of metrics on the Hub.")
    ] = False,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the answers and the figures.")
    ] = Path("evaluation"),
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer in tokens.")] = None,
    max_rows: Annotated[int | None, typer.Option(min=1, help="Take the first so many rows only.")] = None,
    num_processes: Annotated[int | None, typer.Option(min=1, help="Share the rows among so many processes.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a run into the same folder stopped.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Weights' type, or auto.")] = "auto",
    offline: Annotated[bool, typer.Option("--offline", help="Never reach for a network.")] = False,
    as_json: AsJson = False,
) -> None:
    """Judge a model on rows with expected answers.

    Figures come with 95 % intervals, beside answers that need no model; with --baseline, with the p-value of a paired
    bootstrap test.
    """
    from llmkit.config.settings import GenerationSettings, LoadSettings

    if (num_processes or 1) > 1 and not is_member():
        raise typer.Exit(start(num_processes or 1, flags.arguments, on_cpu=on_cpu(device)))
    member = join(num_processes, device) if is_member() else Member()
    common: dict[str, Any] = {"device": device, "dtype": dtype, "offline": offline}
    settings = GenerationSettings(max_new_tokens=max_new_tokens)
    named, options, sources, tuned = _asked(recipe, task, model, data, overrides or [])
    from llmkit.evaluation.evaluate import compare, write_rows
    from llmkit.tasks import find_task

    metrics = {}
    if metric:
        from llmkit.metrics.wrapped import load_metric

        metrics = {Path(name).stem: load_metric(name, trust_remote_code=trust_remote_code) for name in metric}
    kind = find_task(named)
    made = kind(kind.settings_class(**options))
    rows = output / "rows.jsonl"
    if not member.rank:
        if output.exists() and any(output.iterdir()) and not resume:
            raise UsageError(f"{output} is not empty", "--resume to go on, or name another --output")
        output.mkdir(parents=True, exist_ok=True)
        write_rows(sources, made, rows, max_rows=max_rows)
    member.barrier()
    result = _run(
        made, LoadSettings(model=tuned, **common), settings, rows, output / "predictions.jsonl", metrics, resume, member
    )
    other = None
    if baseline is not None:
        load = LoadSettings(model=baseline, **common)
        other = _run(
            kind(kind.settings_class(**options)),
            load,
            settings,
            rows,
            output / "baseline.jsonl",
            metrics,
            resume,
            member,
        )
    if result is None:
        return
    if other is not None:
        result = compare(result, other)
    content = result.to_dict() | ({} if other is None else {"baseline": other.to_dict()})
    (output / "metrics.json").write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    typer.echo(json.dumps(content, ensure_ascii=False) if as_json else "\n".join(_table(result, other)))


def _asked(
    recipe: str | None, task: str | None, model: str | None, data: str | None, overrides: list[str]
) -> tuple[str, dict[str, Any], list[Any], str]:
    """Task, its settings, sources of rows, model."""
    from llmkit.config.recipe import SourceSection

    given = None if data is None else [SourceSection(path=[data])]
    if recipe is None:
        if task is None or model is None or given is None:
            raise UsageError("what is to be judged?", "give a recipe, or --task, --model and --data")
        return task, dict(_setting(each) for each in overrides), given, model
    if task is not None:
        raise UsageError("--task has no effect beside a recipe, which has one", "leave it out")
    from llmkit.config.recipe_file import load_recipe

    loaded = load_recipe(recipe, overrides)
    sources = given or loaded.data.validation
    if sources is None:
        raise UsageError("the recipe has no data.validation", "set it, or give --data")
    return loaded.task, loaded.settings.model_dump(), list(sources), model or loaded.train.output_dir


def _setting(override: str) -> tuple[str, Any]:
    import yaml

    key, equals, value = override.partition("=")
    section, _, name = key.partition(".")
    if not equals or section != "settings" or not name:
        raise UsageError(f"--set {override}: without a recipe there are the task's settings", "settings.NAME=VALUE")
    return name, yaml.safe_load(value)


def _run(
    task: Any,
    load: Any,
    settings: Any,
    rows: Path,
    predictions: Path,
    metrics: dict[str, Any],
    resume: bool,
    member: Member,
) -> Evaluation | None:
    from llmkit.api import build_pipeline
    from llmkit.evaluation.evaluate import evaluate as judge_model
    from llmkit.tasks import Wording

    pipeline = build_pipeline(task, load, settings, Wording(), fallback=False)
    with _bar(load.model, rows, member) as progress:
        return judge_model(
            pipeline, rows, predictions, load=load, metrics=metrics, resume=resume, member=member, progress=progress
        )


@contextmanager
def _bar(model: str, rows: Path, member: Member) -> Iterator[Any]:
    import sys

    from tqdm import tqdm

    shown = sys.stderr.isatty() and not member.rank
    total = sum(1 for _ in rows.open("rb")) if shown else None
    with tqdm(total=total, unit="rows", desc=str(model), file=sys.stderr, disable=not shown) as bar:
        yield lambda done, _tokens: bar.update(done)


def _table(result: Evaluation, other: Evaluation | None) -> Iterator[str]:
    yield f"{result.task}: {result.model}, {result.rows} rows"
    if other is not None:
        yield f"baseline: {other.model}"
    for number, each in enumerate(result.figures):
        line = f"  {each.name:<12} {each.interval.value:6.2f}  [{each.interval.low:.2f}, {each.interval.high:.2f}]"
        if other is not None and each.p_value is not None:
            before = other.figures[number].interval.value
            line += f"   baseline {before:.2f}, difference {each.interval.value - before:+.2f}, p = {each.p_value:.4f}"
        yield line
    for name, figures in result.trivial.items():
        yield f"  {name}: " + ", ".join(f"{key} {value:.2f}" for key, value in figures.items())
    for name, found in result.others.items():
        yield f"  {name}: {json.dumps(found, ensure_ascii=False)}"
    for signature in dict.fromkeys(each.signature for each in result.figures):
        yield f"  signature: {signature}"
