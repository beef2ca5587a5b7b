"""Generation settings as others published them: used, or replaced with a word, or refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers

import llmkit
from llmkit.errors import CheckpointError
from llmkit.models.generation_settings import FIELDS, clean, fit_vocabulary
from tests.conftest import Checkpoint

PROMPTS = ["The quick", "life is", "What is the meaning of"]


def test_every_setting_of_transformers_is_known() -> None:
    assert {name for name in vars(transformers.GenerationConfig()) if not name.startswith("_")} <= FIELDS


@pytest.mark.parametrize(
    ("name", "value", "used"),
    [
        *[("temperature", value, 0.7) for value in (0.7, "0.7", " 0.7 ")],
        *[("top_k", value, 50) for value in (50, "50", 50.0)],
        ("top_k", -1, 0),
        *[("do_sample", value, True) for value in (True, "true", "True", 1)],
        ("early_stopping", "never", "never"),
        ("early_stopping", "false", False),
        ("max_new_tokens", "20", 20),
        ("stop_strings", "END", ["END"]),
        *[("eos_token_id", value, [2]) for value in (2, "2", 2.0, ["2"], [2, -1])],
        ("eos_token_id", ["</s>", 5], ["</s>", 5]),
        ("pad_token_id", [0], 0),
        ("suppress_tokens", [-1, 4], [4]),
        ("bad_words_ids", [[5], ["6", 7]], [[5], [6, 7]]),
        ("sequence_bias", {"(5, 6)": "-3"}, [[[5, 6], -3.0]]),
        ("sequence_bias", [[[5], 1]], [[[5], 1.0]]),
        ("exponential_decay_length_penalty", [10, "1.1"], (10, 1.1)),
        ("lang_to_id", {"fr": 4}, {"fr": 4}),
    ],
)
def test_what_is_meant_is_used(name: str, value: Any, used: Any) -> None:
    assert clean({name: value}).values == {name: used}
    assert clean({name: value}).notes == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("temperature", value) for value in (-1, float("nan"), "hot", [0.7], True)],
        *[("top_p", value) for value in (1.5, -0.1, float("inf"))],
        *[("num_beams", value) for value in (0, 2.5, True, "many")],
        *[("pad_token_id", value) for value in (-1, "<pad>", {"a": 1})],
        *[("eos_token_id", value) for value in (-1, {"a": 1}, 2.5)],
        ("min_p", 2),
        ("typical_p", 0),
        ("repetition_penalty", 0),
        ("max_length", -1),
        ("do_sample", "sometimes"),
        ("stop_strings", 5),
        ("bad_words_ids", [5]),
        ("sequence_bias", {"a": 1}),
        ("watermarking_config", "on"),
        ("exponential_decay_length_penalty", [10]),
        ("logits_processor", "x"),
    ],
)
def test_what_means_nothing_is_left_out_with_a_word(name: str, value: Any) -> None:
    cleaned = clean({name: value})
    assert cleaned.values == {}
    assert [note.split()[0] for note in cleaned.notes] == [name]
    assert cleaned.notes[0].endswith("and is ignored")


def test_defaults_that_version_4_wrote_are_no_news() -> None:
    config = {"num_beam_groups": 1, "diversity_penalty": 0.0, "penalty_alpha": None, "num_return_sequences": 1}
    assert clean(config | {"output_scores": False, "suppress_tokens": [], "cache_implementation": "hybrid"}).notes == ()


def test_tokens_that_the_model_lacks() -> None:
    settings = {
        "eos_token_id": [2, 50256],
        "pad_token_id": 99,
        "bad_words_ids": [[3], [4, 99]],
        "forced_eos_token_id": 2,
    }
    fitted = fit_vocabulary(settings | {"suppress_tokens": ["<x>", "<y>"]}, 10, {"<x>": 7}.get)
    assert fitted.values == {
        "eos_token_id": 2,
        "bad_words_ids": [[3]],
        "forced_eos_token_id": 2,
        "suppress_tokens": [7],
    }
    assert [note.split(" is not")[0] for note in fitted.notes] == [
        "pad_token_id 99",
        "eos_token_id 50256",
        "suppress_tokens <y>",
        "bad_words_ids has tokens that are not among the model's 10, which are ignored",
    ]


def publish(checkpoint: Path, folder: Path, settings: Any) -> str:
    """The checkpoint with a generation_config.json as somebody wrote it."""
    shutil.copytree(checkpoint, folder)
    own = json.loads((checkpoint / "generation_config.json").read_text())
    text = settings if isinstance(settings, str) else json.dumps(own | settings)
    (folder / "generation_config.json").write_text(text)
    return str(folder)


def written(model: str, **options: Any) -> list[str]:
    """The texts of single rows, which must be those of a batch."""
    pipeline = llmkit.load("generate", model, **{"max_new_tokens": 5, "device": "cpu", **options})
    single = [pipeline(prompt).text for prompt in PROMPTS]
    assert [output.text for output in pipeline.map(PROMPTS, window=3)] == single
    return single


SAME = {
    "pad_token_id": -1,
    "prompt_lookup_num_tokens": 3,
    "assistant_early_exit": 1,
    "is_assistant": True,
    "penalty_alpha": 0.6,
    "dola_layers": "high",
    "token_healing": True,
    "num_return_sequences": 3,
    "cache_implementation": "quantized",
    "compile_config": {"fullgraph": True},
    "output_scores": True,
    "repetition_penalty": 0,
    "presence_penalty": 1.5,
    "watermarking_config": None,
    "eos_token_id": 50256,
}


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_settings_that_change_nothing(
    family: str, checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="llmkit"):
        plain = written(str(checkpoint(family)))
        changed = written(publish(checkpoint(family), tmp_path / "published", {**SAME, "top_k": 4}))
    assert changed == plain
    for name in set(SAME) - {"output_scores", "watermarking_config"}:
        assert name in caplog.text, name
    assert "is the end token instead" in caplog.text


def test_sampling_at_temperature_zero_is_greedy_and_groups_of_beams_are_beams(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    folder = checkpoint("llama")
    assert written(publish(folder, tmp_path / "zero", {"do_sample": True, "temperature": 0.0})) == written(str(folder))
    groups = {"num_beams": "4", "num_beam_groups": 2, "diversity_penalty": 1.0, "constraints": ["x"]}
    assert written(publish(folder, tmp_path / "groups", groups)) == written(str(folder), num_beams=4)


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize(
    "settings",
    [
        {"encoder_repetition_penalty": 1.5, "min_length": 8},
        {"encoder_no_repeat_ngram_size": 2, "sequence_bias": {"(5,)": 9.0}},
        {"guidance_scale": 1.5},
        {"max_time": 100, "num_beams": 1},
    ],
)
def test_settings_that_count_the_prompt_give_a_batch_what_they_give_a_row(
    family: str, settings: dict[str, Any], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    written(publish(checkpoint(family), tmp_path / "published", settings))


def test_own_stop_strings_stop_and_are_cut(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = checkpoint("llama")
    plain = written(str(folder))
    stop = plain[0][4:7]
    model = publish(folder, tmp_path / "stops", {"stop_strings": [stop]})
    assert written(model) == [text.split(stop)[0] for text in plain]
    assert llmkit.load("generate", model).loaded.model.generation_config.stop_strings == [stop]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"suppress_tokens": [2], "forced_eos_token_id": 2}'])
def test_a_file_that_cannot_be_used_is_refused_in_one_line(text: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    model = publish(checkpoint("llama"), tmp_path / "broken", text)
    with pytest.raises(CheckpointError, match=r"generation_config.json .*; correct (it|them)(, or remove it)?$"):
        llmkit.load("generate", model)


def test_settings_of_a_config_json_are_read_alike(
    checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = checkpoint("t5")
    published = tmp_path / "older"
    shutil.copytree(folder, published)
    (published / "generation_config.json").unlink()
    config = json.loads((published / "config.json").read_text())
    params = {"summarization": {"num_beams": 2, "num_beam_groups": 2, "max_length": "9"}}
    (published / "config.json").write_text(
        json.dumps({**config, "pad_token_id": -1, "top_k": "x", "task_specific_params": params})
    )
    own = llmkit.load("summarize", str(published)).loaded.model.generation_config
    assert (own.num_beams, own.max_length, own.pad_token_id) == (2, 9, None)
    assert "config.json: pad_token_id -1 is not a token, and is ignored" in caplog.text
    assert "task_specific_params of config.json: num_beam_groups 2 has no effect" in caplog.text


@pytest.mark.parametrize("family", ["t5", "marian", "bart"])
def test_a_file_without_a_start_leaves_it_to_config_json(family: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint(family), folder)
    (folder / "generation_config.json").write_text('{"max_length": 20, "bos_token_id": 1}')
    start = json.loads((folder / "config.json").read_text())["decoder_start_token_id"]
    loaded = llmkit.load("translate" if family == "marian" else "summarize", str(folder)).loaded
    assert loaded.model.generation_config.decoder_start_token_id == start
