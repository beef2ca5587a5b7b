"""``prompt.examples`` of a recipe: training prompts have the examples that the tuned model is asked with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import llmkit
from llmkit.config.recipe import Recipe
from llmkit.config.recipe_file import load_recipe
from llmkit.errors import InputError, UsageError
from llmkit.heads.base import IGNORED
from llmkit.training.dataset import Part, make_examples
from llmkit.training.encoding import make_encoder
from llmkit.training.recipe_model import open_model, open_task
from tests.conftest import Checkpoint
from tests.training.recipes import make_recipe, write_rows

ROWS = [{"prompt": f"Who is the {name}?", "completion": name} for name in ("fox", "dog", "cat", "hen", "owl")]


@pytest.fixture
def model(checkpoint: Checkpoint) -> Path:
    return checkpoint("llama", chat=True, max_position_embeddings=512)


def encoded(recipe: Recipe) -> Part:
    task = open_task(recipe)
    return make_examples(recipe, make_encoder(recipe, task, open_model(recipe, task, weights=False))).train


def prompts(part: Part) -> list[list[int]]:
    return [
        [token for token, label in zip(line["input_ids"], line["labels"], strict=True) if label == IGNORED]
        for line in part.examples
    ]


@pytest.mark.parametrize("choice", [{}, {"shots": 2}, {"shots": 2, "shots_by": "similarity"}, {"shots": 0}])
@pytest.mark.parametrize("chat", [True, False])
def test_training_prompts_are_those_of_inference_and_never_show_the_answer(
    choice: dict[str, Any], chat: bool, checkpoint: Checkpoint, model: Path, tmp_path: Path
) -> None:
    """Also where the training rows are the examples: such a row would show what is to be learned."""
    folder = model if chat else checkpoint("gpt2")
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    part = encoded(make_recipe("text-generation", folder, rows, prompt={"examples": str(rows), **choice}))
    pipeline = llmkit.load("generate", str(folder), device="cpu", examples=ROWS, **choice)
    for row, ids in zip(ROWS, prompts(part), strict=True):
        assert ids == list(pipeline.reader(lambda _: None, row).fit(row).encoded.input_ids)
        shown = pipeline.loaded.tokenizer.decode(ids)
        assert shown.count(row["completion"]) == 1, "in the question alone"


def test_a_tuned_model_is_asked_and_evaluated_with_its_examples(model: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    content = {
        "version": 1,
        "task": "text-generation",
        "model": {"name_or_path": str(model), "device": "cpu"},
        "adapter": {"peft_type": "LORA"},
        "prompt": {"examples": "shots.csv", "shots": 1, "shots_by": "similarity"},
        "data": {"train": {"path": str(rows)}, "validation": str(rows)},
        "train": {"output_dir": str(tmp_path / "out"), "max_steps": 1, "bf16": False},
    }
    (tmp_path / "shots.csv").write_text("instruction,output\nWho is the wolf?,wolf\nWhere?,here\n", encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(content), encoding="utf-8")
    path: Any = load_recipe(str(recipe)).prompt.examples
    assert path == str(tmp_path / "shots.csv"), "relative to the recipe"
    tuned = llmkit.finetune(recipe)
    kept = json.loads((tuned.folder / "llmkit.json").read_text(encoding="utf-8"))["prompt"]
    assert kept["examples"][0] == {"prompt": "Who is the wolf?", "completion": "wolf"}
    assert (kept["shots"], kept["shots_by"]) == (1, "similarity")
    (tmp_path / "shots.csv").unlink()  # the tuned model needs no other file
    answer = tuned.load(max_new_tokens=2)("Who is the fox?")
    plain = llmkit.generate(
        "Who is the fox?", str(model), examples=[kept["examples"][0]], max_new_tokens=2, device="cpu"
    )
    assert answer.usage.prompt_tokens == plain.usage.prompt_tokens
    (tmp_path / "shots.csv").write_text("instruction,output\nWho is the wolf?,another answer\n", encoding="utf-8")
    found = llmkit.evaluate(str(tuned), output=tmp_path / "eval", max_new_tokens=2)
    assert found.shots == 1
    assert found.answers[0]["usage"]["prompt_tokens"] == plain.usage.prompt_tokens
    zero = llmkit.evaluate(str(tuned), output=tmp_path / "zero", max_new_tokens=2, shots=[1, 0])
    assert zero.figures[0].interval == found.figures[0].interval
    assert zero.by_shots[1].answers[0]["usage"]["prompt_tokens"] < plain.usage.prompt_tokens


def test_examples_that_do_not_fit_are_refused_or_dropped_with_a_word(model: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    plain = encoded(make_recipe("text-generation", model, rows))
    longest = max(plain.examples["length"][:])
    prompt = {"examples": ROWS}
    with pytest.raises(InputError, match="1 has 115 tokens, too many"):
        encoded(make_recipe("text-generation", model, rows, prompt=prompt, data={"max_length": longest}))
    data = {"max_length": longest, "on_overflow": "truncate"}
    part = encoded(make_recipe("text-generation", model, rows, prompt=prompt, data=data))
    assert prompts(part) == prompts(plain), "the row's own text is kept"
    assert part.ledger.truncated == 5
    assert part.ledger.kept.startswith("few-shot examples are dropped first, then the ")


def test_examples_without_an_effect_on_training_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    question = {"question": "Who?", "context": "The fox jumps.", "answers": ["fox"]}
    summary = {"document": "The fox jumps.", "summary": "fox"}
    text = {"text": "The fox jumps."}
    for family, task, row, example in (
        ("bert", "question-answering", question, question),
        ("bart", "summarization", summary, summary),
        ("gpt2", "text-generation", text, ROWS[0]),
    ):
        rows = write_rows(tmp_path / f"{family}.jsonl", [row] * 2)
        with pytest.raises((UsageError, InputError), match=r"examples|other options"):
            encoded(make_recipe(task, checkpoint(family), rows, prompt={"examples": [example]}))
