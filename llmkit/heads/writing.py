"""The base of the two heads that generate text. The engine generates batches (`llmkit.engines`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from llmkit.heads.base import BaseHead, Encoded, Features, refuse_not_finite
from llmkit.heads.end_tokens import text_ends
from llmkit.heads.objective import Objective
from llmkit.heads.projection import CHUNK
from llmkit.models.generation import vocabulary_rows

if TYPE_CHECKING:
    import torch

    from llmkit.heads.batch import Batch, Line
    from llmkit.models.load import Loaded

__all__ = ["WritingHead"]


@runtime_checkable
class WritingHead(BaseHead, Protocol):
    """A head that generates text."""

    def collate(self, loaded: Loaded, batch: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """Collate prompts into keyword arguments of ``model.generate``: ``[batch, length]`` tensors on the device."""

    def output_start(self, inputs: dict[str, torch.Tensor]) -> int:
        """Index of the first new token in the sequences that ``model.generate`` returns."""

    def scoring_objective(self, loaded: Loaded) -> Objective:
        """What `target_loss` is computed with, for any number of examples."""
        labels = loaded.context.tokens or CHUNK
        return Objective.of(loaded.model, self).for_evaluation().in_chunks(loaded.model, labels, ())

    def target_loss(self, loaded: Loaded, features: Features, objective: Objective) -> tuple[float, int]:
        """The summed loss in nats of the labels of an example of any length, and their number.

        Args:
            objective: from `scoring_objective`.

        Raises:
            InputError: the text exceeds the encoder's context.
        """

    def states(self, model: Any, batch: Batch, objective: Objective) -> tuple[Any, torch.Tensor]:
        """The output of a forward pass, and its states that predict the labels, ``[batch, kept, width]``.

        They are logits or, with a projection for this batch (`Objective.projection_for`), hidden states.
        """

    def line_loss(self, loaded: Loaded, line: Line, objective: Objective) -> float:
        """The summed loss in nats of the labels of one example that fits into the context."""
        import torch

        batch = self.batch([line], pad_id=self.pad_id(loaded), masked=False)
        with torch.no_grad():
            loss = objective.loss_sum(loaded.model, batch, loaded.device)
        refuse_not_finite(loaded, -loss[None])  # infinite for a token that the model never generates
        return float(loss)

    def next_logits(self, loaded: Loaded, encoded: Encoded) -> torch.Tensor:
        """Logits ``[vocabulary]`` of the first token after a prompt."""
        import torch

        last: dict[str, Any] = {"logits_to_keep": 1} if Objective.of(loaded.model, self).keeps else {}
        with loaded.active(), torch.inference_mode():
            output: Any = loaded.model(**self.collate(loaded, [encoded]), **last)
        logits: torch.Tensor = output.logits[0, -1]
        return logits

    def pad_id(self, loaded: Loaded) -> int:
        rows = vocabulary_rows(loaded.model)
        own = (loaded.model.generation_config.pad_token_id, loaded.tokenizer.pad_token_id)
        for candidate in (*own, *sorted(text_ends(loaded))):
            if candidate is not None and (rows is None or candidate < rows):
                return int(candidate)
        return 0

    def logits(self, output: Any) -> torch.Tensor:
        logits: torch.Tensor = output.logits.float()
        return logits
