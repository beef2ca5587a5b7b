"""`llmkit.pipeline`: the calls, keys and types of Transformers 4, and what its switch decides.

That texts and scores are those of 4.57.6 is measured by benchmarks/parity_v4.py, which needs it installed.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import llmkit
from llmkit.errors import InputError, LlmkitError, TaskMismatchError, UsageError
from tests.conftest import Checkpoint
from tests.tiny import train_tokenizer

TEXT, OTHER = "The quick brown fox jumps.", "What is the meaning of life?"
LONG = "The quick brown fox jumps over the lazy dog. What is the meaning of life? " * 6
QUESTION = "What is the fox?"
WINDOWS = {"max_seq_len": 48, "doc_stride": 12}


def _text(checkpoint: Checkpoint, task: str = "summarization", family: str = "t5", **options: Any) -> Any:
    return llmkit.pipeline(task, str(checkpoint(family)), **options)


def _answers(checkpoint: Checkpoint, **options: Any) -> Any:
    return llmkit.pipeline("question-answering", checkpoint("bert"), **options)


# Text to text.


@pytest.mark.parametrize(
    ("task", "key"),
    [("summarization", "summary"), ("translation_en_to_fr", "translation"), ("text2text-generation", "generated")],
)
def test_one_text_gives_a_list_of_one_dict(checkpoint: Checkpoint, task: str, key: str) -> None:
    pipe = _text(checkpoint, task)
    (result,) = pipe(TEXT, max_new_tokens=4)
    assert list(result) == [f"{key}_text"]
    (ids,) = pipe(TEXT, max_new_tokens=4, return_tensors=True)
    assert pipe.tokenizer.decode(ids[f"{key}_token_ids"], skip_special_tokens=True) == result[f"{key}_text"]


def test_a_list_a_generator_and_a_dataset_give_the_same_as_single_texts(checkpoint: Checkpoint) -> None:
    pipe = _text(checkpoint, max_new_tokens=4)
    single = [pipe(text) for text in (TEXT, OTHER)]
    assert pipe([TEXT, OTHER]) == pipe([TEXT, OTHER], batch_size=2) == [result[0] for result in single]
    assert list(pipe(text for text in (TEXT, OTHER))) == single

    class Texts(torch.utils.data.Dataset[str]):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, number: int) -> str:
            return (TEXT, OTHER)[number]

    assert list(pipe(Texts())) == single
    assert pipe([]) == []
    several = pipe([TEXT, OTHER], num_return_sequences=2)
    assert [len(texts) for texts in several] == [2, 2]


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_blanks_before_punctuation_go_if_asked(
    checkpoint: Checkpoint, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = _text(checkpoint, family=family, max_new_tokens=4)
    ids = torch.tensor([pipe.tokenizer("dog . fox .")["input_ids"]])
    monkeypatch.setattr(pipe.model, "generate", lambda **_: ids)
    assert pipe(TEXT)[0]["summary_text"] == "dog . fox ."
    assert pipe(TEXT, clean_up_tokenization_spaces=True)[0]["summary_text"] == "dog. fox."


def test_chinese_of_word_piece_has_the_blanks_of_version_4(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tokenizer = train_tokenizer("BertTokenizer", tmp_path)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(checkpoint("bart"))
    pipe = llmkit.pipeline("summarization", model, tokenizer=tokenizer)
    monkeypatch.setattr(model, "generate", lambda **_: torch.tensor([tokenizer("公园很好")["input_ids"]]))
    assert pipe("天气")[0]["summary_text"] == "公 园 很 好"


def test_settings_are_those_of_version_4_unless_the_call_says_otherwise(checkpoint: Checkpoint) -> None:
    folder = checkpoint("t5")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    model.generation_config.max_length = 12
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def generated(text: str, **settings: Any) -> str:
        ids = model.generate(**tokenizer(text, return_tensors="pt"), **settings)[0]
        return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def pipe(**options: Any) -> Any:
        return llmkit.pipeline("summarization", model, tokenizer=tokenizer, **options)

    # 4 beams; a max_length of the model's own takes the place of 256 new tokens.
    assert pipe()(TEXT) == [{"summary_text": generated(TEXT, num_beams=4, max_length=12)}]
    assert pipe(num_beams=1)(TEXT) == [{"summary_text": generated(TEXT, num_beams=1, max_length=12)}]
    assert pipe(num_beams=1)(TEXT, num_beams=2, max_new_tokens=3) == [
        {"summary_text": generated(TEXT, num_beams=2, max_new_tokens=3)}
    ]
    params = {"summarization": {"prefix": "fox ", "max_length": 7, "num_beams": 2}}
    model.config.task_specific_params = params
    assert pipe(num_beams=1)(TEXT) == [{"summary_text": generated(f"fox {TEXT}", num_beams=2, max_length=7)}]
    assert params["summarization"]["prefix"] == "fox "  # version 4 took it out, so that the next pipeline had none


def test_sampling_is_repeated_by_a_seed(checkpoint: Checkpoint) -> None:
    pipe = _text(checkpoint, do_sample=True, num_beams=1, temperature=3.0, max_new_tokens=8)

    def draw(seed: int) -> Any:
        torch.manual_seed(seed)
        return pipe(TEXT)

    assert draw(0) == draw(0)
    assert len({str(draw(seed)) for seed in range(5)}) > 1


@pytest.mark.parametrize(
    ("family", "source", "target"),
    [("m2m_100", "en", "fr"), ("nllb", "eng_Latn", "fra_Latn"), ("mbart50", "en_XX", "fr_XX")],
)
def test_a_translation_begins_with_its_language(checkpoint: Checkpoint, family: str, source: str, target: str) -> None:
    pipe = _text(checkpoint, "translation", family, max_new_tokens=4)
    token = pipe.tokenizer.get_lang_id(target) if family == "m2m_100" else pipe.tokenizer.convert_tokens_to_ids(target)
    languages = {"src_lang": source, "tgt_lang": target}
    results = pipe([TEXT, OTHER, TEXT], **languages, return_tensors=True, batch_size=2)
    assert [int(result["translation_token_ids"][1]) for result in results] == [token] * 3
    if family == "m2m_100":
        named = _text(checkpoint, f"translation_{source}_to_{target}", family, max_new_tokens=4)
        assert named(TEXT) == pipe(TEXT, **languages)
    with pytest.raises(UsageError, match="src_lang and tgt_lang"):
        pipe(TEXT, src_lang=source)


# Question answering.


def test_every_way_to_ask_gives_the_same_answer(checkpoint: Checkpoint) -> None:
    pipe = _answers(checkpoint)
    example = {"question": QUESTION, "context": TEXT}
    answer = pipe(**example)
    assert {name: type(value) for name, value in answer.items()} == {
        "score": float,
        "start": int,
        "end": int,
        "answer": str,
    }
    assert answer["answer"] == TEXT[answer["start"] : answer["end"]]

    class SquadExample:
        question_text, context_text = QUESTION, TEXT

    for same in (pipe(example), pipe([example]), pipe(QUESTION, TEXT), pipe(data=example), pipe(X=[SquadExample()])):
        assert same == answer
    two = [answer, pipe(question=OTHER, context=TEXT)]
    assert pipe(question=[QUESTION, OTHER], context=TEXT) == two
    assert pipe({"question": [QUESTION, OTHER], "context": [TEXT, TEXT]}) == two
    assert list(pipe({"question": text, "context": TEXT} for text in (QUESTION, OTHER))) == two
    assert pipe([]) == []


def test_batches_answer_as_single_windows_do(checkpoint: Checkpoint) -> None:
    pipe = _answers(checkpoint, top_k=3)
    single = pipe(question=QUESTION, context=LONG, **WINDOWS)
    batched = pipe(question=QUESTION, context=LONG, **WINDOWS, batch_size=4)
    assert len(single) == 3
    for one, other in zip(single, batched, strict=True):
        assert one.pop("score") == pytest.approx(other.pop("score"), rel=1e-5)
        assert one == other


def test_scores_are_shares_of_all_windows_or_of_their_own(checkpoint: Checkpoint) -> None:
    asked = {"question": QUESTION, "context": LONG, "align_to_words": False, "top_k": 1, **WINDOWS}
    ours, theirs = _answers(checkpoint), _answers(checkpoint, bug_compatible=True)
    # What each window's spans weigh, from the model itself.
    windows = list(ours.preprocess({"question": QUESTION, "context": LONG}, **WINDOWS))
    best, own = -math.inf, -math.inf
    weights: list[float] = []
    for window in windows:
        output = ours.forward(dict(window))
        open_ = window["p_mask"][0] == 0
        start, end = (output[name][0].double().masked_fill(~open_, -1e4) for name in ("start", "end"))
        weight = float(start.logsumexp(0) + end.logsumexp(0))
        logits = start[1:, None] + end[None, 1:]
        highest = float(logits.triu().masked_fill(~torch.ones_like(logits).bool().triu().tril(14), -1e4).max())
        best, own, weights = max(best, highest), max(own, highest - weight), [*weights, weight]
    assert len(windows) > 2
    total = float(torch.tensor(weights).logsumexp(0))
    assert ours(**asked)["score"] == pytest.approx(math.exp(best - total), rel=1e-4)
    assert theirs(**asked)["score"] == pytest.approx(math.exp(own), rel=1e-4)


def test_one_window_has_the_scores_of_version_4(checkpoint: Checkpoint) -> None:
    asked = {"question": QUESTION, "context": TEXT, "align_to_words": False, "handle_impossible_answer": True}
    ours, theirs = _answers(checkpoint), _answers(checkpoint, bug_compatible=True)
    assert ours(**asked) == theirs(**asked)


def test_answers_that_read_alike_count_once_or_are_added_up(checkpoint: Checkpoint) -> None:
    asked = {"question": QUESTION, "context": TEXT, "top_k": 50}
    ours = _answers(checkpoint)(**asked)
    theirs = _answers(checkpoint, bug_compatible=True)(**asked)
    assert {answer["answer"] for answer in ours} == {answer["answer"] for answer in theirs}
    best = {answer["answer"]: answer["score"] for answer in ours}
    differences = [answer["score"] - best[answer["answer"]] for answer in theirs]
    assert min(differences) >= 0 < max(differences)


# What is refused, or said.


@pytest.mark.parametrize(
    ("task", "options", "said"),
    [
        ("summarization", {"bug_compatible": True}, "bug_compatible"),
        ("summarization", {"framework": "tf"}, "framework"),
        ("summarization", {"token": "secret"}, "token"),
        ("summarization", {"feature_extractor": "x"}, "feature_extractor"),
        ("summarization", {"device": 0, "device_map": "auto"}, "device_map"),
        ("summarization", {"model_kwargs": {"cache_dir": "x"}}, "cache_dir"),
        ("summarization", {"dtype": "float32", "model_kwargs": {"dtype": "float16"}}, "dtype"),
        ("summarization", {"generation_config": 1}, "generation_config"),
        ("translation_to_fr", {}, "translation_xx_to_yy"),
    ],
)
def test_options_without_effect_are_refused(
    checkpoint: Checkpoint, task: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        llmkit.pipeline(task, str(checkpoint("t5")), **options)
    assert "secret" not in str(caught.value)


def test_a_model_has_to_be_named_and_to_fit(checkpoint: Checkpoint) -> None:
    with pytest.raises(UsageError, match="sshleifer/distilbart-cnn-12-6"):
        llmkit.pipeline("summarization")
    with pytest.raises(TaskMismatchError, match="seq2seq"):
        llmkit.pipeline("summarization", str(checkpoint("gpt2")))
    with pytest.raises(TaskMismatchError):
        llmkit.pipeline("question-answering", str(checkpoint("bart")))
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint("gpt2"))
    with pytest.raises(TaskMismatchError, match="encoder-decoder"):
        llmkit.pipeline("summarization", model)


def test_bad_questions_are_refused(checkpoint: Checkpoint) -> None:
    pipe = _answers(checkpoint)
    bad: list[dict[str, Any]] = [
        {"question": "", "context": TEXT},
        {"question": QUESTION, "context": None},
        {"question": [QUESTION], "context": [TEXT, TEXT]},
        {"question": QUESTION},
        {"question": "fox " * 60, "context": LONG, "max_seq_len": 40, "doc_stride": 8},
    ]
    for kwargs in bad:
        with pytest.raises(InputError):
            pipe(**kwargs)
    with pytest.raises(UsageError, match="max_answer_len"):
        pipe(question=QUESTION, context=TEXT, max_anser_len=3)
    with pytest.raises(UsageError, match="top_k"):
        pipe(question=QUESTION, context=TEXT, top_k=0)


def test_lists_in_lists_are_refused(checkpoint: Checkpoint) -> None:
    # Version 4 answered the first text of each inner list.
    with pytest.raises(InputError):
        _text(checkpoint)([[TEXT, OTHER]])


def test_what_has_no_effect_is_said(checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "llmkit")
    _answers(checkpoint)(question=QUESTION, context=TEXT, max_question_len=3)
    assert "max_question_len has no effect" in caplog.text


def test_other_tasks_are_those_of_transformers(checkpoint: Checkpoint) -> None:
    pipe = llmkit.pipeline("text-generation", str(checkpoint("gpt2")))
    assert type(pipe) is type(transformers.pipeline("text-generation", str(checkpoint("gpt2"))))
    with pytest.raises(LlmkitError):
        llmkit.pipeline("text-generation", str(checkpoint("gpt2")), bug_compatible=True)
