"""Errors as HTTP statuses, with a body in OpenAI's form."""

from __future__ import annotations

from collections.abc import Mapping
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
_HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": str(RETRY_AFTER)}}
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


def answer(
    status: int,
    message: str,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    own = _HEADERS.get(status, {})
    return JSONResponse(body_of(status, message, param, code), status, {**own, **(headers or {})})


async def api_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return answer(error.status, error.message, error.param, error.code)


async def llmkit_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, LlmkitError)
    return answer(status_of(error), str(error), code=error.code)


async def http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = f"{str(error.detail).lower()}; see /openapi.json for what there is"
    return answer(error.status_code, message, headers=error.headers)


async def too_deep(_: Request, _error: Exception) -> JSONResponse:
    return answer(400, "the body is nested too deeply; simplify it")


async def unexpected(_: Request, error: Exception) -> JSONResponse:
    log.error("a request failed", exc_info=error, extra={"code": "internal_error"})
    return answer(500, f"the server failed ({type(error).__name__}); see its log")


async def invalid_request(_: Request, error: Exception) -> JSONResponse:
    """The first mistake of a body, by the name of its parameter."""
    assert isinstance(error, RequestValidationError)
    first, *others = error.errors()
    if first["type"] == "json_invalid":
        return answer(400, f"the body cannot be parsed ({first['ctx']['error']}); correct it")
    # Of the errors of a union's members, the one that is deepest in the body belongs to the member that was meant.
    own = [each for each in (first, *others) if each["loc"][:2] == first["loc"][:2]]
    places = [(_place(each, error.body), each) for each in own]
    place, found = max(places, key=lambda item: len(item[0]))
    name = ".".join(map(str, place))
    if found["type"] == "extra_forbidden":
        return answer(400, f"{name} is not supported; leave it out", name, "unknown_parameter")
    reason = found["msg"].removeprefix("Value error, ")
    return answer(400, f"{name or 'the body'}: {reason[:1].lower()}{reason[1:]}", name or None)


def _place(error: Mapping[str, Any], body: Any) -> list[int | str]:
    """The keys and indices that lead to a mistake, without the names of types among them."""
    found: list[int | str] = []
    for part in error["loc"][1:]:
        if (isinstance(body, Mapping) and part in body) or (
            isinstance(body, list) and isinstance(part, int) and part < len(body)
        ):
            body = body[part]
            found.append(part)
    missing = error["type"] == "missing" and len(error["loc"]) > 1 and found[-1:] != [error["loc"][-1]]
    return [*found, error["loc"][-1]] if missing else found
