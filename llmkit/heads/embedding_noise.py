"""NEFTune (Jain et al. 2023, arXiv:2310.05914): uniform noise on the embeddings of the examples that are trained on.

As in the authors' code, the noise of an example follows from its own length: it is at most alpha / √(length · width),
however the example is padded or packed. (Transformers uses the length of the batch, padding included.) The noise is
added in forward passes of the training loss only, never in evaluations or to saved models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmkit.errors import UsageError

if TYPE_CHECKING:
    import torch

__all__ = ["EmbeddingNoise"]


@dataclass(frozen=True)
class EmbeddingNoise:
    """Noise on the output of an embedding layer."""

    alpha: float
    embeddings: Any
    """The module that embeds the input; of an encoder-decoder, that of its encoder."""

    @classmethod
    def of(cls, base: Any, alpha: float) -> EmbeddingNoise:
        """The noise for a model without an adapter's wrapper."""
        # Its own is another module with the same weights in T5, BART and others, and not called.
        encoder = base.get_encoder() if base.config.is_encoder_decoder else base
        try:
            return cls(alpha, encoder.get_input_embeddings())
        except (AttributeError, NotImplementedError) as error:
            raise _refusal() from error

    @contextmanager
    def added(self, inputs: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Add noise in one forward pass, of a batch with an attention mask or packed.

        Raises:
            UsageError: the model does not use the embedding layer.
        """
        found, lengths = False, _lengths(inputs)

        def add(_module: Any, _arguments: Any, output: torch.Tensor) -> torch.Tensor:
            nonlocal found
            if found or output.shape[:2] != lengths.shape:  # a decoder may share the layer
                return output
            found = True
            return output + self._noise(output, lengths)

        hook = self.embeddings.register_forward_hook(add)
        try:
            yield
        finally:
            hook.remove()
        if not found:
            raise _refusal()

    def _noise(self, output: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        import torch

        largest = self.alpha / (lengths.clamp(min=1) * output.shape[-1]).sqrt() * (lengths > 0)
        return torch.empty_like(output).uniform_(-1, 1) * largest[..., None].to(output.dtype)


def _refusal() -> UsageError:
    return UsageError(
        "train.neftune_noise_alpha is not supported by this model: it does not embed a batch of tokens in one layer",
        "leave it out",
        code="not_supported",
    )


def _lengths(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The number of tokens of the example that each position belongs to; 0 for padding."""
    if (mask := inputs.get("attention_mask")) is not None:
        return mask * mask.sum(-1, keepdim=True)
    examples = (inputs["position_ids"] == 0).cumsum(-1)
    return examples[0].bincount()[examples]
