"""Streaming of an answer piece by piece, from the model's thread to the caller's."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from llmkit.engines.base import OnText
from llmkit.tasks.output import Output

if TYPE_CHECKING:
    from llmkit.inference.pipeline import Pipeline
    from llmkit.tasks import Row

__all__ = ["StreamedOutput", "StreamedText"]


class StreamedText:
    """Forwards the pieces of an answer; ``strip`` removes white space around it."""

    def __init__(self, on_text: OnText, *, strip: bool) -> None:
        self._on_text = on_text
        self._strip = strip
        self._begun = False
        self._held = ""

    def push(self, text: str) -> None:
        """Add a piece."""
        if self._strip:
            text = self._held + text
            if not self._begun:
                text = text.lstrip()
            shown = text.rstrip()
            text, self._held = shown, text[len(shown) :]
        if text:
            self._begun = True
            self._on_text(text)


class StreamedOutput:
    """Iterate over the pieces of one answer; afterwards ``output`` holds the whole."""

    def __init__(self, pipeline: Pipeline, row: str | Row) -> None:
        self._pipeline = pipeline
        self._row = row
        self._begun = False
        self.output: Output | None = None

    def __iter__(self) -> Iterator[str]:
        if self._begun:  # a second pass finds no pieces
            return
        self._begun = True
        pieces: queue.SimpleQueue[str | Output | BaseException] = queue.SimpleQueue()
        left = threading.Event()

        def work() -> None:
            try:
                pieces.put(self._pipeline(self._row, on_text=pieces.put, cancelled=left.is_set))
            except BaseException as error:  # noqa: BLE001 - raised again in the consumer's thread
                pieces.put(error)

        worker = threading.Thread(target=work, name="llmkit-generate", daemon=True)
        worker.start()
        interrupted = False
        try:
            while isinstance(item := pieces.get(), str):
                yield item
            if isinstance(item, BaseException):
                raise item
            self.output = item
        except KeyboardInterrupt:
            interrupted = True
            raise
        finally:
            left.set()  # leaving the loop early stops the model
            if not interrupted:  # a long prefill would make the user wait
                worker.join()
