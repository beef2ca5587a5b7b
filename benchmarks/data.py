"""`llmkit data check` over a folder of real data: what is proposed, and how long it takes, first and again.

The folder has the layout of the names below. Writes the table and the proposals of ``data.md`` to standard output.

    python benchmarks/data.py FOLDER
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from os import environ
from pathlib import Path
from typing import Any

import yaml

CHECKS: dict[str, list[str]] = {
    "SQuAD v1.1, nested JSON": ["squad", "--task", "answer"],
    "FairytaleQA, nested JSON": ["fairytaleqa", "--task", "answer"],
    "SciTLDR, lists in JSON Lines": ["scitldr", "--task", "summarize"],
    "CSL, TSV without header": ["csl/ts-dev.tsv", "--task", "summarize"],
    "Tatoeba English-Chinese, TSV": ["tatoeba/cmn.txt", "--task", "translate"],
    "Tatoeba English-German, aligned": ["tatoeba/tatoeba-test-v2021-08-07.*", "--task", "translate"],
    "Tatoeba English-French, aligned": ["tatoeba/tatoeba-test-v2020-07-28.*", "--task", "translate"],
    "SGD, gzipped turns": ["sgd", "--task", "chat"],
    "Chinese poetry, JSON": ["poetry", "--task", "generate"],
    "Shakespeare, text": ["shakespeare/input.txt", "--task", "generate", "--max-length", "512"],
}
"""What it is called, and the command's arguments."""


def run(folder: Path, arguments: list[str], cache: str) -> tuple[float, dict[str, Any]]:
    """Seconds and report of one command."""
    command = [sys.executable, "-m", "llmkit", "data", "check", *arguments, "--json", "--rows", "0"]
    begin = time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env={**environ, "LLMKIT_CACHE": cache}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(arguments)}: {done.stderr}")
    return time.perf_counter() - begin, json.loads(done.stdout)


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    lines, proposals = [], []
    with tempfile.TemporaryDirectory() as cache:
        # Unpacks the starter, whose tokenizer counts.
        run(folder, ["poetry/tang300.json", "--task", "generate"], cache)
        one, _ = run(folder, ["poetry/tang300.json", "--task", "generate"], cache)
        print(f"starting, with nothing to do: {one:.1f} s\n")
        for name, arguments in CHECKS.items():
            first, report = run(folder, arguments, cache)
            again, _ = run(folder, arguments, cache)
            parts = [report[part]["ledger"] for part in ("train", "validation") if report[part]]
            counts = {key: sum(part[key] for part in parts) for key in ("rows", "bad", "examples", "tokens")}
            figures = " | ".join(f"{counts[key]:,}" for key in ("rows", "bad", "examples", "tokens"))
            lines.append(f"| {name} | {figures} | {first:.1f} | {again:.1f} |")
            shown = yaml.safe_dump(report["proposal"], allow_unicode=True, sort_keys=False, width=100)
            notes = "".join(f"# {note}\n" for note in report["notes"])
            proposals.append(f"### {name}\n\n`llmkit data check {' '.join(arguments)}`\n\n```yaml\n{notes}{shown}```\n")
            print(lines[-1], file=sys.stderr, flush=True)
    print("| data | rows | bad | examples | tokens | seconds | again |\n|---|---|---|---|---|---|---|")
    print("\n".join(lines), "\n", "\n".join(proposals), sep="\n")


if __name__ == "__main__":
    main()
