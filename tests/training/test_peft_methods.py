"""PEFT methods on tiny models: `benchmarks/peft_methods.md` has all of them on all heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llmkit.config.settings import LoadSettings
from llmkit.errors import UsageError
from llmkit.models.adapter_init import save_adapter
from llmkit.models.adapter_methods import refuse_untrainable
from llmkit.models.adapters import attach
from llmkit.models.load import load_model
from llmkit.tasks import Head
from llmkit.training.dry_run import dry_run
from tests.conftest import Checkpoint
from tests.models.test_adapters import IDS, load, same, section_of
from tests.training.peft_cases import CASES, measure, recipe_for

SUBSET = {
    # Each on one head; training ends with a comparison of the saved model with the trained one.
    "BEFT": "bert",
    "C3A": "t5",
    "DEFT": "bart",
    "DELORA": "llama",
    "FOURIERFT": "gpt2",
    "GLORA": "bert",
    "GRALORA": "llama",
    "HIRA": "t5",
    "HRA": "llama",
    "IA3": "bart",
    "LILY": "llama",
    "LN_TUNING": "llama",
    "LOHA": "bart",
    "LOKR": "llama",
    "MISS": "bert",
    "OFT": "t5",
    "OSF": "llama",
    "PEANUT": "bert",
    "PREFIX_TUNING": "bart",
    "PSOFT": "llama",
    "P_TUNING": "gpt2",
    "RANDLORA": "t5",
    "ROAD": "bert",
    "TRAINABLE_TOKENS": "llama",
    "SHIRA": "llama",
    "VBLORA": "bart",
    "VERA": "gpt2",
    "WAVEFT": "llama",
    "DoRA": "t5",
    "rank_pattern": "bart",
    "layers_to_transform": "gpt2",
}


@pytest.mark.parametrize(("name", "family"), SUBSET.items())
def test_a_method_is_trained_and_saved(name: str, family: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    found = measure(CASES[name], family, checkpoint(family), tmp_path, ("train",))
    assert found.columns == {"train": "yes"}, found.details


@pytest.mark.parametrize(
    ("name", "family"),
    [("PiSSA", "gpt2"), ("PiSSA fast", "llama"), ("OLoRA", "bart"), ("EVA", "t5"), ("EVA", "llama")],
)
def test_values_from_the_base_or_data_are_the_same_after_resuming(
    name: str, family: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    found = measure(CASES[name], family, checkpoint(family), tmp_path, ("train", "resume", "load", "merge"))
    assert set(found.columns.values()) == {"yes"}, found.details


@pytest.mark.parametrize(
    "settings",
    [
        {"init_lora_weights": "pissa"},
        {
            "init_lora_weights": "pissa",
            "use_dora": True,
            "modules_to_save": ["lm_head"],
        },  # PEFT's conversion drops them
        {"init_lora_weights": "olora", "use_rslora": True},
        {"init_lora_weights": "pissa", "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 4}},
    ],
)
def test_an_adapter_taken_out_of_the_base_is_saved_for_the_original_one(
    settings: dict[str, Any], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    base, section = checkpoint("llama"), section_of("LORA", r=4, target_modules=["q_proj", "v_proj"], **settings)
    model = attach(load(base), section, Head.CAUSAL, tokenizer_name="")
    same(model.eval(), load(base))
    first = {name: each.detach().clone() for name, each in model.state_dict().items()}
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.1)
    save_adapter(model, tmp_path / "ours")
    same(load(tmp_path / "ours"), model)
    if "use_dora" not in settings:
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(tmp_path / "first", state_dict=first)
        model.save_pretrained(tmp_path / "theirs", path_initial_model_for_weight_conversion=str(tmp_path / "first"))
        ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "theirs"))
        assert ours.keys() == theirs.keys()
        for name, weight in ours.items():
            assert weight.equal(theirs[name])
        same(load(tmp_path / "theirs"), model)


@pytest.mark.parametrize(
    ("peft_type", "settings", "reason"),
    [
        ("ADALORA", {}, "a loss of its own and it changes ranks"),
        ("CPT", {}, "a loss of its own"),
        ("MULTITASK_PROMPT_TUNING", {}, "each example needs a task id"),
        ("POLY", {}, "each example needs a task id"),
        ("SHADOW", {}, "a loss of its own"),
        ("XLORA", {}, "combines trained adapters"),
        ("ADAMSS", {"use_asa": True}, "changes ranks"),
        ("LORA", {"kasa_config": {"beta": 1e-4}}, "adapter.kasa_config adds a loss"),
        ("LORA", {"monteclora_config": {"num_samples": 2}}, "adapter.monteclora_config adds a loss"),
        ("LORA", {"init_lora_weights": "corda"}, "corda runs the model on data"),
    ],
)
def test_what_needs_more_than_a_loss_is_refused_by_name(peft_type: str, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        refuse_untrainable(section_of(peft_type, **settings))
    refuse_untrainable(section_of("ADAMSS"))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"rank_pattern": {"q_prj": 2}}, "adapter.rank_pattern: q_prj matches no adapted module"),
        ({"alpha_pattern": {r"layers\.7\..*": 2}}, r"adapter.alpha_pattern: layers\\.7\\.\.\* matches no"),
        ({"layers_to_transform": [0, 7]}, "adapter.layers_to_transform: LlamaForCausalLM has no adapted layer 7"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(
    settings: dict[str, Any], reason: str, checkpoint: Checkpoint
) -> None:
    section = section_of("LORA", r=4, target_modules=["q_proj", "v_proj"], **settings)
    with pytest.raises(UsageError, match=reason):
        attach(load(checkpoint("llama")), section, Head.CAUSAL, tokenizer_name="")


def test_initial_values_for_other_layers_are_refused(checkpoint: Checkpoint) -> None:
    """PEFT's OLoRA takes the transposed weights of Conv1D as they are; here square, so that no shape differs."""
    section = section_of("LORA", r=4, target_modules=[r"attn.c_proj"], init_lora_weights="olora")
    with pytest.raises(UsageError, match="olora changes the weights of Conv1D layers by more"):
        attach(load(checkpoint("gpt2")), section, Head.CAUSAL, tokenizer_name="")
    section = section_of("LORA", r=4, target_modules=["c_attn"], init_lora_weights="olora")
    with pytest.raises(UsageError, match="olora changes the weights of Conv1D layers by more"):
        attach(load(checkpoint("gpt2")), section, Head.CAUSAL, tokenizer_name="")


def test_a_method_that_adds_nothing_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(UsageError, match="PEFT adds no trained parameters to GPT2LMHeadModel with OSF"):
        attach(load(checkpoint("gpt2")), section_of("OSF"), Head.CAUSAL, tokenizer_name="")


def test_initial_values_do_not_need_weights_in_a_dry_run(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of PiSSA only the structure is needed; SHiRA's is drawn with the weights at hand."""
    loaded = []

    def counted(*arguments: Any, weights: bool, **named: Any) -> Any:
        loaded.append(weights)
        return open_model(*arguments, weights=weights, **named)

    from llmkit.training.recipe_model import open_model

    monkeypatch.setattr("llmkit.training.prepare.open_model", counted)
    for name, expected in (("PiSSA", [False]), ("SHIRA", [False, True])):
        loaded.clear()
        assert list(dry_run(recipe_for(CASES[name], "llama", checkpoint("llama"), tmp_path, name)))
        assert loaded == expected


def test_eva_starts_from_the_inputs_of_each_layer(checkpoint: Checkpoint) -> None:
    """Components are those of the tokens without padding, and layers with the same inputs share them."""
    settings = LoadSettings(model=str(checkpoint("llama")), offline=True, device="cpu", dtype="float32")
    base: Any = load_model(settings, "text-generation").model
    hidden = base(input_ids=IDS.repeat(1, 8) + torch.arange(32), output_hidden_states=True).hidden_states[0]
    inputs = {"input_ids": IDS.repeat(1, 8) + torch.arange(32), "attention_mask": torch.ones(1, 32, dtype=torch.long)}
    padded = {name: torch.nn.functional.pad(each, (0, 9)) for name, each in inputs.items()}
    targets = ["q_proj", "k_proj"]
    section = section_of("LORA", r=2, target_modules=targets, layers_to_transform=[0], init_lora_weights="eva")

    def started(batch: dict[str, Any]) -> Any:
        return attach(load(checkpoint("llama")), section, Head.CAUSAL, tokenizer_name="", batches=lambda _: [batch])

    plain, same_inputs = started(inputs), started(padded)
    first = base.model.layers[0].input_layernorm(hidden)[0]
    directions = torch.linalg.svd(first - first.mean(0), full_matrices=False)[2][:4]
    for model in (plain, same_inputs):
        layer = model.base_model.model.model.layers[0].self_attn
        for module in (layer.q_proj, layer.k_proj):
            weight = module.lora_A["default"].weight
            # Each row is one of the principal directions, up to its sign.
            overlap = (weight @ directions.T).abs()
            torch.testing.assert_close(overlap.max(1).values, torch.ones(len(weight)), atol=2e-2, rtol=0)
