"""The span head against a slow reference, and against planted answers in many scripts."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

import llmkit
from llmkit.config.settings import LoadSettings
from llmkit.engines.transformers.batching import Budget
from llmkit.engines.transformers.engine import extract_spans
from llmkit.errors import ContextOverflowError, LlmkitError, UsageError
from llmkit.heads.span import SpanHead
from llmkit.heads.windows import split, takes_token_types
from llmkit.models.context import ContextLength
from llmkit.models.load import Loaded, load_model
from llmkit.tasks import QuestionContext, SpanPrediction
from llmkit.tasks.question_answering import AnswerSettings
from tests import tiny
from tests.conftest import Checkpoint

QUESTION = "What is the meaning of life?"
LONG = " ".join(tiny.SENTENCES * 2) + "\r\n  The dog 今天 😀 is fermé.  "
FAMILIES = [*tiny.SPAN, "gpt2"]
MEASURES = {"top": 3, "max_seq_len": 64, "doc_stride": 16, "max_answer_len": 8}
ALL = 10**6

Load = Callable[..., Loaded]


@pytest.fixture
def load(checkpoint: Checkpoint) -> Load:
    def get(family: str) -> Loaded:
        options = {"model_class": "GPT2ForQuestionAnswering"} if family == "gpt2" else {}
        settings = LoadSettings(model=str(checkpoint(family, **options)), device="cpu", dtype="float32")
        return load_model(settings, "question-answering")

    return get


def read(loaded: Loaded, *prompts: QuestionContext, batch_size: int = 4, **given: int) -> list[SpanPrediction]:
    documents = [split(loaded, asked(prompt, **given)) for prompt in prompts]
    readings = extract_spans(loaded, SpanHead(), documents, Budget(10**6, rows=batch_size))
    return [reading for reading in readings if isinstance(reading, SpanPrediction)]


def asked(prompt: QuestionContext, **given: int) -> QuestionContext:
    measures = MEASURES | given
    settings = AnswerSettings(**(measures | {"top": 1}))
    vars(settings)["top"] = measures["top"]  # more than a caller may ask for, to add all scores up
    return replace(prompt, settings=settings)


def places(reading: SpanPrediction) -> list[tuple[int, int]]:
    return [(span.start, span.end) for span in reading.spans]


def tokenized(loaded: Loaded, prompt: QuestionContext, **options: Any) -> tuple[Any, int]:
    """What run_qa.py does: the tokenizer's own windows, and which side of each pair is the text."""
    right = loaded.tokenizer.padding_side == "right"
    pair = (prompt.question, prompt.context) if right else (prompt.context, prompt.question)
    if options:
        options |= {"truncation": "only_second" if right else "only_first", "return_overflowing_tokens": True}
    return loaded.tokenizer(*pair, return_offsets_mapping=True, **options), int(right)


def reference(loaded: Loaded, prompt: QuestionContext) -> tuple[dict[tuple[int, int], float], float]:
    """Probabilities of all spans and of no answer, by loops over the tokenizer's own windows, one at a time."""
    size, overlap, longest = (MEASURES[name] for name in ("max_seq_len", "doc_stride", "max_answer_len"))
    encoding, side = tokenized(loaded, prompt, max_length=size, stride=overlap)
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in encoding]
    windows: list[tuple[int, int, Any, Any]] = []
    chars: dict[int, tuple[int, int]] = {}
    nulls = []
    begin = 0
    for number, ids in enumerate(encoding["input_ids"]):
        with torch.inference_mode():
            outputs = loaded.model(**{name: torch.tensor([encoding[name][number]]) for name in names})
        starts, ends = outputs.start_logits[0].double().tolist(), outputs.end_logits[0].double().tolist()
        cls = ids.index(loaded.tokenizer.cls_token_id) if loaded.tokenizer.cls_token_id in ids else 0
        nulls.append(starts[cls] + ends[cls])
        at = [place for place, which in enumerate(encoding.sequence_ids(number)) if which == side]
        for token, place in enumerate(at, start=begin):
            start, end = encoding["offset_mapping"][number][place]
            text = prompt.context[start:end]
            start += len(text) - len(text.lstrip())
            chars[token] = (start, start + len(text.strip()))
        windows.append((begin, begin + len(at), [starts[place] for place in at], [ends[place] for place in at]))
        begin += len(at) - overlap
    filled = [token for token, (start, end) in chars.items() if start < end]
    spans: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for first in filled:
        for last in filled:
            if first <= last < first + longest:
                spans.setdefault((chars[first][0], chars[last][1]), []).append((first, last))
    logits = {}
    for (start, end), members in spans.items():
        low = min(token for token in filled if chars[token][0] == start)
        high = max(token for token in filled if chars[token][1] == end)
        best = max(windows, key=lambda window: min(low - window[0], window[1] - 1 - high))
        assert best[0] <= low
        assert high < best[1]
        terms = [best[2][first - best[0]] + best[3][last - best[0]] for first, last in members]
        logits[start, end] = math.log(math.fsum(math.exp(term) for term in terms))
    total = math.fsum(map(math.exp, [*logits.values(), min(nulls)]))
    return {place: math.exp(logit) / total for place, logit in logits.items()}, math.exp(min(nulls)) / total


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_a_slow_reference(load: Load, family: str, side: str) -> None:
    loaded = load(family)
    loaded.tokenizer.padding_side = side
    prompt = QuestionContext(QUESTION, LONG)
    (reading,) = read(loaded, prompt, top=ALL)
    expected, no_answer = reference(loaded, prompt)

    assert reading.windows > 2
    assert len(set(places(reading))) == len(reading.spans)
    assert {(span.start, span.end): span.score for span in reading.spans} == pytest.approx(expected, rel=1e-4, abs=1e-9)
    assert reading.no_answer == pytest.approx(no_answer, rel=1e-4)
    assert math.fsum(span.score for span in reading.spans) + reading.no_answer == pytest.approx(1, abs=1e-9)
    assert [span.score for span in reading.spans] == sorted((span.score for span in reading.spans), reverse=True)
    assert reading.null_margin == pytest.approx(math.log(reading.no_answer / reading.spans[0].score))
    for span in reading.spans:
        assert span.text == LONG[span.start : span.end] == span.text.strip() != ""


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_windows_are_those_of_the_tokenizer(load: Load, family: str, side: str) -> None:
    loaded = load(family)
    loaded.tokenizer.padding_side = side
    prompt = QuestionContext(QUESTION, LONG)
    document = split(loaded, asked(prompt, max_seq_len=60, doc_stride=13))
    encoding, _ = tokenized(loaded, prompt, max_length=60, stride=13)

    assert [list(window.input_ids) for window in document.windows] == encoding["input_ids"]
    types = [list(window.token_type_ids) for window in document.windows]
    assert types == (encoding["token_type_ids"] if family in ("bert", "electra") else [[] for _ in types])
    covered = {token for window in document.windows for token in range(window.begin, window.end)}
    assert covered == set(range(len(document.chars))) == set(range(len(document.extents)))
    assert read(loaded, prompt)[0].tokens == sum(
        len(window.input_ids) for window in split(loaded, asked(prompt)).windows
    )


def test_the_side_that_the_tokenizer_truncates_does_not_matter(load: Load) -> None:
    loaded = load("bert")
    prompt = QuestionContext(QUESTION, LONG)
    expected = read(loaded, prompt)
    loaded.tokenizer.truncation_side = "left"
    assert read(loaded, prompt) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_gives_what_single_prompts_give(load: Load, family: str) -> None:
    loaded = load(family)
    prompts = [QuestionContext(QUESTION, LONG[:length]) for length in (30, 120, 300, 60, len(LONG))]
    prompts.append(QuestionContext("Who?", "今天天气很好"))
    single = [read(loaded, prompt, batch_size=1, top=10)[0] for prompt in prompts]
    for batch_size in (1, 8):
        for one, other in zip(single, read(loaded, *prompts, batch_size=batch_size, top=10), strict=True):
            assert places(one) == places(other)
            assert [s.score for s in one.spans] == pytest.approx([s.score for s in other.spans], abs=1e-6)
            assert one.no_answer == pytest.approx(other.no_answer, abs=1e-6)
            assert (one.windows, one.tokens) == (other.windows, other.tokens)


@pytest.mark.parametrize("family", ["bert", "distilbert", "electra"])
def test_one_window_gives_the_plain_argmax(load: Load, family: str) -> None:
    loaded = load(family)
    context = "The quick brown fox jumps over the lazy dog."
    encoding, _ = tokenized(loaded, QuestionContext(QUESTION, context))
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in encoding]
    with torch.inference_mode():
        outputs = loaded.model(**{name: torch.tensor([encoding[name]]) for name in names})
    text = [place for place, side in enumerate(encoding.sequence_ids(0)) if side == 1]
    start, end = max(
        ((a, b) for a in text for b in text if a <= b < a + 8),
        key=lambda span: float(outputs.start_logits[0, span[0]] + outputs.end_logits[0, span[1]]),
    )
    (reading,) = read(loaded, QuestionContext(QUESTION, context), top=1)
    assert places(reading) == [(encoding["offset_mapping"][start][0], encoding["offset_mapping"][end][1])]
    assert (reading.windows, reading.tokens) == (1, len(encoding["input_ids"]))


FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
PLANTED = {
    "plain": ("The dog is lazy.", "lazy", "lazy"),
    "chinese": ("气好。公园。今天。", "公园", "公园"),
    "japanese": ("首都，東京。", "東京", "東京"),
    "composed": ("Le café est fermé.", "café", "café"),
    "decomposed": ("Le cafe\u0301 est la.", "cafe\u0301", "cafe\u0301"),
    "only the letter below the accent": ("Le cafe\u0301 est la.", "cafe", "cafe\u0301"),
    "voiced kana": ("首都，か\u3099。", "か", "か\u3099"),
    "emoji": ("The 😀 is good.", "😀", "😀"),
    "rare character": ("天 𠮷 好", "𠮷", "𠮷"),
    "family": (f"The {FAMILY} is good.", FAMILY, FAMILY),
    "one of the family": (f"The {FAMILY} is good.", "\U0001f469", FAMILY),
    "flags": ("The 🇫🇷🇩🇪 is.", "🇩🇪", "🇩🇪"),
    "half a flag": ("The 🇫🇷🇩🇪 is.", "🇩", "🇩🇪"),
    "skin": ("The 👍🏽 is.", "👍", "👍🏽"),
    "line ends": ("The dog.\r\nIt is lazy.\r\n\r\nThe fox.", "It is lazy.", "It is lazy."),
    "leading white space": (" \t\n  The dog is lazy.", "The dog", "The dog"),
    "ideographic space": ("今天\u3000公园\u3000散步", "公园", "公园"),
}


def plant(monkeypatch: pytest.MonkeyPatch, loaded: Loaded, prompt: QuestionContext, target: str) -> None:
    """Make the model mark the tokens of ``target`` in a text of one window."""
    encoding, side = tokenized(loaded, prompt)
    begin = prompt.context.index(target)
    end = begin + len(target)
    marked = [
        place
        for place, (which, (a, b)) in enumerate(zip(encoding.sequence_ids(0), encoding["offset_mapping"], strict=True))
        if which == side and a < end and b > begin and prompt.context[a:b].strip()
    ]

    def forward(input_ids: Any, **_: Any) -> Any:
        logits = torch.zeros(2, *input_ids.shape)
        logits[0, :, marked[0]] = logits[1, :, marked[-1]] = 20
        return SimpleNamespace(start_logits=logits[0], end_logits=logits[1])

    monkeypatch.setattr(loaded.model, "forward", forward)


@pytest.mark.parametrize("case", PLANTED)
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_planted_answer_is_found(
    load: Load, monkeypatch: pytest.MonkeyPatch, family: str, side: str, case: str
) -> None:
    loaded = load(family)
    loaded.tokenizer.padding_side = side
    context, target, expected = PLANTED[case]
    prompt = QuestionContext("What?", context)
    plant(monkeypatch, loaded, prompt, target)
    (reading,) = read(loaded, prompt, max_answer_len=40, max_seq_len=120, top=ALL)

    best = reading.spans[0]
    # These tokenizers know neither of the two flags and cannot tell them apart.
    if "flag" in case and family not in ("roberta", "gpt2"):
        expected = "🇫🇷🇩🇪"
    assert best.text == expected
    assert all(context[span.start : span.end] == span.text == span.text.strip() for span in reading.spans)
    assert len(set(places(reading))) == len(reading.spans)
    assert best.score > 0.9
    assert reading.null_margin < -20


def test_a_joiner_does_not_join_letters(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load("roberta")
    prompt = QuestionContext("What?", "The ab\u200dcd is.")
    plant(monkeypatch, loaded, prompt, "cd")
    assert read(loaded, prompt)[0].spans[0].text == "cd"


@pytest.mark.parametrize("family", FAMILIES)
def test_no_answer(load: Load, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    loaded = load(family)
    names: list[int] = []

    def forward(input_ids: Any, **_: Any) -> Any:
        names.append(len(input_ids))
        logits = torch.zeros(2, *input_ids.shape)
        logits[:, :, 0] = torch.arange(6.0, 6.0 + len(input_ids))  # the lowest of the windows counts
        return SimpleNamespace(start_logits=logits[0], end_logits=logits[1])

    monkeypatch.setattr(loaded.model, "forward", forward)
    (reading,) = read(loaded, QuestionContext(QUESTION, LONG), top=ALL, batch_size=100)
    assert names == [reading.windows]
    # Merged spans have log(how many) more.
    count = round(reading.spans[0].score / min(span.score for span in reading.spans))
    assert reading.null_margin == pytest.approx(12 - math.log(count))
    assert reading.no_answer + math.fsum(span.score for span in reading.spans) == pytest.approx(1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("context", ["", " ", " \r\n\u3000 "])
def test_a_text_without_answers(load: Load, family: str, context: str) -> None:
    (reading,) = read(load(family), QuestionContext(QUESTION, context))
    assert (reading.spans, reading.no_answer, reading.null_margin) == ((), 1.0, math.inf)


def test_large_logits_overflow_nothing(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load("bert")

    def forward(input_ids: Any, **_: Any) -> Any:
        logits = torch.linspace(-2000, 2000, input_ids.shape[1]).repeat(len(input_ids), 1)
        return SimpleNamespace(start_logits=logits, end_logits=logits)

    monkeypatch.setattr(loaded.model, "forward", forward)
    (reading,) = read(loaded, QuestionContext(QUESTION, LONG), top=ALL)
    assert math.fsum(span.score for span in reading.spans) + reading.no_answer == pytest.approx(1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_refused(value: float, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load("bert")

    def forward(input_ids: Any, **_: Any) -> Any:
        logits = torch.full(input_ids.shape, value)
        return SimpleNamespace(start_logits=logits, end_logits=logits)

    monkeypatch.setattr(loaded.model, "forward", forward)
    with pytest.raises(LlmkitError, match="computes NaN or infinity in float32; use another checkpoint"):
        read(loaded, QuestionContext(QUESTION, LONG))


def test_a_tuned_prompt_has_logits_too(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load("bert")
    prompts = [QuestionContext(QUESTION, LONG), QuestionContext(QUESTION, "The lazy dog.")]
    expected = read(loaded, *prompts)
    own = loaded.model.forward

    def forward(**inputs: Any) -> Any:
        outputs = own(**inputs)
        before = torch.full((len(outputs.start_logits), 5), 100.0)
        return SimpleNamespace(
            start_logits=torch.cat([before, outputs.start_logits], 1),
            end_logits=torch.cat([before, outputs.end_logits], 1),
        )

    monkeypatch.setattr(loaded.model, "forward", forward)
    assert read(loaded, *prompts) == expected


def test_a_question_is_never_cut(load: Load) -> None:
    loaded = load("bert")
    question = " ".join(["dog"] * 200)
    tokens = len(loaded.tokenizer(question, add_special_tokens=False)["input_ids"])
    with pytest.raises(
        ContextOverflowError, match=rf"has {tokens} tokens, and 109 fit.* 128 .*; shorten the question$"
    ):
        read(loaded, QuestionContext(question, LONG), max_seq_len=10_000)
    with pytest.raises(ContextOverflowError, match=r"and 45 fit.* 64 .*raise max_seq_len"):
        read(loaded, QuestionContext(question, LONG))

    # As long as it may be: the overlap gives way, and windows of 16 tokens of the text remain.
    words = ["e"] * 45
    assert len(loaded.tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]) == 45
    document = split(loaded, asked(QuestionContext(" ".join(words), LONG)))
    assert {window.end - window.begin for window in document.windows[:-1]} == {16}
    assert document.windows[1].begin == 8
    assert all(window.input_ids[:46] == document.windows[0].input_ids[:46] for window in document.windows)
    with pytest.raises(ContextOverflowError):
        split(loaded, asked(QuestionContext(" ".join([*words, "e"]), LONG)))
    # A text that fits whole may be shorter than that.
    short = split(loaded, asked(QuestionContext(" ".join(["e"] * 58), "dog")))
    assert len(short.windows) == 1


@pytest.mark.parametrize("tokenizer", [transformers.ByT5Tokenizer, transformers.CanineTokenizer])
def test_a_tokenizer_without_offsets_is_refused(load: Load, tokenizer: Any) -> None:
    loaded = replace(load("bert"), tokenizer=tokenizer())
    with pytest.raises(UsageError, match=r"located in the text; .*use a generative model such as `model=starter`"):
        read(loaded, QuestionContext(QUESTION, LONG))


def test_a_fast_tokenizer_may_give_no_offsets_either(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load("bert")
    call = type(loaded.tokenizer).__call__

    def without(self: Any, *pair: str, return_offsets_mapping: bool, **options: Any) -> Any:
        return call(self, *pair, **options)

    monkeypatch.setattr(type(loaded.tokenizer), "__call__", without)
    with pytest.raises(UsageError, match="answers cannot be located"):
        read(loaded, QuestionContext(QUESTION, LONG))


def named(folder: Path, source: Path, tokenizer_class: str, **config: Any) -> Path:
    """A copy of a checkpoint whose tokenizer_config.json names another class, without what version 5 writes there."""
    shutil.copytree(source, folder)
    file = folder / "tokenizer_config.json"
    written = json.loads(file.read_text(encoding="utf-8"))
    del written["backend"]
    file.write_text(json.dumps(written | {"tokenizer_class": tokenizer_class} | config), encoding="utf-8")
    return folder


@pytest.mark.parametrize("family", ["bert", "electra"])
@pytest.mark.parametrize("tokenizer_class", ["PreTrainedTokenizerFast", "TokenizersBackend"])
def test_the_generic_tokenizer_class_gives_token_types(
    checkpoint: Checkpoint, family: str, tokenizer_class: str, tmp_path: Path
) -> None:
    folder = named(tmp_path / "generic", checkpoint(family), tokenizer_class)
    texts = {"question": QUESTION, "context": LONG}
    both = [str(checkpoint(family)), str(folder)]
    outputs = [llmkit.load("answer", each, device="cpu")(texts) for each in both]
    assert (outputs[0].text, outputs[0].score) == (outputs[1].text, outputs[1].score)
    answers = [llmkit.pipeline("question-answering", each)(**texts, max_seq_len=96) for each in both]
    assert answers[0] == answers[1]


NO_TYPES = ["input_ids", "attention_mask"]


@pytest.mark.parametrize(
    ("model", "tokenizer", "settings", "declared", "expected"),
    [
        ("bert", "generic", {}, None, True),
        ("bert", "generic", {}, NO_TYPES, False),
        ("bert", "BertTokenizer", {}, None, True),
        ("bert", "BertTokenizer", {}, NO_TYPES, False),
        ("bert", "DistilBertTokenizer", {}, None, False),
        ("bert", "RobertaTokenizer", {}, None, False),
        ("bert", "HerbertTokenizer", {}, None, True),
        ("bert", "BertTokenizer", {"type_vocab_size": 1}, None, False),
        ("albert", "AlbertTokenizer", {}, None, True),
        ("rembert", "RemBertTokenizer", {}, None, True),
        ("funnel", "FunnelTokenizer", {}, None, True),
        ("funnel", "FunnelTokenizer", {"type_vocab_size": 2}, None, False),  # its tokenizer gives three
        ("xlnet", "XLNetTokenizer", {}, None, True),
        ("distilbert", "generic", {}, None, False),
        ("big_bird", "generic", {}, None, True),
        ("big_bird", "BigBirdTokenizer", {}, None, False),
        ("roberta", "generic", {"type_vocab_size": 1}, None, False),
        ("deberta-v2", "DebertaV2Tokenizer", {"type_vocab_size": 0}, None, False),
        ("gpt2", "GPT2Tokenizer", {}, None, False),
        ("gpt2", "GPT2Tokenizer", {}, ["input_ids", "token_type_ids"], True),
    ],
)
def test_token_types_are_given_where_version_4_gave_them(
    model: str, tokenizer: str, settings: dict[str, int], declared: list[str] | None, expected: bool
) -> None:
    types = {"model_input_names": declared} if declared else {}
    config = transformers.AutoConfig.for_model(model, **settings)
    with torch.device("meta"):
        built = transformers.AutoModelForQuestionAnswering.from_config(config)
    if tokenizer == "generic":
        backend = transformers.BertTokenizer().backend_tokenizer
        loaded: Any = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **types)
    else:
        loaded = getattr(transformers, tokenizer)(**types)
    assert takes_token_types(built, loaded) is expected


def xlnet(loaded: Loaded, model_class: str) -> Loaded:
    tokenizer = tiny.train_tokenizer("XLNetTokenizer", None)  # type: ignore[arg-type]  # needs no folder
    config = transformers.XLNetConfig(
        vocab_size=len(tokenizer), d_model=16, n_layer=2, n_head=2, d_inner=32, start_n_top=2, end_n_top=2
    )
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return replace(loaded, model=model, tokenizer=tokenizer, context=ContextLength(None, hard=False))


def test_xlnet(load: Load) -> None:
    loaded = xlnet(load("bert"), "XLNetForQuestionAnsweringSimple")
    prompts = [QuestionContext(QUESTION, LONG), QuestionContext(QUESTION, "The lazy <cls> dog.")]
    for prompt in prompts:
        for window in split(loaded, asked(prompt)).windows:
            # The text, the question and CLS have a type each, which Transformers 5 does not give by itself.
            assert (window.text_at, window.null_at) == (0, len(window.input_ids) - 1)
            assert window.input_ids[-1] == loaded.tokenizer.cls_token_id
            assert list(dict.fromkeys(window.token_type_ids)) == [0, 1, 2]
    single = [read(loaded, prompt)[0] for prompt in prompts]
    batch = read(loaded, *prompts, batch_size=8)
    assert [places(reading) for reading in batch] == [places(reading) for reading in single]
    assert [reading.no_answer for reading in batch] == pytest.approx([reading.no_answer for reading in single])


def test_a_beam_head_is_refused(load: Load) -> None:
    loaded = xlnet(load("bert"), "XLNetForQuestionAnswering")
    with pytest.raises(UsageError, match="XLNetForQuestionAnswering returns beams of answers"):
        read(loaded, QuestionContext(QUESTION, LONG))


def test_a_model_without_a_mask_reads_one_window_at_a_time(load: Load) -> None:
    bert = load("bert")
    config = transformers.FNetConfig(
        vocab_size=len(bert.tokenizer), hidden_size=16, num_hidden_layers=2, intermediate_size=32, type_vocab_size=2
    )
    torch.manual_seed(0)
    loaded = replace(bert, model=transformers.FNetForQuestionAnswering(config).eval())
    prompts = [QuestionContext(QUESTION, LONG), QuestionContext(QUESTION, "The lazy dog.")]
    batch = read(loaded, *prompts, batch_size=8)
    assert batch == [read(loaded, prompt, batch_size=1)[0] for prompt in prompts]
