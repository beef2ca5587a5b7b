"""The training loop, for all tasks, heads and methods.

An update is a set of examples, divided into micro-batches and distributed over processes. Its loss is the sum of all
losses divided by the number of predicted tokens, so that the division has no effect. Knows when to evaluate, save and
stop; does not know where examples come from (`llmkit.training.dataset`) or what the result consists of
(`llmkit.training.result`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from llmkit.config.recipe import TrainSection
from llmkit.errors import LlmkitError, UsageError
from llmkit.files import disk_errors
from llmkit.heads.base import IGNORED, BaseHead
from llmkit.heads.batch import Batch
from llmkit.heads.preference import make_objective, means
from llmkit.heads.projection import log_all_logits
from llmkit.heads.token_loss import Distillation, make_token_loss
from llmkit.log import log, warn
from llmkit.models.memory import free_weights, peak_memory
from llmkit.progress import ProgressMeter
from llmkit.training.accelerator import optimizer_state, whole
from llmkit.training.checkpoint import (
    Progress,
    Unlogged,
    load_checkpoint,
    prune,
    random_state,
    save_checkpoint,
)
from llmkit.training.local_sgd import LocalSgd, Synchronous, sum_over_processes
from llmkit.training.optimizer import make_optimizer, place_state, set_training_mode
from llmkit.training.optimizer_check import state_classes
from llmkit.training.progress_lines import TrainingStats, comparison, conclusion
from llmkit.training.provenance import check_hashes
from llmkit.training.sampler import CPU_TOKENS, BatchSampler, Pool, count_updates, divide
from llmkit.training.schedule import follows_metric, greater_is_better, make_scheduler, set_learning_rates
from llmkit.training.trainable import check_gradients
from llmkit.training.validation_loss import ValidationLosses

if TYPE_CHECKING:
    import datasets

    from llmkit.training.stream import ExampleStream

__all__ = ["Trainer"]


@dataclass
class Trainer:
    """Trains a model on examples.

    Args:
        accelerator: an `accelerate.Accelerator`, which determines processes and precision.
        model: on its device, with ``requires_grad`` set on the parameters to train.
        packed: whether the examples of a micro-batch are packed into one row, which the model must support.
        local_sgd_steps: updates of each process between averaging weights and optimizer states (local SGD, Stich
            2019); None averages the gradients of every update.
    """

    accelerator: Any
    model: Any
    head: BaseHead
    train: TrainSection
    examples: datasets.Dataset
    validation: datasets.Dataset | None
    pad_id: int
    packed: bool = False
    teacher: tuple[Any, Distillation] | None = None
    """A model to distill, in the mode of evaluation, and how."""
    masked: bool = True
    """Whether the model needs an attention mask to ignore padding."""
    local_sgd_steps: int | None = None
    method: Any = None
    """The recipe's section of a method of tuning on preferences."""
    hashes: dict[str, str] = field(default_factory=dict)
    may_be_unused: Callable[[str], bool] = lambda _: False
    """Whether a parameter may be without gradient: it is trained only because all are, and was not named."""
    on_log: Callable[[TrainingStats], None] = lambda _: None
    should_stop: Callable[[], bool] = lambda: False
    """Called after each update; True saves a checkpoint and ends the run."""
    validation_metrics: Callable[[int], dict[str, float]] | None = None
    """Answers validation rows after an update, and returns the task's metrics if they choose the best model."""
    validation_tasks: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """The validation examples of each task; the loss of each is logged if there are several."""
    write_model: Callable[[Path, Any, Any], None] = lambda _folder, _model, _weights: None
    """Writes the files of the model to a checkpoint: takes folder, model, and the state dict if it is sharded."""
    progress: Progress = field(default_factory=Progress)
    stopped: bool = False
    """Whether `should_stop` ended the run."""
    stream: ExampleStream | None = None
    """Trains on these examples; `examples` are then only the first."""

    def __post_init__(self) -> None:
        self.folder = Path(self.train.output_dir)
        self.sampler = BatchSampler(
            lengths=self.examples["length"][:],
            batch_size=self.train.per_device_train_batch_size,
            accumulation=self.train.gradient_accumulation_steps,
            processes=self.accelerator.num_processes,
            strategy=self.train.train_sampling_strategy,
            seed=self.train.seed,
        )
        self.updates = count_updates(self.train, len(self.sampler.lengths), self.sampler.processes)
        objective = make_objective(self.model, self.head, make_token_loss(self.train), self.method)
        self.objective = objective.with_noise(self.model, self.train.neftune_noise_alpha)
        self.optimizer = make_optimizer(self.plain_model, self.train, self.updates)
        self.scheduler = make_scheduler(self.optimizer, self.train, self.updates)
        self._wrapped, self._optimizer = self.accelerator.prepare(self.model, self.optimizer)
        self.trained = {name: each for name, each in self.model.named_parameters() if each.requires_grad}
        with self.accelerator.autocast():
            if not self.sharded and self.model is self.plain_model:
                self.objective = self.objective.in_chunks(self.model, self._most_labels(), list(self.trained.values()))
            elif self.head.writes:
                reason = "accelerate.fsdp_config" if self.sharded else "train.torch_compile"
                log_all_logits(self.plain_model, self._most_labels(), f"{reason} does not compute them in chunks")
            if self.teacher is not None:
                self.objective = self.objective.with_teacher(*self.teacher, self._most_labels())
        self.processes = (
            Synchronous(self.accelerator)
            if self.local_sgd_steps is None
            else LocalSgd(self.accelerator, self.local_sgd_steps, list(self.trained.values()), self.optimizer)
        )
        self.hashes = {**self.hashes, "number of processes": str(self.accelerator.num_processes)}
        self.progress.hashes, self.progress.updates = dict(self.hashes), self.updates
        self.pool, self._saved_step = Pool(self.examples, self.sampler, ()), 0

    def _most_labels(self) -> int:
        """Maximum number of labels in a batch."""
        parts = [(self.examples, self.train.per_device_train_batch_size)]
        if self.validation is not None:
            parts.append((self.validation, self.train.per_device_eval_batch_size))
        return max(max(part["targets"][:], default=0) * size for part, size in parts)

    @property
    def sharded(self) -> bool:
        """Whether the model is distributed over the processes."""
        return bool(self.accelerator.is_fsdp2)

    @property
    def plain_model(self) -> Any:
        """The model as it was before torch.compile."""
        return getattr(self.model, "_orig_mod", self.model)

    @property
    def epochs(self) -> float:
        """Epochs so far; of a stream, whose length is unknown, the number of complete ones."""
        part = 0 if self.stream is not None else self.progress.update / self.sampler.updates
        return self.progress.epoch + part

    def resume(self, checkpoint: Path) -> None:
        """Resume from a checkpoint, also for more updates than its run had.

        The schedule is then the one of the longer run: the learning rate is what that has at this update.

        Raises:
            CheckpointError: it is damaged, or of another run.
            UsageError: something else changed, or the run is to be shorter than it is already.
        """
        rank = self.accelerator.process_index
        classes = state_classes(self.plain_model, self.train, self.updates, str(self.accelerator.device))
        found = load_checkpoint(checkpoint, self.trained, self.model, self.optimizer, self.scheduler, rank, classes)
        place_state(self.optimizer)
        self.progress, self._saved_step = found, found.step
        if found.step > self.updates:
            raise UsageError(
                f"{checkpoint} is after update {found.step}, and the recipe ends at {self.updates}",
                f"set train.max_steps to more than {found.step}, or train.num_train_epochs higher",
                code="resume_mismatch",
            )
        if found.updates != self.updates:
            set_learning_rates(self.optimizer, self.scheduler)
            if found.updates:
                rate = float(self.optimizer.param_groups[0]["lr"])
                text = "the run has %d updates instead of %d; the learning rate continues at %.2e, at update %d"
                log.info(text, self.updates, found.updates, rate, found.step)
        found.updates = self.updates
        check_hashes(found.hashes, self.hashes, checkpoint)

    def run(self) -> None:
        """Train to the end, or until `should_stop`. A run that early stopping ended is not continued."""
        if self._patience_is_over():
            if self.progress.step < self.updates:
                text = "early stopping ended this run at update %d; to go on, raise train.early_stopping_patience"
                warn("no_effect", text, self.progress.step)
            return
        self._set_training_mode(training=True)
        main = self.accelerator.is_main_process
        with ProgressMeter(self.updates, "updates", done=self.progress.step, shown=main) as self._bar:
            for update in self._updates():
                self._update(update)
                if self.stopped or self._patience_is_over():
                    break
        self._set_training_mode(training=False)
        if not self.stopped:
            log.info("%s", conclusion(self.progress, self.train))

    def _set_training_mode(self, *, training: bool) -> None:
        self._wrapped.train(training)
        set_training_mode(self.optimizer, training=training)

    def _update(self, update: Sequence[int]) -> None:
        """Make one update, then evaluate and save if due."""
        begun, progress = time.perf_counter(), self.progress
        loss, count, norm, stop, measures = self._step(update)
        stop = self.processes.after_update(progress.step, stop, last=progress.step == self.updates)
        tokens = sum(map(self.pool.sampler.lengths.__getitem__, update))
        progress.count(loss, count, tokens, time.perf_counter() - begun, measures)
        logged = progress.step % self.train.logging_steps == 0 or progress.step == self.updates
        self._bar.advance(logged=not logged)
        if logged:
            self._report(norm)
        self._between(norm, update_ends_epoch=self.pool.last and progress.update == self.pool.end)
        if stop and progress.step < self.updates:
            self.save()
            self.stopped = True

    def _updates(self) -> Iterator[Sequence[int]]:
        """The remaining updates; advances `progress` by each."""
        progress = self.progress
        while progress.step < self.updates:
            for pool in self._pools():
                self.pool = pool
                for update in pool.updates[progress.update - pool.begin :]:
                    progress.step += 1
                    progress.update += 1
                    yield update
                    if progress.step == self.updates:
                        return
            progress.epoch, progress.update, progress.stream = progress.epoch + 1, 0, {}

    def _pools(self) -> Iterator[Pool]:
        """The pools that are left of the epoch. An error in a stream ends all processes, with a checkpoint."""
        if self.stream is None:
            yield Pool(self.examples, self.sampler, self.sampler.epoch(self.progress.epoch))
            return
        pools = self.stream.pools(self.progress, self.sampler)
        while True:
            pool, error, begun = None, None, time.perf_counter()
            try:
                pool = next(pools, None)
            except LlmkitError as failure:
                error = failure
            for each in (self.progress, self.progress.unlogged):
                each.seconds += time.perf_counter() - begun
            if sum_over_processes(self.accelerator, float(error is not None))[0]:
                self._save_before(error or LlmkitError("another process cannot read its rows", code="process_failed"))
            if pool is None:
                return
            yield pool

    def _save_before(self, error: LlmkitError) -> NoReturn:
        if self.progress.step:
            if self._saved_step < self.progress.step:
                self.save()
            log.info("stopped after update %d, with a checkpoint", self.progress.step)
        raise error

    # One update.

    def _step(self, update: Sequence[int]) -> tuple[float, float, float, bool, dict[str, list[float]]]:
        """Train on the examples of one update.

        Returns:
            The sum of their losses, the number of predicted tokens, the gradient norm, whether any process is to stop,
            and the measures of the objective; with local SGD, of this process alone.
        """
        accelerator = self.accelerator
        parts = list(self._micro_batches(update))
        batches = [self._batch(part) if part else self._empty_batch(update) for part in parts]
        objective, count = self.objective.for_update(
            self.model, batches, accelerator.device, self.processes.sum_over_update
        )
        if count == 0 and any(parts):
            raise LlmkitError(
                f"the examples of update {self.progress.step} have nothing to predict",
                "inspect them: llmkit data check",
                code="no_labels",
            )
        total = 0.0
        for number, batch in enumerate(batches):
            exchanges = number == len(batches) - 1 and self.processes.share_gradients
            with nullcontext() if exchanges else accelerator.no_sync(self._wrapped), accelerator.autocast():
                loss = objective.loss_sum(self._wrapped, batch, accelerator.device)
            with nullcontext() if exchanges else accelerator.no_sync(self._wrapped):
                # The gradients of the processes are averaged, but this is a sum.
                sharing = accelerator.num_processes if self.processes.share_gradients else 1
                accelerator.backward(loss * (sharing / max(1.0, count)))
            total += float(loss.detach())
        if self.progress.step == 1:
            check_gradients(self.trained, alone=accelerator.num_processes == 1, may_be_unused=self.may_be_unused)
        clipped = self.train.max_grad_norm or math.inf  # then only the norm is used
        norm = float(accelerator.clip_grad_norm_(self.trained.values(), clipped))
        mine = [value for each in objective.measures.values() for value in each]
        total, stop, *values = self.processes.sum_over_update(total, self.should_stop(), *mine)
        measures = {name: values[2 * place : 2 * place + 2] for place, name in enumerate(objective.measures)}
        self._check_finite("loss", total)
        if not self.train.fp16:  # whose loss scaling skips such updates
            self._check_finite("norm of the gradient", norm)
        self._optimizer.step()
        if not follows_metric(self.scheduler):
            self.scheduler.step()
        self._optimizer.zero_grad(set_to_none=True)
        return total, count, norm, stop > 0, measures

    def _check_finite(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            raise LlmkitError(
                f"the {name} is {value} at update {self.progress.step}",
                "lower train.learning_rate, use bf16 instead of fp16, or inspect the rows: llmkit data check",
                code="not_finite",
            )

    def _micro_batches(self, update: Sequence[int]) -> Iterator[list[int]]:
        """The micro-batches of this process in an update; on a CPU divided, unless that changes the loss."""
        sampler = self.pool.sampler
        for part in sampler.micro_batches(update, self.accelerator.process_index):
            if part and self.accelerator.device.type == "cpu" and self.objective.is_sum:
                yield from divide(part, sampler.lengths, CPU_TOKENS)
            else:
                yield part

    def _synchronize(self) -> None:
        self.processes.synchronize(self.progress.step)

    def _batch(self, indices: Sequence[int]) -> Batch:
        lines = [self.pool.examples[index] for index in indices]
        masked = self.masked or self.objective.needs_mask
        return self.objective.batch(lines, pad_id=self.pad_id, packed=self.packed, masked=masked)

    def _empty_batch(self, update: Sequence[int]) -> Batch:
        """A batch without labels, for a process without examples: the others wait for its gradients."""
        import torch

        batch = self._batch(update[:1])
        batch.labels = torch.full_like(batch.labels, IGNORED)
        return batch

    # Between updates.

    def _report(self, norm: float) -> None:
        """Log the statistics since the last log entry."""
        self.processes.sum_up(self.progress.unlogged)
        since, self.progress.unlogged = self.progress.unlogged, Unlogged()
        loss, tokens, seconds = since.loss / max(1.0, since.predicted), since.tokens, since.seconds
        measures = means(since.measures)
        memory = peak_memory(self.accelerator.device.type)
        rate = float(self.optimizer.param_groups[0]["lr"])
        stats = TrainingStats(
            self.progress.step, self.updates, self.epochs, loss, rate, norm, tokens, seconds, memory, measures
        )
        gradient = {"grad_norm": norm} if math.isfinite(norm) else {}
        self._log({"loss": loss, "learning_rate": rate, **gradient, **measures})
        if self.accelerator.is_main_process:
            self._bar.report(str(stats))
            self.on_log(stats)

    def _log(self, values: dict[str, float]) -> None:
        self.progress.log.append({"step": self.progress.step, **values})
        self.accelerator.log(values, step=self.progress.step)

    def _between(self, norm: float, *, update_ends_epoch: bool) -> None:
        step, ended = self.progress.step, self.progress.step == self.updates

        def due(strategy: str, steps: int | None) -> bool:
            return (strategy == "epoch" and (update_ends_epoch or ended)) or (steps is not None and step % steps == 0)

        if self.validation is not None and due(self.train.eval_strategy, self.train.eval_steps):
            self._synchronize()
            self._compare(self.evaluate())
            if self._patience_is_over() and self.progress.unlogged.tokens:
                self._report(norm)
        wanted = self.train.save_strategy == "best" or self.train.load_best_model_at_end
        best = wanted and self.progress.best_step == step
        if best or due(self.train.save_strategy, self.train.save_steps):
            self.save()

    def _compare(self, losses: dict[str, float]) -> None:
        progress, loss = self.progress, losses["loss"]
        values = dict(losses)
        if self.validation_metrics is not None:
            self._set_training_mode(training=False)
            values |= self.validation_metrics(progress.step)
            self._set_training_mode(training=True)
        self._check_finite("loss of the validation rows", loss)
        self._log({f"eval_{name}": value for name, value in values.items()})
        value, before = values[self.train.best_metric], progress.best_step
        if follows_metric(self.scheduler):
            self.scheduler.step(value)
        best = progress.best_metric
        if best is None or (value > best if greater_is_better(self.train) else value < best):
            progress.best_metric, progress.best_step, progress.worse_evaluations = value, progress.step, 0
        else:
            progress.worse_evaluations += 1
        measured = ", ".join(f"{name} {each:.4f}" for name, each in values.items())
        log.info("update %d: validation %s%s", progress.step, measured, comparison(progress, before))

    def _patience_is_over(self) -> bool:
        patience = self.train.early_stopping_patience
        return patience is not None and self.progress.worse_evaluations >= patience

    def evaluate(self) -> dict[str, float]:
        """The mean loss per predicted token on the validation examples, without the loss of routers.

        Of several tasks, the loss of each is there too, as ``translation_loss``.
        """
        assert self.validation is not None
        losses = ValidationLosses(
            self.accelerator,
            self.model,
            self.objective.for_evaluation(),
            self.validation,
            batch_size=self.train.per_device_eval_batch_size,
            collation={"pad_id": self.pad_id, "packed": False, "masked": self.masked},
        )
        self._set_training_mode(training=False)
        values = losses.by_task(self.validation_tasks)
        self._set_training_mode(training=True)
        return values

    def free_optimizer(self) -> None:
        """Free gradients and the states of the optimizer, which a trained model no longer needs."""
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer.state.clear()

    def free_model(self) -> None:
        """Free the weights of the model and of its teacher, whoever refers to them; no part of it can run then."""
        if not self.sharded:
            for model in (self.model, *(self.teacher or ())[:1]):
                free_weights(model)

    def save(self) -> None:
        """Write a checkpoint, and remove the oldest ones above the limit."""
        from accelerate.utils import gather_object

        self._synchronize()
        set_training_mode(self.optimizer, training=False)
        self.processes.sum_up(self.progress.unlogged)
        random_states = gather_object([random_state()])
        trained = {name: whole(each.detach()) for name, each in self.trained.items()}
        optimizer = optimizer_state(self.model, self.optimizer)
        model = self.plain_model
        weights = self.accelerator.get_state_dict(model) if self.sharded else None

        def write_model(folder: Path) -> None:
            self.write_model(folder, model, weights)

        if self.accelerator.is_main_process:
            with disk_errors(self.folder, "and continue with `resume`"):
                states = optimizer, self.scheduler, random_states
                saved = save_checkpoint(self.folder, self.progress, trained, *states, write_model)
                log.info("update %d: saved %s", self.progress.step, saved)
                prune(self.folder, self.train.save_total_limit, self.progress.best_step)
        self._saved_step = self.progress.step
        self.accelerator.wait_for_everyone()
        set_training_mode(self.optimizer, training=True)
