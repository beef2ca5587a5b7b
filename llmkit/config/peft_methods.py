"""The methods of the installed PEFT, each as a recipe section with the fields of its PEFT config class.

They are parsed from PEFT's source, since importing it would import torch. So recipes are validated without torch, and
new methods and fields of newer PEFT versions are available. Does not know which methods work with which model
(`llmkit.models.adapters`).
"""

from __future__ import annotations

import ast
import functools
import typing
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from pydantic import Field, create_model

from llmkit.config.declaration import MOST

__all__ = ["NO_SOURCE", "adapter_section", "peft_methods"]

_OF_ALL_METHODS = ("PeftConfig", "PeftConfigMixin")
"""Base classes whose fields follow from the model, or from where it was loaded."""


NO_SOURCE = {"use_attribute_docstrings": False}
"""For generated classes, in whose lack of source pydantic would look for the docstrings of attributes."""
_INT = Annotated[int, Field(ge=-MOST, le=MOST)]


class _List:
    """Replaces ``tuple`` in annotations, since YAML has lists only."""

    def __class_getitem__(cls, _: Any) -> Any:
        return list[Any]


def _root() -> Path:
    spec = find_spec("peft")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


@functools.cache
def peft_methods() -> dict[str, str]:
    """The name of the config class of each method."""
    found = {}
    for path in sorted(_root().glob("tuners/*/__init__.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "register_peft_method":
                named = {each.arg: each.value for each in node.keywords}
                found[str(ast.literal_eval(named["name"])).upper()] = ast.unparse(named["config_cls"])
    return dict(sorted(found.items()))


@functools.cache
def _declared() -> dict[str, ast.ClassDef | ast.expr]:
    """The classes and type aliases in PEFT's config modules."""
    found: dict[str, ast.ClassDef | ast.expr] = {}
    root = _root()
    for path in (root / "config.py", root / "tuners" / "lycoris_utils.py", *root.glob("tuners/*/config.py")):
        for node in ast.parse(path.read_bytes()).body:
            match node:
                case ast.ClassDef():
                    found[node.name] = node
                case ast.Assign(targets=[ast.Name(id=name)], value=ast.Subscript() as value):
                    found[name] = value
    return found


def _fields(name: str) -> Iterator[ast.AnnAssign]:
    """The fields of a config class, inherited ones first."""
    node = _declared().get(name)
    if isinstance(node, ast.ClassDef) and name not in _OF_ALL_METHODS:
        for base in node.bases:
            yield from _fields(ast.unparse(base))
        yield from (each for each in node.body if isinstance(each, ast.AnnAssign))


def _type(name: str) -> Any:
    """The type for a name in an annotation: the values of an enumeration; a dict for a nested config."""
    node = _declared()[name]
    if isinstance(node, ast.expr):
        return _hint(node)
    values = [ast.literal_eval(each.value) for each in node.body if isinstance(each, ast.Assign)]
    return Literal[tuple(values)] if any("Enum" in ast.unparse(base) for base in node.bases) else dict[str, Any]


def _hint(annotation: ast.expr) -> Any:
    names = {each.id for each in ast.walk(annotation) if isinstance(each, ast.Name)}
    types = {name: _type(name) for name in names if name in _declared()}
    if choices := [each for each in types.values() if typing.get_origin(each) is Literal]:
        return choices[0]  # PEFT declares Union[Choices, str], but does not accept other strings
    hint = eval(ast.unparse(annotation), {**vars(typing), "tuple": _List, "int": _INT, **types})  # noqa: S307 - code of PEFT
    for node in ast.walk(annotation):
        if isinstance(node, ast.Constant) and "_[" in str(node.value):  # pissa_niter_[number of iters]
            hint |= Annotated[str, Field(pattern=f"^{str(node.value).partition('[')[0]}[0-9]+$")]
    return hint


def _member(node: ast.AnnAssign) -> tuple[Any, Any]:
    """Type and default of a field."""
    options = {each.arg: each.value for each in getattr(node.value, "keywords", ())}
    default = _default(options.get("default", node.value))
    metadata = _literal(options.get("metadata")) or {}
    hint = _hint(node.annotation)
    description = " ".join(str(metadata.get("help", "")).split())
    return hint | None if default is None else hint, Field(default, description=description or None)


def _default(node: ast.expr | None) -> Any:
    """A default, which may be a member of an enumeration."""
    match node:
        case ast.Attribute(value=ast.Name(id=name), attr=member) if name in _declared():
            body = getattr(_declared()[name], "body", ())
            values = {ast.unparse(each.targets[0]): each.value for each in body if isinstance(each, ast.Assign)}
            return _literal(values.get(member))
    return _literal(node)


def _literal(node: ast.expr | None) -> Any:
    """The value of a literal; None for other expressions."""
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        return None


def adapter_section(
    methods: Sequence[str], base: type[Any], changes: Mapping[str, Mapping[str, tuple[Any, Any]]]
) -> Any:
    """The section for one of several methods, discriminated by ``peft_type``.

    Args:
        changes: by method ("" for all), the fields whose type and default differ from PEFT's.
    """
    sections: list[Any] = []
    for method in methods:
        members: dict[str, Any] = {
            str(getattr(node.target, "id", "")): _member(node) for node in _fields(peft_methods()[method])
        }
        changed = {**changes.get("", {}), **changes.get(method, {})}
        members |= {name: change for name, change in changed.items() if name in members}
        members["peft_type"] = (Literal[method], ...)
        name = f"{method}Adapter"
        sections.append(create_model(name, __base__=base, __cls_kwargs__=NO_SOURCE, **members))
    if len(sections) == 1:
        return sections[0]
    return Annotated[Union[tuple(sections)], Field(discriminator="peft_type")]  # noqa: UP007 - of a tuple
