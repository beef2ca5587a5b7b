"""Access, queues, clients that leave, and models that fail."""

from __future__ import annotations

import json
import logging
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
import torch
from fastapi.testclient import TestClient

from llmkit.config.settings import LoadSettings
from llmkit.engines.transformers import TransformersEngine
from llmkit.engines.transformers.joined_batch import JoinedBatch
from llmkit.errors import InputError, UsageError
from llmkit.inference.scheduler import Scheduler
from llmkit.server.run import api_key
from llmkit.server.run import serve as run_server
from llmkit.server.settings import ServeSettings
from tests.conftest import Checkpoint
from tests.server.conftest import Serve


def ask(client: TestClient, tokens: int = 4, **more: Any) -> Any:
    (name, *_) = client.models  # type: ignore[attr-defined]
    return client.post("/v1/generate", json={"model": name, "prompt": "The fox", "max_new_tokens": tokens, **more})


@pytest.fixture
def folder(checkpoint: Checkpoint) -> str:
    return str(checkpoint("llama", chat=True, max_position_embeddings=2048))


def test_every_path_but_health_needs_the_key(folder: str, serve: Serve) -> None:
    client = serve(folder, key="secret")
    assert [client.get(path).status_code for path in ("/health", "/ready")] == [200, 200]
    for path in ("/v1/models", "/metrics", "/openapi.json", "/nowhere"):
        assert client.get(path).status_code == 401
        assert client.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert client.get("/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200


def test_a_foreign_host_is_refused(folder: str, serve: Serve) -> None:
    client = serve(folder)
    assert client.get("/v1/models", headers={"Host": "evil.example"}).status_code == 403
    assert client.get("/v1/models", headers={"Host": "localhost:8000"}).status_code == 200


def test_an_open_address_needs_a_key(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no API key"):
        api_key(ServeSettings(host="0.0.0.0"))
    (tmp_path / "key").write_text("secret\n")
    assert api_key(ServeSettings(host="0.0.0.0", api_key_file=str(tmp_path / "key"))) == "secret"
    monkeypatch.setenv("LLMKIT_API_KEY", "other")
    assert api_key(ServeSettings()) == "other"


@pytest.mark.parametrize("key", [b"", b" \n", "schlüssel".encode(), b"\xff\xfe", b"two\nlines", b"tab\tbed"])
def test_keys_that_no_client_can_send_are_refused(key: bytes, tmp_path: Any) -> None:
    (tmp_path / "key").write_bytes(key)
    with pytest.raises(InputError, match="key"):
        api_key(ServeSettings(api_key_file=str(tmp_path / "key")))


def test_a_key_file_that_is_missing_or_a_folder(tmp_path: Any) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            api_key(ServeSettings(api_key_file=str(path)))


def test_a_port_in_use_is_found_before_models_are_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(InputError, match="cannot listen"):
        run_server(["no-such-model"], LoadSettings(), ServeSettings(port=other.getsockname()[1]), print)


def test_the_openai_client(folder: str, serve: Serve) -> None:
    client = serve(folder, key="secret")
    api = openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="secret", http_client=client)
    (model,) = api.models.list().data
    messages: Any = [{"role": "user", "content": "The quick brown fox"}]
    whole = api.chat.completions.create(model=model.id, messages=messages, temperature=0, max_tokens=12)
    chunks = api.chat.completions.create(model=model.id, messages=messages, temperature=0, max_tokens=12, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    with pytest.raises(openai.NotFoundError):
        api.chat.completions.create(model="another", messages=messages)
    with pytest.raises(openai.BadRequestError, match="top_logprobs"):
        api.chat.completions.create(model=model.id, messages=messages, top_logprobs=2)


def test_a_full_queue_answers_429(folder: str, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    client = serve(folder, max_concurrency=1, max_queue=2)
    advance, go = JoinedBatch.advance, threading.Event()

    def wait(batch: JoinedBatch) -> None:
        go.wait(30)
        advance(batch)

    monkeypatch.setattr(JoinedBatch, "advance", wait)
    with ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(ask, client) for _ in range(6)]
        while sum(each.done() for each in answers) < 1:
            pass
        go.set()
        found = [each.result() for each in answers]
    statuses = sorted(each.status_code for each in found)
    assert set(statuses) == {200, 429}
    assert next(each for each in found if each.status_code == 429).headers["Retry-After"] == "1"
    assert ask(client).status_code == 200


def test_a_failing_step_ends_its_requests_only(folder: str, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    client = serve(folder)
    with monkeypatch.context() as patch:
        patch.setattr(JoinedBatch, "advance", lambda _: 1 / 0)
        failed = ask(client)
    assert (failed.status_code, failed.json()["error"]["type"]) == (500, "server_error")
    assert ask(client).status_code == 200


def test_a_dead_worker_is_not_ready(folder: str, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    client = serve(folder)

    def die(_: JoinedBatch) -> None:
        raise MemoryError("outside of a batch") from OSError("the device is lost")

    monkeypatch.setattr("llmkit.inference.scheduler.Scheduler.step", die)
    assert client.get("/ready").status_code == 200
    assert ask(client).status_code == 503
    assert client.get("/ready").status_code == 503
    assert client.get("/health").status_code == 200
    assert ask(client).status_code == 503


def test_a_dead_worker_ends_open_streams_with_an_error(
    folder: str, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, step, left = serve(folder), Scheduler.step, [4]

    def die(scheduler: Scheduler) -> Any:
        left[0] -= 1
        if not left[0]:
            raise MemoryError
        return step(scheduler)

    monkeypatch.setattr(Scheduler, "step", die)
    body = {"prompt": "The fox", "max_new_tokens": 500, "stream": True, "temperature": 0, "repetition_penalty": 1.5}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.post, "/v1/generate", json=body)
        while left[0] > 0:
            ask(client, 1)
        events = [line for line in answer.result().text.split("\n\n") if line]
    assert json.loads(events[-1].removeprefix("data: "))["error"]["type"] == "server_error"
    assert client.get("/ready").status_code == 503


def test_memory_that_runs_out_halves_the_batch(folder: str, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    client = serve(folder, max_batch_tokens=4000)
    (served,) = client.models.values()  # type: ignore[attr-defined]
    alone, advance, failed = ask(client, 40).json(), JoinedBatch.advance, [False]

    def fail_once(batch: JoinedBatch) -> None:
        if not failed[0] and len([row for part in batch._parts for row in part.rows]) > 2:
            failed[0] = True
            raise torch.OutOfMemoryError("out of memory")
        advance(batch)

    monkeypatch.setattr(JoinedBatch, "advance", fail_once)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: ask(client, 40), range(4)))
    assert failed[0]
    assert [answer.json()["text"] for answer in answers] == [alone["text"]] * 4
    assert served.worker._scheduler.session._running.tokens < 4000


def test_no_prompt_or_answer_is_logged(
    folder: str, serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client, secret = serve(folder), "Xanadu73"
    monkeypatch.setattr(logging.getLogger("llmkit"), "propagate", True)
    caplog.set_level(logging.DEBUG)
    chat = [{"role": "user", "content": secret}]
    for path, body in (
        ("/v1/generate", {"prompt": secret, "max_new_tokens": 3}),
        ("/v1/generate", {"prompt": secret * 3000, "max_new_tokens": 3}),
        ("/v1/generate", {"prompt": [secret], "model": secret}),
        ("/v1/chat/completions", {"model": folder, "messages": chat, "max_tokens": 2}),
        ("/v1/answer", {"question": secret, "context": secret}),
        ("/tokenize", {"prompt": secret}),
    ):
        client.post(path, json=body)
    client.post("/v1/generate", content=f'{{"prompt": "{secret}')
    with monkeypatch.context() as patch:
        patch.setattr(TransformersEngine, "encode", lambda _, prompt: 1 / 0 if prompt else secret[prompt])
        assert client.post("/v1/generate", json={"prompt": secret}).status_code == 500

    def fail(_: Any, prompt: Any) -> None:
        raise ValueError(f"cannot encode {prompt}")

    with monkeypatch.context() as patch:
        patch.setattr(TransformersEngine, "encode", fail)
        client.post("/v1/generate", json={"prompt": secret})
    assert secret not in caplog.text


def test_a_client_that_leaves_frees_its_place(folder: str, serve: Serve) -> None:
    client = serve(folder, max_concurrency=1)
    (served,) = client.models.values()  # type: ignore[attr-defined]
    body = {"prompt": "The fox", "max_new_tokens": 1500, "temperature": 0, "stream": True}
    pieces = 0
    with client.stream("POST", "/v1/generate", json=body | {"repetition_penalty": 1.5}) as response:
        for line in response.iter_lines():
            pieces += bool(line)
            if pieces == 3:
                break
    assert ask(client).status_code == 200
    assert served.worker.unfinished <= 1


def test_a_request_that_takes_too_long_is_stopped(folder: str, serve: Serve) -> None:
    client = serve(folder, timeout=0.1)
    found = ask(client, 1500, repetition_penalty=1.5)
    assert (found.status_code, found.json()["error"]["code"]) == (504, "timeout")


def test_figures_count_requests_and_tokens(folder: str, serve: Serve) -> None:
    client = serve(folder)
    tokens = ask(client).json()["usage"]["completion_tokens"]
    lines = client.get("/metrics").text.splitlines()
    assert 'llmkit_requests_total{path="/v1/generate",status="200"} 1.0' in lines
    assert any(
        (line.startswith("llmkit_tokens_total") and line.endswith(f'kind="output"}} {tokens}.0'))
        or f'kind="output",model="{folder}"}} {tokens}.0' in line
        for line in lines
    )
    assert not any("fox" in line for line in lines)


def test_text_and_ids(folder: str, serve: Serve) -> None:
    client = serve(folder)
    found = client.post("/tokenize", json={"prompt": "The quick fox", "add_special_tokens": False}).json()
    assert found["count"] == len(found["tokens"])
    assert client.post("/detokenize", json={"tokens": found["tokens"]}).json()["prompt"].strip() == "The quick fox"
    assert client.post("/detokenize", json={"tokens": [10**6]}).status_code == 400


def test_a_server_of_its_own_drains_and_ends(folder: str) -> None:
    command = [sys.executable, "-m", "llmkit", "serve", folder, "--port", "0", "--device", "cpu", "--offline"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "tokens at once" in process.stderr.readline()
        address = re.search(r"http://\S+", process.stderr.readline())
        assert address is not None
        body = {"prompt": "The fox", "max_new_tokens": 300, "temperature": 0, "stream": True}
        with httpx.stream("POST", f"{address[0]}/v1/generate", json=body, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert process.wait(60) == 143
        assert process.stderr.read() == ""


def test_a_second_interrupt_ends_at_once(folder: str) -> None:
    command = [sys.executable, "-m", "llmkit", "serve", folder, "--port", "0", "--device", "cpu", "--drain", "600"]
    with subprocess.Popen([*command, "--offline"], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        address = next(found[0] for line in process.stderr if (found := re.search(r"http://\S+", line)))
        body = {"prompt": "The fox", "max_new_tokens": 1900, "temperature": 0, "repetition_penalty": 1.5}
        with httpx.stream("POST", f"{address}/v1/generate", json=body | {"stream": True}, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGINT)
            while True:  # further connections are refused
                try:
                    httpx.get(f"{address}/health")
                except httpx.ConnectError:
                    break
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
