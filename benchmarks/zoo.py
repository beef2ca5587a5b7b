"""Every model type of Transformers' causal, seq2seq and question-answering tables through llmkit, one row each.

    python -m benchmarks.zoo [--types llama,t5] [--heads causal] [--output benchmarks/zoo.md]

From the root of a checkout with the development tools. A tiny random model of each type (`tests.zoo`) is written with
a tokenizer of its class and run through `inspect`, every task its head serves, batched and one by one, and two updates
of full, packed and LoRA training; each tuned model is saved, loaded again and compared. A type runs in a process of its
own, forked from one that has imported everything, so that none can end the table. With ``--output`` the table is
written; rows of types that are not asked for stay as they were.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers

from tests.forked import import_all, in_fork, quiet
from tests.zoo.measure import COLUMNS, Row, measure
from tests.zoo.models import KNOWN_FAILURES, REASONS, every_type

SECONDS = 300
"""No type takes longer, or it has failed."""

INTRODUCTION = """# The model zoo

`python -m benchmarks.zoo --output benchmarks/zoo.md`: a tiny random model of every type in Transformers' causal,
seq2seq and question-answering tables, saved as a checkpoint with a tokenizer of its class and run through llmkit on a
CPU in float32. TrainingStats with {versions}.

- **inspect**: `llmkit inspect` names this head and class, and a task is ready.
- **tasks**: that many tasks were run, three texts each, with a model of that class.
- **batched**: the same texts in a batch gave the same answers (greedy), and the same scores.
- **full**, **lora**: two updates; the saved model, loaded by llmkit, has the logits of the one that was trained, and
  other ones than before.
- **packed**: examples packed into one row gave the losses of padded ones; – where the probe finds that the model does
  not keep packed examples apart, and llmkit pads.

{summary}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", default="")
    parser.add_argument("--heads", default="")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--record", type=Path, default=Path("zoo.jsonl"), help="rows and whole errors")
    options = parser.parse_args()
    types, heads = set(filter(None, options.types.split(","))), set(filter(None, options.heads.split(",")))
    quiet()
    import_all()
    for head, model_type in every_type():
        if (types and model_type not in types) or (heads and str(head) not in heads):
            continue
        if (str(head), model_type) in REASONS:
            continue
        begun = time.perf_counter()
        row = in_process(head, model_type)
        row["seconds"] = round(time.perf_counter() - begun, 1)
        with options.record.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        failed = {name: value for name, value in row["columns"].items() if value not in ("yes", "–")}
        print(f"{head} {model_type} {row['seconds']} s {'green' if row['green'] else failed}", flush=True)
    if options.output:
        options.output.write_text(table(options.record), encoding="utf-8")


def in_process(head: Any, model_type: str) -> dict[str, Any]:
    """The row of a type, measured in a fork; an empty one if that crashes or takes too long."""

    def work(folder: Path) -> dict[str, Any]:
        row = measure(head, model_type, folder)
        return asdict(row) | {"green": row.green}

    found = in_fork(work, SECONDS)
    if isinstance(found, dict):
        return found
    return asdict(Row(head, model_type, "", head, columns={"inspect": found})) | {"green": False}


# The table.


def table(record: Path) -> str:
    """The rows of a record, the last of each type, in the order of Transformers' tables."""
    rows = {}
    for line in record.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        rows[row["head"], row["model_type"]] = row
    versions = f"transformers {transformers.__version__}, torch {torch.__version__.partition('+')[0]}"
    lines = [
        f"| head | type | class | {' | '.join(COLUMNS)} |",
        f"|---|---|---|{'---|' * len(COLUMNS)}",
    ]
    reasons, known, green, text = [], [], Counter[str](), Counter[str]()
    for head, model_type in every_type():
        name = str(head)
        if (name, model_type) in REASONS:
            reasons.append(f"| {name} | {model_type} | {REASONS[name, model_type]} |")
            continue
        row = rows.get((name, model_type))
        if row is None:
            continue
        text[name] += 1
        green[name] += row["green"]
        if not row["green"]:
            known.append(f"| {name} | {model_type} | {KNOWN_FAILURES.get((name, model_type), 'not looked into')} |")
        lines.append(f"| {name} | {model_type} | {row['model_class']} | {' | '.join(cells(row))} |")
    summary = ", ".join(f"{name} {green[name]} of {text[name]}" for name in text)
    share = green.total() / max(1, text.total())
    whole = f"Green in every column: {green.total()} of {text.total()} ({share:.1%}): {summary}."
    lines += [
        "",
        "Not green, and why:",
        "",
        "| head | type | reason |",
        "|---|---|---|",
        *known,
        "",
        "Not run, and `llmkit inspect` names no task for them:",
        "",
        "| head | type | reason |",
        "|---|---|---|",
    ]
    return "\n".join([INTRODUCTION.format(versions=versions, summary=whole), *lines, *reasons, ""])


def cells(row: dict[str, Any]) -> list[str]:
    shown = []
    for name in COLUMNS:
        value = re.sub(r"/\S*/", "", row["columns"].get(name, ""))  # folders of one run
        shown.append(str(len(row["tasks"])) if name == "tasks" and value == "yes" else value.replace("|", "/"))
    return shown


if __name__ == "__main__":
    main()
