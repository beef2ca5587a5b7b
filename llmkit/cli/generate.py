"""``llmkit generate`` and ``llmkit next``."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkit.config.settings import GenerationSettings, LoadSettings
from llmkit.log import log

if TYPE_CHECKING:
    from llmkit.inference.output import Output
    from llmkit.inference.pipeline import Pipeline

__all__ = ["generate", "next_"]

TextArgument = Annotated[
    str | None, typer.Argument(metavar="TEXT|FILE|-", help="The text, a file, or - for standard input.")
]
LiteralText = Annotated[str | None, typer.Option("--text", help="The text, also if a file has that name.")]
Encoding = Annotated[str | None, typer.Option(help="Encoding of the file or standard input, if not UTF-8.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def generate(
    argument: TextArgument = None,
    text: LiteralText = None,
    system: Annotated[str, typer.Option(help="System message; text in front on models without chat.")] = "",
    prefill: Annotated[str, typer.Option(help="Begin the output with this; it is not repeated.")] = "",
    examples: Annotated[Path | None, typer.Option(help="Few-shot rows: prompt and completion.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text itself, without the chat template.")] = False,
    as_json: AsJson = False,
    encoding: Encoding = None,
    *,
    generation: GenerationSettings,
    load: LoadSettings,
) -> None:
    """Answer a prompt, or continue a text with --raw.

    Settings that are not given come from the model's own generation_config.json; without one,
    decoding is greedy and 256 tokens long at most.
    """
    from llmkit.api import build_pipeline, make_wording
    from llmkit.data.text import read_text
    from llmkit.tasks import get_task

    prompt = read_text(argument, text, encoding)
    task = get_task("generate")
    task.validate({task.input_column: prompt})
    wording = make_wording(system, prefill, examples or (), raw=raw)
    pipeline = build_pipeline(task.name, load, generation, wording, text=prompt)
    started = time.perf_counter()
    whole = as_json or generation.num_return_sequences > 1
    output = pipeline(prompt, on_text=None if whole else _write)
    if as_json:
        typer.echo(json.dumps(output.to_dict(), ensure_ascii=False))
    elif output.alternatives:
        typer.echo("\n---\n".join(each.text for each in (output, *output.alternatives)))
    else:
        typer.echo()
    _report(output, time.perf_counter() - started, pipeline)


def _write(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()


def _report(output: Output, seconds: float, pipeline: Pipeline) -> None:
    """Speed and the reason for stopping; a cut answer must not look like a finished one."""
    tokens = sum(each.usage.completion_tokens for each in (output, *output.alternatives))
    log.info("%d tokens in %.1f s (%.1f tokens/s)", tokens, seconds, tokens / seconds)
    if any(each.finish_reason == "length" for each in (output, *output.alternatives)):
        if output.usage.completion_tokens >= pipeline.max_new_tokens or output.alternatives:
            log.warning("stopped at %d new tokens; more with --max-new-tokens", pipeline.max_new_tokens)
        else:
            log.warning("stopped because the model's context of %d tokens is full", pipeline.loaded.context.tokens)


def next_(
    argument: TextArgument = None,
    text: LiteralText = None,
    top: Annotated[int, typer.Option(help="How many tokens to show.")] = 10,
    as_json: AsJson = False,
    encoding: Encoding = None,
    *,
    load: LoadSettings,
) -> None:
    """Show the likeliest next tokens.

    The text is continued as it stands, without the chat template; probabilities are over the whole vocabulary.
    """
    from llmkit.api import next_tokens_with
    from llmkit.data.text import read_text

    loaded, tokens = next_tokens_with(load, read_text(argument, text, encoding), top=top)
    if as_json:
        result = {
            "schema_version": 1,
            "model": loaded.source.name,
            "commit": loaded.source.named_commit,
            "head": str(loaded.head),
            "tokens": [token.to_dict() for token in tokens],
        }
        typer.echo(json.dumps(result, ensure_ascii=False))
        return
    for token in tokens:
        typer.echo(f"{token.probability:8.2%}  {token.text!r}")
