"""``llmkit next``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from llmkit.cli.output import AsJson, Encoding, LiteralText, TextArgument
from llmkit.cli.streams import echo
from llmkit.config.settings import LoadSettings

__all__ = ["next_"]


def next_(
    argument: TextArgument = None,
    text: LiteralText = None,
    top: Annotated[int, typer.Option(help="Show this many tokens.")] = 10,
    as_json: AsJson = False,
    encoding: Encoding = None,
    *,
    load: LoadSettings,
) -> None:
    """Show the most probable next tokens.

    The text is continued as it is, without a chat template; probabilities are over the whole vocabulary.

    Examples:
        llmkit next "The capital of France is" --top 5
    """
    from llmkit.api import next_tokens_with
    from llmkit.cli.text import read_text

    loaded, tokens = next_tokens_with(load, read_text(argument, text, encoding), top=top)
    if as_json:
        result = {
            "schema_version": 1,
            "model": loaded.source.name,
            "commit": loaded.source.named_commit,
            "head": str(loaded.head),
            "tokens": [token.to_dict() for token in tokens],
        }
        echo(json.dumps(result, ensure_ascii=False))
        return
    for token in tokens:
        echo(f"{token.probability:8.2%}  {token.text!r}")
