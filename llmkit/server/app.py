"""The ASGI application: paths, and what each answers.

Knows HTTP. What a request means for a model is in `llmkit.server.openai_api` and `llmkit.server.requests`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException

from llmkit.config.declaration import non_default, setting_fields
from llmkit.config.settings import GenerationSettings
from llmkit.engines.transformers import TransformersEngine
from llmkit.engines.transformers.grammars import GRAMMARS
from llmkit.errors import LlmkitError, UsageError
from llmkit.inference.next_tokens import next_tokens, token_logprobs
from llmkit.log import hide_exception_texts, log
from llmkit.server import openai_api as openai
from llmkit.server import responses_api as responses
from llmkit.server.answers import Answer, complete, on_worker
from llmkit.server.bodies import StrictRoute
from llmkit.server.errors import ApiError, api_error, http_error, invalid_request, llmkit_error, too_deep, unexpected
from llmkit.server.guard import Guard
from llmkit.server.measures import Measures
from llmkit.server.models import ServedModel
from llmkit.server.openapi import ACCESS, ERRORS, NOT_FOUND, NOT_READY, STREAM, describe
from llmkit.server.page import add_page
from llmkit.server.replies import (
    ChatCompletion,
    Completion,
    ModelInfo,
    ModelList,
    NextTokens,
    PlainText,
    ResponseBody,
    Status,
    TaskAnswer,
    Tokens,
)
from llmkit.server.requests import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    NextRequest,
    TokenizeRequest,
    task_request,
)
from llmkit.server.responses_request import ResponseRequest
from llmkit.server.settings import LOOPBACK, ServeSettings
from llmkit.server.streams import chat_events, completion_events, response_events, task_events
from llmkit.tasks import TASKS, PromptOptions, Task, Text
from llmkit.tasks.output import Output, Usage

__all__ = ["make_app"]

_COMPILING = ThreadPoolExecutor(1, "llmkit-grammars")
"""One at a time, so that the model's thread keeps a CPU."""


def make_app(models: Mapping[str, ServedModel], settings: ServeSettings, key: str | None = None) -> FastAPI:
    """The application for some models.

    Args:
        models: by name; the first answers requests that name none.
        key: required of every request, except for ``/health``, ``/ready`` and the files of the page.
    """
    app = FastAPI(title="llmkit", version=version("llmkit"), docs_url=None, redoc_url=None, responses=ACCESS)
    describe(app)
    app.state.max_body = settings.max_body
    app.router.route_class = StrictRoute
    for kind, handler in (
        (ApiError, api_error),
        (LlmkitError, llmkit_error),
        (RequestValidationError, invalid_request),
        (HTTPException, http_error),
        (RecursionError, too_deep),
        (Exception, unexpected),
    ):
        app.add_exception_handler(kind, handler)
    hide_exception_texts(log.name, "uvicorn.error")
    measures = Measures(models)
    hosts = (settings.host, *LOOPBACK) if settings.host in LOOPBACK else ()
    app.add_middleware(Guard, key=key, hosts=hosts)
    app.add_middleware(measures.counted)
    server = _Server(models, settings, measures)
    app.post("/v1/chat/completions", response_model=ChatCompletion, responses=STREAM)(server.chat)
    app.post("/v1/responses", response_model=ResponseBody, responses=STREAM)(server.responses)
    app.post("/v1/completions", response_model=Completion, responses=STREAM)(server.completions)
    app.get("/v1/models", response_model=ModelList)(server.list_models)
    app.get("/v1/models/{name:path}", response_model=ModelInfo, responses=NOT_FOUND)(server.show_model)
    app.post("/v1/next", response_model=NextTokens, responses=ERRORS)(server.next)
    app.post("/tokenize", response_model=Tokens, responses=ERRORS)(server.tokenize)
    app.post("/detokenize", response_model=PlainText, responses=ERRORS)(server.detokenize)
    app.get("/health", response_model=Status)(server.health)
    app.get("/ready", response_model=Status, responses=NOT_READY)(server.ready)
    app.get("/metrics", response_class=PlainTextResponse)(measures.report)
    add_page(app)
    for task in TASKS.values():
        if not task.converses:
            route = app.post(f"/v1/{task.verb}", name=task.verb, response_model=TaskAnswer, responses=STREAM)
            route(_task_endpoint(server, task))
    return app


def _task_endpoint(server: _Server, task: type[Task]) -> Any:
    async def endpoint(request: Request, body: Any) -> Response:
        return await server.task(task, request, body)

    endpoint.__annotations__ = {"request": Request, "body": task_request(task), "return": Response}
    endpoint.__doc__ = task.help.splitlines()[0]
    return endpoint


class _Server:
    """The endpoints."""

    def __init__(self, models: Mapping[str, ServedModel], settings: ServeSettings, measures: Measures) -> None:
        self.models, self.settings, self.measures = models, settings, measures

    def _model(self, name: str | None) -> ServedModel:
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            listed = ", ".join(self.models)
            raise ApiError(
                404, f"no model {name!r} is served; name one of: {listed}", param="model", code="model_not_found"
            )
        return self.models[name]

    async def _prepare(self, model: ServedModel, settings: GenerationSettings, param: str | None = None) -> None:
        """Compile the grammar of a request, which the model's thread then finds compiled."""
        if not (asked := non_default(settings, *GRAMMARS)):
            return
        try:
            await asyncio.get_running_loop().run_in_executor(_COMPILING, model.engine.check, settings)
        except UsageError as error:
            raise ApiError(400, str(error), param=param or asked[0], code=error.code) from error

    def _answer(self, model: ServedModel, pipeline: Any, row: Any, *, streams: bool) -> Answer:
        return self.measures.watch(Answer(model, pipeline, row, streams, self.settings.timeout))

    async def chat(self, request: Request, body: ChatRequest) -> Response:
        """Create a chat completion."""
        answer = await self._chat(body)
        if body.stream:
            return _stream(chat_events(answer, body))
        (output,) = await complete(request, [answer])
        output = openai.limited(output, body.parallel_tool_calls)
        identity = openai.new_id("chatcmpl")
        return JSONResponse(openai.chat_completion(identity, answer.created, answer.model.name, output))

    async def _chat(self, body: ChatRequest) -> Answer:
        model = self._model(body.model)
        settings = openai.chat_settings(body)
        await self._prepare(model, settings, "response_format")
        pipeline = partial(model.pipeline, "dialogue", settings, openai.chat_prompt(body))
        return self._answer(model, pipeline, openai.chat_row(body), streams=bool(body.stream))

    async def responses(self, request: Request, body: ResponseRequest) -> Response:
        """Create a response; it is not stored."""
        answer = await self._chat(responses.as_chat(body))
        if body.stream:
            return _stream(response_events(body, answer))
        await complete(request, [answer])
        return JSONResponse(responses.response(body, answer))

    async def completions(self, request: Request, body: CompletionRequest) -> Response:
        """Create text completions: prompts are continued as they are, without a chat template."""
        model = self._model(body.model)
        prompts, settings = openai.completion_prompts(body), openai.completion_settings(body)
        top = body.logprobs if body.echo else None
        echoes = [openai.Echo()] * len(prompts)
        if body.echo:
            echoes = await on_worker(model, lambda: [_echo(model.engine, each, top) for each in prompts])
        if body.max_tokens == 0:
            outputs = [_nothing(model, echo, logprobs=top is not None) for echo in echoes]
            return JSONResponse(openai.completion(openai.new_id("cmpl"), model.name, echoes, outputs))
        pipeline = partial(model.pipeline, "text-generation", settings, PromptOptions(raw=True))
        answers = [self._answer(model, pipeline, {"prompt": each}, streams=bool(body.stream)) for each in prompts]
        if body.stream:
            return _stream(completion_events(answers, echoes, include_usage=openai.includes_usage(body)))
        outputs = await complete(request, answers)
        return JSONResponse(openai.completion(openai.new_id("cmpl"), model.name, echoes, outputs))

    async def task(self, task: type[Task], request: Request, body: Any) -> Response:
        """Answer a row of a task, as its command does."""
        model = self._model(body.model)
        given = body.model_dump(exclude_unset=True, exclude_none=True, exclude={"model", "stream"})
        row = {name: given.pop(name) for name in (*task.columns, *task.optional_columns) if name in given}
        own = {item.name: given.pop(item.name) for item in setting_fields(task.settings_class) if item.name in given}
        settings = GenerationSettings(**given)
        await self._prepare(model, settings)
        pipeline = partial(model.pipeline, task.name, settings, PromptOptions(), task.settings_class(**own))
        answer = self._answer(model, pipeline, row, streams=body.stream)
        if body.stream:
            return _stream(task_events(answer))
        (output,) = await complete(request, [answer])
        return JSONResponse(output.to_dict())

    async def next(self, body: NextRequest) -> Any:
        """The distribution of the next token."""
        model = self._model(body.model)
        found = await on_worker(model, lambda: next_tokens(model.engine.loaded, body.prompt, top=body.top))
        return {"model": model.name, "tokens": [each.to_dict() for each in found]}

    async def tokenize(self, body: TokenizeRequest) -> Any:
        """Token ids of a text."""
        model = self._model(body.model)
        tokenizer: Any = model.engine.loaded.tokenizer
        encode = partial(tokenizer.encode, body.prompt, add_special_tokens=body.add_special_tokens)
        ids = await on_worker(model, encode)
        return {"count": len(ids), "max_model_len": model.engine.facts.context.tokens, "tokens": ids}

    async def detokenize(self, body: DetokenizeRequest) -> Any:
        """The text of token ids."""
        model = self._model(body.model)
        tokenizer: Any = model.engine.loaded.tokenizer
        if (largest := max(body.tokens, default=0)) >= len(tokenizer):
            raise ApiError(400, f"token {largest} is not in the vocabulary of {len(tokenizer)}", param="tokens")
        return {"prompt": await on_worker(model, partial(tokenizer.decode, body.tokens))}

    async def list_models(self) -> Any:
        """The models that are served."""
        return {"object": "list", "data": [_described(model) for model in self.models.values()]}

    async def show_model(self, name: str) -> Any:
        """One model."""
        return _described(self._model(name))

    async def health(self) -> Any:
        """Whether the server runs."""
        return {"status": "ok"}

    async def ready(self) -> Response:
        """Whether every model answers."""
        stopped = [name for name, model in self.models.items() if not model.worker.alive]
        status = {"status": "ok"} if not stopped else {"status": "stopped", "models": stopped}
        return JSONResponse(status, 503 if stopped else 200)


def _echo(engine: TransformersEngine, prompt: str | Text, top: int | None) -> openai.Echo:
    """A prompt of a text completion, with the log probabilities of its tokens if ``top`` is a number."""
    given = Text(prompt) if isinstance(prompt, str) else prompt
    ids = engine.encode(given).input_ids
    text = str(engine.loaded.tokenizer.decode(list(given.ids), skip_special_tokens=True)) if given.ids else given.text
    found = () if top is None else tuple(token_logprobs(engine.loaded, given, top=top))
    return openai.Echo(text, len(ids), found)


def _nothing(model: ServedModel, echo: openai.Echo, *, logprobs: bool) -> Output:
    """The output of a prompt that is only echoed."""
    facts = model.engine.facts
    return Output(
        text="",
        task="text-generation",
        model=facts.source.name,
        commit=None,
        head=str(facts.head),
        finish_reason="length",
        usage=Usage(echo.tokens, 0),
        logprobs=() if logprobs else None,
    )


def _stream(events: Any) -> StreamingResponse:
    return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


def _described(model: ServedModel) -> dict[str, Any]:
    facts = model.engine.facts
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "llmkit",
        "root": facts.source.name,
        "parent": model.parent,
        "head": str(facts.head),
        "max_model_len": facts.context.tokens,
    }
