"""An engine that does what a test tells it, in the shapes of SGLang, on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.gateway.sglang_metrics import SglangMetrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.requests import Request
    from starlette.types import ASGIApp

INFO = {
    "version": "0.1.0",
    "plan": {
        "name": "built-in",
        "method": "heuristic",
        "heuristic": True,
        "retrieval_heads": 8,
        "heads": 16,
        "sha256": "00",
    },
    "defaults": {"budget": 1024, "mode": "topk", "value": None, "sinks": 64, "recent": 256},
    "dense_below": 1024,
    "recall_every": 32,
    "context_window": 8192,
    "model": "tiny",
    "device": "cpu",
    "memory": {"modes": ["text"], "default": "ask"},
}

# One prompt of 1000 tokens; four generated, of which three took a decode step.
SUMMARY = {
    "budget": 512,
    "mode": "topk",
    "value": None,
    "context_tokens": 1004,
    "attended_tokens": 600,
    "dense_tokens": 1000,
    "decode_steps": 3,
    "sparse_steps": 3,
    "attended_fraction": 0.6,
    "recall": 0.97,
    "recall_steps": 1,
    "dense_fallback": None,
    "mean_batch": 1.0,
    "queue_seconds": 0.02,
    "decode_seconds": 0.012,
    "engine_seconds": 0.0,
}

MODEL_CARD = {"id": "tiny", "object": "model", "created": 1, "owned_by": "sglang", "max_model_len": 8192}


def chat_answer(summary: dict[str, Any] | None = SUMMARY) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "tiny",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hé 你好", "reasoning_content": "hm"},
                "finish_reason": "stop",
                "matched_stop": 2,
            }
        ],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 4, "total_tokens": 1004},
    }
    return answer if summary is None else {**answer, "lychee": summary}


def chunk(delta: dict[str, Any], **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": more.pop("finish_reason", None)}
    body = {
        "id": "1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "tiny",
        "choices": [choice],
        **more,
    }
    # Spaces and raw UTF-8 on purpose: re-serialising would show.
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


PIECES = ["Hé", ' "lychee"', "\n\n你", "好"]
DONE = b"data: [DONE]\n\n"


def chat_events(summary: dict[str, Any] | None = SUMMARY) -> list[bytes]:
    last = {} if summary is None else {"lychee": summary}
    return [
        chunk({"role": "assistant", "content": ""}),
        *[chunk({"content": piece}) for piece in PIECES],
        chunk({}, finish_reason="stop", **last),
        DONE,
    ]


Piece: TypeAlias = bytes | Exception | threading.Event | None


@dataclass
class Script:
    """What the engine does with completions.

    Attributes:
        answer: body of an answer that is not streamed; a function makes it out of the request's.
        events: pieces of a stream, sent one at a time; None: hang; an exception: break the connection; a
            `threading.Event`: wait for it.
        pause: seconds before each piece of a stream, or before the answer.
        status: status of an answer that is not streamed.
        gate: when set, answers and streams wait for it before their last piece.
        reply: when set, makes a stream's pieces out of the request instead of `events`.
    """

    answer: Any = field(default_factory=chat_answer)
    events: list[Piece] = field(default_factory=lambda: list(chat_events()))
    pause: float = 0.0
    status: int = 200
    gate: threading.Event | None = None
    reply: Callable[[dict[str, Any]], list[Piece]] | None = None


class Broken(Exception):
    """Makes uvicorn close the connection in the middle of an answer."""


class ScriptedEngine:
    """Endpoints of the engine that the gateway uses, and a record of what it was asked."""

    def __init__(self) -> None:
        self.script = Script()
        self.info: dict[str, Any] | None = dict(INFO)
        self.health = 200
        self.looks = 0
        self.generate = 200
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.aborts: list[tuple[str, float]] = []
        self.abort_status = 200
        self.streams_closed: list[float] = []
        self.tokens_generated = 0
        self.loads: list[dict[str, Any]] | None = None
        self.flushed = 0
        self.token_count: int | None = None
        self.tokenized: list[dict[str, Any]] = []
        self.sglang = SglangMetrics()
        self.app = Starlette(
            routes=[
                Route("/health", self._health),
                Route("/health_generate", self._health_generate),
                Route("/lychee/info", self._info),
                Route("/metrics", self.sglang.exposition),
                Route("/v1/models", self._models),
                Route("/v1/models/{model:path}", self._model),
                Route("/v1/loads", self._loads),
                Route("/flush_cache", self._flush_cache),
                Route("/tokenize", self._tokenize, methods=["POST"]),
                Route("/abort_request", self._abort, methods=["POST"]),
                Route("/v1/chat/completions", self._complete, methods=["POST"]),
                Route("/v1/completions", self._complete, methods=["POST"]),
                Route("/v1/responses", self._complete, methods=["POST"]),
                Route("/v1/embeddings", self._complete, methods=["POST"]),
            ]
        )

    async def _health(self, _: Request) -> Response:
        self.looks += 1
        return Response(status_code=self.health)

    async def _health_generate(self, _: Request) -> Response:
        self.tokens_generated += 1
        return Response(status_code=self.generate)

    async def _info(self, _: Request) -> Response:
        return JSONResponse(self.info) if self.info is not None else Response(status_code=404)

    async def _models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [MODEL_CARD]})

    async def _model(self, request: Request) -> Response:
        model = request.path_params["model"]
        if model == "tiny":
            return JSONResponse(MODEL_CARD)
        error = {
            "message": f"The model '{model}' does not exist",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
        return JSONResponse({"error": error}, status_code=404)

    async def _loads(self, _: Request) -> Response:
        return JSONResponse({"loads": self.loads}) if self.loads is not None else Response(status_code=404)

    async def _flush_cache(self, _: Request) -> Response:
        self.flushed += 1
        return Response()

    async def _tokenize(self, request: Request) -> Response:
        self.tokenized.append(await request.json())
        if self.token_count is None:
            return JSONResponse({"object": "error", "message": "no"}, status_code=400)
        return JSONResponse({"tokens": [], "count": self.token_count, "max_model_len": 8192})

    async def _abort(self, request: Request) -> Response:
        self.aborts.append(((await request.json())["rid"], time.monotonic()))
        return Response(status_code=self.abort_status)

    async def _complete(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        script = self.script
        self.sglang.completion(streaming=bool(body.get("stream")))
        if body.get("stream") and script.status == 200:
            events = script.events if script.reply is None else script.reply(body)
            return StreamingResponse(self._stream(script, events), media_type="text/event-stream")
        await asyncio.sleep(script.pause)
        await _passed(script.gate)
        if callable(script.answer):
            return JSONResponse(script.answer(body))
        if isinstance(script.answer, Exception):
            raise script.answer
        if isinstance(script.answer, bytes):
            return Response(script.answer, status_code=script.status, media_type="application/json")
        return JSONResponse(script.answer, status_code=script.status)

    async def _stream(self, script: Script, events: list[Piece]) -> AsyncIterator[bytes]:
        try:
            for number, event in enumerate(events):
                await asyncio.sleep(script.pause)
                if number == len(events) - 1:
                    await _passed(script.gate)
                if event is None:
                    await asyncio.sleep(3600)
                elif isinstance(event, Exception):
                    raise event
                elif isinstance(event, threading.Event):
                    await _passed(event)
                else:
                    yield event
        finally:
            self.streams_closed.append(time.monotonic())


async def _passed(gate: threading.Event | None) -> None:
    while gate is not None and not gate.is_set():
        await asyncio.sleep(0.01)


class ThreadedServer:
    """An ASGI application on 127.0.0.1, served by uvicorn in a thread. Can be stopped and started again."""

    def __init__(self, app: ASGIApp, make: Callable[[uvicorn.Config], uvicorn.Server] = uvicorn.Server) -> None:
        self._app = app
        self._make = make
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(self._app, log_config=None, log_level="critical", access_log=False, ws="none")
        self.server = self._make(config)
        self.server.main_loop = self._wait_for_exit

        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            await self.server.serve(sockets=[listener])
            self._reset_connections()  # those that came in while it stopped

        def run() -> None:
            with listener:
                asyncio.run(serve())

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        wait_until(lambda: self.server.started)

    async def _wait_for_exit(self) -> None:
        """Stand in for uvicorn's own loop, which looks only ten times a second."""
        await self.server.on_tick(0)
        while not self.server.should_exit:
            await asyncio.sleep(0.005)

    def join(self, timeout: float = 60.0) -> None:
        if self._thread is not None:
            self._thread.join(timeout)
            assert not self._thread.is_alive(), "the server did not stop"
            self._thread = None

    def begin_kill(self) -> None:
        """Reset every connection and refuse new ones, like a killed process; `kill` waits until it is over."""
        assert self._loop is not None
        if self._thread is not None and not self.server.force_exit:
            self._loop.call_soon_threadsafe(self._reset_connections)
            self.server.force_exit = True
            self.server.should_exit = True

    def kill(self) -> None:
        self.begin_kill()
        self.join()

    def _reset_connections(self) -> None:
        for connection in list(self.server.server_state.connections):
            connection.transport.abort()
        for task in list(self.server.server_state.tasks):
            task.cancel()


def wait_until(condition: Callable[[], object], timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "this did not happen in time"
        time.sleep(0.005)


@contextlib.contextmanager
def serving(server: ThreadedServer):
    server.start()
    try:
        yield server
    finally:
        server.kill()
