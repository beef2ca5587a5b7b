"""The examples of the page on prompts run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from llmkit.cli import main
from llmkit.data.prompt_files import open_prompt
from llmkit.tasks import get_task
from tests.conftest import Checkpoint
from tests.fakes import PLAIN
from tests.training.recipes import make_recipe

PAGE = (Path(__file__).parents[1] / "docs" / "prompts.md").read_text(encoding="utf-8")


def block(name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```", PAGE, re.DOTALL)
    assert found, name
    return found[1]


@pytest.mark.parametrize("name", ["template", "prefix", "language"])
def test_commands(
    name: str, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLMKIT_MODEL", str(checkpoint("llama", chat=True, max_position_embeddings=512)))
    for line in block(name).splitlines():
        program, *arguments = shlex.split(line)
        assert program == "llmkit"
        code = main([*arguments, "--max-new-tokens", "4", "--offline", "--device", "cpu"])
        assert code == 0, capsys.readouterr().err


def test_the_two_forms_of_alpaca(tmp_path: Path) -> None:
    content = yaml.safe_load(block("alpaca"))
    recipe = make_recipe(content["task"], tmp_path, tmp_path / "rows.jsonl", prompt=content["prompt"])
    task = get_task("text-generation")
    prompts = [
        task.render(row, PLAIN, open_prompt(recipe, task)).text  # type: ignore[union-attr]
        for row in ({"prompt": "Add.", "input": "1 2"}, {"prompt": "Sing.", "input": ""}, {"prompt": "Sing."})
    ]
    assert prompts == [
        "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:",
        "### Instruction:\nSing.\n\n### Response:",
        "### Instruction:\nSing.\n\n### Response:",
    ]
