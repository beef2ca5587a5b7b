"""Files of rows, run with a fake pipeline whose answers depend on the row, its number and all rows of its window."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmkit.config.settings import GenerationSettings, LoadSettings, RowSettings
from llmkit.data import rows as data_rows
from llmkit.data.rows import Layout, Record
from llmkit.engines.base import ModelFacts, Session
from llmkit.errors import InputError, LlmkitError, NotEnoughMemoryError, UsageError
from llmkit.files import locked, write_whole
from llmkit.inference import row_columns
from llmkit.inference.row_files import Report, answer_file, check_output
from llmkit.models.context import ContextLength
from llmkit.models.source import Source
from llmkit.tasks import Dialogue, Head, PromptOptions, QuestionAnswering, Summarization
from llmkit.tasks.base import Task
from llmkit.tasks.output import Output, Usage
from llmkit.tasks.summarization import SummarizationSettings
from llmkit.tasks.types import Row

ROWS = 11
WINDOW = 3


real_records = data_rows.open_records


class Killed(BaseException):
    """The process is gone."""


def fake_records(
    source: str | Path, *, encoding: str | None = None, text_column: str = "text", layout: Layout | None = None
) -> Iterator[Record]:
    name = "standard input" if source == "-" else Path(source).name
    with sys.stdin if source == "-" else Path(source).open(encoding=encoding or "utf-8") as file:
        for number, line in enumerate(file, start=1):
            where = f"{name}:{number}"
            if str(source).endswith(".txt"):
                yield Record(where, {text_column: line.rstrip("\n")})
                continue
            try:
                yield Record(where, json.loads(line))
            except ValueError:
                yield Record(where, None, InputError(f"{where} is not JSON", "fix the line"))


class FakePipeline:
    def __init__(
        self,
        task: Task | None = None,
        *,
        folder: Path = Path("/nowhere"),
        commit: str | None = "c0ffee",
        settings: GenerationSettings | None = None,
        prompt_options: PromptOptions | None = None,
        **source: Any,
    ) -> None:
        self.task = task or Summarization()
        self.settings = settings or GenerationSettings(max_new_tokens=64)
        self.prompt_options = prompt_options or PromptOptions()
        made = Source(name="tiny", folder=folder, commit=commit, **source)
        facts = ModelFacts(made, Head.CAUSAL, ContextLength(None, hard=False), dtype="float32", device="cpu")
        self.engine: Any = SimpleNamespace(facts=facts)
        self.free = 1000
        self.calls: list[int] = []
        self.budgets: set[int | None] = set()
        self.before: Callable[[], None] = lambda: None

    def session(self, max_batch_tokens: int | None = None) -> Session:
        return Session(self.engine, max_batch_tokens or self.free)

    def answer_all(
        self,
        rows: Sequence[str | Row],
        session: Session,
        *,
        number: int = 0,
        progress: Callable[[int, int], None] = lambda _rows, _tokens: None,
    ) -> list[Output | LlmkitError]:
        self.before()
        self.calls.append(number)
        self.budgets.add(session.max_batch_tokens)
        together = hashlib.sha256(repr((rows, number, session.max_batch_tokens)).encode()).hexdigest()[:8]
        progress(len(rows), 2 * len(rows))
        return [self._answer(row, f"{together}-{place}") for place, row in enumerate(rows)]

    def _answer(self, given: str | Row, salt: str) -> Output | LlmkitError:
        row = self.task.to_row(given)
        try:
            self.task.validate(row)
        except InputError as error:
            return error
        text = str(row[self.task.input_column])
        if text == "too large":
            return NotEnoughMemoryError("9 tokens do not fit in memory", "shorten the input")
        return Output(
            text=f"«{text}» 答 {salt}",
            task=self.task.name,
            model="tiny",
            commit=None,
            head="causal",
            finish_reason="stop",
            usage=Usage(3, 2),
            fields=self.task.output_fields,
            score=float("nan") if text == "no number" else None,
        )


@pytest.fixture(autouse=True)
def _fake_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_rows, "open_records", fake_records, raising=False)


def write_rows(path: Path, rows: Sequence[dict[str, Any] | str]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def mixed_rows(number: int = ROWS) -> list[dict[str, Any] | str]:
    """Good ones, one without its text, one that is no JSON; ids that take several bytes a character."""
    rows: list[dict[str, Any] | str] = [{"id": f"№{n}", "document": f"Text 文 {n}"} for n in range(number)]
    rows[4] = {"id": "№4", "document": " "}
    rows[7] = "{"
    return rows


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", mixed_rows())


def run(
    source: Path | str,
    output: Path | None,
    pipeline: FakePipeline | None = None,
    *,
    load: LoadSettings | None = None,
    encoding: str | None = None,
    progress: Callable[[int, int], None] = lambda _rows, _tokens: None,
    **settings: Any,
) -> Report:
    rows = RowSettings(
        input=(str(source),), output=None if output is None else str(output), **({"window": WINDOW} | settings)
    )
    fake: Any = pipeline or FakePipeline()
    return answer_file(fake, rows, load=load or LoadSettings(model="tiny"), encoding=encoding, progress=progress)


def run_processes(
    source: Path, output: Path, world: int = 2, dies: dict[int, int] | None = None, **settings: Any
) -> list[Any]:
    """Each process as a thread; ``dies`` says at which of its windows a rank does. What they report, or raise."""
    meetings = [threading.Barrier(world) for _ in range(2)]  # aborting one that was met could still break those in it
    results: list[Any] = [None] * world

    def work(rank: int) -> None:
        pipeline: Any = FakePipeline()
        ahead = list(meetings)

        def die() -> None:
            if (dies or {}).get(rank) == len(pipeline.calls):
                raise Killed

        def meet() -> None:
            ahead[0].wait(10)
            del ahead[0]

        pipeline.before = die
        rows = RowSettings(
            input=(str(source),), output=str(output), num_processes=world, **({"window": WINDOW} | settings)
        )
        try:
            results[rank] = answer_file(pipeline, rows, load=LoadSettings(), rank=rank, world=world, barrier=meet)
        except BaseException as error:  # noqa: BLE001
            results[rank] = error
            for meeting in ahead:
                meeting.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def records_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.read_text(encoding="utf-8").split("\n")[:-1]]


def refused(*arguments: Any, **settings: Any) -> str:
    with pytest.raises(UsageError) as caught:
        run(*arguments, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# One run.


def test_a_line_is_the_other_columns_and_the_output(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [{"id": 1, "document": "One\u2028two", "tags": ["a", None]}])
    run(source, tmp_path / "out.jsonl")
    (record,) = records_of(tmp_path / "out.jsonl")
    assert list(record)[:4] == ["id", "tags", "schema_version", "task"]
    assert "document" not in record
    assert record["text"].startswith("«One\u2028two» 答")
    assert "答" in (tmp_path / "out.jsonl").read_text(encoding="utf-8")


def test_only_the_first_rows_are_answered(tmp_path: Path, source: Path) -> None:
    report = run(source, tmp_path / "out.jsonl", max_rows=WINDOW + 1)
    assert (report.rows, report.total) == (4, 4)
    run(source, tmp_path / "all.jsonl")
    assert records_of(tmp_path / "out.jsonl")[:WINDOW] == records_of(tmp_path / "all.jsonl")[:WINDOW]


def test_bad_rows_have_their_records_in_place(tmp_path: Path, source: Path) -> None:
    report = run(source, tmp_path / "out.jsonl")
    records = records_of(tmp_path / "out.jsonl")
    assert len(records) == ROWS
    assert records[4] == {
        "id": "№4",
        "schema_version": 1,
        "error": {
            "code": "empty_input",
            "type": "InputError",
            "message": "the document is empty; give llmkit summarize some text",
            "where": "rows.jsonl:5",
        },
    }
    assert records[7] == {
        "schema_version": 1,
        "error": {
            "code": "invalid_input",
            "type": "InputError",
            "message": "rows.jsonl:8 is not JSON; fix the line",
            "where": "rows.jsonl:8",
        },
    }
    assert [n for n, record in enumerate(records) if "error" in record] == [4, 7]
    assert all(record["id"] == f"№{n}" for n, record in enumerate(records) if n != 7)
    assert (report.rows, report.errors, report.resumed, report.total) == (ROWS, 2, 0, ROWS)
    assert (report.prompt_tokens, report.completion_tokens) == (3 * (ROWS - 2), 2 * (ROWS - 2))
    assert left(tmp_path) == {"rows.jsonl", "out.jsonl", "out.jsonl.run.json"}


def test_any_error_of_a_row_and_a_score_that_is_no_number_are_its_own(tmp_path: Path) -> None:
    texts = ["too large", "fine", "no number"]
    source = write_rows(tmp_path / "rows.jsonl", [{"question": "?", "context": text} for text in texts])
    run(source, tmp_path / "out.jsonl", FakePipeline(QuestionAnswering()))
    records = records_of(tmp_path / "out.jsonl")
    assert records[0]["error"]["type"] == "NotEnoughMemoryError"
    assert records[1]["text"]
    assert "'score'" in records[2]["error"]["message"]


def test_windows_are_whole_and_bad_records_are_no_part_of_them(tmp_path: Path, source: Path) -> None:
    pipeline = FakePipeline()
    seen: list[tuple[int, int]] = []
    run(source, tmp_path / "out.jsonl", pipeline, progress=lambda rows, tokens: seen.append((rows, tokens)))
    assert pipeline.calls == [0, 3, 6, 9]
    assert pipeline.budgets == {1000}
    assert sum(rows for rows, _ in seen) == ROWS
    assert sum(tokens for _, tokens in seen) == 2 * (ROWS - 1)


def test_the_written_columns_are_renamed(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [{"text": "One", "error": 1, "n": 2, "kept": 3}])
    columns = ("document=text", "input_text=text", "old_error=error")
    run(source, tmp_path / "out.jsonl", column=columns)
    (record,) = records_of(tmp_path / "out.jsonl")
    assert record["text"].startswith("«One»")
    assert [record[name] for name in ("input_text", "old_error", "n", "kept")] == ["One", 1, 2, 3]
    assert "error" not in record


def test_a_field_that_the_task_does_not_have_is_refused(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [{"document": "a", "id": 1}])
    for column, fix in (
        ("documnet=id", "did you mean `column=document=id`?"),
        ("x=id", "choose from document, summary"),
    ):
        message = f"{column.partition('=')[0]!r} is not a field of summarization; {fix}"
        assert refused(source, tmp_path / "out.jsonl", column=(column,)) == message


def test_columns_can_change_places(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [{"question": "the text", "context": "the question"}])
    run(
        source,
        tmp_path / "out.jsonl",
        FakePipeline(QuestionAnswering()),
        column=("question=context", "context=question"),
    )
    assert records_of(tmp_path / "out.jsonl")[0]["text"].startswith("«the text»")


def test_a_row_gets_only_what_its_task_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = FakePipeline()
    given: list[Any] = []
    answer = pipeline.answer_all

    def listen(rows: Sequence[Any], *budget: Any, **options: Any) -> Any:
        given.extend(rows)
        return answer(rows, *budget, **options)

    monkeypatch.setattr(pipeline, "answer_all", listen)
    run(write_rows(tmp_path / "rows.jsonl", [{"document": "a", "part": True}]), tmp_path / "out.jsonl", pipeline)
    assert given == [{"document": "a"}]


@pytest.mark.parametrize(
    ("row", "columns", "error"),
    [
        (
            {"document": "a", "text": "b"},
            (),
            "the column 'text' conflicts with an output field; rename it: `column=input_text=text`",
        ),
        ({"document": "a", "error": "b"}, (), "`column=input_error=error`"),
        (
            {"body": "a", "document": "b"},
            ("document=body",),
            "'body' is mapped to 'document', which exists already; rename the other one too:"
            " `column=other_document=document`",
        ),
        (
            {"body": "a"},
            ("document=text_body",),
            "no column 'text_body' found (the columns: 'body'); did you mean `column=document=body`?",
        ),
        (
            {"leaf": "a", "id": 1},
            (),
            "no column 'document' found (the columns: 'leaf', 'id'); name it: `column=document=COLUMN`",
        ),
    ],
)
def test_columns_that_do_not_fit(tmp_path: Path, row: dict[str, Any], columns: tuple[str, ...], error: str) -> None:
    output = tmp_path / "out.jsonl"
    fitting = {"document": "good"} | {column.partition("=")[2]: "good" for column in columns}
    if {"body", "text_body"} & fitting.keys():
        del fitting["document"]
    source = write_rows(tmp_path / "rows.jsonl", [fitting, row])
    run(source, output, column=columns)
    good, bad = records_of(output)
    assert "error" not in good
    assert bad["error"]["message"].endswith(error)
    assert not {"text", "model"} & set(bad)

    write_rows(source, [row] * 30)
    with pytest.raises(InputError) as caught:
        run(source, tmp_path / "other.jsonl", column=columns)
    assert str(caught.value).startswith(f"{source}: ")
    assert str(caught.value).endswith(error)
    assert not (tmp_path / "other.jsonl").exists()
    assert not (tmp_path / "other.jsonl.run.json").exists()


def test_a_new_name_must_be_free_too(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [{"document": "a", "error": "b"}])
    assert refused(source, tmp_path / "out.jsonl", column=("model=error",)) == (
        f"{source}: the column 'model' conflicts with an output field; rename it: `column=input_model=error`"
    )


def test_a_name_that_only_other_tasks_write_is_free(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [{"document": "a", "start": 1, "score": 2}])
    run(source, tmp_path / "out.jsonl")
    assert records_of(tmp_path / "out.jsonl")[0]["score"] == 2


def test_one_of_the_first_rows_is_enough(tmp_path: Path) -> None:
    rows: list[dict[str, Any] | str] = [{"id": n} for n in range(25)]
    source = write_rows(tmp_path / "rows.jsonl", [*rows[:19], {"document": "a"}, *rows])
    assert run(source, tmp_path / "out.jsonl").errors == 44
    source = write_rows(tmp_path / "late.jsonl", [*rows[:20], {"document": "a"}, *rows])
    assert "late.jsonl: no column 'document' found" in refused(source, tmp_path / "out2.jsonl")
    source = write_rows(tmp_path / "broken.jsonl", ["{"] * 30)
    assert run(source, tmp_path / "out3.jsonl").errors == 30


def test_text_lines(tmp_path: Path) -> None:
    source = tmp_path / "rows.txt"
    source.write_text("one\ntwo\n", encoding="utf-8")
    run(source, tmp_path / "out.jsonl", column=("document=line",))
    assert [record["text"][:5] for record in records_of(tmp_path / "out.jsonl")] == ["«one»", "«two»"]
    assert "no column 'question'" in refused(source, tmp_path / "b.jsonl", FakePipeline(QuestionAnswering()))
    run(source, tmp_path / "c.jsonl", FakePipeline(Dialogue()))
    assert len(records_of(tmp_path / "c.jsonl")) == 2


def test_with_the_real_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_rows, "open_records", real_records)
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("id,body\n1,one\n2\n3,three\n", encoding="utf-8")
    assert run("rows.csv", tmp_path / "out.jsonl", column=("document=body",)).errors == 1
    first, bad, last = records_of(tmp_path / "out.jsonl")
    assert (first["id"], first["text"][:5], last["id"]) == ("1", "«one»", "3")
    assert bad["error"]["where"] == "rows.csv:3"
    Path("rows.txt").write_text("one\n\nthree", encoding="utf-8")
    run("rows.txt", tmp_path / "text.jsonl")
    assert [record["text"].split("»")[0] for record in records_of(tmp_path / "text.jsonl")] == ["«one", "«three"]


def test_values_that_are_no_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = {"at": datetime(2026, 1, 2, 3, tzinfo=UTC), "on": [date(2026, 1, 2)], "price": Decimal("1.50")}
    rows: list[dict[str, Any]] = [
        good,
        {"blob": b"\xff", "id": 1},
        {"ratio": float("nan")},
        {"ratio": [{"a": float("inf")}]},
        {"half": "\ud83d"},
    ]
    records = [Record(f"rows.parquet:{n}", {"document": "a"} | row) for n, row in enumerate(rows)]
    monkeypatch.setattr(data_rows, "open_records", lambda *_, **__: iter(records))
    (tmp_path / "rows.parquet").touch()
    run(tmp_path / "rows.parquet", tmp_path / "out.jsonl")
    first, blob, nan, infinite, half = records_of(tmp_path / "out.jsonl")
    assert (first["at"], first["on"], first["price"]) == ("2026-01-02T03:00:00+00:00", ["2026-01-02"], "1.50")
    assert blob["id"] == 1
    assert "the column 'blob' cannot be written as JSON (bytes values)" in blob["error"]["message"]
    for record in (nan, infinite):
        assert "the column 'ratio' cannot be written as JSON" in record["error"]["message"]
    assert half["half"] == "\ud83d"


def test_fail_fast_keeps_what_came_before(tmp_path: Path, source: Path) -> None:
    output, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    run(source, whole)
    for _ in range(2):  # resumed, it stops there again
        with pytest.raises(InputError, match=r"^rows\.jsonl:5: the document is empty; give"):
            run(source, output, fail_fast=True, resume=True)
        assert output.read_bytes() == b"".join(whole.read_bytes().splitlines(keepends=True)[:4])
    run(source, output, resume=True)
    assert output.read_bytes() == whole.read_bytes()

    write_rows(source, [{"document": "a"}, {"document": "b"}, "{", "{"])
    with pytest.raises(InputError, match=r"^rows\.jsonl:3 is not JSON; fix the line$"):
        run(source, None, fail_fast=True)


def test_an_empty_file_gives_an_empty_one(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [])
    assert run(source, tmp_path / "out.jsonl").total == 0
    assert (tmp_path / "out.jsonl").read_bytes() == b""
    assert run_processes(source, tmp_path / "two.jsonl")[0].total == 0
    assert (tmp_path / "two.jsonl").read_bytes() == b""


def test_stdin_and_stdout(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(source, tmp_path / "whole.jsonl")
    report = run(source, None)
    assert report.total == ROWS
    assert capsys.readouterr().out.encode() == (tmp_path / "whole.jsonl").read_bytes()

    monkeypatch.setattr(sys, "stdin", io.StringIO(source.read_text(encoding="utf-8")))
    run("-", tmp_path / "out.jsonl")
    assert len(records_of(tmp_path / "out.jsonl")) == ROWS
    manifest = json.loads((tmp_path / "out.jsonl.run.json").read_text(encoding="utf-8"))
    assert manifest["input"] == {"file": "standard input", "bytes": None, "sha256": None}
    assert "the input was standard input and is /" in refused(source, tmp_path / "out.jsonl", resume=True)
    assert left(tmp_path) == {"rows.jsonl", "whole.jsonl", "whole.jsonl.run.json", "out.jsonl", "out.jsonl.run.json"}


def test_from_a_pipe_no_more_than_a_window_is_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    answered: list[int] = []

    def records(*_: object, **__: object) -> Iterator[Record]:
        for number in range(8):
            read.append(number)
            yield Record(f"-:{number}", {"document": "a"})

    monkeypatch.setattr(data_rows, "open_records", records)
    pipeline = FakePipeline()
    pipeline.before = lambda: answered.append(len(read))
    run("-", None, pipeline, window=2)
    assert answered == [2, 4, 6, 8]


def test_no_more_than_a_window_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Value:
        pass

    living: weakref.WeakSet[Value] = weakref.WeakSet()
    most = 0

    def records(*_: object, **__: object) -> Iterator[Record]:
        nonlocal most
        for number in range(200_000):
            row: dict[str, Any] = {"document": "a"}
            if number % 100 == 0:
                row["value"] = Value()
                living.add(row["value"])
                most = max(most, len(living))
            yield Record(f"rows:{number}", row)
            del row

    monkeypatch.setattr(data_rows, "open_records", records)
    monkeypatch.setattr(row_columns, "_to_json", lambda name, value: '"error"')
    monkeypatch.setattr(FakePipeline, "_answer", lambda *_: InputError("x"))
    source = write_rows(tmp_path / "rows.jsonl", [])
    assert run(source, tmp_path / "out.jsonl", window=1000).total == 200_000
    assert 0 < most <= 11
    most = 0
    assert run(source, tmp_path / "out.jsonl", window=1000, resume=True).resumed == 200_000
    assert 0 < most <= 11


# Resumed runs.


def cuts(content: bytes) -> Iterator[int]:
    """Every byte of the first lines and of two in the middle, and around the ends of the others."""
    ends = [n for n, byte in enumerate(content) if byte == 10]
    yield from range(ends[0] + 3)
    yield from range(ends[4], ends[5] + 2)
    for end in ends:
        yield from range(end - 1, end + 3)


def test_resumed_from_any_byte_it_is_the_same_file(tmp_path: Path, source: Path) -> None:
    output = tmp_path / "out.jsonl"
    whole_report = run(source, output)
    whole = output.read_bytes()
    inside_a_character = 0
    for cut in sorted({min(cut, len(whole)) for cut in cuts(whole)}):
        inside_a_character += cut < len(whole) and whole[cut] & 0xC0 == 0x80
        output.write_bytes(whole[:cut])
        pipeline = FakePipeline()
        pipeline.free = 77  # less memory is free now, and batches must be as they were
        report = run(source, output, pipeline, resume=True)
        assert output.read_bytes() == whole, cut
        done = whole[:cut].count(b"\n")
        assert (report.resumed, report.rows, report.total) == (done, ROWS - done, ROWS)
        assert report.errors == whole_report.errors
        assert pipeline.calls == ([] if done == ROWS else list(range(done // WINDOW * WINDOW, ROWS, WINDOW)))
    assert inside_a_character > 10


@pytest.mark.parametrize("tail", [b"\0" * 50 + b"\n", b'{"a": 1\n', b"3\n", b'{"a": "\xff"}\n', b'{"a": 1}\n\xe6'])
def test_what_is_no_record_is_cut_off(tmp_path: Path, source: Path, tail: bytes) -> None:
    output = tmp_path / "out.jsonl"
    run(source, output)
    whole = output.read_bytes()
    lines = whole.splitlines(keepends=True)
    kept = b"".join(lines[:5])
    output.write_bytes(kept + tail if not tail.startswith(b'{"a": 1}\n') else kept + lines[5] + tail[-1:])
    run(source, output, resume=True)
    assert output.read_bytes() == whole


def test_a_finished_run_has_nothing_to_resume(tmp_path: Path, source: Path) -> None:
    seen: list[int] = []
    run(source, tmp_path / "out.jsonl")
    pipeline = FakePipeline()
    report = run(source, tmp_path / "out.jsonl", pipeline, resume=True, progress=lambda rows, _: seen.append(rows))
    assert (report.rows, report.resumed, report.errors, pipeline.calls) == (0, ROWS, 2, [])
    assert sum(seen) == ROWS


def test_a_resumed_run_tells_each_row_once(tmp_path: Path, source: Path) -> None:
    output = tmp_path / "out.jsonl"
    run(source, output)
    output.write_bytes(b"".join(output.read_bytes().splitlines(keepends=True)[:7]))
    seen: list[int] = []
    run(source, output, resume=True, progress=lambda rows, _: seen.append(rows))
    assert sum(seen) == ROWS


def test_resume_starts_where_there_is_nothing(tmp_path: Path, source: Path) -> None:
    output = tmp_path / "out.jsonl"
    assert run(source, output, resume=True).rows == ROWS
    whole = output.read_bytes()
    output.unlink()
    assert run(source, output, resume=True).rows == ROWS
    assert output.read_bytes() == whole
    (tmp_path / "out.jsonl.run.json").unlink()
    assert "its manifest out.jsonl.run.json does not" in refused(source, output, resume=True)
    assert output.read_bytes() == whole


def test_a_file_with_more_lines_than_rows_is_of_another_run(tmp_path: Path, source: Path) -> None:
    output = tmp_path / "out.jsonl"
    run(source, output)
    for more in (1, 5):
        output.write_bytes(output.read_bytes() + b"{}\n" * more)
        assert "more lines than the input has rows" in refused(source, output, resume=True)


SCRIPT = """
import sys, time
from pathlib import Path
from llmkit.data import rows
from tests.inference import test_row_files as tests
rows.open_records = tests.fake_records
pipeline = tests.FakePipeline()
pipeline.before = lambda: time.sleep(0.002)
tests.run(Path(sys.argv[1]), Path(sys.argv[2]), pipeline, resume=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_killed_and_resumed_it_is_the_same_file(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", mixed_rows(600))
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    run(source, whole)
    size = whole.stat().st_size
    chance = random.Random(5)
    kills = 0
    for goal in sorted(chance.randrange(1, size * 3 // 4) for _ in range(2)):
        child = subprocess.Popen([sys.executable, "-c", SCRIPT, source, output], cwd=Path(__file__).parents[2])
        while child.poll() is None and (not output.exists() or output.stat().st_size < goal):
            time.sleep(0.001)
        child.send_signal(signal.SIGKILL)
        kills += child.wait() == -signal.SIGKILL
        assert output.stat().st_size < size
    assert kills == 2
    assert (tmp_path / "out.jsonl.lock").exists()  # of the killed one; it holds nobody up and goes with the next
    report = run(source, output, resume=True)
    assert report.resumed > 0
    assert output.read_bytes() == whole.read_bytes()
    assert not (tmp_path / "out.jsonl.lock").exists()


# What a resumed run must have in common with the one it goes on with.


def test_a_run_says_what_it_was_made_from(tmp_path: Path, source: Path) -> None:
    run(source, tmp_path / "out.jsonl")
    manifest = json.loads((tmp_path / "out.jsonl.run.json").read_text(encoding="utf-8"))
    assert manifest["schema_version"] == 1
    assert set(manifest["made_with"]) == {"llmkit", "torch", "transformers", "device"}
    content = source.read_bytes()
    assert manifest["input"] == {
        "file": str(source),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    assert manifest["model"]["commit"] == "c0ffee"
    assert manifest["model"]["files"] == {}  # a commit tells
    assert manifest["max_batch_tokens"] == 1000
    assert manifest["num_processes"] == 1


@pytest.mark.parametrize(
    ("pipeline", "settings", "problem"),
    [
        ({"settings": GenerationSettings(max_new_tokens=32)}, {}, "max_new_tokens was 64 and is 32"),
        ({"settings": GenerationSettings(max_new_tokens=64, stop=("a",))}, {}, 'stop was [] and is ["a"]'),
        ({"settings": GenerationSettings(max_new_tokens=64, seed=1)}, {}, "seed was not set and is 1"),
        ({"task": Summarization(SummarizationSettings(length="short"))}, {}, "length was medium and is short"),
        ({"prompt_options": PromptOptions(system="Be brief.")}, {}, 'system was "" and is Be brief.'),
        ({"prompt_options": PromptOptions(prefill="In short")}, {}, 'prefill was "" and is In short'),
        ({"prompt_options": PromptOptions(raw=True)}, {}, "raw was false and is true"),
        (
            {"prompt_options": PromptOptions(examples=[{"document": "a", "summary": "b"}])},
            {},
            "the examples have changed",
        ),
        ({"commit": "decaf"}, {}, "the model's commit was c0ffee and is decaf"),
        ({"adapter": Path(), "adapter_commit": "decaf"}, {}, "the model's adapter_commit was not set and is decaf"),
        ({}, {"window": 4}, "window was 3 and is 4"),
        ({}, {"max_rows": 10}, "max_rows was not set and is 10"),
        ({}, {"column": ("summary=id",)}, "the column of summary was not set and is id"),
        ({}, {"encoding": "latin-1"}, "encoding was not set and is latin-1"),
        ({}, {"load": LoadSettings(model="tiny", revision="v1")}, "revision was not set and is v1"),
        ({}, {"load": LoadSettings(quantize="8bit")}, "quantize was not set and is 8bit"),
        ({}, {"load": LoadSettings(dtype="float16")}, "dtype was auto and is float16"),
        ({}, {"load": LoadSettings(head="causal")}, "head was not set and is causal"),
        ({}, {"load": LoadSettings(attn_implementation="eager")}, "attn_implementation was not set and is eager"),
    ],
)
def test_another_run_is_not_resumed(
    tmp_path: Path, source: Path, pipeline: dict[str, Any], settings: dict[str, Any], problem: str
) -> None:
    output = tmp_path / "out.jsonl"
    run(source, output)
    before = output.read_bytes()
    message = refused(source, output, FakePipeline(**pipeline), resume=True, **settings)
    assert message == (
        f"the run to resume used different settings: {problem}; "
        "run without `resume` into another `output`, or with `overwrite`"
    )
    assert output.read_bytes() == before
    run(source, output, FakePipeline(**pipeline), overwrite=True, **settings)
    run(source, output, FakePipeline(**pipeline), resume=True, **settings)


def test_settings_that_change_no_answer_may_differ(tmp_path: Path, source: Path) -> None:
    output = tmp_path / "out.jsonl"
    run(source, output, max_batch_tokens=50)
    pipeline = FakePipeline()
    output.unlink()
    run(source, output, pipeline, load=LoadSettings(model="tiny", offline=True), resume=True)
    assert pipeline.budgets == {50}


def test_the_changes_named_are_few(tmp_path: Path, source: Path) -> None:
    run(source, tmp_path / "out.jsonl")
    other = FakePipeline(settings=GenerationSettings(max_new_tokens=1, seed=1, temperature=0.5, top_k=3, top_p=0.5))
    assert " and 2 more; " in refused(source, tmp_path / "out.jsonl", other, resume=True)


def test_a_folder_is_resumed_unless_its_files_changed(tmp_path: Path) -> None:
    folder, output = tmp_path / "rows", tmp_path / "rows" / "out.jsonl"
    folder.mkdir()
    for name in ("a", "b"):
        write_rows(folder / f"{name}.jsonl", mixed_rows())
    run(folder, output)
    whole = output.read_bytes()
    assert len(records_of(output)) == 2 * ROWS
    output.write_bytes(whole[: len(whole) // 2])
    run(folder, output, resume=True)
    assert output.read_bytes() == whole
    write_rows(folder / "c.jsonl", mixed_rows())
    (folder / "a.jsonl").unlink()
    message = refused(folder, output, resume=True)
    for name, change in (("a", "is gone"), ("c", "is new")):
        assert f"the input file {folder / name}.jsonl {change}" in message


def test_an_input_that_changed_is_not_resumed(tmp_path: Path, source: Path) -> None:
    output = tmp_path / "out.jsonl"
    run(source, output)
    renamed = source.rename(tmp_path / "more.jsonl")
    assert re.search(r"the input was \S+rows\.jsonl and is \S+more\.jsonl; ", refused(renamed, output, resume=True))
    source.write_text(renamed.read_text(encoding="utf-8").replace("Text", "Tests"), encoding="utf-8")
    assert "different settings: the input has changed; run" in refused(source, output, resume=True)


def test_a_local_model_that_changed_is_not_resumed(tmp_path: Path, source: Path) -> None:
    output, folder, adapter = tmp_path / "out.jsonl", tmp_path / "model", tmp_path / "adapter"
    for place, names in (
        (folder, ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja")),
        (adapter, ("adapter_config.json", "adapter_model.safetensors")),
    ):
        place.mkdir()
        for name in names:
            (place / name).write_text(name, encoding="utf-8")
    (folder / "model.gguf").write_text("gguf", encoding="utf-8")
    (folder / "README.md").write_text("before", encoding="utf-8")

    def again(**options: Any) -> str:
        return refused(source, output, FakePipeline(folder=folder, commit=None, **options), resume=True)

    run(source, output, FakePipeline(folder=folder, commit=None, adapter=adapter))
    (folder / "README.md").write_text("after", encoding="utf-8")
    run(source, output, FakePipeline(folder=folder, commit=None, adapter=adapter), resume=True)
    for path in (folder / "model.safetensors", folder / "chat_template.jinja", adapter / "adapter_model.safetensors"):
        before = path.read_text(encoding="utf-8")
        path.write_text("other", encoding="utf-8")
        assert f"{path.name} of the model has changed" in again(adapter=adapter)
        path.write_text(before, encoding="utf-8")
    (folder / "generation_config.json").write_text("{}", encoding="utf-8")
    assert "generation_config.json of the model has changed" in again(adapter=adapter)

    run(source, output, FakePipeline(folder=folder, commit=None, gguf_file="model.gguf"), overwrite=True)
    (folder / "config.json").write_text("is not read", encoding="utf-8")
    run(source, output, FakePipeline(folder=folder, commit=None, gguf_file="model.gguf"), resume=True)
    (folder / "model.gguf").write_text("other", encoding="utf-8")
    assert "model.gguf of the model has changed" in again(gguf_file="model.gguf")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"schema_version": 99, "max_batch_tokens": 1}'])
def test_a_manifest_that_cannot_be_read(tmp_path: Path, source: Path, content: str) -> None:
    run(source, tmp_path / "out.jsonl")
    (tmp_path / "out.jsonl.run.json").write_text(content, encoding="utf-8")
    assert "out.jsonl.run.json is not a valid manifest" in refused(source, tmp_path / "out.jsonl", resume=True)


def test_the_manifest_is_whole_and_there_before_the_first_row(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, manifest = tmp_path / "out.jsonl", tmp_path / "out.jsonl.run.json"

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", killed)
        with pytest.raises(Killed):
            run(source, output)
    assert not manifest.exists()
    (tmp_path / "out.jsonl.run.json.tmp").write_text('{"schema', encoding="utf-8")  # by one that had no time to tidy
    assert not output.exists()

    pipeline = FakePipeline()
    pipeline.before = killed
    with pytest.raises(Killed):
        run(source, output, pipeline, resume=True)
    assert json.loads(manifest.read_text(encoding="utf-8"))["input"]["file"] == str(source)
    assert left(tmp_path) == {"rows.jsonl", "out.jsonl", "out.jsonl.run.json"}


# Where the output goes.


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        ("out.json", "JSON Lines are written"),
        ("out.jsonl.gz", "uncompressed"),
        ("out", "name a file in .jsonl or .ndjson"),
        ("none/out.jsonl", "does not exist"),
        ("folder.jsonl", "is a folder"),
        ("./rows.jsonl", "is the input"),
        ("link.jsonl", "is the input"),
        ("full.jsonl", "full.jsonl exists; continue it with `resume`, or replace it with `overwrite`"),
    ],
)
def test_outputs_that_are_refused_before_a_model_is_loaded(
    tmp_path: Path, source: Path, output: str, problem: str
) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "full.jsonl").write_text("{}\n", encoding="utf-8")
    (tmp_path / "link.jsonl").symlink_to(source)
    before = source.read_bytes()
    for overwrite in (False, True):
        if overwrite and output == "full.jsonl":
            continue
        with pytest.raises(UsageError) as caught:
            check_output(RowSettings(input=(str(source),), output=f"{tmp_path}/{output}", overwrite=overwrite))
        assert problem in str(caught.value)
    assert problem in refused(source, tmp_path / output)
    assert source.read_bytes() == before


def test_outputs_that_are_fine(tmp_path: Path, source: Path) -> None:
    (tmp_path / "empty.ndjson").touch()
    for output in ("new.jsonl", "empty.ndjson", "NEW.JSONL"):
        check_output(RowSettings(input=(str(source),), output=str(tmp_path / output)))
    check_output(RowSettings(input=(str(source),)))
    check_output(RowSettings(input=(str(source),), output=str(tmp_path / "new.jsonl"), resume=True))
    with pytest.raises(UsageError, match="a pipe cannot be shared"):
        check_output(RowSettings(input=("-",), output=str(tmp_path / "new.jsonl"), num_processes=2))


def test_overwrite_leaves_nothing_of_the_run_before(tmp_path: Path, source: Path) -> None:
    output = tmp_path / "out.jsonl"
    run_processes(source, output, dies={0: 1, 1: 1})
    assert (tmp_path / "out.jsonl.shard-0-of-2").stat().st_size
    assert "shard-0-of-2 exists; continue it with `resume`" in refused(source, output)
    run(source, output, overwrite=True, window=2)
    assert left(tmp_path) == {"rows.jsonl", "out.jsonl", "out.jsonl.run.json"}
    assert len(records_of(output)) == ROWS


def test_two_runs_do_not_write_one_file(tmp_path: Path, source: Path) -> None:
    output = tmp_path / "out.jsonl"
    pipeline = FakePipeline()
    refusals: list[str] = []
    pipeline.before = lambda: refusals.append(refused(source, output, overwrite=True))
    run(source, output, pipeline)
    assert set(refusals) == {f"another process is writing {output}; wait for it, or name another `output`"}
    assert len(records_of(output)) == ROWS
    assert not (tmp_path / "out.jsonl.lock").exists()


def edit(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


def replace_by_a_copy(path: Path) -> None:
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    copy.replace(path)


@pytest.mark.parametrize("window", [1, 3, 5])
@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(b""), edit, replace_by_a_copy])
def test_an_output_that_another_program_changes_ends_the_run(
    spoil: Callable[[Path], None], window: int, tmp_path: Path, source: Path
) -> None:
    pipeline, output = FakePipeline(), tmp_path / "out.jsonl"

    def spoil_the_third() -> None:
        if len(pipeline.calls) == 2:
            spoil(output)

    pipeline.before = spoil_the_third
    with pytest.raises(UsageError, match=r"another program (removed|changed) .*out\.jsonl .*`overwrite`"):
        run(source, output, pipeline=pipeline, window=window)


@pytest.mark.parametrize("name", ["out.jsonl.run.json.tmp", "other.jsonl.tmp"])
def test_a_link_where_a_temporary_file_goes_is_not_followed(name: str, tmp_path: Path, source: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / name).symlink_to(precious)
    run(source, tmp_path / "out.jsonl")
    run_processes(source, tmp_path / "other.jsonl")
    assert precious.read_text() == "precious"


def test_a_full_disk_is_one_line(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, mode: str = "r", **options: Any) -> Any:
        if mode == "r+b":
            raise OSError(28, "No space left on device")
        return opens(self, mode, **options)

    opens = Path.open
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(LlmkitError, match=r"out\.jsonl cannot be written \(No space left on device\); free some"):
        run(source, tmp_path / "out.jsonl")


# Several processes.


@pytest.mark.parametrize("world", [2, 3, 5])
def test_processes_make_the_same_file(tmp_path: Path, source: Path, world: int) -> None:
    run(source, tmp_path / "one.jsonl")
    reports = run_processes(source, tmp_path / "out.jsonl", world)
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert sum(report.rows for report in reports) == ROWS
    assert (reports[0].total, reports[0].errors) == (ROWS, 2)
    names = {"rows.jsonl", "one.jsonl", "one.jsonl.run.json", "out.jsonl", "out.jsonl.run.json"}
    assert left(tmp_path) == names


def test_shards_resumed_from_any_byte_make_the_same_file(tmp_path: Path, source: Path) -> None:
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    run(source, whole)
    assert run_processes(source, output)[0].total == ROWS
    lines = whole.read_bytes().splitlines(keepends=True)
    parts = [b"".join(lines[n] for n in range(ROWS) if n // WINDOW % 2 == rank) for rank in range(2)]
    chance = random.Random(3)
    for cut in range(0, len(parts[1]) + 1, 7):
        cut_too = chance.randrange(len(parts[0]) + 1)
        output.unlink(missing_ok=True)
        (tmp_path / "out.jsonl.shard-0-of-2").write_bytes(parts[0][:cut_too])
        (tmp_path / "out.jsonl.shard-1-of-2").write_bytes(parts[1][:cut])
        reports = run_processes(source, output, resume=True)
        assert output.read_bytes() == whole.read_bytes(), (cut, cut_too)
        assert reports[0].resumed == parts[0][:cut_too].count(b"\n")
        assert reports[0].errors == 2


def test_processes_killed_while_they_join(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    run(source, whole)

    def killed(*_: object, **__: object) -> None:
        raise Killed

    def killed_at_a_shard(path: Path, missing_ok: bool = False) -> None:
        if ".shard-1" in path.name and not path.name.endswith(".lock"):
            raise Killed
        unlinks(path, missing_ok)

    unlinks = Path.unlink
    replaces = Path.replace
    for moment in ("before", "after"):
        with monkeypatch.context() as patch:
            if moment == "before":
                patch.setattr(
                    Path,
                    "replace",
                    lambda path, to: killed() if path.name == "out.jsonl.tmp" else replaces(path, to),
                )
                results = run_processes(source, output)
                assert not output.exists()
            else:
                patch.setattr(Path, "unlink", killed_at_a_shard)
                results = run_processes(source, output, resume=True)
                assert (tmp_path / "out.jsonl.shard-1-of-2").exists()
        assert isinstance(results[0], Killed)
    again = run_processes(source, output, resume=True)
    assert [report.rows for report in again] == [0, 0]
    assert (again[0].total, again[0].resumed, again[0].errors) == (ROWS, ROWS, 2)
    assert output.read_bytes() == whole.read_bytes()
    names = {"rows.jsonl", "whole.jsonl", "whole.jsonl.run.json", "out.jsonl", "out.jsonl.run.json"}
    assert left(tmp_path) == names


def test_another_number_of_processes_is_another_run(tmp_path: Path, source: Path) -> None:
    output = tmp_path / "out.jsonl"
    run_processes(source, output, dies={0: 1, 1: 1})
    assert "num_processes was 2 and is 1" in refused(source, output, resume=True)
    (error, _) = run_processes(source, output, 3, resume=True)[:2]
    assert "num_processes was 2 and is 3" in str(error)


def test_an_orphan_of_a_killed_run_keeps_its_shard(tmp_path: Path, source: Path) -> None:
    output = tmp_path / "out.jsonl"
    with locked(tmp_path / "out.jsonl.shard-1-of-2.lock", "writing it"):
        results = run_processes(source, output)
    assert "another process is writing" in str(results[1])
    assert not output.exists()


def test_a_named_pipe_with_an_output_is_read_once(tmp_path: Path) -> None:
    content = "".join(f'{{"document": "{number}"}}\n' for number in range(ROWS))
    pipe, output = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(content,), daemon=True)
    writer.start()
    assert run(pipe, output).rows == ROWS
    writer.join()
    with pytest.raises(UsageError, match=r"^a pipe cannot be read again to resume; give a file"):
        check_output(RowSettings(input=(str(pipe),), output=str(output), resume=True))


def test_files_that_are_replaced_follow_no_link_and_keep_their_permissions(tmp_path: Path) -> None:
    precious, path, part = tmp_path / "precious", tmp_path / "a.json", tmp_path / "a.json.tmp"
    precious.write_text("precious")
    part.symlink_to(precious)
    path.touch()
    path.chmod(0o640)
    write_whole(path, "new")
    assert (path.read_text(), precious.read_text(), part.exists()) == ("new", "precious", False)
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("name", [".", "/", ""])
def test_a_folder_is_no_output(name: str, source: Path) -> None:
    with pytest.raises(UsageError, match=r"is a folder; name a file as `output`$"):
        check_output(RowSettings(input=(str(source),), output=name))
