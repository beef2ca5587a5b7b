"""summarize, answer and translate as a user meets them: results on stdout, what was done on stderr, exit codes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from llmkit.inference.tuned_config import Contract, write_contract
from tests.cli.conftest import Run, one_line
from tests.conftest import Checkpoint

SHORT = ("--max-new-tokens", "6", "--dtype", "float32")
TEXT = "The quick brown fox jumps over the lazy dog. 今天天气很好，我们去公园散步。"


@pytest.fixture
def llama(checkpoint: Checkpoint) -> Path:
    return checkpoint("llama", chat=True, max_position_embeddings=1024)


def test_summarize_says_what_it_covered(run: Run, llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 150, encoding="utf-8")
    code, out, err = run("summarize", path, "--model", llama, *SHORT)
    assert code == 0
    assert out.strip()
    assert f"covered: all {len(TEXT) * 150} characters in " in err
    assert " chunks (" in err
    _, whole, _ = run("summarize", path, "--model", llama, *SHORT, "--json")
    result = json.loads(whole)
    assert result["text"] + "\n" == out
    assert result["chunks"][0]["start"] == 0
    assert result["chunks"][-1]["end"] == len(TEXT) * 150
    assert "in 1 chunk (" in run("summarize", "--model", llama, *SHORT, stdin=TEXT.encode())[2]


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_answer_takes_the_text_in_every_way(
    family: str,
    run: Run,
    checkpoint: Checkpoint,
    llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    base = ("answer", "Who jumps?", "--model", checkpoint("bert") if family == "bert" else llama)
    code, expected, _ = run(*base, TEXT)
    assert code == 0
    ways: list[tuple[str, ...]] = [("text.txt",), ("--context", "text.txt"), ("--context", TEXT), ("--text", TEXT)]
    for way in ways:
        assert run(*base, *way)[1] == expected
    for way in ((), ("-",)):
        assert run(*base, *way, stdin=TEXT.encode())[1] == expected
    assert "the text is passed twice" in one_line(run(*base, TEXT, "--context", TEXT)[2])
    assert "the context is missing; give it after the question" in one_line(run(*base)[2])


def test_marked_answers(run: Run, checkpoint: Checkpoint) -> None:
    base = ("answer", "天气？", TEXT, "--model", checkpoint("bert"), "--top", "3")
    _, out, err = run(*base)
    assert len(out.splitlines()) == 3
    result = json.loads(run(*base, "--json")[1])
    assert result["answered"] is True
    for answer in (result, *result["alternatives"]):
        assert TEXT[answer["start"] : answer["end"]] == answer["text"]
    assert f"characters {result['start']} to {result['end']}, score {result['score']:.3f}" in err
    code, out, err = run(*base[:-2], "--no-answer-threshold", "-1e9")
    assert (code, out) == (0, "\n")
    assert "the text does not contain the answer" in err


def test_translate(run: Run, checkpoint: Checkpoint) -> None:
    base = ("translate", "--model", checkpoint("nllb"), *SHORT, "--to", "French")
    code, out, err = run(*base, "Where is the library of the town?\n\n- `code`\n")
    assert code == 0
    assert out.endswith("\n\n- `code`\n")
    assert "the text is in English" in err
    result = json.loads(run(*base, "今天天气很好，我们去公园散步。", "--json")[1])
    assert (result["source_language"], result["target_language"]) == ("zh", "fr")
    for wrong, message in (
        (("--to", "frensh"), "did you mean 'French'"),
        (("--from", "fr"), "source and target are both French"),
        (("--to", "tlh"), "does not translate into"),
        (("--top", "3"), "unknown option --top; it is an option of llmkit answer"),
    ):
        code, out, err = run(*base, "Hello", *wrong)
        assert (code, out) == (2, "")
        assert message in one_line(err)


@pytest.mark.parametrize("verb", ["summarize", "translate", "chat"])
def test_bad_input_is_one_line(verb: str, run: Run, tmp_path: Path) -> None:
    extra = ("--to", "fr") if verb == "translate" else ()
    binary = tmp_path / "x.txt"
    binary.write_bytes(b"\0\1")
    for argument, message in (
        ("", "is empty"),
        (tmp_path, "is a folder"),
        (binary, "is a binary file"),
        (tmp_path / "no.txt", "does not exist"),
    ):
        code, out, err = run(verb, argument, "--model", "starter", *extra)
        assert (code, out) == (2, "")
        assert message in one_line(err)


def test_length(run: Run, checkpoint: Checkpoint) -> None:
    base = ("summarize", TEXT, "--model", checkpoint("bart"), "--dtype", "float32", "--json")
    tokens = {
        length: json.loads(run(*base, "--length", length)[1])["usage"]["completion_tokens"] for length in ("8", "30")
    }
    assert 4 <= tokens["8"] <= 8
    assert 15 <= tokens["30"] <= 30
    assert "length='tiny' is not a choice" in one_line(run(*base, "--length", "tiny")[2])


def test_an_option_wins_over_what_the_model_was_tuned_with_though_it_is_the_default(
    run: Run, llama: Path, tmp_path: Path
) -> None:
    tuned = shutil.copytree(llama, tmp_path / "tuned")
    write_contract(tuned, Contract("summarization", {"length": "short"}))
    base = ("summarize", TEXT, "--model", tuned, *SHORT)
    assert "was tuned with length=short" in run(*base, "--length", "medium")[2]
    assert "was tuned with" not in run(*base)[2]


# Models that think aloud.

OPENED = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}<|assistant|><think>\n"
QUESTION = {"question": "Where is the moon?", "context": "The quick brown fox jumps."}


def test_cut_off_while_thinking_is_no_verdict_on_a_question(checkpoint: Checkpoint, run: Run, tmp_path: Path) -> None:
    model = checkpoint("llama", chat=OPENED, max_position_embeddings=1024)
    short = ("--model", model, "--max-new-tokens", "6", "--temperature", "0")
    code, out, err = run("answer", QUESTION["question"], "--text", QUESTION["context"], *short)
    assert (code, out) == (0, "\n")
    assert "does not contain the answer" not in err
    assert "still reasoning when it was stopped; raise --max-new-tokens" in err
    assert "did not reach a verdict" in err
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({**QUESTION, "answers": {"text": [], "answer_start": []}}) + "\n", encoding="utf-8")
    _, out, err = run("answer", "--input", data, *short)
    record = json.loads(out)
    assert (record["answered"], record["still_thinking"], record["text"]) == (None, True, "")
    assert [note["code"] for note in record["notes"]] == ["no_verdict", "output_cut", "still_thinking"]
    summary = "of 1 answers 1 no_verdict, 1 output_cut, 1 still_thinking; see 'notes' in "
    assert f"{summary}the output" in err
    resumed = ("--output", tmp_path / "out.jsonl")
    run("answer", "--input", data, *short, *resumed)
    assert summary in run("answer", "--input", data, *short, *resumed, "--resume")[2]
    folder = tmp_path / "evaluation"
    code, out, err = run("evaluate", "--task", "answer", "--data", data, *short[:4], "-o", folder)
    assert code == 0
    heading = "1 rows, 1 unfinished\nnotes: 1 no_verdict, 1 output_cut, 1 still_thinking\n"
    assert re.search(rf"{heading}  exact_match +0\.00", out)
    assert "1 of 1 replies ended before an answer and count as wrong" in err
    assert json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["unfinished"] == 1
