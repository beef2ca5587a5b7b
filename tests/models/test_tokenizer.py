"""A tokenizer cuts and joins texts as its file says, not as the class of version 5 would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

import llmkit
from llmkit.models.tokenizer import load_tokenizer
from tests.tiny import build
from tests.zoo.tokenizers import make_tokenizer

TEXT, OTHER = "Ｆｕｌｌ　ｗｉｄｔｈ, the fox.", "今天天气很好。 numbers 12345"


def saved(model_type: str, folder: Path, **changed: Any) -> Path:
    """A tokenizer's folder, some parts of whose tokenizer.json are as version 4 wrote them."""
    make_tokenizer(model_type, folder / "training").save_pretrained(folder)
    file = folder / "tokenizer.json"
    written = json.loads(file.read_text(encoding="utf-8")) | changed
    file.write_text(json.dumps(written, ensure_ascii=False, indent=2), encoding="utf-8")
    return folder


def one_separator(cls: str, sep: str, ids: tuple[int, int]) -> dict[str, Any]:
    first, end = ({"SpecialToken": {"id": token, "type_id": 0}} for token in (cls, sep))
    a, b = ({"Sequence": {"id": name, "type_id": place}} for place, name in enumerate("AB"))
    last = {"SpecialToken": {"id": sep, "type_id": 1}}
    tokens = {
        token: {"id": token, "ids": [place], "tokens": [token]} for token, place in zip((cls, sep), ids, strict=True)
    }
    return {
        "type": "TemplateProcessing",
        "single": [first, a, end],
        "pair": [first, a, end, b, last],
        "special_tokens": tokens,
    }


def test_a_pair_is_joined_as_the_file_says(tmp_path: Path) -> None:
    made = make_tokenizer("deberta", tmp_path / "training")
    ids = (made.cls_token_id, made.sep_token_id)
    folder = saved("deberta", tmp_path, post_processor=one_separator(made.cls_token, made.sep_token, ids))
    found = load_tokenizer(folder)(TEXT, OTHER)
    expected = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT, OTHER)
    assert found["input_ids"] == expected.ids
    assert found["input_ids"].count(made.sep_token_id) == 2
    assert found["token_type_ids"] == expected.type_ids


@pytest.mark.parametrize("model_type", ["mbart", "xlm-roberta", "t5"])
def test_a_text_is_cut_as_the_file_says(model_type: str, tmp_path: Path) -> None:
    folder = saved(model_type, tmp_path, normalizer={"type": "NFKC"})
    expected = Tokenizer.from_file(str(folder / "tokenizer.json"))
    loaded: Any = load_tokenizer(folder)
    assert loaded(TEXT, add_special_tokens=False)["input_ids"] == expected.encode(TEXT, add_special_tokens=False).ids
    loaded.save_pretrained(tmp_path / "again")
    again: Any = load_tokenizer(tmp_path / "again")
    assert again(TEXT)["input_ids"] == loaded(TEXT)["input_ids"]


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("indent", [2, None])
def test_the_vocabulary_may_stand_anywhere_in_the_file(first: bool, indent: int | None, tmp_path: Path) -> None:
    folder = saved("mbart", tmp_path, normalizer={"type": "NFKC"})
    file = folder / "tokenizer.json"
    parts = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(
        json.dumps({"model": parts.pop("model"), **parts} if first else parts, indent=indent), encoding="utf-8"
    )
    loaded: Any = load_tokenizer(folder)
    assert str(loaded.backend_tokenizer.normalizer).startswith("NFKC")


def test_settings_of_the_tokenizer_count_over_the_file(tmp_path: Path) -> None:
    loaded: Any = load_tokenizer(saved("llama", tmp_path), add_bos_token=True, add_eos_token=True)
    ids = loaded(TEXT)["input_ids"]
    assert (ids[0], ids[-1]) == (loaded.bos_token_id, loaded.eos_token_id)


def test_models_are_loaded_with_it(tmp_path: Path) -> None:
    folder = build("mbart", tmp_path / "model")
    file = folder / "tokenizer.json"
    parts = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(parts | {"normalizer": {"type": "NFKC"}}), encoding="utf-8")
    loaded: Any = llmkit.load("translation", str(folder), offline=True, device="cpu").loaded.tokenizer
    assert loaded("Ｆｏｘ")["input_ids"] == loaded("Fox")["input_ids"]
