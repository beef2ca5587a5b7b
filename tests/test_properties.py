"""Properties that hold for any input: what is read, shaped or named gives a result or an error of ours, in one line.

Of a damaged checkpoint: nothing is loaded, or exactly what was written.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from pydantic import BaseModel, TypeAdapter, ValidationError

from llmkit.config.paths import user_path
from llmkit.config.recipe import SourceSection, recipe_adapter
from llmkit.config.recipe_file import load_recipe
from llmkit.config.settings import GenerationSettings, RowSettings
from llmkit.data.rows import SUFFIXES, open_records
from llmkit.data.shapes import mapped_rows, shapes_of
from llmkit.data.sources import aligned_files, files_of
from llmkit.data.text import read_text_file
from llmkit.errors import LlmkitError, UsageError
from llmkit.tasks import TASKS, get_task
from llmkit.tasks.question_answering import AnswerSettings
from llmkit.text.languages import find_language
from llmkit.training.checkpoint import (
    Progress,
    checkpoints,
    last_intact,
    load_checkpoint,
    random_state,
    save_checkpoint,
)
from tests.fakes import fake

FEW = settings(
    max_examples=50, derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
NAMES = ["text", "prompt", "question", "context", "answers", "answer_start", "paragraphs", "qas", "messages", "role"]
NAMES += ["content", "instruction", "input", "output", "history", "document", "summary", "source", "target", "id"]
VALUES = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False, allow_infinity=False) | some.text(),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.sampled_from(NAMES), inner, max_size=3),
    max_leaves=6,
)
ROWS = some.dictionaries(some.sampled_from(NAMES), VALUES, min_size=1, max_size=5)


def _ends_in_one_line(call: Callable[[], Any]) -> None:
    said = "no error"
    try:
        call()
    except LlmkitError as error:
        said = str(error)
    assert said
    assert "\n" not in said


@FEW
@given(some.binary(max_size=200), some.sampled_from(SUFFIXES))
def test_any_bytes_are_rows_or_an_error(content: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows{suffix}"
        path.write_bytes(content)
        _ends_in_one_line(lambda: list(open_records(path)))


@settings(FEW, max_examples=15)
@given(some.lists(ROWS, min_size=1, max_size=3), some.sampled_from(list(TASKS)))
def test_each_odd_row_is_a_record(rows: list[dict[str, Any]], task: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        shape: Any
        for shape in ("columns", *(each.written for each in shapes_of(get_task(task)))):
            records = list(mapped_rows(SourceSection(path=[str(path)], shape=shape), get_task(task)))
            assert len(records) >= (0 if shape == "squad" else len(rows))
            assert all((record.row is None) == (record.error is not None) for record in records)


@settings(FEW, max_examples=30)
@given(some.lists(VALUES | ROWS, min_size=1, max_size=4), some.sampled_from(list(TASKS)))
def test_each_odd_input_is_an_output_or_an_error(inputs: list[Any], task: str) -> None:
    options: dict[str, Any] = {"source": "en", "target": "fr"} if task == "translation" else {}
    pipe, _ = fake(task, **options)
    found = list(pipe.map(inputs, errors="yield"))
    assert len(found) == len(inputs)
    assert not any("\n" in str(each) for each in found if isinstance(each, LlmkitError))
    assert all(isinstance(each, LlmkitError) for each in found if isinstance(each, Exception))


@FEW
@given(some.sampled_from(["train.seed", "data.train", "model", "adapter", "settings", ""]), some.text(max_size=30))
def test_any_override_is_taken_or_refused(key: str, value: str) -> None:
    _ends_in_one_line(lambda: load_recipe("summarization/starter-lora", [f"{key}={value}"]))


CODECS = some.sampled_from(["utf-8", "utf-16", "utf-32", "utf-8-sig"])
YAML = [
    "version: 1\n",
    "task: ",
    "data: ",
    "<<: ",
    "&a ",
    "*a",
    "!!python/name:os ",
    "!!set ",
    "? ",
    "- ",
    ": ",
    "\n",
    "  ",
]
YAML += [
    "{",
    "}",
    "[",
    "]",
    ",",
    "'",
    '"',
    "|",
    ">",
    "%TAG ! x\n",
    "---\n",
    "...\n",
    "0o7",
    "1_0",
    "0x",
    "1:30",
    "2020-13-45",
]
YAML += [".nan", "1e999", "~", "=", "\u0661", "\0", "\x07", "\u2028", "\ufeff", "\U0001f600", "a", "é"]


@FEW
@given(
    some.binary(max_size=100)
    | some.builds(
        lambda parts, codec: "".join(parts).encode(codec), some.lists(some.sampled_from(YAML), max_size=20), CODECS
    )
)
def test_any_bytes_are_a_recipe_or_an_error(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_bytes(content)
        _ends_in_one_line(lambda: load_recipe(str(path)))


@FEW
@given(some.text(some.characters(), max_size=30))
def test_any_name_is_a_language_or_an_error(name: str) -> None:
    _ends_in_one_line(lambda: find_language(name))


@FEW
@given(some.text(some.characters()) | some.builds(lambda count: "a" * count, some.integers(200, 6000)))
def test_any_text_is_a_path_or_an_error(name: str) -> None:
    for call in (
        user_path,
        lambda name: read_text_file(Path(f"no{name}")),
        lambda name: list(open_records(f"no{name}")),
    ):
        _ends_in_one_line(lambda call=call: call(name))  # type: ignore[misc]
    for path in (f"./no{name}", f"~no{name}"):
        _ends_in_one_line(lambda path=path: files_of(SourceSection(path=[path])))  # type: ignore[misc]
        _ends_in_one_line(lambda path=path: aligned_files([path, path]))  # type: ignore[misc]


STEPS = (1, 2, 3)
FILES = ("trained.safetensors", "state.pt", "progress.json", "hashes.json")


def _model(value: float) -> tuple[Any, Any, Any]:
    import torch

    layer = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(layer.weight, value)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return layer, optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)


@cache
def _saved() -> Mapping[str, bytes]:
    """The files of three checkpoints of a run."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for step in STEPS:
            layer, optimizer, scheduler = _model(float(step))
            trained = dict(layer.named_parameters())
            save_checkpoint(
                root, Progress(step), trained, optimizer.state_dict(), scheduler, [random_state(), random_state()]
            )
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def _damaged(content: bytes, kind: str, where: float) -> bytes | None:
    place = int(where * (len(content) - 1))
    if kind == "cut":
        return content[:place]
    if kind == "zeros":  # as a power cut leaves them
        return content[:place] + bytes(len(content) - place)
    flipped = bytearray(content)
    flipped[place] ^= 1 << place % 8
    return None if kind == "lost" else bytes(flipped)


DAMAGE = some.tuples(
    some.sampled_from(STEPS),
    some.sampled_from(FILES),
    some.sampled_from(["cut", "zeros", "flipped", "lost", "swapped"]),
    some.floats(0, 1),
    some.sampled_from(STEPS),
)


@settings(FEW, max_examples=30)
@given(some.lists(DAMAGE, min_size=1, max_size=4))
def test_of_a_damaged_checkpoint_nothing_is_loaded_or_exactly_what_was_written(damages: list[Any]) -> None:
    files: dict[str, bytes | None] = dict(_saved())
    for step, name, kind, where, other in damages:
        place = f"checkpoint-{step}/{name}"
        if kind == "swapped":
            files[place], files[f"checkpoint-{other}/{name}"] = files[f"checkpoint-{other}/{name}"], files[place]
        elif (content := files[place]) is not None:
            files[place] = _damaged(content, kind, where)
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (path := Path(folder) / name).parent.mkdir(exist_ok=True)
            if content is not None:
                path.write_bytes(content)
        layer, optimizer, scheduler = _model(0.0)

        def resume() -> None:
            found = last_intact(checkpoints(Path(folder)))
            step = load_checkpoint(found, dict(layer.named_parameters()), layer, optimizer, scheduler, 1).step
            expected, its_optimizer, _ = _model(float(step))
            assert layer.weight.equal(expected.weight)
            (mine, *_), (other, *_) = optimizer.state.values(), its_optimizer.state.values()
            assert mine["exp_avg"].equal(other["exp_avg"])

        _ends_in_one_line(resume)


def _numbers(section: Any, place: str) -> Iterator[tuple[str, Any]]:
    """The numeric keys of a section of recipes, and of those in it."""
    for name, field in section.model_fields.items():
        hints = [field.annotation]
        for hint in hints:  # to which it adds
            hints += get_args(hint)
        if {int, float} & set(hints):
            yield f"{place}{name}", section
        for each in hints:
            if isinstance(each, type) and issubclass(each, BaseModel):
                yield from _numbers(each, f"{place}{name}.")


RECIPES = get_args(get_args(recipe_adapter()._type)[0])
KEYS = sorted({key: section for each in RECIPES for key, section in _numbers(each, "") if key != "version"}.items())
HUGE = [10**30, 2**63, 2**31, float("inf"), float("-inf"), float("nan"), -(10**30), 10**400, 10**5000]


@settings(FEW, max_examples=200)
@given(some.sampled_from(KEYS), some.sampled_from(HUGE))
def test_no_number_of_a_recipe_is_beyond_what_can_be_computed_with(key: tuple[str, Any], value: Any) -> None:
    """Integers are refused above 31 bits (seeds: above 32), and what is not finite is refused everywhere."""
    name = key[0].rpartition(".")[2]
    field, limits = key[1].model_fields[name], key[1].model_config
    adapter: TypeAdapter[Any] = TypeAdapter(Annotated[field.annotation, field], config=limits)  # type: ignore[arg-type]
    with suppress(ValidationError):
        taken = adapter.validate_python(value)
        assert math.isfinite(taken)
        assert name == "seed" or isinstance(taken, float)


@FEW
@given(some.sampled_from([GenerationSettings, RowSettings, AnswerSettings]), some.sampled_from(HUGE))
def test_no_number_of_a_setting_is_beyond_what_can_be_computed_with(kind: Any, value: Any) -> None:
    hints = get_type_hints(kind)
    for name in (name for name in hints if {int, float} & {hints[name], *get_args(hints[name])}):
        with suppress(UsageError):
            made = getattr(kind(**{name: value}), name)
            assert name in ("seed", "no_answer_threshold"), made
