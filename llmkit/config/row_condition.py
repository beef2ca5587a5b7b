"""Conditions that select rows: a small subset of Python's expressions, parsed once and evaluated for each row.

The expression is parsed with `ast`; every kind of node that is not listed here is refused, and nothing is executed by
Python. Does not know where rows come from.
"""

from __future__ import annotations

import ast
import operator
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from llmkit.errors import InputError

__all__ = ["RowCondition"]

_MAX_LENGTH = 10_000
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_FUNCTIONS: dict[str, Callable[[Any], Any]] = {"len": len, "int": int, "float": float}
_METHODS: dict[str, Callable[..., Any]] = {
    "lower": str.lower,
    "strip": str.strip,
    "split": str.split,
    "startswith": str.startswith,
    "endswith": str.endswith,
}
_ROW = "row"
"""The name of the entire row, for columns whose names are not identifiers: ``row["Review Text"]``."""
_ALLOWED = (
    f"use columns, constants, comparisons, in, and, or, not, + - * /, {', '.join(_FUNCTIONS)}, and the methods "
    f"{', '.join(_METHODS)}"
)


class RowCondition:
    """A condition on a row, such as ``lang == "de" and 20 < len(summary)``."""

    def __init__(self, text: str) -> None:
        """Parse the condition.

        Raises:
            ValueError: it is not in the subset; as ``problem; fix``.
        """
        self.text = text
        try:
            if len(text) > _MAX_LENGTH:
                raise ValueError("it is too long")
            self._tree = ast.parse(text.strip(), mode="eval").body
            _check(self._tree)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            reason = getattr(error, "msg", None) or str(error) or type(error).__name__
            raise ValueError(f"{text[:200]!r} is not a condition on rows ({reason}); {_ALLOWED}") from error

    def __call__(self, row: Mapping[str, Any]) -> bool:
        """Whether a row fulfils the condition.

        Raises:
            InputError: it cannot be evaluated for this row.
        """
        return _truth(self._tree, row)

    @property
    def columns(self) -> list[str]:
        """The paths of the columns in it."""
        return _columns(self._tree)

    def check_columns(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Check that some row has each column.

        Raises:
            InputError: none has a column; with the name of a similar one.
        """
        known = dict.fromkeys(str(name) for row in rows for name in row)
        for path in self.columns:
            if path == _ROW or any(_has(row, path) for row in rows):
                continue
            near = get_close_matches(path.partition(".")[0], known, n=1, cutoff=0.5)
            raise InputError(
                f"where: no row has {path!r} (columns: {', '.join(known)})",
                f"did you mean {near[0]}?" if near and near[0] != path.partition(".")[0] else "name a column or field",
                code="column_mismatch",
            )


# Parsing.


def _check(node: ast.AST) -> None:
    """Refuse everything that `_value` does not evaluate."""
    for part in _parts(node):
        _check(part)


def _parts(node: ast.AST) -> Sequence[ast.AST]:
    """The expressions that an expression consists of."""
    match node:
        case ast.Constant(value=value) if value is None or isinstance(value, str | int | float):
            return ()
        case ast.Name():
            return ()
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in _FUNCTIONS:
            return (argument,)
        case ast.Call(func=ast.Attribute(value=value, attr=name), args=arguments, keywords=[]) if name in _METHODS:
            return (value, *arguments)
        case ast.Attribute(value=value) | ast.UnaryOp(op=ast.Not() | ast.USub(), operand=value):
            return (value,)
        case ast.Subscript(value=value, slice=key):
            return (value, key)
        case ast.BoolOp(values=parts) | ast.List(elts=parts) | ast.Tuple(elts=parts) | ast.Set(elts=parts):
            return parts
        case ast.BinOp(op=sign, left=left, right=right) if type(sign) in _ARITHMETIC:
            return (left, right)
        case ast.Compare(left=left, comparators=others):
            return (left, *others)
    raise ValueError(f"{ast.unparse(node)} is not supported")


def _columns(node: ast.AST) -> list[str]:
    """The paths of the columns in an expression, such as ``meta.lang``."""
    if isinstance(node, ast.Name | ast.Attribute) and (path := _path(node)):
        return [path]
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == _ROW:
        return [node.slice.value] if isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str) else []
    return [path for each in _parts(node) for path in _columns(each)]


def _path(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    before = _path(node.value) if isinstance(node, ast.Attribute) else None
    return f"{before}.{node.attr}" if isinstance(node, ast.Attribute) and before else None


# Evaluation.


def _truth(node: ast.AST, row: Mapping[str, Any]) -> bool:
    value = _value(node, row)
    if not isinstance(value, bool):
        raise _error(node, f"is {_kind(value)}, not true or false", "compare it with something")
    return value


def _value(node: ast.AST, row: Mapping[str, Any]) -> Any:
    path = _path(node)
    if path is not None and (isinstance(node, ast.Name) or path in row):
        return _column(row, path)
    match node:
        case ast.Constant(value=value):
            return value
        case ast.List(elts=parts) | ast.Tuple(elts=parts) | ast.Set(elts=parts):
            return [_value(part, row) for part in parts]
        case ast.UnaryOp(op=ast.USub(), operand=part):
            return -_number(part, row)
        case ast.BinOp(op=sign, left=left, right=right):
            return _calculated(node, _ARITHMETIC[type(sign)], _number(left, row), _number(right, row))
        case ast.Call(func=ast.Name(id=name), args=[argument]):
            return _calculated(node, _FUNCTIONS[name], _value(argument, row))
        case ast.Call(func=ast.Attribute(value=part, attr=name), args=arguments):
            return _calculated(node, _METHODS[name], *(_value(each, row) for each in (part, *arguments)))
        case ast.Subscript(value=part, slice=key):
            whole = isinstance(part, ast.Name) and part.id == _ROW and _ROW not in row
            return _item(node, row if whole else _value(part, row), _value(key, row))
        case ast.Attribute(value=part, attr=name):
            return _item(node, _value(part, row), name)
    return _logical(node, row)


def _logical(node: ast.AST, row: Mapping[str, Any]) -> bool:
    match node:
        case ast.BoolOp(op=sign, values=parts):
            found = (_truth(part, row) for part in parts)
            return all(found) if isinstance(sign, ast.And) else any(found)
        case ast.UnaryOp(operand=part):
            return not _truth(part, row)
        case ast.Compare(left=left, ops=signs, comparators=others):
            values = [_value(each, row) for each in (left, *others)]
            return all(_compared(node, *each) for each in zip(values, signs, values[1:], strict=False))
    raise AssertionError(node)  # refused by `_parts`


def _column(row: Mapping[str, Any], name: str) -> Any:
    """A column; None if the row lacks it. Python's parser normalizes identifiers, so names are compared like that."""
    if name in row:
        return row[name]
    return next((value for key, value in row.items() if unicodedata.normalize("NFKC", str(key)) == name), None)


def _has(row: Mapping[str, Any], path: str) -> bool:
    """Whether a row has a column, and the fields of a path such as ``meta.lang``."""
    if path in row or any(unicodedata.normalize("NFKC", str(key)) == path for key in row):
        return True
    first, _, rest = path.partition(".")
    return isinstance(inner := row.get(first), Mapping) and bool(rest) and _has(inner, rest)


def _item(node: ast.AST, value: Any, key: Any) -> Any:
    """A field of an object, or an item of a list; None if it is missing."""
    if isinstance(value, Mapping):
        return value.get(key)
    if isinstance(value, list | tuple) and isinstance(key, int):
        return value[key] if -len(value) <= key < len(value) else None
    if value is None:
        return None
    raise _error(node, f"needs an object or a list, and got {_kind(value)}")


def _number(node: ast.AST, row: Mapping[str, Any]) -> int | float:
    value = _value(node, row)
    if _kind(value) != "a number":
        raise _error(node, f"is {_kind(value)}, not a number", *_conversion(node, value))
    return value  # type: ignore[no-any-return]


def _calculated(node: ast.AST, function: Callable[..., Any], *values: Any) -> Any:
    try:
        return function(*values)
    except (TypeError, ValueError, ArithmeticError) as error:
        kinds = " and ".join(_kind(value) for value in values)
        raise _error(node, f"cannot be computed for {kinds} ({error})", *_guard(values)) from error


def _compared(node: ast.AST, left: Any, sign: ast.cmpop, right: Any) -> bool:
    """One comparison. Text is not a number: it would be unequal to each, without an error."""
    if isinstance(sign, ast.In | ast.NotIn):
        return _contains(node, right, left) is isinstance(sign, ast.In)
    if isinstance(sign, ast.Is | ast.IsNot):
        sign = ast.Eq() if isinstance(sign, ast.Is) else ast.NotEq()
    kinds = _kind(left), _kind(right)
    ordered = not isinstance(sign, ast.Eq | ast.NotEq)
    if (kinds[0] != kinds[1] and (ordered or None not in (left, right))) or (
        ordered and kinds[0] not in ("text", "a number")
    ):
        raise _error(node, f"compares {kinds[0]} with {kinds[1]}", *(_guard((left, right)) or _conversion(node, left)))
    return _COMPARISONS[type(sign)](left, right)


def _contains(node: ast.AST, container: Any, value: Any) -> bool:
    if isinstance(container, str) and isinstance(value, str):
        return value in container
    if isinstance(container, str | int | float | None):
        raise _error(node, f"looks for {_kind(value)} in {_kind(container)}", *_guard((container,)))
    kinds = {_kind(each) for each in container}
    if container and value is not None and _kind(value) not in kinds:
        raise _error(node, f"looks for {_kind(value)} among {' and '.join(sorted(kinds))}", *_conversion(node, value))
    return value in container


def _kind(value: Any) -> str:
    if value is None:
        return "a missing value"
    kinds = {bool: "true or false", str: "text", int: "a number", float: "a number", list: "a list", tuple: "a list"}
    return kinds.get(type(value), "an object")


def _guard(values: Sequence[Any]) -> tuple[str, ...]:
    return ("check first that it is there, as in `text != None and len(text) > 5`",) if None in values else ()


def _conversion(node: ast.AST, value: Any) -> tuple[str, ...]:
    column = next(iter(_columns(node)), "column")
    return (f"convert it, as in float({column})",) if isinstance(value, str) else _guard((value,))


def _error(node: ast.AST, problem: str, *fixes: str) -> InputError:
    return InputError(f"where: {ast.unparse(node)} {problem}", *(fixes or ("fix the row or the condition",)))
