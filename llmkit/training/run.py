"""A whole training run: from a recipe to a folder that holds the tuned model.

Knows what is written there, and what is not there yet. How it is trained is the loop's business.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmkit.config.recipe import Recipe
from llmkit.config.recipe_file import resolved_yaml
from llmkit.config.settings import DType
from llmkit.errors import UsageError
from llmkit.heads.decoding import pad_id
from llmkit.inference.contract import Contract, write_contract
from llmkit.log import log
from llmkit.models.load import has_bfloat16, pick_device, quiet_transformers
from llmkit.tasks import Head
from llmkit.training.checkpoint import checkpoints, load_trained
from llmkit.training.dataset import prepare
from llmkit.training.encoding import make_encoder
from llmkit.training.ledger import describe
from llmkit.training.loop import Measured, Trainer
from llmkit.training.packing import keeps_examples_apart
from llmkit.training.start import open_model, open_task
from llmkit.training.store import digest
from llmkit.training.trainable import make_trainable

__all__ = ["finetune"]

_RECIPE = "resolved.yaml"


def finetune(
    recipe: Recipe,
    *,
    resume: bool = False,
    told: Callable[[Measured], None] = lambda _: None,
    stop_asked: Callable[[], bool] = lambda: False,
) -> Trainer:
    """Train by a recipe, and write the result to ``train.output_dir``.

    Args:
        resume: go on from the last checkpoint there.
        told: called with what was measured, every ``train.logging_steps``.
        stop_asked: asked after each update; True saves a checkpoint and ends.

    Raises:
        UsageError: what the recipe asks for cannot be, or is not there yet.
    """
    _refuse_missing(recipe)
    folder = Path(recipe.train.output_dir)
    found = checkpoints(folder) if folder.is_dir() else []
    if folder.is_dir() and any(folder.iterdir()) and not resume:
        raise UsageError(f"{folder} is not empty", "go on with --resume, remove it, or set train.output_dir")
    if resume and not found:
        raise UsageError(f"{folder} holds no checkpoint to resume from", "leave --resume out")
    trainer = _make_trainer(recipe, told, stop_asked)
    if resume:
        trainer.resume(found[-1])
        log.info("resumed from %s", found[-1])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _RECIPE).write_text(resolved_yaml(recipe), encoding="utf-8")
    trainer.run()
    if not trainer.stopped:
        _finish(recipe, trainer)
    return trainer


def _refuse_missing(recipe: Recipe) -> None:
    train, several = recipe.train, recipe.accelerate
    missing = {
        "accelerate.num_processes": (several.num_processes or 1) > 1,
        "accelerate.num_machines": several.num_machines > 1,
        "accelerate.fsdp_config": several.fsdp_config is not None,
        "accelerate.deepspeed_config": several.deepspeed_config is not None,
        "train.report_to": bool(train.report_to),
        "train.metric_for_best_model": train.metric_for_best_model not in (None, "eval_loss"),
        "train.greater_is_better": bool(train.greater_is_better),
    }
    if named := [name for name, asked in missing.items() if asked]:
        raise UsageError(f"{', '.join(named)} is not there yet in this version", "leave it out, or try --dry-run")


def _make_trainer(recipe: Recipe, told: Callable[[Measured], None], stop_asked: Callable[[], bool]) -> Trainer:
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import set_seed

    train, task = recipe.train, open_task(recipe)
    device = pick_device(str(getattr(recipe.model, "device", "auto")))
    half = has_bfloat16(device) if train.bf16 == "auto" else train.bf16
    half = half and not train.fp16
    if train.fp16 and device == "cpu":
        raise UsageError("train.fp16 needs a GPU", "leave it out")
    encoder = make_encoder(recipe, task, open_model(recipe, task, weights=False))
    prepared = prepare(recipe, encoder)
    for name, part in (("train", prepared.train), ("validation", prepared.validation)):
        for line in () if part is None else describe(part.ledger, name):
            log.info("%s", line)
    set_seed(train.seed)
    # Weights that are trained are kept in float32, whatever is computed in; frozen ones as small as can be.
    small: DType = "bfloat16" if half else "float32"
    loaded = open_model(recipe, task, weights=True, dtype=small if recipe.adapter is not None else "float32")
    if getattr(recipe.model, "quantize", None):
        import peft

        ready: Any = peft.prepare_model_for_kbit_training
        ready(loaded.model, use_gradient_checkpointing=train.activation_checkpointing)
    model = make_trainable(recipe, loaded)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if train.activation_checkpointing:
        model.enable_input_require_grads()
        loaded.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    precision = "fp16" if train.fp16 else "bf16" if half else "no"
    # Of the process; another run in it may compute in another precision.
    AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001 - there is no public way
    accelerator = Accelerator(mixed_precision=precision, cpu=device == "cpu")
    packed = _packs(recipe, model, loaded.head, device)
    if train.torch_compile:
        model = torch.compile(model)
    validation = None if prepared.validation is None else prepared.validation.examples
    return Trainer(
        accelerator=accelerator,
        model=model,
        head=loaded.head,
        train=train,
        examples=prepared.train.examples,
        validation=validation if train.eval_strategy != "no" else None,
        pad_id=pad_id(loaded) if loaded.head is not Head.SPAN else int(loaded.tokenizer.pad_token_id or 0),
        tokenizer=encoder.loaded.tokenizer,
        base=loaded.source.name,
        packed=packed,
        hashes={
            "data": digest(prepared.train.rows.key, list(prepared.train.order)),
            "recipe": digest(recipe.model_dump(mode="json", exclude={"train": {"output_dir"}})),
        },
        told=told,
        stop_asked=stop_asked,
    )


def _packs(recipe: Recipe, model: Any, head: Head, device: str) -> bool:
    """Whether the examples of a micro-batch go through the model as one row."""
    wanted = recipe.train.packing
    if wanted is False or (wanted == "auto" and device == "cpu"):  # where one long row is no faster than several
        return False
    able = head is Head.CAUSAL and keeps_examples_apart(model)
    if wanted is True and not able:
        raise UsageError(
            "train.packing: this model lets packed examples see each other, or takes none",
            "leave it out: examples of like length are padded together",
        )
    return able


def _finish(recipe: Recipe, trainer: Trainer) -> None:
    """Write the tuned model, its tokenizer, and what was measured."""
    folder, model = trainer.folder, trainer.model
    if recipe.train.load_best_model_at_end and trainer.progress.best_step is not None:
        load_trained(folder / f"checkpoint-{trainer.progress.best_step}", trainer.trained)
    model = getattr(model, "_orig_mod", model)  # as it was before torch.compile
    for config in getattr(model, "peft_config", {}).values():
        config.base_model_name_or_path = trainer.base
    with quiet_transformers():
        model.eval().save_pretrained(folder)
    trainer.tokenizer.save_pretrained(folder)
    settings = recipe.settings.model_dump(exclude_defaults=True)
    write_contract(folder, Contract(recipe.task, settings, recipe.prompt.system, recipe.prompt.raw))
    entries = "".join(f"{json.dumps(entry)}\n" for entry in trainer.progress.log)
    (folder / "log.jsonl").write_text(entries, encoding="utf-8")
