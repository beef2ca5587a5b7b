"""The context read from the files is the one the model has: it runs at that length and not beyond."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from llmkit.models.context import ContextLength, context_length

_COMMON = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 24,
}
_BART = {
    "vocab_size": 40,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "max_position_embeddings": 24,
}

# Model class, settings, positions that the family keeps to itself.
TABLES: list[tuple[str, dict[str, Any], int]] = [
    ("RobertaModel", _COMMON, 2),
    ("RobertaModel", {**_COMMON, "pad_token_id": 0}, 1),
    ("RobertaModel", {**_COMMON, "pad_token_id": 5}, 6),
    ("RobertaPreLayerNormModel", _COMMON, 2),
    ("CamembertModel", _COMMON, 2),
    ("XLMRobertaModel", _COMMON, 2),
    ("XLMRobertaXLModel", _COMMON, 2),
    ("Data2VecTextModel", _COMMON, 2),
    ("IBertModel", _COMMON, 2),
    ("XmodModel", {**_COMMON, "default_language": "en_XX"}, 2),
    ("MPNetModel", _COMMON, 2),
    ("MPNetModel", {**_COMMON, "pad_token_id": 7}, 2),
    ("EsmModel", {**_COMMON, "pad_token_id": 1, "mask_token_id": 3}, 2),
    ("LukeModel", {**_COMMON, "entity_vocab_size": 4, "entity_emb_size": 8}, 2),
    ("LiltModel", {**_COMMON, "hidden_size": 24, "channel_shrink_ratio": 2, "max_2d_position_embeddings": 8}, 1),
    ("MarkupLMModel", {**_COMMON, "max_depth": 4, "xpath_unit_hidden_size": 4}, 1),
    ("BertModel", _COMMON, 0),
    ("ElectraModel", _COMMON, 0),
    ("DistilBertModel", {"vocab_size": 40, "dim": 16, "n_heads": 2, "n_layers": 1, "hidden_dim": 16,
                         "max_position_embeddings": 24}, 0),
    ("GPT2LMHeadModel", {"vocab_size": 40, "n_embd": 16, "n_head": 2, "n_layer": 1, "n_positions": 24}, 0),
    ("OPTModel", {"vocab_size": 40, "hidden_size": 16, "ffn_dim": 16, "num_attention_heads": 2,
                  "num_hidden_layers": 1, "word_embed_proj_dim": 16, "max_position_embeddings": 24}, 0),
    ("BartModel", _BART, 0),
    ("MBartModel", _BART, 0),
    ("MarianModel", {**_BART, "pad_token_id": 0}, 0),
]  # fmt: skip


def _runs(model: Any, length: int) -> bool:
    ids = torch.full((1, length), 9)
    extra = {"decoder_input_ids": ids[:, :1]} if model.config.is_encoder_decoder else {}
    try:
        model(input_ids=ids, **extra)
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize(("name", "settings", "reserved"), TABLES)
@torch.no_grad()
def test_it_runs_at_that_length_and_not_beyond(name: str, settings: dict[str, Any], reserved: int) -> None:
    cls = getattr(transformers, name)
    config = cls.config_class(**settings)
    model = cls(config).eval()
    found = context_length(config.to_diff_dict() | {"model_type": config.model_type})
    assert found == ContextLength(24 - reserved, hard=True)
    assert _runs(model, 24 - reserved)
    assert not _runs(model, 25 - reserved)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("T5Model", {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}),
        ("DebertaV2Model", {**_COMMON, "relative_attention": True, "position_biased_input": False,
                            "pos_att_type": ["p2c", "c2p"]}),
        ("JambaModel", {**_COMMON, "num_hidden_layers": 2, "num_key_value_heads": 2, "num_experts": 1,
                        "num_experts_per_tok": 1, "use_mamba_kernels": False, "attn_layer_period": 2,
                        "attn_layer_offset": 1}),
        ("BloomModel", {"vocab_size": 40, "hidden_size": 16, "n_layer": 1, "n_head": 2, "seq_length": 24}),
    ],
)  # fmt: skip
def test_soft_limits_are_no_limits(name: str, settings: dict[str, Any]) -> None:
    cls = getattr(transformers, name)
    config = cls.config_class(**settings)
    found = context_length(config.to_dict(), {"model_max_length": 20})
    assert found == ContextLength(20, hard=False)
    assert _runs(cls(config).eval(), 60)


@pytest.mark.parametrize(
    ("config", "tokenizer", "expected"),
    [
        # each as on the Hub
        ({"model_type": "xlm-roberta", "max_position_embeddings": 514, "pad_token_id": 1}, {}, (512, True)),
        ({"model_type": "longformer", "max_position_embeddings": 4098, "pad_token_id": 1}, {}, (4096, True)),
        ({"model_type": "led", "max_encoder_position_embeddings": 16384, "max_decoder_position_embeddings": 1024},
         {"model_max_length": 16384}, (16384, True)),
        ({"model_type": "gpt2", "n_positions": 1024, "n_ctx": 1024}, {}, (1024, True)),
        ({"model_type": "mpt", "max_seq_len": 2048}, {}, (2048, True)),
        ({"model_type": "chatglm", "seq_length": 32768}, {}, (32768, True)),
        ({"model_type": "qwen2", "max_position_embeddings": 32768}, {"model_max_length": 131072}, (32768, True)),
        ({"model_type": "qwen2", "max_position_embeddings": 131072}, {"model_max_length": 16384}, (131072, True)),
        ({"model_type": "mistral", "max_position_embeddings": 32768, "sliding_window": 4096},
         {"model_max_length": 1000000000000000019884624838656}, (32768, True)),
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "max_position_embeddings": 131072}},
         {"model_max_length": 1000000000000000019884624838656}, (131072, True)),
        ({"model_type": "llama4", "text_config": {"max_position_embeddings": 10485760}}, {}, (10485760, True)),
        ({"model_type": "encoder-decoder", "encoder": {"model_type": "bert", "max_position_embeddings": 512},
          "decoder": {"model_type": "gpt2", "n_positions": 1024}}, {}, (512, True)),
        ({"model_type": "encoder-decoder", "encoder": {"model_type": "roberta", "max_position_embeddings": 514}}, {},
         (512, True)),
        ({"model_type": "t5gemma", "encoder": {"text_config": {"max_position_embeddings": 8192}}}, {}, (8192, True)),
        ({"model_type": "t5", "n_positions": 512}, {"model_max_length": 512}, (512, False)),
        ({"model_type": "t5", "n_positions": 512}, {}, (512, False)),
        ({"model_type": "t5"}, {"model_max_length": 1000000000000000019884624838656}, (None, False)),
        ({"model_type": "mamba"}, {}, (None, False)),
        ({"model_type": "falcon", "alibi": True, "max_position_embeddings": 2048}, {}, (2048, False)),
        ({"model_type": "xlnet", "max_position_embeddings": -1}, {"model_max_length": 512.0}, (512, False)),
        # rope scaling, as cards and configs on the Hub spell it
        *[({"max_position_embeddings": stated, spelling: rope}, {"model_max_length": limit}, (expected, True))
          for spelling in ("rope_scaling", "rope_parameters") for stated, rope, limit, expected in (
              (32768, {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 131072, 131072),
              (40960, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 131072, 131072),
              (32768, {"type": "yarn", "factor": 16.0, "original_max_position_embeddings": 8192}, 10**30, 131072),
              (163840, {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}, 131072, 163840),
              (64, {"type": "yarn", "factor": 4.0}, 10**30, 256),
              (4096, {"type": "linear", "factor": 4.0}, 16384, 16384),
              (4096, {"rope_type": "dynamic", "factor": 2.0}, 10**30, 8192),
              (131072, {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}, 10**30,
               131072),
              (131072, {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}, 131072, 131072),
              (131072, {"type": "su", "short_factor": [1.0], "long_factor": [2.0]}, 131072, 131072),
              (32768, {"type": "mrope", "mrope_section": [16, 24, 24]}, 10**30, 32768),
              (32768, {"rope_type": "default", "factor": 4.0}, 10**30, 32768),
              (32768, {"rope_type": "linear", "factor": None}, 10**30, 32768),
          )],
        # the length is the scaled one already, and only the tokenizer tells; rope runs beyond it
        ({"max_position_embeddings": 16384, "rope_scaling": {"type": "linear", "factor": 4.0}},
         {"model_max_length": 16384}, (16384, False)),
        ({"max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
          "rope_scaling": {"type": "longrope", "factor": 32.0}}, {}, (131072, True)),
        # Gemma 3, of version 4 and 5: only some layers are scaled, for a length that is stated
        ({"text_config": {"max_position_embeddings": 131072, "rope_local_base_freq": 10000.0,
                          "rope_scaling": {"rope_type": "linear", "factor": 8.0}}}, {}, (131072, True)),
        ({"max_position_embeddings": 131072, "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0}, "sliding_attention": {"rope_type": "default"}}},
         {}, (131072, True)),
        ({"max_position_embeddings": 64, "rope_parameters": {
            "full_attention": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
            "sliding_attention": {"rope_type": "default"}}}, {}, (256, True)),
        # code of its own with an offset that no table here knows
        ({"model_type": "new-roberta", "max_position_embeddings": 514}, {"model_max_length": 512}, (512, True)),
        ({}, {}, (None, False)),
        ({"max_position_embeddings": None, "n_positions": True}, {"model_max_length": "many"}, (None, False)),
    ],
)  # fmt: skip
def test_the_keys_of_each_family(
    config: dict[str, Any], tokenizer: dict[str, Any], expected: tuple[int | None, bool]
) -> None:
    assert context_length(config, tokenizer) == ContextLength(*expected)


def test_the_tokenizer_config_may_be_left_out() -> None:
    assert context_length({"model_type": "t5"}) == ContextLength(None, hard=False)
