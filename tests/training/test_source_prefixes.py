"""A mixture of sources with a prefix each: the ids of the prefix and the text, in training, evaluation and later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

import llmkit
from llmkit.config.recipe import Recipe
from llmkit.errors import UsageError
from llmkit.training.dataset import make_examples
from llmkit.training.dry_run import dry_run
from llmkit.training.encoding import make_encoder
from llmkit.training.recipe_model import open_model, open_task
from llmkit.training.run import finetune
from tests.conftest import Checkpoint
from tests.training.recipes import make_recipe, write_rows

GERMAN, SHORT = "translate English to German: ", "summarize: "
ROWS = [
    {"document": "The quick brown fox jumps.", "summary": "The lazy dog."},
    {"document": "今天天气很好，我们去公园。", "summary": "天气很好。"},
]
TRAIN = {"max_steps": 2, "save_strategy": "no", "bf16": False}


def recipe_of(model: Path, folder: Path, prefixes: tuple[str | None, ...], **sections: Any) -> Recipe:
    task = sections.pop("task", "summarization")
    renamed = {"summarization": ("document", "summary"), "text-generation": ("prompt", "completion")}[task]
    rows = [dict(zip(renamed, row.values(), strict=True)) for row in ROWS]
    sources = []
    for number, prefix in enumerate(prefixes):
        path = write_rows(folder / f"{number}.jsonl", rows)
        sources.append({"path": [str(path)], **({} if prefix is None else {"prefix": prefix})})
    train = {"output_dir": str(folder / "out"), **TRAIN}
    return make_recipe(task, model, sources, **{"train": train, **sections})


def examples_of(recipe: Recipe) -> list[dict[str, Any]]:
    task = open_task(recipe)
    encoder = make_encoder(recipe, task, open_model(recipe, task, weights=False))
    return list(make_examples(recipe, encoder).train.examples)


def test_ids_are_those_of_prefix_and_text(checkpoint: Checkpoint, tmp_path: Path) -> None:
    model = checkpoint("t5")
    examples = examples_of(recipe_of(model, tmp_path, (GERMAN, SHORT)))
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(model)
    texts = [prefix + row["document"] for prefix in (GERMAN, SHORT) for row in ROWS]
    assert [line["input_ids"] for line in examples] == tokenizer(texts)["input_ids"]
    assert [line["labels"] for line in examples] == tokenizer([row["summary"] for row in ROWS] * 2)["input_ids"]


def test_a_source_without_a_prefix_has_the_recipes_own(checkpoint: Checkpoint, tmp_path: Path) -> None:
    model = checkpoint("t5")
    mixed = examples_of(recipe_of(model, tmp_path, (GERMAN, None), prompt={"prefix": "short: "}))
    whole = examples_of(recipe_of(model, tmp_path, ("short: ",)))
    assert [line["input_ids"] for line in mixed[2:]] == [line["input_ids"] for line in whole]
    default = examples_of(recipe_of(model, tmp_path, (GERMAN, None)))
    assert [line["input_ids"] for line in default[2:]] == [
        line["input_ids"] for line in examples_of(recipe_of(model, tmp_path, (SHORT,)))
    ]


@pytest.mark.parametrize(("family", "chat"), [("llama", True), ("llama", False), ("gpt2", False)])
def test_models_that_follow_prompts(family: str, chat: bool, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """As if the text began with the prefix."""
    length = "n_positions" if family == "gpt2" else "max_position_embeddings"
    model = checkpoint(family, chat=chat, **{length: 512})
    first, second, *_ = examples_of(recipe_of(model, tmp_path, (GERMAN, SHORT), task="text-generation"))
    rows = [{"prompt": GERMAN + row["document"], "completion": row["summary"]} for row in ROWS]
    plain = make_recipe("text-generation", model, write_rows(tmp_path / "plain.jsonl", rows))
    assert [first["input_ids"], second["input_ids"]] == [line["input_ids"] for line in examples_of(plain)]


def test_evaluation_and_the_tuned_model_have_the_prefix(checkpoint: Checkpoint, tmp_path: Path) -> None:
    model = checkpoint("t5")
    held = [
        {"path": [str(tmp_path / "0.jsonl")], "prefix": GERMAN},
        {"path": [str(tmp_path / "1.jsonl")], "prefix": SHORT},
    ]
    finetune(recipe_of(model, tmp_path, (GERMAN, SHORT), data={"validation": held}))
    found = llmkit.evaluate(str(tmp_path / "out"), output=tmp_path / "scores", max_new_tokens=2)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(model)
    texts = [prefix + row["document"] for prefix in (GERMAN, SHORT) for row in ROWS]
    expected = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    assert [answer["usage"]["prompt_tokens"] for answer in found.answers] == expected
    # With several prefixes, the tuned model has none of its own; with one, it has that.
    assert json.loads((tmp_path / "out" / "llmkit.json").read_text(encoding="utf-8"))["prompt"].get("prefix") is None
    finetune(recipe_of(model, tmp_path, (GERMAN, GERMAN), train={"output_dir": str(tmp_path / "one"), **TRAIN}))
    answer = llmkit.summarize(ROWS[0]["document"], str(tmp_path / "one"), max_new_tokens=2, offline=True)
    assert answer.usage.prompt_tokens == expected[0]


def test_prefixes_without_effect(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"prompt.prefix has no effect if each source of data.train has a prefix"):
        recipe_of(checkpoint("t5"), tmp_path, (GERMAN, SHORT), prompt={"prefix": "short: "})
    rows = write_rows(tmp_path / "chat.jsonl", [{"messages": [{"role": "user", "content": "Hi"},
                                                               {"role": "assistant", "content": "Ho"}]}])  # fmt: skip
    model = checkpoint("llama", chat=True, max_position_embeddings=512)
    chat = make_recipe("dialogue", model, [{"path": [str(rows)], "prefix": SHORT}])
    with pytest.raises(UsageError, match="`prefix` does not apply to conversations"):
        list(dry_run(chat))


def test_each_task_of_a_mixture_has_its_prefix(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Conversations have none, and refuse none of another source."""
    chat = write_rows(tmp_path / "chat.jsonl", [{"messages": [{"role": "user", "content": "Hi"},
                                                               {"role": "assistant", "content": "Ho"}]}])  # fmt: skip
    rows, model = write_rows(tmp_path / "rows.jsonl", ROWS), checkpoint("llama", chat=True, max_position_embeddings=512)
    sources = [{"path": [str(chat)]}, {"path": [str(rows)], "task": "summarization", "prefix": SHORT}]
    mixed = make_recipe("dialogue", model, sources, train={"output_dir": str(tmp_path / "out"), **TRAIN})
    finetune(mixed)
    answer = llmkit.summarize(ROWS[0]["document"], str(tmp_path / "out"), max_new_tokens=2, offline=True)
    named = llmkit.summarize(ROWS[0]["document"], str(model), prefix=SHORT, max_new_tokens=2, offline=True)
    assert answer.usage.prompt_tokens == named.usage.prompt_tokens
