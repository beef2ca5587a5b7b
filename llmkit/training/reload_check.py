"""Whether the files of a result hold the model that was trained: loaded again, they give the same logits."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llmkit.config.recipe import Recipe
from llmkit.errors import CheckpointError, LlmkitError, NotEnoughMemoryError
from llmkit.log import log, warn
from llmkit.models.load import load_source
from llmkit.models.logits import difference, tolerance
from llmkit.models.source import Source
from llmkit.training.loop import Trainer
from llmkit.training.merge import logits_of
from llmkit.training.recipe_model import load_settings

if TYPE_CHECKING:
    import torch

__all__ = ["check_reload", "logits_of_rows"]

_ROWS = 2


def logits_of_rows(trainer: Trainer, model: Any) -> torch.Tensor:
    """Of the first examples of training. All processes take part where the model is in shards."""
    lines = [trainer.examples[index] for index in range(min(_ROWS, len(trainer.examples)))]
    batch = trainer.head.batch(lines, pad_id=trainer.pad_id)
    inputs = {name: each.to(trainer.accelerator.device) for name, each in batch.inputs.items()}
    with trainer.accelerator.autocast():
        return logits_of(trainer.head, model, inputs)


def check_reload(recipe: Recipe, trainer: Trainer, source: Source, trained: torch.Tensor) -> None:
    """Load the result as it was loaded for training, and compare.

    Args:
        source: of the model that training began from.
        trained: what `logits_of_rows` gave for the trained model.

    Raises:
        CheckpointError: the files hold another model. They are kept.
    """
    folder, adapted = trainer.folder, hasattr(trainer.model, "peft_config")
    written = replace(source, name=str(folder), adapter=folder) if adapted else Source(str(folder), folder)
    frozen = next(
        (each for each in trainer.model.parameters() if not each.requires_grad and each.is_floating_point()), None
    )
    dtype: Any = "float32" if frozen is None else str(frozen.dtype).removeprefix("torch.")
    settings = replace(load_settings(recipe), model=str(folder), revision=None, base=None, dtype=dtype)
    half = dtype != "float32" or settings.quantize or trainer.accelerator.mixed_precision != "no"
    level = log.level
    log.setLevel("ERROR")  # what there is to say of the base was said
    try:
        again: Any = load_source(written, settings, recipe.task).model
        found = difference(trained, logits_of_rows(trainer, again.to(trained.device)))
    except NotEnoughMemoryError as error:
        log.setLevel(level)
        warn("not_verified", "it was not checked that %s holds the model that was trained (%s)", folder, error.problem)
        return
    except LlmkitError as error:
        raise CheckpointError(
            f"{folder} was written and cannot be loaded: {error.problem}", "report it; the weights are kept there"
        ) from error
    finally:
        log.setLevel(level)
    if not found <= tolerance("bfloat16" if half else "float32"):
        raise CheckpointError(
            f"{folder} holds another model than was trained: logits differ by {found:.1e} of the largest",
            "report it with the recipe; the weights are kept there",
            code="logits_differ",
        )
