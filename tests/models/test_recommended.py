"""The table of models: complete, consistent and in the right order."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from huggingface_hub.utils._validators import validate_repo_id

from llmkit.errors import UsageError
from llmkit.models.recommended import RECOMMENDED, default_models
from llmkit.tasks import TASKS

OPUS = "Helsinki-NLP/opus-mt-"
ANY_PAIR = "facebook/m2m100_418M"


def test_each_task_has_a_default_and_the_starter() -> None:
    assert {row.task for row in RECOMMENDED} == set(TASKS)
    for task in TASKS:
        rows = [row for row in RECOMMENDED if row.task == task]
        assert "starter" in {row.model for row in rows}
        assert "default" in rows[0].note


def test_rows_are_complete_and_unique() -> None:
    assert len({(row.task, row.model) for row in RECOMMENDED}) == len(RECOMMENDED)
    for row in RECOMMENDED:
        validate_repo_id(row.model.format(source="en", target="fr"))
        assert re.fullmatch(r"[\d.]+[MB]", row.parameters)
        assert row.megabytes > 0
        assert row.licence
        assert row.languages
        assert row.note


def test_sizes_fit_the_parameters() -> None:
    """Two bytes a parameter or four; a slip of the hand would be far off. The starter is packed."""
    for row in (row for row in RECOMMENDED if row.model != "starter"):
        number = float(row.parameters[:-1]) * (1000 if row.parameters.endswith("B") else 1)
        assert 1.9 < row.megabytes / number < 4.1, row


def test_one_model_has_one_size_and_licence() -> None:
    facts = {(row.model, row.parameters, row.megabytes, row.licence, row.languages) for row in RECOMMENDED}
    assert len(facts) == len({row.model for row in RECOMMENDED})


def test_a_licence_against_commercial_use_is_said() -> None:
    for row in RECOMMENDED:
        assert ("NC" in row.licence) == ("not for commercial use" in row.note)


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
    assert default_models(task) == (model,)


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
        ("en", "en", []),
        ("en", None, []),
        (None, "fr", []),
        (None, None, []),
    ],
)
def test_translation_goes_from_the_pair_to_the_group_to_all(
    source: str | None, target: str | None, pairs: list[str]
) -> None:
    expected = (*(OPUS + pair for pair in pairs), ANY_PAIR)
    assert default_models("translation", source=source, target=target) == expected
    assert default_models("translate", source=source, target=target) == expected


def test_every_default_but_the_pair_is_in_the_table() -> None:
    known = {row.model for row in RECOMMENDED}
    pairs = [("fr", "en"), ("en", "fr"), ("de", "en"), ("en", "de")]
    models = [
        name for source, target in pairs for name in default_models("translate", source=source, target=target)[1:]
    ]
    assert {*models, *(default_models(task)[0] for task in TASKS)} <= known


def test_an_unknown_task() -> None:
    with pytest.raises(UsageError):
        default_models("juggling")


def test_the_table_costs_nothing_to_import() -> None:
    program = "import sys, llmkit.models.recommended as r; sys.exit(bool({'torch', 'transformers', 'huggingface_hub'}"
    program += " & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
