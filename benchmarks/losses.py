"""Losses and weights against TRL's SFTTrainer and GKDTrainer, in one run: DFT, NEFTune, the last reply, distillation.

    python -m benchmarks.losses

Both sides train all weights of the same untrained tiny Llama in float32, for 30 updates of two micro-batches (NEFTune:
of one, before which both seed the noise), on the same rows in the same order. TRL gets the ids and labels of llmkit,
but tokenizes the rows of the last reply itself. Prints a table of Markdown (``benchmarks/losses.md``).
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests import tiny
from tests.training.recipes import make_recipe, write_rows

UPDATES, SEED, ALPHA = 30, 42, 5.0
SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 256}
PAIRS = [
    {"prompt": f"The quick {number} " + "fox " * (number % 5), "completion": "jumps " * (number % 3 + 1)}
    for number in range(240)
]
CHATS = [
    {
        "messages": [
            {"role": role, "content": f"{role} {number} " + "fox " * ((number + place) % 4)}
            for place, role in enumerate(("user", "assistant") * 3)
        ]
    }
    for number in range(240)
]
Losses = tuple[list[float], dict[str, Any]]


def ours(task: str, model: Path, rows: list[dict[str, Any]], folder: Path, **sections: Any) -> tuple[Losses, Any]:
    """Losses and weights of llmkit, and its examples."""
    import torch
    from safetensors.torch import load_file

    from llmkit.training.run import finetune

    train = {
        "output_dir": str(folder / "out"), "max_steps": UPDATES, "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2, "learning_rate": 1e-3, "train_sampling_strategy": "sequential",
        "logging_steps": 1, "save_strategy": "no", "bf16": False, "seed": SEED, **sections.pop("train", {}),
    }  # fmt: skip
    path = write_rows(folder / "rows.jsonl", rows)
    steps = iter(range(1, UPDATES + 1))

    def seed() -> bool:
        torch.manual_seed(SEED + next(steps))
        return False

    trainer = finetune(make_recipe(task, model, path, train=train, **sections), should_stop=seed)
    losses = [entry["loss"] for entry in trainer.progress.log if "loss" in entry]
    return (losses, load_file(folder / "out" / "model.safetensors")), trainer.examples


def seeded() -> Any:
    """A callback that seeds the noise of each update as `ours` does."""
    import torch
    from transformers import TrainerCallback

    class Seeded(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 - upstream names
            torch.manual_seed(SEED + state.global_step)

    return Seeded()


def theirs(
    model: Path, lines: Sequence[dict[str, Any]], folder: Path, *, teacher: Path | None = None, **settings: Any
) -> Losses:
    """Losses and weights of TRL."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    usual = {
        "output_dir": str(folder / "trl"), "max_steps": UPDATES, "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2, "learning_rate": 1e-3, "train_sampling_strategy": "sequential",
        "logging_steps": 1, "save_strategy": "no", "bf16": False, "seed": SEED, "optim": "adamw_torch_fused",
        "report_to": [], "use_cpu": True, "disable_tqdm": True, "max_length": None, "gradient_checkpointing": False,
        "warmup_steps": 0, "weight_decay": 0.0, "lr_scheduler_type": "linear",
    }  # fmt: skip
    student: Any = AutoModelForCausalLM.from_pretrained(model, dtype="float32")
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    common: dict[str, Any] = {
        "train_dataset": Dataset.from_list(list(lines)),
        "processing_class": tokenizer,
        "callbacks": [seeded()],
    }
    if teacher is None:
        trainer: Any = SFTTrainer(student, args=SFTConfig(**{**usual, **settings}), **common)
    else:
        trainer = GKDTrainer(
            student,
            AutoModelForCausalLM.from_pretrained(teacher, dtype="float32"),
            args=GKDConfig(**{**usual, **settings}, lmbda=0.0),
            data_collator=collate,
            **common,
        )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, trainer.model.state_dict()


def collate(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch of ids and labels for GKDTrainer, padded on the right."""
    import torch

    def padded(name: str, value: int) -> torch.Tensor:
        rows = [torch.tensor(line[name]) for line in lines]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

    ids, labels = padded("input_ids", 0), padded("labels", -100)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(line["input_ids"])) for line in lines], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}


def untrained(folder: Path) -> Path:
    """A checkpoint with the weights that its class begins with; those of `tiny` are wider."""
    import torch
    from transformers import LlamaForCausalLM

    path = tiny.build("llama", folder, chat=True, **SIZES)
    torch.manual_seed(SEED)
    LlamaForCausalLM(LlamaForCausalLM.from_pretrained(path).config).save_pretrained(path)
    return path


def compared(folder: Path) -> dict[str, tuple[Losses, Losses]]:
    """Both sides of each comparison."""
    from transformers import AutoTokenizer

    model, teacher = (
        untrained(folder / "model"),
        tiny.build("llama", folder / "teacher", **SIZES | {"hidden_size": 128}),
    )
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    texts = [f"The fox {number}." for number in range(1000)]
    even = [{"text": text} for text in texts if len(tokenizer(text)["input_ids"]) == 5][:240]
    found: dict[str, tuple[Losses, Losses]] = {}

    def compare(
        name: str, task: str, rows: Any, sections: dict[str, Any], settings: dict[str, Any], lines: Any
    ) -> None:
        place = folder / str(len(found))
        place.mkdir()
        mine, examples = ours(task, model, rows, place, **sections)
        kept = ("input_ids", "labels")
        lines = lines or [{column: line[column] for column in kept} for line in examples]
        found[name] = mine, theirs(model, lines, place, **settings)

    pairs = ("text-generation", PAIRS)
    compare("cross entropy", *pairs, {}, {}, None)
    compare("`train.loss_type: dft`", *pairs, {"train": {"loss_type": "dft"}}, {"loss_type": "dft"}, None)
    noise = {"neftune_noise_alpha": ALPHA, "gradient_accumulation_steps": 1}
    compare("`train.neftune_noise_alpha`", "text-generation", even, {"train": noise}, noise, None)
    last = [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in CHATS]
    compare("`data.loss_on: last`", "dialogue", CHATS, {"data": {"loss_on": "last"}}, {}, last)
    for beta in (0.0, 0.5, 1.0):
        section = {
            "teacher": {"name_or_path": str(teacher), "kd_ratio": 1.0, "beta": beta},
            "data": {"max_length": 256},
        }
        compare(f"`teacher`, beta {beta}", *pairs, section, {"teacher": teacher, "beta": beta}, None)
    return found


def table(found: dict[str, tuple[Losses, Losses]]) -> str:
    lines = [
        "| loss | first update | last update | largest difference of a loss | of a weight |",
        "|---|---|---|---|---|",
    ]
    for name, ((mine, weights), (its, others)) in found.items():
        assert len(mine) == len(its) == UPDATES, name
        loss = max(abs(one - other) for one, other in zip(mine, its, strict=True))
        weight = max(float((each.float() - others[key].float()).abs().max()) for key, each in weights.items())
        lines.append(f"| {name} | {mine[0]:.4f} | {mine[-1]:.4f} | {loss:.1e} | {weight:.1e} |")
    return "\n".join(lines)


def main() -> None:
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        found = compared(Path(folder))
    print(table(found))


if __name__ == "__main__":
    main()
