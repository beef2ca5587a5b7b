"""Files of a model that could run as programs: no command runs one that nobody allowed."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.conftest import Run
from tests.conftest import Checkpoint

RAN = "ran"


def change(file: Path, **settings: Any) -> None:
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(content | settings))


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def own_class(folder: Path, _marker: Path) -> None:
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    change(folder / "config.json", model_type="evil", architectures=["Model"], auto_map=auto_map)


def replaced_class(folder: Path, _marker: Path) -> None:
    change(folder / "config.json", auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})


def own_tokenizer(folder: Path, _marker: Path) -> None:
    auto_map = {"AutoTokenizer": ["evil.T", "evil.T"], "AutoProcessor": "evil.P"}
    change(folder / "tokenizer_config.json", tokenizer_class="EvilTokenizer", auto_map=auto_map)
    change(folder / "processor_config.json", processor_class="EvilProcessor", auto_map=auto_map)


def own_decoding(folder: Path, _marker: Path) -> None:
    (folder / "custom_generate").mkdir()
    shutil.copy(folder / "evil.py", folder / "custom_generate" / "generate.py")
    change(folder / "generation_config.json", custom_generate=str(folder), trust_remote_code=True)


def pickled(folder: Path, marker: Path) -> None:
    torch.save({**load_file(folder / "model.safetensors"), "evil": Evil(marker)}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def other_pickles(folder: Path, marker: Path) -> None:
    for name in ("training_args.bin", "optimizer.pt", "tokenizer.pkl", "pytorch_model.bin"):
        (folder / name).write_bytes(pickle.dumps(Evil(marker)))


EVERYWHERE = (own_class, pickled)
"""Tried on every command; the others differ only in what one loader does with them."""


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "The", "completion": "fox"}\n' * 4, encoding="utf-8")
    return path


@pytest.fixture
def adapter(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    import peft
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(checkpoint("llama"))
    adapted: Any = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", r=2))
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
@pytest.mark.parametrize("spoil", [own_class, replaced_class, own_tokenizer, own_decoding, pickled, other_pickles])
def test_no_command_runs_a_models_program_unasked(
    spoil: Callable[[Path, Path], None], checkpoint: Checkpoint, adapter: Path, rows: Path, tmp_path: Path, run: Run
) -> None:
    model, marker, sound = tmp_path / "evil", tmp_path / RAN, checkpoint("llama")
    shutil.copytree(sound, model)
    (model / "evil.py").write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n")
    spoil(model, marker)
    change(adapter / "adapter_config.json", base_model_name_or_path=str(model), auto_mapping={"parent_library": "evil"})
    recipe = tmp_path / "recipe.yaml"
    content = {
        "version": 1,
        "task": "text-generation",
        "model": {"name_or_path": str(model), "device": "cpu"},
        "data": {"train": str(rows), "num_proc": 1},
        "train": {"output_dir": str(tmp_path / "out"), "max_steps": 1},
    }
    recipe.write_text(json.dumps(content), encoding="utf-8")
    few = ["--max-new-tokens", "1"]
    judged = ["evaluate", "--task", "generate", "--data", rows, "--max-rows", "1", *few]
    commands: list[list[Any]] = [["generate", "--model", model, "hi", *few], ["inspect", model, "--exact"]]
    if spoil in EVERYWHERE:
        commands += [
            ["generate", "--model", adapter, "hi", *few],
            ["data", "check", recipe],
            [*judged, "--model", sound, "--baseline", model, "--output", tmp_path / "evaluation"],
            ["finetune", recipe, "--dry-run"],
            ["merge", adapter, "--output", tmp_path / "merged"],
        ]
    for command in commands:
        _, _, err = run(*command)
        assert "Traceback" not in err
        assert "see the whole error with --debug" not in err
        assert not marker.exists(), command


def test_pickles_of_an_adapter_are_allowed_where_it_is_merged(
    checkpoint: Checkpoint, adapter: Path, tmp_path: Path, run: Run
) -> None:
    weights, marker = adapter / "adapter_model.safetensors", tmp_path / RAN
    torch.save({**load_file(weights), "evil": Evil(marker)}, weights.with_suffix(".bin"))
    weights.unlink()
    code, _, err = run("merge", adapter, "--output", tmp_path / "merged")
    assert (code, marker.exists()) == (1, False)
    assert "--allow-pickle" in err
    assert run("merge", adapter, "--output", tmp_path / "merged", "--allow-pickle")[0] == 0
    assert marker.exists()
