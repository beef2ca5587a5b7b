"""Rows that name their own languages: the same tokens, answers and scores as one run for each pair."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import transformers

import llmkit
from llmkit.cli import main
from llmkit.errors import UsageError
from llmkit.tasks.types import Text
from llmkit.training.dataset import make_examples
from llmkit.training.encoding import make_encoder
from llmkit.training.recipe_model import open_model, open_task
from llmkit.training.run import finetune
from tests.conftest import Checkpoint
from tests.fakes import fake
from tests.training.recipes import make_recipe, write_rows

ROWS: list[dict[str, Any]] = [
    {"source": "The quick brown fox.", "target": "今天天气很好。", "src_lang": "eng_Latn", "tgt_lang": "zho_Hans"},
    {"source": "今天天气很好。", "target": "The lazy dog.", "src_lang": "Chinese", "tgt_lang": "en"},
    {"source": "The lazy dog jumps.", "target": "Où est la bibliothèque ?", "src_lang": "en", "tgt_lang": "fra_Latn"},
    {"source": "The quick dog jumps over.", "target": "我们去公园。", "src_lang": "en", "tgt_lang": "zh"},
]
CODES = [("eng_Latn", "zho_Hans"), ("zho_Hans", "eng_Latn"), ("eng_Latn", "fra_Latn"), ("eng_Latn", "zho_Hans")]
SHORT: dict[str, Any] = {"max_new_tokens": 6, "dtype": "float32", "offline": True}


def test_examples_of_several_pairs_are_those_of_transformers(checkpoint: Checkpoint, tmp_path: Path) -> None:
    model = checkpoint("nllb")
    recipe = make_recipe("translation", model, write_rows(tmp_path / "rows.jsonl", ROWS))
    task = open_task(recipe)
    examples = make_examples(recipe, make_encoder(recipe, task, open_model(recipe, task, weights=False))).train.examples
    for row, (source, target), line in zip(ROWS, CODES, examples, strict=True):
        tokenizer = transformers.AutoTokenizer.from_pretrained(model, src_lang=source, tgt_lang=target)
        expected = tokenizer(row["source"], text_target=row["target"])
        assert line["input_ids"] == expected["input_ids"]
        assert line["labels"] == expected["labels"]


@pytest.mark.parametrize("family", ["nllb", "m2m_100", "mbart50", "mbart"])
def test_a_batch_of_several_pairs_answers_as_each_alone(family: str, checkpoint: Checkpoint) -> None:
    rows: list[Any] = [
        {"source": row["source"], "source_lang": one, "target_lang": two}
        for row, (one, two) in zip(ROWS, CODES, strict=True)
    ]
    pipeline = llmkit.load("translation", str(checkpoint(family)), **SHORT)
    together = pipeline(rows)
    assert [(each.source_language, each.target_language) for each in together] == [
        ("en", "zh"), ("zh", "en"), ("en", "fr"), ("en", "zh")
    ]  # fmt: skip
    for row, (one, two), answer in zip(rows, CODES, together, strict=True):
        set_for_all = llmkit.load("translation", str(checkpoint(family)), source=one, target=two, **SHORT)
        assert answer == pipeline(row) == set_for_all(row["source"])


def test_a_row_wins_over_the_settings_and_leaves_empty_cells_to_them() -> None:
    pipeline, _ = fake("translation", "x", source="en", target="fr")
    rows: list[Any] = [
        {"source": "Guten Tag", "source_lang": "de", "target_lang": "zho_Hant"},
        {"source": "Guten Tag", "source_lang": "German", "target_lang": ""},
        {"source": "Good day", "source_lang": None},
    ]
    found = [(each.source_language, each.target_language) for each in pipeline(rows)]
    assert found == [("de", "zh-Hant"), ("de", "fr"), ("en", "fr")]
    prompt = pipeline.task.render(rows[0], pipeline.traits, pipeline.prompt_options)
    text = prompt.text if isinstance(prompt, Text) else prompt.messages[0].content  # type: ignore[union-attr]
    assert "from German to Chinese (Traditional)" in text


def test_a_target_may_be_missing_until_a_row_is_answered() -> None:
    pipeline, _ = fake("translation", "x")
    assert pipeline({"source": "Good day", "target_lang": "fr"}).target_language == "fr"
    with pytest.raises(UsageError, match="name it with `target`"):
        pipeline("Good day")
    with pytest.raises(llmkit.InputError, match="has no 'target_lang', but 'tgt_lang'"):
        pipeline({"source": "Good day", "tgt_lang": "fr"})


def test_languages_that_a_model_lacks_cost_only_their_row(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        ROWS[0],
        {**ROWS[0], "tgt_lang": "Klingonese"},
        {**ROWS[0], "tgt_lang": "tlh"},
        {**ROWS[0], "tgt_lang": None},
    ]
    data, model = write_rows(tmp_path / "rows.jsonl", rows), str(checkpoint("nllb"))
    assert main(["translate", "--input", str(data), "--model", model, "--max-new-tokens", "2"]) == 3
    said = [json.loads(line).get("error", {}).get("code") for line in capsys.readouterr().out.splitlines()]
    assert said == [None, "unknown_language", "language_not_supported", "language_missing"]
    assert main(["data", "check", str(data), "--task", "translation", "--model", model]) == 1
    out = capsys.readouterr().out
    assert "rows.jsonl:2: target_lang: unknown language 'Klingonese'" in out
    assert re.search("rows.jsonl:3: .* does not translate into Klingon", out)


def test_each_pair_is_scored_beside_the_total(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [*ROWS, {**ROWS[0], "tgt_lang": "xx"}])
    model = str(checkpoint("nllb"))
    found = llmkit.evaluate(task="translation", model=model, data=str(rows), output=tmp_path / "out", **SHORT)
    assert {name: each.rows for name, each in found.groups.items()} == {"en-fr": 1, "en-zh": 2, "zh-en": 1}
    texts = [answer.get("text", "") for answer in found.answers]
    for name, places, tokenizer in (("en-zh", (0, 3), "zh"), ("zh-en", (1,), "13a")):
        mine = [texts[place] for place in places], [[ROWS[place]["target"] for place in places]]
        figures = {each.name: each for each in found.groups[name].figures}
        assert figures["bleu"].interval.value == pytest.approx(sacrebleu.corpus_bleu(*mine, tokenize=tokenizer).score)
        assert figures["chrf++"].interval.value == pytest.approx(sacrebleu.corpus_chrf(*mine, word_order=2).score)
        assert f"tok:{tokenizer}" in figures["bleu"].signature
    total = found.figures[1].interval.value
    references = [[row["target"] for row in (*ROWS, ROWS[0])]]
    assert total == pytest.approx(sacrebleu.corpus_chrf(texts, references, word_order=2).score)
    saved = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert saved["groups"]["en-zh"]["rows"] == 2
    assert set(saved["groups"]["en-zh"]["figures"]["bleu"]) >= {"value", "low", "high", "signature"}
    options = ["--task", "translation", "--model", model, "--data", str(rows), "--max-new-tokens", "2"]
    assert main(["evaluate", *options, "-o", str(tmp_path / "other")]) == 0
    assert "  en-zh, 2 rows\n" in capsys.readouterr().out


def test_the_best_model_is_chosen_by_the_figure_of_all_pairs(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """As evaluate gives it for the model that is kept: each row is answered in its own language."""
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    train = {"output_dir": str(tmp_path / "out"), "max_steps": 2, "learning_rate": 0.01, "load_best_model_at_end": True}
    train |= {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "best",
        "metric_for_best_model": "chrf++",
        "bf16": False,
    }
    data = {"validation": str(rows)}
    model = checkpoint("nllb", max_position_embeddings=40)
    trainer = finetune(make_recipe("translation", model, rows, train=train, data=data))
    found = llmkit.evaluate(str(tmp_path / "out"), output=tmp_path / "scores", dtype="float32")
    assert found.groups.keys() == {"en-fr", "en-zh", "zh-en"}
    assert found.figures[1].interval.value == pytest.approx(trainer.progress.best_metric)
