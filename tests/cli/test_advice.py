"""What a message advises can be done: every option in it is one that the command has."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import llmkit
from llmkit.cli.app import application
from llmkit.cli.options import flags, remedy, worded
from llmkit.config.settings import GenerationSettings, LoadSettings, RowSettings
from llmkit.errors import UsageError
from llmkit.tasks import PromptOptions
from tests.cli.conftest import Run, one_line
from tests.conftest import Checkpoint

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")
OTHERS = re.compile(r"\b(?:pip|gguf-split|torchrun|accelerate|uv)\b")
"""Programs with options of their own."""


def commands_of(command: Any, name: str = "llmkit") -> Iterator[tuple[str, Any]]:
    """Every command by its name."""
    for key, inner in getattr(command, "commands", {}).items():
        yield from commands_of(inner, f"{name} {key}")
    yield name, command


COMMANDS = dict(commands_of(application()))


def literals() -> Iterator[tuple[str, str]]:
    """Every string outside of the command line but docstrings, examples and others' warnings: its place and text."""
    for path in sorted(Path(llmkit.__file__).parent.rglob("*.py")):
        if "cli" in path.parts:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        others = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "filterwarnings":
                others |= {id(each) for each in node.args}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in others:
                yield f"{path.name}:{node.lineno}", node.value.partition("\n\n    Examples:\n")[0]


def test_no_message_names_an_option() -> None:
    found = {where: text for where, text in literals() if OPTION.search(text) and not OTHERS.search(text)}
    assert {
        where: text for where, text in found.items() if not where.startswith(("wheels.py", "processes.py", "gguf.py"))
    } == {}


def test_settings_that_messages_name_exist() -> None:
    names = {param.name for command in COMMANDS.values() for param in command.params} | {"__cause__"}
    names |= inspect.signature(llmkit.finetune).parameters.keys()  # those of Python have no option
    marked = re.compile(r"`([a-z_]+)(?:=[^`]*)?`")
    found = [(where, name) for where, text in literals() for name in marked.findall(text)]
    assert len(found) > 50
    assert [each for each in found if each[1] not in names] == []


@pytest.fixture
def files(tmp_path: Path) -> Path:
    rows = {
        "pairs": {"source": "The fox.", "target": "Le renard."},
        "nested": {"id": 1, "data": {"document": "The fox jumps over the lazy dog."}},
        "long": {"prompt": "The fox jumps " * 80, "completion": "x"},
        "parts": {
            "messages": [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "a"}]
        },
    }
    for name, row in rows.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    recipe = "version: 1\ntask: translation\nmodel: {name_or_path: MODEL, offline: true}\ndata: {train: pairs.jsonl}\n"
    (tmp_path / "recipe.yaml").write_text(recipe + f"train: {{output_dir: {tmp_path / 'out'}}}\n", encoding="utf-8")
    return tmp_path


CALLS = [
    ("evaluate", "--task", "translate", "--model", "{llama}", "--data", "{files}/pairs.jsonl", "-o", "{files}/a"),
    ("evaluate", "--task", "chat", "--model", "{llama}", "--data", "{files}/nested.jsonl", "-o", "{files}/b"),
    ("evaluate", "--task", "chat", "--model", "{llama}", "--data", "{files}/parts.jsonl", "-o", "{files}/c"),
    ("evaluate", "--task", "summarize", "--model", "{llama}", "--data", "{files}/none.jsonl", "-o", "{files}/d"),
    ("finetune", "{files}/recipe.yaml", "--set", "model.name_or_path={llama}", "--dry-run"),
    ("data", "check", "{files}/recipe.yaml", "--set", "model.name_or_path={llama}"),
    ("translate", "The fox.", "--model", "{llama}"),
    ("summarize", "--input", "{files}/nested.jsonl", "--model", "{llama}"),
    ("chat", "--input", "{files}/parts.jsonl", "--model", "{llama}"),
    ("answer", "Who?", "--text", "The fox.", "--top", "2", "--model", "{llama}"),
    ("generate", "The fox jumps " * 80, "--model", "{gpt2}"),
    ("next", "The fox jumps " * 80, "--model", "{gpt2}"),
    ("merge", "{llama}"),
    ("inspect", "{files}/nothing"),
]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: " ".join(call)[:40])
def test_what_a_command_advises_it_has(call: tuple[str, ...], run: Run, checkpoint: Checkpoint, files: Path) -> None:
    named = {"llama": checkpoint("llama", chat=True), "gpt2": checkpoint("gpt2"), "files": files}
    code, _, err = run(*[part.format(**named) for part in call])
    assert code in (1, 2, 3)
    said = one_line(err) if code != 3 else err
    name = " ".join(["llmkit", *call[: 2 if call[0] == "data" else 1]])
    advised = said.rpartition("; ")[2]
    for clause in re.split(r", or |, | or ", advised):
        if "llmkit " not in clause:
            known = {option for each in COMMANDS[name].params for option in each.opts}
            assert set(OPTION.findall(clause)) - {"--help"} <= known, said
            assert "`" not in clause


def test_the_advice_that_evaluate_gives_for_a_language_works(run: Run, checkpoint: Checkpoint, files: Path) -> None:
    call = ["evaluate", "--task", "translate", "--model", checkpoint("llama"), "--data", files / "pairs.jsonl"]
    code, _, err = run(*call, "-o", files / "a")
    assert code == 2
    found = re.search(r"such as (--to) (\S+)", one_line(err))
    assert found
    more = ["--max-new-tokens", "2", "--from", "en"]
    code, out, err = run(*call, "-o", files / "b", *found.groups(), *more)
    assert code == 0, err
    assert "translation" in out


def test_the_advice_for_a_nested_row_works(run: Run, checkpoint: Checkpoint, files: Path) -> None:
    call = ["summarize", "--input", files / "nested.jsonl", "--model", checkpoint("llama"), "--max-new-tokens", "2"]
    code, _, err = run(*call)
    found = re.search(r"(--column) (\S+)", one_line(err))
    assert found
    assert found[2] == "document=data.document"
    code, out, _ = run(*call, *found.groups())
    assert code == 0
    assert json.loads(out)["id"] == 1


@pytest.mark.parametrize("command", ["evaluate", "data"])
def test_the_advice_for_another_encoding_works(command: str, run: Run, checkpoint: Checkpoint, tmp_path: Path) -> None:
    data = tmp_path / "a.csv"
    data.write_text("prompt,completion\n狐狸,跑\n", encoding="gb18030")
    call: list[Any] = {
        "evaluate": ["evaluate", "--task", "generate", "--data", data, "--max-new-tokens", "2"],
        "data": ["data", "check", data, "--task", "generate"],
    }[command]
    call += ["--model", checkpoint("llama")]
    output = ["-o", tmp_path / "a"] if command == "evaluate" else []
    code, _, err = run(*call, *output)
    assert code == 2
    found = re.search(r"such as (--set|--encoding) (\S+)", one_line(err))
    assert found
    output = ["-o", tmp_path / "b"] if command == "evaluate" else []
    code, _, err = run(*call, *found.groups(), *output)
    assert code == 0, err


def test_evaluate_says_how_to_pass_over_a_bad_row(run: Run, checkpoint: Checkpoint, tmp_path: Path) -> None:
    data = tmp_path / "a.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\nno\n{"prompt": "a", "completion": null}\n', encoding="utf-8")
    call: list[Any] = ["evaluate", "--task", "generate", "--data", data, "--max-new-tokens", "2"]
    call += ["--model", checkpoint("llama")]
    code, _, err = run(*call, "-o", tmp_path / "a")
    assert code == 2
    assert one_line(err).endswith("or skip such rows with data.on_bad_row: skip")
    code, _, err = run(*call, "-o", tmp_path / "b", "--set", "data.on_bad_row=skip")
    assert code == 0
    assert "2 rows skipped (data.on_bad_row: skip)" in err


@pytest.mark.parametrize(
    ("fixes", "expected"),
    [
        (
            ["name it with `target`, such as `target=fr`"],
            "name it with settings.target, such as --set settings.target=fr",
        ),
        (["pass `allow_pickle=True` if you trust it"], "pass --set model.allow_pickle=true if you trust it"),
        (["name another `output`", "replace it with `overwrite`"], "name another --output"),
        (["start again with `overwrite`"], "start again with `overwrite`"),
        (["use `max_new_tokens=8` or leave it out"], "use --max-new-tokens 8 or leave it out"),
        (["run `pip install --upgrade x`"], "run `pip install --upgrade x`"),
        (["name one: `model=a b`"], "name one: a b"),
    ],
)
def test_settings_are_worded_as_the_command_has_them(
    fixes: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"overrides": "--set", "output": "--output", "max_new_tokens": "--max-new-tokens", "model": "model"}
    monkeypatch.setattr(flags, "options", options)
    assert remedy(UsageError("no", *fixes)) == expected
    monkeypatch.setattr(flags, "options", {"target": "--to"})
    assert worded("name it with `target`, such as `target=fr`") == "name it with --to, such as --to fr"
    assert str(UsageError("no", "name it with `target=fr`")) == "no; name it with `target=fr`"


def test_an_option_that_is_a_setting_is_declared_by_it() -> None:
    commands: Any = application().commands
    declared = {
        f"--{item.metadata['option'] or item.name.replace('_', '-')}": item.metadata["help"]
        for settings in (LoadSettings, GenerationSettings, RowSettings, PromptOptions)
        for item in fields(settings)
        if "help" in item.metadata
    }
    own = {
        (name, option): parameter.help
        for name, command in commands.items()
        for parameter in command.params
        for option in parameter.opts
        if option in declared and parameter.help != declared[option]
    }
    assert set(own) == {
        ("merge", "--dtype"),  # auto means another
        *((name, "--output") for name in ("evaluate", "merge")),  # folders
        *((name, "--output") for name in ("explain", "report")),  # pages and pictures
        *(("export", option) for option in ("--dtype", "--output", "--overwrite")),  # of a folder of its own
        *(("evaluate", option) for option in ("--resume", "--overwrite")),  # of a folder too
        *(("evaluate", option) for option in ("--examples", "--shots")),  # for several numbers of examples
        *(("finetune", option) for option in ("--num-processes", "--resume", "--output")),  # of training
        ("finetune", "--model"),  # has its own default
        *((name, "--on-overflow") for name in ("chat", "explain", "generate")),  # without chunks
        *(("evaluate", option) for option in ("--shots", "--examples")),  # several numbers, of rows of training
    }


def test_paths_with_spaces_are_quoted_in_messages(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/摘要 一")
    folder.mkdir(parents=True)
    (folder / "论文 数据.jsonl").write_text('{"甲": "a"}\n', encoding="utf-8")
    for arguments, shown in (
        (["summarize", "--input", "a b/rows.jsonl"], "'a b/rows.jsonl' does not exist"),
        (["summarize", f"--input={folder}/论文 数据.jsonl"], "'runs/摘要 一/论文 数据.jsonl': no column"),
        (["evaluate", str(folder)], "'runs/摘要 一' and --model both name a model"),
        (["summarize", str(folder)], "--input 'runs/摘要 一'"),
        (["summarize", "a_b.txt"], "the file a_b.txt does not exist"),
        (["summarize", "--input", "数据.jsonl"], " 数据.jsonl does not exist"),
    ):
        assert shown in one_line(run(*arguments, "--model", "nowhere" if "--input" in str(arguments) else "x")[2])


def test_data_without_the_columns_of_a_task_names_the_option(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"甲": "a", "乙": "b"}\n', encoding="utf-8")
    for command in (("data", "check", tmp_path / "a.jsonl"), ("finetune", "--data", tmp_path / "a.jsonl")):
        assert "name one with --column document=COLUMN" in one_line(run(*command, "--task", "summarize")[2])
    (tmp_path / "a.jsonl").write_text('{"摘要": "长长的文字。", "标题": "短"}\n', encoding="utf-8")
    code, out, _ = run("recipes", "new", "--task", "summarize", "--data", tmp_path / "a.jsonl", "--model", "starter")
    assert (code, "document: 摘要" in out, "summary: 标题" in out) == (0, True, True)
