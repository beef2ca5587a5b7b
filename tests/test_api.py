"""What the Python API promises a process that goes on after a call."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants

import llmkit
from llmkit import api
from llmkit.config.settings import LoadSettings
from llmkit.models import load as loading
from llmkit.models.locate import locate
from llmkit.models.reachability import is_offline, offline
from tests.conftest import Checkpoint


def test_offline_is_for_one_call_only(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    meanwhile = []

    def watched(*given: Any, **named: Any) -> Any:
        meanwhile.append(is_offline())
        return locate(*given, **named)

    monkeypatch.setattr(loading, "locate", watched)
    for wanted in (True, False):
        llmkit.load("generate", str(checkpoint("gpt2")), offline=wanted, device="cpu")
        monkeypatch.setattr(api, "_last", {})
        assert not is_offline()
        assert "HF_HUB_OFFLINE" not in os.environ
    assert meanwhile == [True, False]


def test_calls_that_overlap_are_offline_to_the_end_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    first, second = offline(), offline()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert is_offline()
    second.__exit__(None, None, None)
    assert not is_offline()


def test_two_threads_do_not_take_the_model_from_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other thread replaces the model between the question whether it is there and its use."""

    class Watched(dict[Any, Any]):
        def __contains__(self, key: object) -> bool:
            found = super().__contains__(key)
            if found and not other.ident:
                other.start()
                other.join(0.2)
            return found

    def fake(settings: LoadSettings, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(name=settings.model, source=SimpleNamespace(stamp=lambda: 0))

    monkeypatch.setattr(loading, "load_model", fake)
    monkeypatch.setattr(api, "_last", Watched())
    other = threading.Thread(target=api._load_model, args=(LoadSettings(model="other"), "dialogue", ""))
    for _ in range(2):
        loaded: Any = api._load_model(LoadSettings(model="one"), "dialogue", "")
        assert loaded.name == "one"
    other.join()
