"""What is read of Transformers' source is what its classes say."""

from __future__ import annotations

import pytest
import transformers
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name

from llmkit.models.tables import class_names
from llmkit.models.upstream import (
    has_offsets,
    lets_packed_examples_leak,
    needs_vocabulary,
    reads_setting,
    tokenizer_class,
    unused_positions,
)
from llmkit.tasks import Head

SERVED = sorted({model_type for head in Head for model_type in class_names(head)})
LENGTHS = ("max_position_embeddings", "n_positions")


def test_the_tokenizer_class_of_every_type() -> None:
    for model_type in SERVED:
        listed = TOKENIZER_MAPPING_NAMES.get(model_type)
        # Without sentencepiece it lists none for a few, and for others the class of any tokenizer.json.
        assert tokenizer_class(model_type) == listed or listed in (None, "TokenizersBackend"), model_type


def test_tokenizer_classes_have_offsets_if_they_are_of_the_library() -> None:
    names = {name for name in map(tokenizer_class, class_names(Head.SPAN)) if name}
    classes = {name: cls for name in names if (cls := tokenizer_class_from_name(name)) is not None}
    assert len(classes) > 20
    for name, cls in classes.items():
        assert has_offsets(name) is issubclass(cls, transformers.PreTrainedTokenizerFast), name
    assert has_offsets("ATokenizerOfItsOwn")


@pytest.mark.parametrize(
    ("name", "needed"),
    [("ByT5Tokenizer", False), ("CanineTokenizer", False), ("XLMTokenizer", True), ("T5Tokenizer", True)],
)
def test_some_tokenizers_need_no_vocabulary(name: str, needed: bool) -> None:
    assert needs_vocabulary(name) is needed


def test_positions_begin_after_the_padding_token_of_the_config_class() -> None:
    found = {model_type: unused_positions(model_type, {}) for model_type in SERVED}
    counted = {model_type: number for model_type, number in found.items() if number}
    assert {"roberta", "longformer", "ibert", "mpnet"} <= counted.keys()
    for model_type, number in counted.items():
        assert number == transformers.CONFIG_MAPPING[model_type]().pad_token_id + 1, model_type
    assert unused_positions("roberta", {"pad_token_id": 5}) == 6
    assert unused_positions("mpnet", {"pad_token_id": 5}) == 2
    assert not any(unused_positions(each, {"pad_token_id": 1}) for each in ("bert", "m2m_100", "of_its_own"))


def test_lengths_that_no_module_reads() -> None:
    unread = {model_type for model_type in SERVED if not reads_setting(model_type, LENGTHS)}
    assert {"t5", "bloom", "mamba", "xlnet", "jamba"} <= unread
    assert not unread & {"gpt2", "llama", "bert", "bart", "llava", "encoder-decoder", "of_its_own"}


def test_unknown_types_are_not_said_to_leak() -> None:
    assert not lets_packed_examples_leak("of_its_own")
