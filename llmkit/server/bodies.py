"""Bodies of requests as JSON, without what parsers take in silence: duplicate keys, NaN, numbers that are too large.

Knows media types, lengths and JSON. Does not know parameters.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Coroutine
from email.message import Message
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from llmkit.server.errors import ApiError

__all__ = ["StrictRoute"]


class StrictRoute(APIRoute):
    """A route whose body, if it has one, must be JSON that has one meaning."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def strict(request: Request) -> Response:
            _check_media(request)
            return await handle(_StrictRequest(request.scope, request.receive))

        return strict


class _StrictRequest(Request):
    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            limit, parts, size = self.app.state.max_body, [], 0
            async for part in self.stream():
                parts.append(part)
                size += len(part)
                if size > limit:
                    raise HTTPException(413, f"the body has more than {limit} bytes")
            self._body = b"".join(parts)
        return self._body

    async def json(self) -> Any:
        return _parse(await self.body())


def _check_media(request: Request) -> None:
    headers = request.headers
    if (coding := headers.get("content-encoding", "identity").lower()) != "identity":
        raise ApiError(415, f"bodies with Content-Encoding: {coding} are not supported; send them uncompressed")
    media = Message()
    media["content-type"] = headers.get("content-type", "")
    kind = media.get_content_type()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        given = headers.get("content-type", "none")
        raise ApiError(415, f"the content type is {given}; send JSON with the header Content-Type: application/json")


def _parse(body: bytes) -> Any:
    """The JSON value of a body.

    Raises:
        json.JSONDecodeError: it is none, or has no one meaning.
    """
    try:
        return json.loads(
            body.decode(), parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_unique_keys
        )
    except json.JSONDecodeError:
        raise
    except RecursionError as error:
        raise json.JSONDecodeError("it is nested too deeply", "", 0) from error
    except UnicodeDecodeError as error:
        raise json.JSONDecodeError(f"byte {error.start} is not UTF-8", "", 0) from error
    except ValueError as error:
        raise json.JSONDecodeError(str(error), "", 0) from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} occurs twice")
        found[key] = value
    return found
