"""POST /v1/responses and /v1/embeddings: passed to the engine as they are; what cannot work is refused."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response

from lychee_server import docs
from lychee_server.body import Completion, check_body, dump_body, prompt_head, read_json_object
from lychee_server.errors import InvalidRequest
from lychee_server.forward import EngineAnswer, Gateway
from lychee_server.middleware import EMBEDDINGS, RESPONSES
from lychee_server.tally_passed import PassedTally

if TYPE_CHECKING:
    from lychee_server.middleware import RequestRecord

router = APIRouter(tags=["passed on"])


@router.post(RESPONSES, openapi_extra=docs.RESPONSES_BODY, responses=docs.PASSED_RESPONSES)
async def responses(request: Request) -> Response:
    """Answer by the Responses API. It runs with the head plan's default: the engine takes no budget here."""
    gateway: Gateway = request.app.state.gateway
    body = await _body(request)
    _refuse(body, "lychee", "SGLang's Responses API carries no budget; use /v1/chat/completions")
    _refuse(body, "custom_params", "SGLang's Responses API does not carry it; use /v1/chat/completions")
    if body.get("background"):
        message = "background responses are not served: nothing here could be asked for them later"
        raise InvalidRequest(message, param="background", code="unsupported_parameter")
    if body.get("previous_response_id") and len(gateway.engines.engines) > 1:
        message = "with several engines earlier responses are not found again: send the conversation as input"
        raise InvalidRequest(message, param="previous_response_id", code="unsupported_parameter")
    rid = f"resp_{uuid.uuid4().hex}"  # by this field the engine names the request, and the response
    return _pass(request, RESPONSES, {**body, "request_id": rid}, (rid,))


@router.post(EMBEDDINGS, openapi_extra=docs.EMBEDDINGS_BODY, responses=docs.PASSED_RESPONSES)
async def embeddings(request: Request) -> Response:
    """Embed texts, with an engine that serves an embedding model."""
    body = await _body(request)
    _refuse(body, "lychee", "embeddings decode nothing")
    if body.get("stream"):
        raise InvalidRequest("embeddings are not streamed", param="stream", code="unsupported_parameter")
    return _pass(request, EMBEDDINGS, {key: value for key, value in body.items() if key != "rid"}, ())


async def _body(request: Request) -> dict[str, Any]:
    gateway: Gateway = request.app.state.gateway
    gateway.engines.require()
    gateway.limits.check(request.state.caller)
    body = await read_json_object(request, gateway.settings.max_body_bytes, gateway.settings.body_timeout)
    check_body(body, "input")
    return body


def _refuse(body: dict[str, Any], name: str, why: str) -> None:
    if body.get(name) is not None:
        raise InvalidRequest(f"{name} is not supported here: {why}", param=name, code="unsupported_parameter")


def _pass(request: Request, path: str, body: dict[str, Any], rids: tuple[str, ...]) -> Response:
    gateway: Gateway = request.app.state.gateway
    record: RequestRecord = request.state.record
    completion = Completion(
        body=dump_body(body),
        decision=None,
        stream=bool(body.get("stream")),
        rids=rids,
        choices=1,
        head=prompt_head(body["input"]),
    )
    tally = PassedTally(completion, gateway.metrics, record.started)
    trace, caller = gateway.tracing.headers(request), request.state.caller
    return EngineAnswer(gateway, None, completion, path, trace, record=record, caller=caller, tally=tally)
