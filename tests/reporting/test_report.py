"""The report on a run: complete, escaped, in one file, in two languages."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import llmkit
from llmkit.errors import InputError
from llmkit.pages import words
from llmkit.reporting import report
from llmkit.reporting.differences import differences
from llmkit.reporting.records import EvaluationRecord, read_run
from llmkit.reporting.report import report_page
from llmkit.training.push import plan_upload
from tests.conftest import Checkpoint

OUTSIDE = re.compile(
    r"""(?:src|href)\s*=\s*["'](?!#|data:)|url\((?!#)|@import|(?<!xmlns=")(?<!xmlns:xlink=")https?://"""
)
ATTACK = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def run(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two updates on rows that attack a page."""
    folder = tmp_path_factory.mktemp("run")
    rows = [{"document": f"{ATTACK} The quick fox {number}. 今天", "summary": f"{ATTACK} 今天"} for number in range(4)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model = str(checkpoint("llama", chat=True, max_position_embeddings=1024))
    train = {"output_dir": str(folder / "run"), "max_steps": 2, "logging_steps": 1, "save_strategy": "no"}
    data = {"train": str(folder / "train.jsonl")}
    llmkit.finetune({"version": 1, "task": "summarize", "model": {"name_or_path": model}, "data": data, "train": train})
    llmkit.evaluate(
        task="summarize",
        model=str(folder / "run"),
        baseline=model,
        data=str(folder / "train.jsonl"),
        output=str(folder / "evaluation"),
        max_new_tokens=4,
    )
    return folder


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_is_whole_and_escaped(language: Any, run: Path, tmp_path: Path) -> None:
    page = llmkit.report(run / "run", [run / "evaluation"], output=tmp_path / "r.html", language=language).read_text()
    assert f'<html lang="{language}">' in page
    assert not OUTSIDE.search(page)
    assert page.count("<script") == 1
    assert "<img" not in page
    assert page.count("<svg") == 3
    assert page.count('<article class="example box"') == 4
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<mark>" in page
    assert "resolved.yaml" in page
    assert "max_steps: 2" in page
    assert "train: 4 rows, 4 examples" in page
    assert str(run) not in page


def test_a_run_writes_its_report_which_is_not_pushed(run: Path) -> None:
    assert "report.html" in {path.name for path in (run / "run").iterdir()}
    pushed = {str(file) for file in plan_upload(run / "run", "me/run").files}
    assert "README.md" in str(pushed)
    assert "report.html" not in str(pushed)
    assert "data.json" not in str(pushed)


def test_other_folders_are_refused(run: Path) -> None:
    with pytest.raises(InputError, match="evaluation is not the folder of a training run"):
        llmkit.report(run / "evaluation")
    with pytest.raises(InputError, match="run is not the folder of an evaluation"):
        llmkit.report(run / "run", [run / "run"])


def test_the_words_of_pages_are_translated() -> None:
    template = Path(words.__file__).with_name("templates") / "report.html"
    used = set(re.findall(r'_\("([^"]+)"\)', template.read_text()))
    source = Path(report.__file__).read_text()
    used |= set(re.findall(r'word\("([^"]+)"\)', source))
    chinese = words.translator("zh")
    assert len(used) > 20
    assert all(chinese(each) for each in used)
    assert words.translator("en")("time") == "time"


def record(count: int) -> EvaluationRecord:
    figure = {"value": 1.0, "low": 0.0, "high": 2.0, "signature": "s", "higher_is_better": True, "p_value": 0.5}
    plain = {"figures": {"f1": figure}, "model": "tuned", "rows": count}
    rows = tuple(
        {
            "row": number + 1,
            "columns": {"prompt": "p"},
            "references": ["a"],
            "prediction": "a",
            "scores": {"f1": float(number)},
            "baseline": {"prediction": "b", "scores": {"f1": count / 2}},
        }
        for number in range(count)
    )
    return EvaluationRecord("e", plain | {"baseline": plain | {"model": "base"}}, rows)


def test_of_many_rows_those_that_changed_most_are_shown_and_it_is_said(run: Path) -> None:
    page = report_page(read_run(run / "run"), [record(1000)])
    shown = [int(number) for number in re.findall(r'data-row="(\d+)"', page)]
    assert shown == [*range(1, 101), *range(901, 1001)]
    assert "200 / 1,000: the rows with the largest gain and the largest loss." in page
    assert "largest loss." not in report_page(read_run(run / "run"), [record(200)])


@pytest.mark.parametrize(
    ("one", "other", "marked"),
    [
        ("The cat sat.", "The dog sat.", ["cat"]),
        ("今天天气很好", "今天下雨", ["天气很好"]),
        ("a b c d", "a x", ["b c d"]),
        ("", "a", []),
        ("same 😀", "same 😀", []),
    ],
)
def test_differences_mark_words(one: str, other: str, marked: list[str]) -> None:
    left, right = differences(one, other)
    assert "".join(text for text, _ in left) == one
    assert "".join(text for text, _ in right) == other
    assert [text for text, shared in left if not shared] == marked
