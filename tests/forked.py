"""Work in a fork of a process that has imported everything, so that nothing it does can end a long table."""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

__all__ = ["import_all", "in_fork", "quiet"]


def import_all() -> None:
    """What llmkit imports only when it is needed is imported once, before the forks."""
    for name in ("accelerate", "datasets", "matplotlib.backends.backend_agg", "matplotlib.figure", "peft"):
        importlib.import_module(name)


def quiet() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("llmkit").setLevel("ERROR")


def in_fork(work: Callable[[Path], dict[str, Any]], seconds: float) -> dict[str, Any] | str:
    """The result of work in an empty folder and with a cache of its own; why there is none if it crashes or is slow."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["LLMKIT_CACHE"] = f"{folder}/cache"
            found = work(Path(folder))
        sender.send(found)

    process = context.Process(target=run)
    process.start()
    sender.close()
    try:
        if receiver.poll(seconds):
            found: dict[str, Any] = receiver.recv()
            return found
        return f"not done in {seconds} s"
    except EOFError:
        return "the process ended"
    finally:
        process.terminate()
        process.join()
