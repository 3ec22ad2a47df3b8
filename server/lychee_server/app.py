"""Builds the gateway's ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from lychee_server.admission import Admission
from lychee_server.curve import SpeedCurve
from lychee_server.drain import Drain
from lychee_server.errors import NoSuchTier, install_error_handlers
from lychee_server.forward import Gateway
from lychee_server.keys import Authentication
from lychee_server.limits import Limits
from lychee_server.metrics import GatewayMetrics
from lychee_server.middleware import RequestMiddleware
from lychee_server.policy.runtime import BudgetPolicy
from lychee_server.policy.schema import Tier, UnknownTier
from lychee_server.pool import EnginePool
from lychee_server.reload import Reloads
from lychee_server.routes import completions, models, operations, page, passed, sparsity
from lychee_server.speed import SpeedReference
from lychee_server.telemetry import Tracing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection

    from lychee_server.keys import Caller
    from lychee_server.settings import Settings

log = logging.getLogger(__name__)


def create_app(
    settings: Settings,
    engines: EnginePool | None = None,
    registry: CollectorRegistry | None = None,
    tracing: Tracing | None = None,
) -> FastAPI:
    """Build the application; all of its state is on `app.state`.

    Args:
        settings: validated settings.
        engines: the engines; the application closes them. Default: those of the settings.
        registry: where the metrics go. Default: a new one.
        tracing: where spans go. Default: as the settings say.

    Raises:
        PolicyError: the policy file cannot be used.
        KeysError: the keys file cannot be used.
        CurveError: the speed curve cannot be used.
        TelemetryError: tracing is asked for and not installed.
    """
    registry = registry if registry is not None else CollectorRegistry()
    metrics = GatewayMetrics(registry)
    curve = SpeedCurve.load(settings.curve_file) if settings.curve_file else None
    speed = SpeedReference(curve, metrics)
    engines = engines if engines is not None else EnginePool.connect(settings, metrics, speed)
    admission = Admission(settings.max_concurrency, settings.max_queue, settings.queue_timeout, metrics)
    budgets = BudgetPolicy(
        settings.policy_file,
        engines=engines,
        metrics=metrics,
        waiting=lambda: admission.waiting,
        curve=curve,
        timeout=settings.health_timeout,
    )
    authentication = Authentication(settings.keys_file, settings.api_key, tiers=lambda: _tiers(budgets))
    limits = Limits(lambda caller: _tier_of(budgets, caller), metrics)
    gateway = Gateway(
        settings=settings,
        engines=engines,
        speed=speed,
        budgets=budgets,
        metrics=metrics,
        authentication=authentication,
        limits=limits,
        admission=admission,
        drain=Drain(settings.drain_timeout),
        reloads=_reloads(settings, budgets, authentication, limits),
        tracing=Tracing(settings.otlp_endpoint) if tracing is None else tracing,
    )
    app = FastAPI(
        title="lychee gateway",
        summary="OpenAI's API in front of SGLang, with a sparsity budget for each request",
        lifespan=_lifespan,
        redirect_slashes=False,
        redoc_url=None,
    )
    app.state.gateway = gateway
    app.state.registry = registry
    for router in (completions.router, passed.router, models.router, operations.router, sparsity.router):
        app.include_router(router)
    page.install(app)
    install_error_handlers(app, settings.retry_after)
    app.add_middleware(
        RequestMiddleware,
        authentication=authentication,
        metrics=metrics,
        drain=gateway.drain,
        retry_after=settings.retry_after,
        access_log=settings.access_log,
    )
    gateway.tracing.install(app)
    return app


def _tiers(budgets: BudgetPolicy) -> Collection[str] | None:
    return budgets.policy.tiers if budgets.policy else None


def _tier_of(budgets: BudgetPolicy, caller: Caller) -> Tier:
    if budgets.policy is None:
        return Tier()
    try:
        return budgets.policy.tier(caller.tier)
    except UnknownTier:  # the policy was read again while the request's body was on its way
        raise NoSuchTier(f"the tier of this key, {caller.tier!r}, is not in the policy any more") from None


def _reloads(settings: Settings, budgets: BudgetPolicy, authentication: Authentication, limits: Limits) -> Reloads:
    """Collect what SIGHUP reads again: the policy first, for keys name its tiers."""
    reloads = Reloads()
    if settings.policy_file is not None:
        reloads.add(budgets.reload)
    if settings.keys_file is not None:
        reloads.add(authentication.reload)
        reloads.add(lambda: limits.keep(authentication.ring.ids))
    return reloads


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    gateway: Gateway = app.state.gateway
    ring = gateway.authentication.ring
    if len(ring):
        log.info("callers need a key", extra={"keys": len(ring)})
    else:
        log.warning("there are no keys: everybody who reaches this gateway may use it")
    watching = [
        asyncio.create_task(gateway.engines.run(), name="engine-monitors"),
        asyncio.create_task(gateway.budgets.watch(), name="load-watch"),
    ]
    try:
        with gateway.reloads.on_sighup():
            yield
    finally:
        for task in watching:
            task.cancel()
        await asyncio.wait(watching)
        await gateway.engines.aclose()
        await asyncio.to_thread(gateway.tracing.close)
