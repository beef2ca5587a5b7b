"""The recipe schema: every key with its type, default and bounds, and which keys can be combined.

Adapter sections follow from the installed PEFT (`llmkit.config.peft_methods`). Independent of files
(`llmkit.config.recipe_file`), models and data.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Union

from pydantic import Field, TypeAdapter, ValidationError, create_model

from llmkit.config.declaration import setting_fields
from llmkit.config.peft_methods import NO_SOURCE, adapter_section, peft_methods
from llmkit.config.recipe_method import MethodSection, answer_fields
from llmkit.config.recipe_sections import (
    ConflictError,
    DataSection,
    ModelSection,
    Positive,
    PromptSection,
    PythonRows,
    Section,
    SourceSection,
    TeacherSection,
    TokenizerSection,
    TrainedTokenizer,
    section_of,
)
from llmkit.config.recipe_training import AccelerateSection, TrainSection
from llmkit.config.settings import TaskSettings
from llmkit.tasks import TASKS, Task, find_task

__all__ = [
    "VERSION",
    "AccelerateSection",
    "AdapterSection",
    "ConflictError",
    "DataSection",
    "PythonRows",
    "Recipe",
    "SourceSection",
    "TokenizerSection",
    "TrainSection",
    "TrainedTokenizer",
    "recipe_adapter",
]

VERSION = 1
"""Version of the recipe schema, increased when the meaning of valid recipes changes or they become invalid."""


# Adapters, named as in PEFT.


class AdapterSection(Section):
    """The PEFT method to train instead of all weights, with any field of its config class."""

    peft_type: str

    def _conflicts(self) -> Iterator[str]:
        text = getattr(self, "prompt_tuning_init_text", None)
        if (getattr(self, "prompt_tuning_init", None) == "TEXT") != (text is not None):
            yield ("prompt_tuning_init_text requires prompt_tuning_init: TEXT and vice versa; give both or neither")


_TARGETS = Field("all-linear", description="Module names, a regular expression, or all-linear.")
_OTHER_DEFAULTS: dict[str, dict[str, tuple[Any, Any]]] = {
    "LORA": {"lora_alpha": (float, Field(16, gt=0)), "target_modules": (str | list[str] | None, _TARGETS)},
    "": {"num_virtual_tokens": (Positive, 20)},
}
"""Defaults by method (and "" for all) where PEFT has none, or one that depends on the model type."""


# The whole.


class Recipe(Section):
    """The sections common to the recipes of all tasks; each task adds its name and its settings."""

    version: Literal[1]
    """Version of the recipe schema."""
    task: str
    settings: Any = None
    """The task's own settings."""
    prompt: PromptSection = PromptSection()
    """Additions to the task's prompt, in training and at inference."""
    model: ModelSection  # made of LoadSettings
    tokenizer: TokenizerSection = TokenizerSection()
    adapter: Any = None
    """The `AdapterSection` of the method."""
    method: MethodSection | None = None
    """Train on preferences instead of answers: dpo, orpo or kto, or a section with the ``name`` and settings of one."""
    teacher: TeacherSection | None = None
    """Distillation: train on the logits of this model, too."""
    data: DataSection
    train: TrainSection
    accelerate: AccelerateSection = AccelerateSection()

    def _conflicts(self) -> Iterator[str]:
        for part, sources in (("train", self.data.train), ("validation", self.data.validation or ())):
            for source in sources:
                yield from self._source_conflicts(source, f"data.{part}")
        if all(source.task not in (None, self.task) for source in self.data.train):
            yield (f"no source of data.train is of the recipe's task, {self.task}; set task to that of a source")
        tasks = {source.task or self.task for source in (*self.data.train, *(self.data.validation or ()))}
        if self.data.loss_on == "last" and not any(find_task(name).converses for name in tasks):
            yield "data.loss_on: last has no effect on rows with one answer; use target"
        if self.prompt.prefix is not None and all(source.prefix is not None for source in self.data.train):
            yield "prompt.prefix has no effect if each source of data.train has a prefix; leave it out"
        if any(source.task not in (None, self.task) for source in self.data.train):
            for name in (name for name in ("template", "prefix", "examples") if getattr(self.prompt, name, None)):
                yield (
                    f"prompt.{name} is of one task, and the recipe is a mixture of tasks; leave it out, or set the "
                    "prefix of a source"
                )
        if self.data.streaming:
            yield from self._streaming_conflicts()
        yield from self._method_conflicts()
        yield from self._model_conflicts()
        yield from self._evaluation_conflicts()
        if self.accelerate.local_sgd_steps is not None and (self.train.fp16 or self.train.optim.endswith("8bit")):
            yield (
                "accelerate.local_sgd_steps averages the states of optimizers, which fp16 and 8-bit optimizers do not "
                "support; use bf16 and adamw_torch"
            )

    def _source_conflicts(self, source: SourceSection, place: str) -> Iterator[str]:
        task = find_task(source.task or self.task)
        fields = (*task.aliases, *answer_fields(self.method))
        for name in (name for name in source.columns if name not in fields):
            yield _unknown(f"{place}.columns.{name} is not a field of {task.name}", name, fields)
        names = [item.name for item in setting_fields(task.settings_class)]
        for name in (name for name in source.settings if name not in names):
            yield _unknown(f"{place}.settings.{name} is not a setting of {task.name}", name, names)
        known = {name: value for name, value in source.settings.items() if name in names}
        if not known:
            return
        try:
            _settings_of(task.settings_class).model_validate(known)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            yield f"{place}.settings.{'.'.join(map(str, first['loc']))}: {first['msg']}; fix the value"

    def _streaming_conflicts(self) -> Iterator[str]:
        if self.train.max_steps < 1:
            yield "data.train.streaming requires train.max_steps, since the number of rows is unknown; set it"
        if self.tokenizer.train is not None:
            yield (
                "tokenizer.train needs all rows, and data.train is streamed; train the tokenizer on a part of them "
                "before, and set tokenizer.name_or_path to its folder"
            )
        if self.data.buffer_size is not None and self.train.train_sampling_strategy == "sequential":
            yield "data.buffer_size has no effect on train_sampling_strategy: sequential; leave it out"

    def _method_conflicts(self) -> Iterator[str]:
        """The settings that have no effect on a method, or do not go together with it."""
        if self.method is None:
            return
        name = self.method.name
        if any(source.task not in (None, self.task) for source in self.data.train):
            yield f"method: {name} does not train mixtures of tasks; leave out the task of the sources"
        for key, changed, fix in (
            ("train.label_smoothing_factor", self.train.label_smoothing_factor != 0, "leave it out"),
            ("train.loss_type", self.train.loss_type != "nll", "leave it out; method.loss_type is its own"),
            ("data.loss_on", self.data.loss_on != "target", "leave it out: the loss is on the answers"),
            ("teacher", self.teacher is not None, "leave one of them out"),
            ("train.packing", self.train.packing is True, "leave it out"),
            ("data.on_overflow: chunk", self.data.on_overflow == "chunk", "use truncate, drop or error"),
            ("data.max_target_length", self.data.max_target_length is not None, "use max_length"),
        ):
            if changed:
                yield f"{key} has no effect on method: {name}; {fix}"
        adapter = {} if self.adapter is None else self.adapter.model_dump()
        dropout = next((key for key, value in adapter.items() if key.endswith("_dropout") and value), None)
        if self.method.disable_dropout and dropout is not None:
            yield f"adapter.{dropout} has no effect with method.disable_dropout; leave it out, or set that to false"
        if self.data.streaming and name != "orpo":
            yield f"method: {name} computes its reference before training, so rows cannot be streamed; use method: orpo"
        if self.accelerate.fsdp_config is not None and name != "orpo":
            yield f"method: {name} needs a whole model as its reference, which fsdp_config divides; use method: orpo"

    def _model_conflicts(self) -> Iterator[str]:
        model: Any = self.model
        sources = (self.tokenizer.name_or_path, self.tokenizer.train)
        if model.config is not None and not any(sources):
            yield ("model.config requires a tokenizer; set tokenizer.train or tokenizer.name_or_path")
        if model.config is not None and self.adapter is not None:
            yield ("an adapter on random weights cannot learn anything useful; leave out adapter or model.config")
        if self.teacher is not None and self.teacher.kd_ratio == 1:
            for name in self.train.changed("label_smoothing_factor", "loss_type"):
                yield f"train.{name} has no effect with teacher.kd_ratio: 1; leave one of them out"
        if self.train.loraplus_lr_ratio is not None and getattr(self.adapter, "peft_type", None) != "LORA":
            yield ("train.loraplus_lr_ratio is for adapters of peft_type LORA; leave it out, or add such an adapter")
        if model.quantize is not None and self.adapter is None:
            yield ("quantized weights cannot be trained directly; add an adapter, or leave out quantize")

    def _evaluation_conflicts(self) -> Iterator[str]:
        if not (self.data.validation or self.data.validation_fraction):
            if need := self.train.first_key_needing_evaluation():
                yield (f"train.{need} requires validation rows; set data.validation or data.validation_fraction")
            if self.train.eval_strategy == "steps":
                yield ("train.eval_steps requires validation rows; set data.validation or data.validation_fraction")


def _unknown(problem: str, name: str, known: Collection[str]) -> str:
    near = get_close_matches(name, known, n=1)
    choices = f"choose from {', '.join(known)}" if known else "leave it out"
    return f"{problem}; {f'did you mean {near[0]}? ' if near else ''}{choices}"


def recipe_adapter(content: Mapping[str, Any] | None = None) -> TypeAdapter[Recipe]:
    """The validator of recipes: of any kind, or with the PEFT method named in ``content``."""
    section = {} if content is None else content.get("adapter")
    method = section.get("peft_type") if isinstance(section, Mapping) else ""
    methods = (method,) if method in peft_methods() else () if section is None else tuple(peft_methods())
    return _adapter_of(tuple(TASKS.values()), methods)


@functools.cache
def _adapter_of(tasks: tuple[type[Task], ...], methods: tuple[str, ...]) -> TypeAdapter[Recipe]:
    adapter = adapter_section(methods, AdapterSection, _OTHER_DEFAULTS) | None if methods else None
    recipes = tuple(_recipe_of(task.name, task.settings_class, adapter) for task in tasks)
    union: Any = Union[recipes]  # noqa: UP007 - of a tuple
    return TypeAdapter(Annotated[union, Field(discriminator="task")])


def _settings_of(settings: Any) -> Any:
    """The section of a task's settings."""
    return section_of(f"{settings.__name__}Section", settings, base=Section)


def _recipe_of(name: str, settings: type[TaskSettings], adapter: Any) -> Any:
    section = _settings_of(settings)
    members: dict[str, Any] = {"task": (Literal[name], ...), "settings": (section, section())}
    members["adapter"] = (adapter, Field(None, description=_ADAPTER))
    title = f"{''.join(map(str.capitalize, name.split('-')))}Recipe"
    return create_model(title, __base__=Recipe, __cls_kwargs__=NO_SOURCE, **members)


_ADAPTER = "A PEFT adapter to train instead of all weights."
