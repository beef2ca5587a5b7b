"""A sample of the model zoo; ``benchmarks/zoo.py`` measures all of it."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
import transformers

from llmkit.models.inspect import inspect_source
from llmkit.models.resolve import natural_head, resolve
from llmkit.models.source import Source
from llmkit.models.tables import class_names
from llmkit.tasks import TASKS, Head
from tests.zoo.measure import measure
from tests.zoo.models import KNOWN_FAILURES, NOT_TEXT, REASONS, every_type, write_config

SEED = 5
COUNTS = {Head.CAUSAL: 22, Head.SEQ2SEQ: 8, Head.SPAN: 12}
SOUND = [key for key in every_type() if key not in REASONS and key not in KNOWN_FAILURES]
SAMPLE = [
    key
    for head, count in COUNTS.items()
    for key in sorted(random.Random(SEED).sample([key for key in SOUND if key[0] == head], count))
]


@pytest.mark.parametrize(("head", "model_type"), SAMPLE, ids=map(":".join, SAMPLE))
def test_a_tiny_model_of_the_type_does_all_that_its_head_serves(head: Head, model_type: str, tmp_path: Path) -> None:
    row = measure(head, model_type, tmp_path, compared=1)
    assert row.green, row.columns


@pytest.mark.parametrize("model_type", ["llava", "qwen2_vl", "qwen3_vl"])
def test_so_does_a_model_with_images_that_no_table_of_text_lists(model_type: str, tmp_path: Path) -> None:
    row = measure(Head.CAUSAL, model_type, tmp_path, compared=1)
    assert row.green, row.columns


@pytest.mark.parametrize("model_type", sorted({model_type for _, model_type in NOT_TEXT} | {"blip-2", "instructblip"}))
def test_a_model_that_needs_another_input_serves_no_task(model_type: str) -> None:
    cls = transformers.CONFIG_MAPPING[model_type]
    names = [name for each in cls.__mro__ for name in vars(each)] + list(cls.sub_configs)
    assert natural_head({**dict.fromkeys(names), "model_type": model_type}) is None


def test_models_that_also_see_or_hear_are_decoders() -> None:
    for model_type, auto_class in (
        ("gemma3", "AutoModelForCausalLM"),
        ("llama4", "AutoModelForCausalLM"),
        ("qwen2_audio", "AutoModelForSeq2SeqLM"),
        ("qwen2_vl", "AutoModelForMultimodalLM"),
    ):
        for task in TASKS:
            found = resolve(task, {"model_type": model_type, "text_config": {"hidden_size": 16}})
            assert (found.head, found.auto_class) == (Head.CAUSAL, auto_class)


def table() -> dict[tuple[str, str], str | None]:
    """Head and type → class by ``benchmarks/zoo.md``; None for those that serve no task."""
    text = (Path(__file__).parents[1] / "benchmarks" / "zoo.md").read_text(encoding="utf-8")
    served, _, others = text.partition("\nNot ")
    row = r"^\| (causal|seq2seq|span) \| (\S+) \| (\w+) \|"
    rows: dict[tuple[str, str], str | None] = {(head, name): cls for head, name, cls in re.findall(row, served, re.M)}
    not_run = re.findall(r"^\| (causal|seq2seq|span) \| (\S+) \|", others.partition("\nNot run")[2], re.M)
    return rows | dict.fromkeys(not_run)


def test_inspect_agrees_with_the_table_for_every_type(tmp_path: Path) -> None:
    found: dict[tuple[str, str], str | None] = {}
    for head, model_type in every_type():
        folder = tmp_path / head / model_type
        write_config(head, model_type, folder)
        tasks = inspect_source(Source(model_type, folder)).tasks.values()
        classes = {fit.model_class for fit in tasks if fit.head is not None}
        listed = class_names(head)[model_type]
        found[head, model_type] = listed if listed in classes else None
    known = table()  # of the newest Transformers that it was measured with, which has more types
    assert found == {key: known[key] for key in found}
