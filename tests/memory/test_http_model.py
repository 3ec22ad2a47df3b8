"""An engine read from outside: what it is asked, and what becomes of answers that are none. Sockets are real."""

from __future__ import annotations

import asyncio
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from lychee_sgl.memory.http_model import HttpModel
from lychee_sgl.memory.model import Inlay, ModelFailed
from tests.gateway.scripted_engine import ThreadedServer, serving

if TYPE_CHECKING:
    from starlette.requests import Request

INFO: dict[str, Any] = {"model": "tiny", "context_window": 512}


class Engine:
    """Tokens are code points; a chat's template strips nothing and closes with a mark."""

    def __init__(self) -> None:
        self.info: Any = INFO
        self.asked: list[Any] = []
        self.status = 200
        paths = {"/tokenize": self.tokenize, "/detokenize": self.detokenize, "/generate": self.generate}
        routes = [Route(path, call, methods=["POST"]) for path, call in paths.items()]
        self.app = Starlette(routes=[*routes, Route("/lychee/info", self.tell)])

    async def tell(self, request: Request) -> Any:
        return JSONResponse(self.info)

    async def tokenize(self, request: Request) -> Any:
        body = await request.json()
        if "messages" in body:
            text = "".join(f"<{m['role']}>{m['content']}</>" for m in body["messages"])
            return JSONResponse({"tokens": [ord(char) for char in text]})
        return JSONResponse({"tokens": [[ord(char) for char in text] for text in body["prompt"]]})

    async def detokenize(self, request: Request) -> Any:
        body = await request.json()
        assert body["skip_special_tokens"] is False
        return JSONResponse({"text": "".join(map(chr, body["tokens"]))})

    async def generate(self, request: Request) -> Any:
        self.asked.append(body := await request.json())
        if self.status != 200:
            return PlainTextResponse("the queue is full", self.status)
        start = body["logprob_start_len"]
        scores = [[None, 0, None], *([-token / 10, token, None] for token in body["input_ids"][start + 1 :])]
        meta = {"prompt_tokens": len(body["input_ids"]), "completion_tokens": 1, "cached_tokens": 2}
        return JSONResponse({"text": "x", "meta_info": {**meta, "input_token_logprobs": scores}})


def test_a_model_over_http() -> None:
    engine = Engine()
    with serving(ThreadedServer(engine.app)) as server, closing(HttpModel(server.url)) as model:
        assert (model.name, model.window) == ("tiny", 512)
        assert model.encode(["ab", "c"]) == [[97, 98], [99]]
        messages = [{"role": "system", "content": " a"}, {"role": "user", "content": "b ?\n"}]
        assert model.render(messages) == "<system> a</><user>b ?\n</>"
        assert model.render([{"role": "user", "content": "c"}]) == "<user>c</>"
        reply = asyncio.run(model.generate([1, 2, 3, 4], max_tokens=1, score_from=2))
        assert engine.asked[-1]["logprob_start_len"] == 1
        # the token at 1 has no score there, as it is the one whose successor is scored first
        assert reply.logprobs == (-0.3, -0.4)
        assert (reply.prompt_tokens, reply.cached_tokens) == (4, 2)
        with pytest.raises(ValueError, match="inlay has 2 embeddings; allowed over HTTP: none"):
            asyncio.run(model.generate([1], max_tokens=1, inlay=Inlay(at=0, count=2, vectors=b"", digest=b"")))
        engine.status = 503
        with pytest.raises(ModelFailed, match="/generate gave 503: the queue is full"):
            asyncio.run(model.generate([1, 2], max_tokens=1, score_from=1))
        engine.info = {"version": 1}
        with pytest.raises(ModelFailed, match="is no engine of lychee-sgl"):
            HttpModel(server.url)
        engine.info = [1]
        with pytest.raises(ModelFailed, match="gave no object"):
            HttpModel(server.url)
