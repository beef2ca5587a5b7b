"""``llmkit explain``: a table on stdout, files by their suffix, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import Run, one_line
from tests.conftest import Checkpoint


def test_the_command(checkpoint: Checkpoint, run: Run, tmp_path: Path) -> None:
    model = ["--model", checkpoint("gpt2")]
    page, data = tmp_path / "steps.html", tmp_path / "attention.json"
    code, out, _ = run("explain", "The quick", *model, "--max-new-tokens", "3", "--top", "2", "--output", page)
    assert code == 0
    assert out.splitlines()[0].split() == ["step", "token", "probability", "entropy", "most", "probable"]
    assert len(out.splitlines()) == 4
    assert page.read_text().startswith("<!DOCTYPE html>")
    _, out, _ = run("explain", "The quick", *model, "--attention", "--layer", "1", "--json", "--output", data)
    printed = json.loads(out)
    assert printed == json.loads(data.read_text())
    assert np.shape(printed["weights"]) == (len(printed["queries"]), len(printed["keys"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layer", "0"], "--layer: for --attention"),
        (["--attention", "--top", "3"], "--top: without effect with --attention"),
        (["--attention", "--temperature", "0"], "have no effect with --attention"),
        (["--attention", "--steps"], "mutually exclusive"),
        (["--attention", "--kind", "cross"], "no attention of kind cross; name one of: self"),
        (["--attention", "--layer", "9"], "no layer 9 with attention weights; name one of 0 to 1"),
        (["--output", "steps.png"], "no suffix that names a format here; use one of .html, .json"),
        (["--logprobs", "3"], "--logprobs has no effect; say with --top"),
        (["--num-return-sequences", "2", "--temperature", "1"], "leave out --num-return-sequences"),
    ],
)
def test_nothing_is_ignored(options: list[str], message: str, checkpoint: Checkpoint, run: Run) -> None:
    code, _, err = run("explain", "The quick", "--model", checkpoint("gpt2"), *options)
    assert code == 2
    assert message in one_line(err)
