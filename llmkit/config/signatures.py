"""Signatures and docstrings of functions that take settings as keyword arguments, generated from their declarations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import Field
from textwrap import fill
from typing import Any, TypeVar

from llmkit.config.declaration import setting_fields

__all__ = ["Function", "with_settings"]

Function = TypeVar("Function", bound=Callable[..., Any])

_WIDTH = 112


def with_settings(
    *classes: type[Any], shown_defaults: Mapping[str, str] | None = None
) -> Callable[[Function], Function]:
    """Decorator: replace ``**options`` by the settings of the classes, for `help` and `inspect.signature`.

    Args:
        classes: settings classes. A setting that is an argument of the function is left out.
        shown_defaults: in words, by setting, where the default is None.
    """

    def decorate(function: Function) -> Function:
        own = inspect.signature(function)
        added = {item.name: item for each in classes for item in setting_fields(each)}
        added = {name: item for name, item in added.items() if name not in own.parameters}
        parameters = [each for each in own.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
        parameters += [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=item.default, annotation=item.type)
            for name, item in added.items()
        ]
        lines = [_line(item, (shown_defaults or {}).get(name)) for name, item in added.items()]
        function.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        function.__doc__ = "\n".join((inspect.cleandoc(function.__doc__ or ""), "", "Options:", *lines))
        return function

    return decorate


def _line(item: Field[Any], shown: str | None) -> str:
    shown = shown or item.metadata["shown_default"] or ("" if item.default in (None, ()) else repr(item.default))
    text = f"{item.name}: {item.metadata['help']}" + (f" Default: {shown}." if shown else "")
    return fill(text, _WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 8)
