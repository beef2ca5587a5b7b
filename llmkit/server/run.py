"""Running the server: its key, its address, and its end."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from llmkit.config.settings import LoadSettings
from llmkit.errors import InputError, UsageError
from llmkit.server.app import make_app
from llmkit.server.models import load_models
from llmkit.server.settings import LOOPBACK, ServeSettings

__all__ = ["KEY_VARIABLE", "api_key", "limit_silence", "serve"]

KEY_VARIABLE = "LLMKIT_API_KEY"


def api_key(settings: ServeSettings) -> str | None:
    """The key from the file or the environment.

    Raises:
        UsageError: the address is open to others, and there is no key.
    """
    key = os.environ.get(KEY_VARIABLE)
    if settings.api_key_file is not None:
        try:
            key = Path(settings.api_key_file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{settings.api_key_file} cannot be read ({error})", "check its path") from error
    if key is not None and not (key and key.isascii() and key.isprintable()):
        raise InputError("the API key is empty or not one line of printable ASCII", "write another one")
    if key is None and settings.host not in LOOPBACK:
        raise UsageError(
            f"others can reach {settings.host}, and no API key is set",
            f"name a file with `api_key_file`, or set {KEY_VARIABLE}",
        )
    return key


def serve(
    models: Sequence[str],
    load: LoadSettings,
    settings: ServeSettings,
    on_start: Callable[[str], None],
    adapters: Mapping[str, str] | None = None,
) -> None:
    """Load models and answer requests until SIGINT or SIGTERM, which leaves running requests ``drain`` seconds.

    Args:
        on_start: called with the address when requests are accepted.
        adapters: see `load_models`.
    """
    key = api_key(settings)
    _check_address(settings)
    app = make_app(load_models(models, load, settings, adapters), settings, key)
    _Server(_config(app, settings), on_start, settings.timeout).run()


def _check_address(settings: ServeSettings) -> None:
    """Refuse an address that cannot be listened on, before models are loaded."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        socket.create_server((settings.host, settings.port), family=family).close()
    except OSError as error:
        raise InputError(
            f"cannot listen on {settings.host}, port {settings.port} ({error.strerror})",
            "choose another `port`",
            "choose another `host`",
        ) from error


def _config(app: FastAPI, settings: ServeSettings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=settings.drain,
    )


def limit_silence(sockets: Iterable[Any], seconds: float) -> None:
    """Close connections of clients that accept no data for so long, on Linux; accepted sockets inherit the option."""
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        for each in sockets:
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_start: Callable[[str], None], silence: float) -> None:
        super().__init__(config)
        self._on_start, self._silence = on_start, silence

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await super().startup(sockets)  # type: ignore[arg-type]
        if self.started:
            limit_silence(self.servers[0].sockets, self._silence)
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self._on_start(f"http://{f'[{host}]' if ':' in host else host}:{port}")
