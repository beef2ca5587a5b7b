"""Shared by the tests that use the fake hub: a small model on it, and what makes a network fail."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from huggingface_hub import close_session

from llmkit.errors import LlmkitError
from llmkit.hub import client, reachability
from tests.hub.fake_hub import FakeHub, safetensors

CONFIG = b'{"model_type": "llama"}'
WEIGHTS = safetensors({"w": (4, 5), "b": (7,)})
TINY = {"config.json": CONFIG, "tokenizer.json": b"{}", "model.safetensors": WEIGHTS}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    reachability.forget_unreachable()
    with FakeHub() as server:
        server.use(monkeypatch, tmp_path)
        yield server
        close_session()
    reachability.forget_unreachable()


def names(snapshot: client.Snapshot) -> set[str]:
    return {path.relative_to(snapshot.folder).as_posix() for path in snapshot.folder.rglob("*") if path.is_file()}


def refuse_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*arguments: object) -> NoReturn:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)


def one_line(error: pytest.ExceptionInfo[LlmkitError]) -> str:
    """The message, which must be one line that ends in what to do."""
    assert error.value.fix
    assert "\n" not in str(error.value)
    return str(error.value)


def closed_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
