"""``llmkit summarize``, ``llmkit answer`` and ``llmkit translate``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from llmkit.cli.output import AsJson, Encoding, Examples, LiteralText, TextArgument, show
from llmkit.cli.rows import answer_rows
from llmkit.config.settings import (
    AnswerSettings,
    GenerationSettings,
    LoadSettings,
    RowSettings,
    SummarizationSettings,
    TranslationSettings,
)
from llmkit.errors import InputError, UsageError
from llmkit.log import log

if TYPE_CHECKING:
    from llmkit.inference.output import Output

__all__ = ["answer", "summarize", "translate"]


def summarize(
    argument: TextArgument = None,
    text: LiteralText = None,
    examples: Examples = None,
    as_json: AsJson = False,
    encoding: Encoding = None,
    *,
    summarization: SummarizationSettings,
    rows: RowSettings,
    generation: GenerationSettings,
    load: LoadSettings,
) -> None:
    """Summarize a text of any length.

    A text longer than the model reads is summarized in parts, divided between sentences, and then the summaries
    together. How much was read is said on standard error.
    """
    from llmkit.api import build_pipeline, make_wording
    from llmkit.data.text import read_text
    from llmkit.tasks import Summarization

    task, wording = Summarization(summarization), make_wording("", "", examples or (), raw=False)
    if rows.input is not None:
        instead = {"TEXT": argument, "--text": text, "--json": as_json}
        answer_rows(task, rows, load, generation, wording, encoding=encoding, instead=instead)
        return
    document = read_text(argument, text, encoding)
    task.validate({"document": document})
    pipeline = build_pipeline(task, load, generation, wording, text=document)
    output = show(pipeline, document, as_json=as_json)
    _cover(output, len(document), "first" if pipeline.settings.truncation_side == "left" else "last")


def _cover(output: Output, characters: int, cut: str) -> None:
    """What was read, so that nobody need wonder whether a part was dropped."""
    parts = len(output.chunks) or 1
    read = f"{output.usage.prompt_tokens} tokens in, prompts included"
    if output.truncated:
        log.info("covered: all but the %s %d tokens of the text (%s)", cut, output.truncated, read)
    else:
        log.info(
            "covered: all %d characters in %d %s (%s)", characters, parts, "chunk" if parts == 1 else "chunks", read
        )


def answer(
    question: Annotated[str | None, typer.Argument(metavar="QUESTION", help="What is asked.")] = None,
    argument: Annotated[
        str | None, typer.Argument(metavar="CONTEXT|FILE|-", help="The text that holds the answer, or its file.")
    ] = None,
    context: Annotated[str | None, typer.Option("--context", metavar="FILE|TEXT", help="The same, by name.")] = None,
    text: Annotated[str | None, typer.Option("--text", help="The context, also if a file has that name.")] = None,
    examples: Examples = None,
    as_json: AsJson = False,
    encoding: Encoding = None,
    *,
    answering: AnswerSettings,
    rows: RowSettings,
    generation: GenerationSettings,
    load: LoadSettings,
) -> None:
    """Answer a question from a text.

    Models like BERT mark the answer in the text, others write it. Prints an empty line where the text does not hold
    the answer.
    """
    from llmkit.api import build_pipeline, make_wording
    from llmkit.data.text import read_text
    from llmkit.tasks import QuestionAnswering

    task, wording = QuestionAnswering(answering), make_wording("", "", examples or (), raw=False)
    if rows.input is not None:
        instead = {"QUESTION": question, "--context": context, "--text": text, "--json": as_json}
        answer_rows(task, rows, load, generation, wording, encoding=encoding, instead=instead)
        return
    if question is None:
        raise UsageError("there is no question", "give it first, then the text, or rows of both with --input")
    if argument is not None and context is not None:
        raise UsageError("the text was given twice", "leave out --context or the second argument")
    argument = context if argument is None else argument
    if argument is None and text is None and sys.stdin.isatty():
        raise InputError(
            "there is no text to answer from", "give it after the question, with --context FILE, or pipe it in"
        )
    row = {"question": question, "context": read_text(argument, text, encoding)}
    task.validate(row)
    pipeline = build_pipeline(task, load, generation, wording, text=f"{question} {row['context']}")
    output = show(pipeline, row, as_json=as_json)
    if not as_json:
        _list_others(output)
    if output.answered is None:
        log.warning("so there is no verdict on whether the text holds the answer")
    elif not output.answered:
        log.warning("the text does not hold the answer")
    elif output.start is not None:
        score = "" if output.score is None else f", score {output.score:.3f}"
        log.info("the answer stands at characters %d to %d%s", output.start, output.end, score)
    else:
        log.warning("these words do not stand in the text; check the answer against it")


def _list_others(output: Output) -> None:
    """The further answers of a span model, one a line."""
    for other in output.alternatives if output.head == "span" and output.answered else ():
        typer.echo(other.text)


def translate(
    argument: TextArgument = None,
    text: LiteralText = None,
    examples: Examples = None,
    as_json: AsJson = False,
    encoding: Encoding = None,
    *,
    translation: TranslationSettings,
    rows: RowSettings,
    generation: GenerationSettings,
    load: LoadSettings,
) -> None:
    """Translate a text of any length.

    White space, Markdown, code, addresses and placeholders stay as they are.
    """
    from llmkit.api import build_pipeline, make_wording
    from llmkit.data.text import read_text
    from llmkit.tasks import Translation

    task, wording = Translation(translation), make_wording("", "", examples or (), raw=False)
    if rows.input is not None:
        instead = {"TEXT": argument, "--text": text, "--json": as_json}
        answer_rows(task, rows, load, generation, wording, encoding=encoding, instead=instead)
        return
    source = read_text(argument, text, encoding)
    task.validate({"source": source})
    output = show(build_pipeline(task, load, generation, wording, text=source), source, as_json=as_json)
    if output.chunks:
        log.info("translated: %d parts, %d tokens in", len(output.chunks), output.usage.prompt_tokens)
