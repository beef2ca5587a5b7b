"""Arguments that are not texts: folders, addresses, files of rows, names of missing files."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from llmkit.cli.text import read_text
from tests.cli.conftest import Run, one_line
from tests.data.test_documents import pdf


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").mkdir()
    for name, content in (
        ("rows.jsonl", '{"prompt": "a"}\n'),
        ("rows.csv", "prompt\na\n"),
        ("rows.json", ' [{"prompt": "a"}]'),
        ("settings.json", '{"name": "a"}'),
        ("page.html", "<!doctype html><p>The <b>reef</b>."),
    ):
        (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / "reef.pdf").write_bytes(pdf("The reef."))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["summarize", "docs"], "docs is a folder; answer each of its files with --input docs, or pass --text docs"),
        (["answer", "Who?", "."], ". is a folder; pass one of its files, or pass --text ."),
        (["summarize", "https://example.org/a?b=c"], "llmkit fetches no pages; save the page, and pass the file"),
        (["chat", "www.example.org"], "llmkit fetches no pages"),
        (["next", "docs"], "docs is a folder; pass --text docs for the words themselves"),
        (
            ["summarize", "rows.jsonl"],
            "rows.jsonl is a file of rows, not one text; answer each of its rows with --input",
        ),
        (["generate", "rows.csv"], "rows.csv is a file of rows"),
        (["translate", "rows.json", "--to", "fr"], "rows.json is a file of rows"),
        (["summarize", "report.pdf"], "the file report.pdf does not exist; check the path"),
        (["summarize", r"C:\texts\report"], "does not exist"),
    ],
)
def test_arguments_that_are_no_text(arguments: list[str], message: str, run: Run) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert message in one_line(err)


def test_documents_are_read_for_their_text(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "llmkit")
    assert read_text("reef.pdf", None) == "The reef.\n\n"
    assert "reef.pdf is a PDF file, of which the text is used" in caplog.text
    assert read_text("page.html", None, takes_document=True).strip() == "The reef."
    assert read_text("page.html", None) == "<!doctype html><p>The <b>reef</b>."
    assert read_text("settings.json", None) == '{"name": "a"}'
    _, _, err = run("summarize", stdin=b"{\\rtf1 The reef.}")
    assert "standard input is an RTF file, not text" in one_line(err)


@pytest.mark.parametrize(
    ("text", "document", "suspicious"),
    [
        ("LICENSE", True, True),
        ("LICENSE", False, False),
        ("Hello", False, False),
        ("texts/LICENSE", False, True),
        ("my report.pdf", False, True),
        ("今天天气很好。", True, False),
        ("The reef is old.", True, False),
        ("42", True, False),
    ],
)
def test_names_of_missing_files_are_warned_about(
    text: str, document: bool, suspicious: bool, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_text(text, None, takes_document=document) == text
    assert (f"no file is called {text}, so that is taken as the text itself" in caplog.text) == suspicious
