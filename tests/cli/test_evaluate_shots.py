"""llmkit evaluate with few-shot examples: each number of shots is an evaluation, compared with the first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import llmkit
from llmkit.cli.app import main
from llmkit.errors import LlmkitError
from llmkit.evaluation.evaluate import _p_value
from llmkit.inference.pipeline import Pipeline
from llmkit.inference.row_files import answer_file
from tests.cli.conftest import Run, one_line
from tests.conftest import Checkpoint
from tests.training.recipes import write_rows

ANIMALS = ("fox", "dog", "cat", "hen", "owl")
ROWS = [{"prompt": f"Who is the {name}?", "completion": f"the {name}", "id": name} for name in ANIMALS]
FAST: dict[str, Any] = {"device": "cpu", "max_new_tokens": 4}


@pytest.fixture
def model(checkpoint: Checkpoint) -> str:
    return str(checkpoint("llama", chat=True, max_position_embeddings=1024))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", ROWS)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_number_of_shots_is_an_evaluation_compared_with_the_first(model: str, rows: Path, tmp_path: Path) -> None:
    given: Any = {"task": "generate", "model": model, "data": rows, **FAST}
    found = llmkit.evaluate(**given, examples=rows, shots=[0, 2], output=tmp_path / "both")
    assert [each.shots for each in found.by_shots] == [0, 2]
    alone = [
        llmkit.evaluate(**given, output=tmp_path / "zero"),
        llmkit.evaluate(**given, examples=ROWS, shots=2, output=tmp_path / "two"),
    ]
    for each, same in zip(found.by_shots, alone, strict=True):
        assert [figure.interval for figure in each.figures] == [figure.interval for figure in same.figures]
        assert each.answers == same.answers
        assert "examples_dropped" not in each.notes
    zero, two = found.by_shots
    assert [figure.p_value for figure in zero.figures] == [None] * len(zero.figures)
    for figure, measure, other in zip(two.figures, alone[1].measures, alone[0].measures, strict=True):
        assert figure.p_value == _p_value(measure, other)
    content = json.loads((tmp_path / "both" / "metrics.json").read_text(encoding="utf-8"))
    assert [each["shots"] for each in content["by_shots"]] == [content["shots"], 2] == [0, 2]
    assert content["figures"] == content["by_shots"][0]["figures"]
    assert content["by_shots"][1]["examples"] == {"count": 5, "shots_by": "random", "shots_seed": 42}
    for record, one, other in zip(
        *(read(tmp_path / name / "results.jsonl") for name in ("both", "zero", "two")), strict=True
    ):
        assert [each.pop("shots") for each in record["by_shots"]] == [0, 2]
        assert [each["prediction"] for each in record["by_shots"]] == [one["prediction"], other["prediction"]]
        assert [each["scores"] for each in record["by_shots"]] == [one["scores"], other["scores"]]


def test_no_row_sees_its_own_answer_when_the_examples_are_the_evaluated_rows(
    model: str, rows: Path, tmp_path: Path
) -> None:
    llmkit.evaluate(task="generate", model=model, data=rows, examples=rows, output=tmp_path / "out", **FAST)
    for row, answer in zip(ROWS, read(tmp_path / "out" / "predictions.jsonl"), strict=True):
        others = [other for other in ROWS if other is not row]
        expected = llmkit.generate(row["prompt"], model, examples=others, **FAST)
        assert (answer["text"], answer["usage"]["prompt_tokens"]) == (expected.text, expected.usage.prompt_tokens)


def test_an_interrupted_evaluation_goes_on_and_more_shots_are_added(
    model: str, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    command = ["evaluate", "--task", "generate", "-m", model, "--data", str(rows), "--examples", str(rows)]
    command += ["--device", "cpu", "--max-new-tokens", "4", "--shots-by", "similarity"]
    assert main([*command, "--shots", "0,1,3", "-o", str(whole)]) == 0

    def stop(pipeline: Any, *args: Any, **options: Any) -> Any:
        if pipeline.prompt_options.shots == 1:
            raise LlmkitError("the power failed", "repair it")
        return answer_file(pipeline, *args, **options)

    monkeypatch.setattr("llmkit.evaluation.evaluate.answer_file", stop)
    assert main([*command, "--shots", "0,1", "-o", str(out)]) == 1
    monkeypatch.setattr("llmkit.evaluation.evaluate.answer_file", answer_file)
    answered: list[int | None] = []
    answer_all = Pipeline.answer_all

    def record(pipeline: Pipeline, *args: Any, **options: Any) -> Any:
        answered.append(pipeline.prompt_options.shots)
        return answer_all(pipeline, *args, **options)

    monkeypatch.setattr(Pipeline, "answer_all", record)
    assert main([*command, "--shots", "0,1,3", "-o", str(out), "--resume"]) == 0
    assert answered == [1, 3]
    for name in ("metrics.json", "results.jsonl"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    other = ["--examples", str(write_rows(tmp_path / "other.jsonl", ROWS[1:]))]
    for changed in ([*command, *other], [*command[:-2], "--shots-seed", "1"]):
        assert main([*changed, "--shots", "0,1", "-o", str(out), "--resume"]) == 2


def test_the_table_has_a_line_for_each_number_of_shots(run: Run, model: str, rows: Path, tmp_path: Path) -> None:
    command = ("evaluate", "--task", "generate", "-m", model, "--data", rows, "--device", "cpu")
    options = ("--max-new-tokens", "4", "--examples", rows, "-o", tmp_path / "out")
    code, out, _ = run(*command, *options, "--shots", "1,0,4")
    assert code == 0
    assert "\nexamples: 5, drawn with seed 42\n" in out
    blocks = [line for line in out.splitlines() if "shot" in line and "[" in line]
    assert [line.split("[")[0].split()[-3:-1] for line in blocks[:3]] == [["1", "shot"], ["0", "shots"], ["4", "shots"]]
    assert ["p = " in line for line in blocks] == [False, True, True] * (len(blocks) // 3)
    assert blocks[0].split()[0] == "rouge1"
    assert blocks[1].split()[0] == "0"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--shots", "0,1"), "--shots 0 has no effect without examples; name their file with --examples"),
        (("--examples", "ROWS", "--shots", "0,x"), "--shots: 'x' is not a number; write numbers such as 0,1,4"),
        (("--examples", "ROWS", "--shots", "1,1"), "--shots has a number twice"),
        (("--examples", "ROWS", "--shots", "5"), "--shots 5: only 4 examples differ from the row itself; lower it"),
        (("--examples", "ROWS", "--shots", "0,1", "--baseline", "MODEL"), "several --shots compare prompts of one"),
        (("--examples", "ROWS", "--shots-by", "similarity"), "--shots-by has no effect on prompts with all examples"),
        (("--examples", "none.jsonl",), "none.jsonl"),
        (("--num-fewshot", "1"), "did you mean --shots?"),
    ],
)  # fmt: skip
def test_what_cannot_be_evaluated_is_refused_before_any_answer(
    options: tuple[str, ...], problem: str, run: Run, model: str, rows: Path, tmp_path: Path
) -> None:
    names = {"ROWS": str(rows), "MODEL": model}
    given = [names.get(option, option) for option in options]
    out = tmp_path / "out"
    code, _, err = run("evaluate", "--task", "generate", "-m", model, "--data", rows, "-o", out, *given)
    assert code == 2
    assert problem in one_line(err)
    assert not out.exists()


def test_examples_without_an_effect_are_refused(run: Run, checkpoint: Checkpoint, tmp_path: Path) -> None:
    question = {"question": "Who?", "context": "The fox jumps.", "answers": ["fox"]}
    for family, task, row in (
        ("bert", "answer", question),
        ("bart", "summarize", {"document": "The fox jumps.", "summary": "fox"}),
        ("gpt2", "generate", {"text": "The fox jumps."}),
    ):
        data = write_rows(tmp_path / f"{family}.jsonl", [row] * 2)
        examples = write_rows(tmp_path / "examples.jsonl", [ROWS[0] if family == "gpt2" else row])
        command = ("evaluate", "--task", task, "-m", checkpoint(family), "--data", data, "--device", "cpu")
        code, _, err = run(*command, "--examples", examples, "-o", tmp_path / family)
        assert code == 2, family
        assert any(word in one_line(err) for word in ("examples", "other options"))


def test_examples_are_read_with_the_columns_of_the_rows(run: Run, model: str, tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("Frage,Lösung\nWer?,Fuchs\n", encoding="utf-8")
    (tmp_path / "train.csv").write_text("Frage,Lösung\nWas?,Hund\nWo?,Wald\n", encoding="utf-8")
    (tmp_path / "usual.jsonl").write_text('{"prompt": "Was?", "completion": "Hund"}\n', encoding="utf-8")
    command = ["evaluate", "--task", "generate", "-m", model, "--data", tmp_path / "test.csv", "--device", "cpu"]
    command += ["--column", "prompt=Frage", "--column", "completion=Lösung", "--max-new-tokens", "2"]
    for name, shots in (("train.csv", 2), ("usual.jsonl", 1)):
        code, out, _ = run(*command, "--examples", tmp_path / name, "-o", tmp_path / name.split(".")[0], "--json")
        assert (code, json.loads(out)["shots"]) == (0, shots)


def test_examples_that_do_not_fit_are_noted(run: Run, checkpoint: Checkpoint, rows: Path, tmp_path: Path) -> None:
    short = checkpoint("llama", chat=True, max_position_embeddings=60)
    command = (
        "evaluate",
        "--task",
        "generate",
        "-m",
        short,
        "--data",
        rows,
        "--device",
        "cpu",
        "--max-new-tokens",
        "4",
    )
    code, out, _ = run(*command, "--examples", rows, "--shots", "0,4", "-o", tmp_path / "out")
    assert code == 0
    assert "notes (4 shots): 5 examples_dropped" in out
