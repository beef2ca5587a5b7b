"""Many rows at once: what is run together, what leaves a batch, and what becomes of a row that fails."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import llmkit
from llmkit.engines.transformers import decoding
from llmkit.engines.transformers.batching import Budget
from llmkit.errors import ContextOverflowError, InputError, LlmkitError, NotEnoughMemoryError, UsageError
from tests import tiny
from tests.conftest import Checkpoint
from tests.fakes import fake

GREEDY: dict[str, Any] = {"dtype": "float32", "device": "cpu", "temperature": 0}
PROMPTS = [" ".join(tiny.SENTENCES[:1] * count) + word for count in (1, 3, 2) for word in ("", " A", " fox", " 今天")]


def load(folder: Any, task: str = "generate", **options: Any) -> llmkit.Pipeline:
    return llmkit.load(task, str(folder), **{**GREEDY, **options})


@pytest.mark.parametrize("settings", [{"no_repeat_ngram_size": 1}, {"repetition_penalty": 1.5, "min_new_tokens": 6}])
@pytest.mark.parametrize("family", [*tiny.CAUSAL, "t5"])
def test_rows_that_end_early_leave_the_others_as_they_are(
    family: str, settings: dict[str, Any], checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many prompt tokens are prefilled together."""
    free = load(checkpoint(family), max_new_tokens=24, **settings)
    letters = Counter("".join(free(prompt).text[2:] for prompt in PROMPTS)).most_common()
    stop = tuple(letter for letter, _ in letters[2::3])
    pipeline = load(checkpoint(family), max_new_tokens=24, stop=stop, **settings)
    single = [pipeline(prompt) for prompt in PROMPTS]
    assert len({output.usage.completion_tokens for output in single}) > 1, "the rows end together"
    list(pipeline.map(PROMPTS[:2]))  # how its rows may be batched is tried once a model
    sizes: list[int] = []
    pipeline.loaded.model.register_forward_hook(lambda _model, _inputs, output: sizes.append(len(output.logits)))
    for together in (1, 24, 10**6):
        monkeypatch.setitem(decoding._PREFILL_TOKENS, "cpu", together)
        sizes.clear()
        assert list(pipeline.map(PROMPTS, max_batch_tokens=10**6)) == single
        assert max(sizes) > 1
        assert (len(set(sizes)) > 1) == (family in tiny.CAUSAL), "no row left the batch"


@pytest.mark.parametrize("family", tiny.CAUSAL)
def test_several_sequences_of_one_prompt_in_a_batch(family: str, checkpoint: Checkpoint) -> None:
    pipeline = load(checkpoint(family), temperature=0.0001, num_return_sequences=2, max_new_tokens=8)
    greedy = load(checkpoint(family), max_new_tokens=8)
    for prompt, output in zip(PROMPTS, pipeline.map(PROMPTS), strict=True):
        expected = greedy(prompt).text
        assert [output.text, *(other.text for other in output.alternatives)] == [expected, expected]


def test_windows_are_taken_when_they_are_needed() -> None:
    pipeline, _ = fake("generate")
    taken = []

    def endless() -> Iterator[str]:
        while True:
            taken.append(1)
            yield "The quick"

    outputs = pipeline.map(endless(), window=3)
    assert not taken
    next(outputs)
    assert len(taken) == 3
    for _ in range(3):
        next(outputs)
    assert len(taken) == 6


def test_a_bad_row_takes_its_own_place_only(checkpoint: Checkpoint) -> None:
    pipeline = load(checkpoint("gpt2"), max_new_tokens=2)
    rows: list[Any] = ["The quick", "", {"prompt": 5}, "a " * 3000, "The lazy"]
    answers = list(pipeline.map(rows, errors="yield"))
    assert [type(answer) for answer in answers] == [
        llmkit.Output,
        InputError,
        InputError,
        ContextOverflowError,
        llmkit.Output,
    ]
    assert [answers[0], answers[4]] == [pipeline(rows[0]), pipeline(rows[4])]
    outputs = pipeline.map(rows)
    assert next(outputs) == answers[0]
    with pytest.raises(InputError, match="the prompt is empty"):
        next(outputs)


def test_a_question_that_is_too_long_takes_its_own_place_only(checkpoint: Checkpoint) -> None:
    pipeline = llmkit.load("answer", str(checkpoint("bert")), dtype="float32", device="cpu")
    good = {"question": "What is it?", "context": "The quick brown fox."}
    answers = list(pipeline.map([good, {**good, "question": "what " * 600}, good], errors="yield"))
    single = pipeline(good)
    for answer in (answers[0], answers[2]):
        assert isinstance(answer, llmkit.Output)
        assert replace(answer, score=single.score) == single
    assert isinstance(answers[1], ContextOverflowError)


@pytest.mark.parametrize("option", [{"window": 0}, {"max_batch_tokens": 0}, {"errors": "drop"}])
def test_bad_options_are_refused_at_the_call(option: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(option))):
        fake("generate")[0].map(["a"], **option)


def test_a_budget_counts_padding() -> None:
    batches = [list(batch) for batch, _ in Budget(12).run([6, 6, 5, 4, 4, 4, 1, 20, 1], int, list)]
    assert batches == [[6, 6], [5, 4], [4, 4, 1], [20], [1]]
    assert [len(batch) for batch, _ in Budget(12, rows=2).run([1] * 5, int, list)] == [2, 2, 1]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), MemoryError(), RuntimeError("can't allocate memory")]
)
def test_a_batch_is_halved_when_memory_runs_out(error: Exception) -> None:
    tried = []

    def answer(batch: Any) -> list[int]:
        tried.append(len(batch))
        if sum(batch) > 10:
            raise error
        return list(batch)

    budget = Budget(1000)
    done = list(budget.run([12, 4, 4, 4, 4, 1, 1], int, answer))
    assert [item for batch, _ in done for item in batch] == [12, 4, 4, 4, 4, 1, 1]
    assert isinstance(done[0][1], NotEnoughMemoryError)
    assert all(answers == list(batch) for batch, answers in done[1:])
    assert tried[:3] == [7, 3, 1]
    assert budget.rows < 7, "what was learned is kept"


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    def answer(batch: Any) -> None:
        raise RuntimeError("shapes do not match")

    for _, error in Budget(1000).run([1, 2], int, answer):
        assert isinstance(error, LlmkitError)
        assert "shapes do not match" in str(error)


def test_a_row_that_memory_is_too_small_for_becomes_an_error(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = load(checkpoint("gpt2"), max_new_tokens=2)
    expected = list(pipeline.map(PROMPTS))
    longest = max(output.usage.prompt_tokens for output in expected)
    real: Any = pipeline.loaded.model.generate

    def generate(**options: Any) -> Any:
        if options["input_ids"].numel() >= longest:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(**options)

    monkeypatch.setattr(pipeline.loaded.model, "generate", generate)
    answers = list(pipeline.map(PROMPTS, errors="yield"))
    assert any(isinstance(answer, NotEnoughMemoryError) for answer in answers)
    for answer, output in zip(answers, expected, strict=True):
        assert answer == output or isinstance(answer, NotEnoughMemoryError)


def test_rows_draw_differently_and_repeatably(checkpoint: Checkpoint) -> None:
    pipeline = load(checkpoint("gpt2"), max_new_tokens=12, temperature=1.0, seed=3)
    texts = [output.text for output in pipeline.map(["The quick"] * 6, window=1)]
    assert len(set(texts)) > 1, "each batch begins with the same seed"
    assert texts[0] == pipeline("The quick").text
    assert texts == [output.text for output in pipeline.map(["The quick"] * 6, window=1)]


def test_progress_counts_every_row_once() -> None:
    pipeline, engine = fake("summarize", "The fox jumps.", context=128, max_new_tokens=4)
    rows = ["The quick brown fox. " * count for count in (1, 200, 2)] + [""]
    told: list[tuple[int, int]] = []
    answers = pipeline.answer_all(rows, pipeline.session(10**6), progress=lambda *counts: told.append(counts))
    outputs = [answer for answer in answers if not isinstance(answer, LlmkitError)]
    assert sum(rows for rows, _ in told) == 4
    assert len(engine.prompts) > 3, "no row was read in parts"
    assert sum(tokens for _, tokens in told) == sum(output.usage.completion_tokens for output in outputs)


# A row that makes something fail which nobody foresaw.


@contextmanager
def failing(pipeline: llmkit.Pipeline, error: Callable[[int], Exception], *lengths: int) -> Iterator[None]:
    """The model cannot bear prompts of these lengths in tokens."""

    def hook(_: Any, __: Any, given: dict[str, Any]) -> None:
        mask = given.get("attention_mask")
        rows = given["input_ids"] if mask is None else mask
        for length in rows.ne(0).sum(dim=-1).tolist():
            if length in lengths:
                raise error(length)

    handle = pipeline.loaded.model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


FOXES = ["fox " * count for count in range(1, 9)]


def length_of(pipeline: llmkit.Pipeline, prompt: str) -> int:
    return len(pipeline.loaded.tokenizer(prompt)["input_ids"])


@pytest.mark.parametrize("family", ["gpt2", "bart"])
def test_a_row_that_the_model_fails_on_is_found_in_its_batch(family: str, checkpoint: Checkpoint) -> None:
    pipeline = load(checkpoint(family), max_new_tokens=2)
    single = [pipeline(prompt) for prompt in FOXES]
    bad = [length_of(pipeline, FOXES[place]) for place in (2, 5)]
    with failing(pipeline, lambda length: IndexError(f"index {length} is out of range"), *bad):
        answers = list(pipeline.map(FOXES, errors="yield"))
        with pytest.raises(IndexError):  # alone there is nothing to go on with
            pipeline(FOXES[2])
    for place, (answer, expected) in enumerate(zip(answers, single, strict=True)):
        if place in (2, 5):
            assert isinstance(answer, LlmkitError)
            assert "IndexError: index" in str(answer)
            assert "`__cause__`" in answer.fix
        else:
            assert answer == expected


def test_a_question_that_the_model_fails_on_is_found_in_its_batch(checkpoint: Checkpoint) -> None:
    pipeline = llmkit.load("answer", str(checkpoint("bert")), device="cpu", dtype="float32")
    rows = [{"question": "Who?", "context": fox} for fox in FOXES]
    single = [pipeline(row).text for row in rows]
    bad = len(pipeline.loaded.tokenizer("Who?", FOXES[3])["input_ids"])
    with failing(pipeline, lambda length: ValueError(f"{length} tokens"), bad):
        answers = list(pipeline.map(rows, errors="yield"))
    assert [str(answer) for answer in answers[:3] + answers[4:]] == single[:3] + single[4:]
    assert isinstance(answers[3], LlmkitError)


def test_what_fails_on_every_row_is_no_row_s_fault(checkpoint: Checkpoint) -> None:
    pipeline = load(checkpoint("gpt2"), max_new_tokens=2)
    with failing(pipeline, lambda _: KeyError("a bug"), *range(1000)), pytest.raises(KeyError, match="a bug"):
        list(pipeline.map(FOXES, errors="yield"))


@pytest.mark.parametrize("error", [OSError("no space left"), MemoryError(), RuntimeError("CUDA error: device-side")])
def test_what_has_run_out_stops_the_run(error: Exception, checkpoint: Checkpoint) -> None:
    pipeline = load(checkpoint("gpt2"), max_new_tokens=2)
    with failing(pipeline, lambda _: error, length_of(pipeline, FOXES[7])):
        if isinstance(error, MemoryError):  # a smaller batch may do
            assert sum(isinstance(answer, NotEnoughMemoryError) for answer in pipeline.map(FOXES, errors="yield")) == 1
        else:
            with pytest.raises(type(error), match=str(error)):
                list(pipeline.map(FOXES, errors="yield"))


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_token_that_the_model_does_not_have_is_found_before_it_runs(
    family: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    folder = shutil.copytree(checkpoint(family), tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<extra{number}>" for number in range(200)])  # and the embeddings do not grow
    tokenizer.save_pretrained(folder)
    pipeline = load(folder, max_new_tokens=2)
    answers = list(pipeline.map(["a", "b <extra199>", "c"], errors="yield"))
    assert [isinstance(answer, InputError) for answer in answers] == [False, True, False]
    assert "the token '<extra199>'" in str(answers[1])
    with pytest.raises(InputError, match="has embeddings of"):
        pipeline("<extra199>")


TEMPLATE = (
    "{% for m in messages %}{% if 'bad' in m['content'] %}{{ m['content'] + 1 }}{% endif %}{{ m['content'] }}"
    "{% endfor %}"
)


def test_rows_that_people_bring_take_their_own_place_only(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint("llama", chat=True), tmp_path / "model")
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    pipeline = load(folder, max_new_tokens=2)
    rows: Any = ["good", "half \ud83d", "bytes \udce9", "bad", 3, None, {"prompt": ["a"]}, {"prompt": "good"}]
    answers = list(pipeline.map(rows, errors="yield"))
    assert [isinstance(answer, LlmkitError) for answer in answers] == [False, *[True] * 6, False]
    assert str(answers[0]) == str(answers[-1])
    assert "U+D83D" in str(answers[1])
    assert "0xe9" in str(answers[2])
    with pytest.raises(InputError, match="surrogate"):
        list(pipeline.map(rows))
