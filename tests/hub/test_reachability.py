"""Whether a Hub answers, how long that is waited for and remembered, and what is said when it does not."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import close_session, constants

from llmkit.errors import HubUnreachableError, LlmkitError, without_password
from llmkit.hub import client, reachability
from tests.hub.conftest import TINY, closed_port, one_line, refuse_connections
from tests.hub.fake_hub import FakeHub, point_at


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[socket.socket]:
    """An endpoint that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        point_at(f"http://127.0.0.1:{server.getsockname()[1]}", monkeypatch, tmp_path)
        reachability.forget_unreachable()
        yield server
    close_session()


def test_a_silent_hub_is_given_up_in_time(silent: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reachability.DEADLINE < 5
    monkeypatch.setattr(reachability, "DEADLINE", 0.05)
    start = time.monotonic()
    assert not reachability.hub_reachable()
    assert client.exists("org/tiny") is None
    assert time.monotonic() - start < 1


def test_a_name_look_up_that_hangs_is_given_up_in_time(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """httpx's timeouts do not cover getaddrinfo."""
    release = threading.Event()
    monkeypatch.setattr(reachability, "DEADLINE", 0.05)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: release.wait(5) and [])
    start = time.monotonic()
    assert not reachability.hub_reachable()
    assert time.monotonic() - start < 1
    release.set()


def test_unreachable_is_remembered_for_ten_minutes(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake.add("org/tiny", TINY)
    snapshot = client.fetch("org/tiny")
    fake.requests.clear()
    now = time.time()
    point_at(f"http://127.0.0.1:{closed_port()}", monkeypatch, Path(constants.HF_HUB_CACHE).parents[1])
    assert not reachability.hub_reachable()

    with monkeypatch.context() as patch:
        refuse_connections(patch)
        patch.setattr(time, "time", lambda: now + 599)
        caplog.clear()
        assert not reachability.hub_reachable()
        assert client.fetch("org/tiny") == snapshot
        assert "using org/tiny as it is in the cache" in caplog.text

    monkeypatch.setattr(time, "time", lambda: now + 602)
    asked: list[object] = []
    monkeypatch.setattr(reachability, "_within", lambda seconds, call: asked.append(call))
    assert reachability.hub_reachable()
    assert len(asked) == 1


def test_the_memory_is_of_one_endpoint(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    assert not reachability.hub_reachable()
    monkeypatch.setattr(constants, "ENDPOINT", fake.endpoint)
    assert reachability.hub_reachable()


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"ENDPOINT": 3}', '{"ENDPOINT": {"at": "x", "why": ""}}', "\0\xff"]
)
def test_a_damaged_memory_is_ignored(fake: FakeHub, tmp_path: Path, content: str) -> None:
    (tmp_path / "llmkit").mkdir()
    (tmp_path / "llmkit" / "unreachable.json").write_bytes(content.replace("ENDPOINT", fake.endpoint).encode("latin-1"))
    assert reachability.hub_reachable()


def test_a_memory_from_the_future_is_ignored(fake: FakeHub, tmp_path: Path) -> None:
    reachability._remember(fake.endpoint, "was down")
    assert not reachability.hub_reachable()
    entry = {fake.endpoint: {"at": time.time() + 3600, "why": "was down"}}
    (tmp_path / "llmkit" / "unreachable.json").write_text(json.dumps(entry))
    assert reachability.hub_reachable()


def test_reachable_is_asked_once_a_process(fake: FakeHub) -> None:
    assert reachability.hub_reachable()
    assert reachability.hub_reachable()
    assert fake.requests == ["HEAD /"]


def test_a_proxy_that_fails(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "https://client.invalid")
    monkeypatch.setenv("HTTPS_PROXY", fake.endpoint)  # does not know CONNECT
    close_session()
    with pytest.raises(HubUnreachableError, match="HTTPS_PROXY") as error:
        client.fetch("org/tiny")
    assert one_line(error)


def test_a_certificate_that_is_not_one(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", fake.endpoint.replace("http:", "https:"))
    with pytest.raises(HubUnreachableError, match="SSL_CERT_FILE") as error:
        client.fetch("org/tiny")
    assert one_line(error)


@pytest.mark.parametrize("endpoint", ["127.0.0.1:1", "http://[", "http://127.0.0.1:port", "ftp://127.0.0.1"])
def test_an_endpoint_that_is_no_address(fake: FakeHub, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    with pytest.raises(HubUnreachableError) as error:
        client.fetch("org/tiny")
    assert one_line(error)


def test_a_token_is_never_quoted(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_sécret")
    with pytest.raises(HubUnreachableError, match="HF_TOKEN") as error:
        client.fetch("org/tiny")
    assert "cret" not in one_line(error)
    assert "cret" not in reachability.reason(httpx2.LocalProtocolError("Illegal header value b'Bearer hf_secret'"))


def test_passwords_in_addresses_are_not_shown() -> None:
    text = "GET https://user:s3cret@client.invalid/api failed; see http://a@b/c and https://client.invalid/a@b"
    assert (
        without_password(text) == "GET https://client.invalid/api failed; see http://b/c and https://client.invalid/a@b"
    )


@pytest.mark.parametrize(
    "endpoint", ["https://user:s3cret@127.0.0.1:9", "https://us/er:s3cret@127.0.0.1:9", "user:s3cret@127.0.0.1:9"]
)
def test_no_password_is_told_or_kept_and_nobody_else_reads_what_is(
    endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    point_at(endpoint, monkeypatch, tmp_path)
    monkeypatch.setenv("LLMKIT_CACHE", str(tmp_path / "own"))
    reachability.forget_unreachable()
    for _ in range(2):  # asked, and remembered
        with pytest.raises(HubUnreachableError) as caught:
            client.fetch("org/tiny")
        assert "s3cret" not in str(caught.value)
        assert "127.0.0.1:9" in str(caught.value)
    kept = tmp_path / "own" / "unreachable.json"
    assert "s3cret" not in kept.read_text()
    assert (kept.stat().st_mode & 0o777, kept.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_errors_hold_no_passwords_and_no_tokens() -> None:
    token = "hf_" + "a1B2" * 9
    error = LlmkitError(
        f"401 for url https://me:s3cret@client.invalid/api?token={token}", "ask at https://me:s3cret@client.invalid"
    )
    assert str(error) == "401 for url https://client.invalid/api?token=; ask at https://client.invalid"
