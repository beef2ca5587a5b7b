"""``llmkit explain``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llmkit.cli.display import display_width, padded
from llmkit.cli.output import AsJson, Encoding, LiteralText, TextArgument
from llmkit.cli.streams import echo
from llmkit.config.settings import GenerationSettings, LoadSettings
from llmkit.errors import UsageError
from llmkit.files import write_whole
from llmkit.log import log, printable
from llmkit.tasks import PromptOptions

if TYPE_CHECKING:
    from llmkit.explanation.attention import AttentionWeights

__all__ = ["explain"]

_Kind = Literal["cross", "question", "self", "encoder", "decoder"]
_ATTENTION = "Attention"
_TOP = 5


def _attention_option(help: str, metavar: str | None = None, *, default: str = "") -> Any:  # noqa: A002
    return typer.Option(help=help, metavar=metavar, rich_help_panel=_ATTENTION, show_default=default or False)


def explain(
    argument: TextArgument = None,
    text: LiteralText = None,
    steps: Annotated[
        bool, typer.Option("--steps", help="Show a generation step by step. This is the default.")
    ] = False,
    attention: Annotated[
        bool,
        typer.Option(
            "--attention",
            help="Show which tokens attend to which, instead of a generation step by step.",
            rich_help_panel=_ATTENTION,
        ),
    ] = False,
    kind: Annotated[
        _Kind | None,
        _attention_option(
            "Show this attention: of the output to the input, of the question to the text, of a text to itself, of the"
            " encoder, or of the decoder.",
            default="the first that the model has",
        ),
    ] = None,
    layer: Annotated[int | None, _attention_option("Show this layer, counted from 0.", "N", default="the mean")] = None,
    attention_head: Annotated[
        int | None, _attention_option("Show this head, counted from 0.", "N", default="the mean")
    ] = None,
    question: Annotated[
        str | None, _attention_option("Read this question with the text, by an extractive model.", "TEXT")
    ] = None,
    target: Annotated[
        str | None,
        _attention_option("Read this as the output.", "TEXT", default="what an encoder-decoder generates"),
    ] = None,
    top: Annotated[
        int | None, typer.Option(help="Show this many tokens of each step.", metavar="N", show_default=str(_TOP))
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Write a page (.html), JSON (.json) or, of attention, a picture (.png, .svg) to this file.",
            metavar="FILE",
            rich_help_panel="Output",
        ),
    ] = None,
    as_json: AsJson = False,
    encoding: Encoding = None,
    *,
    prompt_options: PromptOptions,
    generation: GenerationSettings,
    load: LoadSettings,
) -> None:
    """Show how a model arrives at its output: the choices at each step, or what its tokens attend to.

    By default generates an answer and shows the probabilities of each token, and the entropy in bits. With --attention
    shows the weights of one kind of attention, by layer and head; the text is read as it is, without a chat template.

    Examples:
        llmkit explain "The capital of France is" --max-new-tokens 8
        llmkit explain "Name a colour." --output steps.html
        llmkit explain "The animal did not cross the street because it was tired." --attention --output attention.html
        llmkit explain notes.txt --attention --question "Who wrote it?" --layer -1 --output attention.png
    """
    from llmkit.cli.text import read_text

    if steps and attention:
        raise UsageError("--steps and --attention are mutually exclusive", "give one of them", code="no_effect")
    shown = {"kind": kind, "layer": layer, "attention_head": attention_head, "question": question, "target": target}
    if attention:
        _refuse("without effect with --attention", {"top": top})
        if generation != GenerationSettings() or prompt_options != PromptOptions():
            raise UsageError(
                "options of a prompt or of its generation have no effect with --attention",
                "leave them out",
                code="no_effect",
            )
        suffix = _suffix(output, (".html", ".json", ".png", ".svg"))
        from llmkit.explaining import attention_with

        kinds = attention_with(load, read_text(argument, text, encoding), question=question, target=target)
        _show_attention(_of_kind(kinds, kind), layer, attention_head, output, suffix, as_json=as_json)
        return
    _refuse("for --attention", shown)
    suffix = _suffix(output, (".html", ".json"))
    if generation.num_return_sequences > 1:
        raise UsageError("one output is shown step by step", "leave out `num_return_sequences`", code="no_effect")
    from llmkit.explaining import steps_with

    given = read_text(argument, text, encoding, takes_instruction=True)
    found = steps_with(load, generation, prompt_options, given, top=_TOP if top is None else top)
    if as_json:
        echo(json.dumps(found.to_dict(), ensure_ascii=False))
    else:
        _table(("step", "token", "probability", "entropy", "most probable"), found.lines())
    if output is not None:
        _write(output, found.to_html() if suffix == ".html" else _pretty(found.to_dict()))
    for note in found.output.notes:
        log.warning("%s", note.text, extra={"code": note.code})


def _show_attention(
    found: AttentionWeights, layer: int | None, head: int | None, output: Path | None, suffix: str, *, as_json: bool
) -> None:
    if as_json:
        echo(json.dumps(found.to_dict(layer, head), ensure_ascii=False))
    else:
        _table(("token", "attends to"), found.largest(layer, head))
    if output is None:
        return
    if suffix in (".png", ".svg"):
        found.draw(output, layer, head)
        log.info("wrote %s", output)
    else:
        _write(output, found.to_html(layer, head) if suffix == ".html" else _pretty(found.to_dict(layer, head)))


def _of_kind(found: Mapping[Any, AttentionWeights], kind: str | None) -> AttentionWeights:
    if kind is not None and kind not in found:
        raise UsageError(
            f"the model has no attention of kind {kind}", f"name one of: {', '.join(found)}", code="not_supported"
        )
    return next(iter(found.values())) if kind is None else found[kind]


def _refuse(why: str, given: Mapping[str, object]) -> None:
    if used := [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]:
        raise UsageError(f"{', '.join(used)}: {why}", "leave it out", code="no_effect")


def _suffix(output: Path | None, known: Sequence[str]) -> str:
    if output is None or (suffix := output.suffix.lower()) in known:
        return "" if output is None else suffix
    raise UsageError(
        f"{output} has no suffix that names a format here", f"use one of {', '.join(known)}", code="unsupported_format"
    )


def _pretty(content: Mapping[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def _write(path: Path, content: str) -> None:
    write_whole(path, content)
    log.info("wrote %s", path)


def _table(names: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    """Print a table; its last column may be of any width."""
    cells = [names, *([printable(cell) for cell in line] for line in lines)]
    widths = [max(display_width(line[column]) for line in cells) for column in range(len(names) - 1)]
    for line in cells:
        *others, last = line
        echo("  ".join((*map(padded, others, widths), last)).rstrip())
