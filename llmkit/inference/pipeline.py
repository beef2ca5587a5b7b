"""A loaded task: call it with one row, map it over many, or stream one answer.

Whole answers are a fold over pieces: there is one generate path (`llmkit.heads.decoding.generate`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice

from llmkit.config.settings import GenerationSettings
from llmkit.errors import UsageError
from llmkit.heads import head_ops
from llmkit.heads.decoding import Piece, generate, stream
from llmkit.inference.fitting import Fitted, fit
from llmkit.inference.output import Output, Usage
from llmkit.models.load import Loaded
from llmkit.tasks import Row, Task, Wording

__all__ = ["Pipeline", "StreamedOutput"]


@dataclass
class _Draft:
    """An output while its pieces arrive."""

    text: str = ""
    finish_reason: str = "length"
    tokens: int = 0

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        if piece.finish_reason is not None:
            self.finish_reason, self.tokens = piece.finish_reason, piece.tokens


class Pipeline:
    """One task on one loaded model. Made by `llmkit.load`."""

    def __init__(self, task: Task, loaded: Loaded, settings: GenerationSettings, wording: Wording) -> None:
        self.task = task
        self.loaded = loaded
        self.settings = settings
        self.wording = wording
        self._ops = head_ops(loaded.head)
        for number, example in enumerate(wording.examples, start=1):
            task.validate_example(example, number)

    def __call__(self, row: str | Row, /, *, on_text: Callable[[str], None] | None = None) -> Output:
        """Answer one row: a text, or a mapping with the task's columns.

        ``on_text`` gets the (first) answer piece by piece, as it is generated.
        """
        return self._answer([self._prepare(row)], on_text)[0]

    def map(self, rows: Iterable[str | Row], /, *, batch_size: int = 8) -> Iterator[Output]:
        """Answer rows lazily and in order, ``batch_size`` at a time.

        Greedy answers are those of single calls; in half precision, batches can differ in rounding.
        """
        if batch_size < 1:
            raise UsageError(f"batch_size={batch_size} is out of range", "give a number of 1 or more")
        iterator = iter(rows)
        while batch := list(islice(iterator, batch_size)):
            yield from self._answer([self._prepare(row) for row in batch])

    def stream(self, row: str | Row, /) -> StreamedOutput:
        """Answer one row piece by piece: iterate for the text; ``.output`` is set when the text has ended.

        The model runs in a thread of its own, which costs speed on a CPU with few cores; ``on_text`` does not.
        """
        if self.settings.num_return_sequences > 1:
            raise UsageError("several sequences cannot be streamed as one text", "call the pipeline instead")
        fitted = self._prepare(row)
        pieces = stream(self.loaded, self._ops, [fitted.encoded], self.settings, self.max_new_tokens)
        return StreamedOutput(pieces, lambda draft: self._output(draft, fitted))

    @property
    def max_new_tokens(self) -> int:
        """The caller's limit, else the model's own, else the task's default."""
        return (
            self.settings.max_new_tokens
            or self.loaded.model.generation_config.max_new_tokens
            or self.task.max_new_tokens
        )

    def _prepare(self, row: str | Row) -> Fitted:
        row = {self.task.input_column: row} if isinstance(row, str) else row
        self.task.validate(row)
        return fit(
            self.task,
            row,
            self.wording,
            self.loaded,
            self.settings,
            self.max_new_tokens,
            lambda prompt: self._ops.encode(self.loaded, prompt),
        )

    def _answer(self, batch: Sequence[Fitted], on_text: Callable[[str], None] | None = None) -> list[Output]:
        count = self.settings.num_return_sequences
        drafts = [_Draft() for _ in range(len(batch) * count)]

        def emit(piece: Piece) -> None:
            drafts[piece.row].add(piece)
            if on_text is not None and piece.row == 0 and piece.text:
                on_text(piece.text)

        encoded = [fitted.encoded for fitted in batch]
        generate(self.loaded, self._ops, encoded, self.settings, self.max_new_tokens, emit)
        outputs = [self._output(draft, batch[number // count]) for number, draft in enumerate(drafts)]
        return [
            replace(outputs[first], alternatives=tuple(outputs[first + 1 : first + count]))
            for first in range(0, len(outputs), count)
        ]

    def _output(self, draft: _Draft, fitted: Fitted) -> Output:
        source = self.loaded.source
        return Output(
            text=self.task.parse(draft.text, fitted.row),
            task=self.task.name,
            model=source.name,
            commit=source.named_commit,
            base_commit=source.commit if source.adapter else None,
            head=str(self.loaded.head),
            finish_reason=draft.finish_reason,
            usage=Usage(len(fitted.encoded.input_ids), draft.tokens),
            truncated=fitted.truncated,
        )


class StreamedOutput:
    """Iterate over the pieces of one answer; afterwards ``output`` holds the whole."""

    def __init__(self, pieces: Generator[Piece, None, None], finish: Callable[[_Draft], Output]) -> None:
        self._pieces = pieces
        self._finish = finish
        self.output: Output | None = None

    def __iter__(self) -> Iterator[str]:
        draft = _Draft()
        with closing(self._pieces):  # who leaves the loop early stops the model
            for piece in self._pieces:
                draft.add(piece)
                if piece.text:
                    yield piece.text
        if draft.tokens:  # a second pass finds no pieces
            self.output = self._finish(draft)
