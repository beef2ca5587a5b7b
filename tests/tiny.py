"""Tiny random checkpoints, one builder a family, each with a tokenizer of its class trained on a few sentences.

Weights are drawn wide, so that greedy choices differ clearly from row to row and rounding cannot flip one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.m2m_100 import tokenization_m2m_100 as m2m_100
from transformers.models.mbart import tokenization_mbart as mbart
from transformers.models.mbart50 import tokenization_mbart50 as mbart50

transformers.utils.logging.disable_progress_bar()

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "What is the meaning of life? The meaning of life is forty two.",
    "今天天气很好，我们去公园散步。",
    "Le café est fermé. Où est la bibliothèque?",
    "emoji 😀 and numbers 12345",
]

_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def _sizes(tokenizer: Any) -> dict[str, Any]:
    return {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}


def _decoder(tokenizer: Any) -> dict[str, Any]:
    return {
        **_sizes(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _encoder(tokenizer: Any) -> dict[str, Any]:
    return {
        **_sizes(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 128,
    }


def _bart_like(tokenizer: Any) -> dict[str, Any]:
    return {
        **_sizes(tokenizer),
        "d_model": 16,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "max_position_embeddings": 128,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "decoder_start_token_id": tokenizer.eos_token_id or 0,
        "forced_eos_token_id": tokenizer.eos_token_id,
    }


def _gpt2(tokenizer: Any) -> dict[str, Any]:
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return {"vocab_size": len(tokenizer), "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128, **ids}


def _t5(tokenizer: Any) -> dict[str, Any]:
    return {
        **_sizes(tokenizer),
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 2,
        "num_heads": 2,
        "eos_token_id": tokenizer.eos_token_id,
        "decoder_start_token_id": tokenizer.pad_token_id,
    }


def _electra(tokenizer: Any) -> dict[str, Any]:
    return {**_encoder(tokenizer), "embedding_size": 16}


def _distilbert(tokenizer: Any) -> dict[str, Any]:
    return {
        **_sizes(tokenizer),
        "dim": 16,
        "hidden_dim": 32,
        "n_layers": 2,
        "n_heads": 2,
        "max_position_embeddings": 128,
    }


def _started_by_pad(tokenizer: Any) -> dict[str, Any]:
    return {**_bart_like(tokenizer), "decoder_start_token_id": tokenizer.pad_token_id}


def _mbart(tokenizer: Any) -> dict[str, Any]:
    # Without a start of its own: `generate` begins with <s>, and a translation with the target language.
    return {**_bart_like(tokenizer), "decoder_start_token_id": None, "scale_embedding": True}


def _mbart50(tokenizer: Any) -> dict[str, Any]:
    # The tokenizer has no bos_token, though its vocabulary has <s>, under the same id as cls_token.
    return {**_bart_like(tokenizer), "bos_token_id": tokenizer.cls_token_id, "scale_embedding": True}


def _nllb(tokenizer: Any) -> dict[str, Any]:
    settings = _bart_like(tokenizer)
    del settings["forced_eos_token_id"]
    return settings


def _m2m_100(tokenizer: Any) -> dict[str, Any]:
    # Scaled embeddings, as published ones have, make so small a model repeat its start, which here is the end.
    return {**_nllb(tokenizer), "scale_embedding": False}


def _deberta_v2(tokenizer: Any) -> dict[str, Any]:
    # As DeBERTa v3: relative positions only, in buckets, so that there is no table to run out of.
    return {
        **_encoder(tokenizer),
        "type_vocab_size": 0,
        "relative_attention": True,
        "position_buckets": 16,
        "pos_att_type": ["p2c", "c2p"],
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
    }


def _xlm_roberta(tokenizer: Any) -> dict[str, Any]:
    # Positions are counted from pad_token_id + 1, so that many rows of the table are never used.
    return {**_encoder(tokenizer), "max_position_embeddings": 129 + tokenizer.pad_token_id, "type_vocab_size": 1}


Settings = Callable[[Any], dict[str, Any]]

FAMILIES: dict[str, tuple[str, str, Settings]] = {
    # family: (model class, tokenizer class, config settings)
    "gpt2": ("GPT2LMHeadModel", "GPT2Tokenizer", _gpt2),
    "llama": ("LlamaForCausalLM", "LlamaTokenizer", _decoder),
    "mistral": ("MistralForCausalLM", "LlamaTokenizer", _decoder),
    "qwen3": ("Qwen3ForCausalLM", "Qwen2Tokenizer", _decoder),
    "gemma3": ("Gemma3ForCausalLM", "GemmaTokenizer", _decoder),
    "t5": ("T5ForConditionalGeneration", "T5Tokenizer", _t5),
    "bart": ("BartForConditionalGeneration", "BartTokenizer", _bart_like),
    "marian": ("MarianMTModel", "MarianTokenizer", _started_by_pad),
    "mt5": ("MT5ForConditionalGeneration", "T5Tokenizer", _t5),
    "pegasus": ("PegasusForConditionalGeneration", "PegasusTokenizer", _started_by_pad),
    "mbart": ("MBartForConditionalGeneration", "MBartTokenizer", _mbart),
    "mbart50": ("MBartForConditionalGeneration", "MBart50Tokenizer", _mbart50),
    "m2m_100": ("M2M100ForConditionalGeneration", "M2M100Tokenizer", _m2m_100),
    "nllb": ("M2M100ForConditionalGeneration", "NllbTokenizer", _nllb),
    "bert": ("BertForQuestionAnswering", "BertTokenizer", _encoder),
    "roberta": ("RobertaForQuestionAnswering", "RobertaTokenizer", _encoder),
    "electra": ("ElectraForQuestionAnswering", "BertTokenizer", _electra),
    "distilbert": ("DistilBertForQuestionAnswering", "DistilBertTokenizer", _distilbert),
    "deberta-v2": ("DebertaV2ForQuestionAnswering", "DebertaV2Tokenizer", _deberta_v2),
    "xlm-roberta": ("XLMRobertaForQuestionAnswering", "XLMRobertaTokenizer", _xlm_roberta),
}

CAUSAL = ("gpt2", "llama", "mistral", "qwen3", "gemma3")
SEQ2SEQ = ("t5", "bart", "marian", "mt5", "pegasus", "mbart", "mbart50", "m2m_100", "nllb")
SPAN = ("bert", "roberta", "electra", "distilbert", "deberta-v2", "xlm-roberta")


# Unigram and WordPiece training of `tokenizers` numbers its pieces differently in each process, hence the two tables:
# what surrounds pieces that come out the same each time, in the order of published checkpoints.

_FAIRSEQ = ["<s>", "<pad>", "</s>", "<unk>"]
_BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

UNIGRAM: dict[str, tuple[list[str], list[str]]] = {
    "T5Tokenizer": (["<pad>", "</s>", "<unk>"], [f"<extra_id_{n}>" for n in reversed(range(100))]),
    "PegasusTokenizer": (
        ["<pad>", "</s>", "<mask_1>", "<mask_2>", *(f"<unk_{n}>" for n in range(2, 103)), "<unk>"],
        [],
    ),
    "MBartTokenizer": (_FAIRSEQ, [*mbart.FAIRSEQ_LANGUAGE_CODES, "<mask>"]),
    "MBart50Tokenizer": (_FAIRSEQ, [*mbart50.FAIRSEQ_LANGUAGE_CODES, "<mask>"]),
    "DebertaV2Tokenizer": (["[PAD]", "[CLS]", "[SEP]", "[UNK]"], ["[MASK]"]),
    "XLMRobertaTokenizer": (_FAIRSEQ, ["<mask>"]),
}
WORDPIECE = ("BertTokenizer", "DistilBertTokenizer")


def train_tokenizer(name: str, folder: Path) -> Any:
    """A tokenizer of the class, trained on `SENTENCES`: the same one each time."""
    cls = getattr(transformers, name)
    if name == "MarianTokenizer":
        return _train_marian(folder)
    if name == "M2M100Tokenizer":
        return _train_m2m_100(folder)
    if name in UNIGRAM:
        before, after = UNIGRAM[name]
        pieces = _train_sentencepiece(folder / "spiece.model", normalization_rule_name="identity")
        return cls(vocab=[*((token, 0.0) for token in before), *pieces, *((token, 0.0) for token in after)])
    if name in WORDPIECE:
        return cls(vocab={piece: n for n, piece in enumerate([*_BERT, *_wordpieces(cls().backend_tokenizer)])})
    return cls().train_new_from_iterator(SENTENCES * 4, vocab_size=400, show_progress=False)


def _train_sentencepiece(file: Path, **options: Any) -> list[tuple[str, float]]:
    """Write a SentencePiece model; its pieces and their scores, without the three that are special."""
    import sentencepiece

    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as written:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES * 4),
            model_writer=written,
            vocab_size=120,
            hard_vocab_limit=False,
            character_coverage=1.0,
            minloglevel=2,
            **options,
        )
    model = sentencepiece.SentencePieceProcessor(model_file=str(file))
    return [(model.id_to_piece(n), model.get_score(n)) for n in range(3, len(model))]


def _wordpieces(backend: Any) -> list[str]:
    """Every character, at the start of a word and inside one, and every other word: the rest come in pieces."""
    texts = [backend.normalizer.normalize_str(text) for text in SENTENCES]
    words = sorted({word for text in texts for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)})
    characters = sorted(set("".join(words)))
    return [*characters, *(f"##{character}" for character in characters), *(w for w in words[::2] if len(w) > 1)]


def _write_vocabulary(file: Path, pieces: list[str]) -> str:
    file.write_text(json.dumps({piece: n for n, piece in enumerate(pieces)}), encoding="utf-8")
    return str(file)


def _train_marian(folder: Path) -> Any:
    source, target = folder / "source.spm", folder / "target.spm"
    pieces = [piece for piece, _ in _train_sentencepiece(source)]
    _train_sentencepiece(target)
    return transformers.MarianTokenizer(
        source_spm=str(source),
        target_spm=str(target),
        vocab=_write_vocabulary(folder / "vocab.json", ["</s>", "<unk>", *pieces, "<pad>"]),
    )


def _train_m2m_100(folder: Path) -> Any:
    pieces = [piece for piece, _ in _train_sentencepiece(folder / "sentencepiece.bpe.model")]
    return transformers.M2M100Tokenizer(
        vocab_file=_write_vocabulary(folder / "vocab.json", [*_FAIRSEQ, *pieces]),
        spm_file=str(folder / "sentencepiece.bpe.model"),
        # The class knows their ids; that they are special is for a checkpoint to say, and published ones do.
        additional_special_tokens=[f"__{code}__" for code in m2m_100.FAIRSEQ_LANGUAGE_CODES["m2m100"]],
    )


def build(
    family: str, folder: Path, *, model_class: str | None = None, chat: bool | str = False, **settings: Any
) -> Path:
    """Write a tiny checkpoint of a family and return its folder; ``chat`` may be a chat template."""
    default_class, tokenizer_class, defaults = FAMILIES[family]
    tokenizer = train_tokenizer(tokenizer_class, folder / "tokenizer-training")
    if chat:
        tokenizer.chat_template = chat if isinstance(chat, str) else _TEMPLATE
    cls = getattr(transformers, model_class or default_class)
    torch.manual_seed(0)
    model = cls(cls.config_class(**{**defaults(tokenizer), **settings}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.5)
        # Sentinels and languages outnumber the words of `SENTENCES`: at full size they would be most of the output.
        extra = tokenizer.convert_tokens_to_ids([str(token) for token in tokenizer.extra_special_tokens])
        model.get_input_embeddings().weight[extra] *= 0.25
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
