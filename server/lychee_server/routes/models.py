"""GET /v1/models, as the engine has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response

from lychee_server import docs
from lychee_server.errors import GatewayError, engine_error
from lychee_server.middleware import MODELS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from lychee_server.forward import Gateway
    from lychee_server.pool import Engine

router = APIRouter(tags=["models"])


@router.get(MODELS, responses=docs.ERROR_RESPONSES)
async def list_models(request: Request) -> Response:
    """List the engine's models, with their context window as `max_model_len`."""
    gateway: Gateway = request.app.state.gateway
    return await _passed(gateway, lambda engine: engine.upstream.get(MODELS, gateway.settings.health_timeout))


@router.get(MODELS + "/{model:path}", responses=docs.MODEL_RESPONSES)
async def get_model(request: Request, model: str) -> Response:
    """Describe one model."""
    gateway: Gateway = request.app.state.gateway
    return await _passed(gateway, lambda engine: engine.upstream.get_model(model, gateway.settings.health_timeout))


async def _passed(gateway: Gateway, ask: Callable[[Engine], Awaitable[tuple[int, bytes]]]) -> Response:
    engine = gateway.engines.any()
    try:
        status, body = await ask(engine)
    except GatewayError as error:
        engine.monitor.report(error)
        raise
    if status >= 400:
        raise engine_error(status, body)
    return Response(body, media_type="application/json")
