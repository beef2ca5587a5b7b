from __future__ import annotations

from typing import Any

import pytest

from llmkit.errors import CheckpointError, TaskMismatchError
from llmkit.models.resolve import resolve, tasks_for
from llmkit.models.tables import HEADS, class_names
from llmkit.tasks import Head

QA, GENERATION, SUMMARIES = "question-answering", "text-generation", "summarization"


def config(model_type: str, architecture: str | None = None, **settings: Any) -> dict[str, Any]:
    named = {"architectures": [architecture]} if architecture else {}
    return {"model_type": model_type, **named, **settings}


@pytest.mark.parametrize(
    ("task", "given", "head", "model_class"),
    [
        (SUMMARIES, config("gpt2", "GPT2LMHeadModel"), "causal", "GPT2LMHeadModel"),
        (GENERATION, config("gpt2", "GPT2Model"), "causal", "GPT2LMHeadModel"),
        (GENERATION, config("llama"), "causal", "LlamaForCausalLM"),
        (QA, config("llama", "LlamaForCausalLM"), "causal", "LlamaForCausalLM"),
        (QA, config("llama", "LlamaForQuestionAnswering"), "span", "LlamaForQuestionAnswering"),
        (SUMMARIES, config("t5", "T5ForConditionalGeneration", is_encoder_decoder=True), "seq2seq", "T5ForConditionalGeneration"),
        (QA, config("bart", "BartForQuestionAnswering", is_encoder_decoder=True), "span", "BartForQuestionAnswering"),
        (GENERATION, config("bart", "BartForCausalLM", is_decoder=True, is_encoder_decoder=False), "causal", "BartForCausalLM"),
        (GENERATION, config("bert", "BertLMHeadModel", is_decoder=True), "causal", "BertLMHeadModel"),
        (QA, config("bert", "BertForQuestionAnswering"), "span", "BertForQuestionAnswering"),
        (QA, config("flaubert", "FlaubertForQuestionAnsweringSimple"), "span", "FlaubertForQuestionAnsweringSimple"),
    ],
)  # fmt: skip
def test_head_and_class(task: str, given: dict[str, Any], head: str, model_class: str) -> None:
    resolution = resolve(task, given)
    assert (resolution.head, resolution.model_class) == (head, model_class)
    assert resolution.auto_class == HEADS[Head(head)].auto_class
    assert not resolution.new_head


@pytest.mark.parametrize("model_type", sorted(set(class_names(Head.CAUSAL)) & set(class_names(Head.SEQ2SEQ))))
def test_encoder_decoders_in_both_tables_are_seq2seq(model_type: str) -> None:
    for given in (config(model_type, is_encoder_decoder=True), config(model_type)):
        assert resolve(SUMMARIES, given).head is Head.SEQ2SEQ


@pytest.mark.parametrize(
    "model_type", ["bert", "roberta", "electra", "camembert", "xlm-roberta", "distilbert", "deberta-v2"]
)
def test_an_encoder_never_generates(model_type: str) -> None:
    given = config(model_type, "XForMaskedLM", is_decoder=False)
    with pytest.raises(
        TaskMismatchError, match="cannot do text-generation; after fine-tuning it fits question-answering"
    ):
        resolve(GENERATION, given)
    assert resolve(QA, given).new_head
    assert tasks_for(given) == [QA]
    assert tasks_for(given, trained=True) == []


@pytest.mark.parametrize("head", ["seq2seq", "span"])
def test_a_decoder_cannot_be_forced_into_another_class(head: str) -> None:
    given = config("qwen3" if head == "seq2seq" else "gemma3_text", "X")
    with pytest.raises(TaskMismatchError, match=r"cannot be loaded with the .* head; heads of .*: causal"):
        resolve(SUMMARIES if head == "seq2seq" else QA, given, head=head)


def test_gpt2_is_never_loaded_as_seq2seq() -> None:
    for task in ("text-generation", "summarization", "translation", "dialogue", "question-answering"):
        assert resolve(task, config("gpt2", "GPT2LMHeadModel")).auto_class == "AutoModelForCausalLM"
    with pytest.raises(TaskMismatchError, match="cannot be loaded with the seq2seq head"):
        resolve(SUMMARIES, config("gpt2", "GPT2LMHeadModel"), head="seq2seq")


def test_a_mismatch_names_what_fits_and_how_to_run_it() -> None:
    given = config("llama", "LlamaForQuestionAnswering")
    with pytest.raises(TaskMismatchError) as caught:
        resolve(GENERATION, given, model="my/model")
    assert str(caught.value) == (
        "my/model is LlamaForQuestionAnswering, an encoder that extracts answers from a text (span head); "
        "it cannot do text-generation; it fits question-answering; "
        'run: llmkit answer "QUESTION" --context FILE --model my/model'
    )


def test_a_model_without_text_heads() -> None:
    with pytest.raises(TaskMismatchError, match="no text head that llmkit supports; it cannot do text-generation"):
        resolve(GENERATION, config("vit", "ViTForImageClassification"))
    assert tasks_for(config("vit", "ViTForImageClassification")) == []


def test_a_classifier_would_need_a_new_head() -> None:
    assert resolve(GENERATION, config("llama", "LlamaForSequenceClassification")).new_head


def test_a_config_without_model_type() -> None:
    with pytest.raises(CheckpointError, match="has no model_type"):
        resolve(GENERATION, {"architectures": ["X"]}, model="m")


def test_remote_code_brings_its_own_head() -> None:
    given = {"model_type": "my_model", "auto_map": {"AutoModelForCausalLM": "modeling_mine.MyModel"}}
    resolution = resolve(GENERATION, given)
    assert (resolution.head, resolution.model_class) == (Head.CAUSAL, "MyModel")


def test_tables_agree_with_transformers() -> None:
    from transformers.models.auto import modeling_auto as auto

    for head, table in (
        (Head.CAUSAL, auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
        (Head.SEQ2SEQ, auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
        (Head.SPAN, auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES),
    ):
        assert class_names(head) == {key: name if isinstance(name, str) else name[0] for key, name in table.items()}
