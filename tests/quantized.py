"""Tiny checkpoints with quantized weights, each beside one that has the same weights in float32."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GptOssConfig, GptOssForCausalLM

from tests import tiny

__all__ = ["KINDS", "write_quantized"]

SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32}
_BLOCK = 32
Weights = dict[str, torch.Tensor]


def _copy(source: Path, folder: Path, weights: Weights, quantization: dict[str, Any] | None = None) -> None:
    shutil.copytree(source, folder)
    save_file(
        {name: each.contiguous() for name, each in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    config = json.loads((folder / "config.json").read_text())
    if quantization is not None:
        config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))


def _written_by_hand(
    quantize: Callable[[str, torch.Tensor], tuple[Weights, torch.Tensor]], quantization: dict[str, Any]
) -> Callable[[Path, Path, Path], None]:
    """A checkpoint whose projections are replaced: ``quantize`` returns what is stored, and what it stands for."""

    def write(source: Path, packed: Path, plain: Path) -> None:
        stored, rounded = Weights(), Weights()
        for name, weight in load_file(source / "model.safetensors").items():
            parts, value = quantize(name, weight) if "_proj" in name and weight.ndim > 1 else ({name: weight}, weight)
            stored |= parts
            rounded[name] = value
        _copy(source, packed, stored, quantization)
        _copy(source, plain, rounded)

    return write


def _fp8_blocks(name: str, weight: torch.Tensor) -> tuple[Weights, torch.Tensor]:
    rows, columns = weight.shape
    blocks = weight.view(rows // _BLOCK, _BLOCK, columns // _BLOCK, _BLOCK)
    scales = blocks.abs().amax((1, 3)) / 448
    wide = scales.repeat_interleave(_BLOCK, 0).repeat_interleave(_BLOCK, 1)
    values = (weight / wide).to(torch.float8_e4m3fn)
    return {name: values, f"{name}_scale_inv": scales}, values.float() * wide


def _channels(dtype: torch.dtype, largest: float) -> Callable[[str, torch.Tensor], tuple[Weights, torch.Tensor]]:
    def quantize(name: str, weight: torch.Tensor) -> tuple[Weights, torch.Tensor]:
        scales = weight.abs().amax(1, keepdim=True) / largest
        values = weight / scales
        values = (values if dtype.is_floating_point else values.round()).to(dtype)
        return {name: values, f"{name}_scale": scales}, values.float() * scales

    return quantize


def _packed_int4(name: str, weight: torch.Tensor) -> tuple[Weights, torch.Tensor]:
    rows, columns = weight.shape
    scales = weight.view(rows, -1, _BLOCK).abs().amax(2) / 7
    wide = scales.repeat_interleave(_BLOCK, 1)
    values = (weight / wide).round()
    digits = (values.to(torch.int64) + 8).view(rows, columns // 8, 8) << torch.arange(0, 32, 4)
    packed = digits.sum(2)
    packed = torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)
    parts = {"weight_packed": packed, "weight_scale": scales, "weight_shape": torch.tensor([rows, columns])}
    return {name.replace("weight", part): each for part, each in parts.items()}, values * wide


_E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def _mxfp4(name: str, weight: torch.Tensor) -> tuple[Weights, torch.Tensor]:
    """Experts, with arbitrary digits and one scale."""
    if "experts" not in name or name.endswith("bias"):
        return {name: weight}, weight
    experts, inputs, outputs = weight.shape
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8, generator=generator)
    scales = torch.full(blocks.shape[:3], 127 - 4, dtype=torch.uint8)
    values = torch.stack([_E2M1[(blocks & 15).long()], _E2M1[(blocks >> 4).long()]], dim=-1) / 2**4
    return {f"{name}_blocks": blocks, f"{name}_scales": scales}, values.view(experts, outputs, inputs).mT


def _of_compressed_tensors(form: str, **weights: Any) -> dict[str, Any]:
    inputs = None if form == "pack-quantized" else weights | {"strategy": "token", "dynamic": True}
    group = {"targets": ["Linear"], "weights": {"symmetric": True, **weights}, "input_activations": inputs}
    settings = {"quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed"}
    return {**settings, "config_groups": {"group_0": group}, "ignore": ["lm_head"]}


def _saved_by_transformers(make: Callable[[], Any]) -> Callable[[Path, Path, Path], None]:
    def write(source: Path, packed: Path, plain: Path) -> None:
        options: dict[str, Any] = {"dtype": torch.float32, "quantization_config": make(), "device_map": {"": "cpu"}}
        shutil.copytree(source, packed)
        (packed / "model.safetensors").unlink()
        model: Any = AutoModelForCausalLM.from_pretrained(source, **options)
        model.save_pretrained(packed)
        if "torchao" in type(model.hf_quantizer).__module__:
            weights = model.state_dict()
            rounded = {name: getattr(each, "dequantize", each.clone)() for name, each in weights.items()}
        else:
            rounded = model.dequantize(torch.float32).state_dict()
        _copy(source, plain, rounded)

    return write


def _bitsandbytes(**options: Any) -> Callable[[], Any]:
    def make() -> Any:
        pytest.importorskip("bitsandbytes")
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(**options)

    return make


def _torchao() -> Any:
    quantization = pytest.importorskip("torchao.quantization")
    from transformers import TorchAoConfig

    return TorchAoConfig(quantization.Int8WeightOnlyConfig(version=2))


_FP8 = {"quant_method": "fp8", "weight_block_size": [_BLOCK, _BLOCK], "activation_scheme": "dynamic"}
_KEPT = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
_INT8 = _of_compressed_tensors("int-quantized", num_bits=8, type="int", strategy="channel")
_FLOAT8 = _of_compressed_tensors("float-quantized", num_bits=8, type="float", strategy="channel")
_INT4 = _of_compressed_tensors("pack-quantized", num_bits=4, type="int", strategy="group", group_size=_BLOCK)
KINDS: dict[str, Callable[[Path, Path, Path], None]] = {
    "fp8": _written_by_hand(_fp8_blocks, _FP8),
    "mxfp4": _written_by_hand(_mxfp4, {"quant_method": "mxfp4", "modules_to_not_convert": _KEPT}),
    "int8, compressed-tensors": _written_by_hand(_channels(torch.int8, 127), _INT8),
    "float8, compressed-tensors": _written_by_hand(_channels(torch.float8_e4m3fn, 448), _FLOAT8),
    "int4, compressed-tensors": _written_by_hand(_packed_int4, _INT4),
    "nf4": _saved_by_transformers(_bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4")),
    "int8": _saved_by_transformers(_bitsandbytes(load_in_8bit=True)),
    "torchao": _saved_by_transformers(_torchao),
}


def _gpt_oss(folder: Path) -> Path:
    llama = tiny.build("llama", folder, **SIZES)
    settings = json.loads((llama / "config.json").read_text())
    (llama / "model.safetensors").unlink()
    kept = ("vocab_size", "num_hidden_layers", "pad_token_id", "bos_token_id", "eos_token_id")
    sizes = {"intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 4}
    own = {name: settings[name] for name in kept} | sizes
    torch.manual_seed(0)
    config = GptOssConfig(hidden_size=64, head_dim=32, max_position_embeddings=128, num_experts_per_tok=2, **own)
    model = GptOssForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
    model.save_pretrained(llama)
    return llama


def write_quantized(kind: str, folder: Path) -> tuple[Path, Path]:
    """The folders of a quantized checkpoint, and of its dequantized weights."""
    if "compressed-tensors" in kind:
        pytest.importorskip("compressed_tensors")
    source = _gpt_oss(folder / "source") if kind == "mxfp4" else tiny.build("llama", folder / "source", **SIZES)
    KINDS[kind](source, folder / "packed", folder / "plain")
    return folder / "packed", folder / "plain"
