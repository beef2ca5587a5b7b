"""Runs that have to do with adapters: what is refused, and that the result is what was trained, wherever it is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import llmkit
from llmkit.config.recipe import Recipe
from llmkit.config.settings import LoadSettings
from llmkit.errors import CheckpointError, UsageError
from llmkit.models.inspect import inspect_source
from llmkit.models.load import load_model
from llmkit.models.locate import locate
from llmkit.tasks import Head
from llmkit.training.dry_run import dry_run
from llmkit.training.merge import merge
from llmkit.training.run import finetune
from llmkit.training.trainable import make_trainable
from tests.conftest import Checkpoint
from tests.training.recipes import make_recipe, write_rows
from tests.zoo.models import build

LORA = {"peft_type": "LORA", "r": 4}


def recipe_of(model: Any, folder: Path, out: str = "out", **sections: Any) -> Recipe:
    rows = write_rows(folder / "rows.jsonl", [{"prompt": "The quick", "completion": "brown fox"}] * 4)
    train = {
        "output_dir": str(folder / out),
        "max_steps": 2,
        "learning_rate": 0.05,
        "save_strategy": "no",
        "bf16": False,
    }
    return make_recipe("text-generation", model, rows, train=train, **sections)


def loaded(folder: Path) -> Any:
    return llmkit.load("generate", str(folder), offline=True, device="cpu", dtype="float32").loaded.model


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([[5, 9, 12]])).logits


@pytest.fixture
def adapter(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """What a run with a changed config left."""
    changes = {"rms_norm_eps": 0.5, "max_position_embeddings": 96}
    section = {"name_or_path": str(checkpoint("llama")), "offline": True, "config_overrides": changes}
    finetune(recipe_of(section, tmp_path, adapter=LORA))
    return tmp_path / "out"


def test_changed_settings_of_the_config_stay_with_the_adapter(
    checkpoint: Checkpoint, adapter: Path, tmp_path: Path
) -> None:
    model = loaded(adapter)
    assert model.config.rms_norm_eps == 0.5
    merge(str(adapter), tmp_path / "merged")
    torch.testing.assert_close(logits(loaded(tmp_path / "merged")), logits(model), rtol=1e-3, atol=1e-3)
    trainer = finetune(recipe_of(adapter, tmp_path, "more"))  # trains the adapter on
    again = loaded(tmp_path / "more")
    assert again.config.rms_norm_eps == 0.5
    torch.testing.assert_close(logits(again), logits(trainer.model))
    assert not torch.allclose(logits(again), logits(model))
    card = (tmp_path / "more" / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "peft"
    assert "a PEFT adapter (LORA)" in card
    assert str(tmp_path) not in card
    assert next(iter(dry_run(recipe_of(adapter, tmp_path, "dry")))).startswith("text-generation")


def test_tokens_are_not_added_where_other_embeddings_are(tmp_path: Path) -> None:
    build(Head.CAUSAL, "moshi", tmp_path / "moshi")
    recipe = recipe_of(tmp_path / "moshi", tmp_path, adapter=LORA, tokenizer={"add_tokens": ["<new>"]})
    with pytest.raises(UsageError, match=r"has outputs for [\d,]+ tokens and embeddings of"):
        list(dry_run(recipe))


def test_the_context_is_that_of_the_changed_config(adapter: Path) -> None:
    settings = LoadSettings(model=str(adapter), offline=True, device="cpu")
    assert load_model(settings, "text-generation").context.tokens == 96
    assert inspect_source(locate(settings, "text-generation")).context_length == 96


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"adapter": LORA}, "is an adapter, and the recipe adds another to it.*run `llmkit merge .* -o FOLDER` first"),
        ({"tokenizer": {"add_tokens": ["<new>"]}}, "whose vocabulary cannot be changed; run `llmkit merge"),
    ],
)
def test_what_would_change_the_base_of_an_adapter_is_refused(
    sections: dict[str, Any], said: str, adapter: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(adapter, tmp_path, "more", **sections)
    for begin in (finetune, lambda recipe: list(dry_run(recipe))):
        with pytest.raises(UsageError, match=said):
            begin(recipe)
    merge(str(adapter), tmp_path / "merged")
    finetune(recipe_of(tmp_path / "merged", tmp_path, "more", **sections))


def test_virtual_tokens_are_not_trained_on(checkpoint: Checkpoint, tmp_path: Path) -> None:
    finetune(recipe_of(checkpoint("llama"), tmp_path, adapter={"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4}))
    for begin in (finetune, lambda recipe: list(dry_run(recipe))):
        with pytest.raises(UsageError, match="is an adapter of virtual tokens"):
            begin(recipe_of(tmp_path / "out", tmp_path, "more"))


def test_a_base_by_a_relative_path_is_found_from_elsewhere(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "base").symlink_to(checkpoint("llama"))
    monkeypatch.chdir(tmp_path)
    trainer = finetune(recipe_of("models/base", tmp_path, adapter=LORA))
    monkeypatch.chdir("/")
    torch.testing.assert_close(logits(loaded(tmp_path / "out")), logits(trainer.model))


def test_new_tokens_of_a_model_with_several_names_for_its_embeddings(checkpoint: Checkpoint, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"source": "<new> The fox", "target": "fox <new>"}] * 4)
    train = {"output_dir": str(tmp_path / "out"), "max_steps": 2, "learning_rate": 0.1, "bf16": False}
    recipe = make_recipe(
        "translation",
        checkpoint("marian"),
        rows,
        train=train,
        adapter=LORA,
        tokenizer={"add_tokens": ["<new>"]},
        settings={"source": "en", "target": "de"},
    )
    finetune(recipe)  # where the tokens had no part in the loss, or were not loaded again, it would stop
    kept = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert [name for name in kept if "trainable_tokens_delta" in name] == [
        "base_model.model.model.encoder.embed_tokens.token_adapter.trainable_tokens_delta"
    ]
    merge(str(tmp_path / "out"), tmp_path / "merged")  # which compares the two


@pytest.fixture
def _apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tensors beside the model, which only the first update can show to be out of the loss."""
    made = make_trainable

    def apart(*arguments: Any) -> Any:
        model = made(*arguments)
        model.extra = torch.nn.Linear(2, 2)
        return model

    monkeypatch.setattr("llmkit.training.run.make_trainable", apart)


@pytest.mark.usefixtures("_apart")
def test_what_no_loss_reaches_stops_the_run(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"2 of \d+ trained tensors have no part in the loss: extra.*with train.freeze"
    ):
        finetune(recipe_of(checkpoint("llama"), tmp_path, adapter=LORA))


@pytest.mark.usefixtures("_apart")
def test_where_all_weights_are_trained_it_stays_as_it_is(
    checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    extra = finetune(recipe_of(checkpoint("llama"), tmp_path)).model.extra
    assert extra.weight.grad is None
    assert "2 tensors such as extra.weight are not trained: they have no part in the loss" in caplog.text


def test_what_is_swept_in_and_no_loss_reaches_is_not_trained(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """XLNet learns a vector for masked tokens, which no other training uses."""
    build(Head.SPAN, "xlnet", tmp_path / "xlnet")
    rows = write_rows(tmp_path / "rows.jsonl", [{"question": "Who?", "context": "The fox", "answers": "fox"}] * 2)
    recipe = make_recipe(
        "question-answering",
        tmp_path / "xlnet",
        rows,
        train={"output_dir": str(tmp_path / "out"), "max_steps": 1, "save_strategy": "no", "bf16": False},
    )
    assert "transformer.mask_emb" not in finetune(recipe).trained
    assert "not trained, because they have no part in the loss: transformer.mask_emb" in caplog.text
    named = recipe.model_copy(update={"train": recipe.train.model_copy(update={"output_dir": str(tmp_path / "dry")})})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("llmkit.training.trainable.is_swept_in", lambda *_: False)
        for begin in (finetune, lambda recipe: list(dry_run(recipe))):
            with pytest.raises(UsageError, match=r"have no part in the loss: transformer.mask_emb; .* train.freeze"):
                begin(named)


@pytest.mark.parametrize("adapter", [None, LORA])
def test_files_that_hold_another_model_are_an_error_and_are_kept(
    adapter: dict[str, Any] | None, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(folder: Path, *_: Any) -> None:
        file = folder / ("model.safetensors" if adapter is None else "adapter_model.safetensors")
        save_file({name: each * 2 for name, each in load_file(file).items()}, file, metadata={"format": "pt"})

    monkeypatch.setattr("llmkit.training.result.write_contract", spoil)
    sections: dict[str, Any] = {} if adapter is None else {"adapter": adapter}
    with pytest.raises(CheckpointError, match=r"does not contain the trained model.*its weights are kept"):
        finetune(recipe_of(checkpoint("llama"), tmp_path, **sections))
    assert (tmp_path / "out" / "README.md").is_file()
    assert json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))["updates"] == 2


def test_a_folder_that_was_trained_anew_is_loaded_anew(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, out = finetune(recipe_of(checkpoint("llama"), tmp_path, adapter=LORA)).model, tmp_path / "out"
    one = loaded(out)
    assert loaded(out) is one
    torch.testing.assert_close(logits(one), logits(first))
    file = out / "adapter_model.safetensors"
    save_file(
        {name: -each for name, each in load_file(file).items() if "lora_B" in name}
        | {name: each for name, each in load_file(file).items() if "lora_B" not in name},
        file,
    )
    assert not torch.allclose(logits(loaded(out)), logits(first))
    monkeypatch.chdir(tmp_path)
    here = loaded(Path("out"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "out").symlink_to(checkpoint("llama"))
    monkeypatch.chdir(tmp_path / "other")
    assert not hasattr(loaded(Path("out")), "peft_config")
    assert hasattr(here, "peft_config")
