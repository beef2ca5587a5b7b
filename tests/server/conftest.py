"""Servers of tiny models, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from llmkit.config.settings import LoadSettings
from llmkit.server.app import make_app
from llmkit.server.models import ServedModel, load_models
from llmkit.server.settings import ServeSettings

Serve = Callable[..., TestClient]
CPU = LoadSettings(device="cpu", dtype="float32", offline=True)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server of some models; ``client.models`` are the served ones."""
    started: list[ServedModel] = []

    def start(
        *models: Any, key: str | None = None, adapters: dict[str, str] | None = None, **settings: Any
    ) -> TestClient:
        own = ServeSettings(**settings)
        served = load_models([str(model) for model in models], CPU, own, adapters)
        started.extend(served.values())
        client = TestClient(make_app(served, own, key), base_url="http://127.0.0.1:8000", raise_server_exceptions=False)
        client.models = served  # type: ignore[attr-defined]
        return client

    yield start
    for model in started:
        model.worker.close(timeout=10)
