"""The command line as a user meets it: results on stdout, one clear line on stderr, the right exit code."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmkit.cli import main
from llmkit.models import bundled
from tests.cli.conftest import Run, one_line
from tests.conftest import Checkpoint

SHORT = ("--max-new-tokens", "5", "--dtype", "float32")


@pytest.fixture
def gpt2(checkpoint: Checkpoint) -> Path:
    return checkpoint("gpt2")


# Where the text comes from.


def test_text_is_streamed_to_stdout_and_speed_to_stderr(run: Run, gpt2: Path) -> None:
    code, out, err = run("generate", "The quick", "--model", gpt2, *SHORT)
    assert code == 0
    assert out.endswith("\n")
    assert "5 tokens in " in err
    assert "stopped at 5 new tokens; raise --max-new-tokens" in err
    _, whole, _ = run("generate", "The quick", "--model", gpt2, *SHORT, "--json")
    assert json.loads(whole)["text"] + "\n" == out


def test_file_stdin_dash_and_literal(run: Run, gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompt.txt").write_text("The quick", encoding="utf-8")
    base = ("generate", "--model", gpt2, *SHORT)
    expected = run(*base, "The quick")[1]
    assert run(*base, "prompt.txt")[1] == expected
    assert run(*base, "-", stdin=b"The quick")[1] == expected
    assert run(*base, stdin=b"The quick")[1] == expected
    assert run(*base, stdin=b"\xef\xbb\xbfThe quick")[1] == expected
    assert run(*base, "--text", "The quick")[1] == expected
    literal = run(*base, "--text", "prompt.txt")[1]
    Path("prompt.txt").unlink()
    assert run(*base, "--text", "prompt.txt")[1] == literal != expected


def test_other_encodings(run: Run, gpt2: Path) -> None:
    base = ("generate", "--model", gpt2, *SHORT)
    expected = run(*base, "今天天气")[1]
    assert run(*base, "-", "--encoding", "gb18030", stdin="今天天气".encode("gb18030"))[1] == expected
    assert run(*base, "-", "--encoding", "utf-16", stdin="今天天气".encode("utf-16"))[1] == expected


def test_json_is_one_object(run: Run, gpt2: Path) -> None:
    code, out, _ = run("generate", "今天", "--model", gpt2, *SHORT, "--json")
    assert code == 0
    assert out.count("\n") == 1
    result = json.loads(out)
    assert result["schema_version"] == 1
    assert result["model"] == str(gpt2)
    assert result["head"] == "causal"
    assert result["commit"] is None


def test_several_sequences(run: Run, gpt2: Path) -> None:
    arguments = ("generate", "The", "--model", gpt2, *SHORT, "--num-beams", "3", "--num-return-sequences", "3")
    _, out, _ = run(*arguments, "--json")
    result = json.loads(out)
    texts = [result["text"], *(other["text"] for other in result["alternatives"])]
    assert len(texts) == 3
    assert run(*arguments)[1] == "\n---\n".join(texts) + "\n"


def test_quiet_says_nothing_but_the_result(run: Run, gpt2: Path) -> None:
    code, out, err = run("generate", "The quick", "--model", gpt2, *SHORT, "--quiet")
    assert (code, err) == (0, "")
    assert out


def test_examples_from_a_file(run: Run, gpt2: Path, tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    path.write_text('{"prompt": "one", "completion": "uno"}\n', encoding="utf-8")
    code, out, _ = run("generate", "two", "--model", gpt2, *SHORT, "--json", "--examples", path)
    assert code == 0
    alone = run("generate", "two", "--model", gpt2, *SHORT, "--json")[1]
    assert json.loads(out)["usage"]["prompt_tokens"] > json.loads(alone)["usage"]["prompt_tokens"]


def test_examples_are_in_any_layout_of_data(run: Run, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Names of other programs, ShareGPT's conversations, and a mapping that rows and examples share."""
    sharegpt = {"conversations": [{"from": "human", "value": "One?"}, {"from": "gpt", "value": "Uno."}]}
    openai = {"messages": [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Uno."}]}
    pair, summary = {"prompt": "one", "completion": "uno"}, {"document": "The fox.", "summary": "Fox."}
    model = checkpoint("llama", chat=True, max_position_embeddings=1024)
    for verb, text, given, usual, columns in (
        ("generate", "two", {"instruction": "one", "output": "uno"}, pair, []),
        ("summarize", "The dog.", {"article": "The fox.", "highlights": "Fox."}, summary, []),
        ("chat", "Two?", sharegpt, openai, []),
        ("generate", {"q": "two"}, {"q": "one", "completion": "uno"}, pair, ["--column", "prompt=q"]),
    ):
        found = []
        for name, row in (("given", given), ("usual", usual)):
            path, rows = tmp_path / f"{name}.jsonl", tmp_path / "rows.jsonl"
            path.write_text(json.dumps(row) + "\n", encoding="utf-8")
            rows.write_text(json.dumps(text) + "\n", encoding="utf-8")
            asked = ["--input", rows, *columns] if columns else [text, "--json"]
            command = (verb, *asked, "--model", model, *SHORT, "--examples", path)
            code, out, err = run(*command)
            assert code == 0, err
            found.append(json.loads(out)["usage"]["prompt_tokens"])
        assert found[0] == found[1], verb


def test_truncation_is_counted_and_said(run: Run, gpt2: Path) -> None:
    text = "The quick brown fox. " * 40
    code, out, err = run("generate", text, "--model", gpt2, *SHORT, "--on-overflow", "truncate", "--json")
    assert code == 0
    cut = json.loads(out)["truncated"]
    assert (kept := re.search(r"the last (\d+) of its (\d+) tokens are kept", err))
    assert int(kept[2]) - int(kept[1]) == cut


def test_next_prints_a_table_or_json(run: Run, gpt2: Path) -> None:
    code, out, _ = run("next", "今天天气很", "--model", gpt2, "--top", "3")
    assert code == 0
    assert len(out.splitlines()) == 3
    tokens = json.loads(run("next", "今天天气很", "--model", gpt2, "--top", "3", "--json")[1])["tokens"]
    assert [f"{token['probability']:8.2%}  {token['text']!r}" for token in tokens] == out.splitlines()


# Bad input.


def bad_files(folder: Path) -> dict[str, Path]:
    files = {
        "empty": b"",
        "blank": b" \n\t\n",
        "binary": b"ELF\0\1\2",
        "latin": "café".encode("latin-1"),
        "wide": "hello".encode("utf-16"),
    }
    for name, content in files.items():
        (folder / f"{name}.txt").write_bytes(content)
    return {name: folder / f"{name}.txt" for name in files}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "the prompt is empty; give llmkit generate some text"),
        ("blank", "the prompt is empty"),
        ("binary", "binary.txt is a binary file (NUL at byte 3); give a text file"),
        (
            "latin",
            "latin.txt is not utf-8 text (byte 0xe9 at position 3); name its encoding, such as --encoding gb18030",
        ),
        ("wide", "wide.txt is UTF-16 text, not UTF-8; pass --encoding utf-16"),
    ],
)
def test_bad_files(name: str, message: str, run: Run, tmp_path: Path) -> None:
    code, out, err = run("generate", bad_files(tmp_path)[name])
    assert (code, out) == (2, "")
    assert message in one_line(err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", ""], "the prompt is empty"),
        (["generate"], "the text is missing; give a text, a file, or pipe one in"),
        (["generate", "./missing.txt"], "the file ./missing.txt does not exist; check the path, or pass --text"),
        (["generate", "notes.md"], "the file notes.md does not exist"),
        (["generate", "hi", "--text", "ho"], "both 'hi' and --text are set"),
        (["generate", "hi", "--encoding", "latin-1"], "--encoding has an effect on files and standard input only"),
        (["generate", "-", "--encoding", "utf-99"], "unknown encoding 'utf-99'"),
        (["generate", "hi", "--temperature", "-1"], "temperature=-1.0 is out of range; give a number from 0 to 100"),
        (["generate", "hi", "--temperature", "hot"], "--temperature"),
        (["generate", "hi", "--max-new-tokens", "0"], "max_new_tokens=0 is out of range"),
        (["generate", "hi", "--top-p", "7"], "top_p=7.0 is out of range; give a number from 0 to 1"),
        (["generate", "hi", "--num-beams", "99999"], "num_beams=99999 is out of range"),
        (["generate", "hi", "--device", "tpu"], "'tpu' is not one of"),
        (["generate", "hi", "--no-such-option"], "unknown option --no-such-option; see llmkit generate --help"),
        (["generate", "hi", "--examples", "none.jsonl"], "none.jsonl does not exist"),
        (["next", "hi", "--top", "0"], "top=0 is out of range"),
        (["generat", "hi"], "unknown command 'generat'; did you mean llmkit generate?"),
        (["models", "poetry"], "unknown task 'poetry'"),
        (["inspect"], "MODEL is missing; for example: llmkit inspect starter"),
    ],
)
def test_bad_usage(arguments: list[str], message: str, run: Run, gpt2: Path) -> None:
    model = ["--model", str(gpt2)] if arguments[0] == "next" else []
    code, out, err = run(*arguments, *model)
    assert (code, out) == (2, "")
    assert message in one_line(err)


@pytest.mark.parametrize(
    ("model", "code", "message"),
    [
        ("./no-such-folder", 1, "the folder ./no-such-folder does not exist"),
        ("/no/such/folder", 1, "the folder /no/such/folder does not exist"),
        ("no such model!", 1, "is neither a folder here nor a model id"),
        ("some/model", 1, "offline mode is on"),
    ],
)
def test_unknown_models(model: str, code: int, message: str, run: Run) -> None:
    found, out, err = run("generate", "hi", "--model", model)
    assert (found, out) == (code, "")
    assert message in one_line(err)


def test_a_context_longer_than_the_model(run: Run, gpt2: Path) -> None:
    code, out, err = run("generate", "The quick brown fox. " * 40, "--model", gpt2)
    assert (code, out) == (2, "")
    assert "--on-overflow truncate" in one_line(err)


def broken(folder: Path, original: Path, change: Callable[[Path], Any]) -> Path:
    shutil.copytree(original, folder)
    change(folder)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "has a config.json and no weights"),
        (lambda f: os.truncate(f / "model.safetensors", 5000), "model.safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b"rubbish"), "model.safetensors"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be read as JSON"),
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "cannot be loaded"),
    ],
)  # fmt: skip
def test_broken_checkpoints(change: Callable[[Path], Any], message: str, run: Run, gpt2: Path, tmp_path: Path) -> None:
    code, out, err = run("generate", "hi", "--model", broken(tmp_path / "broken", gpt2, change))
    assert (code, out) == (1, "")
    assert message in one_line(err)


def test_an_encoder_does_not_generate(run: Run, checkpoint: Checkpoint) -> None:
    code, out, err = run("generate", "hi", "--model", checkpoint("bert"))
    assert (code, out) == (2, "")
    assert "BertForQuestionAnswering" in one_line(err)
    assert "it fits question-answering" in one_line(err)


def test_debug_shows_the_traceback() -> None:
    command = [sys.executable, "-m", "llmkit", "generate", "", "--debug"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Traceback" in result.stderr


# The process.


def spawn(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "llmkit", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_a_closed_pipe_is_no_error(checkpoint: Checkpoint) -> None:
    process = spawn(
        "generate", "The", "--model", checkpoint("llama", max_position_embeddings=5000), "--max-new-tokens", 4000
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 0
    assert not err


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupts(signum: signal.Signals, code: int, checkpoint: Checkpoint) -> None:
    process = spawn(
        "generate", "The", "--model", checkpoint("llama", max_position_embeddings=5000), "--max-new-tokens", 4000
    )
    assert process.stdout is not None
    process.stdout.read(1)  # it is generating now
    process.send_signal(signum)
    _, err = process.communicate()
    assert process.returncode == code
    assert "Traceback" not in err


@pytest.mark.parametrize("command", [["generate"], ["chat"], ["summarize"], ["generate", "-"]])
def test_closed_standard_input(
    command: list[str], checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert main([*command, "--model", str(checkpoint("llama", chat=True))]) == 2
    assert "Error" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a" * 5000, "~nosuchuser/x", f"/{'b' * 300}"])
@pytest.mark.parametrize(
    "command",
    [["generate", "hi", "--model"], ["inspect"], ["finetune"], ["generate", "--input", "x.jsonl", "--output"]],
    ids=lambda command: "-".join(command),
)
def test_names_that_no_file_system_takes(name: str, command: list[str], run: Run) -> None:
    name = f"{name}.jsonl" if command[-1] == "--output" else name
    code, _, err = run(*command, name)
    assert code in (1, 2)
    assert "--debug" not in one_line(err)
    assert len(err) < 1000


def test_errors_hold_no_control_characters(run: Run) -> None:
    _, _, err = run("inspect", "no\x1b[31mred/such/model")
    assert "\x1b" not in err


@pytest.mark.parametrize("key", ["trust_remote_code", "allow_pickle"])
@pytest.mark.parametrize("command", [["finetune"], ["finetune", "--dry-run"], ["data", "check"], ["evaluate"]])
def test_a_recipe_alone_allows_no_code_to_run(
    command: list[str], key: str, checkpoint: Checkpoint, tmp_path: Path, run: Run
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "The", "completion": "fox"}\n' * 4, encoding="utf-8")
    content = {
        "version": 1,
        "task": "text-generation",
        "model": {"name_or_path": str(checkpoint("llama")), "device": "cpu", key: True},
        "data": {"train": str(tmp_path / "rows.jsonl"), "validation": str(tmp_path / "rows.jsonl"), "num_proc": 1},
        "train": {"output_dir": str(tmp_path / "out"), "max_steps": 1},
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(content), encoding="utf-8")
    option = f"--{key.replace('_', '-')}"
    code, _, err = run(*command, recipe)
    assert code == 2
    assert f"model.{key} lets code of the model run" in one_line(err)
    assert one_line(err).endswith(f"add {option}")
    if command != ["evaluate"]:
        assert run(*command, recipe, option)[0] == 0
        content["train"]["output_dir"] = str(tmp_path / "other")  # type: ignore[index]
        recipe.write_text(json.dumps(content), encoding="utf-8")
        assert run(*command, recipe, "--set", f"model.{key}=true")[0] == 0
    assert run("recipes", "validate", recipe)[0] == 0


@pytest.mark.parametrize("command", [["finetune", "--dry-run"], ["data", "check"]])
def test_the_person_allows_what_no_recipe_asks_for(
    command: list[str], checkpoint: Checkpoint, tmp_path: Path, run: Run
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "The", "completion": "fox"}\n' * 4, encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    content = {
        "version": 1,
        "task": "text-generation",
        "model": {"name_or_path": str(with_own_code(checkpoint, tmp_path)), "device": "cpu"},
        "data": {"train": str(tmp_path / "rows.jsonl"), "num_proc": 1},
        "train": {"output_dir": str(tmp_path / "out"), "max_steps": 1},
    }
    recipe.write_text(json.dumps(content), encoding="utf-8")
    code, _, err = run(*command, recipe)
    assert code == 1
    assert one_line(err).endswith("pass --trust-remote-code if you trust it")
    assert run(*command, recipe, "--trust-remote-code")[0] == 0


def with_own_code(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A Llama that only its own Python file can build."""
    folder = shutil.copytree(checkpoint("llama"), tmp_path / "own")
    (folder / "mine.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class MyConfig(LlamaConfig):\n    model_type = 'mine'\n"
        "class MyModel(LlamaForCausalLM):\n    config_class = MyConfig\n"
    )
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "architectures": ["MyModel"]}
    config["auto_map"] = {"AutoConfig": "mine.MyConfig", "AutoModelForCausalLM": "mine.MyModel"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_report_on_a_model_never_holds_control_characters(checkpoint: Checkpoint, tmp_path: Path, run: Run) -> None:
    """Also in a pipe, at whose end a pager may show it: the texts are those of whoever published the model."""
    folder = shutil.copytree(checkpoint("llama"), tmp_path / "model")
    (folder / "README.md").write_text('---\nlicense: "\\e]0;title\\a\\e[31mred"\n---\n', encoding="utf-8")
    _, out, _ = run("inspect", folder)
    assert "\x1b" not in out
    assert "red" in out


def test_json_is_an_option_and_not_any_word(run: Run) -> None:
    assert run("generate", "--text", "--json", "--temperature", "-1")[1] == ""
    for arguments in (["--temperature", "-1", "--json"], ["--no-such-option", "--json"]):
        code, out, _ = run("generate", "hi", *arguments)
        assert (code, "error" in json.loads(out)) == (2, True)


@pytest.mark.starter
def test_the_command_after_a_download_names_the_adapter(run: Run) -> None:
    code, _, err = run("download", "minilm-squad")
    assert code == 0, err
    assert re.search(r"try it: llmkit answer .*--model minilm-squad\n", err)


def test_every_embedded_model_states_its_limits() -> None:
    assert all(bundled.limits(name) for name in (*bundled.EMBEDDED, *bundled.EMBEDDED_ADAPTERS))
