"""The Python API: one function per task for a single row, and `load` for many rows.

Thin: settings are declared in `llmkit.config.settings`, work is done in `llmkit.inference`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from llmkit.config.declaration import setting_fields, split_options
from llmkit.config.settings import GenerationSettings, LoadOptions, LoadSettings, Options
from llmkit.config.signatures import Function, with_settings
from llmkit.config.user import with_default_model
from llmkit.data.prompt_files import prompt_values
from llmkit.errors import InputError, UsageError
from llmkit.progress import hidden
from llmkit.tasks import TASKS, Message, PromptKeywords, PromptOptions, Row, Task, WordingKeywords, find_task
from llmkit.tasks.messages import to_tools
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
    "generate",
    "load",
    "load_for",
    "next_tokens",
    "pipeline",
    "summarize",
    "translate",
]

_last: dict[tuple[LoadSettings, str, tuple[str, ...], str], tuple[Loaded, object]] = {}
"""The model of the last call, and when its files were written."""
_loading = threading.Lock()
"""Held while the model is looked up or replaced: a second thread waits for the first one's model."""


def _with_options_of(name: str) -> Callable[[Function], Function]:
    task = find_task(name)
    classes = (PromptOptions, LoadSettings, GenerationSettings, task.settings_class)
    return with_settings(*classes, shown_defaults=task.shown_defaults())


class TaskOptions(SummarizationOptions, AnswerOptions, TranslationOptions, total=False):
    """The settings of every task."""


class PromptedOptions(Options, PromptKeywords, total=False):
    """The keyword arguments of tasks without settings."""


class PromptedSummarization(SummarizationOptions, PromptKeywords, total=False):
    """The keyword arguments of `summarize`."""


class PromptedAnswer(AnswerOptions, PromptKeywords, total=False):
    """The keyword arguments of `answer`."""


class PromptedEvaluation(TaskOptions, WordingKeywords, total=False):
    """The keyword arguments of `evaluate` besides its own."""


class PromptedTask(TaskOptions, PromptKeywords, total=False):
    """The keyword arguments of every task."""


def _load_model(
    settings: LoadSettings, task: str, text: str, defaults: tuple[str, ...] = (), *, fallback: bool = True
) -> Loaded:
    """The model of the last call, if it is the one needed; otherwise it is freed before the next one is loaded.

    It is not reused if its files have changed, or if a relative path now means another folder.
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
    prompt_options: PromptOptions,
    *,
    row: Row | None = None,
    fields: Collection[str] = (),
    fallback: bool = True,
) -> Pipeline:
    """A pipeline from validated settings.

    ``row``, if there is only one, or the ``fields`` of several select the default model; a row also lets a fallback
    model state its limits; without ``fallback``, an error is raised instead.
    """
    for number, example in enumerate(prompt_options.examples, start=1):
        task.validate_example(example, number)
    to_tools(prompt_options.tools)  # refused before a model is loaded
    text = "" if row is None else task.text(row)
    with with_default_model(load_settings, type(task)) as chosen:
        # A model named by the user may know its languages itself.
        defaults = task.default_models(text, row or fields) if chosen.model is None else ()
        loaded = _load_model(chosen, task.name, text, defaults, fallback=fallback)
    from llmkit.engines.transformers import TransformersEngine
    from llmkit.inference.pipeline import Pipeline
    from llmkit.inference.tuned_config import apply_contract

    task, prompt_options, settings = apply_contract(loaded, task, prompt_options, settings)
    return Pipeline(task, TransformersEngine(loaded), settings, prompt_options)


@with_settings(PromptOptions, LoadSettings, GenerationSettings, *(each.settings_class for each in TASKS.values()))
def load(task: str, model: str | None = None, **options: Unpack[PromptedTask]) -> Pipeline:
    """Load a model for a task.

    Args:
        task: ``text-generation``, ``summarization``, ``question-answering``, ``dialogue`` or ``translation``, or the
            verb: ``generate``, ``summarize``, ``answer``, ``chat``, ``translate``.
        model: Hub id, local folder, PEFT adapter folder, GGUF file, or ``starter``; None takes the task's default.
        **options: the fields of `PromptOptions` (``examples`` may be rows or a file of them), `LoadSettings` and
            `GenerationSettings`, and the task's own: ``length`` (summarization); ``top``, ``no_answer_threshold``,
            ``max_seq_len``, ``doc_stride``, ``max_answer_len`` (question answering); ``source``, ``target``
            (translation).

    Returns:
        A pipeline: call it with a row, ``map`` it over many, or ``stream`` one answer. A row is a mapping with the
        task's columns, or just its text: ``prompt``, ``document``, ``question`` and ``context``, ``messages``,
        ``source``.

    Raises:
        LlmkitError: one line that ends in what to do.
    """
    return build_pipeline(*_open(task, model, options))


def _open(task: str, model: str | None, options: Any) -> tuple[Task, LoadSettings, GenerationSettings, PromptOptions]:
    """A task and the settings, from keyword arguments."""
    found = find_task(task)
    given = {**options, **prompt_values(options, found()), "model": model}
    load_settings, settings, prompt_options, own = split_options(
        given, LoadSettings, GenerationSettings, PromptOptions, found.settings_class
    )
    return found(own), load_settings, settings, prompt_options


def _answer(task: str, given: str | Row, model: str | None, options: Any) -> Output:
    """The output for one row."""
    opened = _open(task, model, options)
    row = opened[0].to_row(given)
    opened[0].validate(row)
    return build_pipeline(*opened, row=row)(row)


@_with_options_of("text-generation")
def generate(prompt: str, model: str | None = None, **options: Unpack[PromptedOptions]) -> Output:
    """Answer or continue one prompt. The model of the last call stays loaded; see `load` for the arguments."""
    return _answer("text-generation", prompt, model, options)


@_with_options_of("summarization")
def summarize(text: str, model: str | None = None, **options: Unpack[PromptedSummarization]) -> Output:
    """Summarize a text of any length; a text longer than the model's context is summarized in parts.

    ``length`` is ``short``, ``medium``, ``long`` or a number of tokens; see `load` for the other arguments.
    """
    return _answer("summarization", text, model, options)


@_with_options_of("question-answering")
def answer(question: str, context: str, model: str | None = None, **options: Unpack[PromptedAnswer]) -> Output:
    """Answer a question from a text. ``output.start`` and ``output.end`` are the answer's character offsets in it.

    If the text has no answer, ``output.answered`` is False; see `load` for the arguments.
    """
    row = {"question": question, "context": context}
    return _answer("question-answering", row, model, options)


@_with_options_of("dialogue")
def chat(
    messages: str | Sequence[Message | Row], model: str | None = None, **options: Unpack[PromptedOptions]
) -> Output:
    """The reply to one message, or to a conversation (``[{"role": "user", "content": …}, …]``).

    Use `Conversation` for several turns. See `load` for the arguments.
    """
    return _answer("dialogue", {"messages": messages}, model, options)


@_with_options_of("translation")
def translate(
    text: str,
    target: str | None = None,
    model: str | None = None,
    *,
    source: str | None = None,
    **options: Unpack[PromptedOptions],
) -> Output:
    """Translate a text of any length into the ``target`` language, by English name or ISO 639 code.

    ``source`` is detected by default; ``target`` may be omitted for a model with only one. White space, Markdown,
    code, URLs and placeholders are preserved. See `load` for the other arguments.
    """
    options_of_task = {**options, "source": source, "target": target}
    return _answer("translation", text, model, options_of_task)


def pipeline(
    task: str | None = None,
    model: str | Path | PreTrainedModel | None = None,
    config: str | PreTrainedConfig | None = None,
    tokenizer: Any = None,
    *,
    bug_compatible: bool = False,
    **options: Any,
) -> TransformersPipeline:
    """``transformers.pipeline`` as it was in version 4: ``from llmkit import pipeline`` is the whole migration.

    ``summarization``, ``translation``, ``translation_xx_to_yy``, ``text2text-generation`` and ``question-answering``,
    which version 5 removed, accept the calls and return the results of 4.57.6, as strings and dicts; every other task
    is version 5's own. Texts that are too long fail as in 4.57.6; `summarize`, `answer` and `translate` handle them.

    Args:
        task: its name.
        model: Hub id, folder, PEFT adapter folder, or a loaded model (which needs ``tokenizer``). There is no default.
        config: a config or where to find one, in place of the model's.
        tokenizer: a tokenizer or where to find one, in place of the model's.
        bug_compatible: for ``question-answering``. False makes scores comparable across the windows of a long text,
            and keeps the best score of identical answers; True is exactly 4.57.6, which scores each window separately
            and adds the scores of identical answers
            (`llmkit.compat.question_answering.QuestionAnsweringPipeline` has the details).
        **options: ``device``, ``device_map``, ``dtype`` (or ``torch_dtype``), ``revision``, ``trust_remote_code``,
            ``model_kwargs``, ``batch_size``, ``num_workers``, ``pipeline_class``, and any argument of a pipeline call,
            as its default.

    Raises:
        LlmkitError: one line that ends in what to do; also for an option that would have no effect.
    """
    from llmkit.compat.pipeline import build_pipeline as build

    return build(task, model, config, tokenizer, bug_compatible=bug_compatible, **options)


@with_settings(LoadSettings)
def next_tokens(
    text: str, model: str | None = None, *, top: int = 10, **options: Unpack[LoadOptions]
) -> list[NextToken]:
    """The most probable next tokens after a text, with their probabilities."""
    return next_tokens_with(split_options({**options, "model": model}, LoadSettings)[0], text, top=top)[1]


def next_tokens_with(settings: LoadSettings, text: str, *, top: int) -> tuple[Loaded, list[NextToken]]:
    """`next_tokens` from validated settings; also returns the model."""
    if not text:
        raise InputError("the text is empty", "pass some text to continue", code="empty_input")
    if top < 1:
        raise UsageError(f"top={top} is out of range", "use 1 or more", code="invalid_value")
    loaded = load_for("text-generation", settings, text)
    from llmkit.inference.next_tokens import next_tokens as distribution

    return loaded, distribution(loaded, text, top=top)


def load_for(task: str, settings: LoadSettings, text: str) -> Loaded:
    """The model for a text of a task; that of the last call stays loaded."""
    with with_default_model(settings, find_task(task)) as chosen:
        return _load_model(chosen, task, text)


@with_settings(PromptOptions, LoadSettings, GenerationSettings)
def evaluate(
    recipe: str | Path | None = None,
    *,
    task: str | None = None,
    model: str | None = None,
    data: Any = None,
    columns: Mapping[str, str] | None = None,
    encoding: str | None = None,
    header: bool | None = None,
    delimiter: str | None = None,
    shots: int | Sequence[int] | None = None,
    baseline: str | None = None,
    overrides: Sequence[str] = (),
    metrics: Mapping[str, Any] | Sequence[str] = (),
    output: str | Path | None = None,
    max_rows: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    **options: Unpack[PromptedEvaluation],
) -> Evaluation:
    """Evaluate a model against reference answers; with a recipe, its tuned model on its validation rows.

    Of a mixture all tasks are evaluated (``Evaluation.by_task``) unless ``task`` names one. A conversation is evaluated
    by its last reply.

    Args:
        recipe: the folder of a run, a recipe file, or the name of a built-in recipe.
        task: without a recipe, as in `load`.
        model: with a recipe, replaces its tuned model.
        data: rows with reference answers: a path, a `datasets.Dataset`, a data frame, an Arrow table, or an iterable of
            mappings; with a recipe, they replace its validation rows.
        columns: the rows' column for each field of the task, such as ``{"document": "body"}``.
        encoding: of the rows, if not UTF-8.
        header: CSV and TSV: whether the first row names the columns; detected by default.
        delimiter: CSV and TSV: what separates the fields; detected by default.
        shots: the number of examples in each prompt, or several such as ``[0, 1, 4]``, each of which is compared with
            the first (``Evaluation.by_shots``); by default all examples.
        baseline: another model, compared by a paired bootstrap test on the same rows.
        overrides: changes to the recipe, such as ``settings.target=de``.
        metrics: additional metrics: built-in ones such as ``rouge-stemmed`` or ``bertscore,lang=en``, or scripts of the
            package evaluate; or such metrics, loaded, by name.
        output: folder for ``results.jsonl`` (each row with references, prediction and scores) and ``metrics.json``;
            by default ``evaluation/MODEL-on-DATA``.
        resume: continue an interrupted evaluation in its folder.
        overwrite: replace an earlier evaluation in the folder.
        progress: show bars in a terminal or a notebook.
        **options: the fields of `PromptOptions` (by default as the recipe has them; ``examples`` may be rows, or a file
            in the layout of ``data``), `LoadSettings` and `GenerationSettings`, and the task's own; greedy unless
            sampling options are set.

    Raises:
        LlmkitError: one line that ends in what to do.
    """
    from llmkit.training.evaluation_run import run_evaluation
    from llmkit.training.evaluation_spec import resolve_evaluation
    from llmkit.training.python_data import evaluation_data

    classes: list[Any] = [PromptOptions, *(each.settings_class for each in TASKS.values())]
    of_tasks = {item.name for each in classes for item in setting_fields(each)}
    own = {name: value for name, value in options.items() if name in of_tasks}
    general = {name: value for name, value in options.items() if name not in of_tasks}
    load_settings, settings = split_options({**general, "model": model}, LoadSettings, GenerationSettings)
    specs = resolve_evaluation(
        None if recipe is None else str(recipe),
        task,
        None if data is None else evaluation_data(data),
        load_settings,
        overrides,
        columns=columns,
        encoding=encoding,
        header=header,
        delimiter=delimiter,
        options=own,
    )
    with nullcontext() if progress else hidden():
        result = run_evaluation(
            specs,
            settings,
            None if output is None else Path(output),
            baseline=baseline,
            shots=[] if shots is None else [shots] if isinstance(shots, int) else list(shots),
            metrics=metrics,
            max_rows=max_rows,
            resume=resume,
            overwrite=overwrite,
        )
    assert result is not None  # this is the only process
    return result
