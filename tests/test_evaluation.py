"""llmkit evaluate: the figures are those of the kept answers, and a model is compared with another on the same rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmkit.cli.app import main
from llmkit.heads import head_ops
from llmkit.metrics.judge import judge
from tests.conftest import Checkpoint
from tests.training.recipes import write_rows

ROWS: dict[str, Any] = {
    "summarize": {"document": "The quick fox jumps. It is quick.", "summary": ["A quick fox.", "The fox jumps."]},
    "translate": {"source": "The fox.", "target": "Le renard."},
    "answer": {"question": "Who?", "context": "The fox jumps.", "answers": {"text": ["fox"], "answer_start": [4]}},
    "chat": {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "The fox"}]},
    "generate": {"prompt": "The quick", "completion": " brown fox"},
}
SHORT = ["--device", "cpu", "--offline"]


@pytest.mark.parametrize("verb", list(ROWS))
def test_every_task_is_judged(
    verb: str, checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [ROWS[verb]] * 3)
    model = str(
        checkpoint(
            "t5" if verb == "translate" else "llama",
            **({} if verb == "translate" else {"chat": True, "max_position_embeddings": 1024}),
        )
    )
    out = tmp_path / "out"
    more = ["--set", "settings.target=fr"] if verb == "translate" else []
    command = ["evaluate", "--task", verb, "--model", model, "--data", str(rows), "-o", str(out), *SHORT, *more]
    command += ["--max-new-tokens", "8"]
    assert main([*command, "--json", "--baseline", model]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content == json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert (content["rows"], content["failed"]) == (3, 0)
    answers = [
        json.loads(line)["text"] for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    wanted = {
        "summarize": ["A quick fox.", "The fox jumps."], "translate": ["Le renard."], "answer": ["fox"],
        "chat": ["The fox"], "generate": [" brown fox"],
    }[verb]  # fmt: skip
    expected = {each.name: each.value for each in judge(content["task"], answers, [wanted] * 3)}
    figures = {name: each["value"] for name, each in content["figures"].items()}
    assert figures.pop("perplexity", 2.0) > 1.0
    assert figures == pytest.approx(expected)
    assert all(each["p_value"] == 1.0 for each in content["figures"].values())
    assert main(command) == 2
    assert "is not empty; --resume" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0
    assert "signature: " in capsys.readouterr().out


def test_a_recipe_is_judged_by_its_result_on_its_validation_rows(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    row = {"question": "Who?", "context": "The fox jumps.", "answers": ["fox"]}
    write_rows(tmp_path / "rows.jsonl", [row] * 4)
    write_rows(tmp_path / "held.jsonl", [row, row | {"answers": []}])
    text = f"""\
version: 1
task: question-answering
model: {{name_or_path: '{checkpoint("bert")}', offline: true, device: cpu}}
data: {{train: rows.jsonl, validation: held.jsonl}}
train: {{output_dir: out, max_steps: 2}}
"""
    Path("a.yaml").write_text(text, encoding="utf-8")
    assert main(["finetune", "a.yaml"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "a.yaml", *SHORT]) == 0
    said = capsys.readouterr().out
    assert said.startswith("question-answering: out, 2 rows\n  exact_match")
    assert "always no answer: exact_match 50.00, f1 50.00" in said


def test_each_token_of_a_long_text_counts_once(checkpoint: Checkpoint) -> None:
    """As a loop that gives the model no cache, no batch and one token to judge at a time."""
    import torch

    import llmkit
    from llmkit.evaluation.perplexity import row_loss, windows

    pipeline = llmkit.load("generate", str(checkpoint("llama")), offline=True, device="cpu", dtype="float32")
    context = pipeline.loaded.context.tokens
    assert context == 128
    row = {"text": "The quick brown fox jumps over the lazy dog. 今天天气很好。" * 20}
    loss, count = row_loss(pipeline, row)
    examples = pipeline.task.examples(row, pipeline.traits, pipeline.wording)
    (features,) = head_ops(pipeline.loaded.head).features(pipeline.loaded, examples, loss_on_all=False)
    ids = features.input_ids
    begins = {place: begin for begin, end, fresh in windows(len(ids), context) for place in range(fresh, end)}
    assert list(begins) == list(range(1, len(ids)))
    assert all(place - begin >= 64 for place, begin in begins.items() if place >= 128)
    expected = 0.0
    with torch.no_grad():
        for place, begin in begins.items():
            logits = pipeline.loaded.model(torch.tensor([ids[begin:place]])).logits[0, -1]
            expected -= float(logits.log_softmax(-1)[ids[place]])
    assert count == len(begins)
    assert loss == pytest.approx(expected, rel=1e-4)


def test_plain_text_is_judged_by_its_perplexity_alone(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("The quick brown fox.\nThe lazy dog.\n", encoding="utf-8")
    command = ["evaluate", "--task", "generate", "--model", str(checkpoint("llama")), "--json", *SHORT]
    assert main([*command, "--data", str(tmp_path / "text.txt"), "-o", str(tmp_path / "out")]) == 0
    assert list(json.loads(capsys.readouterr().out)["figures"]) == ["perplexity"]
