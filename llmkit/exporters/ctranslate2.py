"""CTranslate2: its own converter, checked with its own generator or translator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llmkit.errors import UsageError
from llmkit.models.load import Loaded
from llmkit.models.quiet import quiet_transformers

__all__ = ["CTranslate2Model", "convert"]


def convert(plain: Path, folder: Path, dtype: str, model_type: str) -> None:
    """Convert a folder of Transformers; ``dtype`` is CTranslate2's ``quantization``."""
    import ctranslate2
    from ctranslate2.converters import TransformersConverter

    try:
        with quiet_transformers():
            TransformersConverter(str(plain)).convert(str(folder), quantization=dtype, force=True)
    except Exception as error:
        import transformers

        versions = f"CTranslate2 {ctranslate2.__version__} beside Transformers {transformers.__version__}"
        reason = " ".join(str(error).split())[:300]
        raise UsageError(
            f"{versions} cannot convert {model_type} ({reason})", "choose another format", code="not_supported"
        ) from error


@dataclass(frozen=True)
class CTranslate2Model:
    """A converted model, see `llmkit.exporters.check.GenerativeModel`."""

    folder: Path
    source: Loaded
    """What was converted."""

    @property
    def _tokenizer(self) -> Any:
        return self.source.tokenizer

    @property
    def _translates(self) -> bool:
        return bool(self.source.model.config.is_encoder_decoder)

    @cached_property
    def _ends(self) -> list[int]:
        config: Any = self.source.model.generation_config
        ends = config.eos_token_id
        return ends if isinstance(ends, list) else [] if ends is None else [ends]

    @cached_property
    def _model(self) -> Any:
        import ctranslate2

        kind = ctranslate2.Translator if self._translates else ctranslate2.Generator
        # The stored weights are compared: where CTranslate2 has no fast code for their type, it would round them again.
        return kind(str(self.folder), device="cpu", compute_type="float32")

    def _tokens(self, ids: Sequence[int]) -> list[str]:
        return [str(token) for token in self._tokenizer.convert_ids_to_tokens(list(ids))]

    def answer(self, prompt: Sequence[int], most: int) -> list[int]:
        """The greedy answer with at most this many tokens."""
        options: dict[str, Any] = {"beam_size": 1, "return_end_token": True, "end_token": self._ends or None}
        if not self._translates:
            found = self._model.generate_batch(
                [self._tokens(prompt)], max_length=most, include_prompt_in_result=False, **options
            )
            return list(found[0].sequences_ids[0])
        found = self._model.translate_batch([self._tokens(prompt)], max_decoding_length=most, **options)
        return list(self._tokenizer.convert_tokens_to_ids(found[0].hypotheses[0]))

    def log_probs(self, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
        """The log-probability of each token of an answer."""
        if not self._translates:
            scored = self._model.score_batch([self._tokens([*prompt, *answer])])
            return list(scored[0].log_probs[-len(answer) :])
        ended = answer[-1] in self._ends  # the end is added when an answer is scored
        scored = self._model.score_batch([self._tokens(prompt)], [self._tokens(answer[:-1] if ended else answer)])
        return list(scored[0].log_probs[: len(answer)])
