"""ONNX: the exporter of Transformers for extractive models, run by ONNX Runtime."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from llmkit.exporters.check import span_questions
from llmkit.heads.span import SpanHead
from llmkit.models.load import Loaded
from llmkit.models.quiet import quiet_transformers

__all__ = ["convert", "open_onnx"]

_FILE = "model.onnx"


def convert(loaded: Loaded, folder: Path) -> None:
    """Export a model for any number of windows of any length."""
    from transformers.exporters.configs import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    model: Any = loaded.model
    head = SpanHead()
    windows = head.encode(loaded, span_questions()[0]).windows
    inputs: dict[str, Any] = dict(head.collate(loaded, [windows[0], windows[-1]]))  # an axis of size 1 would be fixed
    with _quiet_torch(), quiet_transformers():
        OnnxExporter().export(model, inputs, config=OnnxConfig(dynamic=True)).save_pretrained(folder)


@contextmanager
def _quiet_torch() -> Iterator[None]:
    """Hide the progress that PyTorch prints to standard output, its warnings and its log."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def open_onnx(model: Any, folder: Path) -> Any:
    """A copy of a model of Transformers, whose logits ONNX Runtime computes."""
    import onnxruntime
    import torch
    from transformers.modeling_outputs import QuestionAnsweringModelOutput

    session = onnxruntime.InferenceSession(str(folder / _FILE), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]

    def forward(**inputs: Any) -> QuestionAnsweringModelOutput:
        found = session.run(names, {name: each.cpu().numpy() for name, each in inputs.items()})
        return QuestionAnsweringModelOutput(**dict(zip(names, map(torch.from_numpy, found), strict=True)))

    exported = copy.copy(model)
    exported.forward = forward
    return exported
