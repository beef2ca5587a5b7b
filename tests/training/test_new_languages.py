"""Languages that a translation model does not know, as new tokens: trained, saved, and named as all others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import llmkit
from llmkit.cli import main
from llmkit.config.recipe import Recipe
from llmkit.errors import UsageError
from llmkit.training.dry_run import dry_run
from llmkit.training.merge import merge
from llmkit.training.recipe_model import open_model, open_task
from llmkit.training.run import finetune
from tests.conftest import Checkpoint
from tests.training.recipes import make_recipe, write_rows

ROWS = [
    {"source": "The quick brown fox.", "target": "今天天气很好。", "source_lang": "en", "target_lang": "tyv_Cyrl"},
    {"source": "今天天气很好。", "target": "The lazy dog.", "source_lang": "Tuvinian", "target_lang": "en"},
    {"source": "The lazy dog jumps.", "target": "我们去公园。", "source_lang": "en", "target_lang": "tyv"},
]
TUVAN = {"add_languages": {"tyv_Cyrl": "Kazakh"}}
FAMILIES = {
    "nllb": ("tyv_Cyrl", "kaz_Cyrl"),
    "m2m_100": ("__tyv__", "__kk__"),
    "mbart": ("tyv_XX", "kk_KZ"),
    "mbart50": ("tyv_XX", "kk_KZ"),
    "madlad": ("<2tyv>", "<2kk>"),
}


def model_of(family: str, checkpoint: Checkpoint, folder: Path) -> Path:
    """A tiny checkpoint; MADLAD's is a T5 with language tokens."""
    if family != "madlad":
        return checkpoint(family)
    name = checkpoint("t5")
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(name)
    tokenizer.add_tokens(["<2en>", "<2de>", "<2kk>"])
    model: Any = transformers.AutoModelForSeq2SeqLM.from_pretrained(name)
    model.resize_token_embeddings(len(tokenizer))
    for part in (tokenizer, model):
        part.save_pretrained(folder / "madlad")
    return folder / "madlad"


def recipe_of(model: Path, folder: Path, out: str = "out", **sections: Any) -> Recipe:
    rows = write_rows(folder / "rows.jsonl", ROWS * 2)
    train = {"output_dir": str(folder / out), "max_steps": 2, "learning_rate": 0.05, "bf16": False}
    train |= {"save_strategy": "no"} | sections.pop("train", {})
    return make_recipe("translation", model, rows, **{"tokenizer": TUVAN, "train": train, **sections})


def embeddings_of(model: Any) -> Any:
    return model.get_input_embeddings().weight


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_token_starts_from_the_one_of_a_related_language(
    family: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    token, related = FAMILIES[family]
    recipe = recipe_of(model_of(family, checkpoint, tmp_path), tmp_path)
    task = open_task(recipe)
    found = open_model(recipe, task, weights=True, dtype="float32")
    before = open_model(recipe.model_copy(update={"tokenizer": type(recipe.tokenizer)()}), task, weights=True)
    ids: Any = found.tokenizer.convert_tokens_to_ids([token, related])
    table, old = (embeddings_of(each.model) for each in (found, before))
    assert ids[0] == len(before.tokenizer)
    torch.testing.assert_close(table[ids[0]], table[ids[1]])
    torch.testing.assert_close(table[: ids[0]], old[: ids[0]].float())


@pytest.mark.parametrize("family", ["nllb", "m2m_100", "mbart50", "madlad"])
def test_the_tuned_folder_knows_the_language(
    family: str, checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_of(family, checkpoint, tmp_path)
    with pytest.raises(UsageError, match="does not translate into Tuvinian"):
        llmkit.load("translation", str(model), target="tyv", offline=True)("The fox.")
    trainer = finetune(recipe_of(model, tmp_path))
    command = ["translate", "The quick fox", "--from", "en", "--to", "tyv", "--model", str(tmp_path / "out"), "--json"]
    assert main([*command, "--max-new-tokens", "4"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["target_language"] == "tyv"
    assert "tuned without" not in said.err  # its rows named the languages
    assert "tyv" not in json.loads(said.out)["text"]
    assert main(["inspect", str(tmp_path / "out")]) == 0
    assert "tyv_Cyrl (from Kazakh)" in capsys.readouterr().out
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    token, _ = FAMILIES[family]
    assert tokenizer.convert_tokens_to_ids(token) == trainer.model.get_input_embeddings().weight.shape[0] - 1


def test_plain_transformers_passes_the_new_language_as_any_other(checkpoint: Checkpoint, tmp_path: Path) -> None:
    finetune(recipe_of(checkpoint("nllb"), tmp_path))
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
        tmp_path / "out", src_lang="tyv_Cyrl", tgt_lang="eng_Latn"
    )
    model: Any = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    inputs = tokenizer("今天天气很好。", return_tensors="pt")
    assert inputs["input_ids"][0, 0] == tokenizer.convert_tokens_to_ids("tyv_Cyrl")
    start = tokenizer.convert_tokens_to_ids("eng_Latn")
    theirs = model.generate(**inputs, forced_bos_token_id=start, max_new_tokens=6, do_sample=False, num_beams=1)
    mine = llmkit.translate("今天天气很好。", "en", str(tmp_path / "out"), source="tyv", max_new_tokens=6, offline=True,
                            device="cpu", dtype="float32", temperature=0)  # fmt: skip
    assert mine.text == tokenizer.decode(theirs[0], skip_special_tokens=True).strip()


@pytest.mark.parametrize("adapter", [None, {"peft_type": "LORA", "r": 4}])
def test_a_resumed_run_is_the_uninterrupted_one(
    adapter: dict[str, Any] | None, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    sections: dict[str, Any] = {"train": {"save_strategy": "steps", "save_steps": 1}}
    sections |= {"adapter": adapter} if adapter else {}
    whole = finetune(recipe_of(checkpoint("nllb"), tmp_path, "whole", **sections))
    recipe, steps = recipe_of(checkpoint("nllb"), tmp_path, **sections), iter([True])
    finetune(recipe, should_stop=lambda: next(steps, False))
    finetune(recipe, resume=True)
    one, other = (
        llmkit.load("translation", str(tmp_path / name), offline=True, device="cpu", dtype="float32").loaded
        for name in ("whole", "out")
    )
    new = one.tokenizer.convert_tokens_to_ids("tyv_Cyrl")
    for (name, mine), (_, theirs) in zip(one.model.named_parameters(), other.model.named_parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, msg=name)
    table = one.model.get_input_embeddings()
    ids = torch.tensor([new, one.tokenizer.convert_tokens_to_ids("kaz_Cyrl")])
    rows = table(ids)
    assert not torch.allclose(rows[0], rows[1])  # it was trained
    torch.testing.assert_close(rows[0], whole.model.get_input_embeddings()(ids)[0])


def test_an_adapter_is_merged_with_its_language(checkpoint: Checkpoint, tmp_path: Path) -> None:
    finetune(recipe_of(checkpoint("nllb"), tmp_path, adapter={"peft_type": "LORA", "r": 4}))
    merge(str(tmp_path / "out"), tmp_path / "merged")  # which compares the two
    options: dict[str, Any] = {
        "source": "en",
        "target": "tyv",
        "offline": True,
        "max_new_tokens": 6,
        "dtype": "float32",
    }
    one, other = (
        llmkit.load("translation", str(tmp_path / name), **options)("The quick fox.") for name in ("out", "merged")
    )
    assert replace(one, model="") == replace(other, model="")


def test_a_language_without_a_code_has_a_private_one(checkpoint: Checkpoint, tmp_path: Path) -> None:
    recipe = recipe_of(checkpoint("nllb"), tmp_path, tokenizer={"add_languages": {"qaa_Latn": "en"}})
    rows = [{"source": "The fox.", "target": "Foxa.", "source_lang": "en", "target_lang": "qaa"}] * 4
    write_rows(tmp_path / "rows.jsonl", rows)
    finetune(recipe)
    pipeline = llmkit.load("translation", str(tmp_path / "out"), source="en", target="qaa", offline=True, device="cpu")
    assert pipeline("The fox.").target_language == "qaa"
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert "qaa_Latn" in tokenizer.get_vocab()


def test_whole_embeddings_that_peft_cannot_train_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    lora = {"peft_type": "LORA", "r": 4, "modules_to_save": ["shared"]}
    with pytest.raises(
        UsageError, match=r"does not train .*; leave them out of adapter.modules_to_save: new tokens are"
    ):
        finetune(recipe_of(checkpoint("nllb"), tmp_path, adapter=lora))


@pytest.mark.parametrize(
    ("family", "languages", "said"),
    [
        ("nllb", {"xx_new": "kk"}, "unknown language 'xx_new'; .*a private one, from qaa to qtz, such as qaa_Latn"),
        ("nllb", {"kir_Cyrl": "kk"}, r"knows Kyrgyz \(ky\) already \(kir_Cyrl\)"),
        ("nllb", {"tyv": "tlh"}, "does not know Klingon .*name a related language that it knows"),
        ("nllb", {"tyv": "Klingonese"}, "add_languages.tyv: unknown language 'Klingonese'"),
        ("t5", {"tyv": "kk"}, "which has no tokens for languages"),
        ("marian", {"tyv": "kk"}, "which has no tokens for languages"),
        ("llama", {"tyv": "kk"}, "no effect on .*leave it out: prompts name languages"),
    ],
)
def test_languages_that_cannot_be_added(
    family: str, languages: dict[str, str], said: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    recipe = recipe_of(checkpoint(family), tmp_path, tokenizer={"add_languages": languages})
    with pytest.raises(UsageError, match=said):
        list(dry_run(recipe))


def test_tasks_without_languages_refuse_them(checkpoint: Checkpoint, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "The quick", "completion": "fox"}] * 4)
    recipe = make_recipe("text-generation", checkpoint("llama"), rows, tokenizer=TUVAN)
    with pytest.raises(UsageError, match="has no effect on text-generation"):
        list(dry_run(recipe))
