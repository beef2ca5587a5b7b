"""Codes of errors, warnings and notes: stable, printed, in records, and all explained in README.zh.md."""

from __future__ import annotations

import ast
import json
import pickle
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from llmkit import errors
from llmkit.cli import main
from llmkit.errors import ErrorCode, InputError, LlmkitError, UsageError
from llmkit.log import WarningCode
from llmkit.tasks.output import NoteCode

ROOT = Path(__file__).parents[1]
SOURCES = {path: path.read_text(encoding="utf-8") for path in (ROOT / "llmkit").rglob("*.py")}


def documented(section: str) -> list[str]:
    text = (ROOT / "README.zh.md").read_text(encoding="utf-8")
    found = re.search(rf"<!-- {section} -->\n(.*?)<!-- /{section} -->", text, re.DOTALL)
    assert found
    return re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]+ \|$", found[1], re.MULTILINE)


@pytest.mark.parametrize(
    ("section", "codes"), [("errors", ErrorCode), ("warnings", WarningCode), ("notes", NoteCode)], ids=str
)
def test_every_code_is_explained_in_chinese(section: str, codes: Any) -> None:
    assert sorted(documented(section)) == sorted(get_args(codes))


def test_every_code_is_used() -> None:
    text = "".join(text for path, text in SOURCES.items() if path.name not in ("errors.py", "log.py"))
    used = set(re.findall(r'"([a-z_]+)"', text)) | {
        each.code for each in vars(errors).values() if isinstance(each, type) and issubclass(each, LlmkitError)
    }
    assert {*get_args(ErrorCode), *get_args(WarningCode)} <= used


def test_every_warning_has_a_code() -> None:
    """Only progress that a Python program shows too is logged as a warning without one."""
    progress = re.compile(r"downloading|converting|waiting|stopp(ed|ing)")
    bare = []
    for path, text in SOURCES.items():
        for node in ast.walk(ast.parse(text)):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func) in ("log.warning", "log.error")):
                continue
            first = node.args[0]
            message = str(first.value) if isinstance(first, ast.Constant) else ""
            if not any(each.arg == "extra" for each in node.keywords) and not progress.match(message):
                bare.append(f"{path.name}:{node.lineno}")
    assert bare == []


def test_the_code_survives_rewording_and_pickling() -> None:
    error = InputError("has no text", "fix it", code="empty_input")
    assert (UsageError("x").code, InputError("x").code) == ("invalid_usage", "invalid_input")
    again = pickle.loads(pickle.dumps(error.reworded("rows.csv:3 has no text", "skip it")))
    assert (type(again), again.code) == (InputError, "empty_input")
    assert str(again) == "rows.csv:3 has no text; fix it, or skip it"
    assert error.to_dict() == {"code": "empty_input", "type": "InputError", "message": "has no text; fix it"}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["generate", "hi", "--model", "./nowhere"], "model_not_found"),
        (["generate", "hi", "--temperature", "-1"], "invalid_value"),
        (["generate", ""], "empty_input"),
        (["generate", "hi", "--top-q", "1"], "invalid_usage"),
        (["translate", "hi", "--to", "klingonese", "--model", "./nowhere"], "unknown_language"),
        (["models", "poetry"], "unknown_task"),
        (["finetune", "nowhere.yaml"], "recipe_not_found"),
        (["finetune", "summarization/starter-lora", "--dry-run", "--set", "train.epochs=3"], "invalid_recipe_key"),
    ],
)
def test_the_command_line_prints_the_code(
    arguments: list[str], code: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) in (1, 2)
    output = capsys.readouterr()
    assert output.err.splitlines()[-1].startswith(f"llmkit: error[{code}]: ")
    assert output.out == ""


def test_json_has_the_error_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--json", "hi", "--model", "./nowhere"]) == 1
    output = capsys.readouterr()
    assert json.loads(output.out)["error"]["code"] == "model_not_found"
    assert output.err.startswith("llmkit: error[model_not_found]: ")
