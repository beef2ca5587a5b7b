"""Running the command line in this process."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable

import pytest

from llmkit.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """``run("generate", "hi")`` → exit code, stdout, stderr. ``stdin`` is bytes, or None for a terminal."""

    def call(*arguments: object, stdin: bytes | None = None) -> tuple[int, str, str]:
        stream = io.TextIOWrapper(io.BytesIO(stdin or b""))
        stream.isatty = lambda: stdin is None  # type: ignore[method-assign]
        monkeypatch.setattr(sys, "stdin", stream)
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


def one_line(stderr: str) -> str:
    """The error, which is one line, names llmkit, and is followed by nothing."""
    lines = stderr.strip().splitlines()
    assert lines, "nothing was said"
    assert re.match(r"llmkit: error\[\w+\]: ", lines[-1])
    assert "Traceback" not in stderr
    assert not [line for line in lines[:-1] if not line.startswith("llmkit: ")]
    return lines[-1]
