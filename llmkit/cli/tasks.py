"""The commands of the tasks, generated from the arguments and options that each task declares."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmkit.cli.chat import CHAT_OPTIONS, ChatOptions, converse
from llmkit.cli.output import AsJson, Encoding, LiteralText, show
from llmkit.cli.rows import answer_rows
from llmkit.cli.streams import echo
from llmkit.config.settings import GenerationSettings, LoadSettings, RowSettings
from llmkit.errors import InputError, UsageError
from llmkit.log import log
from llmkit.tasks import PromptOptions

if TYPE_CHECKING:
    from llmkit.tasks import Row, Task

__all__ = ["task_command"]


def task_command(task: type[Task]) -> Callable[..., None]:
    """The function of a task's command, for `llmkit.cli.options.command`."""

    def run(
        *,
        settings: Any,
        prompt_options: PromptOptions,
        rows: RowSettings,
        generation: GenerationSettings,
        load: LoadSettings,
        as_json: bool,
        encoding: str | None,
        **arguments: Any,
    ) -> None:
        from llmkit.api import build_pipeline

        made = task(settings)
        chat = ChatOptions(**{name: arguments.pop(name) for name in CHAT_OPTIONS}) if task.converses else ChatOptions()
        if rows.input:
            chat.refuse()
            instead = {_label(task, name): value for name, value in arguments.items()} | {"--json": as_json}
            answer_rows(made, rows, load, generation, prompt_options, encoding=encoding, instead=instead)
            return
        if task.converses and arguments["argument"] is None and arguments["text"] is None and sys.stdin.isatty():
            one_reply = {"--json": as_json, "--encoding": encoding}
            converse(made, prompt_options, generation, load, chat, one_reply=one_reply)
            return
        chat.refuse()
        row = made.to_row(_row(task, arguments, encoding))
        made.validate(row)
        pipeline = build_pipeline(made, load, generation, prompt_options, row=row)
        output = show(pipeline, row, as_json=as_json, reasoning=task.converses)
        for line in () if as_json else made.further_lines(output):
            echo(line)
        for remark in made.remarks(output, row, pipeline.settings):
            log.info("%s", remark)

    parameters = list(_parameters(task))
    run.__name__, run.__doc__ = task.verb, inspect.cleandoc(task.help)
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def _parameters(task: type[Task]) -> Iterator[inspect.Parameter]:
    def parameter(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)

    *others, last = task.columns
    help_of = task.argument_help
    for name in others:
        argument = typer.Argument(metavar=name.upper(), help=help_of.get(name))
        yield parameter(name, Annotated[str | None, argument])
    if others:
        argument = typer.Argument(metavar=f"{last.upper()}|FILE|-", help=help_of.get(last))
        yield parameter("argument", Annotated[str | None, argument])
        option = typer.Option(
            f"--{last}", metavar="FILE|TEXT", help="The same as the argument, by name.", rich_help_panel="Input"
        )
        yield parameter("option", Annotated[str | None, option])
        literal = typer.Option("--text", help=f"The {last}, also if a file has that name.", rich_help_panel="Input")
        yield parameter("text", Annotated[str | None, literal])
    else:
        argument = typer.Argument(metavar="TEXT|FILE|-", help="The text, a file, or - for standard input.")
        yield parameter("argument", Annotated[str | None, argument])
        yield parameter("text", LiteralText)
    yield parameter("prompt_options", PromptOptions, inspect.Parameter.empty)
    for name, annotation in CHAT_OPTIONS.items() if task.converses else ():
        yield parameter(name, annotation, None if name == "load_file" else False)
    yield parameter("as_json", AsJson, False)
    yield parameter("encoding", Encoding)
    for name, kind in (
        ("settings", task.settings_class),
        ("rows", RowSettings),
        ("generation", GenerationSettings),
        ("load", LoadSettings),
    ):
        yield parameter(name, kind, inspect.Parameter.empty)


def _label(task: type[Task], name: str) -> str:
    """The user-visible name of a parameter."""
    *others, last = task.columns
    names = {"argument": last.upper() if others else "TEXT", "option": f"--{last}", "text": "--text"}
    return names.get(name, name.upper())


def _row(task: type[Task], arguments: Mapping[str, Any], encoding: str | None) -> str | Row:
    """The row that the arguments are: a text, or all of the task's columns."""
    from llmkit.cli.text import read_text

    *others, last = task.columns
    argument, option, text = (arguments.get(name) for name in ("argument", "option", "text"))
    kind = {"takes_instruction": task.takes_instruction, "takes_document": task.takes_document, "is_row": not others}
    if not others:
        return read_text(argument, text, encoding, **kind)
    if missing := next((name for name in others if arguments[name] is None), None):
        raise UsageError(
            f"the {missing} is missing",
            f"give it first, then the {last}, or rows of both with --input",
            code="empty_input",
        )
    if argument is not None and option is not None:
        raise UsageError("the text is passed twice", f"leave out --{last} or the last argument")
    argument = option if argument is None else argument
    if argument is None and text is None and sys.stdin.isatty():
        raise InputError(
            f"the {last} is missing",
            f"give it after the {others[-1]}, with --{last} FILE, or pipe it in",
            code="empty_input",
        )
    return {name: arguments[name] for name in others} | {last: read_text(argument, text, encoding, **kind)}
