"""Without a network: no command opens a connection, whatever a file or an option names, and each says what it lacks."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import NoReturn

import pytest
from huggingface_hub import constants

from tests.cli.conftest import Run, one_line
from tests.conftest import Checkpoint


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What was tried to be reached; each attempt fails."""
    found: list[object] = []

    def refuse(*arguments: object, **_: object) -> NoReturn:
        found.append(arguments)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return found


@pytest.mark.parametrize("by_option", [False, True])
def test_no_command_opens_a_connection(
    by_option: bool,
    attempts: list[object],
    checkpoint: Checkpoint,
    tmp_path: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if by_option:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_HUB_OFFLINE")
    model = checkpoint("llama")
    bare = shutil.copytree(model, tmp_path / "bare", ignore=shutil.ignore_patterns("token*", "special*"))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "org/base"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    shutil.copy(model / "model.safetensors", adapter / "adapter_model.safetensors")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "The", "completion": "fox"}\n' * 4)
    recipe = {
        "version": 1,
        "task": "text-generation",
        "model": {"name_or_path": str(model), "offline": True, "device": "cpu"},
        "data": {"train": "owner/data"},
        "train": {"output_dir": str(tmp_path / "out"), "push_to_hub": True, "hub_model_id": "me/model"},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    evaluate = ("evaluate", "--task", "generate", "--data", rows, "--output", tmp_path / "evaluation")
    offline = ("--offline",) if by_option else ()
    commands: list[tuple[object, ...]] = [
        ("generate", "hi", "--model", "org/name", *offline),
        ("generate", "hi", "--model", adapter, *offline),
        ("generate", "hi", "--model", bare, *offline),
        ("inspect", "org/name", *offline),
        ("inspect", adapter, *offline),
        ("merge", adapter, "--output", tmp_path / "merged", *offline),
        ("data", "check", "owner/data", "--task", "generate", "--model", model, *offline),
        (*evaluate, "--model", model, "--baseline", "org/name", *offline),
        (*evaluate, "--model", model, "--metric", "bertscore", "--trust-remote-code", *offline),
        ("finetune", tmp_path / "recipe.yaml"),
        ("finetune", tmp_path / "recipe.yaml", "--set", f"data.train={rows}"),
        ("data", "check", tmp_path / "recipe.yaml"),
    ]
    if not by_option:
        commands += [("push", model, "me/model"), ("download", "org/name")]
    for command in commands:
        code, _, err = run(*command)
        assert code in (1, 2), command
        line = one_line(err)
        assert "--debug" not in line, line
        assert not attempts, command
