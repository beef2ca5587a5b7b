"""What every request passes: the host it names, the site it comes from, and the key."""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from llmkit.server.errors import answer
from llmkit.server.page import PATHS

__all__ = ["Guard"]

_OPEN = {"/health", "/ready", *PATHS}
"""Paths without a key: they tell nothing but whether the server runs. The page asks its user for the key."""

_SAFE = {"GET", "HEAD"}
"""Methods that generate nothing."""


class Guard:
    """Refuses requests without the key, and on a loopback address those that name another host (DNS rebinding).

    Without a key, a page of another site could make its visitors' browsers send requests here: those are refused too.

    Args:
        key: None lets everybody in.
        hosts: names of this server; empty allows any.
    """

    def __init__(self, app: ASGIApp, key: str | None, hosts: Sequence[str]) -> None:
        self.app, self.key, self.hosts = app, key, frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (refusal := self._refusal(scope)) is None:
            await self.app(scope, receive, send)
        else:
            await answer(*refusal)(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if self.hosts and name.strip("[]").lower() not in self.hosts:
            return 403, "the Host header names another server; use the address that was printed at the start"
        if self.key is None and scope["method"] not in _SAFE and _of_another_site(headers, host):
            return 403, "requests of other sites are refused; send it from a page of this server, or without a browser"
        if self.key is None or scope["path"].removeprefix(scope.get("root_path", "")) in _OPEN:
            return None
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), self.key.encode()):
            return None
        return 401, "the API key is missing or wrong; send it as Authorization: Bearer KEY"


def _of_another_site(headers: Mapping[bytes, bytes], host: str) -> bool:
    """Whether a browser sends a request for a page of another origin. Other clients do not send these headers."""
    if site := headers.get(b"sec-fetch-site"):
        return site not in (b"same-origin", b"none")
    origin = headers.get(b"origin", b"").decode("latin-1")
    return bool(origin) and urlsplit(origin).netloc.lower() != host.lower()
