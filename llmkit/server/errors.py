"""Errors as HTTP statuses, with a body in OpenAI's form."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from llmkit.errors import LlmkitError, NotEnoughMemoryError, UsageError
from llmkit.log import log
from llmkit.server.worker import QueueFullError, WorkerStoppedError

__all__ = [
    "ApiError",
    "answer",
    "api_error",
    "body_of",
    "http_error",
    "invalid_request",
    "llmkit_error",
    "status_of",
    "too_deep",
    "unexpected",
]

RETRY_AFTER = 1
"""Seconds after which a client may try again."""
_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code


def status_of(error: LlmkitError) -> int:
    """The HTTP status of an error."""
    if isinstance(error, QueueFullError):
        return 429
    if isinstance(error, WorkerStoppedError | NotEnoughMemoryError):
        return 503
    return 400 if isinstance(error, UsageError) else 500


def body_of(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error object as OpenAI's API has it."""
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def answer(status: int, message: str, param: str | None = None, code: str | None = None) -> JSONResponse:
    headers = {"Retry-After": str(RETRY_AFTER)} if status == 429 else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body_of(status, message, param, code), status, headers)


async def api_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return answer(error.status, error.message, error.param, error.code)


async def llmkit_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, LlmkitError)
    return answer(status_of(error), str(error), code=error.code)


async def http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 400:
        return answer(400, "the body is not JSON that can be parsed; correct it")
    return answer(error.status_code, f"{str(error.detail).lower()}; see /openapi.json for what there is")


async def too_deep(_: Request, _error: Exception) -> JSONResponse:
    return answer(400, "the body is nested too deeply; simplify it")


async def unexpected(_: Request, error: Exception) -> JSONResponse:
    log.error("a request failed", exc_info=error, extra={"code": "internal_error"})
    return answer(500, f"the server failed ({type(error).__name__}); see its log")


async def invalid_request(_: Request, error: Exception) -> JSONResponse:
    """The first mistake of a body, by the name of its parameter."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    if first["type"] == "extra_forbidden":
        message = f"{place} is not supported; leave it out"
    elif first["type"] == "json_invalid":
        place = ""
        message = f"the body is not JSON ({first.get('ctx', {}).get('error', first['msg'])}); correct it"
    else:
        message = f"{place or 'the body'}: {first['msg'].removeprefix('Value error, ')}"
    return answer(400, message, place or None, "unknown_parameter" if first["type"] == "extra_forbidden" else None)
