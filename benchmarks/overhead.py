"""Decoding against bare ``model.generate``, cold start against a bare script, and ``--help`` against a peer's.

    python benchmarks/overhead.py [--runs 5] [--model starter] [--peer trl]

Both sides of each figure alternate in one run, and the median of the pairwise ratios is what counts: machines
drift. Decoding: same model, prompt, dtype and number of new tokens, greedy, tokens/s without loading. Cold start:
whole processes, from start to exit after the first token, with the files in the page cache. ``--peer`` names a
command whose ``--help`` is timed beside llmkit's (it has to be installed).
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

import llmkit

PROMPT = "Write a long story about a ship that crosses the sea."
BARE = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, local_files_only=True)
inputs = tokenizer.apply_chat_template(
    [{"role": "user", "content": sys.argv[2]}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)
ids = model.generate(**inputs, max_new_tokens=1, do_sample=False)
print(tokenizer.decode(ids[0, inputs["input_ids"].shape[1]:]))
"""


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(ours: Callable[[], object], theirs: Callable[[], object], runs: int) -> tuple[float, float, float]:
    """Median seconds of both, and the median of the ratios theirs / ours, pair by pair; one warm-up each."""
    ours(), theirs()
    pairs = []
    for number in range(runs):
        # The order alternates, so that a slow spell does not always meet the same side.
        if number % 2:
            a, b = seconds(ours), seconds(theirs)
        else:
            b, a = seconds(theirs), seconds(ours)
        pairs.append((a, b))
    return (
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(b / a for a, b in pairs),
    )


def decoding(model: str, runs: int, tokens: int = 128) -> None:
    pipeline = llmkit.load("text-generation", model, max_new_tokens=tokens, temperature=0)
    loaded = pipeline.loaded
    # Neither side may stop early.
    loaded.model.generation_config.eos_token_id = None
    loaded.tokenizer.eos_token = None
    messages = [{"role": "user", "content": PROMPT}]
    encoded: Any = loaded.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    inputs = encoded.to(loaded.device)

    def bare() -> None:
        loaded.model.generate(**inputs, max_new_tokens=tokens, do_sample=False, pad_token_id=0)  # type: ignore[operator]

    def ours() -> None:
        assert pipeline(PROMPT).usage.completion_tokens == tokens

    def iterated() -> None:
        for _ in pipeline.stream(PROMPT):
            pass

    for name, work, target in (("decoding", ours, "≥ 0.97"), ("the same through `stream()`", iterated, "")):
        a, b, ratio = compare(work, bare, runs)
        print(f"| {name}, {tokens} tokens | {tokens / a:.1f} tok/s | {tokens / b:.1f} tok/s | {ratio:.3f} | {target} |")


def process(*command: str) -> Callable[[], object]:
    return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def cold_start(model: str, runs: int) -> None:
    folder = str(llmkit.load("text-generation", model).loaded.source.folder)
    command = ("-m", "llmkit", "generate", "--model", model, "--max-new-tokens", "1", "--temperature", "0", PROMPT)
    ours = process(sys.executable, *command)
    theirs = process(sys.executable, "-c", BARE, folder, PROMPT)
    a, b, ratio = compare(ours, theirs, runs)
    print(f"| cold start to the first token | {a:.2f} s | {b:.2f} s | {1 / ratio:.3f} | ≤ 1.2 |")


def help_page(peer: str, runs: int) -> None:
    path = shutil.which(peer)
    if path is None:
        print(f"| --help | | {peer} is not installed | | ≤ 1 |")
        return
    ours = process(shutil.which("llmkit") or "llmkit", "--help")
    a, b, ratio = compare(ours, process(path, "--help"), 3 * runs)
    print(f"| `--help` against `{peer} --help` | {a:.3f} s | {b:.3f} s | {1 / ratio:.3f} | ≤ 1 |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--peer", default="trl")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.runs} runs, model {options.model}")
    print("| what | llmkit | bare | ratio | target |\n|---|---|---|---|---|")
    decoding(options.model, options.runs)
    cold_start(options.model, options.runs)
    help_page(options.peer, options.runs)


if __name__ == "__main__":
    main()
