"""The loop: any division of an update is the same, a resumed run is the uninterrupted one, losses are the library's."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmkit.config.recipe import Recipe, recipe_adapter
from llmkit.errors import UsageError
from llmkit.heads import head_of, objective, projection
from llmkit.heads.base import IGNORED
from llmkit.heads.batch import Batch
from llmkit.heads.objective import Objective
from llmkit.heads.token_loss import TokenLoss
from llmkit.models.adapters import attach
from llmkit.tasks import Head
from llmkit.training.activation_memory import activation_bytes
from llmkit.training.checkpoint import checkpoints
from llmkit.training.dataset import make_examples
from llmkit.training.encoding import make_encoder
from llmkit.training.loop import Trainer
from llmkit.training.recipe_model import open_model, open_task
from llmkit.training.trainable import make_trainable
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
    part = make_examples(recipe, make_encoder(recipe, task, loaded)).train
    model: Any = loaded.model.float()
    if recipe.adapter is not None:
        model = attach(model, recipe.adapter, loaded.head, tokenizer_name="")
    AcceleratorState._reset_state(reset_partial_state=True)  # another test's precision
    return Trainer(
        Accelerator(cpu=True),
        model,
        head_of(loaded.head),
        recipe.train,
        part.examples,
        part.examples,
        0,
        packed,
        **options,
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
    """Bit for bit, with dropout and noise, stopped in the middle of an epoch."""
    strategy = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    recipe = recipe_for(family, task, tmp_path, checkpoint, max_steps=8, neftune_noise_alpha=5.0, **strategy)
    whole = trainer(recipe)
    whole.run()
    expected = weights(whole)
    shutil.rmtree(whole.folder)
    calls = iter(range(100))
    first = trainer(recipe, should_stop=lambda: next(calls) == 2)
    first.run()
    assert first.stopped
    assert [path.name for path in checkpoints(first.folder)][-1] == "checkpoint-3"
    second = trainer(recipe)
    second.resume(first.folder / "checkpoint-3")
    second.run()
    assert second.progress.step == 8
    for name, each in weights(second).items():
        assert each.equal(expected[name]), name
    # The third update is between two lines of the log.
    assert (second.progress.tokens, second.progress.log) == (whole.progress.tokens, whole.progress.log)
    assert second.progress.seconds > first.progress.seconds > 0


@pytest.mark.parametrize(("family", "task"), HEADS)
def test_the_loss_is_that_of_transformers(family: str, task: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    import torch

    made = trainer(recipe_for(family, task, tmp_path, checkpoint))
    made.model.eval()
    # Transformers lets padding take part in the choice of a span.
    lines = [made.examples[index] for index in range(1 if task == "question-answering" else 6)]
    batch = made.head.batch(lines, pad_id=0)
    loss = made.objective.loss_sum(made.model, batch, "cpu") / made.head.predictions(batch)
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
        batch = made.head.batch(lines, pad_id=0, packed=packed)
        losses.append(made.objective.loss_sum(made.model, batch, "cpu").item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_only_the_adapter_moves(checkpoint: Checkpoint, tmp_path: Path) -> None:
    recipe = recipe_for("llama", "text-generation", tmp_path, checkpoint)
    content = recipe.model_dump() | {"adapter": {"peft_type": "LORA", "lora_alpha": 16.0}}
    made = trainer(recipe_adapter(content).validate_python(content))
    before = weights(made)
    made.run()
    moved = {name for name, each in weights(made).items() if not each.equal(before[name])}
    assert moved == set(made.trained), "a trained weight gets no gradient"
    assert all("lora_" in name for name in moved)


def test_the_loss_falls_and_evaluations_are_compared(
    checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "llmkit")
    on_log: list[Any] = []
    schedule = {"max_steps": 30, "eval_strategy": "steps", "eval_steps": 10, "logging_steps": 10}
    recipe = recipe_for("llama", "text-generation", tmp_path, checkpoint, save_strategy="best", **schedule)
    made = trainer(recipe, on_log=on_log.append)
    made.run()
    assert [measured.step for measured in on_log] == [10, 20, 30]
    assert on_log[-1].loss < on_log[0].loss
    evaluations = [entry["eval_loss"] for entry in made.progress.log if "eval_loss" in entry]
    assert evaluations == sorted(evaluations, reverse=True)
    assert made.progress.best_metric == evaluations[-1]
    assert checkpoints(made.folder)[-1].name == "checkpoint-30"
    losses = [f"{loss:.4f}" for loss in evaluations]
    assert f"update 10: validation loss {losses[0]}" in caplog.messages
    assert f"update 20: validation loss {losses[1]} (the best so far; before: update 10)" in caplog.messages
    assert f"update 30: saved {checkpoints(made.folder)[-1]}" in caplog.messages


def test_without_clipping_the_norm_of_the_gradient_is_logged(checkpoint: Checkpoint, tmp_path: Path) -> None:
    norms = []
    for limit in (0.0, 1.0):
        once = {"logging_steps": 1, "max_steps": 1, "max_grad_norm": limit}
        made = trainer(recipe_for("gpt2", "text-generation", tmp_path, checkpoint, **once))
        made.run()
        norms.append(made.progress.log[0]["grad_norm"])
    assert norms[0] == norms[1] > 1


@pytest.mark.parametrize("kind", ["greedy", "reduce_lr_on_plateau"])
def test_a_schedule_that_follows_a_metric_moves_after_evaluations(
    kind: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """And goes on from a checkpoint as if the run had not been stopped."""
    arguments = {"patience": 0, "factor": 0.5, "mode": "max"} | (
        {"min_lr": 1e-6, "smooth": True} if kind == "greedy" else {}
    )
    more: dict[str, Any] = {"lr_scheduler_type": kind, "lr_scheduler_kwargs": arguments, "eval_strategy": "steps"}
    more |= {"eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "learning_rate": 0.01, "logging_steps": 1}
    recipe = recipe_for("gpt2", "text-generation", tmp_path, checkpoint, max_steps=4, **more)
    whole = trainer(recipe)
    whole.run()
    rates = [entry["learning_rate"] for entry in whole.progress.log if "learning_rate" in entry]
    assert len(set(rates)) > 1
    second = trainer(recipe)
    second.resume(whole.folder / "checkpoint-3")
    second.run()
    assert second.progress.log == whole.progress.log


def moe(kind: str) -> Any:
    """A tiny mixture of experts whose config asks for the losses of its routers."""
    import torch
    import transformers

    causal = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    causal |= {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0}
    seq2seq = {"vocab_size": 40, "d_model": 16, "num_experts": 4, "pad_token_id": 0, "decoder_start_token_id": 0}
    t5 = {"d_kv": 8, "d_ff": 16, "num_layers": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}
    m2m = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    m2m |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_sparse_step": 2}
    m2m |= {"decoder_sparse_step": 2, "max_position_embeddings": 64, "expert_capacity": 16}
    settings: dict[str, dict[str, Any]] = {
        "mixtral": causal | {"num_local_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.5},
        "jetmoe": causal | {"num_local_experts": 4, "kv_channels": 8, "aux_loss_coef": 0.5},
        "qwen3_moe": causal | {"num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "router_aux_loss_coef": 0.5},
        "switch_transformers": seq2seq | t5 | {"num_heads": 2, "router_aux_loss_coef": 0.5},
        "nllb-moe": seq2seq | m2m | {"router_aux_loss_coef": 0.5},
    }
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **settings[kind], output_router_logits=True)
    auto = transformers.AutoModelForSeq2SeqLM if "d_model" in settings[kind] else transformers.AutoModelForCausalLM
    make: Any = auto.from_config
    return make(config).eval()


@pytest.mark.parametrize("kind", ["mixtral", "jetmoe", "qwen3_moe", "switch_transformers", "nllb-moe"])
def test_the_losses_of_routers_are_added_as_the_model_adds_them(kind: str) -> None:
    """To that of training, with every logit and with those of labels only; that of an evaluation is without."""
    import torch

    model: Any = moe(kind)
    head = head_of(Head.SEQ2SEQ if model.config.is_encoder_decoder else Head.CAUSAL)
    decoded = {"decoder_input_ids": [0, 9, 4]} if head.target_apart else {"decoder_input_ids": []}
    lines = [
        {"input_ids": [5, 6, 7, 8, 9], "labels": [IGNORED, IGNORED, 7, 8, 9], "token_type_ids": [], **decoded},
        {"input_ids": [11, 12, 13], "labels": [IGNORED, 12, 13], "token_type_ids": [], **decoded},
    ]
    if head.target_apart:
        lines = [line | {"labels": [9, 4, 1]} for line in lines]
    batch = head.batch(lines, pad_id=0)
    labels = [line["labels"] + [IGNORED] * (5 - len(line["labels"])) for line in lines]
    full = batch.labels if head.target_apart else torch.tensor(labels)
    own = model(**batch.inputs, labels=full, output_router_logits=True).loss
    plain = model(**batch.inputs, labels=full, output_router_logits=False).loss
    assert float((own - plain).detach()) > 0.1
    objective, count = Objective.of(model, head), head.predictions(batch)
    assert objective.balances
    for each in (objective, replace(objective, keeps=False)):
        loss = each.loss_sum(model, batch, "cpu") / count
        torch.testing.assert_close(loss, own)
        torch.testing.assert_close(
            torch.autograd.grad(loss, router(model)), torch.autograd.grad(own, router(model), retain_graph=True)
        )
    torch.testing.assert_close(objective.for_evaluation().loss_sum(model, batch, "cpu") / count, plain)


def router(model: Any) -> Any:
    return next(each for name, each in model.named_parameters() if "router" in name or "gate.weight" in name)


def test_padding_takes_no_part_in_the_balance_of_experts(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Though models that see nothing ahead get no attention mask otherwise."""
    made = trainer(recipe_for("gpt2", "text-generation", tmp_path, checkpoint), masked=False)
    assert "attention_mask" not in made._batch([0, 1]).inputs
    made.objective = replace(made.objective, balances=True)
    assert "attention_mask" in made._batch([0, 1]).inputs


def test_logits_of_label_positions_only(checkpoint: Checkpoint, tmp_path: Path) -> None:
    made = trainer(recipe_for("llama", "text-generation", tmp_path, checkpoint))
    assert made.objective.keeps
    lines = [made.examples[index] for index in range(4)]
    batch = made.head.batch(lines, pad_id=0)
    made.model.eval()
    whole = Objective(made.head, keeps=False)
    some, every = (each.loss_sum(made.model, batch, "cpu").item() for each in (made.objective, whole))
    assert some == pytest.approx(every, rel=1e-6)


@pytest.mark.parametrize(("family", "task"), HEADS[:2])
def test_training_in_chunks_is_training_on_all_logits(
    family: str, task: str, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    recipe = recipe_for(
        family, task, tmp_path, checkpoint, gradient_accumulation_steps=2, eval_strategy="steps", eval_steps=3
    )
    whole = trainer(recipe)
    for module in (objective, projection):
        monkeypatch.setattr(module, "CHUNK", 300)
    chunked = trainer(recipe)
    assert chunked.objective.projection is not None
    for each in (whole, chunked):
        torch.manual_seed(1)  # of dropout
        each.run()
    for mine, theirs in zip(chunked.progress.log, whole.progress.log, strict=True):
        assert mine == pytest.approx(theirs, rel=2e-3)  # Adam amplifies rounding


@pytest.mark.parametrize(("half", "checkpointing"), [(False, True), (True, False)])
@pytest.mark.parametrize(("family", "task"), HEADS)
def test_memory_of_an_update_is_counted_without_weights(
    family: str, task: str, half: bool, checkpointing: bool, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    import torch

    recipe = recipe_for(family, task, tmp_path, checkpoint, activation_checkpointing=checkpointing)
    made = trainer(recipe)
    model, empty = (
        make_trainable(recipe, open_model(recipe, open_task(recipe), weights=each)) for each in (True, False)
    )
    for each in model.float().train().parameters():
        each.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    batch = made.head.batch([made.examples[index] for index in range(4)], pad_id=0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = made.objective.loss_sum(model, batch, "cpu")
        loss.backward()
    sizes = [each.nbytes() for each in profile.profiler.kineto_results.events() if each.name() == "[memory]"]
    found = activation_bytes(empty, made.objective, batch, half=half)
    assert found is not None
    random_states = 2 * 5056 if checkpointing else 0  # of the generator, which checkpointed layers keep
    assert found.peak == pytest.approx(max(accumulate(sizes)), rel=0.1, abs=random_states)
    assert found.saved <= found.peak


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_each_answer_is_right_and_padding_takes_no_part(smoothing: float, dtype: str) -> None:
    import torch

    lengths = (3, 5, 9)
    answers = [[[0], [2]], [[1, 3, 4], [4]], [[1, 6], [2, 7]]]  # starts and ends of each row
    labels = torch.tensor([[[*each, *[IGNORED] * (3 - len(each))] for each in row] for row in answers])
    logits = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(1)).to(getattr(torch, dtype))
    mask = torch.tensor([[1] * length + [0] * (9 - length) for length in lengths])
    objective = Objective(head_of(Head.SPAN), keeps=False, token_loss=TokenLoss(smoothing))

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
