"""Rows with languages of their own: in columns, as one pair, or as the names of their texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmkit.config.recipe import SourceSection
from llmkit.config.settings import RowSettings
from llmkit.data.inputs import open_inputs
from llmkit.data.proposals import Proposal, propose, task_rows
from llmkit.data.shapes.row_languages import _pair_in
from llmkit.errors import InputError
from llmkit.tasks import Task, get_task
from llmkit.tasks.translation import TranslationSettings


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def source(*rows: dict[str, Any], **settings: Any) -> SourceSection:
    Path("a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return SourceSection(path=["a.jsonl"], **settings)


def translation(source: str | None = None, target: str | None = None) -> Task:
    return get_task("translation", TranslationSettings(source=source, target=target))


def read(section: SourceSection, task: Task | None = None) -> list[tuple[Any, ...]]:
    """Texts and languages of each row, or its error; a source frozen by its proposal gives the same."""
    task = task or translation()
    found = [of_record(record) for record in task_rows(section, task)]
    assert [of_record(record) for record in task_rows(propose(section, task).source, task)] == found
    return found


def of_record(record: Any) -> tuple[Any, ...]:
    names = ("source", "target", "source_lang", "target_lang")
    return (str(record.error),) if record.row is None else tuple(record.row.get(name) for name in names)


def inputs(*rows: dict[str, Any], **languages: str) -> list[Any]:
    source(*rows)
    task = translation(**languages)
    found = open_inputs(RowSettings(input=("a.jsonl",)), task, encoding=None).records
    names = ("source", "source_lang", "target_lang")
    return [str(each.error) if each.row is None or each.error else tuple(map(each.row.get, names)) for each in found]


EN, ZH = "Good morning", "早上好"


@pytest.mark.parametrize(
    "row",
    [
        {"source": EN, "target": ZH, "source_lang": "en", "target_lang": "zh"},
        {"src": EN, "tgt": ZH, "src_lang": "en", "tgt_lang": "zh"},
        {"source": EN, "target": ZH, "source_language": "en", "target_language": "zh"},
        {"input": EN, "output": ZH, "from": "en", "to": "zh"},
        {"原文": EN, "译文": ZH, "源语言": "en", "目标语言": "zh"},
        {"source": EN, "target": ZH, "lang_pair": "en-zh"},
        {"src": EN, "tgt": ZH, "lp": "en2zh", "score": 1},
    ],
)
def test_the_usual_names_of_language_columns(row: dict[str, Any]) -> None:
    other = {name: {EN: ZH, ZH: EN, "en": "zh", "zh": "en"}.get(value, "zh-en") for name, value in row.items()}
    assert read(source(row, other)) == [(EN, ZH, "en", "zh"), (ZH, EN, "zh", "en")]
    found: Proposal = propose(source(row, other), translation())
    assert found.settings == {}  # each row has its own
    assert found.notes == (("not used: score",) if "score" in row else ())
    asked = {name: value for name, value in row.items() if name not in ("target", "tgt", "output", "译文")}
    assert inputs(asked) == [(EN, "en", "zh")]


def test_empty_cells_and_missing_keys_are_left_to_the_settings() -> None:
    rows: list[dict[str, Any]] = [
        {"source": EN, "target": ZH, "src_lang": "eng_Latn", "tgt_lang": None},
        {"source": EN, "target": ZH, "src_lang": " ", "tgt_lang": "zho_Hans"},
        {"source": EN, "target": ZH},
    ]
    assert read(source(*rows)) == [(EN, ZH, "eng_Latn", None), (EN, ZH, None, "zho_Hans"), (EN, ZH, None, None)]
    assert inputs(*rows) == [(EN, "eng_Latn", None), (EN, " ", "zho_Hans"), (EN, None, None)]


def test_cells_that_are_no_languages() -> None:
    row = {"source": EN, "target": ZH, "src_lang": "en", "tgt_lang": "zh"}
    assert "a.jsonl:2 has a int in tgt_lang" in read(source(row, {**row, "tgt_lang": 3}))[1][0]
    row = {"source": EN, "target": ZH, "lp": "en-zh"}
    assert "a.jsonl:2 'en-xx' is not a pair of languages" in read(source(row, {**row, "lp": "en-xx"}))[1][0]
    # What looks like a column of languages by its name only is another column.
    assert read(source({"source": EN, "target": ZH, "from": "news", "pair": "7"})) == [(EN, ZH, None, None)]


def test_columns_called_src_and_tgt_are_no_languages() -> None:
    """They are also the codes of Sardinian and Central Tagbanwa."""
    row = {"src": "Good morning, my friend.", "tgt": "早上好，我的朋友。"}
    assert propose(source(row), translation()).settings == {"source": "en", "target": "zh"}
    assert propose(source(row), translation("en", "zh")).source.columns == {"source": "src", "target": "tgt"}


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("en-zh", ("en", "zh")),
        ("eng_Latn-zho_Hans", ("eng_Latn", "zho_Hans")),
        ("pt-BR-en", ("pt-BR", "en")),
        ("en-pt-BR", ("en", "pt-BR")),
        ("zh2en", ("zh", "en")),
        ("English → 中文", ("English", "中文")),
        ("English to German", ("English", "German")),
        ("en", None),
        ("1-2", None),
    ],
)
def test_pairs_in_one_cell(text: str, pair: tuple[str, str] | None) -> None:
    assert _pair_in(text) == pair


def nested(**texts: str) -> dict[str, Any]:
    return {"translation": texts}


def variable(**texts: str) -> dict[str, Any]:
    """The Hub's feature for translations into different languages."""
    return {"translation": {"language": list(texts), "translation": list(texts.values())}}


def flat(**texts: str) -> dict[str, Any]:
    return {"id": "a-1", **texts}


@pytest.mark.parametrize("form", [nested, variable, flat])
def test_texts_under_the_names_of_changing_languages(form: Any) -> None:
    rows = [form(en=EN, zh=ZH), form(de="Guten Morgen", en=EN), form(zh=ZH)]
    found = read(source(*rows))
    assert found[:2] == [(EN, ZH, "en", "zh"), ("Guten Morgen", EN, "de", "en")]
    assert "a.jsonl:3 has texts in 1 languages (zh), not in two" in found[2][0]
    assert propose(source(*rows), translation()).source.shape == "translation"
    into = read(source(*rows), translation(target="en"))
    assert into[:2] == [(ZH, EN, "zh", "en"), ("Guten Morgen", EN, "de", "en")]
    assert "has no text in English (its languages: zh)" in into[2][0]
    assert inputs(*rows, target="en") == [(ZH, "zh", None), ("Guten Morgen", "de", None), (ZH, "zh", None)]
    assert inputs(*rows[:2], source="en") == [(EN, "en", "zh"), (EN, "en", "de")]
    assert "has texts in 2 languages (en, zh); name the one to translate" in inputs(*rows)[0]


def test_one_pair_of_columns_stays_one_pair() -> None:
    rows = [nested(en=EN, zh=ZH), nested(zh=ZH, en=EN)]
    assert propose(source(*rows), translation()).source.columns == {
        "source": "translation.en",
        "target": "translation.zh",
    }
    with pytest.raises(InputError, match="several columns are named by languages"):
        inputs(*rows)
