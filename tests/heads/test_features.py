"""What is learned from a row: the prompt of inference, then the answer, and nothing else carries loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import llmkit
from llmkit.config.settings import LoadSettings, TaskSettings
from llmkit.engines.base import Request
from llmkit.engines.transformers import engine
from llmkit.engines.transformers.traits import traits_of
from llmkit.errors import InputError, UsageError
from llmkit.heads import head_of
from llmkit.heads.base import IGNORED, BaseHead, Features, LossOn
from llmkit.heads.end_tokens import turn_ends
from llmkit.heads.reasoning import reasoning_format
from llmkit.heads.span import SpanHead
from llmkit.heads.windows import split
from llmkit.models.load import Loaded, load_model
from llmkit.tasks import Example, Generation, Head, PromptOptions, QuestionContext, get_task
from llmkit.tasks.question_answering import AnswerSettings
from llmkit.tasks.translation import TranslationSettings
from tests import tiny
from tests.conftest import Checkpoint

ROWS: dict[str, dict[str, Any]] = {
    "text-generation": {"prompt": "The quick brown fox", "completion": " jumps over the dog."},
    "summarization": {"document": "The quick brown fox jumps. 今天天气很好，我们去公园散步。", "summary": "A fox."},
    "question-answering": {
        "question": "Who jumps?",
        "context": "The quick brown fox jumps over the lazy dog.",
        "answers": {"text": ["The quick brown fox"], "answer_start": [0]},
    },
    "dialogue": {
        "messages": [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "今天天气很好。"},
            {"role": "user", "content": "Why?"},
            {"role": "assistant", "content": "The lazy dog."},
        ]
    },
    "translation": {"source": "The quick brown fox.", "target": "Le renard brun."},
}
WIDE: dict[str, dict[str, int]] = {family: {"max_position_embeddings": 1024} for family in tiny.CAUSAL}
WIDE |= {"gpt2": {"n_positions": 1024}, "t5": {"n_positions": 512}, "mt5": {"n_positions": 512}}


def settings(task: str) -> TaskSettings | None:
    return TranslationSettings(source="en", target="fr") if task == "translation" else None


def learn(folder: Path, name: str, row: dict[str, Any], *, loss_on: LossOn = "target") -> tuple[Loaded, list[Features]]:
    loaded = load_model(LoadSettings(model=str(folder), offline=True), name, training=True, weights=False)
    task = get_task(name, settings(name))
    examples = task.examples(row, traits_of(loaded, task), PromptOptions())
    return loaded, head_of(loaded.head).features(loaded, examples, loss_on=loss_on)


def asked(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, row: dict[str, Any]) -> Any:
    """The ids that the model is given at inference for the row."""
    seen: list[Any] = []

    def generate(_loaded: Loaded, _head: BaseHead, requests: Sequence[Request], _cache: Any) -> list[Generation]:
        seen.extend(request.encoded for request in requests)
        return [Generation("fox", tokens=1) for _ in requests]

    monkeypatch.setattr(engine, "generate", generate)
    options: dict[str, Any] = {"source": "en", "target": "fr"} if name == "translation" else {}
    given = {**row, "messages": row["messages"][:-1]} if "messages" in row else row
    llmkit.load(name, str(folder), device="cpu", max_new_tokens=96, **options)(given)
    (encoded,) = seen
    return encoded


def learned(features: Features) -> list[int]:
    return [label for label in features.labels if label != IGNORED]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("family", tiny.CAUSAL + tiny.SEQ2SEQ)
@pytest.mark.parametrize("name", ROWS)
def test_what_is_learned_follows_what_is_asked(
    name: str, family: str, chat: bool, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    if chat and family not in ("llama", "gemma3", "t5"):
        pytest.skip("the template is the same for all families")
    folder, row = checkpoint(family, chat=chat, **WIDE.get(family, {})), ROWS[name]
    encoded = asked(monkeypatch, folder, name, row)
    loaded, features = learn(folder, name, row)
    last = features[-1]
    if loaded.head is Head.SEQ2SEQ:
        assert last.input_ids == encoded.input_ids
        begun = last.decoder_input_ids[: len(encoded.decoder_ids)]
        assert begun == encoded.decoder_ids
        if encoded.forced_bos_token_id is not None:
            assert learned(last)[0] == encoded.forced_bos_token_id
        assert last.decoder_input_ids[len(begun) :] == tuple(learned(last)[:-1])
    else:
        assert last.input_ids[: len(encoded.input_ids)] == encoded.input_ids
        assert set(last.labels[: len(encoded.input_ids)][-1:]) == {IGNORED}
        answer = last.input_ids[len(encoded.input_ids) :]
        assert answer == last.labels[len(encoded.input_ids) :]
    assert learned(last)[-1] in turn_ends(loaded)


@pytest.mark.parametrize("family", ["t5", "bart", "marian", "mt5", "pegasus", "mbart50", "m2m_100", "nllb"])
def test_answers_are_those_of_the_tokenizer_and_shifted_as_the_model_does(family: str, checkpoint: Checkpoint) -> None:
    import torch
    from transformers.models.m2m_100.modeling_m2m_100 import shift_tokens_right

    folder, row = checkpoint(family), ROWS["translation"]
    loaded, (features,) = learn(folder, "translation", row)
    tokenizer: Any = loaded.tokenizer
    if codes := {"mbart50": "fr_XX", "m2m_100": "fr", "nllb": "fra_Latn"}.get(family):
        tokenizer.tgt_lang = codes
    wanted = tokenizer(text_target=row["target"])["input_ids"]
    assert list(features.labels) == wanted
    model: Any = loaded.model
    if family in ("m2m_100", "nllb"):
        config = model.config
        shifted = shift_tokens_right(torch.tensor([wanted]), config.pad_token_id, config.decoder_start_token_id)
    else:
        shifted = model.prepare_decoder_input_ids_from_labels(torch.tensor([wanted]))
    assert list(features.decoder_input_ids) == shifted[0].tolist()


def test_a_conversation_is_one_sequence_and_only_replies_carry_loss(checkpoint: Checkpoint) -> None:
    loaded, (features,) = learn(checkpoint("llama", chat=True, **WIDE["llama"]), "dialogue", ROWS["dialogue"])
    text = str(loaded.tokenizer.decode(learned(features)))
    assert "今天天气很好。" in text
    assert "The lazy dog." in text
    assert "Hello" not in text
    assert "Why" not in text


_TURN = "<|{{ m.role }}|>{{ m.content.split('</think>')[-1] }}{{ eos_token }}"
_THINKS = "{% if m.role == 'assistant' and loop.last %}<|assistant|>OPEN{{ m.content }}{{ eos_token }}{% else %}"
THINKING = {
    # By generation prompt, and by what is written before the last reply.
    "R1": ("<|assistant|><think>\n", ""),
    "Qwen3 Thinking": ("<|assistant|><think>\n", "<think>\n\n</think>\n\n"),
    "Qwen3": ("<|assistant|>", "<think>\n\n</think>\n\n"),
    "GLM": ("<|assistant|><think>", "<think></think>\n"),
    "EXAONE Deep": ("<|assistant|><thought>\n", ""),
    "V3.1": ("<|assistant|></think>", "</think>"),
    "gpt-oss": ("<|assistant|>", "<|channel|>final<|message|>"),
}


@pytest.mark.parametrize("name", THINKING)
@pytest.mark.parametrize("reasoning", ["", "Hm."])
def test_a_reply_is_learned_so_that_it_is_found_again(name: str, reasoning: str, checkpoint: Checkpoint) -> None:
    begin, opening = THINKING[name]
    tags = ("<thought>", "</thought>") if name == "EXAONE Deep" else ("<think>", "</think>")
    if name in ("V3.1", "gpt-oss") and reasoning:
        pytest.skip("the prompt has closed the block, or it has other marks")
    loaded = load_model(LoadSettings(model=str(checkpoint("qwen3")), offline=True), "dialogue", weights=False)
    tokenizer: Any = loaded.tokenizer
    tokenizer.chat_template = (
        f"{{% for m in messages %}}{_THINKS.replace('OPEN', opening)}{_TURN}{{% endif %}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{begin}{{% endif %}}"
    )
    if name == "gpt-oss":
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|channel|>", "<|message|>", "<|end|>"]})
    content = f"{tags[0]}\n{reasoning}\n{tags[1]}\n\njumps over" if reasoning else "jumps over"
    row = {"messages": [{"role": "user", "content": "The fox"}, {"role": "assistant", "content": content}]}
    task = get_task("dialogue")
    (example,) = task.examples(row, traits_of(loaded, task), PromptOptions())
    head = head_of(loaded.head)
    (features,) = head.features(loaded, [example], loss_on="target")
    assert example.prompt is not None
    prompt = head.encode(loaded, example.prompt).input_ids
    assert features.input_ids[: len(prompt)] == prompt
    reply = tokenizer.decode(learned(features)[:-1])
    assert learned(features)[-1] in turn_ends(loaded)
    whole = tokenizer.decode(features.input_ids)
    assert max(whole.count(tags[0]), whole.count(tags[1])) == (1 if reasoning or begin != "<|assistant|>" else 0)
    found = reasoning_format(tokenizer).splitter(tokenizer.decode(prompt))
    assert (found.push(reply) + found.flush(), found.reasoning.strip()) == ("jumps over", reasoning)
    (answer,) = head.features(loaded, [example], loss_on="answer")
    assert answer.input_ids == features.input_ids
    assert tokenizer.decode(learned(answer)[:-1]) == "jumps over"
    assert learned(answer)[-1] in turn_ends(loaded)


@pytest.mark.parametrize("reasoning", ["", "想一想，\n😀"])
@pytest.mark.parametrize("answer", ["天气很好。", "<answer>", "<answer>好</answer>", "想一想", ""])
def test_loss_on_the_answer_without_its_reasoning(reasoning: str, answer: str, checkpoint: Checkpoint) -> None:
    loaded = load_model(LoadSettings(model=str(checkpoint("qwen3")), offline=True), "dialogue", weights=False)
    tokenizer: Any = loaded.tokenizer
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n"
        "</think>\n\n{% endif %}{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    messages = [
        {"role": "user", "content": "天气？"},
        {"role": "assistant", "content": answer, "reasoning_content": reasoning},
    ]
    task = get_task("dialogue")
    examples = task.examples({"messages": messages}, traits_of(loaded, task), PromptOptions())
    choices: tuple[LossOn, ...] = ("target", "answer")
    texts = {
        loss_on: tokenizer.decode(learned(features)).removesuffix(tokenizer.eos_token)
        for loss_on in choices
        for features in head_of(loaded.head).features(loaded, examples, loss_on=loss_on)
    }
    block = f"<think>\n{reasoning}\n</think>\n\n" if reasoning else ""
    assert texts == ({"target": block + answer, "answer": answer} if block + answer else {})


def test_without_a_template_each_reply_is_an_example(checkpoint: Checkpoint) -> None:
    _, features = learn(checkpoint("gpt2", n_positions=1024), "dialogue", ROWS["dialogue"])
    assert len(features) == 2


def test_a_prompt_that_ends_inside_a_token_keeps_its_ids(checkpoint: Checkpoint) -> None:
    folder = checkpoint("gpt2", n_positions=1024)
    tokenizer: Any = load_model(LoadSettings(model=str(folder), offline=True), "generate", weights=False).tokenizer
    word = next(token for token in sorted(tokenizer.get_vocab()) if token.isascii() and token.isalpha() and token[1:])
    assert len(tokenizer(word)["input_ids"]) == 1
    _, (features,) = learn(folder, "text-generation", {"prompt": word[0], "completion": word[1:]})
    prompt = tokenizer(word[0])["input_ids"]
    assert list(features.input_ids[: len(prompt)]) == prompt
    assert tokenizer.decode(learned(features)[:-1]) == word[1:]


@pytest.mark.parametrize("family", tiny.CAUSAL)
def test_plain_text_is_learned_whole_and_ends(family: str, checkpoint: Checkpoint) -> None:
    loaded, (features,) = learn(checkpoint(family), "text-generation", {"text": "The quick brown fox."})
    assert features.labels == features.input_ids
    assert features.labels[-1] in turn_ends(loaded)
    assert features.labels.count(features.labels[-1]) == 1


def test_loss_on_the_prompt_too(checkpoint: Checkpoint) -> None:
    _, (features,) = learn(checkpoint("llama"), "text-generation", ROWS["text-generation"], loss_on="all")
    assert features.labels == features.input_ids
    with pytest.raises(UsageError, match="no effect"):
        learn(checkpoint("t5"), "text-generation", ROWS["text-generation"], loss_on="all")


def test_chinese_joins_without_a_space(checkpoint: Checkpoint) -> None:
    row = {"document": "今天天气很好。", "summary": "天气很好。"}
    loaded, (features,) = learn(checkpoint("gpt2"), "summarization", row)
    assert str(loaded.tokenizer.decode(learned(features))).startswith("天气")  # after a Chinese prompt
    task = get_task("dialogue")
    assert task.separator("助手：", "好") == ""
    assert task.separator("Antwort:", "gut") == " "


@pytest.mark.parametrize("family", tiny.SPAN)
@pytest.mark.parametrize(
    ("context", "answer"),
    [("The quick brown fox jumps over the lazy dog.", "brown fox"), ("今天天气很好，我们去公园散步。", "公园")],
)
def test_the_labelled_tokens_are_the_answer(family: str, context: str, answer: str, checkpoint: Checkpoint) -> None:
    loaded = load_model(LoadSettings(model=str(checkpoint(family)), offline=True), "answer", weights=False)
    long = f"{context} " * 8
    start = long.rindex(answer)
    prompt = QuestionContext("Who?", long, AnswerSettings(max_seq_len=48, doc_stride=8))
    example = Example(prompt, answer, ((start, start + len(answer)),))
    windows = SpanHead().features(loaded, [example], loss_on="target")
    document = split(loaded, prompt)
    assert [each.input_ids for each in windows] == [window.input_ids for window in document.windows]
    found = 0
    for each, window in zip(windows, document.windows, strict=True):
        (first,), (last,) = each.start_positions, each.end_positions
        if last == window.null_at:
            continue
        first, last = (place - window.text_at + window.begin for place in (first, last))
        begin, end = document.chars[first][0], document.chars[last][1]
        assert begin <= start < start + len(answer) <= end
        found += 1
    assert found


def test_all_answers_of_a_window_are_learned(checkpoint: Checkpoint) -> None:
    loaded = load_model(LoadSettings(model=str(checkpoint("bert")), offline=True), "answer", weights=False)
    task = get_task("question-answering", AnswerSettings(max_seq_len=64, doc_stride=8))
    context = "In 1997, that is late, the fox slept. " + "The quick brown fox jumps. " * 30 + "It was 1997."
    texts, starts = ["1997", "In 1997", "1997", "late", "1997"], [3, 0, 3, 0, len(context) - 5]
    row = {"question": "When?", "context": context, "answers": {"text": texts, "answer_start": starts}}
    (example,) = task.examples(row, traits_of(loaded, task), PromptOptions())
    # Each place once; a place where the answer does not stand is left out as long as there are others.
    assert example.spans == ((3, 7), (0, 7), (len(context) - 5, len(context) - 1))
    first, *between, last = SpanHead().features(loaded, [example], loss_on="target")
    assert len(first.start_positions) == 2
    assert len(set(first.end_positions)) == 1
    assert len(last.start_positions) == 1
    assert all(each.start_positions == each.end_positions == (0,) for each in between)


def test_no_answer_is_the_null_position_in_every_window(checkpoint: Checkpoint) -> None:
    loaded = load_model(LoadSettings(model=str(checkpoint("bert")), offline=True), "answer", weights=False)
    task = get_task("question-answering", AnswerSettings(max_seq_len=48, doc_stride=8))
    row = {"question": "Who?", "context": "The quick brown fox. " * 20, "answers": {"text": [], "answer_start": []}}
    (example,) = task.examples(row, traits_of(loaded, task), PromptOptions())
    windows = SpanHead().features(loaded, [example], loss_on="target")
    assert len(windows) > 1
    assert {(each.start_positions, each.end_positions) for each in windows} == {((0,), (0,))}


def test_an_answer_is_found_where_its_place_is_wrong_and_refused_where_it_is_nowhere(checkpoint: Checkpoint) -> None:
    loaded = load_model(LoadSettings(model=str(checkpoint("bert")), offline=True), "answer", weights=False)
    task = get_task("question-answering")
    traits = traits_of(loaded, task)
    row = {"question": "Who?", "context": "The quick brown fox."}
    for place in (3, -1, -4, None):
        answers = {"text": ["fox"], "answer_start": [place]}
        (example,) = task.examples({**row, "answers": answers}, traits, PromptOptions())
        assert example.spans == ((16, 19),)
    with pytest.raises(InputError, match="does not occur in the context"):
        task.examples({**row, "answers": {"text": ["cat"], "answer_start": [3]}}, traits, PromptOptions())


def test_windows_of_a_question_have_the_answer_or_none(checkpoint: Checkpoint) -> None:
    task: Any = get_task("question-answering")
    context = "The quick brown fox jumps. " * 30 + "The lazy dog sleeps. " + "The quick brown fox jumps. " * 30
    place = context.index("The lazy")
    for starts in ([], [place], [3], [None], [place - len(context)]):
        answers = {"text": ["The lazy dog"], "answer_start": starts}
        row = {"question": "Who sleeps?", "context": context, "answers": answers}
        parts = task.parts(row, 60, lambda text: len(text.split()))
        assert len(parts) > 2
        for part in parts:
            assert part["answers"]["text"] == (["The lazy dog"] if "The lazy dog sleeps" in part["context"] else [])
        assert sum(bool(part["answers"]["text"]) for part in parts) >= 1
