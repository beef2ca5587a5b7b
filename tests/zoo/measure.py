"""One model type through llmkit: what `inspect` says, the tasks, training, packing, an adapter, and reloading.

Everything is asked of llmkit's own functions. What is compared is compared with the same thing done another way:
a batch with single rows, packed with padded losses, a reloaded model with the one that was saved.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import llmkit
from llmkit.models.inspect import inspect_source
from llmkit.models.source import Source
from llmkit.tasks import Head
from llmkit.training.probes import supports_packing
from llmkit.training.run import finetune
from tests.training.recipes import make_recipe, write_rows
from tests.zoo.models import build, class_of

__all__ = ["COLUMNS", "Row", "measure"]

COLUMNS = ("inspect", "tasks", "batched", "full", "packed", "lora")

_TOLERANCE = 1e-4
"""Of the largest logit, and of a loss."""

_TEXTS = ("The quick brown fox.", "What is the meaning of life? The meaning of life is forty two.", "numbers 12345")
_LANGUAGES = {"fsmt": "de"}
_ASKED: dict[str, list[Any]] = {
    "text-generation": list(_TEXTS),
    "summarization": list(_TEXTS),
    "dialogue": list(_TEXTS),
    "translation": list(_TEXTS),
    "question-answering": [{"question": "What is it?", "context": text} for text in _TEXTS],
}
_TAUGHT: dict[Head, tuple[str, list[dict[str, Any]]]] = {
    Head.CAUSAL: ("text-generation", [{"prompt": text, "completion": " The lazy dog."} for text in _TEXTS]),
    Head.SEQ2SEQ: ("summarization", [{"document": text, "summary": "The lazy dog."} for text in _TEXTS]),
    Head.SPAN: (
        "question-answering",
        [
            {
                "question": "What is it?",
                "context": text,
                "answers": {"text": [text.split()[-1]], "answer_start": [text.rindex(text.split()[-1])]},
            }
            for text in _TEXTS
        ],
    ),
}


@dataclass
class Row:
    """What became of one type with one head. A column is ``yes``, ``–`` where it does not apply, or says why not."""

    head: Head
    """The table of Transformers that lists the type."""
    model_type: str
    model_class: str
    serves: Head
    """As what llmkit has to load it: decoders that hear are listed as seq2seq."""
    tasks: list[str] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)
    """Column → the whole error."""

    @property
    def green(self) -> bool:
        return len(self.columns) == len(COLUMNS) and all(value in ("yes", "–") for value in self.columns.values())


class DifferenceError(Exception):
    """Two things that should be the same are not."""


def measure(head: Head, model_type: str, folder: Path, *, compared: int | None = None) -> Row:
    """Build a type and run it through llmkit.

    Args:
        folder: for its files.
        compared: how many of the tasks answer the texts one by one too, and not only in a batch; None: all of them.
    """
    row = Row(head, model_type, class_of(head, model_type), head)
    model = folder / model_type

    def attempt(column: str, work: Callable[[], object]) -> None:
        try:
            found = work()
            row.columns[column] = found if isinstance(found, str) else "yes"
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what the row says
            row.columns[column] = " ".join(str(error).split())[:160] or type(error).__name__
            row.details[column] = traceback.format_exc()

    def write() -> None:
        config = build(head, model_type, model).config
        if head is Head.SEQ2SEQ and not config.is_encoder_decoder:
            row.serves = Head.CAUSAL

    attempt("build", write)
    if row.columns.pop("build") != "yes":
        row.columns["inspect"] = f"not built: {row.details['build'].strip().splitlines()[-1][:160]}"
        return row
    attempt("inspect", lambda: _inspected(row, model))
    if row.columns["inspect"] != "yes":
        return row
    answers: dict[str, tuple[list[Any], list[Any]]] = {}
    losses: list[float] = []
    attempt("tasks", lambda: _answers(row, model, answers, compared))
    attempt("batched", lambda: _batched(row, answers))
    attempt("full", lambda: losses.extend(_trained(row, model, folder / "full")))
    attempt("packed", lambda: _packed(row, model, folder / "packed", losses))
    attempt("lora", lambda: _trained(row, model, folder / "lora", adapter=_LORA))
    return row


def _inspected(row: Row, folder: Path) -> None:
    report = inspect_source(Source(row.model_type, folder))
    ready = {name: fit for name, fit in report.tasks.items() if fit.status == "ready"}
    if not ready:
        raise DifferenceError(f"no task is ready: {sorted({fit.status for fit in report.tasks.values()})}")
    for fit in ready.values():
        if (fit.head, fit.model_class) != (row.serves, row.model_class):
            raise DifferenceError(f"inspect says {fit.head} and {fit.model_class}")
    row.tasks = list(ready)


# Tasks.


def _pipeline(task: str, folder: Path, model_type: str = "") -> Any:
    options: dict[str, Any] = {"device": "cpu", "dtype": "float32", "offline": True}
    if task == "translation":
        options |= {"source": "en", "target": _LANGUAGES.get(model_type, "fr")}
    return llmkit.load(task, str(folder), **options)


def _brief(pipeline: Any, head: Head) -> Any:
    """Greedy and short."""
    if head is not Head.SPAN:
        short = {"temperature": 0, "max_new_tokens": 6, "min_new_tokens": None, "num_beams": 1}
        pipeline.settings = replace(pipeline.settings, **short)
    return pipeline


def _answers(row: Row, folder: Path, answers: dict[str, tuple[list[Any], list[Any]]], compared: int | None) -> None:
    """Fill ``answers`` with the answers in a batch and one by one (of the first tasks only, if so asked)."""
    for number, task in enumerate(row.tasks):
        pipeline = _brief(_pipeline(task, folder, row.model_type), row.serves)
        if type(_base(pipeline.loaded.model)).__name__ != row.model_class:
            raise DifferenceError(f"{task} is done by {type(pipeline.loaded.model).__name__}")
        single = [pipeline(each) for each in _ASKED[task]] if compared is None or number < compared else []
        answers[task] = list(pipeline.map(_ASKED[task])), single
    if not any(answer.text for batch, _ in answers.values() for answer in batch):
        raise DifferenceError("nothing is written")


def _batched(row: Row, answers: dict[str, tuple[list[Any], list[Any]]]) -> None:
    for task, (batch, single) in answers.items():
        for one, other in zip(single, batch, strict=bool(single)):
            if one.text != other.text or abs((one.score or 0) - (other.score or 0)) > _TOLERANCE:
                raise DifferenceError(f"{task}: {one.text!r} alone, {other.text!r} in a batch")
    if len(answers) < len(row.tasks):
        raise DifferenceError("not all tasks ran")


# Training.

_LORA = {"peft_type": "LORA", "r": 4}


def _train(row: Row, folder: Path, out: Path, *, packing: bool = False, adapter: dict[str, Any] | None = None) -> Any:
    task, rows = _TAUGHT[row.serves]
    train = {
        "output_dir": str(out),
        "max_steps": 2,
        "logging_steps": 1,
        "per_device_train_batch_size": 3,
        "learning_rate": 1e-3,
        "packing": packing,
        "bf16": False,
        "save_strategy": "no",
    }
    model = {"name_or_path": str(folder), "offline": True, "device": "cpu"}
    sections = {"adapter": adapter} if adapter else {}
    out.parent.mkdir(parents=True, exist_ok=True)
    path = write_rows(out.parent / "rows.jsonl", rows)
    return finetune(make_recipe(task, model, path, train=train, **sections))


def _trained(row: Row, folder: Path, out: Path, *, adapter: dict[str, Any] | None = None) -> list[float]:
    """The losses of a run whose result is loaded again."""
    before = _logits(_pipeline(_TAUGHT[row.serves][0], folder, row.model_type).loaded, row.serves)
    trainer = _train(row, folder, out, adapter=adapter)
    if trainer.progress.step != 2:
        raise DifferenceError(f"{trainer.progress.step} updates")
    again = _pipeline(_TAUGHT[row.serves][0], out).loaded
    trainer.model.eval()
    kept, found = _logits(again, row.serves, trainer.model), _logits(again, row.serves)
    if (difference := _difference(kept, found)) > _TOLERANCE:
        raise DifferenceError(f"the saved model's logits differ by {difference:.1e}")
    if not _difference(before, found) > 0:
        raise DifferenceError("training changed nothing")
    return _losses(trainer)


def _losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.progress.log if "loss" in entry]


def _packed(row: Row, folder: Path, out: Path, padded: list[float]) -> str | None:
    """Packed, the losses equal those of the padded run."""
    if row.serves is not Head.CAUSAL:
        return "–"
    loaded = _pipeline("text-generation", folder, row.model_type).loaded
    if not supports_packing(loaded.model):
        return "–"
    packed = _losses(_train(row, folder, out, packing=True))
    for one, other in zip(padded, packed, strict=True):
        if abs(one - other) > _TOLERANCE * max(1, abs(one)):
            raise DifferenceError(f"losses {padded} padded and {packed} packed")
    return None


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "peft_config") else model


def _logits(loaded: Any, head: Head, model: Any = None) -> torch.Tensor:
    model = loaded.model if model is None else model
    if head is Head.SPAN:  # Longformer looks for the separators of a pair
        found = loaded.tokenizer("What is it?", _TEXTS[2])["input_ids"]
    else:
        found = loaded.tokenizer(_TEXTS[1])["input_ids"][:24]
    ids = torch.tensor([found])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if head is Head.SEQ2SEQ:
        inputs["decoder_input_ids"] = ids[:, :8]
    with torch.no_grad():
        output = model(**inputs)
    if head is Head.SPAN:
        return torch.stack([output.start_logits, output.end_logits])
    logits: torch.Tensor = output.logits
    return logits


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / one.abs().max().clamp(min=1e-9))
