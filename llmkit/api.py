"""The Python API: a function a task for one answer, and `load` for many.

Thin: settings are declared in `llmkit.config.settings`, work is done in `llmkit.inference`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from llmkit.config.settings import GenerationSettings, LoadOptions, LoadSettings, Options, split_options
from llmkit.errors import InputError, UsageError
from llmkit.tasks import Row, Wording, get_task

if TYPE_CHECKING:
    from llmkit.inference.next_tokens import NextToken
    from llmkit.inference.output import Output
    from llmkit.inference.pipeline import Pipeline
    from llmkit.models.load import Loaded

__all__ = ["build_pipeline", "generate", "load", "next_tokens"]


_last: dict[tuple[LoadSettings, str], Loaded] = {}


def _load_model(settings: LoadSettings, task: str, text: str) -> Loaded:
    """The model of the last call if it is the same one; else it makes room before the next is loaded."""
    from llmkit.models.load import load_model

    key = (settings, task)
    if key not in _last:
        _last.clear()
        _last[key] = load_model(settings, task, text=text)
    return _last[key]


def build_pipeline(
    task: str, load_settings: LoadSettings, settings: GenerationSettings, wording: Wording, *, text: str = ""
) -> Pipeline:
    """A pipeline from settings that are already checked. ``text`` lets a fallback model state its limits."""
    known = get_task(task)
    loaded = _load_model(load_settings, known.name, text)
    from llmkit.inference.pipeline import Pipeline

    return Pipeline(known, loaded, settings, wording)


def load(
    task: str,
    model: str | None = None,
    *,
    system: str = "",
    prefill: str = "",
    examples: Sequence[Row] | str | Path = (),
    raw: bool = False,
    **options: Unpack[Options],
) -> Pipeline:
    """Load a model for a task.

    Args:
        task: ``text-generation``, or its verb ``generate``.
        model: Hub id, local folder, PEFT adapter folder, GGUF file, or ``starter``; None takes the task's default.
        system: system message (chat models) or text put in front (others).
        prefill: how the output begins; it is not repeated in the output.
        examples: few-shot rows in the task's columns, or a file of them.
        raw: continue the text itself, also on a model with a chat template.
        **options: the fields of `LoadSettings` and `GenerationSettings`.

    Returns:
        A pipeline: call it with a row, ``map`` it over many, or ``stream`` one answer.

    Raises:
        LlmkitError: one line that ends in what to do.
    """
    load_settings, settings = split_options({**options, "model": model})
    return build_pipeline(task, load_settings, settings, make_wording(system, prefill, examples, raw=raw))


def make_wording(system: str, prefill: str, examples: Sequence[Row] | str | Path, *, raw: bool) -> Wording:
    """What the caller adds to each prompt; examples may be a file."""
    if isinstance(examples, str | Path):
        from llmkit.data.rows import read_rows

        examples = read_rows(Path(examples))
    return Wording(system=system, prefill=prefill, examples=tuple(examples), raw=raw)


def generate(
    prompt: str,
    model: str | None = None,
    *,
    system: str = "",
    prefill: str = "",
    examples: Sequence[Row] | str | Path = (),
    raw: bool = False,
    **options: Unpack[Options],
) -> Output:
    """Answer or continue one prompt. The model of the last call stays loaded; see `load` for the arguments."""
    load_settings, settings = split_options({**options, "model": model})
    wording = make_wording(system, prefill, examples, raw=raw)
    return build_pipeline("text-generation", load_settings, settings, wording, text=prompt)(prompt)


def next_tokens(
    text: str, model: str | None = None, *, top: int = 10, **options: Unpack[LoadOptions]
) -> list[NextToken]:
    """The likeliest next tokens after a text, with their true probabilities."""
    return next_tokens_with(split_options({**options, "model": model}, LoadSettings)[0], text, top=top)[1]


def next_tokens_with(settings: LoadSettings, text: str, *, top: int) -> tuple[Loaded, list[NextToken]]:
    """`next_tokens` from settings that are already checked, with the model that answered."""
    if not text:
        raise InputError("the text is empty", "give some text to continue")
    if top < 1:
        raise UsageError(f"top={top} is out of range", "give a number of 1 or more")
    loaded = _load_model(settings, "text-generation", text)
    from llmkit.inference.next_tokens import next_tokens as distribution

    return loaded, distribution(loaded, text, top=top)
