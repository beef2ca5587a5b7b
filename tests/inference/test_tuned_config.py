"""Prompt options in the file that a tuned model remembers them by."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

import llmkit
from llmkit.config.declaration import setting, setting_fields
from llmkit.config.recipe_sections import PromptSection, Section, section_of
from llmkit.config.settings import TaskSettings
from llmkit.errors import CheckpointError, UsageError
from llmkit.inference.tuned_config import Contract, tuned_prompt, write_contract
from llmkit.models.tuned import tuned_for, tuned_lines
from llmkit.tasks import PromptOptions
from tests.conftest import Checkpoint


@pytest.fixture
def tuned(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint("llama", chat=True), tmp_path / "tuned")


def load(folder: Path, **options: Any) -> PromptOptions:
    return llmkit.load("generate", str(folder), offline=True, device="cpu", **options).prompt_options


def test_a_recipe_has_every_prompt_option_of_training() -> None:
    section: Any = PromptSection
    names = {item.name for item in setting_fields(PromptOptions) if not item.metadata["inference_only"]}
    assert set(section.model_fields) == names


def test_prompt_options_are_applied_unless_set(tuned: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_contract(tuned, Contract("text-generation", prompt=tuned_prompt(PromptOptions(system="Be brief.", raw=True))))
    assert (load(tuned).system, load(tuned).raw) == ("Be brief.", True)
    assert "was tuned" not in caplog.text
    assert load(tuned, system="Be brief.").system == "Be brief."
    assert "was tuned" not in caplog.text
    own = load(tuned, system="", raw=False)
    assert (own.system, own.raw) == ("", False)
    assert "was tuned with system=Be brief." in caplog.text
    assert "was tuned with raw=True" in caplog.text
    write_contract(tuned, Contract("text-generation"))
    load(tuned, system="x")
    assert "was tuned without system" in caplog.text


def test_a_file_of_version_1_is_understood(tuned: Path) -> None:
    content = {"task": "text-generation", "settings": {}, "system": "Be brief.", "raw": True, "version": 1}
    (tuned / "llmkit.json").write_text(json.dumps(content), encoding="utf-8")
    assert (load(tuned).system, load(tuned).raw) == ("Be brief.", True)
    found = tuned_for(tuned)
    assert found is not None
    assert ("system message", "Be brief.") in list(tuned_lines(found))


def test_a_prompt_option_of_a_newer_version_is_not_ignored(tuned: Path) -> None:
    prompt = {"mood": "formal"}
    for contract in (
        Contract("text-generation", prompt=prompt),
        Contract("text-generation", more_tasks={"translation": {"prompt": prompt}}),
    ):
        write_contract(tuned, contract)
        with pytest.raises(CheckpointError, match="has the prompt option mood, which this llmkit does not know"):
            load(tuned)


def test_a_language_without_effect_that_was_recorded_is_ignored(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Older versions recorded English for every model that is declared for it."""
    model = shutil.copytree(checkpoint("t5"), tmp_path / "model")
    write_contract(model, Contract("summarization", prompt={"prompt_language": "en"}))
    assert llmkit.load("summarize", str(model), device="cpu", max_new_tokens=2)("The fox jumps.").text is not None


@dataclass(frozen=True, kw_only=True)
class Nested(TaskSettings):
    mapping: Mapping[str, Any] | None = setting(None, "A mapping.")
    rows: Sequence[Mapping[str, Any]] = setting((), "Rows.")
    of_a_call: str = setting("", "Text.", inference_only=True)


def test_nested_prompt_options_are_keys_of_recipes() -> None:
    section: type[BaseModel] = section_of("NestedSection", Nested, base=Section)
    value: dict[str, Any] = {"mapping": {"documents": [{"title": "a"}]}, "rows": [{"prompt": "a"}]}
    assert section(**value).model_dump() == value
    assert section(mapping="arguments.json", rows="rows.jsonl").model_dump()["rows"] == "rows.jsonl"
    for wrong in ({"mapping": [1]}, {"rows": {"a": 1}}, {"of_a_call": ""}):
        with pytest.raises(ValidationError):
            section(**wrong)
    with pytest.raises(UsageError, match="mapping is a str; give a mapping"):
        Nested(mapping="x")  # type: ignore[arg-type]
    assert Nested(**value).mapping == value["mapping"]
