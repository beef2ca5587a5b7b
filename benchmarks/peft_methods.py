"""Every method of the installed PEFT through llmkit, on tiny models of every head, one row each.

    python -m benchmarks.peft_methods [--cases LORA,PiSSA] [--families llama,t5] [--output benchmarks/peft_methods.md]

From the root of a checkout with the development tools. A case (a method, or LoRA with settings that change how it
starts or what it computes) trains two updates on a tiny random model and goes through the steps of
`tests.training.peft_cases`, in a process of its own, forked from one that has imported everything. With ``--output``
the table is written from all rows recorded so far.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"


from tests import tiny
from tests.forked import import_all, in_fork, quiet
from tests.training.peft_cases import CASES, COLUMNS, FAMILIES, NO_DROPOUT, measure

SECONDS = 900


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="")
    parser.add_argument("--families", default="")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--record", type=Path, default=Path("peft_methods.jsonl"), help="rows and whole errors")
    parser.add_argument("--columns", default="", help="these steps only, such as train,load,merge")
    options = parser.parse_args()
    names = list(filter(None, options.cases.split(","))) or list(CASES)
    columns = tuple(filter(None, options.columns.split(","))) or COLUMNS
    families = list(filter(None, options.families.split(","))) or list(FAMILIES)
    quiet()
    import_all()
    with tempfile.TemporaryDirectory() as folder:
        models = {
            family: tiny.build(family, Path(folder) / family, **NO_DROPOUT.get(family, {})) for family in families
        }
        for name in names:
            for family in families:
                begun = time.perf_counter()
                row = in_process(name, family, models[family], columns)
                row |= {"case": name, "family": family, "seconds": round(time.perf_counter() - begun, 1)}
                with options.record.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                odd = {column: value for column, value in row["columns"].items() if value not in ("yes", "–")}
                print(f"{name} {family} {row['seconds']} s {odd or 'all'}", flush=True)
    if options.output is not None:
        write_table(options.record, options.output)


def write_table(record: Path, output: Path) -> None:
    """The table of the last row recorded for each case and family, with the reasons below it."""
    lines = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    rows = {(line["case"], line["family"]): line["columns"] for line in lines}
    reasons: dict[str, int] = {}

    def cell(columns: dict[str, str] | None) -> str:
        if columns is None:
            return ""
        odd = {name: value for name, value in columns.items() if value not in ("yes", "–")}
        if not odd:
            return "yes"
        first, value = next(iter(odd.items()))
        number = reasons.setdefault(re.sub(r"/tmp/\S+", "…", value).replace("|", "/"), len(reasons) + 1)
        return f"refused [{number}]" if first == "train" and value.startswith("refused") else f"not {first} [{number}]"

    table = [f"| | {' | '.join(FAMILIES)} |", f"|---|{'---|' * len(FAMILIES)}"]
    table += [f"| {name} | {' | '.join(cell(rows.get((name, each))) for each in FAMILIES)} |" for name in CASES]
    trained = {case for (case, _), columns in rows.items() if columns.get("train") == "yes"}
    versions = ", ".join(f"{name} {version(name)}" for name in ("peft", "transformers", "torch"))
    steps = ", ".join(dict.fromkeys(name for columns in rows.values() for name in columns))
    head = (
        f"# PEFT methods\n\n`python -m benchmarks.peft_methods`, {versions}, tiny random models. {len(trained)} of "
        f"{len(CASES)} cases train on at least one head. Steps: {steps}; *yes* is all of them, *not X* names the first "
        "that fails, *refused* is one line before training.\n"
    )
    notes = [f"{number}. {text.removeprefix('refused: ')}" for text, number in reasons.items()]
    output.write_text("\n".join([head, *table, "", *notes, ""]), encoding="utf-8")


def in_process(name: str, family: str, model: Path, columns: tuple[str, ...]) -> dict[str, Any]:
    """The row of a case, measured in a fork."""

    def work(folder: Path) -> dict[str, Any]:
        found = measure(CASES[name], family, model, folder, columns)
        return {"columns": found.columns, "details": found.details}

    found = in_fork(work, SECONDS)
    return found if isinstance(found, dict) else {"columns": {"train": found}, "details": {"train": found}}


if __name__ == "__main__":
    main()
