"""GET /livez, /readyz and /metrics: for orchestrators and Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response
from prometheus_client.exposition import choose_encoder

from lychee_server import docs
from lychee_server.errors import ShuttingDown

if TYPE_CHECKING:
    from lychee_server.forward import Gateway

router = APIRouter(tags=["operations"])


@router.get("/livez")
async def livez() -> dict[str, Any]:
    """Say that this process runs; says nothing of the engine."""
    return {"status": "live"}


@router.get("/readyz", responses=docs.PROBE_RESPONSES)
async def readyz(request: Request) -> dict[str, Any]:
    """Say whether requests will be answered: the engine has generated a token since it was last away."""
    gateway: Gateway = request.app.state.gateway
    if gateway.drain.begun:
        raise ShuttingDown("the gateway is shutting down")
    engine = gateway.engines.require()
    told = (
        engine.sparsity.model_dump(include={"plan", "defaults", "dense_below"}) if engine.sparsity else {"plan": None}
    )
    return {"status": "ready", "context_window": engine.context_window, **told}


@router.get("/health", responses=docs.PROBE_RESPONSES)
async def health(request: Request) -> dict[str, Any]:
    """Say what /readyz says, where load generators look for it."""
    return await readyz(request)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Export the metrics in Prometheus' text format, or OpenMetrics if asked for."""
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(request.app.state.registry), headers={"content-type": content_type})
