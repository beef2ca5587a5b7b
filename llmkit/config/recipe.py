"""The recipe schema: every key with its type, default and bounds.

Names follow Transformers v5 (`TrainingArguments`), PEFT, Datasets and Accelerate where they have one. Settings declared
in `llmkit.config.settings` and by tasks are reused from there. Knows the sections of a recipe and which keys can be
combined; independent of files (`llmkit.config.recipe_file`), models and data.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    create_model,
    model_validator,
)

from llmkit.config.peft_methods import NO_SOURCE, adapter_section, peft_methods
from llmkit.config.settings import (
    MOST,
    LoadSettings,
    TaskSettings,
    TruncationSide,
    bounds,
    delimiter_character,
    setting_fields,
)
from llmkit.errors import UsageError
from llmkit.tasks import TASKS, PromptOptions, Task, find_task

__all__ = [
    "VERSION",
    "AccelerateSection",
    "AdapterSection",
    "DataSection",
    "Recipe",
    "SourceSection",
    "TokenizerSection",
    "TrainSection",
    "TrainedTokenizer",
    "recipe_adapter",
]

VERSION = 1
"""Version of the recipe schema, increased when the meaning of valid recipes changes or they become invalid."""

Positive = Annotated[int, Field(ge=1, le=MOST)]
Share = Annotated[float, Field(gt=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32 - 2**16)]
"""NumPy accepts 32 bits, and each process adds its rank."""


def _regular_expression(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, RecursionError) as error:
        raise ValueError(f"{text!r} is not a regular expression ({error}); escape its special characters") from error
    return text


class Section(BaseModel):
    """A section of a recipe. Unknown keys and values of the wrong type are refused."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


def _from_settings(name: str, settings: type[Any], *, without: tuple[str, ...] = (), base: type[Section]) -> Any:
    """Create a section with the fields of a settings class: names, types, defaults, bounds and help."""
    hints = get_type_hints(settings)
    members: dict[str, Any] = {}
    for item in setting_fields(settings):
        if item.name in without:
            continue
        hint = hints[item.name]
        limits = zip(("ge", "le"), bounds(item, hint), strict=True)
        given: dict[str, Any] = {key: value for key, value in limits if math.isfinite(value) and _is_number(hint)}
        members[item.name] = (hint, Field(item.default, description=item.metadata["help"], **given))
    return create_model(name, __base__=base, __cls_kwargs__=NO_SOURCE, **members)


def _is_number(hint: Any) -> bool:
    return bool({int, float} & {hint, *get_args(hint)})


# The model.


class TrainedTokenizer(Section):
    """Train a tokenizer on the training data: byte-level BPE, which can represent every character."""

    vocab_size: Annotated[int, Field(ge=300, le=MOST)] = 8192
    """Number of tokens, including special tokens."""
    min_frequency: Positive = 2
    """How often a pair of tokens must occur to be merged."""


class TokenizerSection(Section):
    """The tokenizer, if not the checkpoint's own, and additions to it."""

    name_or_path: str | None = None
    """Use the tokenizer of this checkpoint. Only with ``model.config``."""
    train: TrainedTokenizer | None = None
    """Train one. Only with ``model.config``."""
    add_tokens: list[Annotated[str, Field(min_length=1)]] = []
    """Tokens to add; the embeddings are resized, trained and saved."""
    chat_template: str | None = None
    """A Jinja chat template to use instead of the default: its text, a file, or the name of one of the model's."""

    @model_validator(mode="after")
    def _exactly_one_source(self) -> TokenizerSection:
        if self.name_or_path is not None and self.train is not None:
            raise ValueError("name_or_path and train are mutually exclusive; give one of them")
        return self


class _ModelBase(Section):
    name_or_path: str | None = None
    """Hub id, folder, PEFT adapter folder, or 'starter'."""
    config: dict[str, Any] | None = None
    """Start from random weights: the fields of a Transformers config, including ``model_type``."""
    config_overrides: dict[str, Any] = {}
    """Fields of the checkpoint's config to change and save, such as ``attention_dropout: 0.0``."""

    @model_validator(mode="after")
    def _exactly_one_source(self) -> _ModelBase:
        if (self.name_or_path is None) == (self.config is None):
            raise ValueError("give either name_or_path (a checkpoint) or config (random weights)")
        if self.config is not None and not isinstance(self.config.get("model_type"), str):
            raise ValueError("config needs a model_type, such as llama, t5 or marian")
        if self.config is not None and self.config_overrides:
            raise ValueError("config_overrides changes the config of a checkpoint; put its fields in config")
        for name in ("revision", "base"):
            if self.config is not None and getattr(self, name, None) is not None:
                raise ValueError(f"{name} requires a checkpoint (name_or_path), not config; leave it out")
        return self


ModelSection = _from_settings("ModelSection", LoadSettings, without=("model",), base=_ModelBase)


if TYPE_CHECKING:
    PromptSection = PromptOptions
else:
    PromptSection = _from_settings("PromptSection", PromptOptions, without=("prefill", "examples"), base=Section)


# Adapters, named as in PEFT.


class AdapterSection(Section):
    """The PEFT method to train instead of all weights, with any field of its config class."""

    peft_type: str

    @model_validator(mode="after")
    def _text(self) -> AdapterSection:
        text = getattr(self, "prompt_tuning_init_text", None)
        if (getattr(self, "prompt_tuning_init", None) == "TEXT") != (text is not None):
            raise ValueError(
                "prompt_tuning_init_text requires prompt_tuning_init: TEXT and vice versa; give both or neither"
            )
        return self


_TARGETS = Field("all-linear", description="Module names, a regular expression, or all-linear.")
_OTHER_DEFAULTS: dict[str, dict[str, tuple[Any, Any]]] = {
    "LORA": {"lora_alpha": (float, Field(16, gt=0)), "target_modules": (str | list[str] | None, _TARGETS)},
    "": {"num_virtual_tokens": (Positive, 20)},
}
"""Defaults by method (and "" for all) where PEFT has none, or one that depends on the model type."""


# Data.


Paths = Annotated[
    list[str],
    Field(min_length=1),
    BeforeValidator(lambda given: [given] if isinstance(given, str) else given, json_schema_input_type=str | list[str]),
]


def _delimiter(text: str) -> str:
    try:
        return delimiter_character(text)
    except UsageError as error:
        raise ValueError(str(error)) from error


class SourceSection(Section):
    """Where rows come from: ``path``, or ``aligned`` for files with corresponding lines."""

    path: Paths | None = None
    """A file, a folder, a pattern such as ``data/*.jsonl``, a list of these, or a Hub id."""
    aligned: dict[str, str] | None = None
    """Maps each column to a file with one value per line; line n of all files is row n."""
    format: Literal["jsonl", "json", "csv", "tsv", "txt", "parquet", "arrow"] | None = None
    """Format of the files, if it does not follow from their suffix."""
    encoding: str | None = None
    """Encoding of text formats; UTF-8 by default."""
    delimiter: Annotated[str, AfterValidator(_delimiter)] | None = None
    """CSV and TSV: what separates the fields: a character, or tab; detected by default."""
    header: bool | None = None
    """CSV and TSV: whether the first row names the columns; detected by default."""
    column_names: list[str] | None = None
    """Column names of a CSV or TSV file without a header."""
    quotes: bool = True
    """CSV and TSV: whether quotation marks enclose fields. If false, they are ordinary characters."""
    sample_by: Literal["line", "paragraph", "document"] | None = None
    """Plain text: what one row is, by default a line. Paragraphs are separated by empty lines."""
    name: str | None = None
    """Hub: the configuration."""
    split: str | None = None
    """Hub, or a folder with one file per split: which split."""
    revision: str | None = None
    """Hub: branch, tag or commit hash."""
    shape: Literal["columns", "squad", "messages", "alpaca"] | None = None
    """Layout of the rows; by default detected from the first rows (``llmkit data check`` shows it)."""
    columns: dict[str, str] = {}
    """Maps task fields to columns of the rows; ``a.b`` is a field of an object."""
    join: str | None = None
    """Separator used to join a list of strings where one text is needed."""
    weight: Annotated[float, Field(gt=0)] | None = None
    """Share in a mixture, relative to the other sources. No rows are dropped: sources with too few rows repeat them."""
    max_rows: Positive | None = None
    """Use only this many rows from the start."""
    license: str | None = None
    """License of the data for the model card, such as cc-by-sa-4.0."""

    @model_validator(mode="after")
    def _exactly_one_source(self) -> SourceSection:
        if self.columns and self.shape in ("squad", "alpaca"):
            raise ValueError(
                f"columns has no effect on the shape {self.shape}, whose columns have fixed names; leave it out"
            )
        if self.column_names is not None and self.header:
            raise ValueError("column_names are for a file without a header; leave out column_names or header")
        if (self.path is None) == (self.aligned is None):
            raise ValueError("give either path or aligned")
        if self.aligned is not None and len(self.aligned) < 2:
            raise ValueError("aligned needs two files or more, such as {source: train.en, target: train.de}")
        return self


def _as_list(given: object) -> object:
    """Accept a single path or source in place of a list."""
    several = given if isinstance(given, list) else [given]
    return [{"path": item} if isinstance(item, str) else item for item in several]


Sources = Annotated[
    list[SourceSection],
    Field(min_length=1),
    BeforeValidator(_as_list, json_schema_input_type=str | SourceSection | list[str | SourceSection]),
]


class DataSection(Section):
    """The rows, how they become examples, and what to do with rows that do not fit."""

    train: Sources
    """A path, a source, or a list of them."""
    validation: Sources | None = None
    """Rows for validation, which are not trained on."""
    validation_fraction: Share | None = None
    """Hold out this fraction of the training rows, drawn with ``seed``."""
    seed: Seed = 42
    """Seed of the validation split and of mixtures."""
    max_length: Annotated[int, Field(ge=2, le=MOST)] | None = None
    """Maximum length of an example in tokens: prompt and answer (causal), or encoder input (seq2seq). The model's
    context length by default. For windows of extractive models see ``settings.max_seq_len``."""
    max_target_length: Positive | None = None
    """Seq2seq: maximum length of an answer in tokens."""
    on_overflow: Literal["error", "truncate", "chunk", "drop"] | None = None
    """What to do with longer examples; by default error, and chunk for plain text, which is cut into blocks."""
    truncation_side: TruncationSide | None = None
    """Side that ``on_overflow: truncate`` cuts: left keeps the end of the input, right its beginning. By default right
    for summarization, translation and question answering, left for the prompt of a continuation."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What to do with rows that cannot be read or lack a column."""
    on_no_label: Literal["error", "drop"] = "error"
    """What to do with rows that have nothing to learn."""
    loss_on: Literal["target", "all"] = "target"
    """Which tokens contribute to the loss: the answer's, or the prompt's too."""
    num_proc: Positive | None = None
    """Number of processes for tokenization; by default one per core."""

    @model_validator(mode="after")
    def _one_validation(self) -> DataSection:
        if self.validation is not None and self.validation_fraction is not None:
            raise ValueError("validation and validation_fraction are mutually exclusive; give one of them")
        return self

    @model_validator(mode="after")
    def _one_side(self) -> DataSection:
        if self.truncation_side is not None and self.on_overflow != "truncate":
            raise ValueError("truncation_side requires on_overflow: truncate; set that, or leave it out")
        return self


# Training.

Strategy = Literal["no", "steps", "epoch"]


class TrainSection(Section):
    """Hyperparameters, named as in `transformers.TrainingArguments`."""

    output_dir: Annotated[str, Field(min_length=1)]
    """Folder for the result. A folder that already contains a run is refused."""
    num_train_epochs: Annotated[float, Field(gt=0, le=MOST)] = 3.0
    max_steps: Annotated[int, Field(ge=-1, le=MOST)] = -1
    """Number of optimizer steps; overrides epochs if positive."""
    per_device_train_batch_size: Positive = 8
    per_device_eval_batch_size: Positive = 8
    gradient_accumulation_steps: Positive = 1
    learning_rate: Annotated[float, Field(gt=0)] = 5e-5
    lr_scheduler_type: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup",
        "inverse_sqrt", "reduce_lr_on_plateau", "cosine_with_min_lr", "cosine_warmup_with_min_lr",
        "warmup_stable_decay", "greedy",
    ] = "linear"  # fmt: skip
    lr_scheduler_kwargs: dict[str, Any] = {}
    warmup_steps: Annotated[float, Field(ge=0)] = 0
    """Number of warmup steps; below 1, a fraction of all steps."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Clip gradients to this norm; 0 turns clipping off."""
    label_smoothing_factor: Annotated[float, Field(ge=0, lt=1)] = 0.0
    optim: Literal["adamw_torch", "adamw_torch_fused", "adamw_bnb_8bit", "paged_adamw_8bit", "adafactor", "sgd"] = (
        "adamw_torch_fused"
    )
    bf16: bool | Literal["auto"] = "auto"
    """Compute in bfloat16; auto: if the hardware supports it well."""
    fp16: bool = False
    activation_checkpointing: bool = False
    """Recompute activations instead of keeping them: less memory, more time."""
    torch_compile: bool = False
    packing: bool | Literal["auto"] = "auto"
    """Pack several examples into one sequence; auto: if a probe shows that the model separates them (causal only)."""
    train_sampling_strategy: Literal["random", "sequential", "group_by_length"] = "group_by_length"
    freeze: list[Annotated[str, AfterValidator(_regular_expression)]] = []
    """Regular expressions; parameters with a matching name are not trained."""
    seed: Seed = 42
    logging_steps: Positive = 10
    eval_strategy: Strategy = "epoch"
    eval_steps: Positive | None = None
    save_strategy: Literal["no", "steps", "epoch", "best"] = "epoch"
    save_steps: Positive | None = None
    save_total_limit: Positive | None = 2
    load_best_model_at_end: bool = False
    metric_for_best_model: str | None = None
    """eval_loss (the default; loss is the same), or one of the task's metrics."""
    greater_is_better: bool | None = None
    early_stopping_patience: Positive | None = None
    """Stop after this many evaluations without improvement."""
    report_to: list[str] = []
    """Trackers, named as in Accelerate."""
    push_to_hub: bool = False
    """Upload the result to the Hub."""
    hub_model_id: str | None = None
    """Hub repository of the result; by default the name of the output folder."""
    hub_private_repo: bool | None = None

    @property
    def best_metric(self) -> str:
        """The metric by which evaluations are compared: loss, or one of the task's metrics."""
        return (self.metric_for_best_model or "loss").removeprefix("eval_")

    def first_key_needing_evaluation(self) -> str | None:
        """The first key that requires evaluations, if any."""
        keys = {
            "early_stopping_patience": self.early_stopping_patience is not None,
            "load_best_model_at_end": self.load_best_model_at_end,
            "metric_for_best_model": self.metric_for_best_model is not None,
            "save_strategy: best": self.save_strategy == "best",
            f"lr_scheduler_type: {self.lr_scheduler_type}": self.lr_scheduler_type
            in ("reduce_lr_on_plateau", "greedy"),
        }
        return next((key for key, is_set in keys.items() if is_set), None)

    @model_validator(mode="after")
    def _check_consistency(self) -> TrainSection:
        for kind in ("eval", "save"):
            steps, strategy = getattr(self, f"{kind}_steps"), getattr(self, f"{kind}_strategy")
            if (steps is not None) != (strategy == "steps"):
                raise ValueError(f"{kind}_steps requires {kind}_strategy: steps and vice versa; give both or neither")
        if self.optim in ("sgd", "adafactor"):
            for name in ("adam_beta1", "adam_beta2", "adam_epsilon"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} has no effect on optim: {self.optim}; leave it out, or use adamw_torch")
        if self.bf16 is True and self.fp16:
            raise ValueError("bf16 and fp16 are mutually exclusive; set one of them")
        if (need := self.first_key_needing_evaluation()) and self.eval_strategy == "no":
            raise ValueError(f"{need} requires evaluation; set eval_strategy")
        if not self.push_to_hub and (self.hub_model_id is not None or self.hub_private_repo is not None):
            raise ValueError("hub_model_id and hub_private_repo require push_to_hub: true; set it, or leave them out")
        if self.greater_is_better is not None and self.metric_for_best_model is None:
            raise ValueError("greater_is_better requires metric_for_best_model; set it")
        return self


class FsdpSection(Section):
    """Accelerate's ``fsdp_config``."""

    fsdp_version: Literal[2] = 2
    fsdp_auto_wrap_policy: Literal["TRANSFORMER_BASED_WRAP", "SIZE_BASED_WRAP", "NO_WRAP"] = "TRANSFORMER_BASED_WRAP"
    fsdp_transformer_layer_cls_to_wrap: str | None = None
    fsdp_min_num_params: Positive | None = None
    fsdp_reshard_after_forward: bool = True
    fsdp_offload_params: bool = False
    fsdp_cpu_ram_efficient_loading: bool = True
    fsdp_activation_checkpointing: bool = False
    fsdp_state_dict_type: Literal["FULL_STATE_DICT", "SHARDED_STATE_DICT"] = "SHARDED_STATE_DICT"


class DeepSpeedSection(Section):
    """Accelerate's ``deepspeed_config``."""

    zero_stage: Literal[0, 1, 2, 3] = 2
    offload_optimizer_device: Literal["none", "cpu", "nvme"] = "none"
    offload_param_device: Literal["none", "cpu", "nvme"] = "none"
    zero3_init_flag: bool = False
    zero3_save_16bit_model: bool = False
    deepspeed_config_file: str | None = None


class AccelerateSection(Section):
    """Several devices or machines; keys are named as in Accelerate's config file."""

    num_processes: Positive | None = None
    """Total number of processes on all machines, one per device."""
    num_machines: Positive = 1
    machine_rank: Annotated[int, Field(ge=0, le=MOST)] = 0
    main_process_ip: str | None = None
    main_process_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    fsdp_config: FsdpSection | None = None
    deepspeed_config: DeepSpeedSection | None = None
    local_sgd_steps: Positive | None = None
    """Updates of each process between two synchronizations, for slow interconnects. Weights and optimizer states are
    averaged then, and before each evaluation and checkpoint."""

    @model_validator(mode="after")
    def _check_consistency(self) -> AccelerateSection:
        if self.local_sgd_steps is not None and (self.fsdp_config or self.deepspeed_config):
            raise ValueError(
                "local_sgd_steps averages complete models and does not support sharding; leave one of them out"
            )
        if self.fsdp_config is not None and self.deepspeed_config is not None:
            raise ValueError("fsdp_config and deepspeed_config are mutually exclusive; give one of them")
        if self.num_machines > 1 and self.main_process_ip is None:
            raise ValueError("num_machines requires main_process_ip; set it to the address of the first machine")
        if self.machine_rank >= self.num_machines:
            raise ValueError("machine_rank counts from 0 and must be below num_machines")
        if self.num_machines > 1 and (self.num_processes or 0) % self.num_machines:
            raise ValueError("num_processes is the total of all machines; make it a multiple of num_machines")
        if self.num_machines > 1 and not self.num_processes:
            raise ValueError("num_machines requires num_processes; set it to the total of all machines")
        return self


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
    model: ModelSection  # type: ignore[valid-type]  # made of LoadSettings
    tokenizer: TokenizerSection = TokenizerSection()
    adapter: Any = None
    """The `AdapterSection` of the method."""
    data: DataSection
    train: TrainSection
    accelerate: AccelerateSection = AccelerateSection()

    @model_validator(mode="after")
    def _columns_are_known(self) -> Recipe:
        known = tuple(find_task(self.task).aliases)
        for part, sources in (("train", self.data.train), ("validation", self.data.validation or ())):
            for name in (name for source in sources for name in source.columns if name not in known):
                near = get_close_matches(name, known, n=1)
                raise ValueError(
                    f"data.{part}.columns.{name} is not a field of {self.task}; "
                    f"{f'did you mean {near[0]}? ' if near else ''}choose from {', '.join(known)}"
                )
        return self

    @model_validator(mode="after")
    def _check_consistency(self) -> Recipe:
        model: Any = self.model
        sources = (self.tokenizer.name_or_path, self.tokenizer.train)
        if model.config is None and any(sources):
            raise ValueError(
                "tokenizer.name_or_path and tokenizer.train require model.config; leave them out with a checkpoint"
            )
        if model.config is not None and not any(sources):
            raise ValueError("model.config requires a tokenizer; set tokenizer.train or tokenizer.name_or_path")
        if model.config is not None and self.adapter is not None:
            raise ValueError(
                "an adapter on random weights cannot learn anything useful; leave out adapter or model.config"
            )
        if model.quantize is not None and self.adapter is None:
            raise ValueError("quantized weights cannot be trained directly; add an adapter, or leave out quantize")
        if not (self.data.validation or self.data.validation_fraction):
            if need := self.train.first_key_needing_evaluation():
                raise ValueError(
                    f"train.{need} requires validation rows; set data.validation or data.validation_fraction"
                )
            if self.train.eval_strategy == "steps":
                raise ValueError(
                    "train.eval_steps requires validation rows; set data.validation or data.validation_fraction"
                )
        if self.accelerate.local_sgd_steps is not None and (self.train.fp16 or self.train.optim.endswith("8bit")):
            raise ValueError(
                "accelerate.local_sgd_steps averages the states of optimizers, which fp16 and 8-bit optimizers do not "
                "support; use bf16 and adamw_torch"
            )
        return self


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


def _recipe_of(name: str, settings: type[TaskSettings], adapter: Any) -> Any:
    section = _from_settings(f"{settings.__name__}Section", settings, base=Section)
    members: dict[str, Any] = {"task": (Literal[name], ...), "settings": (section, section())}
    members["adapter"] = (adapter, Field(None, description=_ADAPTER))
    title = f"{''.join(map(str.capitalize, name.split('-')))}Recipe"
    return create_model(title, __base__=Recipe, __cls_kwargs__=NO_SOURCE, **members)


_ADAPTER = "A PEFT adapter to train instead of all weights."
