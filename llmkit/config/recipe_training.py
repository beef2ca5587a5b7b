"""The sections of a recipe on training: hyperparameters as in Transformers, processes as in Accelerate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from llmkit.config.declaration import MOST
from llmkit.config.optimizer_names import OptimizerName, optimizer_arguments
from llmkit.config.recipe_sections import Positive, Section, Seed, regular_expression

__all__ = ["AccelerateSection", "ParameterGroup", "TrainSection"]

Trackers = Annotated[
    list[str],
    BeforeValidator(
        lambda value: [] if value == "none" else [value] if isinstance(value, str) else value,
        json_schema_input_type=str | list[str],
    ),
]
Strategy = Literal["no", "steps", "epoch"]


class ParameterGroup(Section):
    """Parameters that are trained with other hyperparameters than the rest."""

    params: Annotated[str, AfterValidator(regular_expression)]
    """A regular expression that matches their names."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    """Of all parameters in the group, including biases and norms."""

    def _conflicts(self) -> Iterator[str]:
        if self.learning_rate is None and self.weight_decay is None:
            yield "has no effect; set learning_rate or weight_decay"


class TrainSection(Section):
    """Hyperparameters, named as in `transformers.TrainingArguments`."""

    output_dir: Annotated[str, Field(min_length=1)]
    """Folder for the result. A folder that already contains a run is refused."""
    resume_from_checkpoint: Annotated[str, Field(min_length=1)] | None = None
    """Continue a run of Transformers' Trainer (also of TRL, Axolotl or LLaMA-Factory) from its checkpoint: a folder
    checkpoint-N, or the one that it is in."""
    num_train_epochs: Annotated[float, Field(gt=0, le=MOST)] = 3.0
    max_steps: Annotated[int, Field(ge=-1, le=MOST)] = -1
    """Number of optimizer steps; overrides epochs if positive. A finished run trains further if it, or the number of
    epochs, is raised and the run is resumed."""
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
    loss_type: Literal["nll", "dft"] = "nll"
    """nll: cross entropy; dft: Dynamic Fine-Tuning (arXiv:2508.05629), which weights each token by its probability, as
    in TRL. The validation loss is cross entropy in both."""
    neftune_noise_alpha: Annotated[float, Field(gt=0)] | None = None
    """Add noise of this strength to the embeddings in training (NEFTune, arXiv:2310.05914), such as 5."""
    optim: OptimizerName = "adamw_torch_fused"
    """An optimizer of Transformers, or muon (torch's, for the matrices of linear layers, and AdamW for the rest). Some
    need a package or a kind of device."""
    optim_args: Annotated[
        dict[str, Any], BeforeValidator(optimizer_arguments, json_schema_input_type=str | dict[str, Any])
    ] = {}
    """Arguments of the optimizer: a mapping, or ``key=value,key=value``."""
    optim_target_modules: str | list[str] | None = None
    """Modules whose gradients GaLore and APOLLO project: names, regular expressions, or all-linear."""
    param_groups: list[ParameterGroup] = []
    """Parameters with a learning rate or weight decay of their own; the first group that matches applies."""
    loraplus_lr_ratio: Annotated[float, Field(gt=0)] | None = None
    """LoRA+ (arXiv:2402.12354): learning rate of the B matrices, relative to ``learning_rate``."""
    loraplus_lr_embedding: Annotated[float, Field(gt=0)] = 1e-6
    """LoRA+: learning rate of adapters on embeddings."""
    bf16: bool | Literal["auto"] = "auto"
    """Compute in bfloat16; auto: if the hardware supports it well."""
    fp16: bool = False
    activation_checkpointing: bool = False
    """Recompute activations instead of keeping them: less memory, more time."""
    torch_compile: bool = False
    packing: bool | Literal["auto"] = "auto"
    """Pack several examples into one sequence; auto: if a probe shows that the model separates them (causal only)."""
    train_sampling_strategy: Literal["random", "sequential", "group_by_length"] = "group_by_length"
    freeze: list[Annotated[str, AfterValidator(regular_expression)]] = []
    """Regular expressions; parameters with a matching name are not trained."""
    unfreeze: list[Annotated[str, AfterValidator(regular_expression)]] = []
    """Regular expressions; only parameters with a matching name are trained, except those that ``freeze`` matches."""
    seed: Seed = 42
    logging_steps: Positive = 10
    eval_strategy: Strategy = "epoch"
    eval_steps: Positive | None = None
    save_strategy: Literal["no", "steps", "epoch", "best"] = "epoch"
    save_steps: Positive | None = None
    save_total_limit: Positive | None = 2
    load_best_model_at_end: bool = False
    metric_for_best_model: str | None = None
    """eval_loss (the default; loss is the same), or one of the task's metrics; with ``method`` also
    eval_rewards/accuracies or eval_rewards/margins."""
    greater_is_better: bool | None = None
    early_stopping_patience: Positive | None = None
    """Stop after this many evaluations without improvement."""
    num_completions_to_print: Annotated[int, Field(ge=0, le=MOST)] = 0
    """Number of validation rows that each evaluation answers to log the texts: a line each in the log, in full in
    ``completions.jsonl`` of the output folder, and to trackers that take text."""
    report: bool = True
    """Write ``report.html``, a page with curves, data, samples of what was learned and the recipe; not pushed."""
    report_to: Trackers = []
    """Trackers, named as in Accelerate; a single one may be given without a list."""
    push_to_hub: bool = False
    """Upload the result to the Hub."""
    hub_model_id: str | None = None
    """Hub repository of the result; by default the name of the output folder."""
    hub_private_repo: bool | None = None

    @property
    def compares_answers(self) -> bool:
        """Whether evaluations are compared by a metric of generated answers, not by what is logged with the loss."""
        return self.best_metric != "loss" and not self.best_metric.startswith("rewards/")

    @property
    def best_metric(self) -> str:
        """The metric by which evaluations are compared: loss, or one of the task's metrics."""
        return (self.metric_for_best_model or "loss").removeprefix("eval_")

    @property
    def answers_validation_rows(self) -> bool:
        """Whether evaluations generate answers."""
        return self.compares_answers or self.num_completions_to_print > 0

    def first_key_needing_evaluation(self) -> str | None:
        """The first key that requires evaluations, if any."""
        keys = {
            "early_stopping_patience": self.early_stopping_patience is not None,
            "load_best_model_at_end": self.load_best_model_at_end,
            "metric_for_best_model": self.metric_for_best_model is not None,
            "num_completions_to_print": self.num_completions_to_print > 0,
            "save_strategy: best": self.save_strategy == "best",
            f"lr_scheduler_type: {self.lr_scheduler_type}": self.lr_scheduler_type
            in ("reduce_lr_on_plateau", "greedy"),
        }
        return next((key for key, is_set in keys.items() if is_set), None)

    def _conflicts(self) -> Iterator[str]:
        for kind in ("eval", "save"):
            steps, strategy = getattr(self, f"{kind}_steps"), getattr(self, f"{kind}_strategy")
            if (steps is not None) != (strategy == "steps"):
                yield (f"{kind}_steps requires {kind}_strategy: steps and vice versa; give both or neither")
        if self.loss_type == "dft" and self.label_smoothing_factor:
            yield ("label_smoothing_factor is not defined for loss_type: dft; leave one of them out")
        if self.neftune_noise_alpha is not None and self.torch_compile:
            yield ("neftune_noise_alpha is not supported with torch_compile; leave one of them out")
        if self.loraplus_lr_ratio is None and self.changed("loraplus_lr_embedding"):
            yield ("loraplus_lr_embedding requires loraplus_lr_ratio; set it, or leave both out")
        if self.bf16 is True and self.fp16:
            yield ("bf16 and fp16 are mutually exclusive; set one of them")
        if (need := self.first_key_needing_evaluation()) and self.eval_strategy == "no":
            yield (f"{need} requires evaluation; set eval_strategy")
        if not self.push_to_hub and (self.hub_model_id is not None or self.hub_private_repo is not None):
            yield ("hub_model_id and hub_private_repo require push_to_hub: true; set it, or leave them out")
        if self.greater_is_better is not None and self.metric_for_best_model is None:
            yield ("greater_is_better requires metric_for_best_model; set it")


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

    def _conflicts(self) -> Iterator[str]:
        if self.local_sgd_steps is not None and (self.fsdp_config or self.deepspeed_config):
            yield ("local_sgd_steps averages complete models and does not support sharding; leave one of them out")
        if self.fsdp_config is not None and self.deepspeed_config is not None:
            yield ("fsdp_config and deepspeed_config are mutually exclusive; give one of them")
        if self.num_machines > 1 and self.main_process_ip is None:
            yield ("num_machines requires main_process_ip; set it to the address of the first machine")
        if self.machine_rank >= self.num_machines:
            yield ("machine_rank counts from 0 and must be below num_machines")
        if self.num_machines > 1 and (self.num_processes or 0) % self.num_machines:
            yield ("num_processes is the total of all machines; make it a multiple of num_machines")
        if self.num_machines > 1 and not self.num_processes:
            yield ("num_machines requires num_processes; set it to the total of all machines")
