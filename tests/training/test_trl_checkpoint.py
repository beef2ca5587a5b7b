"""Checkpoints written by TRL that are continued: equal to TRL's own run, as it would go on itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmkit.training.run import finetune
from tests.conftest import Checkpoint
from tests.training.recipes import make_recipe, write_rows
from tests.training.test_trainer_checkpoint import TRAIN, weights

LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}


def rows(names: tuple[str, ...]) -> list[dict[str, Any]]:
    texts = [{"prompt": "The fox", "chosen": "jumps " * (n % 3 + 1), "rejected": f"asks {n} dogs"} for n in range(8)]
    return [{names[0]: row["prompt"], names[1]: row["chosen"], **({names[2]: row["rejected"]} if names[2:] else {})}
            for row in texts]  # fmt: skip


def as_messages(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: [{"role": "user" if name == "prompt" else "assistant", "content": text}] for name, text in row.items()
    }


def _as_older_versions_save(folder: Path) -> None:
    """Weights in a pickle; that of the arguments is never loaded."""
    (path,) = folder.glob("*model.safetensors")
    name = "adapter_model.bin" if path.name.startswith("adapter") else "pytorch_model.bin"
    torch.save(load_file(path), folder / name)
    path.unlink()
    (folder / "training_args.bin").write_bytes(b"not a pickle")


@pytest.mark.parametrize(("kind", "adapter"), [("SFT", LORA), ("SFT", None), ("DPO", LORA)])
def test_a_run_of_trl_continues_as_it_would_itself(
    kind: str, adapter: dict[str, Any] | None, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    import peft
    import trl
    from datasets import Dataset

    model = checkpoint("llama", chat=True)
    lines = rows(("prompt", "completion") if kind == "SFT" else ("prompt", "chosen", "rejected"))
    options: dict[str, Any] = TRAIN | {
        "activation_checkpointing": False,
        "save_steps": 3,
        "logging_steps": 1,
        "use_cpu": True,
        "report_to": "none",
    }
    options |= {"max_length": None, "disable_tqdm": True, "bf16": False}
    arguments = getattr(trl, f"{kind}Config")(output_dir=str(tmp_path / "theirs"), **options)
    given = {} if adapter is None else {"peft_config": peft.LoraConfig(**adapter, task_type="CAUSAL_LM")}
    theirs: Any = getattr(trl, f"{kind}Trainer")(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=arguments,
        train_dataset=Dataset.from_list(list(map(as_messages, lines))),
        processing_class=AutoTokenizer.from_pretrained(model),
        **given,
    )
    theirs.train()
    (tmp_path / "theirs" / "checkpoint-6").rename(tmp_path / "ended")
    if kind == "DPO" or adapter is None:
        _as_older_versions_save(tmp_path / "theirs" / "checkpoint-3")
    sections: dict[str, Any] = {} if adapter is None else {"adapter": {"peft_type": "LORA", **adapter}}
    sections |= {} if kind == "SFT" else {"method": {"name": "dpo"}}
    train = TRAIN | {"resume_from_checkpoint": str(tmp_path / "theirs"), "save_strategy": "no", "logging_steps": 1}
    train |= {"output_dir": str(tmp_path / "ours"), "bf16": False}
    finetune(make_recipe("dialogue", model, write_rows(tmp_path / "rows.jsonl", lines), train=train, **sections))
    torch.testing.assert_close(weights(tmp_path / "ours"), weights(tmp_path / "ended"), rtol=0, atol=2e-6)
