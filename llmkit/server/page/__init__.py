"""The page at ``/``: static files, which hold no data and are answered without a key.

Knows the files and the headers they are sent with. What the page does is in ``page.js``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files

from fastapi import FastAPI, Request, Response

__all__ = ["PATHS", "add_page"]

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src data:; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_FILES = {
    "/" if file.name == "index.html" else f"/page/{file.name}": file
    for file in files(__package__).iterdir()
    if file.name.rpartition(".")[2] in _TYPES
}
PATHS = frozenset(_FILES)
"""The paths of the page."""


def add_page(app: FastAPI) -> None:
    """Serve the page."""
    for path, file in _FILES.items():
        app.add_route(path, _endpoint(file.read_bytes(), _TYPES[file.name.rpartition(".")[2]]))


def _endpoint(content: bytes, kind: str) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(_: Request) -> Response:
        return Response(content, media_type=kind, headers=_HEADERS)

    return endpoint
