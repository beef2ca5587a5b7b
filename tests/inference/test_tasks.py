"""The tasks on tiny models of every family: batched ≡ single ≡ streamed, and long texts with nothing lost."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import llmkit
from llmkit.engines.fake import CHAT
from llmkit.errors import ContextOverflowError, InputError, UsageError
from llmkit.heads.seq2seq import Seq2SeqHead
from llmkit.models.families import family as known
from llmkit.tasks import Text
from llmkit.text.languages import Route, find_language
from tests import tiny
from tests.conftest import Checkpoint, noted
from tests.fakes import PLAIN, READER, fake

GREEDY: dict[str, Any] = {"dtype": "float32", "device": "cpu", "max_new_tokens": 8}
DOCUMENT = "".join(
    f"Sentence number {n} says that the quick brown fox {n} jumps over the lazy dog. 今天是第{n}天，天气很好。"
    + ("\n\n" if n % 5 == 0 else " ")
    for n in range(2000)
)[:100_000]
SHORTER = DOCUMENT[:900]
ANY: Any = llmkit
"""The package for calls that a type checker refuses."""
ROWS: dict[str, list[Any]] = {
    "summarization": ["The quick brown fox jumps over the lazy dog.", "今天天气很好，我们去公园散步。", SHORTER],
    "question-answering": [
        {"question": "Who jumps?", "context": "The quick brown fox jumps over the lazy dog."},
        {"question": "天气？", "context": "今天天气很好，我们去公园散步。"},
        {"question": "Which day?", "context": SHORTER},
    ],
    "dialogue": ["Hello", "今天天气？", [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                                      {"role": "user", "content": "c"}]],
    "translation": ["The quick brown fox.", "The lazy dog.\n\nThe meaning of life is 42, see `code`.", SHORTER],
}  # fmt: skip
# Room for the wording of a task, which is many tokens in a vocabulary of a few hundred.
WIDE: dict[str, dict[str, int]] = {family: {"max_position_embeddings": 1024} for family in tiny.CAUSAL}
WIDE |= {"gpt2": {"n_positions": 1024}, "t5": {"n_positions": 512}, "mt5": {"n_positions": 512}}


def load(task: str, folder: Path, **options: Any) -> llmkit.Pipeline:
    if task == "translation":
        options = {"source": "en", "target": "fr", "max_new_tokens": 32, **options}
    return llmkit.load(task, str(folder), **{**GREEDY, **options})


SPEECHES = {"chat": CHAT, "plain": PLAIN, "reader": READER}
"""What a task is told of models of three kinds."""


def assert_same(one: llmkit.Output, other: llmkit.Output) -> None:
    """Scores are sums of floats, whose order depends on the batch."""
    assert other.score == pytest.approx(one.score)
    assert replace(other, score=one.score) == one


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("family", tiny.CAUSAL + tiny.SEQ2SEQ)
def test_batched_is_single_is_streamed(family: str, chat: bool, checkpoint: Checkpoint) -> None:
    if chat and family not in ("llama", "gemma3", "t5"):
        pytest.skip("the template is the same for all families")
    varied = 0
    for task, rows in ROWS.items():
        pipeline = load(task, checkpoint(family, chat=chat, **WIDE.get(family, {})))
        if task == "translation":  # enough that no sentence is divided
            pipeline.settings = replace(pipeline.settings, max_new_tokens=16)
        single = [pipeline(row) for row in rows]
        for one, other in zip(single, pipeline.map(rows, window=8), strict=True):
            assert_same(one, other)
        for row, output in zip(rows, single, strict=True):
            streamed = pipeline.stream(row)
            assert "".join(streamed) == output.text
            assert streamed.output is not None
            assert_same(streamed.output, output)
        varied += len({output.text for output in single}) > 1
    assert varied, "the model ignores its input, so nothing was compared"


@pytest.mark.parametrize("family", tiny.SPAN)
def test_marked_answers_batched_are_single(family: str, checkpoint: Checkpoint) -> None:
    pipeline = llmkit.load("answer", str(checkpoint(family)), dtype="float32", device="cpu", top=3)
    rows = ROWS["question-answering"]
    single = [pipeline(row) for row in rows]
    batched = list(pipeline.map(rows))
    for row, one, other in zip(rows, single, batched, strict=True):
        assert [each.text for each in (one, *one.alternatives)] == [each.text for each in (other, *other.alternatives)]
        for answer in (one, *one.alternatives):
            assert row["context"][answer.start : answer.end] == answer.text
            assert 0 < (answer.score or 0) <= 1
        assert one.score == pytest.approx(other.score, abs=1e-6)


# Long texts.


@pytest.mark.parametrize("kind", SPEECHES)
def test_every_sentence_of_a_long_text_is_summarized(kind: str) -> None:
    pipeline, engine = fake("summarization", "Short.", "短。", traits=SPEECHES[kind], context=400, max_new_tokens=16)
    output = pipeline(DOCUMENT)
    assert [chunk.start for chunk in output.chunks] == [0, *(chunk.end for chunk in output.chunks)][:-1]
    assert output.chunks[-1].end == len(DOCUMENT)
    for chunk in output.chunks:
        assert any(DOCUMENT[chunk.start : chunk.end].strip() in prompt for prompt in engine.prompts)
        assert DOCUMENT[chunk.end - 1] in " \n。" or chunk.end == len(DOCUMENT), "a sentence was cut"


@pytest.mark.parametrize("options", [{"max_new_tokens": 5}, {"length": 5}])
def test_a_lower_limit_is_for_the_summary_and_not_for_its_parts(
    options: dict[str, Any], checkpoint: Checkpoint
) -> None:
    pipeline, _ = fake("summarization", "one two three four five six seven", context=400, **options)
    output = pipeline(DOCUMENT)
    assert {chunk.text for chunk in output.chunks} == {"one two three four five six seven"}
    assert (output.text, output.finish_reason) == ("one two three four five", "length")
    output = load("summarization", checkpoint("gpt2"), **options)(DOCUMENT[:700])
    assert output.usage.completion_tokens > 5 * (len(output.chunks) + 1) > 5


def test_a_text_that_may_not_be_divided_is_refused_or_cut(checkpoint: Checkpoint) -> None:
    folder = checkpoint("bart")
    with pytest.raises(ContextOverflowError, match="is 128; shorten it"):
        load("summarization", folder, on_overflow="error")(DOCUMENT)
    output = load("summarization", folder, on_overflow="truncate")(DOCUMENT[:3000])
    assert output.truncated > 0
    assert not output.chunks


def test_summaries_that_do_not_shorten_are_all_given(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, engine = fake("summarization", "many words " * 600, context=8000, max_new_tokens=4000)
    monkeypatch.setattr(engine, "count", len)  # what is written in words takes five times as many letters to read
    output = pipeline(DOCUMENT)
    assert output.text == "\n".join(chunk.text for chunk in output.chunks)
    assert len(output.chunks) > 1
    assert "barely shorten the text" in noted(output)["summaries_long"]


def test_lengths() -> None:
    tokens = {}
    for length in ("short", "medium", "long", 20, "20"):
        pipeline, _ = fake("summarization", traits=READER, length=length)
        tokens[length] = (pipeline.settings.min_new_tokens, pipeline.max_new_tokens)
    assert tokens == {"short": (0, 128), "medium": (None, 256), "long": (128, 512), 20: (10, 20), "20": (10, 20)}
    chat, engine = fake("summarization", length="short")
    assert chat.max_new_tokens == 96
    chat("x")
    assert "in one sentence" in engine.prompts[0]
    limited, _ = fake("summarization", traits=READER, length="long", max_new_tokens=8)
    assert limited.max_new_tokens == 8, "what the caller asks for wins"


def test_what_t5_was_trained_to_see(checkpoint: Checkpoint) -> None:
    for task, expected in (("summarization", "summarize: x"), ("translation", "translate English to French: x")):
        pipeline = load(task, checkpoint("t5"))
        row: dict[str, Any] = {pipeline.task.input_column: "x"}
        if task == "translation":
            assert pipeline.traits.languages is not None
            row["_route"] = pipeline.traits.languages.route(pipeline.task.source, pipeline.task.target)  # type: ignore[attr-defined]
        rendered = pipeline.task.render(row, pipeline.traits, pipeline.prompt_options)
        assert isinstance(rendered, Text)
        assert rendered.text == expected
    assert load("summarization", checkpoint("mt5")).traits.prefix == ""


def test_settings_that_a_config_keeps_for_a_task(checkpoint: Checkpoint) -> None:
    params = {"summarization": {"num_beams": 3, "max_length": 21, "min_length": 4, "prefix": "tl;dr: "}}
    folder = checkpoint("t5", task_specific_params=params)
    pipeline = load("summarization", folder, max_new_tokens=None)
    assert pipeline.max_new_tokens == 20
    assert pipeline.traits.prefix == "tl;dr: "
    assert pipeline.loaded.model.generation_config.num_beams == 3
    assert load("generate", folder).loaded.model.generation_config.num_beams != 3


# Translation.


@pytest.mark.parametrize("kind", SPEECHES)
def test_a_document_keeps_what_is_not_translated(kind: str) -> None:
    text = (
        "# The quick fox\n\nVisit https://example.com/a?b=c today, {name}! The `code` stays.\n\n"
        "```python\nprint('The quick')\n```\n\n* one lazy dog\n* two\n\n   ---\n\n天气很好。 \t\r\nThe end.  \n"
    )
    pipeline, _ = fake("translation", "Der Fuchs", traits=SPEECHES[kind], source="en", target="de")
    output = pipeline(text)
    for kept in (
        "https://example.com/a?b=c",
        "{name}",
        "`code`",
        "```python\nprint('The quick')\n```\n\n* ",
        "\n\n   ---\n\n",
    ):
        assert output.text.count(kept) == 1
    assert output.text.startswith("# ")
    assert output.text.endswith("  \n")
    between = [text[a.end : b.start] for a, b in zip(output.chunks, output.chunks[1:], strict=False)]
    rebuilt = text[: output.chunks[0].start] + output.chunks[0].text
    for gap, chunk in zip(between, output.chunks[1:], strict=True):
        rebuilt += gap + chunk.text
    assert rebuilt + text[output.chunks[-1].end :] == output.text


@pytest.mark.parametrize("kind", SPEECHES)
def test_every_sentence_of_a_long_text_is_translated(kind: str) -> None:
    options: dict[str, Any] = {"source": "en", "target": "fr", "max_new_tokens": 64}
    pipeline, engine = fake("translation", "Short.", "短。", traits=SPEECHES[kind], context=400, **options)
    output = pipeline(DOCUMENT)
    read = "\n".join(engine.prompts)
    covered = 0
    for chunk in output.chunks:
        assert not DOCUMENT[covered : chunk.start].strip(), "text between two parts was left out"
        covered = chunk.end
        assert DOCUMENT[chunk.start : chunk.end].strip() in read
    assert not DOCUMENT[covered:].strip()


@pytest.mark.parametrize(
    ("family", "code"),
    [("mbart50", "fr_XX"), ("m2m_100", "__fr__"), ("nllb", "fra_Latn"), ("mbart", "fr_XX")],
)
def test_the_model_is_told_the_languages(
    family: str, code: str, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = load("translation", checkpoint(family))
    tokenizer, model = pipeline.loaded.tokenizer, pipeline.loaded.model
    told = tokenizer.convert_tokens_to_ids(code)
    outputs = []
    real = model.generate

    def spy(**options: Any) -> Any:
        outputs.append((options["generation_config"].forced_bos_token_id, options["decoder_input_ids"][0].tolist()))
        result = real(**options)  # type: ignore[operator]
        outputs.append(result.sequences[0].tolist())
        return result

    monkeypatch.setattr(model, "generate", spy)
    text = pipeline("The quick brown fox.").text
    (forced, start), sequence = outputs[-2:]  # a first batch is preceded by a trial of batches
    assert told in sequence[:2], "the output does not begin with the language"
    assert (start == [told]) if family == "mbart" else (forced == told)
    assert code not in text
    assert model.generation_config.forced_bos_token_id is None, "a shared model was changed"


def test_two_threads_keep_their_languages(checkpoint: Checkpoint) -> None:
    loaded = load("translation", checkpoint("nllb")).loaded
    head = Seq2SeqHead()
    wrong: list[int] = []

    def encode(source: str, code: str) -> None:
        route = find_route(loaded, source)
        expected = loaded.tokenizer.convert_tokens_to_ids(code)
        wrong.extend(1 for _ in range(100) if expected not in head.encode(loaded, Text("fox", route=route)).input_ids)

    threads = [threading.Thread(target=encode, args=pair) for pair in (("en", "eng_Latn"), ("de", "deu_Latn"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def find_route(loaded: Any, source: str) -> Route:
    languages = known("m2m_100").languages("nllb", {}, loaded.tokenizer)
    assert languages is not None
    return languages.route(find_language(source), find_language("fr"))


@pytest.mark.parametrize("text", ["  The fox.\n\n", "\n12345 !!\n", "😀"])
def test_white_space_and_what_has_no_letters_stay(text: str) -> None:
    pipeline, engine = fake("translate", "Le renard.", source="en", target="fr")
    output, streamed = pipeline(text), pipeline.stream(text)
    assert output.text == text.replace("The fox.", "Le renard.")
    assert len(engine.prompts) == ("fox" in text)
    assert "".join(streamed) == output.text


def test_several_answers(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(checkpoint("llama", chat=True, **WIDE["llama"]))
    options: dict[str, Any] = {"num_return_sequences": 3, "temperature": 2.0, "seed": 1, **GREEDY}
    output = llmkit.answer("Who?", "The quick brown fox.", folder, **options)
    assert len(output.alternatives) == 2
    with pytest.raises(UsageError, match="fits in one prompt"):
        llmkit.summarize(DOCUMENT[:6000], folder, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: ANY.summarize(None, model), "a row is a NoneType"),
        (lambda model: ANY.generate(5, model), "a row is a int"),
        (lambda model: ANY.generate("x", model, examples=[("a", "b")]), "example 1 is a tuple"),
        (lambda model: ANY.load("summarize", model, examples=[{"document": None, "summary": "x"}]), "no 'document'"),
        (lambda model: ANY.generate("x", model, stop=5), "stop=5 is not text"),
        (lambda model: ANY.translate("hello", 5, model), "target=5 is not text"),
        (lambda model: ANY.generate("x", 5), "model=5 is not text"),
        (lambda model: ANY.summarize("x", model, length=10**9), "is not a choice"),
    ],
)
def test_wrong_types_are_one_line(call: Any, message: str, checkpoint: Checkpoint) -> None:
    with pytest.raises(UsageError, match=message):
        call(str(checkpoint("llama", chat=True)))


def test_languages_of_rows_in_one_batch_are_their_own(checkpoint: Checkpoint) -> None:
    pipeline = load("translation", checkpoint("nllb"), source=None, target="fr")
    rows = ["Where is the library of this town?", "今天天气很好，我们去公园散步。"]
    outputs = list(pipeline.map(rows))
    assert [output.source_language for output in outputs] == ["en", "zh"]
    assert outputs == [pipeline(row) for row in rows]


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("nllb", {"target": "Klingonese"}, "unknown language 'Klingonese'"),
        ("nllb", {"target": "en"}, "source and target are both English"),
        ("m2m_100", {"target": "Nynorsk"}, "nearest"),
        ("nllb", {"examples": [{"source": "a", "target": "b"}]}, "does not support examples"),
    ],
)
def test_a_bad_pair_is_refused_before_anything_is_read(
    family: str, options: dict[str, Any], message: str, checkpoint: Checkpoint
) -> None:
    with pytest.raises(UsageError, match=message):
        load("translation", checkpoint(family), **options)


def test_the_language_of_the_text_may_not_be_the_target() -> None:
    with pytest.raises(InputError, match="English"):
        fake("translation", target="en")[0]("Where is the library of this town?")


# Answers.


@pytest.mark.parametrize(
    ("said", "place"),
    [
        ("ada lovelace", "Ada Lovelace"),
        ("London.", "London."),
        ('"数学家"', "数学家"),
        ("lived in London", "lived in\nLondon"),
        ("Lond", None),
        ("Paris", None),
    ],
)
def test_an_answer_is_found_where_it_stands(said: str, place: str | None) -> None:
    context = "  Ada Lovelace lived in\nLondon. 她是数学家。"
    output = fake("question-answering", said)[0]({"question": "?", "context": context})
    assert output.answered
    assert (None if output.start is None else context[output.start : output.end]) == place


@pytest.mark.parametrize("said", ["No answer", " no answer.\n", "“No answer.”", "unanswerable"])
def test_no_answer_is_said_in_one_form(said: str) -> None:
    output = fake("question-answering", said)[0]({"question": "?", "context": "x"})
    assert (output.text, output.answered) == ("", False)
    assert output.to_dict()["answered"] is False


def test_the_best_supported_of_the_windows_answers() -> None:
    asked: list[str] = []

    def answer(prompt: str) -> str:
        asked.append(prompt)
        return "fox 13 " if "number 13 says" in prompt else "Paris" if len(asked) % 2 else "No answer"

    pipeline, _ = fake("question-answering", answer, context=200)
    context = DOCUMENT[:3000]
    output = pipeline({"question": "?", "context": context})
    assert len(asked) > 2
    assert output.text == "fox 13"
    assert context[output.start : output.end] == "fox 13"
    ends = [0, *(chunk.end for chunk in output.chunks)]
    assert all(chunk.start <= end for chunk, end in zip(output.chunks, ends, strict=False)), "text between two windows"
    assert ends[-1] == len(context)


def test_what_is_left_of_a_row_that_fails_is_not_run() -> None:
    def answer(prompt: str) -> str:
        if "number 13 says" in prompt:
            raise InputError("it fails")
        return "No answer"

    row = {"question": "?", "context": DOCUMENT[:6000]}
    pipeline, engine = fake("question-answering", answer, context=200)
    failed, answered = pipeline.map([row, {"question": "?", "context": "x"}], errors="yield")
    assert isinstance(failed, InputError)
    assert str(answered) == ""
    asked = len(engine.prompts)
    whole, other = fake("question-answering", "No answer", context=200)
    whole(row)
    assert asked < len(other.prompts)


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("answer", {"question": "Who?", "context": " "}, "the context is empty"),
        ("answer", {"question": "", "context": "x"}, "the question is empty"),
        ("answer", {"question": "Who?", "context": 5}, "the context is a int, not text"),
        ("answer", "Who?", "requires a context"),
        ("answer", None, "a row is a NoneType"),
        ("summarize", " \n", "the document is empty"),
        ("translate", "", "the source is empty"),
        ("chat", " ", "the message is empty"),
        ("chat", {"messages": []}, "does not end with the user"),
        ("chat", {"messages": [{"role": "robot", "content": "x"}]}, "message 1 is not a role"),
        ("chat", {"messages": 5}, "messages are not a list"),
    ],
)
def test_bad_rows(task: str, row: Any, message: str) -> None:
    options: dict[str, Any] = {"target": "fr"} if task == "translate" else {}
    pipeline, _ = fake(task, **options)
    with pytest.raises(InputError, match=message):
        pipeline(row)


def test_a_question_longer_than_the_window(checkpoint: Checkpoint) -> None:
    question = "What is the meaning of life? " * 40
    for family in ("bert", "llama", "bart"):
        options = {} if family == "bert" else GREEDY
        pipeline = llmkit.load("answer", str(checkpoint(family)), **options)
        with pytest.raises(ContextOverflowError):
            pipeline({"question": question, "context": "The fox."})


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("bert", {"temperature": 1.0}, "does not generate text"),
        (
            "bert",
            {"examples": [{"question": "a", "context": "b", "answer": "c"}]},
            "takes a question and a context only",
        ),
        ("llama", {"top": 3}, "requires an extractive model"),
        ("llama", {"no_answer_threshold": 0.0}, "requires an extractive model"),
    ],
)
def test_options_without_effect_are_refused(
    family: str, options: dict[str, Any], message: str, checkpoint: Checkpoint
) -> None:
    with pytest.raises(UsageError, match=message):
        llmkit.load("answer", str(checkpoint(family)), **options)


def test_a_threshold_decides_whether_there_is_an_answer(checkpoint: Checkpoint) -> None:
    row = ROWS["question-answering"][0]
    always = llmkit.load("answer", str(checkpoint("bert")))(row)
    never = llmkit.load("answer", str(checkpoint("bert")), no_answer_threshold=-1e9)(row)
    assert always.answered
    assert not never.answered
    assert never.text == ""
    assert never.alternatives[0].text == always.text
    assert llmkit.load("answer", str(checkpoint("bert")), no_answer_threshold=1e9)(row) == always


# Examples.


@pytest.mark.parametrize(
    ("task", "example", "row"),
    [
        ("summarization", {"document": "D1", "summary": "S1"}, "The fox."),
        (
            "question-answering",
            {"question": "Q1", "context": "C1", "answers": {"text": ["A1"]}},
            ROWS["question-answering"][0],
        ),
        ("translation", {"source": "S1", "target": "T1"}, "The fox."),
        ("dialogue", {"messages": [{"role": "user", "content": "U1"}, {"role": "assistant", "content": "A1"}]}, "Hi"),
    ],
)
@pytest.mark.parametrize("chat", [False, True])
def test_examples_come_before_the_row(task: str, example: Any, row: Any, chat: bool) -> None:
    options: dict[str, Any] = {"source": "en", "target": "fr"} if task == "translation" else {}
    traits = CHAT if chat else PLAIN
    pipeline, engine = fake(task, traits=traits, examples=[example], **options)
    pipeline(row)
    assert "1" in engine.prompts[0]
    bad = {key: value for key, value in example.items() if key in ("question", "document", "source")}
    with pytest.raises(InputError, match="example 1"):
        fake(task, traits=traits, examples=[bad], **options)
