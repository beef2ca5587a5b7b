"""The tiny checkpoints are what they claim to be: other tests rest on that."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from tests import tiny
from tests.conftest import Checkpoint

LANGUAGES = {
    "mbart": ("en_XX", "fr_XX"),
    "mbart50": ("en_XX", "fr_XX"),
    "m2m_100": ("__en__", "__fr__"),
    "nllb": ("eng_Latn", "fra_Latn"),
}
START = {
    **dict.fromkeys(("t5", "mt5", "marian", "pegasus"), "pad"),
    **dict.fromkeys(("bart", "mbart50", "m2m_100", "nllb"), "eos"),
    "mbart": "no",
}


@pytest.mark.parametrize("name", sorted({name for _, name, _ in tiny.FAMILIES.values()}))
def test_a_tokenizer_is_the_same_each_time_and_after_loading(name: str, tmp_path: Path) -> None:
    first, second = (tiny.train_tokenizer(name, tmp_path / folder) for folder in ("first", "second"))
    first.save_pretrained(tmp_path / "saved")
    loaded = type(first).from_pretrained(tmp_path / "saved")
    for other in (second, loaded):
        assert other.get_vocab() == first.get_vocab()
        assert other.special_tokens_map == first.special_tokens_map
        assert [other(text).input_ids for text in tiny.SENTENCES] == [first(text).input_ids for text in tiny.SENTENCES]
    unknown = None if first.unk_token_id == first.eos_token_id else first.unk_token_id
    assert not any(unknown in first(text).input_ids for text in tiny.SENTENCES)


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_tokenizer_and_model_agree(family: str, checkpoint: Checkpoint) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint(family))
    config = transformers.AutoConfig.from_pretrained(checkpoint(family))
    assert len(tokenizer) == config.vocab_size
    assert config.pad_token_id in (None, tokenizer.pad_token_id)
    if family not in tiny.SPAN:
        assert config.eos_token_id == tokenizer.eos_token_id
    if family in tiny.SEQ2SEQ:
        assert config.decoder_start_token_id == getattr(tokenizer, f"{START[family]}_token_id", None)


@pytest.mark.parametrize("family", list(LANGUAGES))
def test_language_tokens_are_special_and_decide_the_text(family: str, checkpoint: Checkpoint) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint(family))
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(checkpoint(family))
    ids = [tokenizer.convert_tokens_to_ids(token) for token in LANGUAGES[family]]
    assert tokenizer.unk_token_id not in ids
    assert set(ids) <= set(tokenizer.all_special_ids)
    argument = "decoder_start_token_id" if family == "mbart" else "forced_bos_token_id"
    texts = set()
    for language in ids:
        rows = model.generate(
            **tokenizer(tiny.SENTENCES, padding=True, return_tensors="pt"),
            max_new_tokens=12,
            do_sample=False,
            **{argument: language},
        )
        texts.add(tuple(tokenizer.batch_decode(rows, skip_special_tokens=True)))
    assert len(texts) == 2
