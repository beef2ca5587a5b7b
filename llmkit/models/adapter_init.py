"""Initial values of LoRA that come from the base model's weights or from data, and what they change in the base.

PiSSA and OLoRA move a part of the base's weights into the adapter. Their adapters are saved as LoRA of twice the rank
that fits the original base: the trained product minus the initial one. EVA takes its initial values and ranks from the
inputs of the adapted layers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.errors import UsageError

if TYPE_CHECKING:
    import torch

__all__ = ["InitialBatches", "base_weights", "initialize_eva", "keep_initial", "save_adapter"]

InitialBatches = Callable[[int], Iterable[Mapping[str, "torch.Tensor"]]]
"""Batches of model inputs with at least so many tokens in each sequence input."""

_INITIAL = "initial_adapter"
"""Attribute of a PEFT model: the initial weights of an adapter by name, if it changed its base."""
_PARTS = {"lora_A": 0, "lora_B": 1, "lora_embedding_A": 0, "lora_embedding_B": 1}
"""Dimension of the rank in the weights of LoRA."""
_SAME = 0.02
"""Largest relative difference of a base restored by rounding alone; quantization to 4 bits is above it."""


def base_weights(model: Any) -> dict[int, torch.Tensor]:
    """The column sums of all weights, by module, to find out which of them change."""
    return {id(module): _sums(module.weight) for module in model.modules() if _is_layer(module)}


def _is_layer(module: Any) -> bool:
    weight = getattr(module, "weight", None)
    return weight is not None and weight.dim() == 2 and weight.device.type != "meta"


def _sums(weight: Any) -> torch.Tensor:
    found: torch.Tensor = weight.detach().float().sum(0)
    return found


def keep_initial(adapted: Any, before: Mapping[int, torch.Tensor]) -> None:
    """Keep the initial weights of an adapter if they were taken out of the base.

    Args:
        before: `base_weights` of the model without the adapter.

    Raises:
        UsageError: the base changed in another way, so that the adapter does not fit the original one.
    """
    from peft.tuners.lora import LoraLayer

    changed = False
    for module in adapted.modules():
        base = module.get_base_layer() if isinstance(module, LoraLayer) else None
        if base is None or id(base) not in before or _sums(base.weight).equal(before[id(base)]):
            continue
        changed, expected = True, before[id(base)]
        whole = [_sums(base.weight), *(_sums(module.get_delta_weight(name)) for name in module.active_adapters)]
        alike = all(each.shape == expected.shape for each in whole)
        if not alike or not (sum(whole) - expected).abs().max() <= _SAME * expected.abs().max():
            config = adapted.active_peft_config
            raise UsageError(
                f"adapter.init_lora_weights {config.init_lora_weights} changes the weights of {type(base).__name__}"
                " layers by more than the adapter contains",
                "use another one, such as pissa",
                code="not_supported",
            )
    first = {name: each.detach().clone() for name, each in adapted.named_parameters() if _rank_dimension(name)}
    setattr(adapted, _INITIAL, first if changed else {})


def _rank_dimension(name: str) -> tuple[int, ...]:
    return tuple(dimension for part, dimension in _PARTS.items() if f".{part}." in name)


def save_adapter(model: Any, folder: Path, state: Mapping[str, torch.Tensor] | None = None) -> None:
    """Save an adapter so that it fits the original base model.

    Args:
        state: the complete state dict of a sharded model; None for others.
    """
    config = model.peft_config["default"]
    options: dict[str, Any] = {} if state is None else {"state_dict": state}
    if hasattr(model, _INITIAL):
        changed = copy.copy(config)
        changed.init_lora_weights, changed.eva_config = True, None  # not to be initialised again when it is loaded
        if initial := getattr(model, _INITIAL):
            options["state_dict"] = _difference(model.state_dict() if state is None else state, initial)
            _double_ranks(changed)
        model.peft_config["default"] = changed
    try:
        # New tokens are saved separately; to find out whether there are any, PEFT would ask the Hub for the base.
        model.save_pretrained(folder, save_embedding_layers=False, **options)
    finally:
        model.peft_config["default"] = config


def _difference(state: Mapping[str, torch.Tensor], initial: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of the trained product minus the initial one: A and B, each with its initial values beside it."""
    import torch

    found = dict(state)
    for name, first in initial.items():
        (dimension,) = _rank_dimension(name)
        first = first.to(found[name])
        found[name] = torch.cat([found[name], -first if dimension else first], dim=dimension)
    return found


def _double_ranks(config: Any) -> None:
    """Double all ranks with the scaling unchanged: alpha / r, or alpha / sqrt(r) for rsLoRA."""
    factor = 2**0.5 if config.use_rslora else 2
    config.r, config.lora_alpha = 2 * config.r, factor * config.lora_alpha
    config.rank_pattern = {name: 2 * rank for name, rank in config.rank_pattern.items()}
    config.alpha_pattern = {name: factor * alpha for name, alpha in config.alpha_pattern.items()}


# EVA.


def initialize_eva(adapted: Any, batches: InitialBatches) -> None:
    """Set the initial values and ranks of an adapter by EVA (PEFT's incremental PCA of the inputs of each layer)."""
    import peft

    config = adapted.peft_config["default"]
    ranks = [config.r, *config.rank_pattern.values()]
    needed = max(round(rank * config.eva_config.rho) for rank in ranks)
    found = [dict(each) for each in batches(needed)]
    if not found:
        raise UsageError(
            f"adapter.init_lora_weights eva needs {needed} tokens of inputs and of answers (r × rho), which the rows do"
            " not have",
            "lower adapter.r, or use another initialisation, such as pissa",
            code="not_supported",
        )
    peft.initialize_lora_eva_weights(
        adapted,
        found,
        prepare_model_inputs_fn=lambda inputs, _: _masks(inputs),
        prepare_layer_inputs_fn=_without_padding,
        gather_distributed_inputs=False,  # each process has the same
        show_progress_bar=False,
    )


def _masks(inputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    return [each.bool() for name, each in inputs.items() if name.endswith("attention_mask")]


def _without_padding(inputs: Any, masks: Sequence[torch.Tensor], name: str) -> torch.Tensor:
    """The inputs of a layer at all tokens, by the mask of its sequence."""
    hidden: torch.Tensor = inputs if hasattr(inputs, "shape") else inputs[0]
    ordered = masks[:: -1 if "decoder" in name else 1]  # both fit if input and answer are of one length
    mask = next((each for each in ordered if each.shape == hidden.shape[:2]), None)
    return hidden.flatten(0, -2) if mask is None else hidden[mask.to(hidden.device)]
