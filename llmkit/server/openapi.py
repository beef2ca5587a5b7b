"""What /openapi.json says of answers: their bodies, and the errors of each path."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from llmkit.server.replies import ErrorBody, Status

__all__ = ["ACCESS", "ERRORS", "NOT_FOUND", "NOT_READY", "STREAM", "describe"]

_MEANINGS = {
    400: "The request cannot be answered; param names what is wrong",
    401: "The API key is missing or wrong",
    403: "The Host header names another server",
    404: "There is no such model or path",
    413: "The body is too long",
    415: "The body is not plain JSON",
    429: "Too many requests are waiting; Retry-After has the seconds",
    500: "The model failed on this request",
    503: "The model has stopped, or its memory is full",
    504: "The request took too long",
}


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorBody, "description": _MEANINGS[status]} for status in statuses}


ACCESS = _errors(401, 403)
"""The errors of all paths."""
NOT_FOUND = _errors(404)
NOT_READY: dict[int | str, dict[str, Any]] = {503: {"model": Status, "description": "A model has stopped"}}
ERRORS = _errors(400, 404, 413, 415, 429, 500, 503, 504)
"""The errors of what a model answers."""
STREAM: dict[int | str, dict[str, Any]] = {
    **ERRORS,
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
}
"""Those of what may be streamed, and the stream."""


def describe(app: FastAPI) -> None:
    """Document statuses as they are: mistakes in bodies have 400, where FastAPI has 422."""

    def schema() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, routes=app.routes)
            for path in made["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            for name in ("HTTPValidationError", "ValidationError"):
                made["components"]["schemas"].pop(name, None)
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = schema  # type: ignore[method-assign]
