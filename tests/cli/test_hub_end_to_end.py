"""Whole commands against a Hub that answers, then one that does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import Checkpoint
from tests.hub.fake_hub import FakeHub


def llmkit(*arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "llmkit", *arguments],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_OFFLINE": "0", **environment},
    )  # fmt: skip


def test_a_model_of_the_hub(checkpoint: Checkpoint, tmp_path: Path) -> None:
    generate = ("generate", "The quick", "--model", "org/tiny", "--json", "--max-new-tokens", "4")
    with FakeHub() as hub:
        hub.add_folder("org/tiny", checkpoint("gpt2"))
        environment = hub.environment(tmp_path)
        seen = json.loads(llmkit("inspect", "org/tiny", "--json", environment=environment).stdout)
        assert seen["parameters"] > 0
        assert not list(tmp_path.rglob("model.safetensors")), "inspect downloaded the weights"
        first = llmkit(*generate, environment=environment)
    assert first.returncode == 0, first.stderr
    result = json.loads(first.stdout)
    assert result["commit"] == seen["commit"]
    assert len(result["commit"]) == 40
    assert "downloading org/tiny" in first.stderr

    second = llmkit(*generate, environment=environment)  # the Hub is gone
    assert second.returncode == 0, second.stderr
    assert json.loads(second.stdout) == result
    assert "cannot reach the model hub" in second.stderr

    third = llmkit("generate", "hi", "--model", "org/other", environment=environment)
    assert third.returncode == 1
    assert "org/other is not in the cache; run `llmkit download org/other`" in third.stderr.splitlines()[-1]
