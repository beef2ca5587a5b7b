"""The command ``llmkit evaluate``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkit.cli.options import declared, flags
from llmkit.cli.output import AsJson
from llmkit.cli.processes import start
from llmkit.cli.streams import echo, terminal
from llmkit.config.settings import GenerationSettings, LoadSettings, RowSettings
from llmkit.log import printable
from llmkit.models.processes import Worker, is_distributed, join_process_group, on_cpu

if TYPE_CHECKING:
    from llmkit.evaluation.evaluate import Evaluation

__all__ = ["evaluate"]


def evaluate(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="A recipe: evaluates its tuned model on its validation data.")
    ] = None,
    *,
    load: LoadSettings,
    generation: GenerationSettings,
    task: Annotated[str | None, typer.Option(help="Without a recipe: the task.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Rows with reference answers; default with a recipe: its validation data.")
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="Another model to compare with, on the same rows.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe, such as settings.target=de."),
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
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for predictions and metrics.")
    ] = Path("evaluation"),
    max_rows: Annotated[int | None, declared(RowSettings, "max_rows", min=1)] = None,
    num_processes: Annotated[int | None, declared(RowSettings, "num_processes", min=1)] = None,
    resume: Annotated[bool, declared(RowSettings, "resume")] = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate a model against reference answers.

    Decoding is greedy unless sampling options are set. Metrics have 95 % confidence intervals and are compared with
    trivial answers; --baseline adds the p-value of a paired bootstrap test.

    Examples:
        llmkit evaluate summarization/starter-lora --baseline starter
        llmkit evaluate --task translate --data test.jsonl --set settings.target=fr -m Helsinki-NLP/opus-mt-en-fr
    """
    if (num_processes or 1) > 1 and not is_distributed():
        raise typer.Exit(start(num_processes or 1, flags.arguments, on_cpu=on_cpu(load.device)))
    member = join_process_group(num_processes, load.device) if is_distributed() else Worker()
    from llmkit.training.evaluation_spec import no_progress, resolve_evaluation, run_evaluation

    asked = resolve_evaluation(recipe, task, data, load, overrides or ())
    loaded = {}
    if metrics:
        from llmkit.metrics.wrapped import load_metric

        loaded = {Path(name).stem: load_metric(name, trust_remote_code=load.trust_remote_code) for name in metrics}
    result = run_evaluation(
        asked,
        generation,
        output,
        baseline=baseline,
        metrics=loaded,
        max_rows=max_rows,
        resume=resume,
        member=member,
        shown=_bar if sys.stderr.isatty() and not flags.quiet and not member.rank else no_progress,
    )
    if result is not None:
        echo(json.dumps(result.to_dict(), ensure_ascii=False) if as_json else "\n".join(_table(result)))


@contextmanager
def _bar(model: str, rows: int) -> Iterator[Callable[[int, int], None]]:
    from tqdm import tqdm

    with tqdm(total=rows, unit="rows", desc=printable(model), file=terminal(sys.stderr), dynamic_ncols=True) as bar:

        def update(done: int, _tokens: int) -> None:
            bar.update(done)

        yield update


def _table(result: Evaluation) -> Iterator[str]:
    other = result.baseline
    counts = ((result.failed, "failed"), (result.unfinished, "unfinished"))
    lost = "".join(f", {number} {what}" for number, what in counts if number)
    yield f"{result.task}: {result.model}, {result.rows} rows{lost}"
    if result.notes:
        yield "notes: " + ", ".join(f"{count} {code}" for code, count in result.notes.items())
    if other is not None:
        yield f"baseline: {other.model}"
    others = {} if other is None else {each.name: each.interval.value for each in other.figures}
    for each in result.figures:
        line = f"  {each.name:<12} {each.interval.value:6.2f}  [{each.interval.low:.2f}, {each.interval.high:.2f}]"
        if each.p_value is not None:
            before = others[each.name]
            line += f"   baseline {before:.2f}, difference {each.interval.value - before:+.2f}, p = {each.p_value:.4f}"
        yield line
    for name, figures in result.trivial.items():
        yield f"  {name}: " + ", ".join(f"{key} {value:.2f}" for key, value in figures.items())
    for name, found in result.others.items():
        yield f"  {name}: {json.dumps(found, ensure_ascii=False)}"
    for signature in dict.fromkeys(each.signature for each in result.figures):
        yield f"  signature: {signature}"
