"""The figures as metrics of the package evaluate, and others of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmkit.config.settings import LoadSettings
from llmkit.errors import LlmkitError, UsageError
from llmkit.evaluation.additional import open_metrics
from llmkit.evaluation.answered import AdditionalMetric, Answered
from llmkit.metrics.score import measure_names, score
from llmkit.metrics.wrapped import Inputs, figures_of, load_metric, task_metric
from llmkit.tasks import TASKS
from llmkit.tasks.translation import TranslationSettings

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
    assert figures_of(metric, "longer", Inputs(["abc", "a"], [["ab", "abcd"], ["b"]])) == {"longer": 1}
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
    assert figures_of(metric, "longer", Inputs(["abc"], [["ab"]])) == {"longer": 1}


NEURAL = """\
import datasets
import evaluate


class Neural(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        one = datasets.Features({"sources": text, "predictions": text, "references": text})
        several = datasets.Features({"sources": text, "predictions": text, "references": datasets.Sequence(text)})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=[several, one])

    def _compute(self, sources, predictions, references, lang=None, model_type=None):
        if lang is None and model_type is None:
            raise ValueError("Either lang or model_type must be given")
        scores = [0.1 * len(source) for source in sources]
        refs = sum(map(len, references))
        return {"mean_score": sum(scores) / len(scores), "scores": scores, "lang": lang, "refs": refs}
"""
ROWS: list[dict[str, Any]] = [{"source": "Hi", "target": ["Salut", "Bonjour"]}, {"source": "Fox", "target": "Renard"}]


def opened(tmp_path: Path, options: str, script: str = NEURAL) -> AdditionalMetric:
    (tmp_path / "neural.py").write_text(script, encoding="utf-8")
    (metric,) = open_metrics([f"{tmp_path / 'neural.py'}{options}"], LoadSettings()).values()
    return metric


def answered(task: str = "translation", **columns: Any) -> Answered:
    found = TASKS[task](TranslationSettings(**columns)) if task == "translation" else TASKS[task]()
    return Answered(found, ROWS, ["Salut", None], [["Salut", "Bonjour"], ["Renard"]])


def test_a_metric_gets_the_sources_the_language_and_all_references(tmp_path: Path) -> None:
    found = opened(tmp_path, "").compute(answered(target="zh-Hant"))
    assert found.others == {"mean_score": pytest.approx(0.25), "lang": "zh", "refs": 3}
    (measure,) = found.scored.measures
    assert measure.name == "neural_scores"
    assert measure.value == pytest.approx(0.25)
    assert [measure.of_row(row) for row in (0, 1)] == [pytest.approx(0.2), pytest.approx(0.3)]
    assert measure.signature.startswith("neural|code:")


def test_options_of_a_metric_are_its_own(tmp_path: Path) -> None:
    assert opened(tmp_path, ",lang=de").compute(answered(target="fr")).others["lang"] == "de"
    with pytest.raises(UsageError, match="neural has no option idf; choose from lang, model_type"):
        opened(tmp_path, ",idf=true").check(answered())
    with pytest.raises(UsageError, match=r"'idf' in the metric .* is not of the form KEY=VALUE"):
        opened(tmp_path, ",idf")


def test_what_a_metric_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        LlmkitError, match=r"neural failed \(Either lang or model_type must be given\); give its options"
    ):
        opened(tmp_path, "").compute(answered())
    script = NEURAL.replace('"sources": text', '"contexts": text').replace("sources", "contexts")
    with pytest.raises(UsageError, match="needs contexts, which the rows do not have"):
        opened(tmp_path, ",lang=fr", script).check(answered())
    both = replace(answered(), rows=[{**ROWS[0], "target_lang": "fr"}, {**ROWS[1], "target_lang": "de"}])
    with pytest.raises(UsageError, match="neural is for one language, and the references are in de, fr"):
        opened(tmp_path, "").compute(both)
