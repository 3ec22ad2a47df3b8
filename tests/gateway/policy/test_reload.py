"""A policy file that is read again, while requests are under way and with mistakes in it."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading

import httpx

from lychee_server.__main__ import main
from lychee_server.keys import hash_key
from tests.gateway.policy.test_runtime import RULES, sent
from tests.gateway.scripted_engine import Script, wait_until


def test_a_reload_and_a_refused_one(with_policy, tmp_path, caplog, engine):
    gateway = with_policy(RULES)
    budgets = gateway.server._app.state.gateway.budgets
    file = tmp_path / "policy.yaml"
    file.write_text("version: 1\ndefault: {budget: 150}\n")
    assert budgets.reload()
    gateway.chat()
    assert sent(engine) == {"lychee_budget": 150}
    assert gateway.registry.get_sample_value("lychee_policy_rule_answers_total", {"rule": "long"}) is None
    file.write_text("version: 1\ndefault: {budget: lots}\n")
    with caplog.at_level(logging.ERROR):
        assert not budgets.reload()
    (record,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert record.problem == f'{file}:2: default.budget is "lots": allowed are a whole number from 1, dense and auto'
    gateway.chat()
    assert sent(engine) == {"lychee_budget": 150}
    assert gateway.value("lychee_policy_reloads_total", result="taken") == 1
    assert gateway.value("lychee_policy_reloads_total", result="refused") == 1


def test_a_bad_file_at_the_start_ends_the_process(tmp_path, capsys):
    file = tmp_path / "policy.yaml"
    file.write_text("version: 1\ntiers: {gold: {priority: 5000}}\n")
    assert main(["--port", "0", "--policy-file", str(file)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"lychee-gateway: {file}:2: tiers.gold.priority is 5000: Input should be less than or equal to 1000"
    ]


def test_sighup_reads_the_file_again(running, tmp_path):
    file = tmp_path / "policy.yaml"
    file.write_text("version: 1\ndefault: {budget: 111}\n")
    command = [sys.executable, "-m", "lychee_server", "--engine-url", running.server.url, "--port", "0"]
    environ = {**os.environ, "PYTHONPATH": "server", "LYCHEE_GATEWAY_POLICY_FILE": str(file)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ)
    assert process.stderr is not None
    try:
        port = json.loads(process.stderr.readline())["port"]
        wait_until(lambda: running.engine.tokens_generated > 0)
        file.write_text("version: 1\ndefault: {budget: 222}\n")
        process.send_signal(signal.SIGHUP)
        told = ""
        while told != "the policy was reloaded":
            told = json.loads(process.stderr.readline())["message"]
        body = {"request": {"messages": []}}
        reply = httpx.post(f"http://127.0.0.1:{port}/v1/sparsity/explain", json=body, timeout=60).json()
        assert reply["budget"] == 222
    finally:
        process.terminate()
        process.wait(60)
        process.stderr.close()


def test_a_tier_that_goes_while_a_body_arrives(with_policy, engine, tmp_path):
    keys = tmp_path / "keys.yaml"
    keys.write_text(f'- id: bob\n  tier: free\n  sha256: "{hash_key("a-key-of-bob-for-tests")}"\n')
    gateway = with_policy(RULES, keys_file=keys)

    def body():
        yield b'{"messages": [{"role": "user", '
        wait_until(lambda: gateway.value("lychee_requests_in_flight") == 1)
        (tmp_path / "policy.yaml").write_text("version: 1\n")
        assert gateway.server.server.config.app.state.gateway.budgets.reload()
        yield b'"content": "hi"}]}'

    headers = {"authorization": "Bearer a-key-of-bob-for-tests", "content-type": "application/json"}
    reply = gateway.http.post("/v1/chat/completions", content=body(), headers=headers)
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "unknown_tier")
    assert engine.bodies == []


def test_a_rule_that_goes_while_an_answer_is_made_is_not_counted(with_policy, engine, tmp_path):
    gateway = with_policy(RULES)
    gate = threading.Event()
    engine.script = Script(gate=gate)
    thread = threading.Thread(target=lambda: gateway.chat(stream=True))
    thread.start()
    wait_until(lambda: engine.bodies)
    (tmp_path / "policy.yaml").write_text("version: 1\n")
    assert gateway.server.server.config.app.state.gateway.budgets.reload()
    gate.set()
    thread.join(60)
    assert gateway.total("lychee_budget_decisions_total", reason="rule") == 1
    assert gateway.registry.get_sample_value("lychee_policy_rule_answers_total", {"rule": "streams"}) is None
