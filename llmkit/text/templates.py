"""Prompt templates: Jinja, rendered from the columns of one row in a sandbox with limits on time and memory.

Knows which columns a template uses. White space around blocks is trimmed as in chat templates. A column that a row
lacks is false in a condition, and an error where it is printed. Does not know tasks. Jinja is imported when first
needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from llmkit.errors import CheckpointError, InputError, UsageError
from llmkit.text.template_limits import limited

if TYPE_CHECKING:
    import jinja2

__all__ = ["TemplateColumns", "render_template", "template_columns"]

_ROW = "row"
"""The variable with all columns, for those whose names are no identifiers."""


@dataclass(frozen=True)
class TemplateColumns:
    """The columns that a template uses."""

    names: frozenset[str]
    optional: frozenset[str]
    """Those that it tests with ``is defined`` or gives a default."""


@cache
def _environment() -> jinja2.Environment:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Missing(StrictUndefined):
        def __bool__(self) -> bool:  # type: ignore[override]
            return False

    return ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, undefined=Missing)


@lru_cache(maxsize=64)
def _compiled(template: str) -> jinja2.Template:
    from jinja2 import TemplateSyntaxError

    try:
        return _environment().from_string(template)
    except TemplateSyntaxError as error:
        raise UsageError(
            f"line {error.lineno} of `template` is wrong ({error.message})",
            "correct it; variables are written as {{ NAME }}",
            code="invalid_value",
        ) from error
    except RecursionError as error:  # thousands of brackets in each other
        raise UsageError("`template` is nested too deeply", "simplify it", code="invalid_value") from error


def render_template(template: str, row: Mapping[str, Any]) -> str:
    """The text of a template for one row. Columns that begin with an underscore are internal, and not passed to it.

    Raises:
        UsageError: the template fails, whatever the row.
        InputError: it prints a column that the row lacks, or fails for this row.
    """
    from jinja2 import TemplateError, UndefinedError

    compiled = _compiled(template)
    columns = {name: value for name, value in row.items() if value is not None and not str(name).startswith("_")}
    try:
        with limited(template, "simplify it", "`template`"):
            return compiled.render({_ROW: columns, **columns})
    except CheckpointError as error:
        raise UsageError(error.problem, *error.fixes, code="invalid_value") from error
    except UndefinedError as error:
        raise _missing(str(error.message), columns) from error
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise InputError(f"`template` fails on the row ({error})", "correct it", code="invalid_value") from error


def _missing(message: str, columns: Mapping[str, Any]) -> InputError:
    """The error of a column that a row lacks, from Jinja's message."""
    found = re.match(r"'(.+)' is undefined|'dict object' has no attribute '(.+)'", message)
    name = (found[1] or found[2]) if found else message
    here = ", ".join(map(str, columns)) or "none"
    return InputError(
        f"the row has no {name!r}, which `template` uses (its columns: {here})",
        "add it, or use it within {% if " + name + " %} … {% endif %}",
        code="column_mismatch",
    )


@lru_cache(maxsize=64)
def template_columns(template: str) -> TemplateColumns:
    """The columns that a template uses, by name or as ``row['NAME']``.

    Raises:
        UsageError: it is not a valid template, or uses ``row`` in another way.
    """
    from jinja2 import meta, nodes

    _compiled(template)
    tree = _environment().parse(template)
    names = meta.find_undeclared_variables(tree) - _environment().globals.keys()
    members = [name for node in tree.find_all((nodes.Getitem, nodes.Getattr)) if (name := _member(node))]
    if _ROW in names and len(members) < sum(node.name == _ROW for node in tree.find_all(nodes.Name)):
        raise UsageError(
            "`template` uses row as a whole", "name each column, such as row['title']", code="invalid_value"
        )
    guarded = [node.node for node in tree.find_all(nodes.Test) if node.name in ("defined", "undefined")]
    guarded += [node.node for node in tree.find_all(nodes.Filter) if node.name in ("default", "d") and node.node]
    optional = {node.name if isinstance(node, nodes.Name) else _member(node) for node in guarded}
    used = {name for name in (*names, *members) if name != _ROW}
    return TemplateColumns(frozenset(used), frozenset(used & optional))


def _member(node: Any) -> str:
    """The column of ``row['NAME']`` or ``row.NAME``; empty for other expressions."""
    from jinja2 import nodes

    if isinstance(getattr(node, "node", None), nodes.Name) and node.node.name == _ROW:
        if isinstance(node, nodes.Getattr):
            return node.attr
        if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
            return node.arg.value
    return ""
