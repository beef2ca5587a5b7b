"""The report on a training run, as one page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from llmkit.files import in_units, write_whole
from llmkit.metrics.words import words
from llmkit.models.tuned import run_folder
from llmkit.pages import render
from llmkit.pages.words import PageLanguage, translator
from llmkit.reporting.curves import curve, series_of
from llmkit.reporting.differences import differences
from llmkit.reporting.records import PAGE, EvaluationRecord, RunRecord, read_evaluation, read_run
from llmkit.tasks import find_task

__all__ = ["report_page", "write_page"]

MAX_EXAMPLES = 200
_LONG = 20_000
"""Characters of a text beyond which differences are not searched: they take quadratic time."""

_Words = Callable[[str], str]


def write_page(
    run: Path, evaluations: Sequence[Path], output: Path | None = None, language: PageLanguage = "en"
) -> Path:
    """Write the report on the run in a folder, with evaluations from theirs, by default beside the run's files.

    Raises:
        InputError: a folder is none of a run, or of an evaluation.
    """
    record = read_run(run)
    page = report_page(record, [*map(read_evaluation, evaluations)], language)
    path = run_folder(run)[0] / PAGE if output is None else output
    write_whole(path, page, errors="replace")
    return path


def report_page(run: RunRecord, evaluations: Sequence[EvaluationRecord], language: PageLanguage = "en") -> str:
    """The page on a run, with evaluations of its model."""
    word = translator(language)
    return render(
        "report.html",
        _=word,
        language=language,
        name=run.name,
        figures=list(_figures(run, word)),
        curves=list(_curves(run, word)),
        evaluations=[_evaluation(each, word) for each in evaluations],
        samples=run.samples,
        sources=list(_sources(run, word)),
        ledger=run.ledger,
        versions=list(run.facts.get("versions", {}).items()),
        base=run.facts.get("base", {}).get("name", ""),
        files=list((run.facts.get("base", {}).get("files") or {}).items()),
        recipe=run.recipe,
    )


def _figures(run: RunRecord, word: _Words) -> Iterator[tuple[str, str]]:
    metrics = run.tuned.metrics
    yield word("task"), find_task(run.tuned.task).name
    yield word("base model"), str(run.facts.get("base", {}).get("name") or run.tuned.base)
    yield word("method"), run.tuned.method or word("all weights")
    for key, label, form in (
        ("updates", "updates", "{:,}"),
        ("train_loss", "final training loss", "{:.4f}"),
        ("best_eval_loss", "best validation loss", "{:.4f}"),
        ("tokens", "tokens", "{:,}"),
        ("tokens_per_second", "tokens per second", "{:,.0f}"),
    ):
        if metrics.get(key) is not None:
            yield word(label), form.format(metrics[key])
    if metrics.get("train_seconds"):
        minutes, seconds = divmod(round(metrics["train_seconds"]), 60)
        yield word("time"), f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
    if metrics.get("peak_memory_bytes"):
        yield word("peak memory"), in_units(metrics["peak_memory_bytes"])


def _curves(run: RunRecord, word: _Words) -> Iterator[tuple[str, Markup]]:
    for name, label, keys in (
        ("loss", "loss (nats)", {"loss": "training", "eval_loss": "validation"}),
        ("rate", "learning rate", {"learning_rate": "learning rate"}),
        ("norm", "gradient norm", {"grad_norm": "gradient norm"}),
    ):
        found = [each for key, title in keys.items() if (each := series_of(run.log, key, word(title))) is not None]
        if found:
            svg = curve(name, found, word("update"), word(label))
            yield word(label), Markup(svg)  # noqa: S704 - matplotlib escapes the labels, which are words of this package


def _evaluation(record: EvaluationRecord, word: _Words) -> dict[str, Any]:
    result = record.result
    baseline = result.get("baseline")
    titles = ["metric", "value", "95% interval", *(["baseline", "difference", "p-value"] if baseline else [])]
    trivial: Mapping[str, Mapping[str, float]] = result.get("trivial", {})
    examples, extent = _examples(record, word)
    notes = [f"{count} {name}" for name, count in (result.get("notes") or {}).items()]
    return {
        "name": record.name,
        "model": result.get("model", ""),
        "count": f"{result.get('rows', 0):,}",
        "baseline": baseline["model"] if baseline else None,
        "notes": notes,
        "titles": [word(title) for title in titles] + [f"{word('trivial answer')} ({name})" for name in trivial],
        "table": [
            [*cells, *(_number(answers.get(cells[0])) for answers in trivial.values())]
            for cells in _cells(result, baseline)
        ],
        "examples": examples,
        "extent": extent,
        "sortable": any(each["gain"] is not None for each in examples),
    }


def _cells(result: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> Iterator[list[str]]:
    for name, figure in result["figures"].items():
        cells = [name, _number(figure["value"]), f"{_number(figure['low'])} – {_number(figure['high'])}"]
        if baseline:
            other = baseline["figures"].get(name, {}).get("value")
            known = other is not None and figure["value"] is not None
            p = figure.get("p_value")
            cells += [
                _number(other),
                f"{figure['value'] - other:+.2f}" if known else "–",
                "–" if p is None else f"{p:.4f}",
            ]
        yield cells


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _examples(record: EvaluationRecord, word: _Words) -> tuple[list[dict[str, Any]], str]:
    """The rows that are shown, and which of all these are."""
    rows = [(row, _gain(record, row)) for row in record.rows if "prediction" in row]
    extent = ""
    if len(rows) > MAX_EXAMPLES:
        gains = any(gain is not None for _, gain in rows)
        which = "the rows with the largest gain and the largest loss" if gains else "the first rows"
        extent = f"{MAX_EXAMPLES:,} / {len(rows):,}: {word(which)}."
        if gains:
            ordered = sorted(rows, key=lambda pair: pair[1] or 0.0)
            rows = sorted(
                (*ordered[: MAX_EXAMPLES // 2], *ordered[-MAX_EXAMPLES // 2 :]), key=lambda pair: pair[0]["row"]
            )
        else:
            rows = rows[:MAX_EXAMPLES]
    return [_example(row, gain, word) for row, gain in rows], extent


def _gain(record: EvaluationRecord, row: Mapping[str, Any]) -> float | None:
    """How much better the first metric is than the baseline's."""
    name = next(iter(record.result["figures"]), None)
    own, other = row.get("scores", {}).get(name), row.get("baseline", {}).get("scores", {}).get(name)
    if own is None or other is None:
        return None
    sign = 1 if record.result["figures"][name]["higher_is_better"] else -1
    return float(sign * (own - other))


def _example(row: Mapping[str, Any], gain: float | None, word: _Words) -> dict[str, Any]:
    references = [str(each) for each in row.get("references", ())]
    own, other = _text(row, word), _text(row["baseline"], word) if "baseline" in row else None
    nearest = max(references, key=lambda each: _overlap(each, own), default="")
    expected, given = _compared(nearest, own)
    sides = [(word("reference"), expected)] if references else []
    sides.append((word("tuned") if other is not None else word("run"), given))
    if other is not None:
        sides.append((word("baseline"), _compared(nearest, other)[1]))
    columns = [(name, value if isinstance(value, str) else str(value)) for name, value in row["columns"].items()]
    first = columns[0][1] if columns else ""
    scores = [f"{name} {value:.2f}" for name, value in row.get("scores", {}).items() if value is not None]
    return {
        "row": row["row"],
        "gain": gain,
        "scores": scores + ([] if gain is None else [f"{word('gain')} {gain:+.2f}"]),
        "summary": first if len(first) <= 120 else f"{first[:120]}…",
        "columns": columns,
        "sides": sides,
    }


def _text(row: Mapping[str, Any], word: _Words) -> str:
    """The prediction, or the error in its place."""
    if "error" in row:
        return f"{word('error')}: {row['error']['message']}"
    return str(row.get("prediction") or "")


def _overlap(one: str, other: str) -> int:
    return len(set(words(one)) & set(words(other)))


def _compared(reference: str, text: str) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    if not reference or max(len(reference), len(text)) > _LONG:
        return [(reference, True)], [(text, True)]
    return differences(reference, text)


def _sources(run: RunRecord, word: _Words) -> Iterator[tuple[str, str, str, str]]:
    base = run.facts.get("base", {})
    if base:
        license_ = run.licenses.get("base") or word("not stated")
        yield str(base.get("name")), word("base model"), license_, str(base.get("commit") or "")
    for source in run.facts.get("data", ()):
        name = str(source["name"])
        yield name, str(source["part"]), run.licenses.get(name) or word("not stated"), str(source["hash"])
