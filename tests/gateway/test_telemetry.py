"""Trace context in and out, spans by OpenTelemetry, and log lines."""

from __future__ import annotations

import contextlib
import http.server
import json
import logging
import sys
import threading

import httpx
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from lychee_server.app import create_app
from lychee_server.drain import DrainingServer
from lychee_server.logs import TextFormatter
from lychee_server.settings import Settings
from lychee_server.telemetry import TelemetryError, Tracing, trace_id
from tests.gateway.conftest import TIMES
from tests.gateway.scripted_engine import ThreadedServer, serving, wait_until

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
BODY = {"messages": [{"role": "user", "content": "hi"}]}


@contextlib.contextmanager
def traced(engine_url: str, tracing: Tracing | None = None, **settings):
    chosen = Settings(**{"engine_url": engine_url, **TIMES, **settings})
    app = create_app(chosen, registry=CollectorRegistry(), tracing=tracing)
    drain = app.state.gateway.drain
    with (
        serving(ThreadedServer(app, lambda config: DrainingServer(config, drain, chosen))) as server,
        httpx.Client(base_url=server.url, timeout=20) as client,
    ):
        wait_until(lambda: client.get("/readyz").status_code == 200)
        yield client, server
        server.server.should_exit = True
        server.join()


def test_a_span_hangs_between_the_callers_and_the_engines(running):
    exporter = InMemorySpanExporter()
    headers = {"traceparent": PARENT, "tracestate": "a=b", "x-request-id": "mine"}
    with traced(running.server.url, Tracing(exporter=exporter)) as (client, _):
        for stream in (False, True):
            assert (
                client.post("/v1/chat/completions", json={**BODY, "stream": stream}, headers=headers).status_code == 200
            )
    spans = exporter.get_finished_spans()
    assert len(spans) == 2  # none for probes, none for the chunks of the stream
    for span, sent in zip(spans, running.engine.headers, strict=True):
        assert f"{span.context.trace_id:032x}" == TRACE
        assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
        assert sent["traceparent"] == f"00-{TRACE}-{span.context.span_id:016x}-01"
        assert sent["tracestate"] == "a=b"
        assert span.attributes["lychee.request_id"] == "mine"
        assert span.attributes["lychee.caller"] == "anonymous"


def test_a_request_without_a_trace_begins_one(running):
    exporter = InMemorySpanExporter()
    with traced(running.server.url, Tracing(exporter=exporter)) as (client, _):
        client.post("/v1/chat/completions", json=BODY)
    (span,) = exporter.get_finished_spans()
    assert span.parent is None
    assert running.engine.headers[0]["traceparent"].startswith(f"00-{span.context.trace_id:032x}-")


def test_spans_go_to_a_collector_by_otlp(running):
    received: list[tuple[str, bytes]] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        with traced(running.server.url, otlp_endpoint=f"http://127.0.0.1:{collector.server_port}") as (client, _):
            client.post("/v1/chat/completions", json=BODY)
        collector.shutdown()
        thread.join()
    assert [path for path, _ in received] == ["/v1/traces"]
    assert b"lychee-gateway" in received[0][1]


def test_without_the_extra_the_start_is_refused_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(TelemetryError, match="otlp_endpoint needs the extra otel"):
        create_app(Settings(otlp_endpoint="http://127.0.0.1:4318"))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (PARENT, TRACE),
        (None, None),
        ("", None),
        ("00-0-0-0", None),
        (f"00-{'0' * 32}-b7ad6b7169203331-01", None),
        (f"00-{TRACE.upper()}-b7ad6b7169203331-01", None),
    ],
)
def test_trace_id(header, expected):
    assert trace_id(header) == expected


def test_the_access_log_names_the_trace_and_the_caller(start_gateway, caplog):
    caplog.set_level(logging.INFO)
    gateway = start_gateway(access_log=True)
    gateway.http.get("/v1/models", headers={"traceparent": PARENT})
    (line,) = [each for each in caplog.records if each.message == "request" and each.path == "/v1/models"]
    assert (line.trace_id, line.caller, line.status) == (TRACE, "anonymous", 200)


def test_log_lines_for_people():
    record = logging.makeLogRecord({"levelname": "INFO", "msg": "a %s", "args": ("b",), "created": 0.0})
    record.status = 200
    line = TextFormatter().format(record)
    assert line.endswith(" info    a b status=200")
    with pytest.raises(json.JSONDecodeError):
        json.loads(line)


def test_a_log_line_stays_one_line():
    record = logging.makeLogRecord({"msg": "request", "levelno": logging.INFO, "levelname": "INFO"})
    record.path = "/a\n12:00:00 error   forged \x1b[2J"
    line = TextFormatter().format(record)
    assert line.endswith(r" request path='/a\n12:00:00 error   forged \x1b[2J'")
