"""Rows of files and of standard input: what is read, what becomes a bad row and what ends the reading."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from llmkit.data import binary_rows, byte_lines, tables
from llmkit.data import rows as rows_module
from llmkit.data.rows import Layout, Record, read_rows
from llmkit.errors import InputError


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, content: str | bytes) -> str:
    content = content.encode() if isinstance(content, str) else content
    Path(name).write_bytes(gzip.compress(content, mtime=0) if name.lower().endswith(".gz") else content)
    return name


def open_records(source: str | Path, **options: Any) -> Iterator[Record]:
    """The rows of a file; the first row of a table is its header."""
    if any(suffix in str(source) for suffix in (".csv", ".tsv")):
        options = {"layout": Layout(header=True), **options}
    return rows_module.open_records(source, **options)


def read(name: str, content: str | bytes, encoding: str | None = None) -> list[Record]:
    return list(open_records(write(name, content), encoding=encoding))


def good(records: list[Record]) -> list[dict[str, object] | None]:
    assert [record.error for record in records] == [None] * len(records)
    return [record.row for record in records]


def told(records: list[Record]) -> list[str]:
    """For each record its row, or its error."""
    return [str(record.error or record.row) for record in records]


def pipe(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


CONTENTS = {
    "a.jsonl": '{"a": "é", "b": "1"}\n{"a": "中", "b": "2"}\n',
    "a.ndjson": '{"a": "é", "b": "1"}\r\n\r\n{"a": "中", "b": "2"}',
    "a.json": '[{"a": "é", "b": "1"},\r\n {"a": "中", "b": "2"}]',
    "a.csv": 'a,b\r\né,1\r\n\r\n  \r\n"中",2',
    "a.TSV": "a\tb\né\t1\n中\t2\n",
}
ROWS = [{"a": "é", "b": "1"}, {"a": "中", "b": "2"}]
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be", "gb18030"]


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("ending", ["", ".gz", ".GZ"])
def test_the_formats(name: str, ending: str) -> None:
    assert good(read(name + ending, CONTENTS[name])) == ROWS


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_encodings(name: str, encoding: str) -> None:
    assert good(read(name, CONTENTS[name].encode(encoding), encoding)) == ROWS
    assert good(read(f"{name}.gz", ("\ufeff" + CONTENTS[name]).encode(encoding.removesuffix("-sig")), encoding)) == ROWS


@pytest.mark.parametrize(
    ("encoding", "text"),
    [("shift_jis", "表\n日本"), ("latin-1", "é\n\x85ü"), ("cp500", "a\nb"), ("iso2022_jp", "日\n本")],
)
def test_other_encodings_of_plain_text(encoding: str, text: str) -> None:
    assert good(read("a.txt", text.encode(encoding), encoding)) == [{"text": line} for line in text.split("\n")]


def test_the_lines_of_plain_text() -> None:
    lines = ["one\r", "", " \t", " two\u2028\x85\x0b\f\rtwo ", "three"]
    records = read("a.txt", "\ufeff" + "\n".join(lines))
    assert good(records) == [{"text": "one"}, {"text": " two\u2028\x85\x0b\f\rtwo "}, {"text": "three"}]
    assert [record.where for record in records] == ["a.txt:1", "a.txt:4", "a.txt:5"]
    assert next(iter(open_records(Path("a.txt"), text_column="document"))).row == {"document": "one"}


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv"])
def test_only_line_feeds_divide_lines(name: str) -> None:
    text = "one\u2028\u2029\x85two"
    content = {".csv": f"a\n{text}", ".tsv": f"a\n{text}", ".json": json.dumps([{"a": text}], ensure_ascii=False)}
    row = json.dumps({"a": text}, ensure_ascii=False)
    assert good(read(name, content.get(Path(name).suffix, row))) == [{"a": text}]


def test_rows_need_not_be_alike() -> None:
    lines = ['{"a": 1}', '{"a": [null, {"b": "c"}]}', "{}", '{"b": true, "a": 1.5, "a": 2}']
    assert good(read("a.jsonl", "\n".join(lines))) == [
        {"a": 1},
        {"a": [None, {"b": "c"}]},
        {},
        {"b": True, "a": 2},
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "a.jsonl:2 is not JSON (Expecting property name"),
        ("[1]", "a.jsonl:2 is not an object; write"),
        ("null", "a.jsonl:2 is not an object"),
        ('{"a": NaN}', "a.jsonl:2 is not JSON (NaN"),
        ('{"a": -Infinity}', "a.jsonl:2 is not JSON (-Infinity"),
        ('{"a": ' + "1" * 5000 + "}", "a.jsonl:2 is not JSON (Exceeds the limit"),
        ('{"a": ' + "[" * 200_000 + "]" * 200_000 + "}", "a.jsonl:2 is nested too deeply"),
        ('{"a": ["\\uD800"]}', "a.jsonl:2 has half of a surrogate pair"),
        ('{"\\udfff": 1}', "a.jsonl:2 has half of a surrogate pair"),
    ],
)
def test_a_line_that_is_no_row(line: str, problem: str) -> None:
    before, bad, after = told(read("a.jsonl", f'{{"a": 1}}\n{line}\n{{"a": 2}}\n'))
    assert (before, after) == ("{'a': 1}", "{'a': 2}")
    assert bad.startswith(problem)
    assert "; " in bad


def test_pairs_of_surrogates_are_characters() -> None:
    assert good(read("a.jsonl", '{"a": "\\ud83d\\ude00", "b": "\\\\ud800"}')) == [{"a": "😀", "b": "\\ud800"}]


def test_bad_items_of_a_list() -> None:
    records = read("a.json", '[{"a": 1}, 2, {"a": "\\ud800"}, {"a": 4}]')
    assert [record.where for record in records] == [f"a.json, item {number}" for number in range(1, 5)]
    assert [record.row for record in records] == [{"a": 1}, None, None, {"a": 4}]
    assert "a.json, item 2 is not an object" in str(records[1].error)
    assert "a.json, item 3 has half" in str(records[2].error)


@pytest.mark.parametrize("name", ["a.txt", "a.csv"])
@pytest.mark.parametrize(
    ("line", "problem"),
    [(b"caf\xe9!", " is not utf-8 text (byte 0xe9 at position 3)"), (b"a\0b", " has a NUL at position 1")],
)
def test_a_line_that_is_no_text(name: str, line: bytes, problem: str) -> None:
    before = b"text\n" + b"good\n" * 3000  # past what is looked at to know a binary file
    records = read(name, before + line + b"\ngood")
    assert [record.where for record in records if record.error] == [f"{name}:3002"]
    assert f"{name}:3002{problem}" in str(records[-2].error)
    assert records[-2].row is None
    assert records[-1].row == {"text": "good"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030"])
def test_a_bad_line_in_an_encoding(encoding: str) -> None:
    content = "中\n".encode(encoding) + b"\xff\xff\n" + "文".encode(encoding.removesuffix("-sig"))
    assert [record.row for record in read("a.txt", content, encoding)] == [{"text": "中"}, None, {"text": "文"}]


def test_utf_16_that_ends_in_the_middle_of_a_character() -> None:
    with pytest.raises(InputError, match=r"^a.txt is not utf-16 text \(truncated data\); name its encoding"):
        read("a.txt", "one\ntwo".encode("utf-16")[:-1], "utf-16")


# Tables.


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('a,b\n"x\r\n""y"",\nz",1\n"",2\n', ["{'a': 'x\\r\\n\"y\",\\nz', 'b': '1'}", "{'a': '', 'b': '2'}"]),
        ("a,b\n1\n1,2,3\n4,5\n", ["a.csv:2 does not have the 2 columns", "a.csv:3 does not", "{'a': '4', 'b': '5'}"]),
        ('a,b\n"x\ny"z,1\n\n4,5', ["a.csv:2 cannot be read (',' expected", "{'a': 'y\"z', 'b': '1'}", "{'a': '4'"]),
        ('a,b\n"x,1\n"y",2\nz,3', ["a.csv:2 cannot be read", "{'a': 'y', 'b': '2'}", "{'a': 'z', 'b': '3'}"]),
        ('a,b\n"x,1\ny,2\nz,3', ["a.csv:2 cannot be read (it opens a quote that is never", "{'a': 'y'", "{'a': 'z'"]),
        ("a,b\nx\ry,1\n4,5", ["a.csv:2 has a carriage return", "{'a': '4'"]),
        ('a,b\n"x\n\n', ["a.csv:2 cannot be read (it opens a quote"]),
    ],
)
def test_tables(content: str, expected: list[str]) -> None:
    found = told(read("a.csv", content))
    assert len(found) == len(expected)
    assert all(text.startswith(start) for text, start in zip(found, expected, strict=True)), found


def test_the_place_of_a_row_with_several_lines() -> None:
    records = read("a.tsv", 'a\tb\n"1\n2"\t3\n\t\n4\t5')
    assert [(record.where, record.row) for record in records] == [
        ("a.tsv:2", {"a": "1\n2", "b": "3"}),
        ("a.tsv:5", {"a": "4", "b": "5"}),
    ]


def test_a_bad_line_within_a_row() -> None:
    bad, after = read("a.csv", b'a,b\n"x\n\xff",1\n2,3')
    assert (bad.where, bad.row, after.row) == ("a.csv:2", None, {"a": "2", "b": "3"})
    assert str(bad.error).startswith("a.csv:3 is not utf-8 text")


def test_a_long_field() -> None:
    assert good(read("a.csv", "a\n" + "x" * 1_000_000)) == [{"a": "x" * 1_000_000}]


def test_an_open_quote_is_not_followed_without_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_ROW_BYTES", 2**16)
    write("a.csv", 'a,b\n"x,1\n' + "y,2\n" * 40_000)
    records = iter(open_records("a.csv"))
    assert str(next(records).error).startswith(
        "a.csv:2 cannot be read (it opens a quote that is not closed within 65,536 b"
    )
    assert sum(record.row == {"a": "y", "b": "2"} for record in records) == 40_000


# Sizes.


def test_a_line_of_100_mb_is_passed_over_without_holding_it() -> None:
    before, after = b'{"a": 1}\n', b'{"a": 2}\n'
    with Path("a.jsonl").open("wb") as file:
        file.write(before + b" " * 2**14)
        file.seek(100 * 2**20, io.SEEK_CUR)  # a hole
        file.write(b"\n" + after)
    tracemalloc.start()
    records = list(open_records("a.jsonl"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [record.row for record in records] == [{"a": 1}, None, {"a": 2}]
    assert str(records[1].error) == "a.jsonl:2 has 104,873,985 bytes, more than the 16,777,216 of a row; divide it"
    assert peak < 64 * 2**20


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.csv"])
def test_the_longest_row(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_lines, "MAX_ROW_BYTES", 2000)
    widths = (2000, 2001, 100_000, 2000)
    lines = [('{"text": "' + "x" * (width - 13) + '"}' if name == "a.jsonl" else "x" * (width - 1)) for width in widths]
    records = read(name, "\n".join((["text"] if name == "a.csv" else []) + lines) + "\n")
    assert [record.error is None for record in records] == [True, False, False, True]
    assert "has 100,000 bytes" in str(records[2].error)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt", "a.jsonl.gz", "a.parquet"])
def test_rows_are_not_held(name: str) -> None:
    number, width = 2500, 10_000
    if name == "a.parquet":
        table = pa.table({"text": ["x" * width] * number})
        parquet.write_table(table, name, row_group_size=number, compression="none", use_dictionary=False)
        del table
    else:
        line = json.dumps({"text": "x" * width}) if "jsonl" in name else "x" * width
        write(name, "text\n" + f"{line}\n" * number if name == "a.csv" else f"{line}\n" * number)
    pool = pa.default_memory_pool()
    held = pool.bytes_allocated()
    tracemalloc.start()
    most = count = 0
    for record in open_records(name):
        assert record.error is None
        count += 1
        most = max(most, pool.bytes_allocated() - held)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count >= number
    assert peak + most < 16 * 2**20


def test_rows_come_before_the_file_is_read() -> None:
    write("a.txt", "x\n" * 2_000_000)
    records = open_records("a.txt")
    assert [record.where for record in islice(records, 2)] == ["a.txt:1", "a.txt:2"]


ROW = b'{"a": "' + b"x" * 2**20 + b'"}'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json.gz", b"[" + b",".join([ROW] * 64) + b"]"),
        ("a.json.gz", b'{"version": 1, "data": [' + b",".join([ROW] * 64) + b"]}"),
        ("a.json.gz", b"[" + b" " * 64 * 2**20 + b"{}]"),
        ("a.jsonl.gz", b"\n".join([ROW] * 64)),
        ("a.csv.gz", b"a\n" + (b"x" * 2**20 + b"\n") * 64),
    ],
)
def test_unpacked_rows_are_not_held(name: str, content: bytes) -> None:
    Path(name).write_bytes(gzip.compress(content, 1))
    del content
    tracemalloc.start()
    assert all(record.error is None for record in open_records(name))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 48 * 2**20  # the first rows are looked at, up to the limit of one


def test_a_packed_row_above_the_limit() -> None:
    long = b'{"a": "' + b"x" * 17 * 2**20 + b'"}'
    Path("a.json.gz").write_bytes(gzip.compress(b'[{"a": 1},\n' + long + b"]", 1))
    records = open_records("a.json.gz")
    assert next(records).row == {"a": 1}
    with pytest.raises(InputError, match=r"^a.json.gz:2 has a row of more than 16,777,216 bytes; divide it$"):
        next(records)
    assert len(good(read("a.json", b"[" + long + b"]"))) == 1  # a file that is as long itself
    Path("a.txt.gz").write_bytes(gzip.compress(long, 1))
    with pytest.raises(InputError, match=r"^a.txt.gz holds more than 16.8 MB, too much for one row; divide it$"):
        list(open_records("a.txt.gz", layout=Layout(sample_by="document")))


def test_a_paragraph_above_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "MAX_ROW_BYTES", 100)
    records = list(open_records(write("a.txt", "a\n\n" + "b\n" * 200 + "\nc\n"), layout=Layout(sample_by="paragraph")))
    assert [record.row for record in records] == [{"text": "a"}, None, {"text": "c"}]
    assert "a.txt:3 has" in str(records[1].error)


def test_a_document_in_any_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"a": 'é中😀\n"\\', "b": [1.5e-7, True, None, {"c": "]},"}]}, {"a": -10, "b": []}, {"a": 2.5e3, "b": {}}]
    for indent in (None, 2):
        text = json.dumps({"version": 1.5, "other": [1, 2], "data": rows}, ensure_ascii=False, indent=indent)
        for size in (1, 2, 3, 7, 64):
            monkeypatch.setattr(byte_lines, "_CHUNK_BYTES", size)
            assert good(read("a.json", text)) == rows
            assert good(read("a.json", text.encode("utf-16"), "utf-16")) == rows
            with pytest.raises(InputError, match=rf"^a.json:{text.count(chr(10)) + 1} is not JSON \(Extra data\)"):
                read("a.json", text + "]")


def lists(values: pa.Array, *offsets: int) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


LONG = pa.array(["x" * 2**20, "y"])
REPEATED = pa.DictionaryArray.from_arrays(pa.array([0] * 20 + [1] * 20, pa.int32()), LONG)


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["x" * 20 * 2**20, "y"]),
        lists(pa.nulls(20 * 2**20), 0, 20 * 2**20 - 1, 20 * 2**20),
        lists(REPEATED, 0, 20, 40),
        pa.ListViewArray.from_arrays([0, 1], [20 * 2**20, 1], pa.nulls(20 * 2**20, pa.int8())),
        pa.StructArray.from_arrays([lists(REPEATED, 0, 20, 40)], ["a"]),
        lists(pa.RunEndEncodedArray.from_arrays(pa.array([20, 40], pa.int32()), LONG), 0, 20, 40),
        pa.array(["x" * 20 * 2**20, "y"], pa.string_view()),
    ],
    ids=lambda column: str(column.type),
)
def test_a_row_of_columns_above_the_limit(column: pa.Array) -> None:
    table = pa.table({"a": column})
    with pa.OSFile("a.arrow", "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    first, second = open_records("a.arrow")
    assert "a.arrow, row 1 has" in str(first.error)
    assert " bytes, more than the 16,777,216 of a row; divide it" in str(first.error)
    assert second.error is None


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_compressed_columns_that_unpack_to_too_much(compression: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binary_rows, "_MAX_UNPACKED", 2**20)
    table = pa.table({"a": ["x" * 2**20] * 2, "b": pa.array(["y" * 2**20] * 2).dictionary_encode()})
    for new in (pa.ipc.new_stream, pa.ipc.new_file):
        options = pa.ipc.IpcWriteOptions(compression=compression)
        with pa.OSFile("a.arrow", "wb") as sink, new(sink, table.schema, options=options) as writer:
            writer.write_table(table)
        with pytest.raises(InputError, match=r"^a.arrow has a (dictionary|record batch) that .* unpack to 1.05 MB"):
            list(open_records("a.arrow"))
    parquet.write_table(table, "a.parquet", compression=compression, use_dictionary=False)
    with pytest.raises(InputError, match=r"^a.parquet has a column 'a' that .* unpack to 2.1 MB; write it anew"):
        list(open_records("a.parquet"))


def test_parquet_holds_repeated_texts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binary_rows, "_MAX_HELD", 2**22)
    monkeypatch.setattr(binary_rows, "_MAX_UNPACKED", 2**22)
    texts = pa.array(["x" * 2**20] * 60)
    table = pa.table({"a": texts, "b": lists(texts, *range(61))})
    parquet.write_table(table, "a.parquet", compression="zstd", store_schema=False, dictionary_pagesize_limit=2**26)
    del table, texts
    with Path("a.parquet").open("rb") as file:
        assert binary_rows._dictionary_bytes(file, _first_column("a.parquet")) == 2**20 + 4
    pool = pa.default_memory_pool()
    held, most = pool.bytes_allocated(), 0
    for record in open_records("a.parquet"):
        assert record.row == {"a": "x" * 2**20, "b": ["x" * 2**20]}
        most = max(most, pool.bytes_allocated() - held)
    assert most < 20 * 2**20


def _first_column(name: str) -> object:
    with parquet.ParquetFile(name) as file:
        return file.metadata.row_group(0).column(0)


def test_a_long_list_in_parquet_is_refused_by_its_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binary_rows, "_MAX_UNPACKED", 2**20)
    parquet.write_table(pa.table({"a": lists(pa.nulls(2**20, pa.int8()), 0, 2**20)}), "a.parquet")
    with pytest.raises(InputError, match=r"column 'a.list.element' that .* unpack to 4.19 MB; write it anew"):
        list(open_records("a.parquet"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_a_named_pipe(name: str) -> None:
    os.mkfifo(name)
    writer = threading.Thread(target=lambda: Path(name).write_text('[{"a": 1}]' if name == "a.json" else '{"a": 1}'))
    if name == "a.parquet":
        with pytest.raises(InputError, match=r"^a.parquet is a pipe, and Parquet and Arrow are read from files; give"):
            list(open_records(name))
        return
    writer.start()
    assert good(list(open_records(name))) == [{"a": 1}]
    writer.join()


# Files that cannot be used.


EMPTY = [(name, "") for name in ("a.jsonl", "a.json", "a.csv", "a.txt", "a.parquet", "a.txt.gz")] + [
    ("a.txt", "\n \r\n\n"),
    ("a.jsonl", "\ufeff\n\n"),
    ("a.csv", "\n  \r\n"),
    ("a.csv", "a,b\r\n"),
    ("a.tsv", "a\tb\n\n\n"),
    ("a.json", "[]"),
]


@pytest.mark.parametrize(("name", "content"), EMPTY)
def test_no_rows(name: str, content: str) -> None:
    with pytest.raises(InputError, match=rf"^{name} holds no rows; add"):
        read(name, content)


def test_gzip_of_nothing_but_a_name() -> None:
    Path("a.jsonl.gz").touch()
    with pytest.raises(InputError, match=r"^a.jsonl.gz holds no rows"):
        list(open_records("a.jsonl.gz"))


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.xlsx", b"", "a.xlsx has the suffix .xlsx; give .jsonl, .ndjson, .json, .csv, .tsv, .txt (each also with"),
        ("a", b"", "a has the suffix (none); give"),
        ("a.gz", b"", "a.gz has the suffix .gz; give"),
        ("a.parquet.gz", b"", "a.parquet.gz is Parquet inside gzip; unpack it"),
        ("a.txt", b"ab\0c", "a.txt is a binary file (NUL at byte 2); give a text file"),
        ("a.txt", "ab".encode("utf-16-le"), "a.txt is a binary file (NUL at byte 1); give a text file; of UTF-16"),
        ("a.json", "[]".encode("utf-16"), "a.json is UTF-16 text, not UTF-8; pass `encoding=utf-16`"),
        ("a.csv", "a".encode("utf-32"), "a.csv is UTF-32 text, not UTF-8; pass `encoding=utf-32`"),
        ("a.json", b'["\xff"]', "a.json is not utf-8 text (byte 0xff at position 2); name its encoding"),
        ("a.json", b'[\n{"a": }]', "a.json:2 is not JSON (Expecting value); fix"),
        ("a.json", b'[{"a": NaN}]', "a.json is not JSON (NaN"),
        ("a.json", b"[" * 200_000, "a.json is nested too deeply"),
        (
            "a.json",
            b'{"data": []}',
            "a.json holds an object with no list of objects (data); give a JSON list of objects",
        ),
        ("a.json", b"3", "a.json does not hold a list; give a JSON list of objects, or JSON Lines"),
        (
            "a.jsonl",
            gzip.compress(b"{}", mtime=0),
            "the content of a.jsonl is gzip; unpack it, or give a file that ends in .gz",
        ),
        ("a.jsonl.gz", gzip.compress(b"{}", mtime=0), "the content of a.jsonl.gz is gzip; unpack it"),
        ("a.csv", b"PAR1\x15\x04", "the content of a.csv is Parquet; give a file that ends in .parquet"),
        ("a.csv", b"PK\x03\x04\x14\0", "the content of a.csv is a zip archive or a spreadsheet; unpack it, or save"),
        ("a.parquet", b"PK\x03\x04\x14\0", "the content of a.parquet is a zip archive"),
        ("a.parquet", b"text", "a.parquet is not Parquet, although its name ends in .parquet; rename"),
        ("a.parquet", b"PAR1\x15\x04 and so on", "a.parquet is damaged"),
        (
            "a.csv",
            b"a;b\n1",
            "a.csv seems to be separated by semicolons, but its rows differ in their number of columns; give",
        ),
        (
            "a.csv",
            b"a\tb\n1",
            "a.csv seems to be separated by tabs, but its rows differ in their number of columns; give",
        ),
        ("a.csv", b"a,b,a,b,c\n1,2,3,4,5", "a.csv has more than one column 'a', 'b'; give"),
        ("a.csv", b'"a,b\n1,2\n', "a.csv:1 cannot be read (it opens a quote that is never closed); fix"),
        ("a.csv", b"a,caf\xe9\n1,2\n", "a.csv:1 is not utf-8 text"),
    ],
)
def test_files_that_cannot_be_used(name: str, content: bytes, problem: str) -> None:
    with pytest.raises(InputError) as caught:
        read(name, content)
    assert str(caught.value).startswith(problem)
    assert caught.value.fix


def test_paths_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("folder.csv").mkdir()
    with pytest.raises(InputError, match=r"^folder.csv is a folder; give"):
        open_records("folder.csv")
    with pytest.raises(InputError, match=r"^./none.csv does not exist; check"):
        open_records("./none.csv")
    with pytest.raises(InputError, match=r"^a\0b.csv cannot be read"):
        open_records("a\0b.csv")
    write("a.csv", "a\n1")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"^a.csv cannot be read \(Permission denied\); check"):
        next(open_records("a.csv"))


@pytest.mark.parametrize("encoding", ["utf-9", "base64", "a\0"])
def test_unknown_encodings(encoding: str) -> None:
    with pytest.raises(InputError, match=r"^unknown encoding"):
        read("a.txt", "a", encoding)


def test_utf_16_without_its_mark() -> None:
    with pytest.raises(InputError, match=r"^a.txt is not utf-16 text .*`encoding=utf-16-le`"):
        read("a.txt", "a\nb".encode("utf-16-le"), "utf-16")


def test_a_name_that_says_gzip() -> None:
    Path("a.jsonl.gz").write_text("{}")
    with pytest.raises(
        InputError, match=r"^a.jsonl.gz is not gzip, although its name ends in .gz; rename it without .gz"
    ):
        list(open_records("a.jsonl.gz"))


def _until_the_error(records: Iterator[Record]) -> tuple[int, str]:
    count = 0
    try:
        for record in records:
            assert record.row == {"n": count}
            count += 1
    except InputError as error:
        return count, str(error)
    pytest.fail("no error")


def test_damaged_gzip() -> None:
    content = "".join(f'{{"n": {number}}}\n' for number in range(30_000)).encode()
    packed = gzip.compress(content, mtime=0)
    Path("a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    count, error = _until_the_error(open_records("a.jsonl.gz"))
    assert 12_000 < count < 18_000
    assert error == "a.jsonl.gz ends in the middle of the gzip data; copy it again"

    Path("a.jsonl.gz").write_bytes(packed[:-8] + b"\0" * 8)  # the checksum
    count, error = _until_the_error(open_records("a.jsonl.gz"))
    assert count == 30_000
    assert error.startswith("a.jsonl.gz is damaged (CRC check failed")

    Path("a.jsonl.gz").write_bytes(packed + packed[:10] + b"\xff" * 100)
    count, error = _until_the_error(open_records("a.jsonl.gz"))
    assert count == 30_000
    assert error.startswith("a.jsonl.gz is damaged (Error -3")


# Parquet.


def test_parquet() -> None:
    rows = [{"text": "中文", "n": [{"a": 1}, None], "d": date(2026, 1, 2), "b": b"\0"}] * 100
    rows += [{"text": None, "n": [], "d": None, "b": None}]
    parquet.write_table(pa.Table.from_pylist(rows), "a.parquet", row_group_size=30)
    records = list(open_records("a.parquet"))
    assert good(records) == rows
    assert [records[0].where, records[100].where] == ["a.parquet, row 1", "a.parquet, row 101"]
    with pytest.raises(InputError, match=r"^a.parquet is Parquet, on which `encoding` has no effect; leave it out"):
        open_records("a.parquet", encoding="utf-8")


def test_a_bad_row_of_parquet() -> None:
    texts = pa.array([b"one", b"\xff", b"three"]).view(pa.utf8())
    parquet.write_table(pa.table({"text": texts}), "a.parquet")
    records = list(open_records("a.parquet"))
    assert [record.row for record in records] == [{"text": "one"}, None, {"text": "three"}]
    assert str(records[1].error).startswith("a.parquet, row 2 cannot be read (In column 0: Invalid: Invalid UTF8")


_READ_EACH = """
import sys
from pathlib import Path
from typing import Any
from llmkit.data.rows import open_records
from llmkit.errors import InputError

for name in sys.argv[1:]:
    try:
        for _ in open_records(name):
            pass
    except InputError:
        pass
print("all read")
"""


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_a_damaged_arrow_file_ends_no_process(kind: str) -> None:
    days = pa.array([date(2026, 1, 2), None, None] * 5)
    table = pa.table({"text": ["hello there", "a second text", "third"] * 5, "n": [[1, 2], None, []] * 5, "day": days})
    with pa.OSFile("whole.arrow", "wb") as sink, getattr(pa.ipc, f"new_{kind}")(sink, table.schema) as writer:
        writer.write_table(table)
    whole, names = Path("whole.arrow").read_bytes(), []
    for place in range(0, len(whole) * 8, 37):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << (place % 8)
        names.append(f"{place}.arrow")
        Path(names[-1]).write_bytes(damaged)
    done = subprocess.run([sys.executable, "-c", _READ_EACH, *names], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "all read\n"), done.stderr[-500:]


def test_parquet_that_cannot_be_used() -> None:
    parquet.write_table(pa.table({"a": pa.array([], pa.int64())}), "a.parquet")
    with pytest.raises(InputError, match=r"^a.parquet holds no rows"):
        list(open_records("a.parquet"))
    parquet.write_table(pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), "a.parquet")
    with pytest.raises(InputError, match=r"^a.parquet has more than one column 'a'"):
        list(open_records("a.parquet"))
    parquet.write_table(pa.table({"a": [str(number) for number in range(10_000)]}), "a.parquet")
    content = bytearray(Path("a.parquet").read_bytes())
    content[4 : len(content) // 2] = b"\xff" * (len(content) // 2 - 4)
    Path("a.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"^a.parquet is damaged \(.*; copy it again"):
        list(open_records("a.parquet"))


# Standard input.


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (b'\xef\xbb\xbf\n \n {"a": 1}\n{"a": 2}', [{"a": 1}, {"a": 2}]),
        ("\n中\n{}\n".encode(), [{"text": "中"}, {"text": "{}"}]),
        (b"a", [{"text": "a"}]),
    ],
)
def test_standard_input(content: bytes, rows: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(monkeypatch, content)
    assert good(list(open_records("-"))) == rows
    assert not sys.stdin.closed


def test_standard_input_tells_where(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(monkeypatch, '{"a": 1}\n\noops\n'.encode("utf-16"))
    records = list(open_records("-", encoding="utf-16"))
    assert [record.where for record in records] == ["standard input:1", "standard input:3"]
    assert str(records[1].error).startswith("standard input:3 is not JSON")
    pipe(monkeypatch, b"\n")
    with pytest.raises(InputError, match=r"^standard input holds no rows"):
        list(open_records("-"))
    pipe(monkeypatch, gzip.compress(b"{}", mtime=0))
    with pytest.raises(InputError, match=r"^the content of standard input is gzip; unpack it"):
        list(open_records("-"))


def test_a_pipe_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Typed(io.RawIOBase):
        """Gives one line each time it is asked."""

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            asked.append(1)
            buffer[:2] = b"a\n"
            return 2

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Typed())))
    assert [record.row for record in islice(open_records("-"), 3)] == [{"text": "a"}] * 3
    assert len(asked) == 3


# All rows at once.


def test_read_rows() -> None:
    for name, content in CONTENTS.items():
        assert read_rows(Path(write(name, content))) == ROWS
    with pytest.raises(InputError, match=r"^a.jsonl:2 is not JSON \(.*; fix the line$"):
        read_rows(Path(write("a.jsonl", "{}\n}\n}}")))
    with pytest.raises(InputError, match=r"^a.csv:3 does not have the 2 columns of the header"):
        read_rows(Path(write("a.csv", "a,b\n1,2\n3\n")))
    with pytest.raises(InputError, match=r"^- does not exist; check"):
        read_rows(Path("-"))


@pytest.mark.parametrize(
    "content",
    [
        "sep=;\r\ntext;note\r\nA, b;1,5\r\nC;2\r\n",
        "text;note\nA, b;1,5\nC;2\n",
        "text\tnote\nA, b\t1,5\nC\t2\n",
        'text,note,,\n"A, b","1,5",,\nC,2,,\n,,,\n,,,\n',
        'text,note\n"A, b","1,5",,\nC,2,,\n',
    ],
    ids=["separator line", "semicolons", "tabs", "columns that were emptied", "cells beyond the header"],
)
def test_tables_that_spreadsheets_write(content: str) -> None:
    rows = [record.row or {} for record in read("a.csv", "\ufeff" + content)]
    assert [(row["text"], row["note"]) for row in rows] == [("A, b", "1,5"), ("C", "2")]


def test_an_index_without_a_name_gets_one() -> None:
    (record,) = read("a.csv", ",text\n0,A\n")
    assert record.row == {"column1": "0", "text": "A"}


def test_json_lines_by_the_name_of_json() -> None:
    records = read("a.json", '{"a": 1}\n\nno\n{"a": 2}\n')
    assert [record.row for record in records] == [{"a": 1}, None, {"a": 2}]
    assert str(records[1].error).startswith("a.json:3 is not JSON")


def test_a_list_by_the_name_of_json_lines() -> None:
    assert str(read("a.jsonl", '[\n{"a": 1}\n]')[0].error).endswith("rename the file to .json if it is one list")
