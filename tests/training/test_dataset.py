"""The examples of a recipe: what is counted, split, mixed and found again."""

from __future__ import annotations

import socket
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import llmkit
from llmkit.cli import main
from llmkit.config.recipe import Recipe, SourceSection
from llmkit.errors import HubUnreachableError, InputError, UsageError
from llmkit.heads.base import IGNORED
from llmkit.tasks import Text, find_task
from llmkit.training import dataset
from llmkit.training.dataset import Examples, make_examples
from llmkit.training.encoding import Encoder, make_encoder
from llmkit.training.recipe_model import open_model, open_task
from llmkit.training.row_counts import describe
from llmkit.training.row_table import read_rows
from tests.conftest import Checkpoint
from tests.heads.tool_templates import HERMES
from tests.training.recipes import make_recipe, write_rows


@pytest.fixture
def llama(checkpoint: Checkpoint) -> Path:
    return checkpoint("llama", max_position_embeddings=512)


def encoder_of(recipe: Recipe) -> Encoder:
    task = open_task(recipe)
    return make_encoder(recipe, task, open_model(recipe, task, weights=False))


def run(recipe: Recipe) -> Examples:
    return make_examples(recipe, encoder_of(recipe))


def pair(number: int, words: int = 3) -> dict[str, Any]:
    return {"prompt": f"The quick {number} " + "fox " * words, "completion": f"jumps {number}."}


def drawn(prepared: Examples) -> list[dict[str, Any]]:
    return [prepared.train.rows[index] for index in prepared.train.order]


def test_every_row_is_accounted_for(llama: Path, tmp_path: Path) -> None:
    rows: list[Any] = [
        pair(0),
        "not json",
        pair(1),
        {"prompt": "a", "completion": " "},
        pair(2, 400),
        {"prompt": "no answer"},
    ]
    data = {"on_bad_row": "skip", "on_no_label": "drop", "on_overflow": "drop", "max_length": 100}
    recipe = make_recipe("text-generation", llama, write_rows(tmp_path / "rows.jsonl", rows), data=data)
    ledger = run(recipe).train.ledger
    assert (ledger.rows, ledger.bad, ledger.no_label, ledger.too_long, ledger.examples) == (6, 2, 1, 1, 2)


@pytest.mark.parametrize(
    ("bad", "data", "said"),
    [
        ("not json", {}, r"rows.jsonl:2 is not JSON.*fix it"),
        ({"prompt": "x", "completion": ""}, {}, r"rows.jsonl:2 has nothing to learn.*on_no_label"),
        (pair(1, 400), {"max_length": 100}, r"rows.jsonl:2 has \d+ tokens, too many.*max_length"),
    ],
)
def test_a_row_that_is_not_allowed_stops_the_run_and_is_named(
    bad: Any, data: dict[str, Any], said: str, llama: Path, tmp_path: Path
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [pair(0), bad, pair(2), bad])
    with pytest.raises(InputError, match=said) as caught:
        run(make_recipe("text-generation", llama, path, data=data))
    assert "1 more" in str(caught.value)


def test_several_processes_and_the_second_time_give_the_same(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [pair(number) for number in range(600)])
    one = run(make_recipe("text-generation", llama, path, data={"num_proc": 1})).train.examples[:]
    monkeypatch.setenv("LLMKIT_CACHE", str(tmp_path / "other"))
    recipe = make_recipe("text-generation", llama, path, data={"num_proc": 2})
    assert run(recipe).train.examples[:] == one

    def again(*_: Any) -> None:
        raise AssertionError("tokenized again")

    monkeypatch.setattr(dataset, "_encode_batch", again)
    assert run(recipe).train.examples[:] == one


@pytest.mark.parametrize("changed", ["data", "max_length", "system", "tokenizer"])
def test_what_changes_the_examples_makes_them_anew(
    changed: str, llama: Path, tmp_path: Path, checkpoint: Checkpoint
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [pair(number) for number in range(3)])
    before = run(make_recipe("text-generation", llama, path)).train.examples[:]
    sections: dict[str, Any] = {}
    if changed == "data":
        write_rows(path, [pair(number) for number in range(3, 6)])
    elif changed == "max_length":
        sections["data"] = {"max_length": 10, "on_overflow": "truncate"}
    elif changed == "system":
        sections["prompt"] = {"system": "The lazy dog."}
    else:
        sections["tokenizer"] = {"add_tokens": ["quick"]}
    assert run(make_recipe("text-generation", llama, path, **sections)).train.examples[:] != before


def test_held_back_rows_share_no_input_with_the_others(llama: Path, tmp_path: Path) -> None:
    rows = [{**pair(number % 20), "completion": f"answer {number}"} for number in range(100)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    recipe = make_recipe("text-generation", llama, path, data={"validation_fraction": 0.2})
    prepared = run(recipe)
    assert prepared.validation is not None
    held = {prepared.validation.rows[index]["prompt"] for index in prepared.validation.order}
    assert not held & {row["prompt"] for row in drawn(prepared)}
    assert len(prepared.validation.order) == 20
    assert len(prepared.train.order) == 80
    assert run(recipe).validation.order == prepared.validation.order  # type: ignore[union-attr]
    other = run(make_recipe("text-generation", llama, path, data={"validation_fraction": 0.2, "seed": 1}))
    assert other.validation is not None
    assert other.validation.order != prepared.validation.order


def test_a_mixture_has_its_shares_and_leaves_no_row_out(llama: Path, tmp_path: Path) -> None:
    many = write_rows(tmp_path / "many.jsonl", [pair(number) for number in range(60)])
    few = write_rows(tmp_path / "few.jsonl", [pair(number) for number in range(100, 110)])
    train = [{"path": str(many), "weight": 3.0}, {"path": str(few), "weight": 1.0}]
    prepared = run(make_recipe("text-generation", llama, train))
    counts = Counter(row["prompt"] for row in drawn(prepared))
    assert len(counts) == 70
    assert prepared.train.ledger.sources == ((str(many), 60, 60), (str(few), 10, 20))
    assert set(counts.values()) == {1, 2}
    rare = [{"path": str(many), "weight": 1e-300}, {"path": str(few), "weight": 1e300}]
    with pytest.raises(UsageError, match="rows repeat until an epoch has"):
        run(make_recipe("text-generation", llama, rare))
    with pytest.raises(UsageError, match="weight"):
        run(make_recipe("text-generation", llama, [{"path": str(many), "weight": 3.0}, str(few)]))


def test_long_text_is_cut_into_blocks_that_hold_all_of_it(llama: Path, tmp_path: Path) -> None:
    text = "The quick brown fox jumps over the lazy dog. 今天天气很好。" * 20
    path = write_rows(tmp_path / "rows.jsonl", [{"text": text}])
    recipe = make_recipe("text-generation", llama, path, data={"max_length": 64})
    prepared, encoder = run(recipe), encoder_of(recipe)
    first, *others = prepared.train.examples["input_ids"]
    ids = [*first, *(token for line in others for token in line[1:])]
    tokenizer: Any = encoder.loaded.tokenizer
    assert ids == [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    assert prepared.train.ledger.chunked == 1
    assert max(map(len, prepared.train.examples["input_ids"])) == 64
    predicted = [sum(label != IGNORED for label in labels[1:]) for labels in prepared.train.examples["labels"]]
    assert sum(predicted) == len(ids) - 1


def test_truncation_keeps_the_answer_and_counts_what_it_cuts(llama: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [pair(7, 400)])
    data = {"max_length": 60, "on_overflow": "truncate"}
    recipe = make_recipe("text-generation", llama, path, data=data)
    prepared, encoder = run(recipe), encoder_of(recipe)
    (ids,), (labels,) = prepared.train.examples["input_ids"], prepared.train.examples["labels"]
    assert len(ids) <= 60
    kept = [label for label in labels if label != IGNORED]
    assert "jumps" in str(encoder.loaded.tokenizer.decode(kept))
    assert prepared.train.ledger.truncated == 1
    assert prepared.train.ledger.tokens_cut > 300


def test_a_long_conversation_loses_its_oldest_turns(checkpoint: Checkpoint, tmp_path: Path) -> None:
    turns = [
        {"role": role, "content": f"{role} number {number}"} for number in range(30) for role in ("user", "assistant")
    ]
    path = write_rows(tmp_path / "rows.jsonl", [{"messages": turns}])
    model = checkpoint("llama", chat=True, max_position_embeddings=2048)
    data = {"max_length": 200, "on_overflow": "truncate"}
    recipe = make_recipe("dialogue", model, path, data=data)
    (labels,) = run(recipe).train.examples["labels"]
    text = str(encoder_of(recipe).loaded.tokenizer.decode([label for label in labels if label != IGNORED]))
    assert 1 < text.count("assistant") < 30
    with pytest.raises(UsageError, match="a part of its input has no answer to learn"):
        run(make_recipe("dialogue", model, path, data={"on_overflow": "chunk"}))


def test_a_reply_that_is_not_to_be_learned_is_context(checkpoint: Checkpoint, tmp_path: Path) -> None:
    turns = [("user", "one", 1), ("assistant", "bad", 0), ("user", "two", 1), ("assistant", "good", 1)]
    messages = [{"role": role, "content": text, "weight": weight} for role, text, weight in turns]
    path = write_rows(tmp_path / "rows.jsonl", [{"messages": messages, "score": 3}, {"messages": messages[:2]}])
    model = checkpoint("llama", chat=True, max_position_embeddings=512)
    recipe = make_recipe("dialogue", model, path, data={"on_no_label": "drop"})
    prepared, tokenizer = run(recipe), encoder_of(recipe).loaded.tokenizer
    (ids,), (labels,) = prepared.train.examples["input_ids"], prepared.train.examples["labels"]
    learned = str(tokenizer.decode([label for label in labels if label != IGNORED]))
    assert "good" in learned
    assert "bad" not in learned
    assert "bad" in str(tokenizer.decode(ids))
    assert (prepared.train.ledger.no_label, prepared.train.ledger.unused) == (1, (("messages.weight", 2), ("score", 1)))
    with pytest.raises(InputError, match=r"weight: 0 cannot be excluded with data.loss_on: all"):
        run(make_recipe("dialogue", model, path, data={"loss_on": "all"}))


def test_only_the_last_reply_is_learned(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """With the labels of LLaMA-Factory's mask_history, in validation rows too, and in one example per row.

    (LlamaFactory#5165: not applied to validation rows; #10827: the ends of earlier replies keep their labels.)
    """
    call = {"function": {"name": "look", "arguments": {"at": "fox"}}}
    asked, answered = {"role": "user", "content": "one"}, {"role": "assistant", "content": "first"}
    called = {"role": "assistant", "content": "", "tool_calls": [call]}
    seen = {"role": "tool", "content": "a fox", "name": "look"}
    rows: list[tuple[list[dict[str, Any]], str]] = [
        ([asked, answered, asked, {"role": "assistant", "content": "second"}], "second"),
        ([asked, called, seen, answered], "first"),  # of a turn with a call, what follows its result
        ([asked, answered, asked, called], "look"),
        ([asked, answered, answered | {"content": "more"}], "more"),  # of several replies in a row
        ([asked, answered, asked, answered | {"content": "bad", "weight": 0}, asked], "first"),  # of those learned
    ]
    path = write_rows(tmp_path / "rows.jsonl", [{"messages": messages} for messages, _ in rows])
    model = checkpoint("llama", chat=HERMES.replace("<|im_end|>", "{{ eos_token }}"), max_position_embeddings=512)
    loss_on = {"on_overflow": "truncate", "validation": str(path)}
    every, last = (run(make_recipe("dialogue", model, path, data=loss_on | more)) for more in ({}, {"loss_on": "last"}))
    tokenizer: Any = encoder_of(make_recipe("dialogue", model, path)).loaded.tokenizer
    assert last.validation is not None
    for part, other in zip(last.train.examples, every.train.examples, strict=True):
        begun = max(place for place, label in enumerate(part["labels"]) if label == IGNORED) + 1
        assert set(part["labels"][:begun]) == {IGNORED}
        assert part["input_ids"] == other["input_ids"]
        assert part["labels"][begun:] == other["labels"][begun:] == part["input_ids"][begun:]
    assert last.validation.examples["labels"] == last.train.examples["labels"]
    for labels, (_, reply) in zip(last.train.examples["labels"], rows, strict=True):
        text = tokenizer.decode([label for label in labels if label != IGNORED])
        assert reply in text
        assert text.endswith(tokenizer.eos_token)
    with pytest.raises(ValueError, match="loss_on: last has no effect on rows with one answer"):
        make_recipe("text-generation", model, path, data={"loss_on": "last"})


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("text-generation", {"prompt": " ", "completion": "b"}),
        ("summarization", {"document": "", "summary": "b"}),
        ("translation", {"source": "", "target": "b"}),
        ("question-answering", {"question": "", "context": "b", "answers": ["b"]}),
        ("question-answering", {"question": "b", "context": "", "answers": []}),
        ("dialogue", {"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "b"}]}),
    ],
)
def test_a_row_with_an_empty_input_is_bad_as_at_inference(
    task: str, row: dict[str, Any], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    model = checkpoint("llama", chat=True, max_position_embeddings=512)
    path = write_rows(tmp_path / "rows.jsonl", [row])
    settings = {"target": "fr"} if task == "translation" else {}
    with pytest.raises(InputError, match=r"rows.jsonl:1: .* is empty; .*on_bad_row"):
        run(make_recipe(task, model, path, settings=settings))
    recipe = make_recipe(task, model, path, settings=settings, data={"on_bad_row": "skip"})
    assert run(recipe).train.ledger.bad == 1


def test_settings_without_effect_are_refused(llama: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [pair(0)])
    answers = {"question": "Who?", "context": "The fox.", "answers": {"text": ["fox"], "answer_start": [4]}}
    questions = write_rows(tmp_path / "questions.jsonl", [answers])
    bert = checkpoint("bert")
    for recipe in (
        make_recipe("text-generation", llama, path, data={"max_target_length": 5}),
        make_recipe("text-generation", llama, path, prompt={"raw": True}),
        make_recipe("question-answering", bert, questions, data={"max_length": 5}),
        make_recipe("question-answering", bert, questions, data={"loss_on": "all"}),
    ):
        with pytest.raises(UsageError, match="no effect"):
            run(recipe)


def test_a_new_model_learns_its_tokenizer_from_the_training_rows_alone(tmp_path: Path) -> None:
    rows = [{"text": f"训练文本 number {number % 10}: " + "quick brown fox " * 3} for number in range(20)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    config = {
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    recipe = make_recipe(
        "text-generation", {"config": config}, path, tokenizer={"train": {"vocab_size": 300}}, data={"max_length": 32}
    )
    task = open_task(recipe)
    loaded = open_model(recipe, task, weights=False)
    tokenizer: Any = loaded.tokenizer
    assert loaded.model.config.vocab_size == len(tokenizer) <= 300
    assert tokenizer.decode(tokenizer("训练 fox 😀", add_special_tokens=False)["input_ids"]) == "训练 fox 😀"
    assert run(recipe).train.ledger.examples >= 20
    wrong = make_recipe(
        "text-generation", {"config": {**config, "hiden_size": 3}}, path, tokenizer={"train": {"vocab_size": 300}}
    )
    with pytest.raises(UsageError, match="did you mean 'hidden_size'"):
        open_model(wrong, task, weights=False)


@pytest.mark.parametrize(
    ("family", "task"),
    [("llama", "text-generation"), ("marian", "translation"), ("nllb", "translation"), ("bert", "question-answering")],
)
def test_examples_are_found_again_by_any_process(family: str, task: str, checkpoint: Checkpoint) -> None:
    settings = {"source": "en", "target": "fr"} if task == "translation" else {}
    recipe = make_recipe(task, checkpoint(family), "none.jsonl", settings=settings)
    assert dataset._fingerprint(encoder_of(recipe)) == dataset._fingerprint(encoder_of(recipe))


LONG = " ".join(f"Fox number {number} jumps over the lazy dog." for number in range(60)) + " The end."
TRUNCATED: dict[str, tuple[str, dict[str, Any]]] = {
    "summarization": ("bart", {"document": LONG, "summary": "Foxes jump."}),
    "translation": ("marian", {"source": LONG, "target": "Renards."}),  # its tokenizer tells no offsets
    "question-answering": ("t5", {"question": "What is lazy?", "context": LONG, "answers": {"text": ["dog"]}}),
}


@pytest.mark.parametrize("task", TRUNCATED)
@pytest.mark.parametrize("side", [None, "left"])
def test_a_text_is_cut_in_training_as_at_inference(
    task: str, side: str | None, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    family, row = TRUNCATED[task]
    model, path = checkpoint(family), write_rows(tmp_path / "rows.jsonl", [row])
    languages: dict[str, Any] = {"source": "en", "target": "fr"} if task == "translation" else {}
    cut: dict[str, Any] = {"on_overflow": "truncate", "truncation_side": side}
    recipe = make_recipe(task, model, path, data={**cut, "max_length": 128}, settings=languages)
    prepared = run(recipe)
    (trained,) = prepared.train.examples["input_ids"]
    pipeline = llmkit.load(task, str(model), device="cpu", dtype="float32", **cut, **languages)
    pipeline.engine.facts = replace(pipeline.engine.facts, context=replace(pipeline.loaded.context, tokens=128))
    given = {name: value for name, value in row.items() if name in pipeline.task.columns}
    fitted = pipeline.reader(lambda _: None, given).fit(given)
    assert fitted.truncated
    assert trained == list(fitted.encoded.input_ids)
    assert isinstance(fitted.prompt, Text)
    assert ("Fox number 0 " in fitted.prompt.text, "The end." in fitted.prompt.text) == (not side, bool(side))
    assert f"the {'end' if side else 'beginning'} of the text is kept" in prepared.train.ledger.kept


def test_an_answer_that_is_cut_out_of_its_text_is_not_taught(checkpoint: Checkpoint, tmp_path: Path) -> None:
    found = {"question": "Which?", "context": f"The quick brown fox. {LONG}", "answers": {"text": ["quick brown"]}}
    lost = {"question": "Which?", "context": f"{LONG} The quick brown fox.", "answers": {"text": ["quick brown"]}}
    written = {"question": "Which?", "context": LONG, "answers": {"text": ["in other words"]}}
    path = write_rows(tmp_path / "rows.jsonl", [found, lost, written])
    data = {"max_length": 256, "on_overflow": "truncate"}
    model = checkpoint("llama", chat=True, max_position_embeddings=2048)
    prepared = run(make_recipe("question-answering", model, path, data=data))
    assert prepared.train.examples["row"][:] == [0, 2]
    assert prepared.train.ledger.too_long == 1


def test_an_answer_that_is_cut_still_ends(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"document": "The fox.", "summary": LONG}])
    data = {"max_target_length": 8, "on_overflow": "truncate"}
    recipe = make_recipe("summarization", checkpoint("t5"), path, data=data)
    encoder, (labels,) = encoder_of(recipe), run(recipe).train.examples["labels"]
    tokenizer: Any = encoder.loaded.tokenizer
    assert labels == tokenizer(text_target=LONG, max_length=8, truncation=True)["input_ids"]  # as run_summarization


def test_a_side_without_effect_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path = write_rows(tmp_path / "rows.jsonl", [{"messages": turns}])
    data = {"on_overflow": "truncate", "truncation_side": "left"}
    with pytest.raises(UsageError, match="drops its oldest messages"):
        run(make_recipe("dialogue", checkpoint("llama", chat=True), path, data=data))
    with pytest.raises(ValueError, match="requires on_overflow: truncate"):
        make_recipe("summarization", checkpoint("t5"), path, data={"truncation_side": "left"})
    with pytest.raises(UsageError, match="requires on_overflow=truncate"):
        llmkit.load("summarization", str(checkpoint("t5")), truncation_side="left")


def test_a_hub_that_is_away_is_found_out_before_its_client_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    def client(*_: object, **__: object) -> None:
        raise AssertionError("the client of the Hub was used")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", client)
    monkeypatch.setattr("datasets.load_dataset", client)
    monkeypatch.setattr(socket.socket, "connect", client)
    monkeypatch.setattr(socket, "getaddrinfo", client)
    with pytest.raises(HubUnreachableError, match="owner/name is not a local file, and offline mode is on"):
        read_rows([SourceSection(path=["owner/name"], split="train")], find_task("generate")())
    assert main(["data", "check", "owner/name", "--task", "generate"]) == 1
    monkeypatch.setattr("llmkit.training.row_table.is_offline", lambda: False)
    monkeypatch.setattr("llmkit.training.row_table.hub_reachable", lambda: False)
    with pytest.raises(HubUnreachableError, match="and the model hub cannot be reached"):
        read_rows([SourceSection(path=["owner/name"], split="train")], find_task("generate")())


def test_rows_that_settings_leave_out_are_counted(llama: Path, tmp_path: Path) -> None:
    rows = [{**pair(number // 2), "n": number} for number in range(80)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    source = {"path": str(path), "where": "n >= 20", "deduplicate": "row"}
    held = write_rows(tmp_path / "held.jsonl", rows[:6])
    data = {"train": source, "validation": {**source, "path": str(held), "where": "n < 4"}, "train_fraction": 0.5}
    for _ in range(2):  # the second time from the cache
        prepared = run(make_recipe("text-generation", llama, path, data=data))
        assert prepared.train.ledger.left_out == (("deduplicate", 30), ("where", 20), ("train_fraction", 15))
        assert prepared.train.ledger.rows == prepared.train.ledger.examples == 15
        assert prepared.validation is not None
        assert prepared.validation.ledger.left_out == (("deduplicate", 2), ("where", 2))
    lines = list(describe(prepared.train.ledger, "train"))
    assert "train: 20 rows are left out by where" in lines
    assert "train: 15 rows are left out by train_fraction" in lines
    split = run(make_recipe("text-generation", llama, path, data={"train": source, "validation_fraction": 0.2}))
    assert split.validation is not None
    assert split.validation.ledger.left_out == ()
    assert dict(split.train.ledger.left_out) == {"where": 20, "deduplicate": 30}


def test_loss_on_answers_needs_a_chat_template(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "The fox", "completion": " jumps"}\n', encoding="utf-8")
    for model in (checkpoint("gpt2"), checkpoint("t5")):
        with pytest.raises(UsageError, match=r"data\.loss_on: answer has no effect"):
            run(make_recipe("text-generation", model, path, data={"loss_on": "answer"}))
