"""A scripted gateway: real HTTP, answers by hand."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

METRICS = """# HELP lychee_plan_info 1 for the head plan the engine runs with.
lychee_plan_info{heuristic="false",method="cover",name="plan one"} 1.0
"""
MODELS = {"object": "list", "data": [{"id": "tiny", "object": "model", "max_model_len": 8192}]}
PROMPT_TOKENS = 500


class ScriptedGateway:
    """Answers `/readyz`, `/v1/models`, `/metrics` and chats; every body it got is in `bodies`."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.ready: list[int] = []
        self.reply: Callable[[dict[str, Any]], str] = lambda _: "nothing"
        self.models: dict[str, Any] = MODELS
        self.summary: dict[str, Any] | None = {"attended_fraction": 0.5, "recall": 0.9}
        self.refusal: tuple[int, str] | None = None
        self.breaks_off = False
        script = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/readyz":
                    self.send(script.ready.pop(0) if script.ready else 200, "{}")
                elif self.path == "/v1/models":
                    self.send(200, json.dumps(script.models))
                else:
                    self.send(200, METRICS)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                script.bodies.append(body)
                if script.refusal is not None:
                    self.send(*script.refusal)
                else:
                    self.send(200, script.stream(body))

            def send(self, status: int, text: str) -> None:
                payload = text.encode()
                self.send_response(status)
                self.send_header("content-length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def stream(self, body: dict[str, Any]) -> str:
        """The events of an answer: a chunk a word, then the finish, then usage and summary."""
        words = self.reply(body).split(" ")
        chunks: list[dict[str, Any]] = [{"choices": [{"delta": {"role": "assistant", "content": ""}}]}]
        chunks += [
            {"choices": [{"delta": {"content": word if i == 0 else f" {word}"}}]} for i, word in enumerate(words)
        ]
        if self.breaks_off:
            chunks.append({"error": {"message": "the engine is gone", "type": "server_error"}})
        else:
            chunks.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})
            usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": len(words)}
            last: dict[str, Any] = {"choices": [], "usage": usage}
            if self.summary is not None:
                budget = body.get("lychee", {}).get("budget", 1024)
                last["lychee"] = {"budget": budget, **self.summary}
            chunks.append(last)
        return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


@pytest.fixture
def scripted() -> Iterator[ScriptedGateway]:
    gateway = ScriptedGateway()
    thread = threading.Thread(target=gateway.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield gateway
    finally:
        gateway.server.shutdown()
        thread.join()
        gateway.server.server_close()
