"""Turns the settings classes into Typer options, so that each is declared once, with its default and help.

A command takes ``load: LoadSettings`` or ``generation: GenerationSettings`` as if they were arguments; here each is
replaced by one option a field.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer
from typer._click import Command
from typer.core import TyperOption

from llmkit.cli.completion import completer
from llmkit.cli.help import Entry, HelpCommand
from llmkit.config.commands import quoted
from llmkit.config.declaration import Checked, nested_kind, setting_fields
from llmkit.config.settings import GenerationSettings, LoadSettings, column_pairs
from llmkit.errors import LlmkitError
from llmkit.tasks import TASKS, PromptOptions, Task

__all__ = ["Stopped", "command", "declared", "flags", "named_options", "option_parameters", "remedy", "worded"]


@dataclass
class _Flags:
    """Options of every command that concern the program, not the task."""

    debug: bool = False
    quiet: bool = False
    as_json: bool | None = None
    """Whether the command prints JSON; None if its options could not be parsed."""
    arguments: list[str] = field(default_factory=list)
    """Arguments of the command line, to run it again."""
    options: dict[str, str] = field(default_factory=dict)
    """The command's names for settings: options, or arguments without dashes."""


flags = _Flags()

_SETTING = re.compile(r"`(\w+)(?:=([^`]*))?`")


def worded(message: str) -> str:
    """A message as the command line expects it.

    Settings are spelled as options, arguments or recipe keys, and paths of the command line that need it are quoted.
    """
    message = _SETTING.sub(lambda found: _spelled(found[1], found[2]) or found[0], message)
    for path in _unusual_paths(flags.arguments):
        # Not inside a longer path, or quoted already. What follows is part of the path up to a space.
        message = re.sub(rf"(?<![^\s(=]){re.escape(path)}(?:/[^\s:;,'\"]+)?", lambda found: quoted(found[0]), message)
    return message


def _unusual_paths(arguments: Sequence[str]) -> list[str]:
    """Paths among arguments, and in their values, that a message cannot contain without quotes; longest first."""
    values = {part for each in arguments for part in (each, each.partition("=")[2]) if part and part != quoted(part)}
    paths = {part for part in values if len(part) <= _LONGEST and part.isprintable() and _is_path(part)}
    return sorted(paths, key=len, reverse=True)


def _is_path(text: str) -> bool:
    return "/" in text or _SUFFIX.search(text) is not None or Path(text).exists()


_LONGEST = 250
_SUFFIX = re.compile(r"\.\w{1,6}$")


def remedy(error: LlmkitError) -> str:
    """The fixes of an error, without those whose setting the command does not have."""
    known = [fix for fix in error.fixes if all(_spelled(*each) for each in _SETTING.findall(fix))]
    return worded(", or ".join(known or error.fixes))


def _spelled(name: str, value: str | None) -> str:
    """A setting, optionally with a value, as the command spells it; empty if the command does not have it."""
    if option := flags.options.get(name):
        if not option.startswith("-"):
            return value or option
        if value == "False":
            return option.replace("--", "--no-", 1)
        return f"{option} {quoted(value)}" if value and value != "True" else option
    if key := _keys().get(name) if "overrides" in flags.options else None:
        text = value.lower() if value in ("True", "False") else value
        return f"{flags.options['overrides']} {quoted(f'{key}={text}')}" if value else key
    return ""


def named_options(parameters: Sequence[Any]) -> dict[str, str]:
    """The options of a command, and its arguments by their metavars, by the settings that they stand for."""
    names = {
        each.name: each.opts[0] if isinstance(each, TyperOption) else each.metavar or each.name.upper()
        for each in parameters
    }
    # Its argument is the model.
    return ({"model": names["adapter"]} if "adapter" in names else {}) | names | {"__cause__": "--debug"}


def _keys() -> dict[str, str]:
    """Recipe keys by setting."""
    part = "validation" if "data" in flags.options else "train"
    sections: list[tuple[str, type[Any]]] = [("settings", task.settings_class) for task in TASKS.values()]
    sections += [("model", LoadSettings), ("prompt", PromptOptions)]
    data = {name: f"data.{part}.{name}" for name in ("encoding", "header", "delimiter")}
    return {**data, "model": "model.name_or_path"} | {
        item.name: f"{section}.{item.name}"
        for section, settings in sections
        for item in setting_fields(settings)
        if item.name != "model" and not item.metadata["inference_only"]
    }


class Stopped(SystemExit):
    """The run was stopped from outside: Ctrl+C, SIGTERM, or a closed pipe.

    A separate class, because Typer handles KeyboardInterrupt and BrokenPipeError with its own exit codes. A subclass of
    SystemExit, because asyncio, which reads the terminal, swallows other exceptions raised in a callback.
    """

    code: int


def _is_settings(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Checked)


def declared(settings: type[Any], name: str, task: type[Task] | None = None, **own: Any) -> Any:
    """The option of one setting, for a command that does not use the others. ``own`` overrides its metadata."""
    item = next(item for item in fields(settings) if item.name == name)
    about = item.metadata
    names = [f"--{about['option'] or name.replace('_', '-')}", *([f"-{about['short']}"] if about["short"] else [])]
    if item.type == "bool | None":
        names = [f"{names[0]}/--no-{names[0][2:]}"]
    shown = (task.shown_defaults().get(name) if task else None) or about["shown_default"]
    metadata = {
        "help": about["help"],
        "metavar": about["metavar"],
        "rich_help_panel": about["group"],
        "show_default": shown or item.default not in (None, False, "", ()),
        "autocompletion": completer(name),
    }
    return typer.Option(*names, **metadata | own)


_hints: Callable[[Any], dict[str, Any]] = functools.cache(functools.partial(get_type_hints, include_extras=True))


def option_parameters(settings: type[Any], task: type[Task] | None = None) -> Iterator[inspect.Parameter]:
    """An option for each setting, or each that the task's command has."""
    hints = _hints(settings)
    for item in setting_fields(settings):
        if task and settings is PromptOptions and item.name not in task.command_prompt_options:
            continue
        kind, default = hints[item.name], item.default
        if kind == tuple[str, ...]:
            kind, default = list[str], []
        elif nested_kind(kind):  # a file
            kind, default = str | None, None
        own = {}
        if task and item.name == "on_overflow":
            kind, own = Literal[task.allowed_overflow] | None, {"help": _overflow_help(task)}
        option = declared(settings, item.name, task, **own)
        yield _parameter(item.name, Annotated[kind, option], default)


_OVERFLOW = {"error": "refuse it", "truncate": "truncate it", "chunk": "process it in chunks"}


def _overflow_help(task: type[Task]) -> str:
    """What the task can do with input that is too long."""
    *others, last = (_OVERFLOW[each] for each in task.allowed_overflow)
    either = f"{', '.join(others)}{',' * (len(others) > 1)} or {last}"
    return f"What to do with input longer than the model's context: {either}."


def _complete(name: str, hint: Any) -> None:
    """Let the shell complete an option or argument, if its values are known."""
    for each in getattr(hint, "__metadata__", ()):
        each.autocompletion = completer(name)


def _is_given(invocation: typer.Context, name: str) -> bool:
    source = invocation.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _program_option(*names: str, help: str, metavar: str | None = None) -> Any:  # noqa: A002
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel="Program")


def _program_options() -> list[inspect.Parameter]:
    return [
        _parameter(
            "quiet", Annotated[bool, _program_option("--quiet", "-q", help="Print results and errors only.")], False
        ),
        _parameter(
            "verbose",
            Annotated[bool, _program_option("--verbose", "-v", help="Log details too, with time stamps.")],
            False,
        ),
        _parameter(
            "log_file",
            Annotated[
                Path | None,
                _program_option("--log-file", metavar="FILE", help="Append the log, with time stamps, to this file."),
            ],
            None,
        ),
        _parameter("debug", Annotated[bool, _program_option("--debug", help="Show tracebacks of errors.")], False),
    ]


def _offline(values: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Disable the network for the whole command if requested."""
    if not (values.get("offline") or any(getattr(value, "offline", False) for value in values.values())):
        return nullcontext()
    from llmkit.hub.reachability import offline

    return offline()


def command(
    name: str, function: Callable[..., None], heading: str = "Commands", task: type[Task] | None = None
) -> Entry:
    """The command of a function.

    Args:
        name: as it is typed.
        function: what it runs. A parameter annotated with a settings class becomes an option for each setting.
        heading: in the list of commands.
        task: whose defaults the help shows.
    """
    text = inspect.cleandoc(function.__doc__ or "")
    return Entry(name, text, heading, lambda: _build(name, function, text, task))


def _made(settings: type[Any], values: dict[str, Any], task: type[Task] | None, columns: Sequence[str]) -> Any:
    """The settings from the values of options."""
    if settings in (PromptOptions, GenerationSettings):
        from llmkit.data.prompt_files import prompt_values

        values = prompt_values(values, task() if task else None, column_pairs(columns))
    return settings(**values)


def _build(name: str, function: Callable[..., None], text: str, task: type[Task] | None) -> Command:
    hints = get_type_hints(function, include_extras=True)
    parameters: list[inspect.Parameter] = []
    bundles: dict[str, type[Any]] = {}
    for parameter in inspect.signature(function).parameters.values():
        hint = hints[parameter.name]
        if _is_settings(hint):
            bundles[parameter.name] = hint
            parameters += option_parameters(hint, task)
        else:
            parameters.append(parameter.replace(annotation=hint, kind=inspect.Parameter.KEYWORD_ONLY))
            _complete(parameter.name, hint)
    parameters += _program_options()
    parameters.append(_parameter("invocation", typer.Context, inspect.Parameter.empty))

    def run(invocation: typer.Context, **values: Any) -> None:
        from llmkit.cli.logs import start_logging

        flags.debug, flags.quiet = values.pop("debug"), values.pop("quiet")
        flags.options, flags.as_json = named_options(invocation.command.params), values.get("as_json", False)
        start_logging(verbose=values.pop("verbose"), log_file=values.pop("log_file"))
        columns = values.get("column") or []
        for bundle, settings in bundles.items():
            named = {item.name: values.pop(item.name) for item in setting_fields(settings) if item.name in values}
            named = {name: value for name, value in named.items() if _is_given(invocation, name)}
            named = {key: tuple(value) if isinstance(value, list) else value for key, value in named.items()}
            values[bundle] = _made(settings, named, task, columns)
        try:
            with _offline(values):
                function(**values)
        except KeyboardInterrupt as error:
            raise Stopped(130) from error
        except BrokenPipeError as error:
            raise Stopped(0) from error

    run.__name__ = function.__name__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(name, cls=HelpCommand, help=text)(run)
    return typer.main.get_command(app)
