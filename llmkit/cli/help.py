"""Groups of commands, and the layout of ``--help``: examples, then options by group with choices and defaults.

A command is built when it is first used, since building all of them takes longer than parsing a command line.
The group of an option or command is its ``rich_help_panel``, which Typer passes on; Rich itself is not used, since
importing it takes as long as the rest of ``--help``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from typer._click import Command, Context, HelpFormatter, Parameter
from typer.core import TyperCommand, TyperGroup, TyperOption

__all__ = ["GROUPS", "Entry", "HelpCommand", "HelpGroup", "examples", "summary"]

GROUPS = {
    "": "Options",
    "Input": "Input",
    "Recipe": "Instead of a recipe",
    "Task": "Settings of the task",
    "Attention": "Attention",
    "Prompt": "Prompt",
    "Output": "Output",
    "Model": "Model",
    "Rows": "Files of rows",
    "Server": "Address and access",
    "Limits": "Limits",
    "Sampling": "Sampling and beam search (defaults: the model's generation_config.json)",
    "Advanced": "Advanced",
    "Program": "Help and messages",
}
"""Headings of option groups in their order, by the group's name."""

_EXAMPLES = "\n\nExamples:\n"
_COLUMN = 26
"""Width of the column of options; a longer one has a line of its own."""
_KINDS = {"int": "N", "float": "X", "str": "TEXT", "path": "PATH"}


def summary(help_text: str) -> str:
    """The first paragraph of a command's help, on one line."""
    return " ".join(help_text.partition("\n\n")[0].split())


def examples(help_text: str) -> list[str]:
    """The example commands of a command's help."""
    lines = help_text.partition(_EXAMPLES)[2].splitlines()
    return [line.strip() for line in lines if line.strip()]


class HelpCommand(TyperCommand):
    """A command whose help begins with examples and lists its options in groups."""

    def format_help_text(self, ctx: Context, formatter: HelpFormatter) -> None:  # noqa: ARG002
        _text(self.help or "", formatter)

    def format_options(self, ctx: Context, formatter: HelpFormatter) -> None:
        _options(self.get_params(ctx), formatter)


@dataclass(frozen=True)
class Entry:
    """A command of a group, not built yet."""

    name: str
    help: str
    heading: str
    build: Callable[[], Command]


class _Commands(Mapping[str, Command]):
    """The commands of a group by name, each built when it is first looked up."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = {entry.name: entry for entry in entries}
        self._built: dict[str, Command] = {}

    def __getitem__(self, name: str) -> Command:
        if name not in self._built:
            self._built[name] = self.entries[name].build()
        return self._built[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


class HelpGroup(TyperGroup):
    """A group of commands, listed under headings with their complete summaries; without arguments it shows help."""

    commands: Any
    entries: Mapping[str, Entry]

    def fill(self, entries: Sequence[Entry]) -> HelpGroup:
        """Set the commands of the group."""
        self.commands = _Commands(entries)
        self.entries = self.commands.entries
        return self

    def format_help_text(self, ctx: Context, formatter: HelpFormatter) -> None:  # noqa: ARG002
        _text(self.help or "", formatter)

    def format_options(self, ctx: Context, formatter: HelpFormatter) -> None:
        self.format_commands(ctx, formatter)
        _options(self.get_params(ctx), formatter)

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:  # noqa: ARG002
        width = max(map(len, self.entries))
        for heading in dict.fromkeys(entry.heading for entry in self.entries.values()):
            shown = [entry for entry in self.entries.values() if entry.heading == heading]
            with formatter.section(heading):
                formatter.write_dl([(f"{entry.name:{width}}", summary(entry.help)) for entry in shown])

    def format_epilog(self, ctx: Context, formatter: HelpFormatter) -> None:
        formatter.write_paragraph()
        formatter.write_text(f"'{ctx.command_path} COMMAND --help' shows a command's options, with examples.")

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        if args[:1] == ["help"]:  # `llmkit help generate`
            args = [*args[1:], "--help"]
        return super().parse_args(ctx, args or ([] if ctx.resilient_parsing else ["--help"]))

    def resolve_command(self, ctx: Context, args: list[str]) -> tuple[str | None, Command | None, list[str]]:
        name, *rest = args
        if name not in self.entries:
            if ctx.resilient_parsing:
                return None, None, rest
            from llmkit.cli.suggestions import unknown_command

            raise unknown_command(name, ctx.command_path, list(self.entries))
        return name, self.commands[name], rest


def _text(help_text: str, formatter: HelpFormatter) -> None:
    """The paragraphs of a help text, and its examples as they are."""
    formatter.write_paragraph()
    with formatter.indentation():
        formatter.write_text(help_text.partition(_EXAMPLES)[0].strip())
    if lines := examples(help_text):
        with formatter.section("Examples"):
            for line in lines:
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")


def _options(parameters: list[Parameter], formatter: HelpFormatter) -> None:
    """Sections for the arguments and for each group of options."""
    sections: dict[str, list[tuple[str, str]]] = {title: [] for title in ("Arguments", *GROUPS.values())}
    for each in parameters:
        if not getattr(each, "hidden", False):
            sections[_heading(each)].append((_form(each), _explanation(each)))
    lengths = [len(form) for rows in sections.values() for form, _ in rows]
    column = max((length for length in lengths if length <= _COLUMN), default=0)
    for title, rows in sections.items():
        if rows:
            with formatter.section(title):
                formatter.write_dl([(f"{form:{column}}", text) for form, text in rows], col_max=_COLUMN)


def _heading(parameter: Parameter) -> str:
    if not isinstance(parameter, TyperOption):
        return "Arguments"
    if parameter.name == "help":
        return GROUPS["Program"]
    return GROUPS[parameter.rich_help_panel or ""]


def _form(parameter: Any) -> str:
    """An option or argument as it is written: ``--head {causal,seq2seq,span}``."""
    if not isinstance(parameter, TyperOption):
        return _metavar(parameter)
    names = ", ".join(sorted([*parameter.opts, *parameter.secondary_opts], key=lambda name: name.startswith("--")))
    return names if parameter.is_flag else f"{names} {_metavar(parameter)}"


def _metavar(parameter: Any) -> str:
    described = parameter.type_descriptor
    if parameter.metavar:
        return str(parameter.metavar)
    if described.choices:
        return f"{{{','.join(map(str, described.choices))}}}"
    if not isinstance(parameter, TyperOption):
        return str(parameter.name).upper()
    kind = "path" if described.is_path else getattr(described.annotation, "__name__", "str")
    return _KINDS.get(kind, "TEXT")


def _explanation(parameter: Any) -> str:
    return "  ".join(filter(None, (parameter.help or "", *(f"[{note}]" for note in _notes(parameter)))))


def _notes(parameter: Any) -> Iterator[str]:
    """Whether a parameter is required, or else its default."""
    shown, default = getattr(parameter, "show_default", False), getattr(parameter, "default", None)
    if parameter.required:
        yield "required"
    elif isinstance(shown, str):
        yield f"default: {shown}"
    elif shown and default not in (None, False, "", [], ()):
        yield f"default: {default}"
