"""How the server listens, and what it limits. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from llmkit.config.declaration import Checked, setting
from llmkit.config.settings import LoadOptions

__all__ = ["LOOPBACK", "ServeOptions", "ServeSettings"]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_WHERE, _LIMITS = "Server", "Limits"


@dataclass(frozen=True, kw_only=True)
class ServeSettings(Checked):
    """How the server listens, and what it limits."""

    host: str = setting("127.0.0.1", "Listen on this address; one that others reach requires a key.", group=_WHERE)
    port: int = setting(8000, "Listen on this port; 0 takes a free one.", minimum=0, maximum=65535, group=_WHERE)
    api_key_file: str | None = setting(
        None,
        "Require the key in this file as a bearer token; LLMKIT_API_KEY in the environment is the same.",
        metavar="FILE",
        group=_WHERE,
    )
    max_concurrency: int | None = setting(
        None,
        "Generate at most this many outputs at once.",
        minimum=1,
        group=_LIMITS,
        shown_default="set by the device",
    )
    max_batch_tokens: int | None = setting(
        None,
        "Batch at most this many tokens (prompt, output, padding).",
        minimum=1,
        group=_LIMITS,
        shown_default="estimated from free memory",
    )
    max_queue: int = setting(
        128, "Let at most this many requests wait; further ones get 429.", minimum=1, group=_LIMITS
    )
    max_body: int = setting(2_000_000, "Refuse bodies larger than this many bytes.", minimum=1, group=_LIMITS)
    timeout: float = setting(600.0, "Stop a request after this many seconds.", minimum=0.1, group=_LIMITS)
    drain: int = setting(30, "After SIGTERM, give running requests this many seconds.", minimum=0, group=_LIMITS)


class ServeOptions(LoadOptions, total=False):
    """The fields of `ServeSettings` too."""

    host: str
    port: int
    api_key_file: str | None
    max_concurrency: int | None
    max_batch_tokens: int | None
    max_queue: int
    max_body: int
    timeout: float
    drain: int
