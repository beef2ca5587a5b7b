"""Evaluation of a model on rows with references: metrics with confidence intervals, and a test against a baseline.

Predictions are made by `llmkit.inference.row_files`, so that an interrupted evaluation can be resumed and processes
share the work. Knows what is compared with what; the metrics are in `llmkit.metrics`.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any

from llmkit.config.settings import LoadSettings, RowSettings
from llmkit.engines.row_faults import attempt
from llmkit.errors import InputError, LlmkitError, UsageError
from llmkit.evaluation.answered import AdditionalMetric, Answered
from llmkit.evaluation.groups import score_rows
from llmkit.evaluation.perplexity import perplexity, row_loss, scoring_objective
from llmkit.evaluation.results import json_lines
from llmkit.heads.objective import Objective
from llmkit.heads.reasoning import reasoning_format
from llmkit.inference.pipeline import Pipeline
from llmkit.inference.row_columns import note_codes
from llmkit.inference.row_files import answer_file, check_output
from llmkit.log import warn
from llmkit.metrics.bootstrap import Interval, interval, p_value
from llmkit.metrics.score import Measure
from llmkit.models.processes import Worker
from llmkit.tasks import Task

__all__ = [
    "Evaluation",
    "MetricResult",
    "compare",
    "compare_shots",
    "evaluate",
    "greedy",
    "join_tasks",
    "prediction_of",
    "shots_label",
    "without_reasoning",
]


@dataclass(frozen=True)
class MetricResult:
    """One metric of a model, from 0 to 100 except for perplexity."""

    name: str
    interval: Interval
    signature: str
    higher_is_better: bool
    p_value: float | None = None
    """p-value of the difference to the baseline, or to the first number of shots."""


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation."""

    task: str
    model: str
    rows: int
    failed: int
    """Rows that failed; every metric counts them as wrong."""
    unfinished: int
    """Replies without an answer, for example cut during reasoning; every metric counts them as wrong."""
    figures: tuple[MetricResult, ...]
    others: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Results of the additional metrics, by the requested name."""
    groups: dict[str, Evaluation] = field(default_factory=dict)
    """The same metrics for each group of rows, such as a language pair, if there are several."""
    trivial: dict[str, dict[str, float]] = field(default_factory=dict)
    """The same metrics for trivial answers that need no model."""
    notes: dict[str, int] = field(default_factory=dict)
    """Number of answers with a note, by its code (`llmkit.tasks.output.NoteCode`)."""
    measures: tuple[Measure, ...] = field(default=(), repr=False)
    references: tuple[list[str], ...] = field(default=(), repr=False)
    """References of each row; empty for plain text."""
    answers: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    """Output record of each row; empty for plain text."""
    results: Path | None = None
    """File with each row's columns, references, prediction and scores; of a mixture, the folder of those files."""
    baseline: Evaluation | None = None
    """The baseline model's results on the same rows."""
    shots: int | None = None
    """Number of few-shot examples in each prompt; None: there are no examples."""
    examples: dict[str, Any] = field(default_factory=dict)
    """Number of the examples that they are chosen from, ``shots_by`` and ``shots_seed``."""
    by_shots: tuple[Evaluation, ...] = ()
    """The results for each number of shots, this one first, if there are several."""
    by_task: dict[str, Evaluation] = field(default_factory=dict)
    """The results for each task of a mixture; the names of ``figures`` then begin with that of the task."""

    def _repr_html_(self) -> str:
        """The metrics as a table, for notebooks."""
        if self.by_task:
            return "".join(replace(each, task=name)._repr_html_() for name, each in self.by_task.items())
        if self.by_shots:
            return "".join(replace(each, by_shots=())._repr_html_() for each in self.by_shots)
        names = ["metric", "value", "95 % interval", *(["baseline", "difference", "p"] if self.baseline else [])]
        rows = list(_cells(self))
        for name, group in self.groups.items():
            rows += ([f"{name}: {first}", *cells] for first, *cells in _cells(group))
        title = f"{self.task}: {self.model}, {self.rows} rows"
        title += "" if self.shots is None else f", {shots_label(self.shots)}"
        title += f" (baseline: {self.baseline.model})" if self.baseline else ""
        counts = {"failed": self.failed, "unfinished": self.unfinished, **self.notes}
        title += "".join(f", {number} {name}" for name, number in counts.items() if number)
        head = "".join(f"<th>{name}</th>" for name in names)
        body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>" for cells in rows)
        return f"<table><caption>{escape(title)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def to_dict(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        groups = {name: {"rows": each.rows, "figures": _figures(each)} for name, each in self.groups.items()}
        return {
            "task": self.task,
            "model": self.model,
            "rows": self.rows,
            **({} if self.shots is None else {"shots": self.shots, "examples": self.examples}),
            "failed": self.failed,
            "unfinished": self.unfinished,
            "figures": _figures(self),
            **({"groups": groups} if groups else {}),
            **({"trivial": self.trivial} if self.trivial else {}),
            **({"others": self.others} if self.others else {}),
            **({"notes": self.notes} if self.notes else {}),
            **({} if self.baseline is None else {"baseline": self.baseline.to_dict()}),
            **({"by_shots": [replace(each, by_shots=()).to_dict() for each in self.by_shots]} if self.by_shots else {}),
            **({"by_task": {name: each.to_dict() for name, each in self.by_task.items()}} if self.by_task else {}),
        }


def _cells(result: Evaluation) -> Iterator[list[str]]:
    """The cells of a table row for each metric."""
    others = {} if result.baseline is None else {each.name: each.interval.value for each in result.baseline.figures}
    for each in result.figures:
        value, low, high = each.interval.value, each.interval.low, each.interval.high
        cells = [each.name, f"{value:.2f}", f"{low:.2f} to {high:.2f}"]
        if each.name in others:
            other = others[each.name]
            cells += [f"{other:.2f}", f"{value - other:+.2f}", f"{each.p_value:.4f}"]
        yield cells


def _figures(result: Evaluation) -> dict[str, Any]:
    return {
        each.name: {
            "value": _json_number(each.interval.value),
            "low": _json_number(each.interval.low),
            "high": _json_number(each.interval.high),
            "signature": each.signature,
            "higher_is_better": each.higher_is_better,
            **({} if each.p_value is None else {"p_value": each.p_value}),
        }
        for each in result.figures
    }


def _json_number(value: float) -> float | None:
    """None for NaN and infinity, which JSON does not have."""
    return value if math.isfinite(value) else None


def greedy(pipeline: Pipeline) -> Pipeline:
    """The pipeline with greedy decoding, unless sampling was requested: metrics should not depend on chance."""
    if pipeline.traits.extracts_spans or pipeline.settings.samples:
        return pipeline
    found = copy.copy(pipeline)
    found.settings = replace(pipeline.settings, temperature=0)
    return found


def evaluate(
    pipeline: Pipeline,
    rows: Path,
    predictions: Path,
    *,
    load: LoadSettings,
    metrics: Mapping[str, AdditionalMetric] | None = None,
    trivial: bool = True,
    resume: bool = False,
    member: Worker | None = None,
    progress: Callable[[int, int], None] = lambda _rows, _tokens: None,
) -> Evaluation | None:
    """Generate answers to rows, and compute metrics on them.

    Args:
        rows: JSON Lines in the task's columns, with the target separate from the input (`Task.without_target`).
        predictions: JSON Lines file for the answers.
        metrics: additional metrics by name (`llmkit.evaluation.additional.open_metrics`).
        trivial: also evaluate trivial answers that need no model.
        resume: continue an interrupted run into that file.
        member: which of several processes this is; only the first returns a result, the others None.
    """
    task, member = pipeline.task, member or Worker()
    evaluated = json_lines(rows)
    plain = [task.is_plain(row) for row in evaluated]
    if any(plain) and metrics:
        raise UsageError(
            "plain text has no reference answers to compute a metric on", "leave `metrics` out", code="no_effect"
        )
    if any(plain):
        if not all(plain):
            raise InputError("some rows are plain text and others have an answer", "evaluate them separately")
        if pipeline.prompt_options.examples:
            raise UsageError(
                "examples have no effect on plain text, which has no prompt", "leave them out", code="no_effect"
            )
        if not (measures := _perplexity(pipeline, evaluated, member)):
            raise InputError(
                "no row has a token that could be predicted", "evaluate on rows with a longer text", code="no_rows"
            )
        return None if member.rank else _evaluation(pipeline, len(evaluated), measures)
    for metric in (metrics or {}).values():
        row, expected = evaluated[0], task.references(evaluated[0])
        metric.check(Answered(task, [row], [next(iter(expected), "")], [expected]))
    settings = RowSettings(input=(str(rows),), output=str(predictions), resume=resume)
    check_output(settings)
    answer_file(
        greedy(pipeline),
        settings,
        load=load,
        progress=progress,
        rank=member.rank,
        world=member.world,
        barrier=member.barrier,
    )
    more = _perplexity(pipeline, evaluated, member) if task.reports_perplexity else []
    if member.rank:
        return None
    answers = json_lines(predictions)
    if len(answers) != len(evaluated):
        raise UsageError(
            f"{predictions} has {len(answers)} answers to {len(evaluated)} rows",
            "start again with `overwrite`",
            "name another `output`",
            code="resume_mismatch",
        )
    texts = [prediction_of(answer) for answer in answers]
    references = without_reasoning(pipeline, [task.references(row) for row in evaluated])
    scored = score_rows(task, evaluated, texts, references)
    answered = Answered(task, evaluated, texts, references)
    computed = {name: metric.compute(answered) for name, metric in (metrics or {}).items()}
    groups = {
        name: [*found, *(more for each in computed.values() for more in each.scored.groups.get(name, ()))]
        for name, found in scored.groups.items()
    }
    added = [measure for each in computed.values() for measure in each.scored.measures]
    return replace(
        _evaluation(pipeline, len(evaluated), [*scored.measures, *more, *added]),
        failed=sum("error" in answer for answer in answers),
        unfinished=sum(_no_verdict(answer) or "still_thinking" in answer for answer in answers),
        notes=dict(sorted(Counter(code for answer in answers for code in note_codes(answer)).items())),
        others={name: each.others for name, each in computed.items() if each.others},
        trivial=_trivial(task, evaluated, references) if trivial else {},
        groups={name: _evaluation(pipeline, _rows_of(found), found) for name, found in groups.items()},
        references=tuple(references),
        answers=tuple(answers),
    )


def without_reasoning(pipeline: Pipeline, references: Sequence[Sequence[str]]) -> list[list[str]]:
    """References without leading reasoning, since predictions of chat models have none."""
    if not pipeline.task.allow_reasoning or not pipeline.traits.chat or pipeline.prompt_options.raw:
        return [list(row) for row in references]
    reasoning = reasoning_format(pipeline.loaded.tokenizer)

    def answer(text: str) -> str:
        splitter = reasoning.splitter("")
        return splitter.push(text) + splitter.flush() or text

    return [[answer(text) for text in row] for row in references]


def prediction_of(line: Mapping[str, Any]) -> str | None:
    """The answer in an output record, empty if it is "no answer"; None if the row failed."""
    return None if "error" in line or _no_verdict(line) else str(line["text"])


def _no_verdict(line: Mapping[str, Any]) -> bool:
    return line.get("answered", True) is None


def _evaluation(pipeline: Pipeline, rows: int, measures: Sequence[Measure]) -> Evaluation:
    """The result without what only generated answers have."""
    figures = tuple(
        MetricResult(each.name, interval(each.statistics, each.figure), each.signature, each.higher_is_better)
        for each in measures
    )
    name, model, options = pipeline.task.name, pipeline.loaded.source.name, pipeline.prompt_options
    shots = options.shots if options.shots is not None else len(options.examples) or None
    origin = pipeline.few_shot.origin()
    return Evaluation(name, model, rows, 0, 0, figures, measures=tuple(measures), shots=shots, examples=origin)


def _rows_of(measures: Sequence[Measure]) -> int:
    return len(measures[0].statistics)


def _perplexity(pipeline: Pipeline, rows: Sequence[dict[str, Any]], member: Worker) -> list[Measure]:
    """Perplexity over the rows that have one; each process computes its share. Empty if no row has a target token."""
    objective = scoring_objective(pipeline)
    mine = [(place, *_loss(pipeline, rows[place], objective)) for place in range(member.rank, len(rows), member.world)]
    if member.world > 1:
        from accelerate.utils import gather_object

        mine = sorted(gather_object(mine))
    failed = [(place + 1, why) for place, _, _, why in mine if why]
    if failed and not member.rank:
        number, why = failed[0]
        warn(
            "perplexity_incomplete",
            "%d of %d rows have no perplexity; row %d: %s",
            len(failed),
            len(rows),
            number,
            why,
        )
    losses = [(loss, tokens) for _, loss, tokens, _ in mine]
    if not any(tokens for _, tokens in losses):
        if not member.rank:
            warn("perplexity_incomplete", "perplexity is omitted: no row has a target token")
        return []
    return [perplexity(pipeline, losses)]


def _loss(pipeline: Pipeline, row: dict[str, Any], objective: Objective) -> tuple[float, int, str]:
    """The loss of a row, its number of tokens, and the reason if there are none."""
    found = attempt(lambda: row_loss(pipeline, pipeline.task.with_target(row), objective))
    return (0.0, 0, str(found)) if isinstance(found, LlmkitError) else (*found, "")


def _trivial(
    task: Task, rows: Sequence[Mapping[str, Any]], references: Sequence[Sequence[str]]
) -> dict[str, dict[str, float]]:
    """The metrics of trivial answers that need no model, by their name."""
    answers = [task.trivial_answers(row) for row in rows]
    return {
        name: {
            each.name: each.value
            for each in score_rows(task, rows, [row[name] for row in answers], references).measures
        }
        for name in answers[0]
    }


def compare(tuned: Evaluation, baseline: Evaluation) -> Evaluation:
    """The first result with p-values of its differences to the second, by paired bootstrap on the same rows."""
    result = _with_p_values(tuned, baseline)
    groups = {name: replace(group, baseline=baseline.groups.get(name)) for name, group in result.groups.items()}
    return replace(result, groups=groups, baseline=baseline)


def compare_shots(results: Sequence[Evaluation]) -> Evaluation:
    """The first result, with all of them; the others have p-values of their differences to the first."""
    first, *others = results
    return replace(first, by_shots=(first, *(_with_p_values(each, first) for each in others)))


def join_tasks(results: Mapping[str, Evaluation]) -> Evaluation:
    """The results of a model on the tasks of a mixture as one."""
    every = list(results.values())
    return Evaluation(
        ", ".join(results),
        every[0].model,
        sum(each.rows for each in every),
        sum(each.failed for each in every),
        sum(each.unfinished for each in every),
        tuple(
            replace(figure, name=f"{name}_{figure.name}") for name, each in results.items() for figure in each.figures
        ),
        notes=dict(sum((Counter(each.notes) for each in every), Counter[str]())),
        by_task=dict(results),
    )


def shots_label(shots: int) -> str:
    return "1 shot" if shots == 1 else f"{shots} shots"


def _with_p_values(result: Evaluation, other: Evaluation) -> Evaluation:
    measures = {each.name: each for each in other.measures}
    figures = tuple(
        replace(figure, p_value=_p_value(measure, measures[figure.name])) if figure.name in measures else figure
        for figure, measure in zip(result.figures, result.measures, strict=True)
    )
    groups = {
        name: _with_p_values(group, other.groups[name]) if name in other.groups else group
        for name, group in result.groups.items()
    }
    return replace(result, figures=figures, groups=groups)


def _p_value(tuned: Measure, baseline: Measure) -> float:
    # Rows that count for only one of the two are not paired.
    both: Any = tuned.statistics.any(axis=1) & baseline.statistics.any(axis=1)
    one, other = (each.statistics * both[:, None] for each in (tuned, baseline))
    return p_value(one, other, tuned.figure)
