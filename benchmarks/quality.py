"""Whether tuning works: each recipe in ``benchmarks/quality`` is trained, and its result judged by ``llmkit evaluate``.

    python benchmarks/quality.py DATA [NAME …]

``DATA`` is a folder with the public sets that the recipes name. What a run prints is a line of ``quality.md``; recipe,
losses, answers and figures are left in ``benchmarks/quality/runs``, and a run that is there already is only judged.
Minutes are those of training alone.

``tatoeba-marian`` is trained by Transformers' Seq2SeqTrainer too, from the same random weights, on the same examples,
with as many updates, and both results are judged by the same command. ``shakespeare`` is two runs: pretraining on the
text, then fine-tuning on its speeches and the replies to them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RECIPES = HERE / "quality"

JUDGED: dict[str, list[str]] = {
    "minilm-squad": [],
    "minilm-squad-lora": [],
    "scitldr-lora": ["--baseline", "starter"],
    "squad-lora": ["--baseline", "starter", "--max-rows", "300"],
    "sgd-lora": ["--baseline", "starter", "--max-rows", "200", "--max-new-tokens", "48"],
    "csl-lora": ["--baseline", "starter", "--max-rows", "100"],
    "tatoeba-marian": [],
}
"""How the result of a recipe is judged."""


def run(command: Iterable[str]) -> None:
    words = [sys.executable, "-m", "llmkit", *command]
    print("$ llmkit", *words[3:], file=sys.stderr, flush=True)
    subprocess.run(words, cwd=RECIPES, check=True, stdout=subprocess.DEVNULL)


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def train(name: str) -> dict[str, Any]:
    """Train by a recipe, unless that is done; what was measured."""
    out = RECIPES / "runs" / name
    if not (out / "metrics.json").exists():
        resumed = ["--resume"] if any(out.glob("checkpoint-*")) else []
        run(["finetune", f"{name}.yaml", *resumed])
    return read(out / "metrics.json")


def judge(name: str, model: str, options: Iterable[str]) -> dict[str, Any]:
    """The figures of a model on the validation rows of a recipe."""
    folder = Path("runs") / f"{Path(model).name}-judged"
    resumed = ["--resume"] if (RECIPES / folder).exists() else []
    if not (RECIPES / folder / "metrics.json").exists():
        run(["evaluate", f"{name}.yaml", "--model", model, "-o", str(folder), *options, *resumed])
    return read(RECIPES / folder / "metrics.json")


def figures(found: dict[str, Any]) -> str:
    """As a cell of a table, the other model's behind."""
    other = found.get("baseline", {}).get("figures", {})
    cells = []
    for name, one in found["figures"].items():
        text = f"{name} {one['value']:.2f} [{one['low']:.2f}, {one['high']:.2f}]"
        if name in other:
            text += f" from {other[name]['value']:.2f}, p = {one['p_value']:.4f}"
        cells.append(text)
    trivial = found.get("trivial", {})
    cells += [f"{name}: {key} {value:.2f}" for name, each in trivial.items() for key, value in each.items()]
    return "; ".join(cells)


def line(name: str, metrics: dict[str, Any], found: dict[str, Any]) -> str:
    rate = f"{metrics['updates']} updates, {metrics['tokens_per_second']:.0f} tokens/s"
    return f"| {name} | {metrics['train_seconds'] / 60:.1f} ({rate}) | {found['rows']} | {figures(found)} |"


def tuned(name: str) -> Iterable[str]:
    yield line(name, train(name), judge(name, f"runs/{name}", JUDGED[name]))


def translated(name: str) -> Iterable[str]:
    yield from tuned(name)
    peer = RECIPES / "runs" / f"{name}-seq2seq-trainer"
    if not (peer / "metrics.json").exists():
        seq2seq_trainer(name, peer)
    yield line(peer.name, read(peer / "metrics.json"), judge(name, f"runs/{peer.name}", JUDGED[name]))


def seq2seq_trainer(name: str, out: Path) -> None:
    """What the example script of Transformers does, on the examples that llmkit makes of the recipe."""
    import torch
    from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

    from llmkit.config.recipe_file import load_recipe
    from llmkit.inference.tuned_config import CONTRACT_FILE
    from llmkit.training.dataset import make_examples
    from llmkit.training.encoding import make_encoder
    from llmkit.training.recipe_model import open_model, open_task

    recipe = load_recipe(str(RECIPES / f"{name}.yaml"))
    task, settings = open_task(recipe), recipe.train
    encoder = make_encoder(recipe, task, open_model(recipe, task, weights=False))
    examples = make_examples(recipe, encoder).train.examples.select_columns(["input_ids", "labels"])
    examples = examples.map(lambda row: {"attention_mask": [1] * len(row["input_ids"])})
    torch.manual_seed(settings.seed)
    loaded = open_model(recipe, task, weights=True, dtype="float32")
    updates = read(RECIPES / "runs" / name / "metrics.json")["updates"]
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(out),
        max_steps=updates,
        per_device_train_batch_size=settings.per_device_train_batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler_type,
        warmup_steps=settings.warmup_steps,
        label_smoothing_factor=settings.label_smoothing_factor,
        train_sampling_strategy=settings.train_sampling_strategy,
        optim=settings.optim,
        seed=settings.seed,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    model: Any = loaded.model.train()
    trainer = Seq2SeqTrainer(
        model,
        args=arguments,
        train_dataset=examples,
        data_collator=DataCollatorForSeq2Seq(loaded.tokenizer, model=model),
        processing_class=loaded.tokenizer,
    )
    begun = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - begun
    model.save_pretrained(out)
    loaded.tokenizer.save_pretrained(out)
    # How it is asked, as the other one is.
    shutil.copy(RECIPES / "runs" / name / CONTRACT_FILE, out / CONTRACT_FILE)
    passes = updates * settings.per_device_train_batch_size / len(examples)
    tokens = passes * sum(max(len(row["input_ids"]), len(row["labels"])) for row in examples)
    measured = {"updates": updates, "train_seconds": seconds, "tokens_per_second": tokens / seconds}
    (out / "metrics.json").write_text(json.dumps(measured), encoding="utf-8")


def shakespeare(name: str) -> Iterable[str]:
    """Two stages, and a sample of each."""
    speeches = RECIPES / "runs" / "speeches.jsonl"
    if not speeches.exists():
        text = (RECIPES / "data" / "shakespeare" / "input.txt").read_text(encoding="utf-8")
        parts = [part.strip() for part in text.split("\n\n")]
        rows = [{"prompt": f"{one}\n\n", "completion": other} for one, other in pairwise(parts)]
        speeches.parent.mkdir(exist_ok=True)
        speeches.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    for stage in (f"{name}-pretrained", f"{name}-finetuned"):
        metrics = train(stage)
        found = judge(stage, f"runs/{stage}", ["--max-rows", "200", "--max-new-tokens", "1"])
        loss = f"loss {metrics['train_loss']:.3f}, on held-back text {metrics['eval_loss']:.3f}"
        perplexity = found["figures"]["perplexity"]
        yield line(stage, metrics, {**found, "figures": {"perplexity": perplexity}}) + f" {loss} |"
        words = [
            "generate",
            "--model",
            f"runs/{stage}",
            "--max-new-tokens",
            "80",
            "--seed",
            "1",
            "--temperature",
            "0.8",
        ]
        said = subprocess.run(
            [sys.executable, "-m", "llmkit", *words, "ROMEO:\nWhat say you, friend?\n\n"],
            cwd=RECIPES,
            check=True,
            capture_output=True,
            text=True,
        )
        yield f"\n{stage}:\n\n" + "\n".join(f"> {row}" for row in said.stdout.splitlines())


RUNS = {**dict.fromkeys(JUDGED, tuned), "tatoeba-marian": translated, "shakespeare": shakespeare}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("names", nargs="*", choices=[[], *RUNS], metavar="NAME")
    given = parser.parse_args()
    link = RECIPES / "data"
    if not link.exists():
        link.symlink_to(given.data.resolve())
    for name in given.names or RUNS:
        for said in RUNS[name](name):
            print(said, flush=True)


if __name__ == "__main__":
    main()
