"""The commands of README.zh.md run as they stand, on tiny models in place of those that have to be fetched."""

from __future__ import annotations

import io
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmkit.cli import main
from tests.conftest import Checkpoint

README = (Path(__file__).parents[1] / "README.zh.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines() if line.startswith("llmkit ")]
SKIPPED = ("download Qwen", "--tools")
"""Commands that need a network, or a chat template of a large model."""
RECIPE = "我的配方/summarization/starter-lora.yaml"
TEXT = "# 狐狸\n\n一只狐狸在跳。狗在睡觉。\n"
ROWS = [{"正文": f"第{number}只狐狸在跳。", "摘要": f"狐狸{number}。"} for number in range(10)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in re.findall(r"[\w-]+\.(?:txt|md)\b", " ".join(LINES)):
        Path(name).write_text(TEXT, encoding="utf-8")
    for name in ("论文.jsonl", "数据.jsonl", "测试集.jsonl"):
        Path(name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")
    return tmp_path


def arguments(line: str, checkpoint: Checkpoint) -> Iterator[str]:
    """The arguments of a line, with tiny models and little work."""
    llama, nllb = str(checkpoint("llama", chat=True)), str(checkpoint("nllb"))
    tiny = dict.fromkeys(("Qwen/Qwen2.5-0.5B-Instruct", "模型/qwen", "模型目录", "starter"), llama)
    tiny["facebook/nllb-200-distilled-600M"] = nllb
    words = shlex.split(line, comments=True)[1:]
    yield from (tiny.get(word, word) if words[0] != "download" else word for word in words)
    if words[0] == "finetune":
        changes = ["train.max_steps=2", "data.max_length=128", "data.on_overflow=truncate"]
        changes += [f"model.name_or_path={llama}"] * (RECIPE in words)
        yield from (part for each in changes for part in ("--set", each))
    elif words[0] == "evaluate":
        yield from ("--max-rows", "1", "--max-new-tokens", "2")
    elif words[0] in ("generate", "summarize", "answer", "chat", "translate"):
        yield from ("--max-new-tokens", "2")


@pytest.mark.starter
def test_the_commands_run_in_their_order(
    folder: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert len(LINES) > 15
    for line in LINES:
        if any(each in line for each in SKIPPED):
            continue
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("你好".encode() if "chat" in line else b"")))
        code = main(list(arguments(line, checkpoint)))
        assert code == 0, f"{line}\n{capfd.readouterr().err}"
    assert (folder / "runs" / "摘要" / "llmkit.json").is_file()
    assert len((folder / "摘要.jsonl").read_text(encoding="utf-8").splitlines()) == len(ROWS)
