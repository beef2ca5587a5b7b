"""A merged model is the adapter on its base, in plain Transformers; what cannot be merged is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import llmkit
from llmkit.cli.app import main
from llmkit.errors import CheckpointError, UsageError
from llmkit.training.merge import merge
from llmkit.training.run import finetune
from tests.conftest import Checkpoint
from tests.training.recipes import make_recipe, write_rows

TASKS = {
    "llama": ("summarization", {"document": "The fox.", "summary": "Fox."}),
    "t5": ("summarization", {"document": "The fox.", "summary": "Fox."}),
    "bert": ("question-answering", {"question": "Who?", "context": "The fox jumps.", "answers": "fox"}),
}


def tuned(family: str, checkpoint: Checkpoint, folder: Path, **adapter: Any) -> Path:
    """An adapter after a few large steps, so that merging it matters."""
    task, row = TASKS[family]
    folder.mkdir(exist_ok=True)
    rows = write_rows(folder / "rows.jsonl", [row] * 4)
    train = {"output_dir": str(folder / "tuned"), "max_steps": 3, "learning_rate": 0.05, "save_strategy": "no"}
    section = adapter if "peft_type" in adapter else {"peft_type": "LORA", "target_modules": "all-linear"} | adapter
    wide = {"max_position_embeddings": 512} if family == "llama" else {}
    recipe = make_recipe(task, checkpoint(family, **wide), rows, train=train, adapter=section)
    finetune(recipe)
    return folder / "tuned"


@pytest.mark.parametrize(("family", "more"), [("llama", {"use_dora": True}), ("t5", {}), ("bert", {})])
def test_it_is_the_adapter_on_its_base(
    family: str, more: dict[str, Any], checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import peft
    import transformers

    adapter = tuned(family, checkpoint, tmp_path, **more)
    capsys.readouterr()
    assert main(["merge", str(adapter), "-o", str(tmp_path / "merged"), "--offline"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'merged'}\n"
    heads = {"llama": "CausalLM", "t5": "Seq2SeqLM", "bert": "QuestionAnswering"}
    kind = getattr(transformers, f"AutoModelFor{heads[family]}")
    base_folder = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    alone = kind.from_pretrained(tmp_path / "merged")
    torch.manual_seed(0)  # the head of a span model is new, and saved with the adapter
    together = peft.PeftModel.from_pretrained(kind.from_pretrained(base_folder), str(adapter)).eval()
    ids = torch.arange(3, 13)[None]
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if family == "t5" else {})
    with torch.no_grad():
        one, other = (model(**inputs) for model in (alone.eval(), together))
    for mine, theirs in zip(one.to_tuple()[:1], other.to_tuple()[:1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert alone.dtype == torch.float32
    task, row = TASKS[family]
    pipeline = llmkit.load(task, str(tmp_path / "merged"), offline=True, device="cpu")
    assert isinstance(pipeline(row if family == "bert" else row["document"]).text, str)
    assert main(["merge", str(adapter), "-o", str(tmp_path / "merged"), "--offline"]) == 2


@pytest.mark.parametrize(
    ("family", "peft_type"), [("llama", "DELORA"), ("llama", "LILY"), ("t5", "VERA"), ("bert", "LOHA")]
)
def test_other_methods_of_peft_train_and_merge_where_peft_can(
    family: str, peft_type: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """A run loads its result again and compares the logits; so does merging."""
    adapter = tuned(family, checkpoint, tmp_path, peft_type=peft_type)
    assert json.loads((adapter / "adapter_config.json").read_text())["peft_type"] == peft_type
    if peft_type == "LILY":
        with pytest.raises(UsageError, match="PEFT cannot merge LILY into this model"):
            merge(str(adapter), tmp_path / "merged")
        return
    merge(str(adapter), tmp_path / "merged")
    assert not (tmp_path / "merged" / "adapter_config.json").exists()


def test_the_type_of_the_base_is_kept(checkpoint: Checkpoint, tmp_path: Path) -> None:
    adapter = tuned("llama", checkpoint, tmp_path)
    base = Path(json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"])
    half = tmp_path / "half"
    half.mkdir()
    for path in base.iterdir():
        (half / path.name).write_bytes(path.read_bytes())
    weights = {name: each.to(torch.bfloat16) for name, each in load_file(half / "model.safetensors").items()}
    save_file(weights, half / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((half / "config.json").read_text()) | {"dtype": "bfloat16"}
    (half / "config.json").write_text(json.dumps(config))
    described = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(half)}
    (adapter / "adapter_config.json").write_text(json.dumps(described))
    assert merge(str(adapter), tmp_path / "merged").dtype == "bfloat16"
    kept = load_file(tmp_path / "merged" / "model.safetensors")
    assert {name: (each.shape, each.dtype) for name, each in kept.items()} == {
        name: (each.shape, each.dtype) for name, each in weights.items()
    }


def test_what_cannot_be_merged_is_refused(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="is not a PEFT adapter"):
        merge(str(checkpoint("llama")), tmp_path / "merged")
    prompts = tuned("llama", checkpoint, tmp_path / "a", peft_type="PROMPT_TUNING", num_virtual_tokens=4)
    with pytest.raises(UsageError, match="PROMPT_TUNING adds virtual tokens"):
        merge(str(prompts), tmp_path / "merged")
    adapter = tuned("llama", checkpoint, tmp_path / "b")
    monkeypatch.setattr("peft.tuners.lora.layer.Linear.get_delta_weight", lambda *_: torch.zeros(()))
    with pytest.raises(CheckpointError, match="merging changes what the model computes"):
        merge(str(adapter), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
