"""Where rows come from: which files a source means, and lines that belong together."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from llmkit.config.recipe import SourceSection
from llmkit.data.sources import commit_of, files_of, open_source, splits_of
from llmkit.errors import HubUnreachableError, LlmkitError


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, *texts: str) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text("".join(f"{json.dumps({'text': text}, ensure_ascii=False)}\n" for text in texts), "utf-8")


def source(*path: str, **settings: Any) -> SourceSection:
    return SourceSection(path=list(path), **settings)


def texts(section: SourceSection) -> list[Any]:
    return [record.row["text"] for record in open_source(section) if record.row is not None]


def refused(section: SourceSection) -> str:
    with pytest.raises(LlmkitError) as caught:
        list(open_source(section))
    return str(caught.value)


def test_files_folders_and_patterns_in_a_stable_order() -> None:
    write("data/b.jsonl", "b")
    write("data/deep/a.jsonl", "a")
    write("c.jsonl", "c1", "c2")
    Path("data/README.md").write_text("not data")
    Path("data/LICENSE.txt").write_text("not data")
    Path("data/.hidden.jsonl").write_text("not data")
    assert texts(source("data")) == ["b", "a"]
    assert texts(source("c.jsonl", "data/b.jsonl")) == ["c1", "c2", "b"]
    assert texts(source("**/*.jsonl")) == ["c1", "c2", "b", "a"]
    assert texts(source("c.jsonl", max_rows=1)) == ["c1"]


def test_saved_splits_are_their_data_alone() -> None:
    import datasets

    table = datasets.Dataset.from_list([{"text": "a"}, {"text": "b"}])
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk("splits")
    table.to_parquet("splits/train/cache-1.parquet")  # as `map` leaves its results there
    assert texts(source("splits", split="train")) == ["a", "b"]


def test_packed_arrow_and_saved_data() -> None:
    import datasets

    Path("a.jsonl.gz").write_bytes(gzip.compress('{"text": "压缩"}\n'.encode()))
    table = datasets.Dataset.from_dict({"text": ["一", "二", "三"]})
    table.save_to_disk("saved", num_shards=2)
    table.to_parquet("a.parquet")
    shards = sorted(Path("saved").glob("*.arrow"))
    assert texts(source("a.jsonl.gz")) == ["压缩"]
    assert texts(source("saved")) == texts(source("a.parquet")) == ["一", "二", "三"]
    assert texts(source(str(shards[1]))) == ["三"]


def test_splits_of_a_folder() -> None:
    write("data/train-0.jsonl", "t0")
    write("data/train-1.jsonl", "t1")
    write("data/dev.jsonl", "v")
    write("other/test/rows.jsonl", "x")
    assert splits_of(["data"]) == ["train", "validation"]
    assert splits_of(["data/dev.jsonl"]) == []
    assert texts(source("data", split="train")) == ["t0", "t1"]
    assert texts(source("data", split="validation")) == texts(source("data", split="dev")) == ["v"]
    assert texts(source("other", split="test")) == ["x"]
    assert "several splits (train, validation)" in refused(source("data"))
    assert "it has: train, validation" in refused(source("data", split="test"))


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (source("no.jsonl"), "no.jsonl does not exist"),
        (source("no/*.jsonl"), "no file of rows matches no/*.jsonl"),
        (source("."), "holds no rows"),
        (source("./no", revision="main"), "revision has no effect"),
    ],
)
def test_what_is_not_there_is_said(section: SourceSection, said: str) -> None:
    assert said in refused(section)


def aligned(**files: str) -> SourceSection:
    for name, text in files.items():
        Path(f"a.{name}").write_text(text, encoding="utf-8")
    return SourceSection(aligned={name: f"a.{name}" for name in files})


def test_lines_that_belong_together() -> None:
    section = aligned(source="one\n\nthree\n\n", target="一\n\n三\n\n")
    assert [(record.where, record.row) for record in open_source(section)] == [
        ("a.source:1", {"source": "one", "target": "一"}),
        ("a.source:3", {"source": "three", "target": "三"}),
    ]
    assert [path.name for path in files_of(section)] == ["a.source", "a.target"]


def test_files_of_unequal_length_do_not_belong_together() -> None:
    assert "a.source has 1 lines and a.target has more" in refused(aligned(source="one\n", target="一\n二\n"))


def test_a_line_that_cannot_be_read_spoils_its_row_only() -> None:
    section = aligned(source="one\ntwo\n", target="x\ny\n")
    Path("a.target").write_bytes(b"\xff\ny\n")
    first, second = open_source(section)
    assert first.error is not None
    assert "a.target:1 is not utf-8" in str(first.error)
    assert second.row == {"source": "two", "target": "y"}


def test_tables_without_header_and_with_marks_that_quote_nothing() -> None:
    Path("a.tsv").write_text('"Hi" she said\t嗨\nBye\t再见\n', encoding="utf-8")
    section = source("a.tsv", column_names=["text", "zh"], quotes=False)
    assert texts(section) == ['"Hi" she said', "Bye"]
    bad = source("a.tsv", column_names=["text"], quotes=False)
    (first, *_) = open_source(bad)
    assert "columns of the column_names" in str(first.error)


def test_plain_text_by_line_paragraph_and_document() -> None:
    Path("a.txt").write_text("one\ntwo\n\n\n三\n", encoding="utf-8")
    assert texts(source("a.txt")) == ["one", "two", "三"]
    assert texts(source("a.txt", sample_by="paragraph")) == ["one\ntwo", "三"]
    assert texts(source("a.txt", sample_by="document")) == ["one\ntwo\n\n\n三\n"]


def test_a_data_set_of_the_hub_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load_dataset(*args: Any, **kwargs: Any) -> Any:
        asked.append((args, kwargs))
        return iter([{"text": "a"}, {"text": "b"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    section = source("owner/name", name="zh", split="train", revision="abc", max_rows=1)
    (record,) = open_source(section)
    assert (record.where, record.row) == ("owner/name, row 1", {"text": "a"})
    assert asked == [(("owner/name", "zh"), {"split": "train", "revision": "abc", "streaming": True})]
    assert files_of(section) == []
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: {"train": 1, "test": 2})
    assert "has the splits train, test" in refused(source("owner/name"))


def test_a_hub_that_is_away_is_one_line() -> None:
    section = source("owner/name", split="train")
    with pytest.raises(HubUnreachableError, match="owner/name cannot be read from the Hub"):
        list(open_source(section))
    with pytest.raises(HubUnreachableError, match="owner/name cannot be read from the Hub"):
        commit_of(section)
