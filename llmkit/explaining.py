"""The functions of `import llmkit` that show what a model does with a text: explain_steps, explain_attention.

Thin: the work is done in `llmkit.explanation`; ``llmkit explain`` calls these.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Unpack

from llmkit.api import PromptedOptions, build_pipeline, load_for
from llmkit.config.declaration import split_options
from llmkit.config.settings import GenerationSettings, LoadOptions, LoadSettings
from llmkit.config.signatures import with_settings
from llmkit.data.prompt_files import prompt_values
from llmkit.errors import InputError, UsageError
from llmkit.tasks import Example, PromptOptions, QuestionContext, Text, find_task

if TYPE_CHECKING:
    from llmkit.explanation.attention import AttentionKind, AttentionWeights
    from llmkit.explanation.steps import Steps
    from llmkit.models.load import Loaded

__all__ = ["attention_with", "explain_attention", "explain_steps", "steps_with"]

_WRITES, _EXTRACTS = "text-generation", "question-answering"


@with_settings(PromptOptions, LoadSettings, GenerationSettings)
def explain_steps(prompt: str, model: str | None = None, *, top: int = 5, **options: Unpack[PromptedOptions]) -> Steps:
    """Generate, and keep the distribution of each token: the ``top`` most probable ones, and the entropy.

    Probabilities are before temperature, top_k and top_p, reasoning included. See `load` for the options. The result
    has the ``output``, ``to_dict()`` and ``to_html()``; a notebook shows the page.
    """
    given = {**options, **prompt_values(options, find_task(_WRITES)()), "model": model}
    load, settings, prompt_options = split_options(given, LoadSettings, GenerationSettings, PromptOptions)
    return steps_with(load, settings, prompt_options, prompt, top=top)


def steps_with(
    load: LoadSettings, settings: GenerationSettings, options: PromptOptions, prompt: str, *, top: int
) -> Steps:
    """`explain_steps` from validated settings."""
    if settings.logprobs is not None:
        raise UsageError("`logprobs` has no effect", "say with `top` how many are shown", code="no_effect")
    task = find_task(_WRITES)()
    row = task.to_row(prompt)
    task.validate(row)
    pipeline = build_pipeline(task, load, replace(settings, logprobs=top), options, row=row)
    from llmkit.explanation.steps import Steps

    return Steps(prompt, pipeline(row))


@with_settings(LoadSettings)
def explain_attention(
    text: str,
    model: str | None = None,
    *,
    question: str | None = None,
    target: str | None = None,
    **options: Unpack[LoadOptions],
) -> dict[AttentionKind, AttentionWeights]:
    """The attention weights of a model while it reads a text, without a chat template.

    Args:
        question: for an extractive model, which reads it with the text.
        target: what an encoder-decoder's output is, by default what it generates; for a causal model, what follows.

    Returns:
        By kind: ``self``, or ``encoder``, ``decoder`` and ``cross`` of an encoder-decoder; with a question also
        ``question``, from it to the text. Each has ``weights`` ``[layers, heads, queries, keys]``, ``to_html()`` and
        ``draw(path)``; a notebook shows the page.

    Raises:
        LlmkitError: one line that ends in what to do; also if the model computes no weights for each pair of tokens.
    """
    load = split_options({**options, "model": model}, LoadSettings)[0]
    return attention_with(load, text, question=question, target=target)


def attention_with(
    load: LoadSettings, text: str, *, question: str | None = None, target: str | None = None
) -> dict[AttentionKind, AttentionWeights]:
    """`explain_attention` from validated settings."""
    if not text:
        raise InputError("the text is empty", "pass some text", code="empty_input")
    if question is not None and target is not None:
        raise UsageError("`target` has no effect beside a question", "leave one of them out", code="no_effect")
    loaded = load_for(_WRITES if question is None else _EXTRACTS, load, text)
    from llmkit.explanation.attention import attention_weights

    return attention_weights(loaded, _example(loaded, text, question, target))


def _example(loaded: Loaded, text: str, question: str | None, target: str | None) -> Example:
    from llmkit.engines.transformers import TransformersEngine
    from llmkit.heads import head_of
    from llmkit.inference.pipeline import Pipeline

    head = head_of(loaded.head)
    if question is not None:
        if head.writes:
            raise UsageError(
                f"{loaded.source.name} reads no question beside a text",
                "put the question into the text, or use an extractive model",
                code="not_supported",
            )
        return Example(QuestionContext(question, text), "")
    if target is None and head.target_apart:
        task = find_task(_WRITES)()
        settings = GenerationSettings(temperature=0, num_beams=1)
        target = Pipeline(task, TransformersEngine(loaded), settings, PromptOptions(raw=True))(text).text
    return Example(Text(text), target or "")
