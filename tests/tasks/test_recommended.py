"""The table of models: complete, consistent and in the right order."""

from __future__ import annotations

import re

import pytest
from huggingface_hub.utils._validators import validate_repo_id

from llmkit.errors import UsageError
from llmkit.tasks import TASKS, Recommended, Task, Translation, get_task
from llmkit.tasks.translation import TranslationSettings

OPUS = "Helsinki-NLP/opus-mt-"
ANY_PAIR = "facebook/m2m100_418M"
MODELS = [row for task in TASKS.values() for row in task.recommended]


@pytest.mark.parametrize("task", TASKS.values())
def test_each_task_has_a_default_and_the_starter(task: type[Task]) -> None:
    assert "starter" in {row.model for row in task.recommended}
    assert "default" in task.recommended[0].note
    assert len({row.model for row in task.recommended}) == len(task.recommended)


@pytest.mark.parametrize("row", MODELS)
def test_rows_are_complete(row: Recommended) -> None:
    validate_repo_id(row.model.format(source="en", target="fr"))
    assert re.fullmatch(r"[\d.]+[MB]", row.parameters)
    assert row.megabytes > 0
    assert row.licence
    assert row.languages
    assert row.note
    assert ("NC" in row.licence) == ("not for commercial use" in row.note)


def test_sizes_fit_the_parameters() -> None:
    """Two bytes a parameter or four; a slip of the hand would be far off. The starter is packed."""
    for row in (row for row in MODELS if row.model != "starter"):
        number = float(row.parameters[:-1]) * (1000 if row.parameters.endswith("B") else 1)
        assert 1.9 < row.megabytes / number < 4.1, row


def test_one_model_has_one_size_and_licence() -> None:
    facts = {row.noted("") for row in MODELS}
    assert len(facts) == len({row.model for row in MODELS})


@pytest.mark.parametrize(
    ("task", "model"),
    [
        ("text-generation", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("chat", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("summarize", "sshleifer/distilbart-cnn-12-6"),
        ("question-answering", "distilbert/distilbert-base-cased-distilled-squad"),
    ],
)
def test_defaults(task: str, model: str) -> None:
    assert get_task(task).default_models() == (model,)


@pytest.mark.parametrize(
    ("source", "target", "pairs"),
    [
        ("fr", "en", ["fr-en", "ROMANCE-en", "mul-en"]),
        ("en", "fr", ["en-fr", "en-ROMANCE", "en-mul"]),
        ("en", "pt-BR", ["en-pt", "en-ROMANCE", "en-mul"]),
        ("PT_br", "en", ["pt-en", "ROMANCE-en", "mul-en"]),
        ("de", "en", ["de-en", "mul-en"]),
        ("en", "zh", ["en-zh", "en-mul"]),
        ("de", "fr", ["de-fr"]),
        (None, "fr", []),
    ],
)
def test_translation_goes_from_the_pair_to_the_group_to_all(source: str | None, target: str, pairs: list[str]) -> None:
    expected = (*(OPUS + pair for pair in pairs), ANY_PAIR)
    assert Translation(TranslationSettings(source=source, target=target)).default_models() == expected


def test_the_language_of_the_text_decides_and_changes_nothing() -> None:
    task = Translation(TranslationSettings(target="en"))
    assert task.default_models("Der Hund läuft über die Straße und bellt.")[0] == f"{OPUS}de-en"
    assert task.default_models("Le chien court dans la rue et il aboie.")[0] == f"{OPUS}fr-en"
    assert task.source is None


def test_a_translation_without_a_target_has_no_default() -> None:
    with pytest.raises(UsageError, match="the language to translate into is missing"):
        Translation().default_models()


def test_every_default_but_the_pair_is_in_the_table() -> None:
    known = {row.model for row in MODELS}
    pairs = [("fr", "en"), ("en", "fr"), ("de", "en"), ("en", "de")]
    tasks = [Translation(TranslationSettings(source=source, target=target)) for source, target in pairs]
    assert {name for task in tasks for name in task.default_models()[1:]} <= known
