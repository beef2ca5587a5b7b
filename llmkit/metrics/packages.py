"""The optional packages that some metrics need."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from llmkit.errors import MissingDependencyError

__all__ = ["require_package"]


def require_package(module: str, metric: str) -> Any:
    """Import a module of an optional package.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"the metric {metric} needs a package that is not installed ({error})", "run: pip install 'llmkit[metrics]'"
        ) from error
