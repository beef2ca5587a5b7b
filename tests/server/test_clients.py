"""Clients of OpenAI's API over a real connection: Python's, synchronous and not, and JavaScript's."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import uvicorn

from tests.conftest import Checkpoint
from tests.server.conftest import Serve

JAVASCRIPT = """
import OpenAI from "openai";
const [baseURL, model] = process.argv.slice(2);
const api = new OpenAI({ baseURL, apiKey: "secret", maxRetries: 0 });
const messages = [{ role: "user", content: "The quick brown fox" }];
const ask = { model, messages, temperature: 0, max_tokens: 8 };
const found = { models: (await api.models.list()).data.map((each) => each.id) };
found.chat = (await api.chat.completions.create(ask)).choices[0].message.content;
found.stream = "";
for await (const chunk of await api.chat.completions.create({ ...ask, stream: true }))
  found.stream += chunk.choices[0]?.delta?.content ?? "";
const text = { model, prompt: "The quick", temperature: 0, max_tokens: 8 };
found.completion = (await api.completions.create(text)).choices[0].text;
const response = { model, input: messages[0].content, temperature: 0, max_output_tokens: 8 };
found.response = (await api.responses.create(response)).output_text;
found.events = "";
for await (const event of await api.responses.create({ ...response, stream: true }))
  if (event.type === "response.output_text.delta") found.events += event.delta;
found.errors = [];
const note = (error) => found.errors.push([error.status, error.param]);
for (const wrong of [{ model: "x" }, { user: "x" }, { max_tokens: -1 }])
  await api.chat.completions.create({ ...ask, ...wrong }).catch(note);
console.log(JSON.stringify(found));
"""


@pytest.fixture
def server(checkpoint: Checkpoint, serve: Serve) -> Iterator[tuple[str, str]]:
    """Address and model of a server on loopback."""
    client = serve(checkpoint("gpt2", chat=True, n_positions=512), key="secret")
    running = uvicorn.Server(uvicorn.Config(client.app, port=0, log_level="error", access_log=False))
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        thread.join(0.01)
    port = running.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/v1", next(iter(client.models))  # type: ignore[attr-defined]
    running.should_exit = True
    thread.join(30)


def asked(model: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": "The quick brown fox"}]
    return {"model": model, "messages": messages, "temperature": 0, "max_tokens": 8}


def test_python_clients(server: tuple[str, str]) -> None:
    address, model = server
    ask = asked(model)
    with openai.OpenAI(base_url=address, api_key="secret", max_retries=0) as api:
        text = api.chat.completions.create(**ask).choices[0].message.content
        chunks = list(api.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
        assert chunks[0].choices[0].delta.role == "assistant"
        assert (chunks[-1].choices, chunks[-1].usage is not None) == ([], True)
        assert chunks[-2].choices[0].finish_reason in ("stop", "length")
        for wrong, kind in (
            (ask | {"model": "x"}, openai.NotFoundError),
            (ask | {"user": "x"}, openai.BadRequestError),
        ):
            with pytest.raises(kind):
                api.chat.completions.create(**wrong)
        with pytest.raises(openai.AuthenticationError):
            api.with_options(api_key="wrong").models.list()

    async def several() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=address, api_key="secret", max_retries=0) as client:
            answers = await asyncio.gather(*(client.chat.completions.create(**ask) for _ in range(3)))
            streamed = ""
            async for chunk in await client.chat.completions.create(**ask, stream=True):
                streamed += chunk.choices[0].delta.content or ""
            return [streamed, *(answer.choices[0].message.content for answer in answers)]

    assert asyncio.run(several()) == [text] * 4


@pytest.mark.starter
def test_the_client_of_javascript(server: tuple[str, str], tmp_path: Path) -> None:
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("npm and node are not installed")
    install = ["npm", "install", "--no-audit", "--no-fund", "openai@6.49.0"]
    subprocess.run(install, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    (tmp_path / "ask.mjs").write_text(JAVASCRIPT, encoding="utf-8")
    address, model = server
    run = subprocess.run(
        ["node", "ask.mjs", address, model], cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60
    )
    found = json.loads(run.stdout)
    with openai.OpenAI(base_url=address, api_key="secret") as api:
        text = api.chat.completions.create(**asked(model)).choices[0].message.content
        completion = (
            api.completions.create(model=model, prompt="The quick", temperature=0, max_tokens=8).choices[0].text
        )
    assert found == {
        "models": [model],
        "chat": text,
        "stream": text,
        "completion": completion,
        "response": text,
        "events": text,
        "errors": [[404, "model"], [400, "user"], [400, "max_tokens"]],
    }
