"""llmkit evaluate: the figures are those of the kept answers, and a model is compared with another on the same rows."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import llmkit
from llmkit.cli.app import main
from llmkit.config.recipe import SourceSection
from llmkit.config.recipe_file import load_recipe
from llmkit.data.proposals import task_rows
from llmkit.errors import CheckpointError, InputError
from llmkit.evaluation.evaluate import Evaluation, MetricResult, without_reasoning
from llmkit.evaluation.perplexity import _exp_mean
from llmkit.heads import head_of
from llmkit.heads.objective import Objective
from llmkit.metrics.bootstrap import Interval
from llmkit.metrics.score import score
from llmkit.tasks import TASKS, Dialogue, PromptOptions, QuestionAnswering, Traits, Translation, get_task
from llmkit.tasks.output import Note, Output, Usage
from llmkit.tasks.translation import TranslationSettings
from llmkit.training.dataset import make_examples
from llmkit.training.encoding import make_encoder
from llmkit.training.recipe_model import open_model, open_task
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
def test_every_task_is_evaluated(
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
    expected = {each.name: each.value for each in score(TASKS[content["task"]].metrics, answers, [wanted] * 3)}
    figures = {name: each["value"] for name, each in content["figures"].items()}
    assert figures.pop("perplexity", 2.0) > 1.0
    assert figures == pytest.approx(expected)
    assert all(each["p_value"] == 1.0 for each in content["figures"].values())
    assert main(command) == 2
    assert (
        "is not empty; continue an interrupted evaluation with --resume, or replace it with --overwrite"
        in capsys.readouterr().err
    )
    assert main([*command, "--resume"]) == 0
    assert "signature: " in capsys.readouterr().out


def test_a_reference_with_reasoning_is_compared_by_its_answer(checkpoint: Checkpoint) -> None:
    references = [["<think>\nHm.\n</think>\n\nThe fox", "The <think> tag"], ["<think>never closed"]]
    for chat, expected in ((True, [["The fox", "The <think> tag"], references[1]]), (False, references)):
        folder = checkpoint("llama", **({"chat": True, "max_position_embeddings": 1024} if chat else {}))
        assert without_reasoning(llmkit.load("dialogue", str(folder), device="cpu"), references) == expected


def test_a_recipe_is_evaluated_by_its_result_on_its_validation_rows(
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
    assert said.startswith("question-answering: out, 2 rows\nnotes: 2 no_answer\n  exact_match")
    assert "always no answer: exact_match 50.00, f1 50.00" in said


NONE: list[Any] = [{"text": [""], "answer_start": [-1]}, [], None, "", [" "], {"text": [], "answer_start": []}]


@pytest.mark.parametrize("answers", [*NONE, ["No answer"], "unanswerable."])
def test_no_answer_is_none_in_training_as_in_evaluation(answers: Any, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"question": "Who?", "context": "The fox.", "answers": answers}])
    (record,) = task_rows(SourceSection(path=[str(path)]), get_task("question-answering"))
    assert record.row is not None
    task = QuestionAnswering()
    assert task.references(record.row) == []
    for traits, target in ((Traits(extracts_spans=True), ""), (Traits(continues=True), " No answer")):
        (example,) = task.examples(record.row, traits, PromptOptions())
        assert (example.target, example.spans) == (target, ())


def test_the_last_learned_reply_is_evaluated() -> None:
    turns = [("user", "a", 1), ("assistant", "b", 1), ("user", "c", 1), ("assistant", "d", 0), ("user", "e", 1)]
    messages = [{"role": role, "content": text, "weight": weight} for role, text, weight in turns]
    assert Dialogue().without_target({"messages": messages}) == {"messages": messages[:1], "reply": "b"}
    assert Dialogue().without_target({"messages": messages[2:]}) is None
    with pytest.raises(InputError, match="message 1 is empty"):
        Dialogue().without_target({"messages": [{"role": "user", "content": ""}, messages[1]]})


def test_a_conversation_without_a_reply_is_named_or_left_out(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [ROWS["chat"], {"messages": ROWS["chat"]["messages"][:1]}]
    data = ["--data", str(write_rows(tmp_path / "rows.jsonl", rows)), "-o"]
    model = str(checkpoint("llama", chat=True, max_position_embeddings=512))
    command = ["evaluate", "--task", "chat", "--model", model, *SHORT, "--max-new-tokens", "4", *data]
    assert main([*command, str(tmp_path / "one")]) == 2
    assert "rows.jsonl:2 has no reference reply; leave it out with data.on_no_label: drop" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "two"), "--json", "--set", "data.on_no_label=drop"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 1


def write_recipe(folder: Path, model: Path, rows: Path, **sections: Any) -> Path:
    content = {
        "version": 1,
        "task": "question-answering",
        "model": {"name_or_path": str(model), "offline": True, "device": "cpu"},
        "data": {"train": str(rows)},
        "train": {"output_dir": str(folder / "tuned"), "max_steps": 3, "learning_rate": 0.01, "bf16": False},
    }
    for name, values in sections.items():
        content[name] = {**content.get(name, {}), **values} if isinstance(values, dict) else values  # type: ignore[dict-item]
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def questions(count: int) -> list[dict[str, Any]]:
    """Each with a text of its own; every third without an answer."""
    return [
        {"question": "Who?", "context": f"The fox {'jumps ' * n}.", "answers": ["fox"] if n % 3 else []}
        for n in range(count)
    ]


def test_rows_that_training_held_back_are_evaluated(checkpoint: Checkpoint, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", questions(12))
    recipe = str(write_recipe(tmp_path, checkpoint("bert"), rows, data={"validation_fraction": 0.25}))
    trained = load_recipe(recipe)
    part = make_examples(
        trained, make_encoder(trained, open_task(trained), open_model(trained, open_task(trained), weights=False))
    )
    assert part.validation is not None
    held = [part.validation.rows[index]["context"] for index in part.validation.order]
    assert main(["finetune", recipe]) == 0
    assert main(["evaluate", recipe, "-o", str(tmp_path / "out")]) == 0
    lines = (tmp_path / "out" / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["context"] for line in lines] == held
    assert len(held) == 3


def test_an_evaluation_that_fails_leaves_nothing_behind(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """So that the corrected command needs neither --resume nor another folder; what was there stays."""
    rows = write_rows(tmp_path / "rows.jsonl", [ROWS["generate"]] * 2)
    model, out, none = str(checkpoint("gpt2")), tmp_path / "out", str(tmp_path / "none")
    command = ["evaluate", "--task", "generate", *SHORT, "-o", str(out), "--max-new-tokens", "2"]
    for wrong in (
        ["--model", none, "--data", str(rows)],
        ["--model", str(checkpoint("bert")), "--data", str(rows)],
        ["--model", model, "--data", none],
        ["--model", model, "--data", str(write_rows(tmp_path / "bad.jsonl", [ROWS["generate"], "{"]))],
        ["--model", model, "--data", str(rows), "--baseline", none],
    ):
        assert main([*command, *wrong]) in (1, 2)
        assert not out.exists()
    out.mkdir()
    (out / "thesis.tex").touch()
    assert main([*command, "--model", model, "--data", str(rows)]) == 2
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]
    (out / "thesis.tex").unlink()
    assert main([*command, "--model", model, "--data", str(rows)]) == 0


def test_figures_are_json_that_other_programs_read(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """JSON has no NaN; rows without a token to predict have no perplexity, and are refused."""
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": " "}] * 2)
    command = ["evaluate", "--task", "generate", "--model", str(checkpoint("gpt2")), "--data", str(rows), *SHORT]
    assert main([*command, "-o", str(tmp_path / "out"), "--json"]) == 2
    assert "no row has a token that could be predicted" in capsys.readouterr().err
    assert perplexity_of(1e6, 1) == math.inf
    assert Evaluation("t", "m", 1, 0, 0, (MetricResult("p", Interval(math.inf, math.nan, 1.0), "", False),)).to_dict()[
        "figures"
    ]["p"] == {"value": None, "low": None, "high": 1.0, "signature": "", "higher_is_better": False}


def perplexity_of(loss: float, tokens: int) -> float:
    import numpy as np

    return _exp_mean(np.asarray([loss, tokens], dtype=np.float64))


def test_the_threshold_that_is_fitted_goes_with_the_model(checkpoint: Checkpoint, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", questions(9))
    recipe = write_recipe(tmp_path, checkpoint("bert"), rows, data={"validation": str(rows)})
    folder = llmkit.finetune(recipe).folder
    said = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    kept = json.loads((folder / "llmkit.json").read_text(encoding="utf-8"))["settings"]["no_answer_threshold"]
    assert kept == said["no_answer_threshold"]
    found = llmkit.evaluate(recipe, output=tmp_path / "out")
    assert found.figures[1].interval.value == pytest.approx(said["f1_with_no_answer_threshold"])
    # No answer at all is one of the thresholds that were compared.
    assert found.figures[1].interval.value >= found.trivial["always no answer"]["f1"] > 0
    own = llmkit.finetune(recipe, overrides=["settings.no_answer_threshold=0.5"], output=tmp_path / "own")
    assert (
        json.loads((own.folder / "llmkit.json").read_text(encoding="utf-8"))["settings"]["no_answer_threshold"] == 0.5
    )


def test_a_language_that_is_named_is_divided_as_its_code_is() -> None:
    assert Translation(TranslationSettings(target="Chinese")).target_language({}) == "zh"
    assert Translation(TranslationSettings()).target_language({}) is None


def test_both_models_are_asked_as_the_recipe_says(checkpoint: Checkpoint, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [ROWS["generate"]] * 2)
    model = checkpoint("llama", chat=True, max_position_embeddings=1024)
    recipe = write_recipe(
        tmp_path,
        model,
        rows,
        task="text-generation",
        data={"validation": str(rows)},
        prompt={"system": "You are a fox."},
        adapter={"peft_type": "LORA"},
    )
    llmkit.finetune(recipe)
    llmkit.evaluate(recipe, baseline=str(model), output=tmp_path / "out", max_new_tokens=2)

    def read(name: str) -> list[int]:
        lines = (tmp_path / "out" / name).read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["usage"]["prompt_tokens"] for line in lines]

    with_system = llmkit.generate("The quick", str(model), system="You are a fox.", max_new_tokens=2, offline=True)
    assert read("predictions.jsonl") == read("baseline.jsonl") == [with_system.usage.prompt_tokens] * 2


def test_two_processes_find_the_figures_of_one(checkpoint: Checkpoint, tmp_path: Path) -> None:
    conversation = [
        ROWS["chat"],
        {"messages": [{"role": "user", "content": "Who jumps?"}, {"role": "assistant", "content": "The"}]},
    ]
    rows = write_rows(tmp_path / "rows.jsonl", conversation * 3)
    model = str(checkpoint("llama", chat=True, max_position_embeddings=1024))
    options = [
        "--task",
        "chat",
        "--model",
        model,
        "--data",
        str(rows),
        "--max-new-tokens",
        "4",
        "--dtype",
        "float32",
        "--examples",
        str(rows),
        "--shots",
        "0,1",
        *SHORT,
    ]
    assert main(["evaluate", *options, "-o", str(tmp_path / "one")]) == 0
    command = [
        sys.executable,
        "-m",
        "llmkit",
        "evaluate",
        *options,
        "-o",
        str(tmp_path / "two"),
        "--num-processes",
        "2",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text(encoding="utf-8")) for name in ("one", "two"))
    assert one["figures"].pop("perplexity")["value"] == pytest.approx(two["figures"].pop("perplexity")["value"])
    assert one == two


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--task", "chat"],
            "nothing to evaluate without --model, --data; name a run, a recipe",
        ),
        (["--task", "chat", "--model", "m", "--data", "d", "--set", "settings.length=3"], "unknown key"),
        (["--task", "chat", "--model", "m", "--data", "d", "--num-return-sequences", "2"], "only the first output"),
        (
            ["summarization/starter-lora", "--task", "chat"],
            "--task has no effect on a recipe, which names",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_refused(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", *options]) == 2
    assert said in capsys.readouterr().err


def test_each_token_of_a_long_text_counts_once(checkpoint: Checkpoint) -> None:
    """As a loop that gives the model no cache, no batch and one token to judge at a time."""
    import torch

    from llmkit.evaluation.perplexity import row_loss, scoring_objective
    from llmkit.heads.causal import windows

    pipeline = llmkit.load("generate", str(checkpoint("llama")), offline=True, device="cpu", dtype="float32")
    context = pipeline.loaded.context.tokens
    assert context == 128
    row = {"text": "The quick brown fox jumps over the lazy dog. 今天天气很好。" * 20}
    loss, count = row_loss(pipeline, row, scoring_objective(pipeline))
    examples = pipeline.task.examples(row, pipeline.traits, pipeline.prompt_options)
    (features,) = head_of(pipeline.loaded.head).features(pipeline.loaded, examples, loss_on="target")
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


@pytest.mark.parametrize(("family", "weight"), [("llama", "down_proj"), ("t5", "DenseReluDense.wo")])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_there_is_no_perplexity_of_logits_that_are_not_finite(
    value: float, family: str, weight: str, checkpoint: Checkpoint
) -> None:
    import torch

    from llmkit.evaluation.perplexity import row_loss, scoring_objective

    pipeline = llmkit.load("generate", str(checkpoint(family)), offline=True, device="cpu")
    with torch.no_grad():
        for name, parameter in pipeline.loaded.model.named_parameters():
            if weight in name:
                parameter.fill_(value)
    with pytest.raises(CheckpointError, match="computes NaN or infinity in float32; use another checkpoint"):
        row_loss(pipeline, {"prompt": "The", "completion": "quick fox"}, scoring_objective(pipeline))


def test_plain_text_is_evaluated_by_its_perplexity_alone(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """How the loss is computed is found once, not for each row."""
    made: list[Any] = []
    of = Objective.of
    monkeypatch.setattr(Objective, "of", lambda *given: made.append(given) or of(*given))  # type: ignore[func-returns-value]
    (tmp_path / "text.txt").write_text("The quick brown fox.\nThe lazy dog.\n", encoding="utf-8")
    command = ["evaluate", "--task", "generate", "--model", str(checkpoint("llama")), "--json", *SHORT]
    assert main([*command, "--data", str(tmp_path / "text.txt"), "-o", str(tmp_path / "out")]) == 0
    assert list(json.loads(capsys.readouterr().out)["figures"]) == ["perplexity"]
    assert len(made) == 1


def test_only_a_line_feed_ends_a_row(checkpoint: Checkpoint, tmp_path: Path) -> None:
    row = {"prompt": "The\u2028quick\x0b", "completion": "\x85 brown\u2029\x1c fox\r"}
    rows = write_rows(tmp_path / "rows.jsonl", [row] * 2)
    command = ["evaluate", "--task", "generate", "--model", str(checkpoint("gpt2")), "--data", str(rows)]
    assert main([*command, "-o", str(tmp_path / "out"), "--max-new-tokens", "2", *SHORT]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["rows"], metrics["failed"]) == (2, 0)


def test_a_row_that_is_too_long_does_not_end_an_evaluation_without_its_figures(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [{"prompt": f"The fox {number}", "completion": "jumps."} for number in range(3)]
    long = {"prompt": "The fox jumps " * 80, "completion": "x"}
    figures = []
    for name, rows in (("all", [good[0], long, *good[1:]]), ("good", good)):
        path = write_rows(tmp_path / f"{name}.jsonl", rows)
        options = ["--task", "generate", "--model", str(checkpoint("bart")), "--data", str(path), *SHORT]
        options += ["--baseline", str(checkpoint("t5"))] if name == "all" else []
        assert main(["evaluate", *options, "--max-new-tokens", "2", "-o", str(tmp_path / name)]) == 0
        figures.append(json.loads((tmp_path / name / "metrics.json").read_text(encoding="utf-8")))
    assert figures[0]["failed"] == 1
    assert figures[0]["figures"]["perplexity"]["value"] == pytest.approx(figures[1]["figures"]["perplexity"]["value"])
    said = capsys.readouterr().err
    assert "1 of 4 rows have no perplexity; row 2: it has" in said


def test_an_input_that_is_too_long_is_cut_as_it_was_in_training(checkpoint: Checkpoint, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "The fox jumps " * 80, "completion": "x"}])
    data = {"validation": str(rows), "on_overflow": "truncate", "truncation_side": "right"}
    recipe = write_recipe(tmp_path, checkpoint("bart"), rows, task="text-generation", data=data)

    def evaluated(name: str, **options: Any) -> Evaluation:
        model = str(checkpoint("bart"))
        return llmkit.evaluate(recipe, model=model, output=tmp_path / name, max_new_tokens=2, **options)

    assert evaluated("cut").failed == 0
    assert json.loads((tmp_path / "cut" / "predictions.jsonl").read_text(encoding="utf-8"))["truncated"]
    assert evaluated("whole", on_overflow="error").failed == 1


def test_where_no_row_has_a_perplexity_the_other_figures_are_given(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": "The fox jumps " * 80, "completion": "x"}])
    options = ["--task", "generate", "--model", str(checkpoint("bart")), "--data", str(path), *SHORT]
    options += ["--on-overflow", "truncate", "--max-new-tokens", "2", "--baseline", str(checkpoint("t5"))]
    assert main(["evaluate", *options, "-o", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert "perplexity" not in found["figures"]
    assert found["figures"]
    assert "perplexity is omitted" in capsys.readouterr().err


def test_a_notebook_shows_metrics_with_their_intervals() -> None:
    figure = MetricResult("f1", Interval(50.0, 40.0, 60.0), "", True, p_value=0.03)
    other = Evaluation("t", "b", 3, 0, 0, (MetricResult("f1", Interval(45.5, 40.0, 50.0), "", True),))
    text = Evaluation("t", "<m>", 3, 1, 0, (figure,), notes={"output_cut": 2}, baseline=other)._repr_html_()
    for part in ("t: &lt;m&gt;, 3 rows (baseline: b), 1 failed, 2 output_cut", "<td>50.00</td><td>40.00 to 60.00</td>"):
        assert part in text
    assert "<td>45.50</td><td>+4.50</td><td>0.0300</td>" in text
    assert "<m>" not in text


def test_a_notebook_shows_an_answer_with_its_notes_and_no_markup_of_it() -> None:
    notes = (Note("output_cut", "cut <b>"),)
    text = Output(
        text="<script>alert(1)</script>\n\nTwo", task="t", model="m&m", commit=None, head="causal",
        finish_reason="length", usage=Usage(3, 5), score=0.5, notes=notes,
    )._repr_html_()  # fmt: skip
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\n\nTwo" in text
    assert "m&amp;m: 5 tokens, length, score 0.500" in text
    assert "<code>output_cut</code>: cut &lt;b&gt;" in text
