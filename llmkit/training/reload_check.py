"""A check that the files of a result contain the trained model: loaded again, they give the same logits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llmkit.config.recipe import Recipe
from llmkit.errors import CheckpointError, LlmkitError, NotEnoughMemoryError
from llmkit.log import log, warn
from llmkit.models.load import load_source
from llmkit.models.logits import difference, tolerance
from llmkit.models.quantize import is_quantized
from llmkit.models.source import Source
from llmkit.training.loop import Trainer
from llmkit.training.merge import logits_of
from llmkit.training.recipe_model import load_settings

if TYPE_CHECKING:
    import torch

__all__ = ["ReloadCheck"]

_ROWS, _TOKENS = 2, 64
"""Of the training examples: few, since all their logits exist at once."""


def _logits_of_rows(trainer: Trainer, model: Any) -> torch.Tensor:
    """The logits of the first training examples. If the model is sharded, all processes must call this."""
    lines = [trainer.examples[index] for index in range(min(_ROWS, len(trainer.examples)))]
    batch = trainer.objective.batch(lines, pad_id=trainer.pad_id)
    inputs = {name: each[:, :_TOKENS].to(trainer.accelerator.device) for name, each in batch.inputs.items()}
    with trainer.accelerator.autocast():
        return logits_of(trainer.head, model, inputs)


@dataclass(frozen=True)
class ReloadCheck:
    """What the files of a result are compared with once the trained model is freed."""

    recipe: Recipe
    trainer: Trainer
    written: Source
    """The files as a model."""
    dtype: Any
    """That of the base's weights in training."""
    rounds: bool
    """Whether anything was computed in less than float32."""
    trained: torch.Tensor
    """Logits of the trained model."""

    @classmethod
    def of(cls, recipe: Recipe, trainer: Trainer, source: Source) -> ReloadCheck:
        """The check for a trained model. If it is sharded, all processes must call this.

        Args:
            source: the model that training started from.
        """
        folder, model = trainer.folder, trainer.plain_model
        adapted = hasattr(model, "peft_config")
        written = replace(source, name=str(folder), adapter=folder) if adapted else Source(str(folder), folder)
        frozen = (each for each in model.parameters() if not each.requires_grad and each.is_floating_point())
        first = next(frozen, None)
        dtype = "float32" if first is None else str(first.dtype).removeprefix("torch.")
        rounds = dtype != "float32" or is_quantized(model) or trainer.accelerator.mixed_precision != "no"
        return cls(recipe, trainer, written, dtype, rounds, _logits_of_rows(trainer, model))

    def run(self) -> None:
        """Load the result as the base was loaded for training, and compare logits.

        Raises:
            CheckpointError: the files contain another model. They are kept.
        """
        recipe, folder = self.recipe, self.trainer.folder
        settings = replace(load_settings(recipe), model=str(folder), revision=None, base=None, dtype=self.dtype)
        level = log.level
        log.setLevel("ERROR")  # warnings about the base were logged before
        try:
            again: Any = load_source(self.written, settings, recipe.task, quantization=recipe.model.quantization).model
            found = difference(self.trained, _logits_of_rows(self.trainer, again.to(self.trained.device)))
        except NotEnoughMemoryError as error:
            log.setLevel(level)
            warn("not_verified", "could not check that %s contains the trained model (%s)", folder, error.problem)
            return
        except LlmkitError as error:
            raise CheckpointError(
                f"{folder} was saved but cannot be loaded: {error.problem}", "report this; its weights are kept"
            ) from error
        finally:
            log.setLevel(level)
        if not found <= tolerance("bfloat16" if self.rounds else "float32"):
            raise CheckpointError(
                f"{folder} does not contain the trained model: logits differ by {found:.1e} of the largest",
                "report this with the recipe; its weights are kept",
                code="logits_differ",
            )
