"""Clients as they are on real sockets: slow, half-closed, gone; and browsers of other sites."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import pytest
import uvicorn

from llmkit.config.settings import LoadSettings
from llmkit.server.app import make_app
from llmkit.server.models import ServedModel, load_models
from llmkit.server.run import limit_silence
from llmkit.server.settings import ServeSettings
from tests.conftest import Checkpoint

LONG: dict[str, Any] = {"prompt": "The fox", "max_new_tokens": 1500, "temperature": 0, "repetition_penalty": 1.5}


class Live:
    """A server on a free port, in a thread."""

    def __init__(self, model: ServedModel, port: int) -> None:
        self.model, self.port = model, port

    def send(self, body: Any, path: str = "/v1/generate", **headers: str) -> socket.socket:
        """A connection with a request on it."""
        data = json.dumps(body).encode()
        known = {"Host": "127.0.0.1", "Content-Type": "application/json", "Content-Length": str(len(data))}
        lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in {**known, **headers}.items())]
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + data)
        return connection

    def wait(self, reached: Callable[[], bool]) -> None:
        """Wait until the model has reached a state; its thread looks after each token."""
        changed = threading.Condition()

        def look() -> None:
            with changed:
                changed.notify()

        with changed:
            for _ in range(4000):
                if reached():
                    return
                with suppress(Exception):
                    self.model.worker.run(look, lambda _: None)
                changed.wait(0.05)
        raise AssertionError("the state was not reached")


@pytest.fixture(scope="module")
def live(checkpoint: Checkpoint) -> Iterator[Live]:
    with started(str(checkpoint("llama", chat=True, max_position_embeddings=2048))) as server:
        yield server


@contextmanager
def started(folder: str, **own: Any) -> Iterator[Live]:
    settings = ServeSettings(port=0, **own)
    models = load_models([folder], LoadSettings(device="cpu", dtype="float32", offline=True), settings)
    config = uvicorn.Config(make_app(models, settings), host="127.0.0.1", port=0, log_level="warning")
    server = uvicorn.Server(config)
    sockets = [socket.create_server(("127.0.0.1", 0))]
    limit_silence(sockets, settings.timeout)
    thread = threading.Thread(target=server.run, args=[sockets])
    thread.start()
    (model,) = models.values()
    try:
        yield Live(model, sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(30)
        model.worker.close(timeout=10)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("leave", ["close", "half", "reset"])
def test_a_client_that_goes_away_leaves_the_batch(live: Live, stream: bool, leave: str) -> None:
    with live.send({**LONG, "stream": stream}) as connection:
        live.wait(lambda: live.model.worker.unfinished == 1)
        if leave == "half":
            connection.shutdown(socket.SHUT_WR)
        else:
            if leave == "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.close()
        live.wait(lambda: live.model.worker.unfinished == 0)


def test_a_client_that_never_reads_holds_nobody_up(live: Live) -> None:
    slow = [live.send({**LONG, "stream": True}) for _ in range(3)]
    try:
        answer = httpx.post(f"http://127.0.0.1:{live.port}/v1/generate", json={"prompt": "Why?", "max_new_tokens": 4})
        assert answer.status_code == 200
        live.wait(lambda: live.model.worker.unfinished == 0)  # their answers are complete all the same
    finally:
        for each in slow:
            each.close()


def test_silent_clients_are_cut_off_by_the_system() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        limit_silence([server], 2.5)
        with socket.create_connection(server.getsockname()), server.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 2500


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://127.0.0.1:{port}"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1.evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "http://evil.example", "Content-Type": "text/plain"}, 403),
        ({"Content-Type": "text/plain"}, 415),
    ],
)
def test_pages_of_other_sites_generate_nothing(live: Live, headers: dict[str, str], status: int) -> None:
    given = {name: value.format(port=live.port) for name, value in headers.items()}
    body = json.dumps({"prompt": "The fox", "max_new_tokens": 2}).encode()
    sent = {"Content-Type": "application/json", **given}
    url = f"http://127.0.0.1:{live.port}"
    answer = httpx.post(f"{url}/v1/generate", content=body, headers=sent)
    assert answer.status_code == status
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert httpx.get(f"{url}/", headers={**given, "Sec-Fetch-Mode": "navigate"}).status_code == 200  # a link


def test_headers_cannot_be_injected(live: Live) -> None:
    body = {"model": "x\r\nSet-Cookie: a=b", "prompt": "The fox"}
    with live.send(body) as connection:
        head = connection.recv(65536).decode().partition("\r\n\r\n")[0]
    assert head.startswith("HTTP/1.1 404")
    assert "cookie" not in head.lower()
