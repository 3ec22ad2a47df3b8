"""OpenTelemetry, for those who want it: a span for each request, sent by OTLP; the engine's spans hang below it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from starlette.requests import Request

log = logging.getLogger(__name__)

TRACE_HEADERS = ("traceparent", "tracestate")
_NO_SPANS = "livez,readyz,health,metrics"


class TelemetryError(ValueError):
    """Tracing is asked for and cannot be had."""


class Tracing:
    """The W3C trace context of requests: passed on as it came, or with a span of our own in between."""

    def __init__(self, endpoint: str | None = None, exporter: SpanExporter | None = None) -> None:
        """Set up the export, if one is asked for.

        Args:
            endpoint: of an OTLP/HTTP collector, like http://collector:4318; None: no spans.
            exporter: instead of one for the endpoint.

        Raises:
            TelemetryError: an endpoint is given and the extra `otel` is not installed.
        """
        self._provider: TracerProvider | None = None
        if endpoint is not None or exporter is not None:
            self._provider = _provider(endpoint, exporter)

    def install(self, app: FastAPI) -> None:
        """Put a span around every request but probes; call it last, for it has to be the outermost layer."""
        if self._provider is None:
            return
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

        # Streams would otherwise get one more span for each chunk.
        app.add_middleware(
            OpenTelemetryMiddleware,
            tracer_provider=self._provider,
            excluded_urls=_NO_SPANS,
            exclude_spans=["receive", "send"],
        )

    def headers(self, request: Request) -> dict[str, str]:
        """Return the trace headers for the engine, and say on the span whose request it is."""
        if self._provider is None:
            return {name: request.headers[name] for name in TRACE_HEADERS if name in request.headers}
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        trace.get_current_span().set_attributes(
            {"lychee.request_id": request.state.record.request_id, "lychee.caller": request.state.caller.id}
        )
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier)
        return carrier

    def close(self) -> None:
        """Send what has not been sent."""
        if self._provider is not None:
            self._provider.shutdown()


def _provider(endpoint: str | None, exporter: SpanExporter | None) -> TracerProvider:
    try:
        import opentelemetry.instrumentation.asgi  # noqa: F401 - to say so now, not with the first request
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise TelemetryError(f"otlp_endpoint needs the extra otel ({error.name} is not installed)") from error
    provider = TracerProvider(resource=Resource.create({"service.name": "lychee-gateway"}))
    provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces")))
    return provider


def trace_id(traceparent: str | None) -> str | None:
    """Return the trace's id out of a `traceparent` header; None for one that is not well-formed."""
    parts = (traceparent or "").split("-")
    well_formed = len(parts) >= 4 and len(parts[1]) == 32 and set(parts[1]) <= set("0123456789abcdef")
    return parts[1] if well_formed and parts[1].strip("0") else None
