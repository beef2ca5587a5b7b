"""Which rows may share a batch, found by trying."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from llmkit.config.settings import LoadSettings
from llmkit.engines.transformers.batch_invariance import probe_batch_invariance
from llmkit.heads import Encoded, head_of
from llmkit.heads.writing import WritingHead
from llmkit.models.load import load_model
from llmkit.tasks import Head
from tests.zoo.models import build

KINDS = [
    (Head.CAUSAL, "llama", "any"),
    (Head.CAUSAL, "gpt2", "any"),
    (Head.CAUSAL, "bart", "equally long"),  # counts positions from the first column, padding included
    (Head.CAUSAL, "xlnet", "equally long"),
    (Head.CAUSAL, "rwkv", "none"),
    (Head.SEQ2SEQ, "bart", "any"),
    (Head.SEQ2SEQ, "t5", "any"),
]


@pytest.mark.parametrize(("head", "model_type", "mates"), KINDS)
def test_a_model_gets_the_batches_that_change_no_row(
    head: Head, model_type: str, mates: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(head, model_type, tmp_path / model_type)
    settings = LoadSettings(model=str(tmp_path / model_type), offline=True, device="cpu", dtype="float32")
    loaded = load_model(settings, "text-generation")
    start = (loaded.model.config.decoder_start_token_id,) if head is Head.SEQ2SEQ else ()
    batch = [Encoded(tuple(range(9, 9 + length)), start) for length in (5, 12)]
    generate: Any = Mock(wraps=loaded.model.generate)
    monkeypatch.setattr(loaded.model, "generate", generate)
    writing = head_of(head)
    assert isinstance(writing, WritingHead)
    for _ in range(2):
        assert probe_batch_invariance(loaded, writing, batch) == mates
    assert generate.call_count <= 3  # once a model
