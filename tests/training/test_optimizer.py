"""Optimizers by their names in Transformers: what they compute, what they refuse, and what is resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from llmkit.config.optimizer_names import MUON, optimizer_names
from llmkit.config.recipe import TrainSection
from llmkit.errors import LlmkitError, MissingDependencyError, UsageError
from llmkit.training.optimizer import make_optimizer, set_training_mode
from llmkit.training.optimizer_check import check_optimizer, state_bytes
from llmkit.training.run import finetune
from tests.conftest import Checkpoint
from tests.training.test_continue import recipe_of

LOW_RANK = {"optim_target_modules": "all-linear", "optim_args": {"rank": 4, "update_proj_gap": 2}}
OURS_ALONE = ("layerwise", "lomo", "grok")
"""Updates in the backward pass, and a state that cannot be saved: refused here, not by Trainer."""
TRANSFORMERS = [name for name in optimizer_names() if name != MUON]


def settings(name: str, **more: Any) -> TrainSection:
    usual: dict[str, Any] = LOW_RANK if name.startswith(("galore", "apollo")) else {"weight_decay": 0.1}
    if "schedule_free" in name:
        usual = {**usual, "lr_scheduler_type": "constant"}
    return TrainSection(output_dir="out", optim=name, learning_rate=0.01, **{**usual, **more})


def model() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, num_key_value_heads=1, **sizes))  # type: ignore[arg-type]


def update(trained: Any, optimizer: Any, times: int = 5) -> dict[str, torch.Tensor]:
    """The weights after some updates."""
    set_training_mode(optimizer, training=True)
    for seed in range(times):
        rows = torch.randint(0, 50, (2, 8), generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        trained(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
    set_training_mode(optimizer, training=False)
    return dict(trained.named_parameters())


def trainer_optimizer(trained: Any, train: TrainSection, folder: Path) -> Any:
    from transformers import Trainer, TrainingArguments

    names = ("optim", "learning_rate", "weight_decay", "optim_target_modules", "lr_scheduler_type")
    arguments = ",".join(f"{name}={value}" for name, value in train.optim_args.items())
    args = {name: getattr(train, name) for name in names} | {"optim_args": arguments or None}
    return Trainer(
        trained, TrainingArguments(str(folder), use_cpu=True, report_to=[], bf16=False, **args)
    ).create_optimizer()


@pytest.mark.filterwarnings("ignore")  # of the packages
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_updates_are_those_of_trainer(name: str, tmp_path: Path) -> None:
    """Where it is installed; what is refused, Trainer refuses too, except for what does not go with this loop."""
    train, ours, theirs = settings(name), model(), model()
    refusal = None
    try:
        check_optimizer(ours, train, 5, "cpu")
    except LlmkitError as error:
        refusal = error
    if refusal is not None:
        assert refusal.fix
        if isinstance(refusal, MissingDependencyError) or not any(part in name for part in OURS_ALONE):
            with pytest.raises(Exception):  # noqa: B017, PT011 - each its own
                update(theirs, trainer_optimizer(theirs, train, tmp_path))
        return
    found = update(ours, make_optimizer(ours, train, 5))
    expected = update(theirs, trainer_optimizer(theirs, train, tmp_path))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert not found["lm_head.weight"].equal(dict(model().named_parameters())["lm_head.weight"])


def test_muon_updates_the_matrices_and_adamw_the_rest() -> None:
    """As the two would apart, with one learning rate and one state."""
    ours, theirs = model(), model()
    hidden = [each.weight for name, each in theirs.named_modules() if "layers" in name and hasattr(each, "in_features")]
    others = [each for each in theirs.parameters() if all(each is not one for one in hidden)]
    options: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1}
    muon = torch.optim.Muon(hidden, **options, adjust_lr_fn="match_rms_adamw", momentum=0.9)
    decayed = [each for each in others if each.ndim == 2]
    vectors = {"params": [each for each in others if each.ndim == 1], "weight_decay": 0.0}
    groups: list[dict[str, Any]] = [{"params": decayed}, vectors]
    adamw = torch.optim.AdamW(groups, **options)
    found = update(ours, made := make_optimizer(ours, settings("muon", optim_args="momentum=0.9"), 5))
    for seed in range(5):
        rows = torch.randint(0, 50, (2, 8), generator=torch.Generator().manual_seed(seed))
        theirs.zero_grad()
        theirs(input_ids=rows, labels=rows).loss.backward()
        muon.step()
        adamw.step()
    torch.testing.assert_close(found, dict(theirs.named_parameters()), rtol=0, atol=0)
    assert len(made.state) == len(list(ours.parameters()))


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("sgd", {"adam_beta1": 0.5}, "train.adam_beta1 has no effect on train.optim sgd; leave it out"),
        ("muon", {"optim_target_modules": "all-linear"}, "train.optim_target_modules has no effect"),
        ("sgd", {"optim_args": {"momentun": 0.9}}, r"momentun is not an argument of sgd; choose from momentum, damp"),
        ("sgd", {"optim_args": {"weight_decay": 0.1}}, "has no effect; set train.weight_decay"),
        ("sgd", {"optim_args": "nesterov=true"}, "Nesterov momentum requires a momentum"),
        ("adamw_torch", {"optim_args": "amsgrad=true"}, "amsgrad is not an argument of adamw_torch; leave"),
        ("muon", {"optim_args": {"adjust_lr_fn": "none"}}, "not supported"),
        ("adamw_torch", {"param_groups": [{"params": "nothing", "learning_rate": 1}]}, "'nothing' matches no trained"),
        (
            "adamw_torch",
            {"param_groups": [{"params": "q_proj", "learning_rate": 1}, {"params": r"q_proj\.", "weight_decay": 1}]},
            "that no group before it matches",
        ),
    ],
)  # fmt: skip
def test_arguments_are_checked_before_training(name: str, more: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_optimizer(model(), settings(name, **more), 5, "cpu")


@pytest.mark.parametrize(
    ("name", "least", "most"), [("adamw_torch", 8, 8), ("sgd", 0, 0), ("adafactor", 0, 0.5), ("muon", 4, 7)]
)
def test_the_bytes_of_a_state_are_measured(name: str, least: float, most: float) -> None:
    assert least <= state_bytes(model(), settings(name), 5, "cpu") <= most


def test_a_truth_value_is_one() -> None:
    """Transformers takes ``bool("False")`` of some."""
    train = settings("sgd", optim_args="momentum=0.9,nesterov=False")
    assert make_optimizer(model(), train, 5).defaults["nesterov"] is False
    pytest.importorskip("optimi")
    optimizer: Any = make_optimizer(model(), settings("stable_adamw", optim_args={"decouple_lr": False}), 5)
    assert not optimizer.defaults["decouple_lr"]


def test_groups_have_their_own_learning_rate_and_weight_decay() -> None:
    groups = [{"params": "embed_tokens", "learning_rate": 0.5}, {"params": "layers.*norm", "weight_decay": 0.2}]
    trained = model()
    made = make_optimizer(trained, settings("adamw_torch", param_groups=groups), 5)
    names = {id(each): name for name, each in trained.named_parameters()}
    found = [
        (group["lr"], group["weight_decay"], [names[id(each)] for each in group["params"]])
        for group in made.param_groups
    ]
    assert [each[:2] for each in found] == [(0.01, 0.1), (0.01, 0.0), (0.5, 0.1), (0.01, 0.2)]
    assert found[1][2] == ["model.norm.weight"]
    assert found[2][2] == ["model.embed_tokens.weight"]
    assert sum(len(each[2]) for each in found) == len(names)


def test_loraplus_has_the_groups_of_peft() -> None:
    config = LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"], use_dora=False, bias="all")
    adapted: Any = get_peft_model(model(), config)
    train = settings("adamw_torch", loraplus_lr_ratio=16.0, loraplus_lr_embedding=1e-4)
    rate = {"lr": train.learning_rate, "loraplus_lr_ratio": 16.0, "loraplus_lr_embedding": 1e-4}
    expected = create_loraplus_optimizer(adapted, torch.optim.AdamW, **rate, loraplus_weight_decay=train.weight_decay)

    def options(optimizer: torch.optim.Optimizer) -> dict[int, tuple[float, float]]:
        groups = optimizer.param_groups
        return {id(each): (group["lr"], group["weight_decay"]) for group in groups for each in group["params"]}

    assert options(make_optimizer(adapted, train, 5)) == options(expected)


@pytest.mark.parametrize("name", ["muon", "schedule_free_adamw"])
def test_a_run_is_resumed_exactly_and_its_weights_are_those_to_evaluate(
    name: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    if name != MUON:
        pytest.importorskip("schedulefree")
    steps: dict[str, Any] = {"optim": name, "lr_scheduler_type": "constant", "save_strategy": "steps", "save_steps": 2}
    folder = checkpoint("llama")
    whole = finetune(recipe_of(folder, tmp_path, "whole", max_steps=4, **steps))
    finetune(recipe_of(folder, tmp_path, "parts", max_steps=2, **steps))
    finetune(recipe_of(folder, tmp_path, "parts", max_steps=4, **steps), resume=True)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(one[name].equal(other[name]) for name in one)
    set_training_mode(whole.optimizer, training=False)  # no effect: it is in this mode
    saved = load_file(tmp_path / "whole" / "checkpoint-4" / "model.safetensors")
    weight = dict(whole.plain_model.named_parameters())["model.norm.weight"]
    assert saved["model.norm.weight"].equal(weight)
    set_training_mode(whole.optimizer, training=True)
    assert weight.equal(saved["model.norm.weight"]) == (name == MUON)


def test_a_schedule_is_refused_beside_an_optimizer_that_replaces_it() -> None:
    pytest.importorskip("schedulefree")
    with pytest.raises(UsageError, match="takes the place of a schedule; set"):
        check_optimizer(model(), settings("schedule_free_sgd", lr_scheduler_type="linear"), 5, "cpu")
    made = check_optimizer(model(), settings("schedule_free_sgd", warmup_steps=0.4), 5, "cpu")
    assert made.defaults["warmup_steps"] == 2


def test_only_what_is_to_be_unfrozen_is_trained(checkpoint: Checkpoint, tmp_path: Path) -> None:
    recipe = recipe_of(
        checkpoint("llama"), tmp_path, "out", max_steps=1, unfreeze=["norm", "lm_head"], freeze=["model.norm"]
    )
    names = {name.removeprefix("model.layers.") for name in finetune(recipe).trained}
    assert names == {f"{n}.{part}_layernorm.weight" for n in (0, 1) for part in ("input", "post_attention")} | {
        "lm_head.weight"
    }
    with pytest.raises(UsageError, match=r"train.unfreeze: 'no such' matches no trained parameter; leave it out, or"):
        finetune(recipe_of(checkpoint("llama"), tmp_path, "other", unfreeze=["no such"]))


def test_the_example_of_the_documentation_is_a_section() -> None:
    page = Path(__file__).parents[2] / "docs" / "optimizers.md"
    section = yaml.safe_load(page.read_text(encoding="utf-8").split("```")[1].removeprefix("yaml"))["train"]
    train = TrainSection(output_dir="out", **section)
    assert train.param_groups[1].learning_rate == 2e-3
    assert train.optim_args == {"r": 0.0}
