"""YAML for recipes, reports and model cards: the core schema of YAML 1.2, with one loader and one dumper.

Dumped YAML is parsed to the same values here and by YAML 1.1 parsers: strings that either would interpret otherwise are
quoted. Based on PyYAML. ruamel.yaml interprets dates, ``1_000``, ``=`` and ``<<`` even in YAML 1.2, and has no line
numbers for plain values.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from llmkit.errors import UsageError

__all__ = ["Place", "dump", "parse"]

Place = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """``no`` is Norwegian, ``1e-4`` is a number, a date is text."""


class _Dumper(yaml.SafeDumper):
    """Quotes strings that YAML 1.1 or `_Loader` would not parse as strings."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf)|\.(nan|NaN)", "-+.0123456789"),
):  # fmt: skip
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), [*_first])
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("^$"), [""])
# SafeLoader parses 010 as eight and 1:30 as ninety.
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(str(node.value)))

# Unless escaped, line breaks other than \n are dumped verbatim and parsed as spaces.
_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style='"' if re.search("[\x85\u2028\u2029]", text) else None
    ),
)

_MOST_NODES = 100_000
"""Maximum number of keys, items and values of a document, with aliases expanded."""


def dump(value: Any) -> str:
    """Dump a JSON-compatible value as YAML, which `parse` parses to the same value."""
    return yaml.dump(value, Dumper=_Dumper, allow_unicode=True, sort_keys=False, width=120)


def parse(text: str, name: str) -> tuple[Any, dict[Place, int]]:
    """Parse a document; returns its content, and the line of each key and item.

    Raises:
        UsageError: invalid YAML, a duplicate key, or excessive expansion; with ``name`` and line.
    """
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            lines: dict[Place, int] = {}
            if node is not None:
                _refuse_large(node, name)
                _walk(node, (), lines, name)
            return None if node is None else loader.construct_document(node), lines
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        raise UsageError(
            f"{where}: {error.problem or 'cannot be read as YAML'}", "fix the YAML", code="invalid_recipe"
        ) from error
    except yaml.YAMLError as error:
        raise UsageError(f"{name} cannot be read as YAML ({error})", "fix it", code="invalid_recipe") from error
    except RecursionError as error:
        raise UsageError(f"{name} is nested too deeply", "flatten it", code="invalid_recipe") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:  # a value that does not fit its tag
        raise UsageError(
            f"{name} has a value that cannot be read ({error})", "correct it, or remove its tag", code="invalid_recipe"
        ) from error


def _refuse_large(root: yaml.Node, name: str) -> None:
    """Refuse excessive and recursive aliases before anything traverses them."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> int:
        if id(node) in open_nodes:
            raise UsageError(
                f"{name}:{node.start_mark.line + 1}: an alias contains itself",
                "write the value out",
                code="invalid_recipe",
            )
        if id(node) not in sizes:
            open_nodes.add(id(node))
            children = [] if isinstance(node, yaml.ScalarNode) else node.value
            inner = [part for each in children for part in (each if isinstance(each, tuple) else (each,))]
            sizes[id(node)] = 1 + sum(map(size, inner))
            open_nodes.discard(id(node))
        return sizes[id(node)]

    if size(root) > _MOST_NODES:
        raise UsageError(
            f"{name} expands to more than {_MOST_NODES:,} values", "write fewer, or no aliases", code="invalid_recipe"
        )


def _walk(node: yaml.Node, place: Place, lines: dict[Place, int], name: str) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*place, str(key.value))
            line = key.start_mark.line + 1
            if inner in lines:
                raise UsageError(
                    f"{name}:{line}: duplicate key {'.'.join(map(str, inner))}",
                    "remove one of them",
                    code="invalid_recipe",
                )
            lines[inner] = line
            _walk(value, inner, lines, name)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            lines[(*place, number)] = value.start_mark.line + 1
            _walk(value, (*place, number), lines, name)
