"""What the Python API promises a process that goes on after a call."""

from __future__ import annotations

import inspect
import os
import re
import threading
from dataclasses import fields, replace
from textwrap import dedent
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants

import llmkit
from llmkit import api
from llmkit.config.settings import LoadSettings
from llmkit.errors import InputError, UsageError
from llmkit.hub.reachability import is_offline, offline
from llmkit.models import load as loading
from llmkit.models.locate import locate
from llmkit.tasks.output import Output
from tests.conftest import Checkpoint
from tests.fakes import fake


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


@pytest.mark.parametrize(
    "name", ["load", "generate", "summarize", "answer", "chat", "translate", "evaluate", "next_tokens"]
)
def test_help_lists_every_option(name: str) -> None:
    function = getattr(llmkit, name)
    parameters = inspect.signature(function).parameters
    assert not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    for item in fields(LoadSettings):
        assert item.name in parameters
        assert item.name == "model" or f"\n    {item.name}: {item.metadata['help'].split()[0]}" in function.__doc__
    assert parameters["device"].default == "auto"


def test_defaults_in_help_are_those_of_the_task() -> None:
    assert "Default: the model's own, or 1024." in " ".join(str(llmkit.chat.__doc__).split())
    assert inspect.signature(llmkit.summarize).parameters["length"].default == "medium"
    assert "length" not in inspect.signature(llmkit.generate).parameters


def test_a_pipeline_is_short_to_look_at() -> None:
    pipeline, engine = fake("summarization")
    engine.facts = replace(engine.facts, device="cpu", dtype="bfloat16")
    about = f"task='summarization', model={engine.facts.source.name!r}, head='causal', device='cpu', dtype='bfloat16'"
    assert repr(pipeline) == f"Pipeline({about})"


def test_a_list_is_mapped() -> None:
    pipeline, _ = fake("summarization", str.upper)
    outputs = pipeline(["one", "two"])
    assert [type(each) for each in outputs] == [Output, Output]
    assert [each.text for each in outputs] == [pipeline("one").text, pipeline("two").text]
    assert pipeline([]) == []
    with pytest.raises(UsageError, match="on_text, on_reasoning and cancelled are for a single row"):
        pipeline(["one"], on_text=print)  # type: ignore[call-overload]


def test_a_list_of_messages_is_one_conversation() -> None:
    talk, _ = fake("dialogue", "hello")
    messages: Any = [{"role": "user", "content": "Hi."}]
    assert talk(messages).text == "hello"
    rows: list[Any] = [{"messages": messages}, {"messages": "Ho."}]
    assert [each.text for each in talk(rows)] == ["hello", "hello"]


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("summarization", {"text": "x"}, "the row has no 'document', but 'text'; rename it to 'document'"),
        ("summarization", {"documnet": "x"}, "the row has no 'document', but 'documnet'; rename it to 'document'"),
        ("summarization", {"x": "y"}, "the row has no 'document' (its keys: x); give it the key 'document'"),
        (
            "question-answering",
            {"query": "Who?", "context": "x"},
            "no 'question', but 'query'; rename it to 'question'",
        ),
        ("translation", {"src": "x"}, "the row has no 'source', but 'src'"),
        ("dialogue", {"message": "x"}, "the row has no 'messages', but 'message'"),
    ],
)
def test_a_wrong_key_names_the_right_one(task: str, row: dict[str, str], message: str) -> None:
    options: dict[str, Any] = {"target": "fr"} if task == "translation" else {}
    pipeline, _ = fake(task, **options)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        pipeline(row)
    assert caught.value.code == "column_mismatch"


@pytest.mark.parametrize(
    ("wrong", "right"), [("temprature", "temperature"), ("max_tokens", "max_new_tokens"), ("torch_dtype", "dtype")]
)
def test_a_wrong_keyword_names_the_right_one(wrong: str, right: str) -> None:
    with pytest.raises(UsageError, match=f"unknown setting '{wrong}'; did you mean '{right}'"):
        llmkit.generate("x", **{wrong: 1})  # type: ignore[arg-type]


def test_the_example_of_the_package_runs(checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    code = _example().replace('"starter"', repr(str(checkpoint("gpt2", chat=True))))
    exec(compile(code, "llmkit.__doc__", "exec"), {})
    assert "model_not_found" in capsys.readouterr().out


@pytest.mark.starter
def test_the_example_of_the_package_runs_on_the_starter(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(_example(), "llmkit.__doc__", "exec"), {})
    assert "model_not_found" in capsys.readouterr().out


def _example() -> str:
    """The indented lines of the package's docstring."""
    lines = str(llmkit.__doc__).splitlines()
    return dedent("\n".join(line for line in lines if not line or line.startswith("    ")))
