"""The figures as metrics of the package evaluate, and others of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmkit.errors import UsageError
from llmkit.metrics.score import measure_names, score
from llmkit.metrics.wrapped import figures_of, load_metric, task_metric
from llmkit.tasks import TASKS

SCRIPT = """\
import datasets
import evaluate


class Longer(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        features = datasets.Features({"predictions": text, "references": text})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"longer": sum(len(one) > len(other) for one, other in zip(predictions, references))}
"""


@pytest.mark.parametrize("task", list(TASKS))
def test_a_task_is_a_metric_without_a_hub(task: str) -> None:
    said, wanted = ["the fox", "今天"], [["the quick fox", "a fox"], ["今天天气"]]
    found = task_metric(task).compute(predictions=said, references=wanted)
    assert found == pytest.approx({each.name: each.value for each in score(TASKS[task].metrics, said, wanted)})
    assert set(found) == set(measure_names(TASKS[task].metrics))


def test_another_metric_is_loaded_by_its_path(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "longer.py").write_text(SCRIPT, encoding="utf-8")
    metric = load_metric(str(tmp_path / "longer.py"), trust_remote_code=False)
    assert figures_of(metric, "longer", ["abc", "a"], [["ab", "abcd"], ["b"]]) == {"longer": 1}
    assert "longer takes one reference a row: the first of each counts (1 left out)" in caplog.text


def test_code_of_the_hub_is_not_run_unasked() -> None:
    with pytest.raises(UsageError, match="metric script bleurt does not exist here, and metrics on the Hub are code"):
        load_metric("bleurt", trust_remote_code=False)


def test_a_folder_named_like_a_metric_of_the_hub_is_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bleu").mkdir()
    (tmp_path / "rouge").write_text("no script")
    for name in ("bleu", "rouge"):
        with pytest.raises(UsageError, match=f"the metric script {name} does not exist here"):
            load_metric(name, trust_remote_code=False)


def test_a_folder_with_its_script_is_a_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "longer").mkdir()
    (tmp_path / "longer" / "longer.py").write_text(SCRIPT, encoding="utf-8")
    with pytest.raises(UsageError, match=r"folder whose program would run.*`trust_remote_code=True`"):
        load_metric("longer", trust_remote_code=False)
    metric = load_metric("longer", trust_remote_code=True)
    assert figures_of(metric, "longer", ["abc"], [["ab"]]) == {"longer": 1}
