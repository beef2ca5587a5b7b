"""DPO, ORPO and KTO against TRL's trainers: the same rows, order and hyperparameters, on a tiny Llama.

    python -m benchmarks.preference [CASE …]

Both sides make 30 updates in float32 on a CPU. Compared are the loss and what both log with it, at every update:
rewards, their margins and accuracies, log-probabilities. Prints a table of Markdown (``benchmarks/preference.md``);
needs TRL 1.16 (`pip install -e '.[dev]'`).
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

UPDATES, BATCH = 30, 4
TRAIN: dict[str, Any] = {
    "learning_rate": 2e-3,
    "max_steps": UPDATES,
    "logging_steps": 1,
    "save_strategy": "no",
    "bf16": False,
}
TRAIN |= {"per_device_train_batch_size": BATCH, "train_sampling_strategy": "sequential"}
LORA: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
TYPES = (
    "sigmoid",
    "sigmoid_norm",
    "hinge",
    "ipo",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "discopop",
)
CASES: dict[str, dict[str, Any]] = {
    **{f"dpo, {kind}": {"name": "dpo", "loss_type": kind} for kind in TYPES},
    "dpo, robust": {"name": "dpo", "loss_type": "robust", "label_smoothing": 0.1},
    "dpo, exo_pair": {"name": "dpo", "loss_type": "exo_pair", "label_smoothing": 1e-3},
    "dpo, sigmoid + sft": {"name": "dpo", "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
    "dpo, ld_alpha": {"name": "dpo", "ld_alpha": 0.5},
    "dpo, LoRA": {"name": "dpo"},
    "dpo, continued adapter": {"name": "dpo"},
    "orpo": {"name": "orpo"},
    "kto": {"name": "kto", "desirable_weight": 1.2},
    "kto, apo_zero_unpaired": {"name": "kto", "loss_type": "apo_zero_unpaired"},
    "kto, LoRA": {"name": "kto"},
}


def rows() -> list[dict[str, str]]:
    """Pairs with answers of different lengths."""
    fox = "The quick brown fox jumps over "
    return [
        {
            "prompt": fox + "the lazy dog. " * (number % 4 + 1),
            "chosen": f"It is {number} dogs. " * (number % 3 + 1),
            "rejected": f"What is the {'meaning ' * (number % 5)}of {number}?",
        }
        for number in range(48)
    ]


def labelled(pairs: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Answers with labels, of which both kinds are in each batch."""
    return [
        {"prompt": row["prompt"], "completion": row["chosen" if good else "rejected"], "label": good}
        for number, row in enumerate(pairs)
        for good in (number % 2 == 0,)
    ]


def of_llmkit(model: Path, data: Path, folder: Path, method: Mapping[str, Any], adapter: Any) -> list[dict[str, float]]:
    from llmkit.config.recipe import recipe_adapter
    from llmkit.training.run import finetune

    content: dict[str, Any] = {
        "version": 1,
        "task": "dialogue",
        "model": {"name_or_path": str(model), "offline": True, "device": "cpu"},
        "method": dict(method),
        "data": {"train": str(data)},
        "train": {**TRAIN, "output_dir": str(folder), "eval_strategy": "no", "optim": "adamw_torch"},
    }
    if adapter is not None:
        content["adapter"] = {"peft_type": "LORA", **adapter}
    return finetune(recipe_adapter(content).validate_python(content)).progress.log


def of_trl(
    model: Path, data: list[dict[str, Any]], folder: Path, method: Mapping[str, Any], adapter: Any
) -> list[dict[str, float]]:
    import peft
    import torch
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    settings = {name: value for name, value in method.items() if name != "name"}
    options = {
        **TRAIN,
        **settings,
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": "none",
        "optim": "adamw_torch",
    }
    options |= {
        "gradient_checkpointing": False,
        "max_length": None,
        "lr_scheduler_type": "linear",
        "disable_tqdm": True,
    }
    kinds: dict[str, tuple[Any, Any]] = {"dpo": (trl.DPOTrainer, trl.DPOConfig), "kto": (trl.KTOTrainer, trl.KTOConfig)}
    if method["name"] == "orpo":
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        kinds["orpo"] = (ORPOTrainer, ORPOConfig)
        options["max_length"] = 512
    trainer, config = kinds[method["name"]]
    base = model
    continued = (model / "adapter_config.json").is_file()
    if continued:
        base = Path(json.loads((model / "adapter_config.json").read_text())["base_model_name_or_path"])
    loaded: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if continued:
        loaded = peft.PeftModel.from_pretrained(loaded, str(model), is_trainable=True)
    given = {"peft_config": peft.LoraConfig(**adapter, task_type="CAUSAL_LM")} if adapter is not None else {}
    table = Dataset.from_list([_as_messages(row) for row in data])
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # as ORPOTrainer requires
    if method["name"] == "orpo":
        tokenizer.bos_token = None  # which ORPOTrainer would put in front of the template's text
    made = trainer(model=loaded, args=config(**options), train_dataset=table, processing_class=tokenizer, **given)
    with contextlib.redirect_stdout(io.StringIO()):  # its log
        made.train()
    return [entry for entry in made.state.log_history if "loss" in entry]


def _as_messages(row: Mapping[str, Any]) -> dict[str, Any]:
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant", "completion": "assistant"}
    return {name: [{"role": roles[name], "content": value}] if name in roles else value for name, value in row.items()}


def untrained_adapter(model: Path, folder: Path) -> Path:
    """An adapter that changes the output, as if it had been trained."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(1)
    config = peft.LoraConfig(**LORA, init_lora_weights=False, task_type="CAUSAL_LM")
    made = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), config)
    made.save_pretrained(str(folder))
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def compare(name: str, model: Path, folder: Path) -> dict[str, float]:
    """The largest difference of each measure over all updates."""
    method, adapter = CASES[name], LORA if name.endswith("LoRA") else None
    if "continued" in name:
        model = untrained_adapter(model, folder / "adapter")
    data = labelled(rows()) if method["name"] == "kto" else rows()
    path = folder / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in data), encoding="utf-8")
    ours = of_llmkit(model, path, folder / "llmkit", method, adapter)
    theirs = of_trl(model, data, folder / "trl", method, adapter)
    assert len(ours) == len(theirs) == UPDATES
    measures = [key for key in ours[0] if key in theirs[0] and key not in ("step", "learning_rate", "epoch")]
    return {key: max(abs(one[key] - other[key]) for one, other in zip(ours, theirs, strict=True)) for key in measures}


def lines(names: list[str], model: Path) -> Iterator[str]:
    columns = (
        "loss",
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
        "logps/chosen",
        "kl",
        "grad_norm",
    )
    yield f"| case | {' | '.join(columns)} |"
    yield f"|---|{'---|' * len(columns)}"
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            found = compare(name, model, Path(folder))
        yield f"| {name} | {' | '.join(f'{found[each]:.0e}' if each in found else '–' for each in columns)} |"


def main() -> None:
    from tests import tiny

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        model = tiny.build("llama", Path(folder), chat=True, max_position_embeddings=512)
        for line in lines(sys.argv[1:] or list(CASES), model):
            print(line, flush=True)


if __name__ == "__main__":
    main()
