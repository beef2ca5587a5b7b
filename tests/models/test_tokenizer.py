"""A tokenizer cuts and joins texts as its file says, not as the class of version 5 would."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import llmkit
from llmkit.errors import CheckpointError
from llmkit.models.tokenizer import load_tokenizer
from tests.tiny import SENTENCES, build
from tests.zoo.tokenizers import make_tokenizer

TEXT, OTHER = "Ｆｕｌｌ　ｗｉｄｔｈ, the fox.", "今天天气很好。 numbers 12345"


def saved(model_type: str, folder: Path, **changed: Any) -> Path:
    """A tokenizer's folder, some parts of whose tokenizer.json are as version 4 wrote them."""
    make_tokenizer(model_type, folder / "training").save_pretrained(folder)
    file = folder / "tokenizer.json"
    written = json.loads(file.read_text(encoding="utf-8")) | changed
    file.write_text(json.dumps(written, ensure_ascii=False, indent=2), encoding="utf-8")
    return folder


def one_separator(cls: str, sep: str, ids: tuple[int, int]) -> dict[str, Any]:
    first, end = ({"SpecialToken": {"id": token, "type_id": 0}} for token in (cls, sep))
    a, b = ({"Sequence": {"id": name, "type_id": place}} for place, name in enumerate("AB"))
    last = {"SpecialToken": {"id": sep, "type_id": 1}}
    tokens = {
        token: {"id": token, "ids": [place], "tokens": [token]} for token, place in zip((cls, sep), ids, strict=True)
    }
    return {
        "type": "TemplateProcessing",
        "single": [first, a, end],
        "pair": [first, a, end, b, last],
        "special_tokens": tokens,
    }


def test_a_pair_is_joined_as_the_file_says(tmp_path: Path) -> None:
    made = make_tokenizer("deberta", tmp_path / "training")
    ids = (made.cls_token_id, made.sep_token_id)
    folder = saved("deberta", tmp_path, post_processor=one_separator(made.cls_token, made.sep_token, ids))
    found = load_tokenizer(folder)(TEXT, OTHER)
    expected = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT, OTHER)
    assert found["input_ids"] == expected.ids
    assert found["input_ids"].count(made.sep_token_id) == 2
    assert found["token_type_ids"] == expected.type_ids


@pytest.mark.parametrize("model_type", ["mbart", "xlm-roberta", "t5"])
def test_a_text_is_cut_as_the_file_says(model_type: str, tmp_path: Path) -> None:
    folder = saved(model_type, tmp_path, normalizer={"type": "NFKC"})
    expected = Tokenizer.from_file(str(folder / "tokenizer.json"))
    loaded: Any = load_tokenizer(folder)
    assert loaded(TEXT, add_special_tokens=False)["input_ids"] == expected.encode(TEXT, add_special_tokens=False).ids
    loaded.save_pretrained(tmp_path / "again")
    again: Any = load_tokenizer(tmp_path / "again")
    assert again(TEXT)["input_ids"] == loaded(TEXT)["input_ids"]


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("indent", [2, None])
def test_the_vocabulary_may_stand_anywhere_in_the_file(first: bool, indent: int | None, tmp_path: Path) -> None:
    folder = saved("mbart", tmp_path, normalizer={"type": "NFKC"})
    file = folder / "tokenizer.json"
    parts = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(
        json.dumps({"model": parts.pop("model"), **parts} if first else parts, indent=indent), encoding="utf-8"
    )
    loaded: Any = load_tokenizer(folder)
    assert str(loaded.backend_tokenizer.normalizer).startswith("NFKC")


def test_settings_of_the_tokenizer_count_over_the_file(tmp_path: Path) -> None:
    loaded: Any = load_tokenizer(saved("llama", tmp_path), add_bos_token=True, add_eos_token=True)
    ids = loaded(TEXT)["input_ids"]
    assert (ids[0], ids[-1]) == (loaded.bos_token_id, loaded.eos_token_id)


def test_models_are_loaded_with_it(tmp_path: Path) -> None:
    folder = build("mbart", tmp_path / "model")
    file = folder / "tokenizer.json"
    parts = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(parts | {"normalizer": {"type": "NFKC"}}), encoding="utf-8")
    loaded: Any = llmkit.load("translation", str(folder), offline=True, device="cpu").loaded.tokenizer
    assert loaded("Ｆｏｘ")["input_ids"] == loaded("Fox")["input_ids"]


# Files of other programs: tokenizer.json by the library tokenizers, tokenizer_config.json by hand or by version 4.

TEXTS = [*SENTENCES, "<think>\nOkay, 2023", "  two  spaces\n\n ", "A<think>b <|end|> c", "unseen ꙮ É"]
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
NUMBERS = pre_tokenizers.Split(Regex(r"\d{1,3}| ?[^\s\d]+|\s"), "isolated")


def trained(model: Any, pre_tokenizer: Any, decoder: Any, trainer: Any, normalizer: Any = None) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizer, pre_tokenizer, decoder
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False), AddedToken("<|end|>", special=True)])
    return tokenizer


def byte_level(*before: Any, prefix: bool = False) -> Tokenizer:
    cut = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=not before)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    steps = pre_tokenizers.Sequence([*before, cut]) if before else cut
    return trained(models.BPE(), steps, decoders.ByteLevel(), trainer)


def llama_like() -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=450, special_tokens=[*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))], show_progress=False
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    model = models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    return trained(model, pre_tokenizers.Metaspace(prepend_scheme="first"), decoders.Sequence(steps), trainer)


def unigram() -> Tokenizer:
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False, n_sub_iterations=1
    )
    return trained(models.Unigram(), pre_tokenizers.Metaspace(), decoders.Metaspace(), trainer, normalizers.NFKC())


def word_piece(**normalizer: Any) -> Tokenizer:
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    return trained(
        models.WordPiece(unk_token="<unk>"),
        pre_tokenizers.BertPreTokenizer(),
        decoders.WordPiece(),
        trainer,
        normalizers.BertNormalizer(**normalizer),
    )


def published(folder: Path, file: Tokenizer, tokenizer_class: str, **config: Any) -> Any:
    folder.mkdir(exist_ok=True)
    file.save(str(folder / "tokenizer.json"))
    config = {**TOKENS, "tokenizer_class": tokenizer_class, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return load_tokenizer(folder)


BACKENDS: dict[str, Callable[[], Tokenizer]] = {
    "numbers": lambda: byte_level(NUMBERS),
    "llama": llama_like,
    "unigram": unigram,
    "words": lambda: trained(
        models.WordLevel(unk_token="<unk>"),
        pre_tokenizers.Whitespace(),
        None,
        trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False),
    ),
}


@pytest.mark.parametrize(
    ("tokenizer_class", "kind"),
    [
        ("GPT2Tokenizer", "numbers"),  # OLMo 2, Phi-4, Granite
        ("LlamaTokenizerFast", "numbers"),  # DeepSeek
        ("Qwen2Tokenizer", "numbers"),
        ("RobertaTokenizerFast", "numbers"),
        ("T5Tokenizer", "numbers"),
        ("AlbertTokenizer", "numbers"),
        ("GPTNeoXTokenizerFast", "llama"),
        ("CodeGenTokenizer", "llama"),
        ("PreTrainedTokenizerFast", "llama"),
        ("LlamaTokenizer", "unigram"),
        ("PegasusTokenizer", "unigram"),
        ("XLMRobertaTokenizer", "unigram"),
        ("BertTokenizer", "unigram"),
        ("GPT2Tokenizer", "words"),
    ],
)
def test_the_file_counts_for_every_class(tokenizer_class: str, kind: str, tmp_path: Path) -> None:
    loaded = published(tmp_path, BACKENDS[kind](), tokenizer_class)
    expected = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in TEXTS:
        ids = expected.encode(text, add_special_tokens=False).ids
        assert loaded(text, add_special_tokens=False)["input_ids"] == ids
        assert loaded.decode(ids) == expected.decode(ids, skip_special_tokens=False)
    assert loaded.convert_tokens_to_ids(list(TOKENS.values())) == [1, 2, 0, 3]


def test_options_of_the_model_in_the_file_count(tmp_path: Path) -> None:
    content = json.loads(byte_level(NUMBERS).to_str())
    content["model"] |= {"ignore_merges": True, "vocab": content["model"]["vocab"] | {"Ġquickly": 402}}
    loaded = published(tmp_path, Tokenizer.from_str(json.dumps(content)), "GPT2Tokenizer")
    assert loaded(" quickly")["input_ids"] == [402]  # no merge makes it


@pytest.mark.parametrize("name", ["additional_special_tokens", "extra_special_tokens"])
@pytest.mark.parametrize("tokenizer_class", ["GPT2Tokenizer", "PreTrainedTokenizerFast"])
def test_special_tokens_may_be_listed_with_their_properties(name: str, tokenizer_class: str, tmp_path: Path) -> None:
    properties = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    tokens = [{"content": "<|end|>", "special": True, **properties}, {"content": "<|new|>", **properties}]
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({**TOKENS, name: tokens}), encoding="utf-8")
    loaded = published(tmp_path, byte_level(NUMBERS), tokenizer_class)
    ids = loaded("a<|end|><|new|>")["input_ids"]
    assert ids[-2:] == loaded.convert_tokens_to_ids(["<|end|>", "<|new|>"])
    assert loaded.decode(ids, skip_special_tokens=True) == "a"


def test_a_folder_without_a_class_has_that_of_its_model_type(tmp_path: Path) -> None:
    backend = llama_like()
    published(tmp_path, backend, "")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(TOKENS), encoding="utf-8")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}), encoding="utf-8")
    loaded: Any = load_tokenizer(tmp_path)
    assert loaded(TEXT)["input_ids"] == [1, *backend.encode(TEXT).ids]


def sentencepiece(folder: Path, name: str, used_by: str, **options: Any) -> Path:
    """A folder that only a slow tokenizer of version 4 has saved, or a person has copied."""
    import sentencepiece as spm

    with (folder / name).open("wb") as file:
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES * 4), model_writer=file, hard_vocab_limit=False, minloglevel=2, **options
        )
    (folder / "config.json").write_text(json.dumps({"model_type": used_by}), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("config", "legacy"),
    [
        ({}, True),
        ({"tokenizer_class": "LlamaTokenizer"}, True),
        ({"tokenizer_class": "LlamaTokenizer", "legacy": False}, False),
    ],
)
def test_a_llama_vocabulary_alone_cuts_as_under_version_4(config: dict[str, Any], legacy: bool, tmp_path: Path) -> None:
    folder = sentencepiece(tmp_path, "tokenizer.model", "llama", model_type="bpe", byte_fallback=True, vocab_size=420)
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    loaded: Any = load_tokenizer(folder)
    # Vicuna's turns follow each other without a blank: version 4 read one after each end.
    first, end, word, *_ = loaded.convert_ids_to_tokens(loaded("</s>dog")["input_ids"])
    assert (first, end, word.startswith("▁")) == ("<s>", "</s>", legacy)
    ids = loaded("The fox\n")["input_ids"]
    assert ids[0] == loaded.bos_token_id
    assert loaded.decode(ids[1:]) == "The fox\n"


GEMMA = {
    "pad_id": 0,
    "eos_id": 1,
    "bos_id": 2,
    "unk_id": 3,
    "byte_fallback": True,
    "vocab_size": 420,
    "add_dummy_prefix": False,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
}


@pytest.mark.parametrize(
    ("tokenizer_class", "name", "kind", "options"),
    [
        ("AlbertTokenizer", "spiece.model", "unigram", {"control_symbols": "[CLS],[SEP]"}),
        ("BigBirdTokenizer", "spiece.model", "bpe", {"control_symbols": "[CLS],[SEP]"}),
        ("DebertaV2Tokenizer", "spm.model", "unigram", {"control_symbols": "[CLS],[SEP]"}),
        ("GemmaTokenizer", "tokenizer.model", "bpe", GEMMA),
        ("MBartTokenizer", "sentencepiece.bpe.model", "unigram", {}),
        ("MBart50Tokenizer", "sentencepiece.bpe.model", "unigram", {}),
        ("NllbTokenizer", "sentencepiece.bpe.model", "bpe", {}),
        ("NllbTokenizer", "sentencepiece.bpe.model", "unigram", {}),
        ("PegasusTokenizer", "spiece.model", "unigram", {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}),
        ("RemBertTokenizer", "sentencepiece.model", "unigram", {"control_symbols": "[CLS],[SEP]"}),
        ("T5Tokenizer", "spiece.model", "unigram", {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}),
        ("XGLMTokenizer", "sentencepiece.bpe.model", "unigram", {}),
        ("XLMRobertaTokenizer", "sentencepiece.bpe.model", "unigram", {}),
    ],
)
def test_a_sentencepiece_model_alone_cuts_as_it_was_trained(
    tokenizer_class: str, name: str, kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    import sentencepiece as spm

    folder = sentencepiece(tmp_path, name, "", model_type=kind, **{"vocab_size": 200, **options})
    lower = {"do_lower_case": False, "keep_accents": True}
    config = {"tokenizer_class": tokenizer_class, **lower}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    loaded: Any = load_tokenizer(folder)
    model = spm.SentencePieceProcessor(model_file=str(folder / name))
    for text in [*SENTENCES, "Ｔｈｅ ﬁne fox"]:
        tokens = model.encode(text, out_type=str)
        known = [token if model.piece_to_id(token) != model.unk_id() else loaded.unk_token for token in tokens]
        assert loaded.tokenize(text) == known


def byte_pairs(folder: Path, tokenizer_class: str, tokens: dict[str, str]) -> Any:
    """A tokenizer of vocab.json and merges.txt, its special tokens in added_tokens.json."""
    byte_level(NUMBERS).model.save(str(folder))
    size = len(json.loads((folder / "vocab.json").read_text(encoding="utf-8")))
    added = {token: size + place for place, token in enumerate(tokens.values())}
    (folder / "added_tokens.json").write_text(json.dumps(added), encoding="utf-8")
    config = {"tokenizer_class": tokenizer_class, **tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return load_tokenizer(folder)


@pytest.mark.parametrize(
    ("tokenizer_class", "first", "pair"),
    [
        ("DebertaTokenizer", "[CLS] ? [SEP]", "[CLS] ? [SEP] ? [SEP]"),
        ("RobertaTokenizer", "[CLS] ? [SEP]", "[CLS] ? [SEP] [SEP] ? [SEP]"),
        ("BlenderbotTokenizer", "? [EOS]", None),
    ],
)
def test_merges_alone_are_framed_as_under_version_4(
    tokenizer_class: str, first: str, pair: str | None, tmp_path: Path
) -> None:
    named = {"cls_token": "[CLS]", "sep_token": "[SEP]", "eos_token": "[EOS]", "unk_token": "[UNK]"}
    loaded = byte_pairs(tmp_path, tokenizer_class, named)
    assert " ".join(loaded.convert_ids_to_tokens(loaded("?")["input_ids"])) == first
    if pair is not None:
        assert " ".join(loaded.convert_ids_to_tokens(loaded("?", "?")["input_ids"])) == pair


@pytest.mark.parametrize("files", [{}, {"added_tokens.json": {"</s>": 2, "<|im_end|>": 500}}])
def test_a_llama_without_names_for_its_tokens_has_those_of_its_vocabulary(
    files: dict[str, dict[str, int]], tmp_path: Path
) -> None:
    folder = sentencepiece(tmp_path, "tokenizer.model", "llama", model_type="bpe", byte_fallback=True, vocab_size=420)
    empty = {"bos_token": "", "eos_token": "", "unk_token": "", "tokenizer_class": "LLaMATokenizer"}  # LLaMA 1
    for name, content in {"tokenizer_config.json": empty, **files}.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    loaded: Any = load_tokenizer(folder)
    ids = loaded("The fox</s>")["input_ids"]
    assert (ids[0], ids[-1]) == (1, 2) == (loaded.bos_token_id, loaded.eos_token_id)
    assert loaded.decode(ids, skip_special_tokens=True) == "The fox"


def test_a_class_that_version_5_removed_is_that_of_the_model_type(tmp_path: Path) -> None:
    folder = sentencepiece(tmp_path, "spiece.model", "mt5", vocab_size=120, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "MT5Tokenizer"}', encoding="utf-8")
    loaded: Any = load_tokenizer(folder)
    assert loaded.decode(loaded("The quick brown fox")["input_ids"]) == "The quick brown fox</s>"


def test_truncation_and_padding_in_the_file_change_no_text(tmp_path: Path) -> None:
    backend = byte_level(NUMBERS)
    whole = backend.encode(TEXT).ids
    backend.enable_truncation(4)
    backend.enable_padding(length=50, pad_id=3, pad_token="<pad>", direction="left")
    loaded = published(tmp_path, backend, "GPT2Tokenizer")
    assert loaded(TEXT)["input_ids"] == whole
    assert loaded.padding_side == "left"


@pytest.mark.parametrize(
    ("tokenizer_class", "config", "begins", "ends"),
    [
        ("LlamaTokenizerFast", {}, True, False),
        ("LlamaTokenizer", {"add_bos_token": False, "add_eos_token": True}, False, True),
        ("GemmaTokenizer", {}, True, False),
        ("GPTNeoXTokenizer", {}, False, False),
        ("GPTNeoXTokenizer", {"add_bos_token": True}, True, False),
        ("GPT2Tokenizer", {"add_bos_token": True}, False, False),
        ("PreTrainedTokenizerFast", {"add_bos_token": True, "add_eos_token": True}, False, False),
    ],
)
def test_first_and_last_token_are_those_of_version_4(
    tokenizer_class: str, config: dict[str, bool], begins: bool, ends: bool, tmp_path: Path
) -> None:
    loaded = published(tmp_path, byte_level(NUMBERS), tokenizer_class, **config)
    bare = loaded(TEXT, add_special_tokens=False)["input_ids"]
    assert loaded(TEXT)["input_ids"] == [1] * begins + bare + [2] * ends


def test_a_file_of_version_5_counts_as_it_is(tmp_path: Path) -> None:
    backend = byte_level(NUMBERS)
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    loaded = published(tmp_path, backend, "LlamaTokenizer", backend="tokenizers", add_bos_token=True)
    assert loaded(TEXT)["input_ids"] == backend.encode(TEXT).ids


@pytest.mark.parametrize("tokenizer_class", ["GPT2Tokenizer", "PreTrainedTokenizerFast", "RobertaTokenizer"])
@pytest.mark.parametrize(("config", "first"), [({}, "fox"), ({"add_prefix_space": True}, " fox")])
def test_the_space_before_a_text_is_that_of_version_4(
    tokenizer_class: str, config: dict[str, bool], first: str, tmp_path: Path
) -> None:
    loaded = published(tmp_path, byte_level(prefix=True), tokenizer_class, **config)
    assert loaded.decode(loaded("fox", add_special_tokens=False)["input_ids"]) == first


@pytest.mark.parametrize("tokenizer_class", ["BertTokenizer", "DistilBertTokenizer", "ElectraTokenizerFast"])
@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, ["cafe", "好", "公"]),
        ({"do_lower_case": False}, ["Café", "好", "公"]),
        ({"strip_accents": False}, ["café", "好", "公"]),
        ({"tokenize_chinese_chars": False}, ["cafe", "好公"]),
    ],
)
def test_case_accents_and_chinese_are_those_of_version_4(
    tokenizer_class: str, config: dict[str, bool], words: list[str], tmp_path: Path
) -> None:
    loaded = published(tmp_path, word_piece(lowercase=False), tokenizer_class, **config)
    backend = loaded.backend_tokenizer
    normalized = backend.normalizer.normalize_str("Café 好公")
    assert [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normalized)] == words


def test_a_normalizer_of_its_own_counts_for_bert_too(tmp_path: Path) -> None:
    backend = word_piece()
    backend.normalizer = normalizers.Sequence([normalizers.NFKC()])
    loaded = published(tmp_path, backend, "BertTokenizer", do_lower_case=True)
    assert loaded(SENTENCES[0])["input_ids"] == backend.encode(SENTENCES[0]).ids


@pytest.mark.parametrize("tokenizer_class", ["RobertaTokenizer", "BartTokenizerFast"])
def test_places_are_without_the_space_before_a_word(tokenizer_class: str, tmp_path: Path) -> None:
    backend = byte_level()
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1), trim_offsets=False)
    loaded = published(tmp_path, backend, tokenizer_class)
    begins = [start for start, end in loaded("a b c", return_offsets_mapping=True)["offset_mapping"] if end > start]
    assert begins == [0, 2, 4]


def test_an_adapter_with_a_tokenizer_cuts_as_its_base(tmp_path: Path) -> None:
    base = published(tmp_path / "base", byte_level(NUMBERS), "GPT2Tokenizer")
    (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": "phi3"}), encoding="utf-8")
    base = load_tokenizer(tmp_path / "base")
    adapter = published(tmp_path / "adapter", byte_level(NUMBERS), "GPT2Tokenizer")
    assert [base(text)["input_ids"] for text in TEXTS] == [adapter(text)["input_ids"] for text in TEXTS]


def test_a_folder_without_the_vocabulary_is_refused(tmp_path: Path) -> None:
    published(tmp_path, byte_level(NUMBERS), "LlamaTokenizer")
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"no vocabulary of a tokenizer \(tokenizer\.json, tokenizer\.model\)"):
        load_tokenizer(tmp_path)
