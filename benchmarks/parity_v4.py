"""Does `llmkit.pipeline` give what the pipelines of Transformers 4.57.6 gave?

    python benchmarks/parity_v4.py FOLDER                 # every family; the table goes to benchmarks/parity_v4.md
    python benchmarks/parity_v4.py FOLDER --only t5 bert  # these; the table is printed only

Makes an environment with 4.57.6 and the same torch in FOLDER/env. It writes tiny random checkpoints there, each with a
tokenizer trained on the sentences below, some with files changed as other programs change them, and runs version 4's
own pipelines on them; llmkit then runs the same calls on the same files, with ``bug_compatible=True``. Both sides run
this file, so that the cases are one. What is done already in FOLDER is kept: a run that was stopped goes on.

Weights are drawn wide, so that choices differ by more than rounding. Texts and places must be equal, scores within
1e-5.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import venv
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

V4 = "4.57.6"
TOLERANCE = 1e-5
CHECKPOINTS = {"text": 7, "span": 6}
"""Checkpoints of a family: their seeds, and with them weights and settings, differ."""

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "What is the meaning of life? The meaning of life is forty two, said the computer.",
    "今天天气很好，我们去公园散步。北京是中国的首都。",
    "東京は日本の首都です。とても大きい街です。",
    "Le café est fermé. Où est la bibliothèque? Elle est près de la gare.",
    "Der Zug fährt um 12:45 Uhr nach München, über Nürnberg.",
    "emoji 😀 and 👩‍👩‍👧 and numbers 12345, 3.14 and 50%",
    "Wolfgang lives in Berlin (Germany); his sister's name is Anna-Maria O'Neil.",
]
TEXTS = [
    SENTENCES[0],
    f"{SENTENCES[2]} {SENTENCES[3]}",
    SENTENCES[6],
    "",
    "unseen wörds ✓ ₿ ꙮ",
    "  two  spaces\tand\nlines ",
]
LONG = " ".join(SENTENCES * 3)

# The checkpoints. All of this runs in the environment of version 4.

_BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_SPM: dict[str, dict[str, Any]] = {
    "t5": {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
    "fairseq": {"unk_id": 0, "bos_id": 1, "eos_id": 2},
    "albert": {
        "pad_id": 0,
        "unk_id": 1,
        "bos_id": -1,
        "eos_id": -1,
        "control_symbols": "[CLS],[SEP]",
        "user_defined_symbols": "[MASK]",
    },
    "deberta": {
        "pad_id": 0,
        "bos_id": 1,
        "eos_id": 2,
        "unk_id": 3,
        "pad_piece": "[PAD]",
        "bos_piece": "[CLS]",
        "eos_piece": "[SEP]",
        "unk_piece": "[UNK]",
        "user_defined_symbols": "[MASK]",
    },
    "xlnet": {"unk_id": 0, "bos_id": 1, "eos_id": 2, "control_symbols": "<cls>,<sep>,<pad>,<mask>,<eod>,<eop>"},
    "bigbird": {
        "pad_id": 0,
        "eos_id": 1,
        "bos_id": 2,
        "unk_id": 3,
        "user_defined_symbols": "[SEP],[MASK],[CLS]",
    },
}


def _sentencepiece(file: Path, kind: str, **options: Any) -> list[str]:
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 4),
        model_prefix=str(file.with_suffix("")),
        vocab_size=220,
        hard_vocab_limit=False,
        character_coverage=1.0,
        minloglevel=2,
        **{**_SPM[kind], **options},
    )
    file.with_suffix(".model").rename(file)
    model = sentencepiece.SentencePieceProcessor(model_file=str(file))
    return [model.id_to_piece(number) for number in range(len(model))]


def _dump(file: Path, pieces: list[str]) -> str:
    unique = list(dict.fromkeys(pieces))
    file.write_text(json.dumps({piece: number for number, piece in enumerate(unique)}), encoding="utf-8")
    return str(file)


def _spm(name: str, kind: str, **options: Any) -> Callable[[Path], Any]:
    def build(folder: Path) -> Any:
        import transformers

        _sentencepiece(folder / "spiece.model", kind, **options)
        return getattr(transformers, name)(vocab_file=str(folder / "spiece.model"))

    return build


def _wordpiece(name: str, special: list[str] = _BERT) -> Callable[[Path], Any]:
    def build(folder: Path) -> Any:
        import transformers
        from tokenizers import BertWordPieceTokenizer

        trained = BertWordPieceTokenizer()
        trained.train_from_iterator(SENTENCES * 4, vocab_size=300, special_tokens=special, show_progress=False)
        trained.save_model(str(folder))
        return getattr(transformers, name)(vocab_file=str(folder / "vocab.txt"))

    return build


def _bytes(name: str, special: tuple[str, ...] = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")) -> Callable[[Path], Any]:
    def build(folder: Path) -> Any:
        import transformers
        from tokenizers import ByteLevelBPETokenizer

        trained = ByteLevelBPETokenizer()
        trained.train_from_iterator(SENTENCES * 4, vocab_size=400, special_tokens=list(special), show_progress=False)
        trained.save_model(str(folder))
        files = {"vocab_file": str(folder / "vocab.json"), "merges_file": str(folder / "merges.txt")}
        return getattr(transformers, name)(**files)

    return build


def _marian(folder: Path) -> Any:
    import transformers

    pieces = _sentencepiece(folder / "source.spm", "fairseq")[3:]
    _sentencepiece(folder / "target.spm", "fairseq")
    return transformers.MarianTokenizer(
        source_spm=str(folder / "source.spm"),
        target_spm=str(folder / "target.spm"),
        vocab=_dump(folder / "vocab.json", ["</s>", "<unk>", *pieces, "<pad>"]),
    )


def _m2m_100(folder: Path) -> Any:
    import transformers

    pieces = _sentencepiece(folder / "spm.model", "fairseq")[3:]
    vocabulary = _dump(folder / "vocab.json", ["<s>", "<pad>", "</s>", "<unk>", *pieces])
    return transformers.M2M100Tokenizer(vocab_file=vocabulary, spm_file=str(folder / "spm.model"))


def _bart_like(tokenizer: Any, start: int, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "d_model": 16,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "max_position_embeddings": 2000,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": 0,
        "eos_token_id": tokenizer.eos_token_id,
        "decoder_start_token_id": start,
        **more,
    }


def _by_end(tokenizer: Any) -> dict[str, Any]:
    return _bart_like(tokenizer, tokenizer.eos_token_id, forced_eos_token_id=tokenizer.eos_token_id)


def _bart_of_bert(tokenizer: Any) -> dict[str, Any]:
    ends = {"eos_token_id": tokenizer.sep_token_id, "forced_eos_token_id": tokenizer.sep_token_id}
    return {**_bart_like(tokenizer, tokenizer.sep_token_id), **ends, "bos_token_id": tokenizer.cls_token_id}


def _by_pad(tokenizer: Any) -> dict[str, Any]:
    return _bart_like(tokenizer, tokenizer.pad_token_id, forced_eos_token_id=tokenizer.eos_token_id)


def _m2m(tokenizer: Any) -> dict[str, Any]:
    # Languages come after the vocabulary, and len() does not count them.
    return {**_by_end(tokenizer), "vocab_size": max(tokenizer.lang_token_to_id.values()) + 9}


def _led(tokenizer: Any) -> dict[str, Any]:
    positions = {"max_encoder_position_embeddings": 2000, "max_decoder_position_embeddings": 2000}
    return {**_by_end(tokenizer), **positions, "attention_window": 16}


def _t5(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 2,
        "num_heads": 2,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }


def _prophetnet(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "num_encoder_attention_heads": 2,
        "num_decoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "max_position_embeddings": 2000,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.sep_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "ngram": 2,
        "decoder_start_token_id": tokenizer.sep_token_id,
    }


def _encoder(tokenizer: Any, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 2000,
        "pad_token_id": tokenizer.pad_token_id,
        **more,
    }


def _with(**more: Any) -> Callable[[Any], dict[str, Any]]:
    return lambda tokenizer: _encoder(tokenizer, **more)


def _distilbert(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "dim": 16,
        "hidden_dim": 32,
        "n_layers": 2,
        "n_heads": 2,
        "max_position_embeddings": 2000,
    }


def _xlnet(tokenizer: Any) -> dict[str, Any]:
    return {"vocab_size": len(tokenizer), "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32}


def _funnel(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "d_model": 16,
        "n_head": 2,
        "d_head": 8,
        "d_inner": 32,
        "block_sizes": [1, 1],
        "num_decoder_layers": 1,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _mobilebert(tokenizer: Any) -> dict[str, Any]:
    return _encoder(
        tokenizer, embedding_size=16, intra_bottleneck_size=16, true_hidden_size=16, num_feedforward_networks=1
    )


_ROBERTA = {"type_vocab_size": 1, "max_position_embeddings": 2010}
_DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0}
_MPNET = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
_FUNNEL = ["<pad>", "<unk>", "<cls>", "<sep>", "<mask>", "<s>", "</s>"]

Family = tuple[str, Callable[[Path], Any], Callable[[Any], dict[str, Any]]]

TEXT: dict[str, Family] = {
    # family: (model class, tokenizer, settings)
    "bart-chinese": ("BartForConditionalGeneration", _wordpiece("BertTokenizerFast"), _bart_of_bert),
    "t5": ("T5ForConditionalGeneration", _spm("T5TokenizerFast", "t5"), _t5),
    "mt5": ("MT5ForConditionalGeneration", _spm("T5TokenizerFast", "t5"), _t5),
    "umt5": ("UMT5ForConditionalGeneration", _spm("T5TokenizerFast", "t5"), _t5),
    "longt5": ("LongT5ForConditionalGeneration", _spm("T5TokenizerFast", "t5"), _t5),
    "bart": ("BartForConditionalGeneration", _bytes("BartTokenizerFast"), _by_end),
    "led": ("LEDForConditionalGeneration", _bytes("LEDTokenizerFast"), _led),
    "blenderbot": ("BlenderbotForConditionalGeneration", _bytes("BlenderbotTokenizerFast"), _by_end),
    "pegasus": ("PegasusForConditionalGeneration", _spm("PegasusTokenizerFast", "t5"), _by_pad),
    "marian": ("MarianMTModel", _marian, _by_pad),
    "mbart": ("MBartForConditionalGeneration", _spm("MBartTokenizerFast", "fairseq"), _by_end),
    "mbart50": ("MBartForConditionalGeneration", _spm("MBart50TokenizerFast", "fairseq"), _by_end),
    "m2m_100": ("M2M100ForConditionalGeneration", _m2m_100, _m2m),
    "nllb": ("M2M100ForConditionalGeneration", _spm("NllbTokenizerFast", "fairseq", model_type="bpe"), _by_end),
    "prophetnet": ("ProphetNetForConditionalGeneration", _wordpiece("ProphetNetTokenizer"), _prophetnet),
}
SPAN: dict[str, Family] = {
    "bert": ("BertForQuestionAnswering", _wordpiece("BertTokenizerFast"), _with()),
    "distilbert": ("DistilBertForQuestionAnswering", _wordpiece("DistilBertTokenizerFast"), _distilbert),
    "electra": ("ElectraForQuestionAnswering", _wordpiece("ElectraTokenizerFast"), _with(embedding_size=16)),
    "mobilebert": ("MobileBertForQuestionAnswering", _wordpiece("MobileBertTokenizerFast"), _mobilebert),
    "convbert": (
        "ConvBertForQuestionAnswering",
        _wordpiece("ConvBertTokenizerFast"),
        _with(embedding_size=16, num_attention_heads=4, conv_kernel_size=3),
    ),
    "mpnet": ("MPNetForQuestionAnswering", _wordpiece("MPNetTokenizerFast", _MPNET), _with()),
    "funnel": ("FunnelForQuestionAnswering", _wordpiece("FunnelTokenizerFast", _FUNNEL), _funnel),
    "roberta": ("RobertaForQuestionAnswering", _bytes("RobertaTokenizerFast"), _with(**_ROBERTA)),
    "longformer": (
        "LongformerForQuestionAnswering",
        _bytes("LongformerTokenizerFast"),
        _with(**_ROBERTA, attention_window=16, sep_token_id=2),
    ),
    "bart-qa": ("BartForQuestionAnswering", _bytes("BartTokenizerFast"), _by_end),
    "deberta": (
        "DebertaForQuestionAnswering",
        _bytes("DebertaTokenizerFast", ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")),
        _with(**_DEBERTA),
    ),
    "deberta-v2": ("DebertaV2ForQuestionAnswering", _spm("DebertaV2TokenizerFast", "deberta"), _with(**_DEBERTA)),
    "albert": ("AlbertForQuestionAnswering", _spm("AlbertTokenizerFast", "albert"), _with(embedding_size=16)),
    "xlm-roberta": ("XLMRobertaForQuestionAnswering", _spm("XLMRobertaTokenizerFast", "fairseq"), _with(**_ROBERTA)),
    "camembert": ("CamembertForQuestionAnswering", _spm("CamembertTokenizerFast", "fairseq"), _with(**_ROBERTA)),
    "xlnet": ("XLNetForQuestionAnsweringSimple", _spm("XLNetTokenizerFast", "xlnet"), _xlnet),
    "bigbird": (
        "BigBirdForQuestionAnswering",
        _spm("BigBirdTokenizerFast", "bigbird"),
        _with(attention_type="original_full"),
    ),
}
# Families of which something is changed in the files that version 4 wrote, as other programs and people change it.


def _change(file: str, **values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | values, ensure_ascii=False), encoding="utf-8")

    return change


def _class(name: str) -> Callable[[Path], None]:
    return _change("tokenizer_config.json", tokenizer_class=name)


_LEFT = _change("tokenizer_config.json", padding_side="left")
_DIGITS = {"type": "Split", "pattern": {"Regex": "\\d|[^\\d\\s]+| +|\\s"}, "behavior": "Isolated", "invert": False}
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_OWN_SPLIT = _change("tokenizer.json", pre_tokenizer={"type": "Sequence", "pretokenizers": [_DIGITS, _BYTES]})
_OWN_NORMALIZER = _change("tokenizer.json", normalizer={"type": "NFKC"})
_GENERIC = _class("PreTrainedTokenizerFast")

CHANGED: dict[str, tuple[str, Callable[[Path], None]]] = {
    # family: (family it is made from, change)
    "t5-generic": ("t5", _GENERIC),
    "t5-left": ("t5", _LEFT),
    "t5-normalizer": ("t5", _OWN_NORMALIZER),
    "bart-generic": ("bart", _GENERIC),
    "bart-backend": ("bart", _GENERIC),
    "bart-left": ("bart", _LEFT),
    "bart-split": ("bart", _OWN_SPLIT),
    "bart-as-gpt2": ("bart", _class("GPT2Tokenizer")),
    "bert-generic": ("bert", _GENERIC),
    "bert-backend": ("bert", _GENERIC),
    "bert-left": ("bert", _LEFT),
    "bert-generic-left": ("bert-generic", _LEFT),
    "bert-cased": ("bert", _change("tokenizer_config.json", do_lower_case=False)),
    "bert-normalizer": ("bert", _OWN_NORMALIZER),
    "bert-undeclared": ("bert", _change("tokenizer_config.json", model_input_names=["input_ids", "attention_mask"])),
    "electra-generic": ("electra", _GENERIC),
    "electra-backend": ("electra", _GENERIC),
    "roberta-generic": ("roberta", _GENERIC),
    "roberta-left": ("roberta", _LEFT),
    "roberta-split": ("roberta", _OWN_SPLIT),
    "deberta-v2-generic": ("deberta-v2", _GENERIC),
    "albert-generic": ("albert", _GENERIC),
    "xlnet-generic": ("xlnet", _GENERIC),
    "bigbird-generic": ("bigbird", _GENERIC),
}
for _family, (_base, _) in CHANGED.items():
    _families = TEXT if _base in TEXT else SPAN
    _families[_family] = _families[_base]

NAMED = {
    "funnel": "Version 5 zeroes the embedding of the padding token when it loads Funnel; version 4 kept that of the"
    " checkpoint, which pooling mixes with the word beside it.",
    **dict.fromkeys(
        ("led", "m2m_100", "nllb"),
        "Version 4 drew a random number a layer (LayerDrop) outside training too, so that samples of one seed differ.",
    ),
}
"""Family → what changed between the versions, where not all of its calls are equal."""


def undo(family: str, model: Any, folder: Path) -> None:
    """Take back in a model what `NAMED` says of its family, which shows that it is the cause and the only one."""
    import torch
    from safetensors.torch import load_file

    if family == "funnel":
        name = "embeddings.word_embeddings.weight"
        row = model.config.pad_token_id
        weights = load_file(folder / "model.safetensors")
        with torch.no_grad():
            model.funnel.get_parameter(name)[row] = weights[f"funnel.{name}"][row]
        return
    layers = [*model.get_encoder().layers, *(model.get_decoder().layers if family != "led" else ())]
    for layer in layers:
        layer.register_forward_pre_hook(lambda *_: torch.rand([]) and None)


LANGUAGES = {
    "mbart": ("en_XX", "de_DE", "zh_CN"),
    "mbart50": ("en_XX", "fr_XX", "zh_CN"),
    "m2m_100": ("en", "fr", "zh"),
    "nllb": ("eng_Latn", "fra_Latn", "zho_Hans"),
}


_STD = {"mobilebert": 0.3}
"""Its layers have no norm, so that wider weights give logits in the thousands, of which float32 leaves few digits."""


def build(family: str, seed: int, folder: Path) -> None:
    """Write a checkpoint; config.json comes last."""
    import torch
    import transformers

    (folder / "training").mkdir(parents=True, exist_ok=True)
    name, make_tokenizer, settings = {**TEXT, **SPAN}[family]
    tokenizer = make_tokenizer(folder / "training")
    cls = getattr(transformers, name)
    config = cls.config_class(**settings(tokenizer))
    if family in TEXT:
        _add_task_params(family, seed, config)
    torch.manual_seed(seed)
    model = cls(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=_STD.get(family, 0.5))
    if family in TEXT:
        model.generation_config.update(**_generation(seed))
    tokenizer.save_pretrained(folder)
    changed = family
    while changed in CHANGED:
        changed, change = CHANGED[changed]
        change(folder)
    model.save_pretrained(folder)
    if seed == 5 and family in TEXT:  # as old checkpoints are: what generates stands in config.json
        own = json.loads((folder / "generation_config.json").read_text())
        (folder / "generation_config.json").unlink()
        written = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**own, **written, "num_beams": 3, "max_length": 15}))


def _generation(seed: int) -> dict[str, Any]:
    """What a model's own generation settings say."""
    choices: list[dict[str, Any]] = [
        {},
        {"max_length": 18, "num_beams": 2},
        {
            "num_beams": 4,
            "max_length": 22,
            "min_length": 6,
            "no_repeat_ngram_size": 2,
            "length_penalty": 2.0,
            "early_stopping": True,
        },
        {"num_beams": 5, "max_new_tokens": 9},
    ]
    return choices[seed % len(choices)]


def _add_task_params(family: str, seed: int, config: Any) -> None:
    if seed % 3 == 1:
        config.task_specific_params = {
            "summarization": {"prefix": "summarize: ", "max_length": 16, "min_length": 3, "num_beams": 3},
            "translation_en_to_de": {"prefix": "translate English to German: ", "num_beams": 2, "max_length": 14},
        }
    if seed % 3 == 2 and family not in LANGUAGES:
        config.prefix = "fox "


# The cases: (task, arguments of pipeline(), positional and named arguments of the call).

Case = tuple[str, dict[str, Any], list[Any], dict[str, Any]]


def cases(family: str, seed: int) -> Iterator[Case]:
    """Which calls are made on a checkpoint."""
    if family in TEXT:
        yield from _text_cases(family, seed)
    else:
        yield from _span_cases(seed)


def _text_cases(family: str, seed: int) -> Iterator[Case]:
    languages: dict[str, Any] = {}
    task = ("summarization", "translation", "text2text-generation")[seed % 3]
    if family in LANGUAGES:
        source, first, second = LANGUAGES[family]
        task, languages = "translation", {"src_lang": source, "tgt_lang": (first, second)[seed % 2]}
    short = {**languages, "max_new_tokens": 10}
    first_text, second_text = TEXTS[seed % len(TEXTS)], TEXTS[(seed + 1) % len(TEXTS)]
    yield task, {}, [first_text or "a"], languages  # the defaults, as long as they allow
    yield task, {}, [TEXTS], short
    yield task, {}, [LONG], {**short, "truncation": False}
    yield task, {"batch_size": 2}, [[first_text, second_text, TEXTS[0]]], {**short, "num_beams": 1}
    yield task, {}, [second_text], {**short, "do_sample": True, "num_beams": 1, "temperature": 1.5, "top_k": 20}
    yield task, {}, [first_text], {**short, "do_sample": True, "num_beams": 3, "top_p": 0.9}
    yield task, {}, [[first_text, second_text]], {**short, "num_return_sequences": 2, "num_beams": 3}
    yield task, {}, [second_text], {**short, "forced_bos_token_id": 7} if not languages else short
    yield task, {}, [first_text], {**short, "return_tensors": True, "min_length": 5}
    yield task, {"num_beams": 2, "max_new_tokens": 6, **languages}, [first_text], {"clean_up_tokenization_spaces": True}
    yield task, {}, [second_text], {**languages, "max_length": 8, "max_new_tokens": None}
    yield task, {}, [first_text], {**short, "stop_sequence": "the", "repetition_penalty": 1.3}
    if seed % 3 == 1:
        pair = "translation_en_to_de" if family not in LANGUAGES else "translation_" + "_to_".join(("en", "fr"))
        yield pair, {}, [first_text], {**languages, "max_new_tokens": 7}


def _span_cases(seed: int) -> Iterator[Case]:
    questions = ["Where does Wolfgang live?", "What is the meaning of life?", "北京是哪里？", "😀?"]
    question, other = questions[seed % 4], questions[(seed + 1) % 4]
    context, task = SENTENCES[seed % len(SENTENCES)], "question-answering"
    windows = {"max_seq_len": 64, "doc_stride": 16}
    many = {"question": question, "context": LONG}
    yield task, {}, [], {"question": question, "context": context}
    yield task, {}, [], {"question": question, "context": context, "top_k": 5}
    yield task, {}, [], {"question": question, "context": context, "top_k": 4, "align_to_words": False}
    yield task, {}, [], {**many, **windows}
    yield task, {}, [], {**many, **windows, "top_k": 6, "handle_impossible_answer": True}
    yield task, {"batch_size": 3}, [], {**many, **windows, "top_k": 3, "max_answer_len": 4}
    yield task, {}, [], {**many, **windows, "top_k": 3, "align_to_words": False, "max_answer_len": 30}
    yield task, {"handle_impossible_answer": True}, [], {"question": [question, other], "context": SENTENCES[6]}
    yield task, {}, [], {"question": questions, "context": [*SENTENCES[2:5], SENTENCES[7]], "top_k": 2}
    yield task, {}, [[{"question": other, "context": text} for text in SENTENCES[:4]]], {"topk": 3}
    yield task, {}, [{"question": question, "context": "short"}], {"top_k": 20}
    yield task, {}, [], many
    if seed % 4 != 2:
        yield task, {}, [], {**many, **windows, "padding": "max_length", "top_k": 2}


def run(
    pipeline: Callable[..., Any], family: str, seed: int, folder: Path, extra: dict[str, Any], *, undone: bool
) -> list[Any]:
    """The results of one side; an error is its type, since the wording differs by design."""
    import torch

    results = []
    pipelines: dict[str, Any] = {}
    for task, options, args, kwargs in cases(family, seed):
        key = json.dumps([task, options])
        try:
            if key not in pipelines:
                pipelines[key] = pipeline(task, model=str(folder), device=-1, **options, **extra)
                if undone:
                    undo(family, pipelines[key].model, folder)
            torch.manual_seed(seed)
            results.append(_plain(pipelines[key](*args, **kwargs)))
        except Exception as error:  # noqa: BLE001 - to be compared
            results.append({"error": f"{type(error).__name__}: {str(error)[:200]}"})
    return results


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value


# The two sides.


def names(only: list[str] | None) -> Iterator[tuple[str, int, str]]:
    """Family, seed and name of each checkpoint."""
    for families, kind in ((TEXT, "text"), (SPAN, "span")):
        for family in families:
            if only is None or family in only:
                for seed in range(CHECKPOINTS[kind]):
                    yield family, seed, f"{family}-{seed}"


def side(folder: Path, only: list[str] | None, which: str) -> None:
    """Run one side on every checkpoint that it has no results for."""
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity(50)
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    if which == "v4":
        pipeline: Callable[..., Any] = transformers.pipeline
    else:
        import logging

        import llmkit

        logging.getLogger("llmkit").setLevel(logging.CRITICAL)
        pipeline = llmkit.pipeline
    (folder / which).mkdir(exist_ok=True)
    for family, seed, name in names(list(NAMED) if which == "undone" else only):
        file, checkpoint = folder / which / f"{name}.json", folder / "checkpoints" / name
        if file.exists():
            continue
        if which == "v4" and not (checkpoint / "model.safetensors").exists():
            build(family, seed, checkpoint)
        extra = {"bug_compatible": True} if which != "v4" and family in SPAN else {}
        results = run(pipeline, family, seed, checkpoint, extra, undone=which == "undone")
        if family.endswith("-backend"):  # the name that version 5 gives the same class, and version 4 does not know
            _class("TokenizersBackend")(checkpoint)
        file.write_text(json.dumps(results, ensure_ascii=False), encoding="utf-8")
        print(which, name, len(results), flush=True)


def make_environment(folder: Path) -> Path:
    """The Python of an environment with version 4 and this torch."""
    python = folder / "env" / "bin" / "python"
    if not python.exists():
        venv.create(folder / "env", with_pip=True)
        torch = version("torch").partition("+")[0]
        packages = [f"torch=={torch}", f"transformers=={V4}", "sentencepiece", "protobuf"]
        subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=True)
    return python


# The comparison.


def differences(ours: Any, theirs: Any) -> tuple[bool, float]:
    """Whether everything but scores is equal, and the largest difference of a score."""
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        if "error" in ours:
            return True, 0.0
        pairs = [(ours[name], theirs[name]) for name in ours if name != "score"]
        found = [differences(*pair) for pair in pairs]
        scores = [abs(ours["score"] - theirs["score"])] if "score" in ours else []
        return all(same for same, _ in found), max([*scores, *(score for _, score in found)], default=0.0)
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        found = [differences(*pair) for pair in zip(ours, theirs, strict=True)]
        return all(same for same, _ in found), max((score for _, score in found), default=0.0)
    return type(ours) is type(theirs) and ours == theirs, 0.0


def compare(folder: Path, only: list[str] | None, ours: str = "llmkit") -> tuple[list[str], list[str]]:
    """Rows of the table, and a line for each case that differs."""
    rows: dict[str, list[float]] = {}
    lines = []
    for family, seed, name in names(only):
        both = [json.loads((folder / which / f"{name}.json").read_text(encoding="utf-8")) for which in (ours, "v4")]
        row = rows.setdefault(family, [0, 0, 0, 0, 0.0])
        row[0] += 1
        for case, mine, theirs in zip(cases(family, seed), *both, strict=True):
            same, score = differences(mine, theirs)
            row[1] += 1
            row[2] += same and score <= TOLERANCE
            row[3] += isinstance(theirs, dict) and "error" in theirs
            row[4] = max(row[4], score)
            if not same or score > TOLERANCE:
                shown = json.dumps({"case": case, "llmkit": mine, "v4": theirs}, ensure_ascii=False)
                lines.append(f"{name}: score {score:.1e} {shown}")
    table = ["| family | checkpoints | calls | equal | of them refused by both | largest difference of a score |"]
    table.append("|---|---|---|---|---|---|")
    for family, (count, calls, equal, refused, largest) in rows.items():
        most = f"{largest:.0e}" if family in SPAN else ""
        table.append(f"| {family} | {count:.0f} | {calls:.0f} | {equal:.0f} | {refused:.0f} | {most} |")
    sums = [sum(row[column] for row in rows.values()) for column in range(4)]
    table.append(
        "| all | " + " | ".join(f"{number:.0f}" for number in sums) + f" | {max(r[4] for r in rows.values()):.0e} |"
    )
    return table, lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", metavar="FAMILY")
    parser.add_argument("--side", choices=("v4", "llmkit"), help="run one side only; the script calls itself with it")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    folder: Path = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.side:
        side(folder, arguments.only, arguments.side)
        return
    python = make_environment(folder)
    only = ["--only", *arguments.only] if arguments.only else []
    subprocess.run([str(python), __file__, str(folder), "--side", "v4", *only], check=True)
    side(folder, arguments.only, "llmkit")
    table, lines = compare(folder, arguments.only)
    (folder / "differences.jsonl").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(table))
    print(f"{len(lines)} calls differ: {folder / 'differences.jsonl'}")
    differing = {line.partition(":")[0].rpartition("-")[0] for line in lines}
    if not arguments.only:
        side(folder, None, "undone")
        left = compare(folder, list(NAMED), "undone")[1]
        print(f"{len(left)} calls differ with the named changes undone", *left, sep="\n")
        _write(table, sorted(differing), len(left))
    if unnamed := differing - NAMED.keys():
        raise SystemExit(f"not explained: {', '.join(sorted(unnamed))}")


def _write(table: list[str], differing: list[str], left: int) -> None:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "tokenizers", "numpy"))
    head = [
        "# llmkit.pipeline against the pipelines of Transformers 4.57.6",
        "",
        f"`python benchmarks/parity_v4.py FOLDER`; one side with {packages}, the other with transformers {V4} and the",
        "same torch. A call counts as equal if texts, ids, places and shapes are, and scores are within 1e-5.",
        "",
    ]
    causes = ["", f"What changed between the versions; with it undone in this side's models, {left} calls differ:", ""]
    causes += [f"- **{family}**: {NAMED.get(family, 'not looked into')}" for family in differing]
    Path(__file__).with_suffix(".md").write_text("\n".join([*head, *table, *causes, ""]), encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
