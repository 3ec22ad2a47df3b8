"""POST /v1/chat/completions and POST /v1/completions."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response

from lychee_server import docs
from lychee_server.body import check_body, prepare, read_json_object
from lychee_server.budget import parse_lychee
from lychee_server.forward import EngineAnswer, Gateway
from lychee_server.memory import served_memory
from lychee_server.middleware import CHAT, COMPLETIONS
from lychee_server.policy.lengths import prompt_text
from lychee_server.routes.sparsity import tier_of
from lychee_server.tally import AnswerTally

if TYPE_CHECKING:
    from lychee_server.middleware import RequestRecord

router = APIRouter(tags=["completions"])


@router.post(CHAT, openapi_extra=docs.CHAT_BODY, responses=docs.COMPLETION_RESPONSES)
async def chat_completions(request: Request) -> Response:
    """Answer a chat. OpenAI's fields and SGLang's pass to the engine as they are; `lychee` sets the sparsity."""
    return await _forward(request, CHAT, required="messages")


@router.post(COMPLETIONS, openapi_extra=docs.TEXT_BODY, responses=docs.COMPLETION_RESPONSES)
async def completions(request: Request) -> Response:
    """Continue a text. OpenAI's fields and SGLang's pass to the engine as they are; `lychee` sets the sparsity."""
    return await _forward(request, COMPLETIONS, required="prompt")


async def _forward(request: Request, path: str, required: str) -> Response:
    gateway: Gateway = request.app.state.gateway
    record: RequestRecord = request.state.record
    engine = gateway.engines.require()
    gateway.limits.check(request.state.caller)  # before its body is read, parsed and perhaps tokenised
    body = await read_json_object(request, gateway.settings.max_body_bytes, gateway.settings.body_timeout)
    asked = parse_lychee(body.get("lychee"), context_window=engine.context_window)
    asked = served_memory(asked, engine.sparsity.memory if engine.sparsity else None, chat=path == CHAT)
    check_body(body, required)
    text = prompt_text(body)
    decision, _ = await gateway.budgets.decide(
        body, asked, text, route="chat" if path == CHAT else "completions", tier=tier_of(request), engine=engine
    )
    completion = prepare(body, required, decision, text)
    learn = functools.partial(gateway.budgets.learn, engine, completion)
    tally = AnswerTally(completion, gateway.metrics, record.started, learn)
    trace, caller = gateway.tracing.headers(request), request.state.caller
    return EngineAnswer(gateway, engine, completion, path, trace, record=record, caller=caller, tally=tally)
