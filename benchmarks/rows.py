"""Many rows: `pipeline.map` against ``transformers.pipeline(batch_size=8)``, and memory over a million rows.

    python benchmarks/rows.py speed [--rows 200] [--dtype float32] [--runs 1]
    python benchmarks/rows.py memory [--rows 1000000]

``speed``: mixed prompts of 10 to 1,000 tokens, taken from the licence text with questions that ask for short and for
long answers, in random (file) order; greedy, until the model ends its answer or has written 64 tokens. Both sides
use the same model object, tokenizer, chat template and stopping rules, and run in turn. Texts are compared too: in
float32 they are the same, in half precision a batch's composition changes the rounding.

``memory``: peak resident memory of whole processes that answer a thousand short rows and a million, from file to
file, with a model of a few thousand parameters.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
MAX_NEW_TOKENS = 64
QUESTIONS = (
    "Answer with yes or no: is this text about software?",
    "Which word comes first in this text? Answer with that word only.",
    "Who is the licensor? Answer in one short sentence.",
    "What may a user do? Answer in two sentences.",
    "Explain this text in detail.",
)


def prompts(count: int, tokenizer: Any) -> list[str]:
    """Prompts whose lengths are spread evenly on a logarithmic scale."""
    draw = random.Random(0)
    ids = tokenizer((ROOT / "LICENSE").read_text(encoding="utf-8"), verbose=False)["input_ids"]
    made = []
    for number in range(count):
        length = round(10 * 100 ** (number / (count - 1)))
        start = draw.randrange(len(ids) - length)
        question = draw.choice(QUESTIONS)
        room = max(0, length - len(tokenizer(question)["input_ids"]))
        made.append(f"{tokenizer.decode(ids[start : start + room])}\n{question}".lstrip())
    draw.shuffle(made)
    return made


def speed(rows: int, model: str, dtype: str, runs: int) -> None:
    from transformers import pipeline as transformers_pipeline

    import llmkit

    ours = llmkit.load("text-generation", model, max_new_tokens=MAX_NEW_TOKENS, temperature=0, dtype=dtype)  # type: ignore[arg-type]
    loaded = ours.loaded
    texts = prompts(rows, loaded.tokenizer)
    chats = [[{"role": "user", "content": text}] for text in texts]
    loaded.tokenizer.padding_side = "left"
    theirs: Any = transformers_pipeline("text-generation", model=loaded.model, tokenizer=loaded.tokenizer, batch_size=8)  # type: ignore[call-overload]
    options = {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False, "return_full_text": False}
    list(ours.map(texts[:4])), theirs(chats[:4], **options)  # warm up
    for _ in range(runs):
        start = time.perf_counter()
        mine = list(ours.map(texts))
        middle = time.perf_counter()
        others = [row[0]["generated_text"] for row in theirs(chats, **options)]
        end = time.perf_counter()
        lengths = sorted(output.usage.prompt_tokens for output in mine)
        new = sorted(output.usage.completion_tokens for output in mine)
        same = sum(output.text == other for output, other in zip(mine, others, strict=True))
        print(
            f"{rows} prompts of {lengths[0]}-{lengths[-1]} tokens, {new[0]}-{new[-1]} new (median {new[rows // 2]}),"
            f" {dtype}: llmkit {middle - start:.1f} s ({rows / (middle - start):.2f} rows/s), transformers"
            f" {end - middle:.1f} s; ratio {(end - middle) / (middle - start):.2f}; {same} texts are the same",
            flush=True,
        )


def tiny_model(folder: Path) -> None:
    """A causal model of a few thousand parameters that reads bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={"</s>": 0} | {byte: i for i, byte in enumerate(alphabet, 1)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def memory(rows: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny_model(folder / "model")
        peaks = []
        for count in (1000, rows):
            with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
                for number in range(count):
                    file.write(json.dumps({"prompt": f"row {number}"}) + "\n")
            output = folder / f"{count}.jsonl"
            start = time.perf_counter()
            options = {
                "--model": folder / "model",
                "--device": "cpu",
                "--input": folder / "rows.jsonl",
                "--output": output,
                "--max-new-tokens": 1,
            }
            words = [str(word) for option in options.items() for word in option]
            process = subprocess.Popen([sys.executable, "-m", "llmkit", "generate", *words])
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                raise SystemExit(f"llmkit ended with {status}")
            with output.open("rb") as file:
                written = sum(1 for _ in file)
            peaks.append(usage.ru_maxrss / 1024)
            seconds = time.perf_counter() - start
            print(f"{written:,} rows of {count:,}: {peaks[-1]:.0f} MiB at most, {seconds:.0f} s", flush=True)
        print(f"{rows:,} rows take {peaks[1] - peaks[0]:+.0f} MiB more than a thousand")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=["speed", "memory"])
    parser.add_argument("--rows", type=int)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--runs", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.what == "speed":
        speed(arguments.rows or 200, arguments.model, arguments.dtype, arguments.runs)
    else:
        memory(arguments.rows or 1_000_000)


if __name__ == "__main__":
    main()
