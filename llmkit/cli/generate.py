"""``llmkit generate`` and ``llmkit next``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from llmkit.cli.output import AsJson, Encoding, Examples, LiteralText, TextArgument, show
from llmkit.cli.rows import answer_rows
from llmkit.config.settings import GenerationSettings, LoadSettings, RowSettings

__all__ = ["generate", "next_"]


def generate(
    argument: TextArgument = None,
    text: LiteralText = None,
    system: Annotated[str, typer.Option(help="System message; text in front on models without chat.")] = "",
    prefill: Annotated[str, typer.Option(help="Begin the output with this; it is not repeated.")] = "",
    examples: Examples = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text itself, without the chat template.")] = False,
    as_json: AsJson = False,
    encoding: Encoding = None,
    *,
    rows: RowSettings,
    generation: GenerationSettings,
    load: LoadSettings,
) -> None:
    """Answer a prompt, or continue a text with --raw; with --input, a file of prompts.

    Settings that are not given come from the model's own generation_config.json; without one,
    decoding is greedy and 256 tokens long at most.
    """
    from llmkit.api import build_pipeline, make_wording
    from llmkit.data.text import read_text
    from llmkit.tasks import TextGeneration

    task, wording = TextGeneration(), make_wording(system, prefill, examples or (), raw=raw)
    if rows.input is not None:
        instead = {"TEXT": argument, "--text": text, "--json": as_json}
        answer_rows(task, rows, load, generation, wording, encoding=encoding, instead=instead)
        return
    prompt = read_text(argument, text, encoding)
    task.validate({"prompt": prompt})
    show(build_pipeline(task, load, generation, wording, text=prompt), prompt, as_json=as_json)


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
