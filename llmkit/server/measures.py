"""Figures on requests, for Prometheus: counts, tokens, latencies, queues. No prompts."""

from __future__ import annotations

import time
from collections.abc import Mapping

from fastapi import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmkit.server.answers import Answer
from llmkit.server.models import ServedModel

__all__ = ["Measures"]

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Measures:
    """The figures of one application."""

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        self._requests = Counter("llmkit_requests", "Requests answered.", ("path", "status"), registry=own)
        self._seconds = Histogram(
            "llmkit_request_seconds", "Seconds to the status line.", ("path",), buckets=_SECONDS, registry=own
        )
        self._first = Histogram(
            "llmkit_first_piece_seconds",
            "Seconds to the first piece of text.",
            ("model",),
            buckets=_SECONDS,
            registry=own,
        )
        self._tokens = Counter(
            "llmkit_tokens",
            "Tokens of answers that ended; cached ones are part of the prompts.",
            ("model", "kind"),
            registry=own,
        )
        unfinished = Gauge("llmkit_unfinished_requests", "Requests that wait or run.", ("model",), registry=own)
        for name, model in models.items():
            if model.parent is not None:  # the worker of its base counts all
                continue
            unfinished.labels(name).set_function(lambda worker=model.worker: worker.unfinished)  # type: ignore[misc]

    def counted(self, app: ASGIApp) -> ASGIApp:
        """Middleware that counts requests. Nothing stands between the application and the client's speed."""

        async def call(scope: Scope, receive: Receive, send: Send) -> None:
            begun = time.monotonic()

            async def count(message: Message) -> None:
                if message["type"] == "http.response.start":
                    path = getattr(scope.get("route"), "path", "unknown")
                    self._requests.labels(path, str(message["status"])).inc()
                    self._seconds.labels(path).observe(time.monotonic() - begun)
                await send(message)

            await app(scope, receive, count)

        return call

    def watch(self, answer: Answer) -> Answer:
        """Count an answer when it ends."""
        answer.on_end = self._ended
        return answer

    def _ended(self, answer: Answer) -> None:
        name, output = answer.model.name, answer.output
        if answer.first is not None:
            self._first.labels(name).observe(answer.first)
        if output is not None:
            self._tokens.labels(name, "prompt").inc(output.usage.prompt_tokens)
            self._tokens.labels(name, "cached").inc(output.usage.cached_tokens)
            self._tokens.labels(name, "output").inc(output.usage.completion_tokens)

    async def report(self) -> Response:
        """The figures in Prometheus' format."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)
