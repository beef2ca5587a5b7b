"""Runs from a recipe to a folder that the tasks take with no other flag."""

from __future__ import annotations

import json
import resource
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import llmkit
from llmkit.cli.app import main
from llmkit.config.declaration import explicitly_set
from llmkit.config.recipe_file import load_recipe, shipped_recipes
from llmkit.errors import CheckpointError, LlmkitError, NotEnoughMemoryError, UsageError
from llmkit.files import disk_errors
from llmkit.models.inspect import inspect_source
from llmkit.training.checkpoint import Progress, checkpoints, last_intact, random_state, save_checkpoint
from llmkit.training.encoding import Encoder
from llmkit.training.recipe_model import open_task
from llmkit.training.run import finetune
from tests.conftest import Checkpoint
from tests.test_files import files_of_at_most
from tests.training.recipes import SEVERAL_DEVICES, make_recipe, tiny_model, write_rows

TRAINED = [name for name in shipped_recipes() if name not in SEVERAL_DEVICES]

ASKED: dict[str, Any] = {
    "text-generation": "The quick",
    "summarization": "The quick brown fox.",
    "question-answering": {"question": "Who?", "context": "The quick brown fox."},
    "dialogue": "Hello",
    "translation": "The quick brown fox.",
}


def tiny(name: str, checkpoint: Checkpoint, folder: Path, **more: Any) -> Any:
    """A shipped recipe with two updates of a tiny model of the same family."""
    recipe: Any = load_recipe(name)
    changes = [f"train.output_dir={folder}", "train.max_steps=2", "train.per_device_train_batch_size=2"]
    changes += ["data.max_length=null", "train.bf16=false", *(f"{key}={value}" for key, value in more.items())]
    changes += [] if recipe.model.name_or_path is None else ["model.device=cpu", *tiny_model(recipe, checkpoint)]
    return load_recipe(name, changes)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_replies_behind_a_template_that_opens_reasoning_are_found_again(
    family: str, checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tokenizer of tiny Llama has no ``<``, so that it can open no tag and close none."""
    (tmp_path / "r1.jinja").write_text(
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}",
        encoding="utf-8",
    )
    turns = [{"role": "user", "content": "The fox"}, {"role": "assistant", "content": "jumps over"}]
    rows, out = write_rows(tmp_path / "rows.jsonl", [{"messages": turns}] * 4), tmp_path / "out"
    train = {"output_dir": str(out), "bf16": False, "max_steps": 30, "learning_rate": 0.03, "logging_steps": 30}
    train |= {"lr_scheduler_type": "constant", "save_strategy": "no"}
    recipe = make_recipe(
        "dialogue", checkpoint(family), rows, train=train, tokenizer={"chat_template": str(tmp_path / "r1.jinja")}
    )
    finetune(recipe)
    output = llmkit.chat("The fox", str(out), device="cpu", temperature=0, max_new_tokens=24)
    assert (output.text, output.reasoning, output.still_thinking) == ("jumps over", "", False)
    command = ["evaluate", "--task", "chat", "--model", str(out), "--data", str(rows), "-o", str(tmp_path / "figures")]
    assert main([*command, "--device", "cpu", "--max-new-tokens", "24", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["figures"]["rouge1"]["value"] == 100


def test_a_template_that_loses_the_conversation_is_refused_before_training(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}])
    model = checkpoint("llama", chat=True)
    for template, message in (
        ("chatml", "neither a Jinja"),
        ("{{ bos_token }}Hello", "drops the text of the user"),
    ):
        recipe = make_recipe("text-generation", model, rows, tokenizer={"chat_template": template})
        with pytest.raises(UsageError, match=message):
            finetune(recipe)
    row = {"question": "Who?", "context": "The fox", "answers": ["fox"]}
    recipe = make_recipe(
        "question-answering",
        checkpoint("bert"),
        write_rows(tmp_path / "questions.jsonl", [row]),
        tokenizer={"chat_template": "{{ messages }}"},
    )
    with pytest.raises(UsageError, match="has no effect on a model that extracts answers"):
        finetune(recipe)


def test_there_are_recipes_of_every_task() -> None:
    assert len(TRAINED) >= 15
    assert {name.partition("/")[0] for name in TRAINED} == set(ASKED)


@pytest.mark.parametrize("name", TRAINED)
def test_every_recipe_trains_and_its_result_answers(name: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    recipe = tiny(name, checkpoint, tmp_path / "out")
    trainer = finetune(recipe)
    assert trainer.progress.step == 2
    losses = [entry["loss"] for entry in trainer.progress.log if "loss" in entry]
    assert losses
    assert load_recipe(str(tmp_path / "out" / "resolved.yaml")) == recipe
    short = {"max_new_tokens": 8} if trainer.head.writes else {}
    options: dict[str, Any] = {"device": "cpu", "offline": True, **short}
    pipeline = llmkit.load(recipe.task, str(tmp_path / "out"), **options)
    assert isinstance(pipeline(ASKED[recipe.task]).text, str)
    fitted = {"no_answer_threshold": None} if not trainer.head.writes else {}
    assert replace(pipeline.task.settings, **fitted) == open_task(recipe).settings


def test_a_run_into_a_folder_in_use_is_refused_and_resume_needs_a_checkpoint(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    recipe = tiny("text-generation/llama-scratch", checkpoint, tmp_path / "out")
    with pytest.raises(UsageError, match="no checkpoint to resume from"):
        finetune(recipe, resume=True)
    finetune(recipe)
    with pytest.raises(UsageError, match="is not empty; continue with `resume`"):
        finetune(recipe)
    longer = tiny("text-generation/llama-scratch", checkpoint, tmp_path / "out", **{"train.seed": 1})
    with pytest.raises(UsageError, match="the recipe changed since"):
        finetune(longer, resume=True)


def test_a_run_that_died_before_its_first_checkpoint_begins_again(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """With and without --resume; a folder with something else in it stays as it is."""
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": f"The fox {number}."} for number in range(8)])
    out = tmp_path / "out"
    train = {"output_dir": str(out), "max_steps": 3, "learning_rate": 1e30, "max_grad_norm": 0.0, "bf16": False}
    train |= {"per_device_train_batch_size": 2}
    recipe = make_recipe("text-generation", checkpoint("gpt2"), rows, train=train)
    for resume in (False, False, True):
        with pytest.raises(LlmkitError, match=r"is (nan|inf) at update \d; lower train.learning_rate"):
            finetune(recipe, resume=resume)
    lower = make_recipe("text-generation", checkpoint("gpt2"), rows, train=train | {"learning_rate": 1e-3})
    with pytest.raises(UsageError, match="the recipe changed since"):
        finetune(lower, resume=True)
    (out / ".building-checkpoint-1").mkdir()  # one that was not completed
    (out / "thesis.tex").touch()
    with pytest.raises(UsageError, match="is not empty; remove it, or set another"):
        finetune(lower)
    (out / "thesis.tex").unlink()
    assert finetune(lower).progress.step == 3


def test_a_run_that_early_stopping_ended_is_resumed_as_ended(checkpoint: Checkpoint, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": f"The fox {number}."} for number in range(8)])
    out = tmp_path / "out"
    train = {"output_dir": str(out), "num_train_epochs": 9.0, "learning_rate": 3.0, "lr_scheduler_type": "constant"}
    train |= {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    data = {"validation": str(rows)}
    train |= {"early_stopping_patience": 2}
    recipe = make_recipe("text-generation", checkpoint("llama"), rows, data=data, train=train)
    ended = finetune(recipe).progress
    assert ended.step < 9
    names = ("model.safetensors", "log.jsonl", "metrics.json")
    before = {name: (out / name).read_bytes() for name in names}
    metrics = json.loads(before["metrics.json"])
    assert metrics["tokens"] > 0
    assert metrics["train_loss"] > 0  # though no line of the log was due
    assert finetune(recipe, resume=True).progress.step == ended.step
    after = {name: (out / name).read_bytes() for name in names}
    assert after["model.safetensors"] == before["model.safetensors"]
    assert after["log.jsonl"] == before["log.jsonl"]
    assert json.loads(after["metrics.json"])["tokens"] == metrics["tokens"]


@pytest.mark.filterwarnings("ignore:Position ids are not supported")  # which PEFT says of all virtual tokens
def test_virtual_tokens_count_against_the_context(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """In training, of the tuned model and in what is said of it; an answer ends before its positions do."""
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "The fox", "completion": "jumps"}] * 2)
    out = tmp_path / "out"
    adapter = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 8}
    train = {"output_dir": str(out), "max_steps": 1, "bf16": False}
    finetune(make_recipe("text-generation", checkpoint("gpt2"), rows, train=train, adapter=adapter))
    options: dict[str, Any] = {"device": "cpu", "offline": True, "dtype": "float32"}
    pipeline = llmkit.load("generate", str(out), **options, max_new_tokens=200, temperature=0)
    assert pipeline.loaded.context.tokens == 120
    assert inspect_source(pipeline.loaded.source).context_length == 120
    assert pipeline("fox " * 20).finish_reason == "length"


@pytest.mark.parametrize("kind", ["version 5", "version 4", "tokenizer.json alone"])
def test_a_new_model_takes_a_tokenizer_from_a_folder_without_a_config(
    kind: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    folder = tmp_path / "tokenizer"
    AutoTokenizer.from_pretrained(checkpoint("gpt2")).save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    content = json.loads(settings.read_text(encoding="utf-8"))
    if kind == "version 4":
        content = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": content["eos_token"]}
    if kind == "tokenizer.json alone":
        settings.unlink()
    else:
        settings.write_text(json.dumps(content), encoding="utf-8")
    config = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1}
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": "The fox."}] * 2)
    train = {"output_dir": str(tmp_path / "out"), "max_steps": 1, "bf16": False}
    model = {"config": config, "offline": True, "device": "cpu"}
    recipe = make_recipe("text-generation", model, rows, train=train, tokenizer={"name_or_path": str(folder)})
    if kind == "tokenizer.json alone":  # names no end
        with pytest.raises(LlmkitError, match="add eos_token to its"):
            finetune(recipe)
    else:
        assert finetune(recipe).progress.step == 1


def test_data_that_changed_is_not_gone_on_with(checkpoint: Checkpoint, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": f"The fox {number}."} for number in range(8)])
    train = {"output_dir": str(tmp_path / "out"), "max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    recipe = make_recipe("text-generation", checkpoint("llama"), rows, train=train)
    finetune(recipe)
    write_rows(rows, [{"text": "Another."}])
    with pytest.raises(UsageError, match=r"the data \(rows.jsonl\) changed since"):
        finetune(recipe, resume=True)


def test_a_run_that_is_stopped_is_saved_and_goes_on(checkpoint: Checkpoint, tmp_path: Path) -> None:
    recipe = tiny("text-generation/llama-scratch", checkpoint, tmp_path / "out", **{"train.max_steps": 4})
    stopped = finetune(recipe, should_stop=lambda: True)
    assert stopped.stopped
    assert [path.name for path in checkpoints(tmp_path / "out")] == ["checkpoint-1"]
    assert not (tmp_path / "out" / "model.safetensors").exists()
    resumed = finetune(recipe, resume=True)
    assert resumed.progress.step == 4
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train.report_to": "[nothing]"}, "no tracker is called nothing; use"),
        ({"train.packing": "true"}, ""),
        ({"train.freeze": "[nothing]"}, "'nothing' matches no trained parameter"),
        ({"train.fp16": "true"}, "train.fp16 needs a GPU"),
    ],
)
def test_what_is_not_there_is_refused_by_name(
    change: dict[str, Any], said: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    recipe = tiny("text-generation/llama-scratch", checkpoint, tmp_path / "out", **change)
    if not said:
        assert finetune(recipe).packed
        return
    with pytest.raises(UsageError, match=said):
        finetune(recipe)


def test_a_recipe_gives_the_settings_that_it_says() -> None:
    for settings in ({}, {"length": "medium"}):
        recipe = make_recipe("summarization", Path("model"), Path("rows.jsonl"), settings=settings)
        assert explicitly_set(open_task(recipe).settings) == list(settings)


def test_a_tuned_model_is_asked_as_it_was_taught(
    checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"document": "The fox.", "summary": "Fox."}])
    model = checkpoint("llama", chat=True, max_position_embeddings=1024)
    train = {"output_dir": str(tmp_path / "out"), "max_steps": 1}
    prompt, settings = {"system": "The lazy dog."}, {"length": "short"}
    finetune(make_recipe("summarization", model, rows, train=train, prompt=prompt, settings=settings))
    out = str(tmp_path / "out")
    pipeline = llmkit.load("summarize", out, offline=True)
    assert (pipeline.task.settings.length, pipeline.prompt_options.system) == ("short", "The lazy dog.")
    with caplog.at_level("INFO"):
        assert llmkit.load("summarize", out, offline=True, length="long").task.settings.length == "long"
        assert "was tuned with length=short" in caplog.text
        assert llmkit.load("summarize", out, offline=True, length="medium").task.settings.length == "medium"
        llmkit.load("generate", out, offline=True)
        assert "was tuned for summarization" in caplog.text
    (tmp_path / "out" / "llmkit.json").write_text('{"version": 3}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="has version 3"):
        llmkit.load("summarize", out, offline=True)


def test_the_command(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": f"The fox {number}."} for number in range(8)])
    text = f"""\
version: 1
task: text-generation
model: {{name_or_path: '{checkpoint("llama")}', offline: true, device: cpu}}
adapter: {{peft_type: LORA}}
data: {{train: {rows.name}, validation_fraction: 0.25}}
train: {{output_dir: out, max_steps: 3, logging_steps: 1, report_to: []}}
"""
    Path("a.yaml").write_text(text, encoding="utf-8")
    assert main(["finetune", "a.yaml"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "out\n"
    lines = captured.err.splitlines()
    assert [line.split(" (")[0] for line in lines if " of 3 updates" in line] == [
        "llmkit: 1 of 3 updates",
        "llmkit: 3 of 3 updates",
    ]
    assert any(
        line.startswith("llmkit: trained for 3 updates in 0:0") and "best validation loss" in line for line in lines
    )
    assert lines[-2:] == [
        'llmkit: try it: llmkit generate "TEXT" --model out',
        "llmkit: evaluate it: llmkit evaluate out",
    ]
    assert "train: 6 rows, 6 examples" in captured.err
    log = [json.loads(line) for line in Path("out/log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3]
    assert any("eval_loss" in entry for entry in log)
    assert main(["generate", "--model", "out", "--max-new-tokens", "4", "--offline", "The fox"]) == 0


@pytest.mark.parametrize("tied", [True, False])
def test_new_tokens_are_trained_and_saved_with_the_adapter(tied: bool, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The rest of the embeddings stays, and the adapter brings no copy of it."""
    import torch
    from safetensors.torch import load_file

    model = checkpoint("llama", max_position_embeddings=512, tie_word_embeddings=tied)
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "<new> The", "completion": "fox <new>"}] * 4)
    train = {
        "output_dir": str(tmp_path / "out"),
        "max_steps": 2,
        "learning_rate": 0.1,
        "save_strategy": "no",
        "bf16": False,
    }
    adapter = {"peft_type": "LORA"}
    recipe = make_recipe(
        "text-generation", model, rows, train=train, adapter=adapter, tokenizer={"add_tokens": ["<new>"]}
    )
    trainer = finetune(recipe)
    kept = load_file(tmp_path / "out" / "adapter_model.safetensors")
    before = load_file(Path(model) / "model.safetensors")["model.embed_tokens.weight"]
    assert not [name for name, each in kept.items() if each.shape[0] >= before.shape[0]]
    pipeline = llmkit.load("generate", str(tmp_path / "out"), offline=True, device="cpu", dtype="float32")
    (new,) = pipeline.loaded.tokenizer("<new>", add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[3, new, 4]])
    with torch.no_grad():
        mine, theirs = (each.eval()(input_ids=ids).logits for each in (trainer.model, pipeline.loaded.model))
    torch.testing.assert_close(mine, theirs)
    merged = tmp_path / "merged"
    assert main(["merge", str(tmp_path / "out"), "-o", str(merged), "--offline"]) == 0
    alone = llmkit.load("generate", str(merged), offline=True, device="cpu", dtype="float32")
    with torch.no_grad():
        torch.testing.assert_close(alone.loaded.model(input_ids=ids).logits, theirs, rtol=1e-4, atol=1e-4)


def test_the_best_model_is_chosen_by_the_tasks_figure(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """As llmkit evaluate gives it for the checkpoint that is kept."""
    rows = write_rows(
        tmp_path / "rows.jsonl", [{"question": "Who?", "context": "The fox jumps.", "answers": "fox"}] * 6
    )
    train = {"output_dir": str(tmp_path / "out"), "max_steps": 4, "learning_rate": 0.01, "load_best_model_at_end": True}
    train |= {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "best", "metric_for_best_model": "f1"}
    data = {"validation": str(rows)}
    with pytest.raises(UsageError, match="does not have the metric bleu; use eval_loss, exact_match, f1"):
        finetune(
            make_recipe(
                "question-answering",
                checkpoint("bert"),
                rows,
                data=data,
                train=train | {"metric_for_best_model": "bleu"},
            )
        )
    trainer = finetune(make_recipe("question-answering", checkpoint("bert"), rows, data=data, train=train))
    found = [(entry["step"], entry["eval_f1"]) for entry in trainer.progress.log if "eval_f1" in entry]
    assert len(found) == 4
    best = max(value for _, value in found)
    assert trainer.progress.best_metric == best
    assert trainer.progress.best_step == next(step for step, value in found if value == best)
    command = ["evaluate", "--task", "answer", "--model", str(tmp_path / "out"), "--data", str(rows), "--offline"]
    assert main([*command, "-o", str(tmp_path / "figures"), "--device", "cpu", "--dtype", "float32"]) == 0
    figures = json.loads((tmp_path / "figures" / "metrics.json").read_text(encoding="utf-8"))["figures"]
    assert figures["f1"]["value"] == pytest.approx(best)


def test_the_best_model_is_kept_though_it_is_not_saved_at_its_update(checkpoint: Checkpoint, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": "The quick fox."}, {"text": "A lazy dog jumps."}] * 4)
    train = {"output_dir": str(tmp_path / "out"), "max_steps": 4, "learning_rate": 3.0, "load_best_model_at_end": True}
    train |= {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "no", "lr_scheduler_type": "constant"}
    data = {"validation": str(rows)}
    trainer = finetune(make_recipe("text-generation", checkpoint("llama"), rows, data=data, train=train))
    best = trainer.progress.best_metric
    assert best is not None
    assert best < trainer.progress.log[-1]["eval_loss"]  # at such a learning rate
    assert trainer.evaluate() == {"loss": pytest.approx(best)}


def test_a_generating_model_is_judged_while_it_is_trained(checkpoint: Checkpoint, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"document": "The fox.", "summary": "Fox."}] * 4)
    train = {"output_dir": str(tmp_path / "out"), "max_steps": 2, "metric_for_best_model": "rougeL"}
    model = checkpoint("llama", chat=True, max_position_embeddings=1024)
    recipe = make_recipe(
        "summarization", model, rows, data={"validation": str(rows)}, train=train, adapter={"peft_type": "LORA"}
    )
    trainer = finetune(recipe)
    assert any("eval_rougeL" in entry for entry in trainer.progress.log)
    assert "best_eval_rougeL" in json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))


def test_another_base_model_is_not_resumed(checkpoint: Checkpoint, tmp_path: Path) -> None:
    base = shutil.copytree(checkpoint("llama", chat=True), tmp_path / "base")
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": f"The {n}", "completion": "fox"} for n in range(8)])
    train = {"output_dir": str(tmp_path / "out"), "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    recipe = make_recipe("text-generation", base, rows, train={**train, "bf16": False}, data={"num_proc": 1})
    updates: list[int] = []

    def stop() -> bool:
        updates.append(1)
        return len(updates) == 2

    finetune(recipe, should_stop=stop)
    resolved = (tmp_path / "out" / "resolved.yaml").read_text(encoding="utf-8")
    assert "model.safetensors: " in resolved
    for name in ("generation_config.json", "chat_template.jinja"):
        before = (base / name).read_text(encoding="utf-8")
        (base / name).write_text(f"{before} ", encoding="utf-8")
        with pytest.raises(UsageError, match=rf"base model \({name}\) changed"):
            finetune(recipe, resume=True)
        (base / name).write_text(before, encoding="utf-8")
    assert finetune(recipe, resume=True).progress.step == 4


def test_a_run_that_is_killed_among_the_moves_of_its_result_begins_again(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "The", "completion": "fox"}] * 2)
    train = {"output_dir": str(tmp_path / "out"), "max_steps": 1, "save_strategy": "no", "bf16": False}
    recipe = make_recipe("text-generation", checkpoint("llama"), rows, train=train)
    replace_file = Path.replace
    moved: list[Path] = []

    def killed(path: Path, place: Path) -> Path:
        if path.parent.name == ".building-result":
            if len(moved) == 2:
                raise SystemExit(137)
            moved.append(place)
        return replace_file(path, place)

    def died(_: Any) -> None:
        raise RuntimeError("before the first update")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(SystemExit):
            finetune(recipe)
    assert all(place.exists() for place in moved)
    for _ in range(2):
        with monkeypatch.context() as patched:
            patched.setattr("llmkit.training.loop.Trainer.run", died)
            with pytest.raises(RuntimeError):
                finetune(recipe)
    finetune(recipe)
    assert not (tmp_path / "out" / ".building-result").exists()


def test_another_version_of_llmkit_resumes_if_it_makes_the_same_examples(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": f"The {n}", "completion": "fox"} for n in range(8)])
    train = {"output_dir": str(tmp_path / "out"), "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    recipe = make_recipe("text-generation", checkpoint("llama"), rows, train={**train, "bf16": False})
    finetune(recipe)
    expected = _files(tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "checkpoint-4")
    for module in ("row_table", "dataset"):
        monkeypatch.setattr(f"llmkit.training.{module}.code_version", lambda: "another")
    with monkeypatch.context() as patched:
        patched.setattr("llmkit.training.dataset.code_version", lambda: "a third")
        encode = Encoder.encode
        patched.setattr(
            Encoder, "encode", lambda self, row: encode(self, {**row, "completion": f"{row['completion']} jumps"})
        )
        with pytest.raises(UsageError, match=r"the way llmkit prepares rows changed since .*resume with the version"):
            finetune(recipe, resume=True)
    assert finetune(recipe, resume=True).progress.step == 4
    assert _files(tmp_path / "out") == expected


def _files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.suffix == ".safetensors"}


def test_a_full_disk_leaves_nothing_half_and_the_run_goes_on(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """At the first checkpoint, and at the result, which is written after update 5."""
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": f"The fox {number}."} for number in range(8)])
    train = {"max_steps": 5, "save_strategy": "steps", "save_steps": 2, "bf16": False, "logging_steps": 1}

    def run(out: Path, *, full_at: int | None = None, resume: bool = False) -> None:
        def on_log(measured: Any) -> None:
            if measured.step == full_at:
                resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))

        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        recipe = make_recipe("text-generation", checkpoint("gpt2"), rows, train={**train, "output_dir": str(out)})
        try:
            finetune(recipe, resume=resume, on_log=on_log)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    run(whole := tmp_path / "whole")
    for full_at, saved in ((2, set()), (5, {"checkpoint-2", "checkpoint-4"})):
        out = tmp_path / f"full at {full_at}"
        with pytest.raises(NotEnoughMemoryError, match=r"File too large\); make room there, and continue"):
            run(out, full_at=full_at)
        assert {path.name for path in out.iterdir()} == {*saved, "resolved.yaml"}
        run(out, resume=True)
        assert _files(out) == _files(whole)
        assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()}


def test_a_disk_that_is_full_for_the_state_alone_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    """Where torch writes, which says nothing of the disk: 'enforce fail at inline_container'."""
    weight, state = torch.nn.Parameter(torch.ones(3)), {"state": torch.zeros(5000)}
    scheduler = torch.optim.lr_scheduler.ConstantLR(torch.optim.SGD([weight]))
    first = save_checkpoint(tmp_path, Progress(1), {"w": weight}, state, scheduler, [])
    with (
        pytest.raises(NotEnoughMemoryError, match="File too large"),
        disk_errors(tmp_path, "and go on with `resume`"),
        files_of_at_most(10_000),
    ):
        save_checkpoint(tmp_path, Progress(2), {"w": weight}, state, scheduler, [])
    assert list(tmp_path.iterdir()) == [first]


def test_memory_that_runs_out_is_one_line(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU torch raises a RuntimeError that speaks of its allocator."""

    def allocate(*_: object) -> None:
        torch.empty(2**45, dtype=torch.int8)

    monkeypatch.setattr("llmkit.training.loop.Trainer.run", allocate)
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": "The fox."}])
    recipe = make_recipe("text-generation", checkpoint("llama"), rows, train={"output_dir": str(tmp_path / "out")})
    with pytest.raises(NotEnoughMemoryError, match="memory ran out in training; lower"):
        finetune(recipe)


def test_what_a_killed_run_left_is_removed_when_it_goes_on(checkpoint: Checkpoint, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": f"The fox {number}."} for number in range(8)])
    out = tmp_path / "out"
    for name in (".building-checkpoint-7", ".building-checkpoint-1-99", ".building-result"):
        (out / name).mkdir(parents=True)
        (out / name / "weights").touch()
    (out / "resolved.yaml.tmp").touch()
    finetune(make_recipe("text-generation", checkpoint("gpt2"), rows, train={"output_dir": str(out), "max_steps": 1}))
    assert not [path.name for path in out.iterdir() if path.name.startswith(".") or path.name.endswith(".tmp")]


@pytest.mark.parametrize("name", ["trained.safetensors", "state.pt", "progress.json", "hashes.json"])
def test_a_damaged_checkpoint_is_passed_over(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    for step in (1, 2):
        save_checkpoint(tmp_path, Progress(step), {"w": weight}, optimizer.state_dict(), scheduler, [random_state()])
    found = checkpoints(tmp_path)
    assert last_intact(found) == found[-1]
    damaged = bytearray((found[-1] / name).read_bytes())
    damaged[len(damaged) // 2] ^= 4
    (found[-1] / name).write_bytes(damaged)
    assert last_intact(found) == found[0]
    assert "checkpoint-2 is damaged" in caplog.text
    shutil.rmtree(found[0])
    with pytest.raises(CheckpointError, match="checkpoint-2 is damaged, and no earlier checkpoint exists"):
        last_intact(found[1:])
