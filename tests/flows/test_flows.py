"""The flows of docs/flows.md: each is prepared, trains two updates, and answers, on a tiny model of its family."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmkit.cli.app import main
from tests import tiny
from tests.conftest import Checkpoint

PAGE = (Path(__file__).parents[2] / "docs" / "flows.md").read_text(encoding="utf-8")


@dataclass
class Flow:
    title: str
    files: dict[str, str] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)


def flows() -> list[Flow]:
    """The sections of the page: files by the names above their blocks, and the commands of blocks without a name."""
    found = []
    for section in PAGE.split("\n## ")[1:]:
        flow = Flow(section.partition("\n")[0])
        for name, kind, text in re.findall(r"(?:`([\w.]+)`\n\n)?```(\w+)\n(.*?)```", section, re.DOTALL):
            if name:
                flow.files[name] = text
            else:
                assert kind == "bash"
                flow.commands += text.strip().splitlines()
        found.append(flow)
    return found


_CHAT = {"chat": True, "max_position_embeddings": 2048}
_TOOLS = (
    "{% if tools %}<|system|>{{ tools | tojson }}{{ eos_token }}{% endif %}{% for m in messages %}<|{{ m.role }}|>"
    "{{ m.content }}{% if m.tool_calls %}{% for c in m.tool_calls %}<tool_call>{{ c.function | tojson }}</tool_call>"
    "{% endfor %}{% endif %}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

STAND_INS: dict[str, tuple[str, dict[str, Any]]] = {
    "google/mt5-small": ("mt5", {}),
    "Helsinki-NLP/opus-mt-en-fr": ("marian", {}),
    "google-bert/bert-base-cased": ("bert", {"model_class": "BertForMaskedLM"}),
    "google-bert/bert-base-chinese": ("bert", {"model_class": "BertForMaskedLM"}),
    "Qwen/Qwen2.5-0.5B": ("qwen3", _CHAT),
    "Qwen/Qwen2.5-0.5B-Instruct": ("qwen3", _CHAT),
    "Qwen/Qwen3-8B": ("qwen3", _CHAT),
    "Qwen/Qwen3-0.6B": ("qwen3", {**_CHAT, "chat": _TOOLS}),
    "huggyllama/llama-7b": ("llama", {"max_position_embeddings": 512}),
    "meta-llama/Llama-2-7b-hf": ("llama", {"max_position_embeddings": 512}),
    "google/flan-t5-base": ("t5", {}),
    "google-t5/t5-small": ("t5", {}),
    "fnlp/bart-base-chinese": ("bart-chinese", {"max_position_embeddings": 512}),
    "facebook/nllb-200-distilled-600M": ("nllb", {}),
    "openai-community/gpt2": ("gpt2", {"n_positions": 1024}),
    "uer/gpt2-chinese-cluecorpussmall": ("gpt2-chinese", {}),
}
"""Tiny checkpoints in place of the models of the page, by their names."""

SMALL = {"n_embd": 16, "n_layer": 2, "n_head": 2}


def _with_sep(tokenizer: Any) -> dict[str, Any]:
    start, end = tokenizer.cls_token_id, tokenizer.sep_token_id
    marks = {"bos_token_id": start, "eos_token_id": end, "decoder_start_token_id": end, "forced_eos_token_id": end}
    return {**tiny.FAMILIES["bart"][2](tokenizer), **marks}


def _without_end(tokenizer: Any) -> dict[str, Any]:
    """As published: the ids of GPT-2's own vocabulary, which is larger."""
    return {**tiny.FAMILIES["gpt2"][2](tokenizer), "bos_token_id": 50256, "eos_token_id": 50256}


@pytest.fixture(autouse=True)
def _families(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two architectures with BERT's tokenizer."""
    for name, model_class, settings in (
        ("bart-chinese", "BartForConditionalGeneration", _with_sep),
        ("gpt2-chinese", "GPT2LMHeadModel", _without_end),
    ):
        monkeypatch.setitem(tiny.FAMILIES, name, (model_class, "BertTokenizer", settings))


def changes(recipe: dict[str, Any], checkpoint: Checkpoint) -> list[str]:
    """What makes a recipe small: a stand-in for its model, two updates on the CPU, and no quantization."""
    name = recipe["model"].get("name_or_path")
    found = ["model.offline=true", "model.device=cpu", "train.bf16=false", "train.max_steps=2"]
    if name in STAND_INS:
        family, settings = STAND_INS[name]
        found.append(f"model.name_or_path={checkpoint(family, **settings)}")
    elif name is None:
        found += [f"model.config.{key}={value}" for key, value in SMALL.items()] + ["tokenizer.train.vocab_size=300"]
    if "quantize" in recipe["model"]:
        found.append("model.quantize=null")
    return [part for change in found for part in ("--set", change)]


@pytest.mark.parametrize("flow", flows(), ids=lambda flow: flow.title)
def test_a_flow_is_prepared_trained_and_answers(
    flow: Flow,
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in flow.files.items():
        Path(name).write_text(text, encoding="utf-8")
    for name in flow.files:
        if name.endswith(".yaml"):
            recipe = yaml.safe_load(flow.files[name])
            small = changes(recipe, checkpoint)
            assert main(["finetune", name, "--dry-run", *small]) == 0, capsys.readouterr().err
            assert main(["finetune", name, *small]) == 0, capsys.readouterr().err
            metrics = json.loads(Path(recipe["train"]["output_dir"], "metrics.json").read_text(encoding="utf-8"))
            assert metrics["updates"] == 2
            assert metrics["train_loss"] > 0
    capsys.readouterr()
    for command in flow.commands:
        limit = [] if command.startswith("llmkit answer") and "t5" not in command else ["--max-new-tokens", "4"]
        code = main([*shlex.split(command)[1:], "--device", "cpu", "--offline", *limit])
        assert code == 0, capsys.readouterr().err
