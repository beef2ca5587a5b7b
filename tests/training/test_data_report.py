"""What `llmkit data check` and the dry run say of data and recipes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from llmkit.cli.app import main
from llmkit.config.recipe_file import load_recipe
from tests.conftest import Checkpoint
from tests.training.recipes import SEVERAL_DEVICES, tiny_model, write_rows


@pytest.fixture
def model(checkpoint: Checkpoint) -> str:
    return str(checkpoint("llama", chat=True, max_position_embeddings=2048))


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main(arguments) == code
    captured = capsys.readouterr()
    return captured.err if code == 2 else captured.out


def summary(number: int, words: int = 5) -> dict[str, Any]:
    return {"article": f"The quick fox number {number} " + "jumps " * words, "highlights": f"Fox {number}."}


def test_a_path_is_mapped_shown_and_counted(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows: list[Any] = [summary(0), summary(1), summary(1), {**summary(1), "highlights": "Other."}, "not json"]
    rows += [{**summary(2), "highlights": ""}, summary(3, 90)]
    write_rows(Path("train.jsonl"), rows)
    write_rows(Path("dev.jsonl"), [summary(0), summary(9)])
    arguments = ["data", "check", "train.jsonl", "--task", "summarize", "--model", model, "--max-length", "150"]
    arguments += ["--validation", "dev.jsonl", "--offline"]
    found = json.loads(run(capsys, *arguments, "--json", "--rows", "1", code=1))
    assert {"schema_version", "task", "tokenizer", "stops", "proposal", "notes", "train", "validation"} < found.keys()
    assert found["tokenizer"] == model
    assert found["stops"] == [
        "1 train rows cannot be read (data.on_bad_row)",
        "1 train rows have nothing to learn (data.on_no_label)",
        "1 train rows are too long (data.on_overflow)",
    ]
    train = found["train"]
    assert found["proposal"]["data"]["train"]["columns"] == {"document": "article", "summary": "highlights"}
    assert (train["ledger"]["rows"], train["ledger"]["bad"], train["ledger"]["no_label"]) == (7, 1, 1)
    assert train["ledger"]["too_long"] == 1
    assert (train["duplicate_rows"], train["conflicting_rows"], found["overlap"]) == (1, 1, 1)
    assert train["problems"]["bad"][0].startswith("train.jsonl:5 is not JSON")
    assert train["problems"]["no_label"] == ["train.jsonl:6: its answer is empty, or no reply is to be learned"]
    assert sum(train["lengths"]["counts"]) == train["ledger"]["examples"] == 4
    (sample,) = train["samples"]
    learned = "".join(piece["text"] for piece in sample["pieces"] if piece["learned"])
    assert "ox" in learned
    page = run(capsys, *arguments, code=1)
    assert "document: article" in page
    assert f"tokens are counted with the tokenizer of {model}" in page
    assert "ox" in page.partition("⟦")[2].partition("⟧")[0]
    assert "overlap: 1 validation rows" in page
    assert page.count("training would stop: 1 train rows") == 3


def test_long_examples_are_abbreviated_on_the_page(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(Path("train.jsonl"), [{**summary(0), "article": "jump " * 200}])
    arguments = ["data", "check", "train.jsonl", "--task", "summarize", "--model", model, "--offline"]
    page, full = run(capsys, *arguments), run(capsys, *arguments, "--full")
    assert " characters …] " in page
    assert " characters …] " not in full
    assert full.count("jump ") == 200 > page.count("jump ")


def test_the_proposal_is_a_recipe_that_reads_the_same(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text(
        "".join(f"This is the house number {n}.\t这是第{n}号房子。\n" for n in range(9)), encoding="utf-8"
    )
    page = run(capsys, "data", "check", "a.txt", "--task", "translate", "--model", model, "--offline", "--rows", "0")
    proposal = page.partition("\n\n")[0]
    rest = f"version: 1\nmodel: {{name_or_path: '{model}', offline: true}}\ntrain: {{output_dir: out}}\n"
    Path("a.yaml").write_text(f"{rest}{proposal}\n", encoding="utf-8")
    again = run(capsys, "data", "check", "a.yaml", "--rows", "0")
    assert again.partition("\n\n")[2] == page.partition("\n\n")[2]
    assert load_recipe("a.yaml").settings.source == "en"


def test_preferences_are_proposed_with_their_method(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    labelled = [{"prompt": "The fox", "completion": f"jumps {n}", "label": n > 0} for n in range(2)]
    write_rows(Path("pairs.jsonl"), [{"prompt": "The fox", "chosen": "jumps", "rejected": "sleeps"}] * 2)
    write_rows(Path("labels.jsonl"), labelled)
    write_rows(Path("desirable.jsonl"), labelled[1:])
    found = {}
    for name in ("pairs", "labels", "desirable"):
        arguments = ["data", "check", f"{name}.jsonl", "--task", "chat", "--model", model, "--offline", "--json"]
        found[name] = json.loads(run(capsys, *arguments))
        made = run(capsys, "recipes", "new", "--task", "chat", "--data", f"{name}.jsonl", "--model", model)
        assert (f"method: {found[name]['proposal'].get('method')}" in made) == (name != "desirable")
    assert [each["proposal"].get("method") for each in found.values()] == ["dpo", "kto", None]
    assert "rows have a rejected answer" in found["pairs"]["notes"]
    (sample, _) = found["pairs"]["train"]["samples"]
    assert "sleeps" in "".join(piece["text"] for piece in sample["pieces"])


def test_a_folder_with_splits_is_checked_whole(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    write_rows(Path("data/train.jsonl"), [summary(0), summary(1)])
    write_rows(Path("data/validation.jsonl"), [summary(2)])
    found = json.loads(run(capsys, "data", "check", "data", "--task", "summarize", "--model", model, "--json"))
    assert (found["train"]["ledger"]["rows"], found["validation"]["ledger"]["rows"], found["overlap"]) == (2, 1, 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a.jsonl"], "the task of the data is missing"),
        (["a.jsonl", "--task", "summarise"], "did you mean 'summarization'"),
        (["a.jsonl", "--task", "summarize", "--set", "x=1"], "--set changes a recipe"),
        (["no.jsonl", "--task", "summarize"], "no.jsonl does not exist"),
        (["summarization/starter-lora", "--task", "summarize"], "--task has no effect on a recipe"),
    ],
)
def test_wrong_calls(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(Path("a.jsonl"), [summary(0)])
    assert said in run(capsys, "data", "check", *arguments, code=2)


@pytest.mark.parametrize(
    "name",
    [
        *SEVERAL_DEVICES,
        *("dialogue/starter-lora", "question-answering/minilm-full", "summarization/t5-full"),
        *("text-generation/llama-scratch", "translation/marian-scratch"),
    ],
)
def test_a_shipped_recipe_runs_dry(
    name: str,
    checkpoint: Checkpoint,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without shards and 8 bits. `test_run` trains all the others, which begins alike."""
    monkeypatch.chdir(tmp_path)
    recipe: Any = load_recipe(name)
    changes = ["train.output_dir=x", "data.max_length=null", "train.optim=adamw_torch", "model.quantize=null"]
    changes += ["accelerate.fsdp_config=null", "accelerate.deepspeed_config=null", *tiny_model(recipe, checkpoint)]
    out = run(capsys, "finetune", name, "--dry-run", *(part for change in changes for part in ("--set", change)))
    assert "output_dir: x" in out
    lines = [line for line in out.splitlines() if line.startswith("# ")]
    assert lines[0].startswith(f"# {recipe.task}: ")
    assert any(line.startswith("# train: ") for line in lines)
    trained = next(line for line in lines if line.startswith("# parameters: "))
    assert ("(100.00%)" in trained) == (recipe.adapter is None and "marian" not in name)


THINKS = (
    "{% for m in messages %}[{{ m.role }}]{% if m.reasoning_content and loop.last %}"
    "<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}{{ eos_token }}{% endfor %}"
    "{{ '[assistant]' if add_generation_prompt }}"
)


def test_what_of_a_conversation_is_not_learned_or_not_shown_is_counted(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, reply = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
    thought = {**reply, "reasoning_content": "hm", "refusal": "no"}
    called = {**reply, "tool_calls": [{"function": {"name": "look", "arguments": {}}}]}
    conversations = ([asked, reply], [reply, asked, reply], [asked, thought, asked, thought], [asked, called])
    rows = write_rows(tmp_path / "rows.jsonl", [{"messages": messages} for messages in conversations])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        json.dumps({
            "version": 1, "task": "dialogue", "model": {"name_or_path": model}, "tokenizer": {"chat_template": THINKS},
            "data": {"train": str(rows), "on_bad_row": "skip"}, "train": {"output_dir": str(tmp_path / "out")},
        }),
        encoding="utf-8",
    )  # fmt: skip
    page = run(capsys, "data", "check", str(recipe))
    assert "train: 1 bad rows are skipped" in page
    assert "train: unused columns: messages.refusal (1 rows)" in page
    assert "train: 1 rows: a reply before the first message of the user is context and is not learned" in page
    assert "train: 1 rows: reasoning of earlier replies is not in the context of later ones" in page
    assert "rows.jsonl:4: the model's chat template drops the tool calls" in page


def test_the_page_on_conversations(
    tmp_path: Path, checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "conversations.md").read_text(encoding="utf-8")
    for name, file in (("rows", "rows.json"), ("recipe", "recipe.yaml")):
        found = re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```", page, re.DOTALL)
        assert found
        Path(file).write_text(found[1], encoding="utf-8")
    calls = "{% for c in m.tool_calls or [] %}<{{ c.function.name }} {{ c.function.arguments | tojson }}>{% endfor %}"
    tools = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
    Path("chat.jinja").write_text(tools + THINKS.replace("{{ eos_token }}", calls + "{{ eos_token }}"))
    model = checkpoint("qwen3", max_position_embeddings=2048)
    settings = ["--set", f"model.name_or_path={model}", "--set", "tokenizer.chat_template=chat.jinja"]
    shown = run(capsys, "data", "check", "recipe.yaml", *settings)
    assert "train: 1 rows, 2 examples" in shown
    assert "unused" not in shown
    assert '⟦<think>I have to look.</think><weather {"city": "北京"}>' in shown.replace("<|endoftext|>", "")
