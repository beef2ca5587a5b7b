"""The commands of docs/translation.md run as they stand, on a tiny model of the family."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from llmkit.cli import main
from tests.conftest import Checkpoint

PAGE = (Path(__file__).parents[1] / "docs" / "translation.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"<!-- (\S+) -->\n```\w+\n(.*?)```", PAGE, re.DOTALL)
MODELS: dict[str, tuple[str, dict[str, int]]] = {
    "facebook/nllb-200-distilled-600M": ("nllb", {"max_position_embeddings": 40}),
    "google-t5/t5-small": ("t5", {}),
}


def test_the_page(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    commands: list[str] = []
    for name, text in BLOCKS:
        for model, (family, settings) in MODELS.items():
            if model in text:
                text = text.replace(model, str(checkpoint(family, **settings)))
        if name == "run":
            commands += text.strip().splitlines()
        else:
            (tmp_path / name).write_text(text, encoding="utf-8")
    for command in commands:
        _, *arguments = shlex.split(command)
        assert main(arguments) == 0, (command, capsys.readouterr().err)
    out = capsys.readouterr().out
    assert "  en-zh, 1 rows\n" in out
    assert "  en-fr, 1 rows\n" in out
