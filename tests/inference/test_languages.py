"""Languages that a model is declared for: in its card or in the table of recommended models; others are noted."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import llmkit
from llmkit.engines.fake import CHAT
from llmkit.engines.transformers import traits
from llmkit.models.source import Source
from tests.conftest import Checkpoint, noted
from tests.fakes import fake

ENGLISH = replace(CHAT, declared_languages=frozenset({"en"}))
FOUR = replace(CHAT, declared_languages=frozenset({"en", "de", "fr", "zh"}))


@pytest.mark.parametrize(
    ("known", "options", "text", "missing"),
    [
        (ENGLISH, {"source": "en", "target": "fr"}, "The reef is old.", "English, not for French"),
        (ENGLISH, {"source": "fr", "target": "en"}, "Le récif.", "English, not for French"),
        (ENGLISH, {"source": "fr", "target": "de"}, "Le récif.", "English, not for French or German"),
        (ENGLISH, {"target": "en"}, "这个礁石在澳大利亚附近，已经很老了。", "English, not for Chinese"),
        (FOUR, {"source": "en", "target": "ja"}, "The reef.", "German, English, French, Chinese, not for Japanese"),
        (FOUR, {"source": "en", "target": "zh-Hant"}, "The reef is old.", ""),
        (CHAT, {"source": "en", "target": "ja"}, "The reef is old.", ""),
    ],
)
def test_translations_note_languages_that_the_model_is_not_declared_for(
    known: Any, options: dict[str, Any], text: str, missing: str
) -> None:
    pipeline, _ = fake("translation", "x", traits=known, **options)
    for _ in range(2):  # each time
        assert (
            noted(pipeline(text))
            .get("language_not_declared", "")
            .startswith(f"the model is declared for {missing};" if missing else "")
        )
        assert ("language_not_declared" in noted(pipeline(text))) == bool(missing)


def test_other_tasks_note_texts_that_do_not_look_english() -> None:
    rows: dict[str, Any] = {
        "text-generation": "今天天气怎么样？",
        "question-answering": {"question": "天气？", "context": "今天天气很好，我们去公园散步。"},
        "dialogue": [{"role": "user", "content": "今天天气怎么样？"}],
    }
    for task, row in rows.items():
        assert "language_not_declared" in noted(fake(task, traits=ENGLISH)[0](row))
        assert "language_not_declared" not in noted(fake(task, traits=FOUR)[0](row))
    assert "language_not_declared" not in noted(fake("text-generation", traits=ENGLISH)[0]("How is the weather?"))


def test_conversations_note_each_such_message() -> None:
    conversation = llmkit.Conversation(fake("dialogue", traits=ENGLISH)[0])
    noted_for = [noted(conversation.send(text)) for text in ("How is the weather?", "今天天气怎么样？", "Thank you.")]
    assert ["language_not_declared" in notes for notes in noted_for] == [False, True, False]


def test_where_languages_are_declared(checkpoint: Checkpoint, tmp_path: Path) -> None:
    def declared(folder: Path, name: str = "model") -> set[str]:
        return set(traits._declared_languages(Source(name, folder)))

    folder = checkpoint("llama", chat=True)
    assert declared(folder, "starter") == {"en"}
    assert declared(folder, "Qwen/Qwen3-0.6B") == declared(folder) == set()
    for number, (language, tags) in enumerate(
        [("en", {"en"}), ("[en, fr, zho_Hans]", {"en", "fr", "zh"}), ("multilingual", set()), ("[en, code]", set())]
    ):
        copy = tmp_path / str(number)
        copy.mkdir()
        (copy / "README.md").write_text(f"---\nlanguage: {language}\n---\n# A model\n", encoding="utf-8")
        assert declared(copy) == declared(copy, "starter") - ({"en"} - tags) == tags
    copy = tmp_path / "loaded"
    shutil.copytree(folder, copy)
    (copy / "README.md").write_text("---\nlanguage: fr\n---\n", encoding="utf-8")
    pipeline = llmkit.load("translation", str(copy), source="en", target="de", max_new_tokens=2, device="cpu")
    assert "French, not for English or German" in noted(pipeline("The reef is old."))["language_not_declared"]
