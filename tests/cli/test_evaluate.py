"""llmkit evaluate: what it takes as a run, its options for tasks and rows, and the files that it writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import llmkit
from llmkit.config.settings import LoadSettings
from llmkit.errors import UsageError
from llmkit.training.evaluation_spec import resolve_evaluation
from tests.cli.conftest import Run, one_line
from tests.conftest import Checkpoint
from tests.training.recipes import write_rows

QUESTION: dict[str, Any] = {"question": "Who?", "context": "The fox jumps.", "answers": ["fox"]}
FAST = ("--device", "cpu", "--max-new-tokens", "4")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def recipe(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A recipe in the working directory, not trained yet."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl", [QUESTION] * 3)
    write_rows(tmp_path / "held.jsonl", [QUESTION, QUESTION | {"answers": []}])
    content = {
        "version": 1,
        "task": "question-answering",
        "model": {"name_or_path": str(checkpoint("bert")), "offline": True, "device": "cpu"},
        "data": {"train": "rows.jsonl", "validation": "held.jsonl"},
        "train": {"output_dir": "runs/fox", "max_steps": 1},
    }
    Path("my fox.yaml").write_text(json.dumps(content), encoding="utf-8")
    return "my fox.yaml"


def test_a_run_folder_is_evaluated_also_after_it_was_moved(run: Run, recipe: str) -> None:
    assert run("finetune", recipe)[0] == 0
    code, out, err = run("evaluate", "runs/fox")
    assert code == 0
    assert out.startswith("question-answering: runs/fox, 2 rows\n")
    assert "scores: evaluation/runs-fox-on-held/results.jsonl" in err
    Path("runs/fox").rename("moved")
    assert run("evaluate", "moved")[0] == 0
    Path("moved/resolved.yaml").unlink()  # as after a merge: the task is known, the rows are not
    assert "nothing to evaluate without --data" in one_line(run("evaluate", "moved")[2])
    code, out, _ = run("evaluate", "moved", "--data", "held.jsonl", "-o", "third")
    assert (code, out.splitlines()[0]) == (0, "question-answering: moved, 2 rows")
    assert "moved and --model both name a model" in one_line(run("evaluate", "moved", "--model", "other")[2])


def test_a_run_is_prompted_as_it_was_tuned(checkpoint: Checkpoint, run: Run, tmp_path: Path) -> None:
    rows = [{"document": f"第{number}只狐狸在跳。", "summary": f"狐狸{number}。"} for number in range(4)]
    data, output = write_rows(tmp_path / "rows.jsonl", rows), str(tmp_path / "run")
    model = shutil.copytree(checkpoint("llama", chat=True), tmp_path / "english")
    (model / "README.md").write_text("---\nlanguage: en\n---\n", encoding="utf-8")
    few = [f"train.{each}" for each in ("max_steps=1", "warmup_steps=0", "per_device_train_batch_size=2")]
    made = ("--task", "summarize", "--data", data, "--model", model, "-o", output, *(f"--set={each}" for each in few))
    code, _, err = run("finetune", *made)
    assert code == 0, err
    code, _, err = run("evaluate", output, "--max-new-tokens", "2", "-o", tmp_path / "results")
    assert (code, "tuned_differently" in err) == (0, False), err


def test_a_recipe_without_a_trained_model_names_the_command_that_trains_it(
    run: Run, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_hub(*_: object, **__: object) -> None:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr("llmkit.models.load.locate", no_hub)
    error = one_line(run("evaluate", recipe, "--set", "train.seed=1")[2])
    assert "'my fox.yaml' is not trained yet: runs/fox holds no model" in error
    assert "train it with: llmkit finetune 'my fox.yaml' --set train.seed=1, or name a --model" in error
    Path("runs/fox/checkpoint-1").mkdir(parents=True)
    error = one_line(run("evaluate", recipe)[2])
    assert "the training in runs/fox is not finished; continue it with: llmkit finetune 'my fox.yaml' --resume" in error
    assert not Path("evaluation").exists()


def test_results_hold_rows_references_predictions_and_scores(
    run: Run, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    long = {"source": "The fox jumps. " * 80, "target": "Le renard saute.", "prediction": "a column of that name"}
    rows = [{"id": "a-7", "source": "The fox.", "target": "Le renard.", "topic": "animals"}, long]
    data, model = write_rows(tmp_path / "news.jsonl", rows), checkpoint("t5")
    command = ("evaluate", "--task", "translate", "--model", model, "--data", data, "--to", "fr", *FAST)
    code, out, err = run(*command, "--baseline", model, "--json")
    assert code == 0
    assert err.count("stopped at 4 new tokens") <= 2, "once a model, not once a row"
    first, second = read(Path("evaluation", f"{model.name}-on-news", "results.jsonl"))
    assert (first["row"], first["where"], first["id"]) == (1, f"{data}:1", "a-7")
    assert first["columns"] == rows[0]
    assert first["references"] == ["Le renard."]
    assert second["columns"]["prediction"] == "a column of that name"
    assert first["scores"].keys() == json.loads(out)["figures"].keys() == {"bleu", "chrf++", "ter"}
    assert {name: first[name] for name in ("prediction", "scores", "notes")} == first["baseline"]


def test_scores_of_rows_average_to_the_figures(checkpoint: Checkpoint, tmp_path: Path) -> None:
    rows = [QUESTION, QUESTION | {"question": "Who jumps?"}, QUESTION | {"context": "No animal.", "answers": []}]
    found = llmkit.evaluate(
        task="answer",
        model=str(checkpoint("bert")),
        data=write_rows(tmp_path / "rows.jsonl", rows),
        output=tmp_path / "out",
        device="cpu",
    )
    records = read(tmp_path / "out" / "results.jsonl")
    assert found.results == tmp_path / "out" / "results.jsonl"
    for figure in found.figures:
        scores = [record["scores"][figure.name] for record in records]
        counted = [score for score in scores if score is not None]
        assert sum(counted) / len(counted) == pytest.approx(figure.interval.value)
    assert records[2]["scores"]["has_answer_f1"] is None
    assert records[2]["references"] == []


def test_an_earlier_evaluation_is_replaced_only_if_wanted_and_only_by_a_result(
    run: Run, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl", [QUESTION])
    model = checkpoint("bert")
    command = ("evaluate", "--task", "answer", "--model", model, "--data", "rows.jsonl", "--device", "cpu")
    assert run(*command, "--baseline", model)[0] == 0
    folder = Path("evaluation", f"{model.name}-on-rows")
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert f"{folder} is not empty; continue" in one_line(run(*command)[2])
    for wrong in (("--baseline", "no/model"), ("--column", "context=nothing")):
        assert run(*command, "--overwrite", *wrong)[0] in (1, 2)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert run(*command, "--overwrite")[0] == 0
    assert not (folder / "baseline.jsonl").exists()
    assert (folder / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert "mutually exclusive" in one_line(run(*command, "--overwrite", "--resume")[2])


def test_columns_encoding_and_row_limit(
    run: Run, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "Frage,Absatz,Lösung\nWer?,Der Füchs springt.,Füchs\nWer?,Der Hund.,Hund\n"
    (tmp_path / "rows.csv").write_text(text, encoding="latin-1")
    mapped = [item for pair in ("question=Frage", "context=Absatz", "answers=Lösung") for item in ("--column", pair)]
    options = ("evaluate", "--task", "answer", "--model", checkpoint("bert"), "--data", "rows.csv", "--device", "cpu")
    assert run(*options, *mapped, "--encoding", "latin-1", "--max-rows", "1", "-o", "out")[0] == 0
    (record,) = read(Path("out", "results.jsonl"))
    assert record["references"] == ["Füchs"]
    error = one_line(run(*options, "--encoding", "latin-1", "--column", "question=Absatzz")[2])
    assert "with --column FIELD=COLUMN" in error
    error = one_line(run(*options, "--column", "contxt=Absatz")[2])
    assert "`column" not in error
    assert "--column contxt=Absatz: question-answering has no field contxt; write FIELD=COLUMN; its fields: " in error


def test_a_misspelled_run_is_named(run: Run) -> None:
    error = one_line(run("evaluate", "runs/ppaers")[2])
    assert "no run, recipe file or built-in recipe is named runs/ppaers" in error


def test_settings_of_a_task_are_refused_for_another(run: Run, tmp_path: Path) -> None:
    command = ("evaluate", "--task", "translate", "--model", "m", "--data", tmp_path / "rows.jsonl")
    error = one_line(run(*command, "--length", "short")[2])
    assert error.endswith("--length is not a setting of translation; leave it out (its settings: --from, --to)")
    with pytest.raises(UsageError, match="did you mean 'temperature'"):
        llmkit.evaluate(task="translate", model="m", data="d", temprature=1)  # type: ignore[call-arg]


def test_other_rows_are_read_with_the_columns_of_the_recipe(
    run: Run, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were named once; names that no detection knows, and two columns that it would swap."""
    monkeypatch.chdir(tmp_path)
    named = [{"q": "Who?", "x": "fox", "y": "The fox jumps."}]
    write_rows(tmp_path / "rows.jsonl", named)
    write_rows(tmp_path / "test.jsonl", named)
    write_rows(tmp_path / "usual.jsonl", [QUESTION])
    columns = {"question": "q", "context": "y", "answers": "x"}
    content = {
        "version": 1,
        "task": "question-answering",
        "model": {"name_or_path": str(checkpoint("bert")), "offline": True},
        "data": {"train": {"path": "rows.jsonl", "columns": columns}},
        "train": {"output_dir": "out"},
    }
    Path("a.yaml").write_text(json.dumps(content), encoding="utf-8")
    for data in ("test", "usual"):
        command = ("evaluate", "a.yaml", "--model", checkpoint("bert"), "--data", f"{data}.jsonl", "-o", data)
        assert run(*command, "--device", "cpu")[0] == 0
        (record,) = read(Path(data, "results.jsonl"))
        assert (record["references"], record["columns"]["context"]) == (["fox"], "The fox jumps.")


def test_other_tables_are_read_in_the_form_that_the_recipe_declares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.csv").write_text("fox;Who runs\ndog;Who sleeps\n", encoding="utf-8")
    Path("same.csv").write_text("cat;Who meows\n", encoding="utf-8")
    Path("usual.csv").write_text("completion,prompt\ncat,Who meows\n", encoding="utf-8")
    train = {"path": "train.csv", "header": False, "delimiter": ";"}
    content = {
        "version": 1,
        "task": "text-generation",
        "model": {"name_or_path": "starter"},
        "data": {"train": train | {"columns": {"prompt": "column2", "completion": "column1"}}},
        "train": {"output_dir": "out"},
    }
    Path("a.yaml").write_text(json.dumps(content), encoding="utf-8")
    load = LoadSettings(model="starter")
    for data in ("same.csv", "usual.csv"):
        (row,) = resolve_evaluation("a.yaml", None, data, load)["text-generation"].rows
        assert (row["prompt"], row["completion"]) == ("Who meows", "cat")
    specs = resolve_evaluation("a.yaml", None, "usual.csv", load, header=False, delimiter="comma")
    assert [row["completion"] for row in specs["text-generation"].rows] == ["completion", "cat"]
