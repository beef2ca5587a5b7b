"""What ``--help`` shows: examples that parse, options in groups, defaults that hold, complete sentences."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest

from llmkit.cli.help import GROUPS, examples, summary
from llmkit.tasks import TASKS
from tests.cli.conftest import Run, one_line
from tests.cli.test_advice import COMMANDS

LEAVES = {name: command for name, command in COMMANDS.items() if not hasattr(command, "commands")}


def _page(run: Run, name: str) -> str:
    code, out, _ = run(*name.split()[1:], "--help")
    assert code == 0
    return out


def _parse(line: str) -> Any:
    """Parse a command line without running it."""
    words = shlex.split(line.rpartition("| ")[2].partition(" > ")[0], comments=True)
    name = max((each for each in LEAVES if words[: len(each.split())] == each.split()), key=len)
    return LEAVES[name].make_context(name, words[len(name.split()) :], help_option_names=["-h", "--help"])


@pytest.mark.parametrize("name", LEAVES)
def test_every_command_has_examples_that_parse(name: str) -> None:
    shown = examples(LEAVES[name].help or "")
    assert shown
    for line in shown:
        assert name in line
        _parse(line)


def test_help_is_complete_sentences_in_known_groups() -> None:
    for name, command in COMMANDS.items():
        assert summary(command.help or "").endswith("."), name
        for each in command.params:
            assert each.help.rstrip().endswith((".", ")")), (name, each.name)
            assert (each.rich_help_panel or "") in GROUPS, (name, each.name)


def test_the_list_of_commands_is_not_truncated(run: Run) -> None:
    page = _page(run, "llmkit")
    assert "..." not in page.partition("\n\n")[2]
    for name, command in LEAVES.items():
        if len(name.split()) == 2:
            assert summary(command.help or "") in " ".join(page.split()), name


def test_options_are_listed_by_group_with_choices(run: Run) -> None:
    page = _page(run, "llmkit generate")
    order = [title for title in GROUPS.values() if f"\n{title}:\n" in page]
    assert [page.index(f"\n{title}:\n") for title in order] == sorted(page.index(f"\n{title}:\n") for title in order)
    assert "--head {causal,seq2seq,span}" in page.partition("\nAdvanced:")[2]
    assert "--temperature X" in page.partition("\nSampling")[2].partition("\nAdvanced:")[0]
    assert "-m, --model MODEL" in page.partition("\nModel:")[2].partition("\nFiles of rows:")[0]


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_defaults_are_those_of_the_task(task: Any, run: Run) -> None:
    page = " ".join(_page(run, f"llmkit {task.verb}").split())

    def default(option: str) -> str:
        found = re.search(rf" {option} \S+ (?:(?! --).)*?\[default: ([^]]*)\]", page)
        return found[1] if found else ""

    assert str(task.max_new_tokens) in default("--max-new-tokens")
    assert default("--on-overflow") == task.overflow
    assert f"--on-overflow {{{','.join(task.allowed_overflow)}}}" in page
    assert default("--window") == "256"


@pytest.mark.parametrize("group", [(), ("data",), ("recipes",)], ids=lambda group: " ".join(group) or "llmkit")
def test_a_group_of_commands_alone_shows_its_help(group: tuple[str, ...], run: Run) -> None:
    assert run(*group) == run(*group, "--help")
    assert run(*group)[0] == 0


def test_version(run: Run) -> None:
    assert run("-V") == run("--version")


@pytest.mark.parametrize(
    ("call", "problem", "fix"),
    [
        ("train papers.yaml", "unknown command 'train'", "did you mean llmkit finetune?"),
        ("qa", "unknown command 'qa'", "did you mean llmkit answer?"),
        ("translation", "unknown command 'translation'", "did you mean llmkit translate?"),
        ("generat hi", "unknown command 'generat'", "did you mean llmkit generate?"),
        ("recipes ls", "unknown command 'ls'", "did you mean llmkit recipes list?"),
        ("help sumarize", "unknown command 'sumarize'", "did you mean llmkit summarize?"),
        ("deploy", "unknown command 'deploy'", "did you mean llmkit serve?"),
        ("'Hello there'", "the command is missing before the text", "write llmkit generate 'Hello there'"),
        ("generate hi --modle x", "unknown option --modle", "did you mean --model?"),
        ("generate hi --max_new_tokens 3", "unknown option --max_new_tokens", "did you mean --max-new-tokens?"),
        ("generate hi --max-tokens 3", "unknown option --max-tokens", "did you mean --max-new-tokens?"),
        ("translate hi --target-lang fr", "unknown option --target-lang", "did you mean --to?"),
        ("generate hi --dry-run", "unknown option --dry-run", "it is an option of llmkit finetune"),
        ("finetune x --learning-rate 1", "unknown option --learning-rate", "recipe keys are changed with --set"),
        ("models qa", "unknown task 'qa'", "did you mean 'question-answering'?"),
        ("inspect -m x", "unknown option -m", "it is an argument: llmkit inspect MODEL"),
        ("inspect --model x", "unknown option --model", "it is an argument: llmkit inspect MODEL"),
        ("--model x generate hi", "--model belongs after the command", "write llmkit generate --model"),
        ("generate Write a haiku", "too many arguments (a haiku)", "put a text with spaces in quotes: llmkit generate"),
        ("merge x", "-o or --output is missing", "for example: llmkit merge"),
        ("generate hi --temperature", "--temperature requires a value", "see llmkit"),
        ("generate hi --device tpu", "--device: 'tpu' is not one of", "see llmkit generate --help"),
    ],
)
def test_what_a_user_may_have_meant(call: str, problem: str, fix: str, run: Run) -> None:
    code, out, err = run(*shlex.split(call))
    assert (code, out) == (2, "")
    assert f": {problem}" in one_line(err)
    assert f"; {fix}" in one_line(err)


def test_the_suggestions_name_commands_and_settings_that_exist() -> None:
    from llmkit.cli import suggestions

    names = {name.split()[-1] for name in COMMANDS} | {"cache", "env", "new"}
    settings = {each.name for command in LEAVES.values() for each in command.params}
    assert set(suggestions._COMMANDS) <= names
    assert set(suggestions._OPTIONS) <= settings
    clashes = [other for others in suggestions._COMMANDS.values() for other in others if f"llmkit {other}" in COMMANDS]
    assert set(clashes) <= {"inspect", "generate"}  # of `data check` and `recipes new`


@pytest.mark.parametrize("name", ["llmkit generate", "llmkit data check", "llmkit recipes", "llmkit"])
def test_help_as_a_command(name: str, run: Run) -> None:
    assert run("help", *name.split()[1:]) == run(*name.split()[1:], "--help")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_completes(
    shell: str, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models--me--my-model").mkdir()

    def complete(line: str) -> list[str]:
        words = line.split(" ")
        given = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), "_TYPER_COMPLETE_ARGS": line}
        for name, value in (given | {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("_LLMKIT_COMPLETE", f"complete_{shell}")
        with pytest.raises(SystemExit):
            run()
        out = capsys.readouterr().out
        found = re.findall(r'(?:\(\(|\n)"([^"]*)"', out) if shell == "zsh" else out.strip().splitlines()
        return [each.partition("\t")[0] for each in found]

    assert complete("llmkit summ") == ["summarize"]
    assert complete("llmkit generate --temper") == ["--temperature"]
    assert complete("llmkit generate --head s") == ["seq2seq", "span"]
    assert complete("llmkit generate --model me") == ["me/my-model"]
    assert complete("llmkit inspect star") == ["starter"]
    assert "summarization/starter-lora" in complete("llmkit finetune summarization/")
    assert complete("llmkit evaluate --task sum") == ["summarize", "summarization"]
    assert complete("llmkit recipes va") == ["validate"]
    assert complete("llmkit finetune x.yaml --set train.learn") == ["train.learning_rate="]
    assert complete("llmkit translate x --to Fr") == ["French"]
    assert {"zh", "zu"} <= set(complete("llmkit finetune --from z"))
    assert complete("llmkit finetune ./mine") in ([], [""])  # a file: left to the shell


def test_the_completion_script_is_printed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shellingham.detect_shell", lambda: ("bash", "/bin/bash"))
    with pytest.raises(SystemExit) as ended:
        run("--show-completion")
    assert not ended.value.code


def test_options_with_one_name_are_the_same_everywhere() -> None:
    """The same help, metavar and short name; where a command has its own, it is listed here."""
    own = {"--encoding", "--top", "--task", "--dtype", "--num-processes", "--resume", "--overwrite", "--set", "--data"}
    own |= {"--from", "--to", "--output", "--dry-run", "--text", "--model", "--validation", "--on-overflow"}
    own |= {"--examples", "--shots"}
    seen: dict[str, tuple[Any, ...]] = {}
    for name, command in LEAVES.items():
        for each in command.params:
            text = re.sub(r"^\w+: ", "", each.help)  # `evaluate` names the task of an option
            about = (sorted(each.opts), text, each.metavar)
            if each.param_type_name == "option" and each.opts[0] not in own:
                assert seen.setdefault(each.opts[0], about) == about, name
            assert "--output" not in each.opts or "-o" in each.opts, name
            assert "--model" not in each.opts or "-m" in each.opts, name


def test_the_reference_of_commands_is_current() -> None:
    """Update it with ``python docs/write_cli.py``."""
    made = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "write_cli.py"))
    assert made["PAGE"].read_text(encoding="utf-8") == made["page"]()


def test_what_a_task_can_do_with_long_input_is_in_its_help() -> None:
    helps = {
        name: each.help for name, command in LEAVES.items() for each in command.params if each.name == "on_overflow"
    }
    assert helps["llmkit summarize"].endswith("refuse it, truncate it, or process it in chunks.")
    assert helps["llmkit chat"].endswith("context: refuse it or truncate it.")
