"""Bad requests over HTTP: the status, OpenAI's error shape, and the engine never sees them."""

from __future__ import annotations

import http.client
import json

import openai
import pytest

from lychee_server import body as bodies
from lychee_server import errors
from tests.gateway.scripted_engine import Script

JSON = {"content-type": "application/json"}
MESSAGES = [{"role": "user", "content": "hi"}]


def error_of(reply, status=400):
    assert reply.status_code == status, reply.text
    assert set(reply.json()) == {"error"}
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    return error


def test_refused_fields_name_themselves(gateway, engine):
    cases = [
        ({"lychee": {"budget": 0}}, "lychee.budget", "invalid_value"),
        ({"lychee": {"budget": 8193}}, "lychee.budget", "invalid_value"),
        ({"lychee": {"mode": "best"}}, "lychee.mode", "invalid_value"),
        ({"lychee": {"mode": "ratio"}}, "lychee.value", "invalid_value"),
        ({"lychee": {"size": 1}}, "lychee.size", "unknown_key"),
        ({"lychee": 7}, "lychee", "invalid_value"),
        ({"custom_params": {"lychee_mode": "topk"}}, "custom_params.lychee_mode", "invalid_value"),
        ({"custom_params": {"a": {}}}, "custom_params.a", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": None}, "messages", "missing_required_parameter"),
        ({"messages": "hi"}, "messages", "invalid_value"),
        ({"stream": "yes"}, "stream", "invalid_value"),
        ({"stream": 1}, "stream", "invalid_value"),
    ]
    for body, param, code in cases:
        error = error_of(gateway.chat(**body))
        assert (error["param"], error["code"]) == (param, code)
        assert param in error["message"]
    for body in ({}, {"prompt": ""}, {"prompt": []}, {"prompt": None}, {"messages": MESSAGES}):
        assert error_of(gateway.http.post("/v1/completions", json=body))["param"] == "prompt"
    assert engine.bodies == []


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"messages": [1], "lychee": {"budget": NaN}}', "NaN is not JSON"),
        (b'{"messages": [1], "temperature": -Infinity}', "-Infinity is not JSON"),
        (b'{"messages": [1], "temperature": 1e999}', "out of range"),
        (b'{"messages": [1], "lychee": {"budget": 1' + b"0" * 5000 + b"}}", "not valid JSON"),
        (b'{"messages": ["\xff"]}', "not UTF-8: invalid start byte at byte 15"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "the body is a JSON array; allowed: an object"),
        (b'"x"', "the body is a JSON string; allowed: an object"),
        (b"3", "the body is a JSON number; allowed: an object"),
        (b"true", "the body is a JSON boolean; allowed: an object"),
        (b"null", "the body is a JSON null; allowed: an object"),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_bodies_that_are_not_json_objects(gateway, engine, body, words):
    error = error_of(gateway.http.post("/v1/chat/completions", content=body, headers=JSON))
    assert words in error["message"]
    assert error["code"] == "invalid_json"
    assert engine.bodies == []


def test_a_body_of_arrays_alone_is_refused_before_it_is_parsed():
    """Ten million empty arrays took the gateway many seconds, in which it did nothing else for anybody."""
    most = bodies.MOST_CONTAINERS
    inside = json.dumps("\\" + '["{' * most).encode()  # a text of brackets, quotes and backslashes
    for items in (b"[" + b"[]," * (most - 2) + b"[]", b"[" + inside + b"," + b"[]," * (most - 2) + b"{}"):
        bodies._check_containers(b'{"a":' + items[:-2] + b"0]}")
        with pytest.raises(errors.InvalidRequest, match=f"over {most} arrays and objects"):
            bodies._check_containers(b'{"a":' + items + b",[]]}")
    bodies._check_containers(b'"' + b'["' * most)  # nonsense: the parser's to refuse


def test_refused_names_of_half_a_surrogate_pair_are_the_callers_error(gateway, engine):
    """JSON's escape can write what no UTF-8 can: to repeat it in an answer was an internal error."""
    cases = [
        ("/v1/chat/completions", b'{"messages": [1], "lychee": {"\\ud800": 1}}', "lychee.\ud800"),
        ("/v1/chat/completions", b'{"messages": [1], "custom_params": {"\\ud800": [1]}}', "custom_params.\ud800"),
        ("/v1/completions", b'{"prompt": "a", "custom_params": {"lychee_\\ud800": 1}}', "custom_params.lychee_\ud800"),
        ("/v1/sparsity/explain", b'{"\\ud800": 1}', None),
    ]
    for path, body, param in cases:
        error = error_of(gateway.http.post(path, content=body, headers=JSON))
        assert error["param"] == param
        assert "\ud800" in error["message"]
    assert engine.bodies == []


def test_openai_client_gets_its_own_error_types(gateway):
    client = gateway.openai()
    with pytest.raises(openai.BadRequestError, match=r"lychee\.budget is -5") as refused:
        client.chat.completions.create(
            model="tiny", messages=MESSAGES, stream=True, extra_body={"lychee": {"budget": -5}}
        )
    assert (refused.value.param, refused.value.code) == ("lychee.budget", "invalid_value")
    with pytest.raises(openai.NotFoundError, match="POST /v1/moderations is not served"):
        client.moderations.create(input="x")


def test_content_type_must_be_json(gateway):
    body = json.dumps({"messages": MESSAGES})
    for headers in ({}, {"content-type": "text/plain"}):
        error = error_of(gateway.http.post("/v1/chat/completions", content=body, headers=headers), 415)
        assert error["param"] == "content-type"


def test_long_bodies_are_refused_with_and_without_a_declared_length(start_gateway):
    gateway = start_gateway(max_body_bytes=2000)
    body = json.dumps({"messages": [{"role": "user", "content": "x" * 2000}]}).encode()
    declared = gateway.http.post("/v1/chat/completions", content=body, headers=JSON)
    chunked = gateway.http.post("/v1/chat/completions", content=iter([body[:1500], body[1500:]]), headers=JSON)
    for reply in (declared, chunked):
        error = error_of(reply, 413)
        assert error["message"] == "the body is longer than 2000 bytes"
        assert error["code"] == "request_too_large"


def test_default_limit_lets_a_long_prompt_through_and_stops_a_longer_one(gateway, engine):
    assert gateway.chat(x="y" * 20 * 2**20).status_code == 200
    with pytest.raises(openai.APIStatusError) as refused:
        gateway.openai().chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x" * 33 * 2**20}])
    assert refused.value.status_code == 413
    assert len(engine.bodies) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_the_engines_refusals_keep_their_words(gateway, engine, stream):
    message = "The input (9000 tokens) is longer than the model's context length (8192 tokens)."
    flat = {"object": "error", "message": message, "type": "BadRequest", "param": None, "code": 400}
    engine.script = Script(status=400, answer=flat)
    error = error_of(gateway.chat(stream=stream))
    assert error["message"] == message
    assert error["code"] == "context_length_exceeded"
    engine.script = Script(
        status=400,
        answer={"object": "error", "message": "temperature", "type": "BadRequest", "param": "t", "code": 400},
    )
    assert error_of(gateway.chat(stream=stream)) == {
        "message": "temperature",
        "type": "invalid_request_error",
        "param": "t",
        "code": None,
    }
    engine.script = Script(status=422, answer=b"<html>")
    expected = "the engine answered with status 422 and no message"
    assert error_of(gateway.chat(stream=stream), 422)["message"] == expected
    assert engine.aborts == []


def test_unknown_paths_and_methods(gateway):
    error = error_of(gateway.http.post("/v1/rerank", json={}), 404)
    assert error["message"].startswith("POST /v1/rerank is not served; paths are ")
    assert "/v1/chat/completions" in error["message"]
    assert error["code"] == "not_found"
    reply = gateway.http.get("/v1/chat/completions")
    assert error_of(reply, 405)["code"] == "method_not_allowed"
    assert reply.headers["allow"] == "POST"
    assert error_of(gateway.http.get("/none"), 404)["message"].startswith("GET /none is not served")


@pytest.mark.parametrize(
    "name",
    [
        "../../flush_cache",
        "%2e%2e/%2E%2e/flush_cache",
        "a/../../../flush_cache",
        "..%2f..%2fflush_cache",
        ".",
        "",
        "a//b",
    ],
)
def test_a_models_name_does_not_lead_to_other_paths_of_the_engine(gateway, engine, name):
    connection = http.client.HTTPConnection("127.0.0.1", gateway.server.port, timeout=10)
    connection.request("GET", f"/v1/models/{name}")  # sent as it is: httpx would resolve it
    reply = connection.getresponse()
    error = json.loads(reply.read())["error"]
    connection.close()
    assert (reply.status, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert engine.flushed == 0


def test_a_models_name_stays_as_it_was_encoded(gateway):
    reply = gateway.http.get("/v1/models/some%20model%3Fx%23y/%252e%252e")
    assert reply.json()["error"]["message"] == "The model 'some model?x#y/%2e%2e' does not exist"


def test_a_batch_has_an_end(gateway, engine):
    for prompt in (["x"] * 1025, [[1]] * 1025):
        error = error_of(gateway.http.post("/v1/completions", json={"prompt": prompt}))
        assert (error["param"], error["message"]) == ("prompt", "prompt has 1025 prompts; allowed: up to 1024")
    assert engine.bodies == []
    assert gateway.http.post("/v1/completions", json={"prompt": ["x"] * 1024}).status_code == 200
