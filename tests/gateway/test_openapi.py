"""Schemathesis on our OpenAPI: whatever the page at /docs allows, and what it does not, never ends in a 5xx."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from lychee_server.app import create_app
from lychee_server.settings import Settings
from tests.gateway.scripted_engine import Script
from tests.gateway.sglang_shapes import answer, answer_choice

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
ALLOWED, FORBIDDEN = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
OPERATIONS = sorted(
    (method.upper(), path, mode.value)
    for path, methods in create_app(Settings()).openapi()["paths"].items()
    for method in methods
    for mode in (ALLOWED, FORBIDDEN)
    if mode is ALLOWED or method == "post"  # without a body nothing can be wrong
)


@pytest.fixture
def api(start_gateway, engine):
    engine.script = Script(answer=answer(answer_choice("a")))
    return schemathesis.openapi.from_url(f"{start_gateway().server.url}/openapi.json")


@pytest.mark.parametrize(("method", "path", "mode"), OPERATIONS)
def test_nothing_that_the_description_allows_or_forbids_breaks_the_gateway(api, method, path, mode):
    operation = api[path][method]

    @given(case=operation.as_strategy(generation_mode=GenerationMode(mode)))
    @settings(
        max_examples=25,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def every(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=CHECKS, timeout=20)

    every()


def test_every_example_of_the_page_is_accepted(gateway):
    """By an engine whose window is that of the embedded model."""
    tried = 0
    for path, methods in create_app(Settings()).openapi()["paths"].items():
        content = methods.get("post", {}).get("requestBody", {}).get("content", {})
        for name, example in content.get("application/json", {}).get("examples", {}).items():
            reply = gateway.http.post(path, json=example["value"])
            assert reply.status_code == 200, (path, name, reply.text)
            tried += 1
    assert tried >= 12


def test_every_status_that_the_gateway_knows_is_described():
    """What Schemathesis cannot provoke: keys, limits, slow bodies, an engine that is away."""
    paths = create_app(Settings()).openapi()["paths"]
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"):
        described = set(paths[path]["post"]["responses"])
        assert described >= {"200", "400", "401", "403", "408", "413", "415", "429", "502", "503", "504"}
