"""The loop: any division of an update is the same, a resumed run is the uninterrupted one, losses are the library's."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmkit.config.recipe import Recipe
from llmkit.errors import UsageError
from llmkit.heads.base import IGNORED
from llmkit.models.adapters import attach
from llmkit.tasks import Head
from llmkit.training.checkpoint import checkpoints
from llmkit.training.collate import Batch, collate
from llmkit.training.dataset import prepare
from llmkit.training.encoding import make_encoder
from llmkit.training.loop import Trainer
from llmkit.training.objective import Objective, predictions
from llmkit.training.saved import saved_bytes
from llmkit.training.start import open_model, open_task
from tests.conftest import Checkpoint
from tests.training.recipes import make_recipe, write_rows

ROWS: dict[str, list[dict[str, Any]]] = {
    "text-generation": [
        {"prompt": f"The quick {number} " + "fox " * (number % 5), "completion": "jumps " * (number % 3 + 1)}
        for number in range(20)
    ],
    "question-answering": [
        {"question": "Who?", "context": "The fox jumps. " * (number % 4 + 1), "answers": "fox"} for number in range(20)
    ],
}
HEADS = [("llama", "text-generation"), ("t5", "text-generation"), ("bert", "question-answering")]


def recipe_for(family: str, task: str, folder: Path, checkpoint: Checkpoint, **train: Any) -> Recipe:
    wide = {} if family != "llama" else {"max_position_embeddings": 512}
    rows = write_rows(folder / "rows.jsonl", ROWS[task])
    usual = {"output_dir": str(folder / "out"), "learning_rate": 1e-3, "max_steps": 6, "eval_strategy": "no"}
    usual |= {"per_device_train_batch_size": 4, "max_grad_norm": 1.0, "save_strategy": "no"}
    return make_recipe(task, checkpoint(family, **wide), rows, data={"validation": str(rows)}, train=usual | train)


def trainer(recipe: Recipe, *, packed: bool = False, **options: Any) -> Trainer:
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    task = open_task(recipe)
    torch.manual_seed(recipe.train.seed)
    loaded = open_model(recipe, task, weights=True)
    part = prepare(recipe, make_encoder(recipe, task, loaded)).train
    model: Any = loaded.model.float()
    if recipe.adapter is not None:
        model = attach(model, recipe.adapter, loaded.head, tokenizer_name="")
    AcceleratorState._reset_state(reset_partial_state=True)  # another test's precision
    return Trainer(
        Accelerator(cpu=True), model, loaded.head, recipe.train, part.examples, part.examples, 0, packed, **options
    )


def weights(one: Trainer) -> dict[str, Any]:
    return {name: each.detach().clone() for name, each in one.model.named_parameters()}


def assert_close(one: dict[str, Any], other: dict[str, Any], tolerance: float) -> None:
    import torch

    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize(("family", "task"), HEADS)
def test_one_batch_of_eight_is_eight_of_one(family: str, task: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    def stay(*_: object) -> None:
        """As it is, in the mode of evaluation."""

    def run(size: int, accumulation: int) -> dict[str, Any]:
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        made = trainer(
            recipe_for(family, task, tmp_path, checkpoint, optim="sgd", learning_rate=0.1, max_steps=1, **sizes)
        )
        made.model.eval()  # no dropout, which draws by the batch
        made.model.train = stay
        before = weights(made)
        made.run()
        assert any(not before[name].equal(each) for name, each in weights(made).items())
        return weights(made)

    assert_close(run(8, 1), run(1, 8), 1e-5)


@pytest.mark.parametrize(("family", "task"), HEADS)
def test_a_resumed_run_is_the_uninterrupted_one(family: str, task: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Bit for bit, dropout included, stopped in the middle of an epoch."""
    strategy = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    recipe = recipe_for(family, task, tmp_path, checkpoint, max_steps=8, **strategy)
    whole = trainer(recipe)
    whole.run()
    expected = weights(whole)
    shutil.rmtree(whole.folder)
    calls = iter(range(100))
    first = trainer(recipe, stop_asked=lambda: next(calls) == 2)
    first.run()
    assert first.stopped
    assert [path.name for path in checkpoints(first.folder)][-1] == "checkpoint-3"
    second = trainer(recipe)
    second.resume(first.folder / "checkpoint-3")
    second.run()
    assert second.progress.step == 8
    for name, each in weights(second).items():
        assert each.equal(expected[name]), name


@pytest.mark.parametrize(("family", "task"), HEADS)
def test_the_loss_is_that_of_transformers(family: str, task: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    import torch

    made = trainer(recipe_for(family, task, tmp_path, checkpoint))
    made.model.eval()
    # Transformers lets padding take part in the choice of a span.
    lines = [made.examples[index] for index in range(1 if task == "question-answering" else 6)]
    batch = collate(lines, made.head, pad_id=0, packed=False)
    loss = made.objective.loss_sum(made.model, batch, "cpu") / predictions(batch, made.head)
    inputs = dict(batch.inputs)
    if task == "question-answering":
        inputs |= {"start_positions": batch.labels[:, 0, 0], "end_positions": batch.labels[:, 1, 0]}
    else:
        longest = max(len(line["labels"]) for line in lines)
        inputs["labels"] = torch.tensor([line["labels"] + [-100] * (longest - len(line["labels"])) for line in lines])
    assert loss.item() == pytest.approx(made.model(**inputs).loss.item(), abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "mistral", "gemma3"])
def test_packed_examples_have_the_loss_of_padded_ones(family: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    made = trainer(recipe_for(family, "text-generation", tmp_path, checkpoint))
    made.model.eval()
    lines = [made.examples[index] for index in range(6)]
    losses = []
    for packed in (False, True):
        batch = collate(lines, made.head, pad_id=0, packed=packed)
        losses.append(made.objective.loss_sum(made.model, batch, "cpu").item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_only_the_adapter_moves(checkpoint: Checkpoint, tmp_path: Path) -> None:
    recipe = recipe_for("llama", "text-generation", tmp_path, checkpoint)
    content = recipe.model_dump() | {"adapter": {"peft_type": "LORA", "lora_alpha": 16.0}}
    made = trainer(type(recipe).model_validate(content))
    before = weights(made)
    made.run()
    moved = {name for name, each in weights(made).items() if not each.equal(before[name])}
    assert moved
    assert all("lora_" in name for name in moved)
    assert moved <= set(made.trained)


def test_the_loss_falls_and_evaluations_are_compared(checkpoint: Checkpoint, tmp_path: Path) -> None:
    told: list[Any] = []
    schedule = {"max_steps": 30, "eval_strategy": "steps", "eval_steps": 10, "logging_steps": 10}
    recipe = recipe_for("llama", "text-generation", tmp_path, checkpoint, save_strategy="best", **schedule)
    made = trainer(recipe, told=told.append)
    made.run()
    assert [measured.step for measured in told] == [10, 20, 30]
    assert told[-1].loss < told[0].loss
    evaluations = [entry["eval_loss"] for entry in made.progress.log if "eval_loss" in entry]
    assert evaluations == sorted(evaluations, reverse=True)
    assert made.progress.best_metric == evaluations[-1]
    assert checkpoints(made.folder)[-1].name == "checkpoint-30"


def test_logits_of_label_positions_only(checkpoint: Checkpoint, tmp_path: Path) -> None:
    made = trainer(recipe_for("llama", "text-generation", tmp_path, checkpoint))
    assert made.objective.keeps
    lines = [made.examples[index] for index in range(4)]
    batch = collate(lines, made.head, pad_id=0, packed=False)
    made.model.eval()
    whole = Objective(made.head, keeps=False, smoothing=0.0)
    some, every = (each.loss_sum(made.model, batch, "cpu").item() for each in (made.objective, whole))
    assert some == pytest.approx(every, rel=1e-6)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(("family", "task"), HEADS)
def test_what_autograd_saves_is_counted_without_weights(
    family: str, task: str, half: bool, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    import torch

    recipe = recipe_for(family, task, tmp_path, checkpoint)
    made = trainer(recipe)
    made.model.train()
    batch = collate([made.examples[index] for index in range(4)], made.head, pad_id=0, packed=False)
    saved: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autocast("cpu", torch.bfloat16, enabled=half),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        made.objective.loss_sum(made.model, batch, "cpu")
    weights = {each.untyped_storage().data_ptr() for each in made.model.parameters()}
    expected = sum(each.untyped_storage().nbytes() for place, each in saved.items() if place not in weights)
    empty = open_model(recipe, open_task(recipe), weights=False).model
    assert saved_bytes(empty, made.objective, batch, half=half) == expected


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_each_answer_is_right_and_padding_takes_no_part(smoothing: float, dtype: str) -> None:
    import torch

    lengths = (3, 5, 9)
    answers = [[[0], [2]], [[1, 3, 4], [4]], [[1, 6], [2, 7]]]  # starts and ends of each row
    labels = torch.tensor([[[*each, *[IGNORED] * (3 - len(each))] for each in row] for row in answers])
    logits = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(1)).to(getattr(torch, dtype))
    mask = torch.tensor([[1] * length + [0] * (9 - length) for length in lengths])
    objective = Objective(Head.SPAN, keeps=False, smoothing=smoothing)

    def model(**_: Any) -> SimpleNamespace:
        return SimpleNamespace(start_logits=logits[0], end_logits=logits[1])

    found = objective.loss_sum(model, Batch({"attention_mask": mask}, labels), "cpu").item()
    expected = 0.0
    for row, length in enumerate(lengths):
        for end in (0, 1):
            p = logits[end, row, :length].float().softmax(dim=0)
            right, even = p[answers[row][end]].sum().log(), p.log().mean()
            expected -= ((1 - smoothing) * right + smoothing * even).item() / 2
    assert found == pytest.approx(expected, rel=1e-5)
    nothing = objective.loss_sum(model, Batch({"attention_mask": mask}, torch.full_like(labels, IGNORED)), "cpu")
    assert nothing.item() == 0


@pytest.mark.parametrize("with_weights", [True, False])
def test_a_setting_of_the_checkpoints_config_can_be_changed(
    tmp_path: Path, checkpoint: Checkpoint, with_weights: bool
) -> None:
    recipe = recipe_for("bert", "question-answering", tmp_path, checkpoint)
    task = open_task(recipe)

    def changed(**overrides: Any) -> Recipe:
        model: Any = recipe.model
        return recipe.model_copy(update={"model": model.model_copy(update={"config_overrides": overrides})})

    model: Any = open_model(changed(attention_probs_dropout_prob=0.25), task, weights=with_weights).model
    assert model.bert.encoder.layer[0].attention.self.dropout.p == 0.25
    assert model.config.attention_probs_dropout_prob == 0.25
    with pytest.raises(UsageError, match="did you mean hidden_dropout_prob"):
        open_model(changed(hiden_dropout_prob=0.0), task, weights=with_weights)
