"""The examples of the page on metrics run."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import pytest

from llmkit.cli.app import main
from llmkit.metrics.score import METRICS
from tests.conftest import Checkpoint
from tests.training.recipes import write_rows

PAGE = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")
COMET = """#!/usr/bin/env python3
import json, sys
from pathlib import Path
texts = [Path(sys.argv[sys.argv.index(name) + 1]).read_text().splitlines() for name in ("-s", "-t", "-r")]
rows = [{"src": src, "mt": mt, "ref": ref, "COMET": len(ref) / 10} for src, mt, ref in zip(*texts, strict=True)]
Path("scores.json").write_text(json.dumps({"hyp": rows}))
"""


def block(name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```", PAGE, re.DOTALL)
    assert found, name
    return found[1]


def test_all_metrics_are_named() -> None:
    assert all(f"`{name}`" in PAGE for name in METRICS)


def test_commands_and_template(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "test.jsonl", [{"document": "The fox jumps.", "summary": "A fox."}] * 2)
    model = str(checkpoint("llama", chat=True, max_position_embeddings=2048))
    (tmp_path / "own.j2").write_text(block("template"), encoding="utf-8")
    command = shlex.split(
        block("several").replace("starter", model).replace(f"model={model}", f"model={model},template=own.j2")
    )
    assert main([*command[1:], "--offline", "--device", "cpu", "--max-new-tokens", "4", "-o", "out"]) == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert {"stemmed_rougeLsum", "rougeLsum"} <= set(found["figures"])  # a random model rates no row


def test_comet_runs_in_its_own_environment(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "uvx").write_text(COMET, encoding="utf-8")
    (tmp_path / "uvx").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "comet.py").write_text(block("comet"), encoding="utf-8")
    write_rows(
        tmp_path / "test.jsonl", [{"source": "The\nfox.", "target": "Le renard."}, {"source": "A dog.", "target": "Un"}]
    )
    command = ["evaluate", "--task", "translate", "-m", str(checkpoint("t5")), "--data", "test.jsonl", "--to", "fr"]
    assert (
        main([*command, "--metric", "comet.py", "--offline", "--device", "cpu", "--max-new-tokens", "4", "-o", "out"])
        == 0
    )
    found = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert found["figures"]["comet_score"]["value"] == pytest.approx(60.0)
