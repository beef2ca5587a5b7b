"""HTML pages in one file: templates, the common style, and figures. Whatever is put in is escaped.

A page requests nothing: no script, style, font or picture from elsewhere; it reads in light and dark, and on paper.
Knows nothing of models and data.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2

__all__ = ["framed", "render"]


def render(template: str, **values: Any) -> str:
    """A page from one of the templates of this package; ``values`` are texts and numbers, which it escapes."""
    from importlib.metadata import version

    return _environment().get_template(template).render(values, version=version("llmkit"))


def framed(page: str) -> str:
    """A page in a frame of its own, for notebooks."""
    from html import escape

    return f'<iframe srcdoc="{escape(page)}" style="width: 100%; height: 32rem; border: 0"></iframe>'


@cache
def _environment() -> jinja2.Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("llmkit.pages", "templates")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
