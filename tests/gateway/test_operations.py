"""Models, probes, metrics, the documentation page, log lines."""

from __future__ import annotations

import json
import logging
import sys

from lychee_server.logs import JsonFormatter
from lychee_server.schemas import LycheeRequest
from tests.gateway.scripted_engine import MODEL_CARD


def test_models_are_the_engines(gateway):
    client = gateway.openai()
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").max_model_len == 8192
    assert gateway.http.get("/v1/models/tiny").json() == MODEL_CARD
    missing = gateway.http.get("/v1/models/some/lora?x")
    assert missing.status_code == 404
    assert missing.json()["error"] == {
        "message": "The model 'some/lora' does not exist",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }


def test_probes(gateway):
    assert gateway.http.get("/livez").json() == {"status": "live"}
    assert gateway.http.get("/readyz").json() == {
        "status": "ready",
        "context_window": 8192,
        "plan": {"name": "built-in", "method": "heuristic", "heuristic": True, "sha256": "00"},
        "defaults": {
            "budget": 1024,
            "mode": "topk",
            "value": None,
            "auto": {"fraction": 0.125, "min": 512, "max": 4096},
        },
        "dense_below": 1024,
    }


def test_metrics_in_both_formats(gateway):
    plain = gateway.http.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain")
    assert f'lychee_engine_up{{engine="{gateway.engine}"}} 1.0' in plain.text
    other = gateway.http.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert other.headers["content-type"].startswith("application/openmetrics-text")
    assert other.text.endswith("# EOF\n")


def test_documentation_shows_the_lychee_field_with_examples_that_are_valid(gateway, engine):
    assert "swagger" in gateway.http.get("/docs").text
    paths = gateway.http.get("/openapi.json").json()["paths"]
    shown = 0
    for path in ("/v1/chat/completions", "/v1/completions"):
        content = paths[path]["post"]["requestBody"]["content"]["application/json"]
        assert set(content["schema"]["properties"]["lychee"]["properties"]) == set(LycheeRequest.model_fields)
        for example in content["examples"].values():
            assert gateway.http.post(path, json=example["value"]).status_code == 200
            shown += "lychee" in example["value"]
    assert shown == 8


def test_log_lines_are_json_with_the_extra_fields():
    try:
        raise ValueError("x")
    except ValueError:
        record = logging.makeLogRecord(
            {"name": "n", "levelname": "ERROR", "msg": "a %s", "args": ("b",), "exc_info": sys.exc_info()}
        )
    record.request_id = "r"
    line = JsonFormatter().format(record)
    assert "\n" not in line
    fields = json.loads(line)
    assert (fields["level"], fields["message"], fields["request_id"]) == ("error", "a b", "r")
    assert fields["exception"].endswith("ValueError: x")


def test_access_log_is_quiet_unless_asked_for(start_gateway, caplog):
    caplog.set_level(logging.INFO)
    for wanted in (False, True):
        gateway = start_gateway(access_log=wanted)
        caplog.clear()
        gateway.http.get("/livez", headers={"x-request-id": "me"})
        lines = [record for record in caplog.records if record.message == "request" and record.request_id == "me"]
        assert [(line.path, line.status) for line in lines] == ([("/livez", 200)] if wanted else [])
