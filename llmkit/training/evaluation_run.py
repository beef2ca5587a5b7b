"""Runs an evaluation: one model, or two, or several numbers of few-shot examples, on the rows of each task.

Knows which files an evaluation writes, and what of them stays if it fails. Scoring is in `llmkit.evaluation`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from llmkit.config.settings import GenerationSettings, LoadSettings
from llmkit.engines.transformers import TransformersEngine
from llmkit.errors import InputError, UsageError
from llmkit.evaluation.additional import open_metrics
from llmkit.evaluation.answered import AdditionalMetric
from llmkit.evaluation.evaluate import Evaluation, compare, compare_shots, evaluate, join_tasks
from llmkit.evaluation.results import json_lines, log_problems, write_results
from llmkit.files import write_whole
from llmkit.hub.reachability import offline
from llmkit.inference.pipeline import Pipeline
from llmkit.inference.tuned_config import apply_contract
from llmkit.models.load import load_model
from llmkit.models.processes import Worker
from llmkit.models.tables import writes
from llmkit.progress import ProgressMeter
from llmkit.training.evaluation_spec import EvaluationSpec, default_output, folder_name

__all__ = ["run_evaluation"]

_ROWS = "rows.jsonl"
_REPLACED = ".replaced"
"""Folder for the files of an earlier evaluation until the one that replaces it has answered a row."""


def run_evaluation(
    specs: Mapping[str, EvaluationSpec],
    settings: GenerationSettings,
    output: Path | None = None,
    *,
    baseline: str | None = None,
    shots: Sequence[int] = (),
    metrics: Mapping[str, Any] | Sequence[str] = (),
    max_rows: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    member: Worker | None = None,
) -> Evaluation | None:
    """Evaluate a model, and compare it with another, or several numbers of few-shot examples, on the same rows.

    Args:
        specs: what `resolve_evaluation` returns.
        output: folder for ``results.jsonl`` (rows, references, predictions and scores), ``metrics.json``, and the
            files that ``resume`` needs, in a folder for each task of a mixture; by default `default_output`.
        baseline: the other model.
        shots: numbers of few-shot examples in each prompt; each is compared with the first. By default all examples.
        metrics: additional metrics (`llmkit.evaluation.additional.open_metrics`).
        resume: continue an interrupted evaluation into the same folder.
        overwrite: replace an earlier evaluation in the folder, once the new one has answered a row.
        member: which of several processes this is; only the first returns a result, the others None.

    Raises:
        UsageError: the folder is not empty and neither ``resume`` nor ``overwrite`` is True, or a setting has no
            effect.
        InputError: a row cannot be read, or there are no rows.
    """
    _check_options(settings, shots, baseline=baseline, resume=resume, overwrite=overwrite)
    member, output = member or Worker(), output or default_output(specs)
    if not member.rank and output.exists() and not (resume or overwrite):
        _require_empty(output)
    run = partial(
        _run, settings=settings, baseline=baseline, shots=shots, metrics=metrics, max_rows=max_rows,
        resume=resume, overwrite=overwrite, member=member,
    )  # fmt: skip
    if len(specs) == 1:
        return run(next(iter(specs.values())), output)
    results = {name: run(spec, output / folder_name(name)) for name, spec in specs.items()}
    found = {name: result for name, result in results.items() if result is not None}
    if not found:
        return None
    for path in _own_files(output):  # of an earlier evaluation of one task
        path.unlink()
    return _with_metrics(replace(join_tasks(found), results=output), output)


def _with_metrics(result: Evaluation, output: Path) -> Evaluation:
    """The result, after writing its metrics."""
    text = json.dumps(result.to_dict(), ensure_ascii=False, indent=2)
    write_whole(output / "metrics.json", f"{text}\n", errors="backslashreplace")
    return result


def _run(
    spec: EvaluationSpec,
    output: Path,
    *,
    settings: GenerationSettings,
    baseline: str | None,
    shots: Sequence[int],
    metrics: Mapping[str, Any] | Sequence[str],
    max_rows: int | None,
    resume: bool,
    overwrite: bool,
    member: Worker,
) -> Evaluation | None:
    """The result of one task."""
    rows = output / _ROWS
    other_load = None if baseline is None else replace(spec.load, model=baseline, revision=None, base=None)
    with offline(spec.load.offline), nullcontext() if member.rank else _restored_unless_answered(output, overwrite):
        evaluate_model = partial(
            _evaluate_model, spec, settings, output, shots=shots, metrics=open_metrics(metrics, spec.load),
            resume=resume, member=member,
        )  # fmt: skip
        if not member.rank:
            _write_rows(spec, rows, max_rows)
        member.barrier()
        if other_load is not None:  # a missing baseline is an error now, not after all rows are answered
            load_model(other_load, spec.task.name, weights=False, fallback=False)
        results = evaluate_model("predictions", spec.load, trivial=True)
        others = [] if other_load is None else evaluate_model("baseline", other_load, trivial=False)
        result = _compared(results, others)
        if result is None:
            return None
        result = replace(result, results=write_results(output / "results.jsonl", rows, result))
        for each in (*(result.by_shots or [result]), result.baseline):
            if each is not None and result.results is not None:
                log_problems(each, result.results)
        return _with_metrics(result, output)


def _evaluate_model(
    spec: EvaluationSpec,
    settings: GenerationSettings,
    output: Path,
    name: str,
    load: LoadSettings,
    *,
    shots: Sequence[int],
    trivial: bool,
    metrics: Mapping[str, AdditionalMetric],
    resume: bool,
    member: Worker,
) -> list[Evaluation | None]:
    """The results of one model for each number of shots; ``name`` is that of the files of its answers."""
    loaded, rows = load_model(load, spec.task.name, fallback=False), output / _ROWS
    if spec.truncates and writes(loaded.head) and settings.on_overflow is None:
        settings = replace(settings, on_overflow="truncate", truncation_side=spec.truncation_side)
    task, prompt_options, settings = apply_contract(loaded, spec.task, spec.prompt_options, settings)
    options = [replace(prompt_options, shots=number) for number in shots] or [prompt_options]
    pipelines = [Pipeline(task, TransformersEngine(loaded), settings, each) for each in options]
    for pipeline in pipelines:
        if pipeline.prompt_options.shots:
            pipeline.few_shot.require(json_lines(rows))
    with rows.open("rb") as file:
        share = -(-sum(1 for _ in file) // member.world) * len(pipelines)
    with ProgressMeter(share, "rows", what=loaded.source.name, shown=not member.rank) as meter:
        return [
            evaluate(
                pipeline,
                rows,
                output / f"{name}{f'-{pipeline.prompt_options.shots}-shots' if shots[1:] else ''}.jsonl",
                load=load,
                metrics=metrics,
                trivial=trivial and pipeline is pipelines[0],
                resume=resume,
                member=member,
                progress=meter.advance_rows,
            )
            for pipeline in pipelines
        ]


def _check_options(
    settings: GenerationSettings, shots: Sequence[int], *, baseline: str | None, resume: bool, overwrite: bool
) -> None:
    if settings.num_return_sequences > 1:
        raise UsageError(
            "num_return_sequences: only the first output of a row is evaluated", "leave it out", code="no_effect"
        )
    if resume and overwrite:
        raise UsageError("`resume` and `overwrite` are mutually exclusive", "leave one of them out", code="no_effect")
    if len(set(shots)) < len(shots):
        raise UsageError("`shots` has a number twice", "name each once", code="invalid_value")
    if len(shots) > 1 and baseline is not None:
        raise UsageError(
            "`baseline` compares models, and several `shots` compare prompts of one model",
            "name one number of `shots`",
            "leave `baseline` out",
        )


def _compared(results: Sequence[Evaluation | None], others: Sequence[Evaluation | None]) -> Evaluation | None:
    """The result with its comparisons; None in a process that has none."""
    found = [each for each in results if each is not None]
    if not found:
        return None
    if others:
        return None if others[0] is None else compare(found[0], others[0])
    return compare_shots(found) if len(found) > 1 else found[0]


def _require_empty(output: Path) -> None:
    if not output.is_dir():
        raise UsageError(f"{output} is a file", "name another `output`", code="output_exists")
    if any(output.iterdir()):
        raise UsageError(
            f"{output} is not empty",
            "continue an interrupted evaluation with `resume`",
            "replace it with `overwrite`",
            "name another `output`",
            code="output_exists",
        )


def _own_files(output: Path) -> list[Path]:
    """The files of an evaluation in a folder; other files in it are the user's."""
    names = (_ROWS, "results.jsonl", "metrics.json", "predictions.jsonl*", "baseline.jsonl*")
    return [path for name in names for path in output.glob(name)]


@contextmanager
def _restored_unless_answered(output: Path, overwrite: bool) -> Iterator[None]:
    """Undo what a failed evaluation wrote unless it answered a row, so that the corrected command can run.

    With ``overwrite``, an earlier evaluation is put aside until then.
    """
    existed, aside = output.exists(), output / _REPLACED
    output.mkdir(parents=True, exist_ok=True)
    if overwrite:
        aside.mkdir(exist_ok=True)
        for path in _own_files(output):
            path.replace(aside / path.name)
    before = set(output.iterdir()) - {aside}
    try:
        yield
    except BaseException:
        answered = any(path.stat().st_size for path in output.glob("predictions*.jsonl*") if path.suffix != ".json")
        if not answered and (overwrite or not before):
            for path in _own_files(output):
                path.unlink()
            for path in aside.iterdir() if overwrite else ():
                path.replace(output / path.name)
            shutil.rmtree(aside, ignore_errors=True)
            if not existed:
                output.rmdir()
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_rows(spec: EvaluationSpec, path: Path, max_rows: int | None) -> None:
    """Write the rows as JSON Lines."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in spec.rows:
            if count == max_rows:
                break
            file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
            count += 1
    if not count:
        raise InputError("no rows to evaluate on", "check the data", code="no_rows")
