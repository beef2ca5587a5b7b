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


def _marian(tokenizer: Any) -> dict[str, Any]:
    return {**_bart_like(tokenizer), "decoder_start_token_id": tokenizer.pad_token_id}


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
    "marian": ("MarianMTModel", "MarianTokenizer", _marian),
    "bert": ("BertForQuestionAnswering", "BertTokenizer", _encoder),
    "roberta": ("RobertaForQuestionAnswering", "RobertaTokenizer", _encoder),
    "electra": ("ElectraForQuestionAnswering", "BertTokenizer", _electra),
    "distilbert": ("DistilBertForQuestionAnswering", "DistilBertTokenizer", _distilbert),
}

CAUSAL = ("gpt2", "llama", "mistral", "qwen3", "gemma3")
SEQ2SEQ = ("t5", "bart", "marian")
SPAN = ("bert", "roberta", "electra", "distilbert")


def train_tokenizer(name: str, folder: Path) -> Any:
    """A tokenizer of the class, trained on `SENTENCES`."""
    if name == "MarianTokenizer":
        return _train_marian(folder)
    return getattr(transformers, name)().train_new_from_iterator(SENTENCES * 4, vocab_size=400, show_progress=False)


def _train_marian(folder: Path) -> Any:
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    for side in ("source", "target"):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES * 4),
            model_prefix=str(folder / side),
            vocab_size=120,
            hard_vocab_limit=False,
            character_coverage=1.0,
            minloglevel=2,
        )
        (folder / f"{side}.model").rename(folder / f"{side}.spm")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "source.spm"))
    names = ["</s>", "<unk>", *(pieces.id_to_piece(n) for n in range(3, len(pieces))), "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({name: n for n, name in enumerate(names)}), encoding="utf-8")
    return transformers.MarianTokenizer(
        source_spm=str(folder / "source.spm"), target_spm=str(folder / "target.spm"), vocab=str(folder / "vocab.json")
    )


def build(family: str, folder: Path, *, model_class: str | None = None, chat: bool = False, **settings: Any) -> Path:
    """Write a tiny checkpoint of a family and return its folder."""
    default_class, tokenizer_class, defaults = FAMILIES[family]
    tokenizer = train_tokenizer(tokenizer_class, folder / "tokenizer-training")
    if chat:
        tokenizer.chat_template = _TEMPLATE
    cls = getattr(transformers, model_class or default_class)
    torch.manual_seed(0)
    model = cls(cls.config_class(**{**defaults(tokenizer), **settings}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
