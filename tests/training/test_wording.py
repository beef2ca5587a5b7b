"""Templates, prefixes and languages of prompts: training and inference have the same ids."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import llmkit
from llmkit.config.recipe import Recipe
from llmkit.data.prompt_files import open_prompt
from llmkit.errors import UsageError
from llmkit.heads.base import IGNORED
from llmkit.inference.tuned_config import Contract, recipe_prompt, tuned_prompt, write_contract
from llmkit.training.dataset import make_examples
from llmkit.training.encoding import make_encoder
from llmkit.training.recipe_model import open_model, open_task
from llmkit.training.run import finetune
from tests.conftest import Checkpoint
from tests.training.recipes import make_recipe, write_rows

CHINESE = "今天天气很好，我们去公园散步。"
ENGLISH = "The quick brown fox jumps."
LONG = {"max_position_embeddings": 512}


def learned_prompt(recipe: Recipe, row: Mapping[str, Any]) -> list[int]:
    """The ids before the answer in training."""
    task = open_task(recipe)
    (features,) = make_encoder(recipe, task, open_model(recipe, task, weights=False)).encode(row).features
    if features.decoder_input_ids:
        return list(features.input_ids)
    return [token for token, label in zip(features.input_ids, features.labels, strict=True) if label == IGNORED]


def asked_prompt(recipe: Recipe, model: Path, row: Mapping[str, Any], folder: Path, **options: Any) -> list[int]:
    """The ids of the prompt of the tuned folder, which has no other option."""
    tuned = shutil.copytree(model, folder)
    write_contract(
        tuned,
        Contract(
            recipe.task, recipe.settings.model_dump(mode="json"), tuned_prompt(open_prompt(recipe, open_task(recipe)))
        ),
    )
    pipeline = llmkit.load(recipe.task, str(tuned), offline=True, device="cpu", **options)
    return list(pipeline.reader(lambda _: None, row).encode(row).encoded.input_ids)


TEMPLATE = "{% if title %}{{ title }}: {% endif %}{{ document }} =>"
QUESTION = {"question": "Who jumps?", "context": CHINESE, "answers": ["我们"]}


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize(
    ("task", "row", "prompt"),
    [
        ("summarization", {"document": ENGLISH, "title": "Fox", "summary": "Fox."}, {"template": TEMPLATE}),
        ("summarization", {"document": CHINESE, "summary": "散步。"}, {}),
        ("summarization", {"document": CHINESE, "summary": "散步。"}, {"prompt_language": "en", "prefix": "摘要："}),
        ("question-answering", QUESTION, {}),
        ("question-answering", {**QUESTION, "answers": []}, {"prefix": "x "}),
        ("text-generation", {"prompt": "Sing.", "completion": "La."}, {"template": "### {{ prompt }}\n\n###"}),
    ],
)
def test_a_tuned_model_is_asked_with_the_ids_of_training(
    family: str, task: str, row: dict[str, Any], prompt: dict[str, Any], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    model = checkpoint(family, **({"chat": True, **LONG} if family == "llama" else {"n_positions": 512}))
    if family == "t5":  # which takes the text alone
        prompt = {name: value for name, value in prompt.items() if name != "prompt_language"}
    recipe = make_recipe(task, model, write_rows(tmp_path / "rows.jsonl", [row]), prompt=prompt)
    assert learned_prompt(recipe, row) == asked_prompt(recipe, model, row, tmp_path / "tuned")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("text", [CHINESE, ENGLISH])
def test_translation_is_asked_with_the_ids_of_training(
    family: str, text: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    model = checkpoint(family, **({"chat": True, **LONG} if family == "llama" else {"n_positions": 512}))
    rows = write_rows(tmp_path / "rows.jsonl", [row := {"source": text, "target": "Le renard."}])
    settings = {"source": "zh" if text == CHINESE else "en", "target": "fr"}
    recipe = make_recipe("translation", model, rows, settings=settings)
    assert learned_prompt(recipe, row) == asked_prompt(recipe, model, row, tmp_path / "tuned")


def test_a_prefix_has_the_ids_of_run_summarization(checkpoint: Checkpoint, tmp_path: Path) -> None:
    row = {"document": ENGLISH, "summary": "Fox."}
    recipe = make_recipe(
        "summarization", checkpoint("t5"), write_rows(tmp_path / "rows.jsonl", [row]), prompt={"prefix": "headline: "}
    )
    tokenizer: Any = open_model(recipe, open_task(recipe), weights=False).tokenizer
    assert learned_prompt(recipe, row) == tokenizer(f"headline: {ENGLISH}").input_ids


def test_a_model_of_an_older_version_is_asked_in_english(checkpoint: Checkpoint, tmp_path: Path) -> None:
    model, row = checkpoint("llama", chat=True, **LONG), {"document": CHINESE, "summary": "散步。"}
    recipe = make_recipe("summarization", model, write_rows(tmp_path / "rows.jsonl", [row]))
    old = shutil.copytree(model, tmp_path / "old")
    (old / "llmkit.json").write_text('{"task": "summarization", "version": 1}', encoding="utf-8")
    pipeline = llmkit.load("summarize", str(old), offline=True, device="cpu")
    english = asked_prompt(recipe, model, row, tmp_path / "tuned", prompt_language="en")
    assert list(pipeline.reader(lambda _: None, row).encode(row).encoded.input_ids) == english
    assert english != learned_prompt(recipe, row)


def test_a_model_for_other_languages_is_asked_in_english(checkpoint: Checkpoint, tmp_path: Path) -> None:
    row = {"document": CHINESE, "summary": "散步。"}
    rows, prompts = write_rows(tmp_path / "rows.jsonl", [row]), []
    for language, chosen in (("en", "en"), ("zh", "auto")):
        model = shutil.copytree(checkpoint("llama", chat=True, **LONG), tmp_path / language)
        (model / "README.md").write_text(f"---\nlanguage: {language}\n---\n", encoding="utf-8")
        recipe = make_recipe("summarization", model, rows)
        pipeline = llmkit.load("summarize", str(model), offline=True, device="cpu")
        prompts.append(list(pipeline.reader(lambda _: None, row).encode(row).encoded.input_ids))
        assert prompts[-1] == learned_prompt(recipe, row)
        task = open_task(recipe)
        options = recipe_prompt(recipe, open_model(recipe, task, weights=False), task)
        assert tuned_prompt(options)["prompt_language"] == chosen
    assert prompts[0] != prompts[1]


def test_a_column_that_no_row_has_is_refused_before_training(checkpoint: Checkpoint, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"document": "a b", "title": "c", "summary": "d"}] * 2)

    def prepared(template: str) -> Any:
        recipe = make_recipe("summarization", checkpoint("gpt2"), rows, prompt={"template": template})
        task = open_task(recipe)
        return make_examples(recipe, make_encoder(recipe, task, open_model(recipe, task, weights=False)))

    said = r"prompt.template uses titel, and no row has such a column \(columns: document, title, summary\)"
    with pytest.raises(UsageError, match=said):
        prepared("{% if titel %}{{ titel }}{% endif %}{{ document }}")
    assert len(prepared("{% if titel is defined %}{{ titel }}{% endif %}{{ document }}").train.examples) == 2
    found = prepared("{{ title }}: {{ document }}")
    assert len(found.train.examples) == 2
    assert not found.train.ledger.unused


def test_template_files_are_found_beside_the_recipe(checkpoint: Checkpoint, tmp_path: Path) -> None:
    from llmkit.config.recipe_file import load_recipe

    (tmp_path / "wording.jinja").write_text("About {{ document }}:\n", encoding="utf-8")
    write_rows(tmp_path / "rows.jsonl", [{"document": "a", "summary": "b"}])
    text = f"""\
version: 1
task: summarization
model: {{name_or_path: '{checkpoint("gpt2")}'}}
prompt: {{template: wording.jinja}}
data: {{train: rows.jsonl}}
train: {{output_dir: out}}
"""
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    recipe = load_recipe(str(tmp_path / "recipe.yaml"))
    assert recipe.prompt.template == str(tmp_path / "wording.jinja")
    assert open_prompt(recipe, open_task(recipe)).template == "About {{ document }}:\n"
    lost = make_recipe("summarization", checkpoint("gpt2"), Path("x"), prompt={"template": "none.jinja"})
    with pytest.raises(UsageError, match="neither a file nor a Jinja template"):
        open_prompt(lost, open_task(recipe))


def test_a_template_has_no_effect_on_plain_text(checkpoint: Checkpoint, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": "The fox jumps."}])
    recipe = make_recipe("text-generation", checkpoint("gpt2"), rows, prompt={"prefix": "x"})
    outcome = make_encoder(recipe, task := open_task(recipe), open_model(recipe, task, weights=False)).encode(
        {"text": "The fox jumps."}
    )
    assert "plain text, which is learned without a prompt" in outcome.message


def test_alpaca(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """One template with a condition for rows with and without input, from the training to the evaluation."""
    from llmkit.config.recipe_file import load_recipe
    from llmkit.training.evaluation_spec import resolve_evaluation

    data = [
        {"instruction": "Add the numbers.", "input": "1 and 2", "output": "3"},
        {"instruction": "Name a colour.", "input": "", "output": "Red"},
    ]
    rows = write_rows(tmp_path / "rows.jsonl", data)
    overrides = [
        f"model.name_or_path={checkpoint('gpt2', n_positions=512)}",
        "model.offline=true",
        "model.device=cpu",
        f"data.train={json.dumps([str(rows)])}",
        "data.validation_fraction=0.5",
        "train.max_steps=1",
        "train.warmup_steps=0",
        "train.report_to=[]",
        f"prompt.template={tmp_path / 'alpaca.jinja'}",
        f"train.output_dir={tmp_path / 'out'}",
    ]
    template = load_recipe("text-generation/alpaca-lora").prompt.template
    (tmp_path / "alpaca.jinja").write_text(template or "", encoding="utf-8")
    finetune(load_recipe("text-generation/alpaca-lora", overrides))
    (tmp_path / "alpaca.jinja").unlink()  # as on another machine
    pipeline = llmkit.load("generate", str(tmp_path / "out"), offline=True, device="cpu")
    prompts = []
    for row in ({"prompt": "Add the numbers.", "input": "1 and 2"}, {"prompt": "Name a colour."}):
        rendered = pipeline.reader(lambda _: None, row).encode(row).prompt
        prompts.append(rendered.text)  # type: ignore[union-attr]
    assert prompts == [
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a"
        " response that appropriately completes the request.\n\n### Instruction:\nAdd the numbers.\n\n"
        "### Input:\n1 and 2\n\n### Response:",
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nName a colour.\n\n### Response:",
    ]
    for specs in (
        resolve_evaluation(str(tmp_path / "out"), None, str(rows), llmkit_load()),
        resolve_evaluation(None, "generate", str(rows), llmkit_load(model=str(tmp_path / "out"))),
    ):
        assert [(row["prompt"], row.get("input")) for row in specs["text-generation"].rows] == [
            ("Add the numbers.", "1 and 2"),
            ("Name a colour.", ""),
        ]


def llmkit_load(**options: Any) -> Any:
    from llmkit.config.settings import LoadSettings

    return LoadSettings(offline=True, device="cpu", **options)
