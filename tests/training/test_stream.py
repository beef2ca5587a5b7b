"""Rows that are streamed train what loaded rows train, and a run goes on where it was."""

from __future__ import annotations

import copy
import dataclasses
import gc
import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from llmkit.config.paths import cache_dir
from llmkit.config.recipe import Recipe
from llmkit.data.json_documents import JSON
from llmkit.data.records import without_null_fields
from llmkit.errors import InputError, UsageError
from llmkit.heads.base import Features
from llmkit.training.checkpoint import Progress
from llmkit.training.dataset import make_examples
from llmkit.training.encoding import Encoder, Outcome, make_encoder
from llmkit.training.loop import Trainer
from llmkit.training.recipe_model import open_model, open_task
from llmkit.training.run import finetune
from llmkit.training.sampler import BatchSampler
from llmkit.training.stream import ExampleStream
from tests.conftest import Checkpoint
from tests.training.recipes import make_recipe, write_rows


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is prepared by few rows, so that the others may be few too."""
    monkeypatch.setattr("llmkit.training.dataset.FIRST_ROWS", 8)


def row(number: int) -> dict[str, Any]:
    return {"prompt": "The quick " + "fox " * (number % 5), "completion": f"jumps {number % 7} " * (number % 3 + 1)}


def stream_recipe(
    model: Path, source: Any, folder: Path, *, data: Any = None, task: str = "text-generation", **train: Any
) -> Recipe:
    source = {"path": str(source)} if isinstance(source, Path) else source
    usual = {"output_dir": str(folder), "learning_rate": 1e-2, "logging_steps": 1, "bf16": False, "max_steps": 9}
    usual |= {"per_device_train_batch_size": 4, "save_strategy": "no", "eval_strategy": "no"}
    data = {"train": {"streaming": True, **source} if isinstance(source, dict) else source} | (data or {})
    return make_recipe(task, model, {}, data=data, train=usual | train)


def loaded(recipe: Recipe, folder: Path) -> Recipe:
    """The same recipe without streaming, and in another folder."""
    content = recipe.model_dump(exclude_defaults=True)
    for source in content["data"]["train"]:
        del source["streaming"]
    content["data"].pop("buffer_size", None)
    content["train"]["output_dir"] = str(folder)
    return type(recipe).model_validate(content)


def weights(trainer: Trainer) -> dict[str, Any]:
    return {name: each.detach().clone() for name, each in trainer.model.named_parameters()}


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    for name, each in one.items():
        assert each.equal(other[name]), name


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.progress.log if "loss" in entry]


@pytest.mark.parametrize(
    ("strategy", "family", "task", "columns"),
    [
        ("random", "llama", "text-generation", {"prompt": "prompt", "completion": "completion"}),
        ("sequential", "t5", "summarization", {"document": "prompt", "summary": "completion"}),
        ("group_by_length", "bert", "question-answering", {"question": "completion", "context": "prompt"}),
    ],
)
def test_a_stream_trains_what_loaded_rows_train(
    strategy: str, family: str, task: str, columns: dict[str, str], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """To the bit, over several epochs, the last update of which is not full."""
    path = write_rows(tmp_path / "rows.jsonl", [row(number) | {"answers": ["quick"]} for number in range(14)])
    source = {"path": str(path), "columns": columns}
    train: dict[str, Any] = {"train_sampling_strategy": strategy}
    recipe = stream_recipe(checkpoint(family), source, tmp_path / "a", task=task, **train)
    one, other = finetune(recipe), finetune(loaded(recipe, tmp_path / "b"))
    assert losses(one) == losses(other)
    assert_same(weights(one), weights(other))
    assert (tmp_path / "a" / "llmkit.json").read_text() == (tmp_path / "b" / "llmkit.json").read_text()


def ledger(folder: Path) -> list[str]:
    """The counts of rows in the model card."""
    return [line for line in (folder / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("- ")]


def interrupted(recipe: Recipe, *stops: int) -> Trainer:
    """A run that is stopped after these updates, and resumed each time."""
    for number, stop in enumerate(stops):
        calls = iter([*[False] * (stop - 1), True])
        assert finetune(recipe, resume=bool(number), should_stop=calls.__next__).stopped
    return finetune(recipe, resume=True)


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)


def write_arrow(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa

    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("text\n" + "".join('"{text}"\n'.format(**each) for each in rows))


def write_gz(path: Path, rows: list[dict[str, Any]]) -> None:
    with gzip.open(path, "wt") as file:
        file.writelines(f"{json.dumps(each)}\n" for each in rows)


FORMATS: dict[str, Callable[[Path, list[dict[str, Any]]], object]] = {
    ".jsonl": write_rows,
    ".jsonl.gz": write_gz,
    ".csv": write_csv,
    ".parquet": write_parquet,
    ".arrow": write_arrow,
}


def open_stream(recipe: Recipe) -> ExampleStream:
    task = open_task(recipe)
    encoder = make_encoder(recipe, task, open_model(recipe, task, weights=False))
    return ExampleStream(recipe, make_examples(recipe, encoder).train.rows, encoder)


SAMPLER = BatchSampler([], 8, 1, 1, "group_by_length", seed=3)


def test_a_run_that_is_resumed_is_the_uninterrupted_one(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Three times: within a pool, at the end of one, and in another epoch, as the stream is shorter than the run."""
    path, model = write_rows(tmp_path / "rows.jsonl", map(row, range(35))), checkpoint("llama")
    sizes: dict[str, Any] = {"data": {"buffer_size": 13}, "max_steps": 26}
    whole = finetune(stream_recipe(model, path, tmp_path / "a", **sizes))
    other = interrupted(stream_recipe(model, path, tmp_path / "b", **sizes), 5, 10, 7)
    assert losses(other) == losses(whole)
    assert_same(weights(other), weights(whole))
    assert other.progress.stream == whole.progress.stream
    assert other.progress.epoch == 2
    assert ledger(tmp_path / "b") == ledger(tmp_path / "a")


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_stream_goes_on_from_every_pool(suffix: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Rows of two files that give several examples each or none, in pools that end anywhere."""
    rows = [{"text": "fox " * (number % 7 * 100 + 1)} for number in range(40)]
    rows = [{"text": "  "} if number % 6 == 5 else each for number, each in enumerate(rows)]
    (data := tmp_path / "data").mkdir()
    FORMATS[suffix](data / f"a{suffix}", rows[:19])
    FORMATS[suffix](data / f"b{suffix}", rows[19:])
    source = {"path": str(data), "where": 'text != "fox "', "max_rows": 30}
    more: dict[str, Any] = {"max_length": 64, "on_no_label": "drop", "on_bad_row": "skip", "buffer_size": 8}
    recipe = stream_recipe(checkpoint("llama"), source, tmp_path / "out", data=more)
    stream, progress = open_stream(recipe), Progress(epoch=3)
    found = [(json.dumps(progress.stream), pool) for pool in stream.pools(progress, SAMPLER)]
    assert len(found) > 10
    for number, (position, _) in enumerate(found):
        again = open_stream(recipe)
        left = list(again.pools(Progress(epoch=3, stream=json.loads(position)), SAMPLER))
        assert left == [pool for _, pool in found[number:]]
        assert again.ledger() == stream.ledger()
    counts = make_examples(loaded(recipe, tmp_path), stream.encoder).train.ledger
    assert dataclasses.asdict(stream.ledger()) == dataclasses.asdict(counts)


BAD: dict[str, Any] = {
    "on_bad_row: skip": '{"prompt": ',
    "on_no_label: drop": {"prompt": "fox", "completion": ""},
    "on_overflow: drop": {"text": "fox " * 300},
}


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("fix", BAD)
def test_an_error_in_the_middle_saves_and_the_row_may_be_skipped(
    fix: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """The file cannot be fixed, since it would be another."""
    rows: list[Any] = list(map(row, range(30)))
    path, model = write_rows(tmp_path / "rows.jsonl", [*rows[:22], BAD[fix], *rows[22:]]), checkpoint("llama")
    key, _, value = fix.partition(": ")
    error, allowed = {"on_overflow": "error"}, {"on_overflow": "error", key: value}
    more: dict[str, Any] = {"train_sampling_strategy": "sequential", "max_steps": 12}
    recipe = stream_recipe(model, path, tmp_path / "out", data=error, **more)
    for resume in (False, True):
        with pytest.raises(InputError, match=f"rows.jsonl:23.*data.{fix.partition(':')[0]}"):
            finetune(recipe, resume=resume)
        assert [each.name for each in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-5"]
    trainer = finetune(stream_recipe(model, path, tmp_path / "out", data=allowed, **more), resume=True)
    whole = finetune(stream_recipe(model, path, tmp_path / "whole", data=allowed, **more))
    assert losses(trainer) == losses(whole)
    assert_same(weights(trainer), weights(whole))
    assert ledger(tmp_path / "out") == ledger(tmp_path / "whole")
    assert "1 " + {"skip": "bad rows are skipped"}.get(value, "") in "".join(ledger(tmp_path / "out"))


@pytest.mark.usefixtures("few")
def test_a_file_that_ends_early_keeps_what_was_trained(checkpoint: Checkpoint, tmp_path: Path) -> None:
    write_gz(path := tmp_path / "rows.jsonl.gz", [{"text": hashlib.sha256(bytes(n)).hexdigest()} for n in range(3000)])
    path.write_bytes(path.read_bytes()[:-2000])
    more: dict[str, Any] = {"train_sampling_strategy": "sequential", "per_device_train_batch_size": 256}
    with pytest.raises(InputError, match="ends in the middle of the gzip data"):
        finetune(stream_recipe(checkpoint("llama"), path, tmp_path / "out", max_steps=99, **more))
    assert [each.name for each in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-11"]


@pytest.mark.usefixtures("few")
def test_other_data_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """By size and some blocks; and elsewhere by the examples in memory."""
    text = [{**row(number), "more": "x" * 20_000} for number in range(60)]
    path, model = write_rows(tmp_path / "rows.jsonl", text), checkpoint("llama")
    recipe = stream_recipe(model, path, tmp_path / "out", data={"buffer_size": 8}, max_steps=12)
    run = finetune(recipe, should_stop=iter([*[False] * 4, True]).__next__)
    assert run.stopped
    for number, message in ((0, "the data .* changed"), (21, "rows in memory .* are not those of now"), (40, "")):
        changed = text[number] | {"completion": text[number]["completion"].replace("jumps", "Jumps")}
        write_rows(path, [*text[:number], changed, *text[number + 1 :]])
        if message:
            with pytest.raises(UsageError, match=message):
                finetune(recipe, resume=True)
    finetune(recipe, resume=True)  # a change of a row that comes later, between the blocks, is not found


@pytest.mark.usefixtures("few")
def test_a_stream_holds_few_rows_and_a_resumed_one_reads_few(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the rows before the place of a checkpoint nor their tokens are needed again."""
    path, counts = tmp_path / "rows.jsonl", Counter[str]()
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f'{{"text": "The fox {number}"}}\n' for number in range(20_000))
    stream = open_stream(stream_recipe(checkpoint("llama"), path, tmp_path / "out", data={"buffer_size": 512}))
    ids, decode = Outcome("ok", (Features((5, 6), (5, 6)),), 2), JSON.decode

    def encoded(*_: object) -> Outcome:
        counts["encoded"] += 1
        return ids

    def decoded(text: str) -> Any:
        counts["decoded"] += 1
        return decode(text)

    monkeypatch.setattr(Encoder, "encode", encoded)
    alive, progress = [], Progress()
    for number, pool in enumerate(stream.pools(progress, SAMPLER)):
        assert len(pool.examples) <= 512
        if number in (2, 38):
            alive.append(len(gc.get_objects()))
    assert stream.ledger().examples == counts["encoded"] == 20_000
    assert alive[1] - alive[0] < 100
    assert sum(each.stat().st_size for each in cache_dir().rglob("*") if each.is_file()) < path.stat().st_size / 20
    again = open_stream(stream.recipe)
    counts.clear()
    monkeypatch.setattr("llmkit.data.rows.JSON", SimpleNamespace(decode=decoded))
    (last,) = again.pools(Progress(stream=json.loads(json.dumps(progress.stream))), SAMPLER)
    assert len(last.examples) == counts["encoded"] == counts["decoded"] == 20_000 % 512
    assert again.ledger() == stream.ledger()


@pytest.fixture
def spelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ids of an example are the characters of its row."""

    def encode(self: Encoder, row: Any) -> Outcome:
        ids = tuple(map(ord, row["text"]))
        return Outcome("ok", (Features(ids, ids),), len(ids))

    monkeypatch.setattr(Encoder, "encode", encode)


def texts(stream: ExampleStream, progress: Progress) -> list[list[str]]:
    """The texts of each pool, in the order of reading."""
    pools = stream.pools(progress, SAMPLER)
    return [["".join(map(chr, line["input_ids"])) for line in pool.examples] for pool in pools]


def assert_resumes_anywhere(recipe: Recipe) -> list[str]:
    """All texts of an epoch."""
    stream, progress = open_stream(recipe), Progress(epoch=1)
    positions = [json.dumps(progress.stream) for _ in stream.pools(progress, SAMPLER)]
    whole = texts(open_stream(recipe), Progress(epoch=1))
    for number, position in enumerate(positions):
        again = open_stream(recipe)
        assert texts(again, Progress(epoch=1, stream=json.loads(position))) == whole[number:]
        assert again.ledger() == stream.ledger()
    return [text for pool in whole for text in pool]


@pytest.mark.usefixtures("few", "spelled")
def test_sources_take_turns_or_are_drawn_by_weight(checkpoint: Checkpoint, tmp_path: Path) -> None:
    model, words = checkpoint("llama"), ("fox", "dog", "quick")
    paths = [
        write_rows(tmp_path / f"{word}.jsonl", [{"text": f"{word} {n}"} for n in range(count)])
        for word, count in zip(words, (9, 40, 20), strict=True)
    ]
    sources = [{"path": str(path), "streaming": True} for path in paths]
    found = assert_resumes_anywhere(stream_recipe(model, sources, tmp_path / "out", data={"buffer_size": 8}))
    assert sorted(found) == sorted(
        f"{word} {n}" for word, count in zip(words, (9, 40, 20), strict=True) for n in range(count)
    )
    assert [text.split()[0] for text in found[:6]] == [*words, *words]
    weighted = [{**source, "weight": weight} for source, weight in zip(sources, (3.0, 6.0, 1.0), strict=True)]
    found = assert_resumes_anywhere(stream_recipe(model, weighted, tmp_path / "out", data={"buffer_size": 8}))
    counts, drawn = Counter(text.split()[0] for text in found), Counter(found)
    assert counts["quick"] == 20 or counts["dog"] == 40  # the source that ends last ends the epoch
    assert {text for text in drawn if "fox" in text} == {f"fox {n}" for n in range(9)}
    assert counts["dog"] > counts["fox"] > counts["quick"]


@pytest.mark.usefixtures("few", "spelled")
def test_a_data_set_of_the_hub_is_not_read_again(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state of Datasets skips files that were read. A new commit is other data."""
    import datasets

    for number in range(3):
        (tmp_path / f"{number}.parquet").parent.mkdir(exist_ok=True)
        write_parquet(tmp_path / f"{number}.parquet", [{"text": f"fox {number} {n}"} for n in range(150)])
    files, load, read = [str(tmp_path / f"{n}.parquet") for n in range(3)], datasets.load_dataset, Counter[str]()
    table: Any = load("parquet", data_files=files, split="train", streaming=True, cache_dir=str(tmp_path / "cache"))

    def load_dataset(*_: object, **options: Any) -> Any:
        assert options["streaming"]
        return copy.deepcopy(table)

    info = SimpleNamespace(sha="a")
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: info)
    monkeypatch.setattr("llmkit.training.row_table.need_hub", lambda _: None)
    source = {"path": "owner/name", "split": "train"}
    recipe = stream_recipe(checkpoint("llama"), source, tmp_path / "out", data={"buffer_size": 100}, max_steps=120)
    assert len(set(assert_resumes_anywhere(recipe))) == 450
    stream, progress = open_stream(recipe), Progress()
    for _ in stream.pools(progress, SAMPLER):
        pass
    convert = without_null_fields

    def converted(row: Any) -> Any:
        read[row["text"].split()[1]] += 1
        return convert(row)

    again = open_stream(recipe)
    monkeypatch.setattr("llmkit.data.sources.without_null_fields", converted)
    texts(again, Progress(stream=json.loads(json.dumps(progress.stream))))
    assert read == {"2": 66}
    info.sha = "b"
    assert open_stream(recipe).rows.origin != stream.rows.origin


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": {"max_steps": -1}}, "streaming requires train.max_steps"),
        ({"data": {"train": {"path": "x", "streaming": True, "deduplicate": "row"}}}, "deduplicate needs all rows"),
        ({"data": {"train": ["x", {"path": "y", "streaming": True}]}}, "some sources of train are streamed"),
        ({"data": {"train": "x", "buffer_size": 9}}, "buffer_size requires streaming"),
        ({"data": {"validation_fraction": 0.1}}, "validation_fraction needs all rows"),
        ({"data": {"train_fraction": 0.1}}, "train_fraction needs all rows"),
        ({"data": {"validation": {"path": "x", "streaming": True}}}, "validation rows are not streamed"),
        ({"data": {"buffer_size": 9}, "train": {"train_sampling_strategy": "sequential"}}, "buffer_size has no effect"),
        ({"tokenizer": {"train": {}}}, "tokenizer.train needs all rows"),
    ],
)
def test_what_needs_all_rows_is_refused(sections: dict[str, Any], message: str) -> None:
    data = {"train": {"path": "x", "streaming": True}} | sections.pop("data", {})
    train = {"max_steps": 9} | sections.pop("train", {})
    with pytest.raises(ValidationError, match=message):
        make_recipe("text-generation", Path("x"), {}, data=data, train=train, **sections)
