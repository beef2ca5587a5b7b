"""The Python API: a function a task for one answer, and `load` for many.

Thin: settings are declared in `llmkit.config.settings`, work is done in `llmkit.inference`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from llmkit.config.settings import (
    GenerationSettings,
    LoadOptions,
    LoadSettings,
    Options,
    command_line,
    split_options,
)
from llmkit.errors import InputError, UsageError
from llmkit.tasks import Message, Row, Task, Wording, find_task
from llmkit.tasks.question_answering import AnswerOptions
from llmkit.tasks.summarization import SummarizationOptions
from llmkit.tasks.translation import TranslationOptions

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel
    from transformers.pipelines.base import Pipeline as TransformersPipeline

    from llmkit.evaluation.evaluate import Evaluation
    from llmkit.inference.next_tokens import NextToken
    from llmkit.inference.pipeline import Pipeline
    from llmkit.models.load import Loaded
    from llmkit.tasks.output import Output

__all__ = [
    "answer",
    "build_pipeline",
    "chat",
    "evaluate",
    "finetune",
    "generate",
    "load",
    "next_tokens",
    "pipeline",
    "summarize",
    "translate",
]

Examples = Sequence[Row] | str | Path

_last: dict[tuple[LoadSettings, str, tuple[str, ...], str], tuple[Loaded, object]] = {}
"""The model of the last call, and when its files were written."""
_loading = threading.Lock()
"""Held while that is looked up or replaced: of two threads the second waits for the first one's model."""


class TaskOptions(SummarizationOptions, AnswerOptions, TranslationOptions, total=False):
    """The keyword arguments of every task."""


def _load_model(
    settings: LoadSettings, task: str, text: str, defaults: tuple[str, ...] = (), *, fallback: bool = True
) -> Loaded:
    """The model of the last call if it is the same one; else it makes room before the next is loaded.

    It is another one where its files have changed, or where a relative name is of another folder now.
    """
    from llmkit.models.load import load_model

    key = (settings, task, defaults, str(Path.cwd()))
    with _loading:
        if key in _last:
            loaded, stamp = _last[key]
            if loaded.source.stamp() == stamp:
                return loaded
        _last.clear()
        loaded = load_model(settings, task, text=text, defaults=defaults, fallback=fallback)
        _last[key] = loaded, loaded.source.stamp()
        return loaded


def build_pipeline(
    task: Task,
    load_settings: LoadSettings,
    settings: GenerationSettings,
    wording: Wording,
    *,
    row: Row | None = None,
    fallback: bool = True,
) -> Pipeline:
    """A pipeline from settings that are already checked.

    ``row``, if there is only one, decides about the default model, and lets a fallback model state its limits; without
    ``fallback`` there is an error in its place.
    """
    text = "" if row is None else task.text(row)
    # A model that was named may know its languages itself.
    defaults = task.default_models(text) if load_settings.model is None else ()
    loaded = _load_model(load_settings, task.name, text, defaults, fallback=fallback)
    from llmkit.engines.transformers import TransformersEngine
    from llmkit.inference.pipeline import Pipeline
    from llmkit.inference.tuned_config import apply_contract

    task, wording, settings = apply_contract(loaded, task, wording, settings)
    return Pipeline(task, TransformersEngine(loaded), settings, wording)


def load(
    task: str,
    model: str | None = None,
    *,
    system: str = "",
    prefill: str = "",
    examples: Examples = (),
    raw: bool = False,
    **options: Unpack[TaskOptions],
) -> Pipeline:
    """Load a model for a task.

    Args:
        task: ``text-generation``, ``summarization``, ``question-answering``, ``dialogue`` or ``translation``, or the
            verb: ``generate``, ``summarize``, ``answer``, ``chat``, ``translate``.
        model: Hub id, local folder, PEFT adapter folder, GGUF file, or ``starter``; None takes the task's default.
        system: system message (chat models) or text put in front (others).
        prefill: how the output begins; it is not repeated in the output.
        examples: few-shot rows in the task's columns, or a file of them.
        raw: continue the text itself, also on a model with a chat template.
        **options: the fields of `LoadSettings` and `GenerationSettings`, and the task's own: ``length``
            (summarization); ``top``, ``no_answer_threshold``, ``max_seq_len``, ``doc_stride``, ``max_answer_len``
            (question answering); ``source``, ``target`` (translation).

    Returns:
        A pipeline: call it with a row, ``map`` it over many, or ``stream`` one answer. A row is a mapping with the
        task's columns, or just its text: ``prompt``, ``document``, ``question`` and ``context``, ``messages``,
        ``source``.

    Raises:
        LlmkitError: one line that ends in what to do.
    """
    made, load_settings, settings = _open(task, model, options)
    return build_pipeline(made, load_settings, settings, make_wording(system, prefill, examples, raw=raw))


def _open(task: str, model: str | None, options: Any) -> tuple[Task, LoadSettings, GenerationSettings]:
    """A task and the settings, from keyword arguments."""
    found = find_task(task)
    load_settings, settings, own = split_options(
        {**options, "model": model}, LoadSettings, GenerationSettings, found.settings_class
    )
    return found(own), load_settings, settings


def _answer(task: str, given: str | Row, model: str | None, wording: Wording, options: Any) -> Output:
    """The answer to one row."""
    made, load_settings, settings = _open(task, model, options)
    row = made.to_row(given)
    made.validate(row)
    return build_pipeline(made, load_settings, settings, wording, row=row)(row)


def make_wording(system: str = "", prefill: str = "", examples: Examples = (), *, raw: bool = False) -> Wording:
    """What the caller adds to each prompt; examples may be a file."""
    if isinstance(examples, str | Path):
        from llmkit.data.rows import read_rows

        examples = read_rows(Path(examples))
    return Wording(system=system or "", prefill=prefill or "", examples=tuple(examples or ()), raw=raw)


def generate(
    prompt: str,
    model: str | None = None,
    *,
    system: str = "",
    prefill: str = "",
    examples: Examples = (),
    raw: bool = False,
    **options: Unpack[Options],
) -> Output:
    """Answer or continue one prompt. The model of the last call stays loaded; see `load` for the arguments."""
    return _answer("text-generation", prompt, model, make_wording(system, prefill, examples, raw=raw), options)


def summarize(
    text: str, model: str | None = None, *, examples: Examples = (), **options: Unpack[SummarizationOptions]
) -> Output:
    """Summarize a text of any length; one longer than the model reads is read in parts, to its last sentence.

    ``length`` is ``short``, ``medium``, ``long`` or a number of tokens; see `load` for the other arguments.
    """
    return _answer("summarization", text, model, make_wording(examples=examples), options)


def answer(
    question: str,
    context: str,
    model: str | None = None,
    *,
    examples: Examples = (),
    **options: Unpack[AnswerOptions],
) -> Output:
    """Answer a question from a text. ``output.start`` and ``output.end`` are the answer's place in it, in characters.

    Where the text holds no answer, ``output.answered`` is False; see `load` for the arguments.
    """
    row = {"question": question, "context": context}
    return _answer("question-answering", row, model, make_wording(examples=examples), options)


def chat(
    messages: str | Sequence[Message | Row],
    model: str | None = None,
    *,
    system: str = "",
    examples: Examples = (),
    **options: Unpack[Options],
) -> Output:
    """The reply to one message, or to a conversation (``[{"role": "user", "content": …}, …]``).

    `Conversation` keeps one going. See `load` for the arguments.
    """
    return _answer("dialogue", {"messages": messages}, model, make_wording(system, examples=examples), options)


def translate(
    text: str,
    target: str | None = None,
    model: str | None = None,
    *,
    source: str | None = None,
    examples: Examples = (),
    **options: Unpack[Options],
) -> Output:
    """Translate a text of any length into the ``target`` language, by English name or ISO 639 code.

    ``source`` is detected if not given; ``target`` may be left out for a model that knows only one. White space,
    Markdown, code, addresses and placeholders are kept. See `load` for the other arguments.
    """
    options_of_task = {**options, "source": source, "target": target}
    return _answer("translation", text, model, make_wording(examples=examples), options_of_task)


def pipeline(
    task: str | None = None,
    model: str | Path | PreTrainedModel | None = None,
    config: str | PreTrainedConfig | None = None,
    tokenizer: Any = None,
    *,
    bug_compatible: bool = False,
    **options: Any,
) -> TransformersPipeline:
    """What ``transformers.pipeline`` was in version 4: ``from llmkit import pipeline`` is the whole migration.

    ``summarization``, ``translation``, ``translation_xx_to_yy``, ``text2text-generation`` and ``question-answering``,
    which version 5 removed, take the calls and give the results of 4.57.6, as strings and dicts; every other task is
    version 5's own. Texts that are too long fail as they did there; `summarize`, `answer` and `translate` read them.

    Args:
        task: its name.
        model: Hub id, folder, PEFT adapter folder, or a loaded model (which needs ``tokenizer``). There is no default.
        config: a config or where to find one, in place of the model's.
        tokenizer: a tokenizer or where to find one, in place of the model's.
        bug_compatible: for ``question-answering``. False makes scores comparable over the windows of a long text, and
            counts the best of answers that read alike; True is exactly 4.57.6, whose scores are by window and whose
            equal answers are added up (`llmkit.compat.question_answering.QuestionAnsweringPipeline` has the details).
        **options: ``device``, ``device_map``, ``dtype`` (or ``torch_dtype``), ``revision``, ``trust_remote_code``,
            ``model_kwargs``, ``batch_size``, ``num_workers``, ``pipeline_class``, and whatever a call of the pipeline
            takes, as the default of every call.

    Raises:
        LlmkitError: one line that ends in what to do; also for an option that would have no effect.
    """
    from llmkit.compat.pipeline import build_pipeline as build

    return build(task, model, config, tokenizer, bug_compatible=bug_compatible, **options)


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


def finetune(recipe: str | Path, *, overrides: Sequence[str] = (), resume: bool = False) -> Path:
    """Train by a recipe, in this process.

    Args:
        recipe: its file, or the name of a shipped one.
        overrides: changes, such as ``train.learning_rate=1e-4``.
        resume: go on from the last checkpoint in ``train.output_dir``.

    Returns:
        The folder of the result, which any function here takes as ``model``.

    Raises:
        LlmkitError: one line that ends in what to do.
    """
    from llmkit.config.recipe_file import load_recipe
    from llmkit.training.run import finetune as train

    loaded = load_recipe(str(recipe), overrides)
    if (loaded.accelerate.num_processes or 1) > 1:
        raise UsageError(
            "several processes are started by the command", command_line("finetune", "RECIPE", num_processes="N")
        )
    return train(loaded, resume=resume).folder


def evaluate(
    recipe: str | Path | None = None,
    *,
    task: str | None = None,
    model: str | None = None,
    data: str | Path | None = None,
    baseline: str | None = None,
    overrides: Sequence[str] = (),
    metrics: Mapping[str, Any] | None = None,
    output: str | Path = "evaluation",
    max_rows: int | None = None,
    resume: bool = False,
    **options: Unpack[Options],
) -> Evaluation:
    """Judge a model on rows with expected answers: of a recipe its result on its validation rows.

    Args:
        recipe: its file, or the name of a shipped one.
        task: without a recipe, as in `load`.
        model: with a recipe, in place of its result.
        data: rows, in place of the recipe's.
        baseline: another model, compared by a paired bootstrap test on the same rows.
        overrides: changes of the recipe, such as ``settings.target=de``.
        metrics: others of the package evaluate, loaded, by name.
        output: folder for the answers and ``metrics.json``.
        resume: go on where a run into the same folder was stopped.
        **options: the fields of `LoadSettings` and `GenerationSettings`; greedy unless told to sample.

    Raises:
        LlmkitError: one line that ends in what to do.
    """
    from llmkit.training.evaluation_spec import resolve_evaluation, run_evaluation

    load_settings, settings = split_options({**options, "model": model}, LoadSettings, GenerationSettings)
    name, rows = (None if given is None else str(given) for given in (recipe, data))
    spec = resolve_evaluation(name, task, rows, load_settings, overrides)
    result = run_evaluation(
        spec, settings, Path(output), baseline=baseline, metrics=metrics, max_rows=max_rows, resume=resume
    )
    assert result is not None  # this is the only process
    return result
