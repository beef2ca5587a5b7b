"""The layout of ``--help``: examples, then options in groups with their choices and defaults; commands in groups.

The group of an option or command is its ``rich_help_panel``, which Typer passes on; Rich itself is not used, since
importing it takes as long as the rest of ``--help``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from typer._click import Context, HelpFormatter, Parameter
from typer.core import TyperCommand, TyperGroup, TyperOption

__all__ = ["HelpCommand", "HelpGroup", "examples", "summary"]

GROUPS = {
    "": "Options",
    "Input": "Input",
    "Prompt": "Prompt",
    "Output": "Output",
    "Model": "Model",
    "Rows": "Files of rows",
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


class HelpGroup(TyperGroup):
    """A group of commands, listed under headings with their complete summaries; without arguments it shows help."""

    def format_help_text(self, ctx: Context, formatter: HelpFormatter) -> None:  # noqa: ARG002
        _text(self.help or "", formatter)

    def format_options(self, ctx: Context, formatter: HelpFormatter) -> None:
        self.format_commands(ctx, formatter)
        _options(self.get_params(ctx), formatter)

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:  # noqa: ARG002
        shown = [(name, command) for name, command in self.commands.items() if not command.hidden]
        width = max(len(name) for name, _ in shown)
        panels = [getattr(command, "rich_help_panel", None) or "Commands" for _, command in shown]
        for panel in dict.fromkeys(panels):
            rows = [
                (f"{name:{width}}", summary(command.help or ""))
                for (name, command), own in zip(shown, panels, strict=True)
                if own == panel
            ]
            with formatter.section(panel):
                formatter.write_dl(rows)

    def format_epilog(self, ctx: Context, formatter: HelpFormatter) -> None:
        formatter.write_paragraph()
        formatter.write_text(f"'{ctx.command_path} COMMAND --help' shows a command's options, with examples.")

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or ([] if ctx.resilient_parsing else ["--help"]))


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
