"""Several adapters on one loaded base model, of which one is active, or in a mixed batch one for each row.

LoRA layers of PEFT compute each row with its own adapter. What they cannot do, or do differently than for the adapter
alone, is found by running the model; such adapters take turns with the others. Knows PEFT; does not know requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llmkit.models.logits import difference, tolerance

if TYPE_CHECKING:
    import torch

__all__ = ["BASE", "SharedBase", "probe_logits"]

BASE = ""
"""The name of the base model among its adapters."""
_PEFT_BASE = "__base__"
_PROBE_TOKENS = 7


class SharedBase:
    """A base model and its adapters, by name; the empty name is the base itself."""

    def __init__(self, model: Any, names: Mapping[str, str]) -> None:
        """``names`` are PEFT's names of the adapters, in which many characters are not allowed."""
        from peft.tuners.lora import LoraLayer

        self.model, self._names = model, {BASE: _PEFT_BASE, **names}
        self.views: dict[str, Any] = {}
        """`Loaded` with each of the adapters, and without one."""
        self._rows: Sequence[str] = ()
        """PEFT's names of the adapters of a mixed batch, one for each prompt."""
        self._copies = 1
        layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
        for layer in layers:
            layer.register_forward_pre_hook(self._pass_rows, with_kwargs=True)
        self._active: str | None = None
        self.mixed: frozenset[str] = frozenset()
        """Those that can be in one batch."""

    @contextmanager
    def active(self, names: Sequence[str], copies: int = 1) -> Iterator[None]:
        """Context manager in which the model runs with these adapters.

        Args:
            names: of one adapter for the whole batch, or for each of its rows.
            copies: rows that the model makes of each row (beams, sequences); encoders see the row itself.
        """
        first, *others = dict.fromkeys(names)
        if not others:
            self._activate(first)
            yield
            return
        # Layers without any of the adapters must not be switched off, nor use a module saved in full.
        self._activate(next(name for name in self._names if name in self.mixed and name != BASE))
        self._rows, self._copies = [self._names[name] for name in names], copies
        try:
            yield
        finally:
            self._rows = ()

    def _activate(self, name: str) -> None:
        if name == self._active:
            return
        if name == BASE:
            self.model.base_model.disable_adapter_layers()
        else:
            self.model.base_model.enable_adapter_layers()
            self.model.set_adapter(self._names[name], inference_mode=True)
        self._active = name

    def _pass_rows(self, _layer: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if not self._rows:
            return None
        each, rest = divmod(len(inputs[0]) if inputs else 0, len(self._rows))
        if rest or each not in (1, self._copies):
            raise ValueError("a layer sees other rows than those of the batch")
        return inputs, {**named, "adapter_names": [name for name in self._rows for _ in range(each)]}

    def find_mixed(self) -> None:
        """Find the adapters that have the same effect in a mixed batch as alone."""
        from peft.tuners.lora import LoraLayer
        from peft.utils.other import AuxiliaryTrainingWrapper

        modules = list(self.model.modules())
        # PEFT mixes few variants such as DoRA, and modules saved in full only if all adapters have them.
        others = {name for module in modules if isinstance(module, LoraLayer) for name in module.lora_variant}
        others |= {name for each in modules if isinstance(each, AuxiliaryTrainingWrapper) for name in each._adapters}  # noqa: SLF001
        found = {name for name, own in self._names.items() if name != BASE and own not in others and self._mixes(name)}
        self.mixed = frozenset({BASE, *found} if found else ())

    def _mixes(self, name: str) -> bool:
        rows = (BASE, name, name)
        expected = [self._probe([each])[0] for each in rows]
        self.mixed = frozenset({name})
        try:
            found = self._probe(rows)
        except (ValueError, TypeError, RuntimeError):  # PEFT's, of layers that cannot
            return False
        most = tolerance(self.model.dtype)
        return all(difference(one, other) <= most for one, other in zip(expected, found, strict=True))

    def _probe(self, names: Sequence[str]) -> list[torch.Tensor]:
        with self.active(names):
            return probe_logits(self.model, len(names))


def probe_logits(model: Any, rows: int) -> list[torch.Tensor]:
    """Logits of a few tokens, equal in all rows."""
    import torch

    count = int(model.get_input_embeddings().weight.shape[0])
    ids = [number * 7919 % count for number in range(_PROBE_TOKENS)]
    inputs = {"input_ids": torch.tensor([ids] * rows, device=model.device)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with torch.inference_mode():
        output = model(**inputs)
    logits = output.logits if hasattr(output, "logits") else torch.stack([output.start_logits, output.end_logits], 1)
    return [row.float().nan_to_num(0.0, 0.0, 0.0).cpu() for row in logits]
