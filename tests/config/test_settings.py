from __future__ import annotations

import pickle
import shlex
from typing import Any

import pytest

from llmkit.config.commands import command_line, quoted
from llmkit.config.declaration import explicitly_set, non_default, split_options
from llmkit.config.settings import GenerationSettings, LoadSettings
from llmkit.errors import UsageError
from llmkit.tasks.question_answering import AnswerSettings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature=-1 is out of range; give a number from 0 to 100"),
        ({"temperature": float("nan")}, "temperature=nan is out of range"),
        ({"temperature": "hot"}, "temperature='hot' is not a number"),
        ({"max_new_tokens": 0}, "give a number from 1 to 2147483647"),
        ({"max_new_tokens": 1.5}, "max_new_tokens=1.5 is not a number"),
        ({"num_beams": True}, "num_beams=True is not a number"),
        ({"top_p": 0.0}, "top_p=0 leaves no token"),
        ({"stop": ("",)}, "would stop immediately"),
        ({"on_overflow": "ignore"}, "choose from error, truncate, chunk"),
        ({"temperature": 0, "top_p": 0.9}, "have no effect"),
        ({"revision": "main"}, "revision requires a model"),
        ({"device": "tpu"}, "choose from auto, cpu, cuda, mps"),
        ({"temprature": 1}, "unknown setting 'temprature'; did you mean 'temperature'?"),
    ],
)
def test_a_bad_setting_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        split_options(options, LoadSettings, GenerationSettings)
    assert message in str(caught.value)


def test_good_settings_pass_through() -> None:
    load, generation = split_options(
        {"model": "gpt2", "temperature": 0.7, "stop": "END", "num_return_sequences": 2},
        LoadSettings,
        GenerationSettings,
    )
    assert load == LoadSettings(model="gpt2")
    assert generation == GenerationSettings(temperature=0.7, stop=("END",), num_return_sequences=2)


@pytest.mark.parametrize(
    ("options", "samples"),
    [
        ({}, False),
        ({"temperature": 0}, False),
        ({"temperature": 0.5}, True),
        ({"top_p": 0.9}, True),
        ({"top_k": 5}, True),
    ],
)
def test_asking_for_a_sampling_setting_is_asking_for_sampling(options: dict[str, Any], samples: bool) -> None:
    assert GenerationSettings(**options).samples is samples


def test_a_setting_counts_as_given_though_it_equals_its_default() -> None:
    (settings,) = split_options({"max_answer_len": 30, "top": 2, "no_answer_threshold": None}, AnswerSettings)
    assert explicitly_set(settings) == explicitly_set(pickle.loads(pickle.dumps(settings))) == ["top", "max_answer_len"]
    assert non_default(settings) == ["top"]


@pytest.mark.parametrize(
    ("word", "printed"),
    [
        ("论文.txt", "论文.txt"),
        ("我的 论文.txt", "'我的 论文.txt'"),
        ("runs/été", "runs/été"),
        ("it's", "'it'\"'\"'s'"),
        ("a;rm -rf b", "'a;rm -rf b'"),
        ("$HOME", "'$HOME'"),
        ("（草稿）", "'（草稿）'"),
        ("", "''"),
    ],
)
def test_a_printed_command_can_be_pasted(word: str, printed: str) -> None:
    assert quoted(word) == printed
    if word:
        line = command_line("generate", quoted(word), model=word)
        assert shlex.split(line) == ["llmkit", "generate", word, "--model", word]
