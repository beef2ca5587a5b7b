"""What is seen when, and the tensors of it."""

from __future__ import annotations

from typing import Any

import pytest

from llmkit.heads.base import IGNORED
from llmkit.heads.causal import CausalHead
from llmkit.heads.seq2seq import Seq2SeqHead
from llmkit.heads.span import SpanHead
from llmkit.training.sampler import BatchSampler

LENGTHS = [(number * 37) % 101 + 1 for number in range(203)]


def schedule(
    batch_size: int, accumulation: int = 1, processes: int = 1, strategy: Any = "group_by_length"
) -> BatchSampler:
    return BatchSampler(LENGTHS, batch_size, accumulation, processes, strategy, seed=3)


@pytest.mark.parametrize("strategy", ["random", "sequential", "group_by_length"])
def test_an_epoch_has_every_example_once(strategy: str) -> None:
    updates = schedule(8, strategy=strategy).epoch(0)
    assert sorted(index for update in updates for index in update) == list(range(len(LENGTHS)))
    assert len(updates) == schedule(8).updates


@pytest.mark.parametrize("strategy", ["random", "sequential", "group_by_length"])
def test_an_update_is_the_same_however_it_is_shared(strategy: str) -> None:
    whole = schedule(8, strategy=strategy)
    for other in (schedule(1, 8, 1, strategy), schedule(2, 2, 2, strategy), schedule(4, 1, 2, strategy)):
        for one, same in zip(whole.epoch(1), other.epoch(1), strict=True):
            assert sorted(one) == sorted(same)
            shared = [
                index
                for process in range(other.processes)
                for part in other.micro_batches(same, process)
                for index in part
            ]
            assert sorted(shared) == sorted(one)
            assert all(
                len(list(other.micro_batches(same, process))) <= other.accumulation
                for process in range(other.processes)
            )
            assert max(len(part) for part in other.micro_batches(same, 0)) <= other.batch_size


def test_epochs_differ_and_a_seed_repeats_them() -> None:
    assert schedule(8).epoch(0) != schedule(8).epoch(1)
    assert schedule(8).epoch(5) == schedule(8).epoch(5)


def test_batches_of_like_length_waste_little() -> None:
    def padding(strategy: str) -> int:
        updates = schedule(8, strategy=strategy).epoch(0)
        return sum(max(LENGTHS[index] for index in update) * len(update) for update in updates) - sum(LENGTHS)

    assert padding("group_by_length") < padding("random") / 10


def line(ids: list[int], labels: list[int], **more: Any) -> dict[str, Any]:
    return {"input_ids": ids, "labels": labels, "decoder_input_ids": [], "token_type_ids": [], **more}


def test_padding_carries_no_loss_where_the_end_of_text_is_also_the_padding() -> None:
    end = 2
    lines = [line([5, 6, end], [IGNORED, 6, end]), line([5, 6, 7, 8, end], [IGNORED, IGNORED, 7, 8, end])]
    batch = CausalHead().batch(lines, pad_id=end)
    assert batch.keep is not None
    assert batch.inputs["input_ids"].tolist() == [[5, 6, end, end, end], [5, 6, 7, 8, end]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch.keep.tolist() == [0, 1, 2, 3]
    assert batch.labels.tolist() == [[6, end, IGNORED, IGNORED], [IGNORED, 7, 8, end]]


def test_packed_examples_do_not_predict_each_other() -> None:
    lines = [line([5, 6], [5, 6]), line([7, 8, 9], [7, 8, 9])]
    batch = CausalHead().batch(lines, pad_id=0, packed=True)
    assert batch.keep is not None
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 0, 1, 2]]
    assert batch.labels.tolist() == [[6, 8, 9]]
    assert batch.keep.tolist() == [0, 2, 3]


def test_an_answer_and_a_span() -> None:
    lines = [line([5], [7, 2], decoder_input_ids=[0, 7]), line([5, 6], [2], decoder_input_ids=[0])]
    batch = Seq2SeqHead().batch(lines, pad_id=0)
    assert batch.labels.tolist() == [[7, 2], [2, IGNORED]]
    assert batch.inputs["decoder_input_ids"].tolist() == [[0, 7], [0, 0]]
    spans = [line([5, 6], [], token_type_ids=[0, 1], start_positions=[1, 0, 1], end_positions=[1, 1, 1])]
    batch = SpanHead().batch(spans, pad_id=0)
    assert batch.labels.tolist() == [[[0, 1], [1, IGNORED]]]
    assert batch.inputs["token_type_ids"].tolist() == [[0, 1]]
