"""The user's default models: an option, then the variable, then the file, then the task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import llmkit
from llmkit.config.user import config_path, default_model
from llmkit.errors import LlmkitError, UsageError
from llmkit.tasks import Summarization, TextGeneration
from tests.cli.conftest import Run, one_line
from tests.cli.conftest import run as run
from tests.conftest import Checkpoint


def write(content: str) -> Path:
    path = config_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def test_the_file_is_in_the_configuration_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert config_path() == tmp_path / "user-config" / "llmkit" / "config.toml"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert config_path() == Path.home() / ".config" / "llmkit" / "config.toml"
    monkeypatch.setenv("LLMKIT_CONFIG", str(tmp_path / "mine.toml"))
    assert config_path() == tmp_path / "mine.toml"
    with pytest.raises(UsageError, match="does not exist; create it, or unset LLMKIT_CONFIG"):
        default_model(TextGeneration)


def test_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_model(Summarization) is None
    path = write('model = "all"\n[summarize]\nmodel = "one"\n')
    for task, model in ((Summarization, "one"), (TextGeneration, "all")):
        found = default_model(task)
        assert found
        assert (found.model, found.origin) == (model, str(path))
    monkeypatch.setenv("LLMKIT_MODEL", "variable")
    found = default_model(Summarization)
    assert found
    assert (found.model, found.origin) == ("variable", "LLMKIT_MODEL")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('modle = "a"', "unknown key 'modle' in PATH; did you mean 'model'?"),
        ('[summarise]\nmodel = "a"', "unknown key 'summarise' in PATH; did you mean 'summarize'?"),
        ("[generate]\ndtype = 1", "unknown key 'dtype' in PATH; keys: model"),
        ("model = 3", "model = 3 in PATH is not a name; write a name in quotes"),
        ('summarize = "a"', "'summarize' in PATH is not a table; write [summarize]"),
        ("model = ", "the configuration file PATH cannot be loaded (Invalid value"),
        ("model = 'é'".encode("latin-1").decode("utf-8", "surrogateescape"), "cannot be loaded"),
    ],
)
def test_a_bad_file_is_refused(content: str, problem: str) -> None:
    path = config_path()
    path.parent.mkdir(parents=True)
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError) as caught:
        default_model(TextGeneration)
    assert problem.replace("PATH", str(path)) in str(caught.value)


def test_commands_and_functions_use_it(run: Run, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    gpt2, llama = str(checkpoint("gpt2")), str(checkpoint("llama"))
    write(f"model = {json.dumps(gpt2)}\n")
    for command in (["generate", "hi", "--max-new-tokens", "2"], ["next", "hi"]):
        assert json.loads(run(*command, "--json")[1])["model"] == gpt2
        assert json.loads(run(*command, "--json", "--model", llama)[1])["model"] == llama
    assert llmkit.generate("hi", max_new_tokens=2).model == gpt2
    monkeypatch.setenv("LLMKIT_MODEL", "nowhere/model")
    _, _, err = run("generate", "hi")
    assert one_line(err).endswith(", or change the default model in LLMKIT_MODEL")
    with pytest.raises(LlmkitError, match=r"LLMKIT_MODEL$"):
        llmkit.next_tokens("hi")


def test_env_shows_it_without_secrets(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@proxy:8080")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://me:secret@hub.example")
    monkeypatch.setenv("LLMKIT_MODEL", "some/model")
    code, out, _ = run("env")
    assert code == 0
    found = json.loads(run("env", "--json")[1])
    assert set(found) >= {"schema_version", "versions", "devices", "threads", "folders", "hub", "default_models"}
    assert found["hub"] == {"endpoint": "https://hub.example", "offline": True, "token": "set"}
    assert found["default_models"]["generate"] == "some/model (LLMKIT_MODEL)"
    assert found["variables"]["HTTPS_PROXY"].endswith("proxy:8080")
    assert "some/model (LLMKIT_MODEL)" in out
    assert "secret" not in out + json.dumps(found)
    assert "hf_x" not in out + json.dumps(found)
