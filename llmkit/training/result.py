"""The result of a run: weights, tokenizer, ``llmkit.json``, metrics, loss curve and model card.

Checkpoints hold the first three too, so that each is a model. Does not know how they get to their place
(`llmkit.training.output_folder`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llmkit.config.recipe import Recipe
from llmkit.config.settings import GenerationSettings
from llmkit.engines.transformers import TransformersEngine
from llmkit.evaluation.no_answer import fit_no_answer_threshold
from llmkit.heads import BaseHead
from llmkit.heads.end_tokens import declare_ends
from llmkit.inference.pipeline import Pipeline
from llmkit.inference.tuned_config import Contract, recipe_prompt, tuned_prompt, write_contract
from llmkit.log import log, warn
from llmkit.metrics.answers import Threshold
from llmkit.models.adapter_init import save_adapter
from llmkit.models.load import Loaded
from llmkit.models.memory import peak_memory
from llmkit.models.quiet import quiet_transformers
from llmkit.models.wheels import weights_hash
from llmkit.reporting.records import DATA
from llmkit.tasks import PromptOptions, Task
from llmkit.training.data_report import samples_of
from llmkit.training.dataset import Part
from llmkit.training.loop import Trainer
from llmkit.training.model_card import draw_losses, model_card
from llmkit.training.provenance import Provenance
from llmkit.training.recipe_model import open_task
from llmkit.training.row_counts import Ledger, describe
from llmkit.training.source_tasks import common_settings, recipe_of, tasks_by_name

__all__ = ["METRICS", "ModelFiles", "Run", "fitted_threshold", "write_report"]

METRICS = "metrics.json"
_SAMPLES = 3


@dataclass(frozen=True)
class ModelFiles:
    """What the files of a tuned model are made from, besides its weights."""

    recipe: Recipe
    loaded: Loaded
    """The model that is trained, before the adapter was added, with its tokenizer."""
    head: BaseHead
    longest_targets: Mapping[str, int]
    """Tokens of the longest training answer of each task."""

    def write(self, folder: Path, model: Any, weights: Any, threshold: float | None = None) -> None:
        """Write weights, tokenizer and ``llmkit.json``.

        Args:
            weights: the state dict of a sharded model; None for others.
            threshold: a no_answer_threshold that was fitted.
        """
        for config in getattr(model, "peft_config", {}).values():
            self._name_base(config)
        generation: Any = self.loaded.model.generation_config if self.head.writes else None
        ends = getattr(generation, "eos_token_id", None)
        if self.head.writes:
            declare_ends(self.loaded)
        with quiet_transformers():
            if hasattr(model, "peft_config"):
                save_adapter(model, folder, weights)
            else:
                model.save_pretrained(folder, **({} if weights is None else {"state_dict": weights}))
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's template for a card, with the path of the base
        if generation is not None and self.loaded.source.token_ids is not None and hasattr(model, "peft_config"):
            generation.save_pretrained(folder)  # which differs from that of the base
        if generation is not None:
            generation.eos_token_id = ends  # a checkpoint changes nothing for the updates after it
        self.loaded.tokenizer.save_pretrained(folder)
        write_contract(folder, self._contract(threshold, adapter=hasattr(model, "peft_config")))

    def _name_base(self, config: Any) -> None:
        """Name the base model in the config of an adapter so that it is found from other folders and machines."""
        source = self.loaded.source
        config.base_model_name_or_path = source.lasting_base
        if getattr(config, "tokenizer_name_or_path", None):  # of prompt tuning: the folder it was loaded from
            config.tokenizer_name_or_path = config.base_model_name_or_path
        if source.adapter is None:
            config.revision = getattr(self.recipe.model, "revision", None)

    def _contract(self, threshold: float | None, *, adapter: bool) -> Contract:
        recipe, source = self.recipe, self.loaded.source
        tasks = {name: self._tuned(name, each) for name, each in self._tasks().items()}
        own = tasks.pop(recipe.task)
        if threshold is not None:
            own["settings"]["no_answer_threshold"] = threshold
        # Also those that an adapter it was trained from applies.
        overrides = source.config_overrides() | dict(getattr(recipe.model, "config_overrides", {}))
        origin = source.origin
        return Contract(
            recipe.task,
            **own,
            truncation_side=recipe.data.truncation_side,
            config_overrides=(overrides or None) if adapter else None,
            base=None if origin is None else asdict(origin) | {"sha256": weights_hash(source.folder)},
            more_tasks=tasks,
        )

    def _tasks(self) -> dict[str, list[Task]]:
        return tasks_by_name(self.recipe.data.train, open_task(self.recipe))

    def _tuned(self, name: str, tasks: Sequence[Task]) -> dict[str, Any]:
        """The fields of the contract on one task, with what its sources have in common."""
        prompt = recipe_prompt(recipe_of(self.recipe, name), self.loaded, tasks[0])
        return {
            "settings": common_settings([asdict(task.settings) for task in tasks]),
            "prompt": tuned_prompt(prompt),
            "longest_target": self.longest_targets.get(name, 0),
        }


@dataclass(frozen=True)
class Run:
    """A run that is ready to train, or has trained."""

    recipe: Recipe
    trainer: Trainer
    loaded: Loaded
    provenance: Provenance
    parts: Mapping[str, Part]
    files: ModelFiles

    def ledgers(self) -> dict[str, Ledger]:
        """The counts of rows of each part; of a stream, those that were read."""
        found = {name: part.ledger for name, part in self.parts.items()}
        return found if self.trainer.stream is None else found | {"train": self.trainer.stream.ledger()}


def write_report(run: Run, threshold: Threshold | None, folder: Path) -> None:
    """Write the log, the metrics, the loss curve, the model card, and what a report shows of the data."""
    recipe, trainer = run.recipe, run.trainer
    entries = "".join(f"{json.dumps(entry)}\n" for entry in trainer.progress.log)
    (folder / "log.jsonl").write_text(entries, encoding="utf-8")
    metrics = _metrics(trainer)
    if threshold is not None:
        metrics |= {"no_answer_threshold": threshold.value, "f1_with_no_answer_threshold": 100 * threshold.figure}
    (folder / METRICS).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    draw_losses(trainer.progress.log, folder / "loss.png", "example" if recipe.method else trainer.head.unit)
    ledgers = [list(describe(ledger, name)) for name, ledger in run.ledgers().items()]
    card = model_card(recipe, run.provenance, metrics, trainer.folder.name, ledgers)
    (folder / "README.md").write_text(card, encoding="utf-8")
    (folder / DATA).write_text(json.dumps(_data(run, ledgers), ensure_ascii=False), encoding="utf-8")


def _data(run: Run, ledgers: Sequence[Sequence[str]]) -> dict[str, Any]:
    """What a report shows of the data."""
    samples = samples_of(run.parts["train"], run.loaded.tokenizer, _SAMPLES)
    return {
        "ledger": [sentence for sentences in ledgers for sentence in sentences],
        "samples": [asdict(each)["pieces"] for each in samples],
        "licenses": {"base": run.provenance.license} | {each.name: each.license for each in run.provenance.data},
    }


def fitted_threshold(run: Run) -> Threshold | None:
    """The best no_answer_threshold on the validation rows, for span models if the recipe sets none.

    None if every row has an answer.
    """
    recipe, trainer, task = run.recipe, run.trainer, open_task(run.recipe)
    part = run.parts.get("validation")
    if part is None or trainer.head.writes or getattr(recipe.settings, "no_answer_threshold", 0) is not None:
        return None
    rows = _rows_with_references(part, task)
    if trainer.sharded:
        if not all(task.references(row) for row in rows):
            warn("threshold_not_fitted", "no_answer_threshold is not fitted for a sharded model; set it in the recipe")
        return None
    loaded = replace(run.loaded, model=trainer.model)
    with trainer.accelerator.autocast():
        found = fit_no_answer_threshold(
            Pipeline(task, TransformersEngine(loaded), GenerationSettings(), PromptOptions()), rows
        )
    if found is not None:
        log.info("no_answer_threshold %.4f, fitted on the validation rows: F1 %.2f", found.value, 100 * found.figure)
    return found


def _rows_with_references(part: Part, task: Task) -> list[dict[str, Any]]:
    """The rows of a part, with references apart from the input."""
    return [split for row in part.used_rows() if (split := task.without_target(row)) is not None]


def _metrics(trainer: Trainer) -> dict[str, Any]:
    """Measures of the complete run, including the time before it was resumed."""
    progress = trainer.progress
    last = {
        key: value
        for entry in progress.log
        for key, value in entry.items()
        if key == "loss" or key.startswith(("eval_", "rewards/"))
    }
    best = f"eval_{trainer.train.best_metric}"
    found: dict[str, Any] = {
        "updates": progress.step,
        "epochs": trainer.epochs,
        "train_loss": last.get("loss"),
        **{key: value for key, value in last.items() if key != "loss"},
        f"best_{best}": progress.best_metric,
        "best_update": progress.best_step,
        "tokens": progress.tokens,
        "train_seconds": round(progress.seconds, 3),
        "tokens_per_second": round(progress.tokens / progress.seconds, 1) if progress.seconds else None,
        "peak_memory_bytes": peak_memory(trainer.accelerator.device.type),
        "processes": trainer.accelerator.num_processes,
    }
    return {key: value for key, value in found.items() if value is not None}
