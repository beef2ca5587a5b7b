"""What cannot be trained is refused in preparation, in the same words by the run and by its dry run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from transformers.trainer_utils import SchedulerType

from llmkit.config.recipe import Recipe, TrainSection
from llmkit.errors import LlmkitError, UsageError
from llmkit.training.dry_run import dry_run
from llmkit.training.run import finetune
from llmkit.training.schedule import check_schedule
from tests.conftest import Checkpoint
from tests.training.recipes import make_recipe, write_rows

GENERATION: list[dict[str, Any]] = [{"prompt": f"The fox {number}", "completion": "jumps"} for number in range(4)]
PLAIN: list[dict[str, Any]] = [{"text": "The quick fox."}, {"text": "A lazy dog jumps."}]
QUESTIONS: list[dict[str, Any]] = [{"question": "Who?", "context": "The fox jumps.", "answers": "fox"}] * 4
LONG: list[dict[str, Any]] = [{"prompt": "fox " * 120, "completion": "jumps"}]
PREFIX = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 8}
PROMPT = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 8}
VALIDATED = {"validation_fraction": 0.5}

REFUSED: list[tuple[str, list[dict[str, Any]], dict[str, Any], str]] = [
    ("gpt2", GENERATION, {"train": {"lr_scheduler_type": "cosine_with_min_lr"}}, "with num_cycles, min_lr"),
    ("gpt2", GENERATION, {"train": {"lr_scheduler_kwargs": {"num_cycles": 2}}}, "unexpected keyword"),
    ("gpt2", GENERATION, {"train": {"report_to": ["nothing"]}}, "no tracker is called nothing; use"),
    ("gpt2", GENERATION, {"train": {"fp16": True}}, "train.fp16 needs a GPU; leave it out"),
    ("gpt2", GENERATION, {"train": {"freeze": ["."]}}, "nothing is left to train"),
    ("gpt2", GENERATION, {"train": {"freeze": ["no such"]}}, "matches no trained parameter"),
    ("llama", GENERATION, {"train": {"freeze": ["embed"]}, "adapter": {"peft_type": "LORA"}}, "no trained parameter"),
    ("gpt2", GENERATION, {"train": {"save_strategy": "steps", "save_steps": 9}}, "save_steps is 9, but the run has 2"),
    (
        "gpt2",
        GENERATION,
        {"data": VALIDATED, "train": {"eval_strategy": "steps", "eval_steps": 9, "load_best_model_at_end": True}},
        "eval_steps is 9, but the run has 2 updates",
    ),
    (
        "gpt2",
        PLAIN,
        {"data": VALIDATED, "train": {"metric_for_best_model": "rouge1"}},
        "validation rows are plain text",
    ),
    (
        "gpt2",
        GENERATION,
        {"data": VALIDATED, "train": {"metric_for_best_model": "bleu"}},
        "does not have the metric bleu",
    ),
    ("gpt2", GENERATION, {"train": {"report_to": ["none"]}}, "leave train.report_to out"),
    ("gpt2", GENERATION, {"data": {"validation_fraction": 0.99}}, "leaves no rows for training; lower it"),
    (
        "gpt2",
        GENERATION,
        {"adapter": {"peft_type": "LORA", "target_modules": ["c_attn", "c_prj"]}},
        "has no module c_prj; did you mean c_proj?",
    ),
    ("gpt2", GENERATION, {"adapter": {"peft_type": "LORA", "modules_to_save": ["score"]}}, "has no module score"),
    ("gpt2", GENERATION, {"adapter": {"peft_type": "IA3", "exclude_modules": ["q_proj"]}}, "has no module q_proj"),
    ("gpt2", GENERATION, {"model": {"config_overrides": {"n_embd": 32}}}, "do not fit"),
    ("gpt2", GENERATION, {"model": {"config_overrides": {"attn_pdrop": "0.1"}}}, "attn_pdrop is '0.1'"),
    ("gpt2", GENERATION, {"model": {"attn_implementation": "none_such"}}, "leave it out, or use sdpa or eager"),
    ("gpt2", GENERATION, {"accelerate": {"local_sgd_steps": 2}}, "requires more than one process"),
    ("gpt2", GENERATION, {"accelerate": {"fsdp_config": {}}}, "needs GPUs"),
    ("gpt2", GENERATION, {"accelerate": {"deepspeed_config": {}}}, "not supported"),
    ("gpt2", GENERATION, {"tokenizer": {"chat_template": "chatml"}}, "neither a Jinja template"),
    (
        "gpt2",
        GENERATION,
        {"adapter": {"peft_type": "IA3"}, "tokenizer": {"add_tokens": ["<n>"]}},
        "single tokens with IA3",
    ),
    ("gpt2", GENERATION, {"adapter": {"peft_type": "ADALORA"}}, "ADALORA cannot be trained here"),
    ("gpt2", GENERATION, {"adapter": {"peft_type": "C3A", "block_size": 7}}, "PEFT cannot add C3A to GPT2LMHeadModel"),
    ("gpt2", GENERATION, {"adapter": PREFIX, "train": {"activation_checkpointing": True}}, "remove train.activation"),
    ("gpt2", GENERATION, {"adapter": PROMPT, "train": {"packing": True}}, "train.packing with PROMPT_TUNING"),
    ("t5", GENERATION, {"train": {"packing": True}}, "does not support packing"),
    ("gpt2", GENERATION, {"adapter": PROMPT | {"num_virtual_tokens": 200}}, "has a context of 128 tokens"),
    ("gpt2", LONG, {"adapter": PROMPT}, "too many; shorten it, or set data.on_overflow"),
    ("gpt2", LONG, {"adapter": PREFIX}, "too many; shorten it, or set data.on_overflow"),
    ("bart", [{"prompt": "fox", "completion": "jumps " * 200}], {}, "too many; shorten it, or set data.on_overflow"),
    ("bart", GENERATION, {"data": {"max_target_length": 999}}, "more than the 128 tokens that the decoder"),
    ("bert", QUESTIONS, {"adapter": PROMPT}, "BertForQuestionAnswering does not run with PROMPT_TUNING"),
    ("bert", QUESTIONS, {"adapter": PREFIX | {"peft_type": "P_TUNING"}}, "does not run with P_TUNING"),
    (
        "gpt2",
        LONG + GENERATION,
        {"data": {"max_length": 40, "on_overflow": "drop", "validation": ""}},
        "no rows are left",
    ),
]


def prepared(model: Path, rows: list[dict[str, Any]], folder: Path, sections: dict[str, Any]) -> Recipe:
    """Two updates; ``validation: ""`` stands for rows that are all too long."""
    task = "question-answering" if "question" in rows[0] else "text-generation"
    usual = {"output_dir": str(folder / "out"), "max_steps": 2, "bf16": False}
    data = dict(sections.get("data", {}))
    if "validation" in data:
        data["validation"] = str(write_rows(folder / "validation.jsonl", LONG))
    others = {name: each for name, each in sections.items() if name != "model"}
    return make_recipe(
        task,
        {"name_or_path": str(model), "offline": True, "device": "cpu", **sections.get("model", {})},
        write_rows(folder / "rows.jsonl", rows),
        **{**others, "data": data, "train": usual | sections.get("train", {})},
    )


@pytest.mark.parametrize(("family", "rows", "sections", "said"), REFUSED, ids=[said for *_, said in REFUSED])
def test_a_run_and_its_dry_run_refuse_the_same(
    family: str,
    rows: list[dict[str, Any]],
    sections: dict[str, Any],
    said: str,
    checkpoint: Checkpoint,
    tmp_path: Path,
) -> None:
    recipe = prepared(checkpoint(family), rows, tmp_path, sections)
    with pytest.raises(LlmkitError) as dry:
        list(dry_run(recipe))
    assert said in str(dry.value)
    assert dry.value.fix
    with pytest.raises(type(dry.value)) as real:
        finetune(recipe)
    assert str(real.value) == str(dry.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("peft_type", ["PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"])
@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_virtual_tokens_go_with_models_that_generate(
    family: str, peft_type: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    sections = {"adapter": {"peft_type": peft_type, "num_virtual_tokens": 4}}
    assert list(dry_run(prepared(checkpoint(family), GENERATION, tmp_path, sections)))


def test_validation_rows_that_are_trained_on_are_a_warning(
    checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = prepared(checkpoint("gpt2"), GENERATION, tmp_path, {})
    copy = write_rows(tmp_path / "copy.jsonl", GENERATION)
    data = recipe.data.model_copy(
        update={"validation": [recipe.data.train[0].model_copy(update={"path": [str(copy)]})]}
    )
    with caplog.at_level("WARNING", logger="llmkit"):
        assert list(dry_run(recipe.model_copy(update={"data": data})))
    assert "copy.jsonl is also trained on" in caplog.text


def test_a_folder_in_use_is_refused_by_the_dry_run_too(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    recipe = prepared(checkpoint("gpt2"), GENERATION, tmp_path, {})
    with pytest.raises(UsageError, match="is not empty; remove it, or set another"):
        list(dry_run(recipe))


# Schedules.

ARGUMENTS: dict[str, dict[str, Any]] = {
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr": 1e-6},
    "warmup_stable_decay": {"num_decay_steps": 4},
    "greedy": {"min_lr": 1e-6},  # the default is above usual learning rates
}
TYPES: list[str] = TrainSection.model_json_schema()["properties"]["lr_scheduler_type"]["enum"]


@pytest.mark.parametrize("kind", TYPES)
def test_a_schedule_is_accepted_with_its_arguments_and_refused_with_others(kind: str) -> None:
    assert {each.value for each in SchedulerType} == set(TYPES)

    def check(**train: Any) -> None:
        check_schedule(TrainSection(output_dir="out", lr_scheduler_type=kind, **train), 10, 2)  # type: ignore[arg-type]

    arguments = ARGUMENTS.get(kind, {})
    check(lr_scheduler_kwargs=arguments)
    for wrong in ({"no_such": 1}, *([{}] if arguments else [])):
        with pytest.raises(UsageError, match=r"train.lr_scheduler_(type|kwargs)") as caught:
            check(lr_scheduler_kwargs=wrong)
        assert all(name in caught.value.fix for name in arguments)
    if kind in ("constant", "reduce_lr_on_plateau", "greedy"):
        with pytest.raises(UsageError, match="warmup_steps has no effect"):
            check(lr_scheduler_kwargs=arguments, warmup_steps=3)
    else:
        check(lr_scheduler_kwargs=arguments, warmup_steps=3)


@pytest.mark.parametrize(
    ("train", "updates"),
    [
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1.0}}, 10),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": -1}}, 10),  # raises after the last update
        ({"lr_scheduler_type": "inverse_sqrt", "lr_scheduler_kwargs": {"timescale": 0}}, 10),
        ({"lr_scheduler_type": "greedy", "lr_scheduler_kwargs": {"factor": 2}}, 10),
        ({"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"min_lr": 1.0}}, 10),
        ({"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1.0}}, 10),
        ({"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 20}}, 10),
        (
            {
                "lr_scheduler_type": "warmup_stable_decay",
                "lr_scheduler_kwargs": {"num_decay_steps": 4, "num_stable_steps": 2},
            },
            10,  # a rate of 0 for the last four updates
        ),
        (
            {
                "lr_scheduler_type": "warmup_stable_decay",
                "lr_scheduler_kwargs": {"num_decay_steps": 4, "decay_type": "linear", "num_cycles": 2},
            },
            10,  # num_cycles is of cosine decay
        ),
        ({"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"min_lr": [1, 2, 3]}}, 10),
        ({"warmup_steps": 1}, 1),  # a rate of 0 at the only update
    ],
)
def test_a_schedule_that_cannot_be_computed_is_refused(train: dict[str, Any], updates: int) -> None:
    with pytest.raises(UsageError) as caught:
        check_schedule(TrainSection(output_dir="out", **train), updates, 2)
    assert caught.value.fix


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({"lr_scheduler_type": "greedy"}, "requires validation rows"),
        ({"eval_strategy": "steps", "eval_steps": 1}, "eval_steps requires validation rows"),
        ({"seed": -1}, "greater than or equal to 0"),
        ({"learning_rate": float("inf")}, "finite number"),
    ],
)
def test_a_setting_without_effect_is_refused_by_the_recipe(train: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        make_recipe("text-generation", Path("model"), Path("rows.jsonl"), train=train)
