"""The schema of recipes: one declaration, in the names of the libraries below, and nothing unknown passes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from llmkit.config.declaration import setting_fields
from llmkit.config.peft_methods import peft_methods
from llmkit.config.recipe import Recipe, recipe_adapter
from llmkit.config.settings import LoadSettings
from llmkit.tasks import TASKS

CONTENT: dict[str, Any] = {
    "version": 1,
    "task": "summarization",
    "model": {"name_or_path": "starter"},
    "adapter": {"peft_type": "LORA"},
    "data": {"train": "rows.jsonl"},
    "train": {"output_dir": "out"},
}


def validate(content: dict[str, Any]) -> Recipe:
    return recipe_adapter(content).validate_python(content)


def changed(section: str, **values: Any) -> dict[str, Any]:
    return {**CONTENT, section: {**CONTENT.get(section, {}), **values}}


def sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    pending = [field.annotation for field in model.model_fields.values()]
    while pending:
        annotation: Any = pending.pop()
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from sections(annotation)
        pending += get_args(annotation)


def test_each_task_has_its_own_settings_with_their_defaults() -> None:
    for name, settings in ((name, task.settings_class) for name, task in TASKS.items()):
        found = validate({**CONTENT, "task": name}).settings.model_dump()
        assert found == {item.name: item.default for item in setting_fields(settings)}


def test_the_model_section_has_the_settings_of_loading() -> None:
    found = validate(CONTENT).model.model_dump()
    for item in setting_fields(LoadSettings):
        if item.name != "model":
            assert found[item.name] == item.default


def test_every_section_refuses_unknown_keys() -> None:
    seen = {each for recipe in get_args(get_args(recipe_adapter()._type)[0]) for each in sections(recipe)}
    assert len(seen) > 15
    assert all(each.model_config.get("extra") == "forbid" for each in seen)


def test_training_has_the_names_of_transformers() -> None:
    import dataclasses

    from transformers import TrainingArguments

    ours = set(type(validate(CONTENT).train).model_fields)
    theirs = {item.name for item in dataclasses.fields(TrainingArguments)}
    own = {"packing", "freeze", "unfreeze", "param_groups", "early_stopping_patience", "loss_type", "report"}
    own |= {"loraplus_lr_ratio", "loraplus_lr_embedding"}  # as in LLaMA-Factory
    assert ours - theirs == own | {"num_completions_to_print"}  # as in TRL


def test_adapters_have_the_methods_names_and_defaults_of_peft() -> None:
    """They are read from its source, without importing it."""
    import dataclasses

    import peft

    assert set(peft_methods()) == {each.value for each in peft.PEFT_TYPE_TO_CONFIG_MAPPING}
    general = {item.name for item in dataclasses.fields(peft.PeftConfig)} - {"peft_type"}
    for method, config in peft.PEFT_TYPE_TO_CONFIG_MAPPING.items():
        ours = validate(changed("adapter", peft_type=method.value)).adapter.model_dump()
        theirs = {item.name: item.default for item in dataclasses.fields(config) if item.name not in general}
        assert ours.keys() == theirs.keys(), method
        simple = {name for name, each in theirs.items() if isinstance(each, bool | int | float | str)} - {"peft_type"}
        differ = {name for name in simple if ours[name] != theirs[name] and ours[name] is not None}
        assert differ == ({"lora_alpha"} if method == "LORA" else set()), method


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (changed("model", config={"model_type": "llama"}), "either name_or_path"),
        (changed("model", quantize="4bit") | {"adapter": None}, "quantized weights"),
        (changed("data", validation="a.jsonl", validation_fraction=0.1), "validation_fraction are mutually exclusive"),
        (changed("data", validation_fraction=1.5), "less than 1"),
        (changed("data", train=[]), "at least 1"),
        (changed("data", train={"path": "a", "aligned": {"source": "b", "target": "c"}}), "either path or aligned"),
        (changed("data", train={"path": "a", "shape": "alpaca", "columns": {"prompt": "x"}}), "columns has no effect"),
        (changed("train", eval_steps=5), "eval_strategy: steps"),
        (changed("train", early_stopping_patience=2), "requires validation rows"),
        (changed("train", load_best_model_at_end=True), "requires validation rows"),
        (changed("train", metric_for_best_model="rougeL", eval_strategy="no"), "requires evaluation"),
        (changed("train", bf16=True, fp16=True), "mutually exclusive"),
        (changed("train", loss_type="dft", label_smoothing_factor=0.1), "not defined for loss_type: dft"),
        (changed("train", neftune_noise_alpha=5.0, torch_compile=True), "not supported with torch_compile"),
        (changed("train", num_train_epochs="3"), "valid number"),
        (changed("accelerate", num_machines=2), "main_process_ip"),
        (changed("accelerate", fsdp_config={}, deepspeed_config={}), "deepspeed_config are mutually exclusive"),
    ],
)
def test_what_does_not_go_together_is_refused(content: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        validate(content)
