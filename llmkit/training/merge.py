"""Merging an adapter into its base model, with a check that the result computes the same.

Logits are compared twice: in float32 before and after merging, and again from the saved files, as plain Transformers
loads them. A base that was quantized in training is merged with its rounded weights, above which the adapter was
trained. Adapters of virtual tokens cannot be merged.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.config.settings import DType, LoadSettings
from llmkit.errors import CheckpointError, TaskMismatchError, UsageError
from llmkit.files import disk_errors, read_json, whole_folder
from llmkit.heads import BaseHead, head_of
from llmkit.heads.end_tokens import declare_ends
from llmkit.inference.tuned_config import CONTRACT_FILE
from llmkit.log import log
from llmkit.models.load import Loaded, load_model
from llmkit.models.logits import DTYPES, difference, tolerance
from llmkit.models.peft_compat import quiet_peft
from llmkit.models.quiet import quiet_transformers
from llmkit.models.tables import HEADS
from llmkit.models.tuned import run_folder, tuned_for
from llmkit.tasks import TASKS, Head

if TYPE_CHECKING:
    import torch

__all__ = ["Merged", "OpenedModel", "logits_of", "merge", "open_merged"]

_AS_IT_IS = "use the adapter as it is"
_PROBE = 64
"""Number of tokens whose logits are compared."""


@dataclass(frozen=True)
class Merged:
    """The result of merging."""

    folder: Path
    dtype: str
    drift: float
    """Largest difference of a logit after merging in float32, relative to the largest logit."""
    rounding: float
    """The same for the saved files."""
    quantized: float | None = None
    """The same for the model above its quantized base, of which activations may be quantized too."""


def merge(adapter: str, output: Path, *, dtype: DType = "auto", settings: LoadSettings | None = None) -> Merged:
    """Merge an adapter into its base model.

    Args:
        adapter: folder or Hub id of a PEFT adapter.
        output: a new folder, written atomically.
        dtype: of the weights; ``auto`` is the dtype of the base's files.

    Raises:
        UsageError: not an adapter, an adapter that cannot be merged, or a folder that is in use.
        CheckpointError: the merged model computes something else.
    """
    if output.exists() and any(output.iterdir()):
        raise UsageError(f"{output} is not empty", "name another folder", code="output_exists")
    opened = open_merged(adapter, settings)
    if opened.loaded.source.adapter is None:
        raise UsageError(
            f"{adapter} is not a PEFT adapter", "name the folder with adapter_config.json", code="not_supported"
        )
    with whole_folder(output) as building, disk_errors(output.parent, "or name another folder"):
        stored, rounding = opened.save(building, dtype)
    text = "merged in %s: logits differ by %.1e of the largest, %.1e after rounding"
    log.info(text, stored, opened.drift, rounding)
    return Merged(output, stored, opened.drift, rounding, opened.quantized)


@dataclass(frozen=True)
class OpenedModel:
    """A model in float32 whose adapter, if it has one, is merged."""

    loaded: Loaded
    """As it was loaded, with the adapter."""
    model: Any
    head: BaseHead
    inputs: dict[str, torch.Tensor]
    logits: torch.Tensor
    """Before merging."""
    drift: float = 0.0
    quantized: float | None = None
    """See `Merged`."""

    def save(self, folder: Path, dtype: DType) -> tuple[str, float]:
        """Save model, tokenizer and what it was tuned for; the dtype, and the drift of the saved files.

        Raises:
            CheckpointError: the files contain another model.
        """
        import torch

        source, kind = self.loaded.source, type(self.model)
        stored = dtype if dtype != "auto" else _stored_dtype(source.folder)
        with quiet_transformers():
            self.model.to(getattr(torch, stored)).save_pretrained(folder)
            self.loaded.tokenizer.save_pretrained(folder)
            again = kind.from_pretrained(folder, dtype=torch.float32)
        rounding = difference(self.logits, logits_of(self.head, again.eval(), self.inputs))
        unmerged = () if source.adapter is None else (_AS_IT_IS,)
        precise = () if stored == "float32" else ("use `dtype=float32`",)
        _refuse(rounding, stored, f"the files, in {stored}, contain another model", *unmerged, *precise)
        if (contract := (source.adapter or source.folder) / CONTRACT_FILE).is_file():
            shutil.copy(contract, folder / CONTRACT_FILE)
        return stored, rounding


def open_merged(name: str, settings: LoadSettings | None = None) -> OpenedModel:
    """Load a model in float32, and merge its adapter.

    Raises:
        UsageError: an adapter that cannot be merged.
        CheckpointError: the merged model computes something else.
    """
    quantization = _quantization_of(name)
    given = replace(settings or LoadSettings(), model=name, device="cpu", quantize=quantization.pop("quantize", None))
    given = replace(given, dtype="float32")
    loaded = _load(given, quantization, dequantize=True)
    model: Any = loaded.model
    head = head_of(loaded.head)
    if head.writes:
        declare_ends(loaded)
    inputs = _probe(head, model)
    if loaded.source.adapter is None:
        return OpenedModel(loaded, model, head, inputs, logits_of(head, model, inputs))
    _refuse_unmergeable(model)
    before = logits_of(head, model, inputs)
    quantized = _quantized_drift(given, quantization, loaded, inputs, before)
    size = model.get_input_embeddings().weight.shape
    try:
        merged = _merged(model)
    except (ValueError, RuntimeError) as error:  # including NotImplementedError
        raise UsageError(
            f"PEFT cannot merge {_method(model)} into this model ({error})", _AS_IT_IS, code="not_supported"
        ) from error
    drift = difference(before, logits_of(head, merged, inputs))
    _refuse(drift, "float32", "merging changes what the model computes", _AS_IT_IS)
    if merged.get_input_embeddings().weight.shape != size:
        raise CheckpointError(
            "merging changed the size of the embeddings", "report this with the adapter's config", code="logits_differ"
        )
    return OpenedModel(loaded, merged, head, inputs, before, drift, quantized)


def _load(settings: LoadSettings, quantization: dict[str, Any], **options: Any) -> Loaded:
    """A model with the head it has."""
    task = _task_of(str(settings.model))
    try:
        return load_model(settings, task, fallback=False, quantization=quantization, **options)
    except TaskMismatchError:
        other = _first_task(HEADS[Head.SPAN].task_type)
        if task == other:
            raise
        return load_model(settings, other, fallback=False, quantization=quantization, **options)


def _refuse_unmergeable(model: Any) -> None:
    if model.active_peft_config.is_prompt_learning:
        raise UsageError(
            f"{_method(model)} adds virtual tokens, which cannot be merged into weights",
            _AS_IT_IS,
            code="not_supported",
        )
    if not hasattr(model.base_model, "merge_and_unload"):
        raise UsageError(f"PEFT cannot merge adapters of type {_method(model)}", _AS_IT_IS, code="not_supported")


def _quantization_of(adapter: str) -> dict[str, Any]:
    """The quantization of the base in training, if the run's recipe is there."""
    folder, _ = run_folder(Path(adapter))
    tuned = tuned_for(folder) if folder.is_dir() else None
    return {} if tuned is None else dict(tuned.quantization)


def _quantized_drift(
    settings: LoadSettings, quantization: dict[str, Any], loaded: Loaded, inputs: Any, dequantized: torch.Tensor
) -> float | None:
    """How far the logits of the adapter above its quantized base are from those above the dequantized one."""
    stored = read_json(loaded.source.folder / "config.json").get("quantization_config") or {}
    kind = settings.quantize or stored.get("quant_method")
    if kind is None or loaded.source.gguf_file:
        return None
    packed: Any = _load(settings, quantization).model
    if not getattr(packed.get_base_model(), "is_quantized", False):  # dequantized for the adapter in training as well
        return None
    found = difference(logits_of(head_of(loaded.head), packed, inputs), dequantized)
    text = "the adapter was trained above a %s base, whose rounded weights are merged; logits differ by %.1e"
    log.info(text, kind, found)
    return found


def _method(model: Any) -> str:
    return str(getattr(model.peft_type, "value", model.peft_type))


def _merged(model: Any) -> Any:
    """The merged model. Tied weights stay tied if they are still equal."""
    base = model.get_base_model()
    tied, pairs = base.config.tie_word_embeddings, base.get_expanded_tied_weights_keys(all_submodels=True)
    _part(model, lambda module: module._modules.get("base_layer"))  # noqa: SLF001 - PEFT wraps layers
    with quiet_peft():
        merged = model.merge_and_unload(safe_merge=True)
    alike = all(merged.get_parameter(one).equal(merged.get_parameter(other)) for one, other in pairs.items())
    merged.config.tie_word_embeddings = tied and alike
    if alike:
        merged.tie_weights()
    else:
        _part(merged, lambda module: module)
    return merged


def _part(model: Any, layer_of: Callable[[Any], Any]) -> None:
    """Untie the weights of layers."""
    import torch

    held = Counter(id(module.weight) for module in model.modules() if "weight" in module._parameters)  # noqa: SLF001
    for module in model.modules():
        layer = layer_of(module)
        if layer is not None and "weight" in layer._parameters and held[id(layer.weight)] > 1:  # noqa: SLF001
            layer.weight = torch.nn.Parameter(layer.weight.detach().clone(), requires_grad=False)


def _task_of(adapter: str) -> str:
    """A task of the adapter's head: from llmkit.json, or from PEFT's task type."""
    for name, key in ((CONTRACT_FILE, "task"), ("adapter_config.json", "task_type")):
        path = Path(adapter) / name
        if path.is_file() and isinstance(found := read_json(path).get(key), str):
            return found if key == "task" else _first_task(found)
    return _first_task("")


def _first_task(task_type: str) -> str:
    """A task of the head with this PEFT task type; text generation if none has it."""
    head = next((head for head, facts in HEADS.items() if facts.task_type == task_type), None)
    return next(name for name, task in TASKS.items() if head in (None, *task.heads))


def _stored_dtype(folder: Path) -> str:
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    named = config.get("dtype") or config.get("torch_dtype")
    return str(named) if named in DTYPES else "float32"


def _probe(head: BaseHead, model: Any) -> dict[str, torch.Tensor]:
    import torch

    words = int(model.get_input_embeddings().weight.shape[0])
    generator = torch.Generator().manual_seed(0)
    return head.probe(torch.randint(0, words, (2, min(_PROBE, words)), generator=generator))


def logits_of(head: BaseHead, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    import torch

    with torch.no_grad():
        return head.logits(model.eval()(**inputs))


def _refuse(found: float, dtype: str, what: str, *fixes: str) -> None:
    if not found <= tolerance(dtype):  # NaN is refused too
        raise CheckpointError(
            f"{what}: logits differ by {found:.1e} of the largest, {tolerance(dtype):.0e} would be rounding",
            *fixes,
            code="logits_differ",
        )
