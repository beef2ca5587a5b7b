"""A check that the files of a result contain the trained model: loaded again, they give the same logits."""

from __future__ import annotations

from dataclasses import replace
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

__all__ = ["check_reload", "logits_of_rows"]

_ROWS = 2


def logits_of_rows(trainer: Trainer, model: Any) -> torch.Tensor:
    """The logits of the first training examples. If the model is sharded, all processes must call this."""
    lines = [trainer.examples[index] for index in range(min(_ROWS, len(trainer.examples)))]
    batch = trainer.objective.batch(lines, pad_id=trainer.pad_id)
    inputs = {name: each.to(trainer.accelerator.device) for name, each in batch.inputs.items()}
    with trainer.accelerator.autocast():
        return logits_of(trainer.head, model, inputs)


def check_reload(recipe: Recipe, trainer: Trainer, source: Source, trained: torch.Tensor) -> None:
    """Load the result as the base was loaded for training, and compare logits.

    Args:
        source: the model that training started from.
        trained: `logits_of_rows` of the trained model.

    Raises:
        CheckpointError: the files contain another model. They are kept.
    """
    folder, adapted = trainer.folder, hasattr(trainer.model, "peft_config")
    written = replace(source, name=str(folder), adapter=folder) if adapted else Source(str(folder), folder)
    frozen = next(
        (each for each in trainer.model.parameters() if not each.requires_grad and each.is_floating_point()), None
    )
    dtype: Any = "float32" if frozen is None else str(frozen.dtype).removeprefix("torch.")
    settings = replace(load_settings(recipe), model=str(folder), revision=None, base=None, dtype=dtype)
    half = dtype != "float32" or is_quantized(trainer.model) or trainer.accelerator.mixed_precision != "no"
    level = log.level
    log.setLevel("ERROR")  # warnings about the base were logged before
    try:
        again: Any = load_source(written, settings, recipe.task, quantization=recipe.model.quantization).model
        found = difference(trained, logits_of_rows(trainer, again.to(trained.device)))
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
    if not found <= tolerance("bfloat16" if half else "float32"):
        raise CheckpointError(
            f"{folder} does not contain the trained model: logits differ by {found:.1e} of the largest",
            "report this with the recipe; its weights are kept",
            code="logits_differ",
        )
