"""The demo against a scripted gateway."""

from __future__ import annotations

import json
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from lychee_sgl.demo import questions, server
from lychee_sgl.demo.asking import BUDGETS, ask_questions, ask_table, counts, measure_lengths
from lychee_sgl.demo.cli import app
from lychee_sgl.demo.client import Gateway
from lychee_sgl.demo.errors import DemoError
from tests.demo.conftest import PROMPT_TOKENS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.demo.conftest import ScriptedGateway


@pytest.fixture
def gateway(scripted: ScriptedGateway) -> Iterator[Gateway]:
    found = Gateway(scripted.url + "/", timeout=10)
    yield found
    found.close()


def silent(line: str) -> None:
    """Say nothing."""


def answers_of(lengths: questions.Lengths) -> dict[str, str]:
    """The number asked for, by the text of the request."""
    return {p.text: p.answer for p in (questions.table_question(lengths), *questions.ten_questions(lengths))}


def test_what_is_served(gateway: Gateway) -> None:
    served = gateway.served()
    assert (served.model, served.window, served.plan) == ("tiny", 8192, "plan one")


def test_a_server_without_the_window_is_named(gateway: Gateway, scripted: ScriptedGateway) -> None:
    scripted.models = {"data": [{"id": "tiny"}]}
    with pytest.raises(DemoError, match="/v1/models does not name a model and its max_model_len"):
        gateway.served()


def test_one_question(gateway: Gateway, scripted: ScriptedGateway) -> None:
    scripted.reply = lambda _: "it is 1234567"
    reply = gateway.ask("tiny", "Which?", budget=512, max_tokens=7, ignore_eos=True)
    assert (reply.text, reply.prompt_tokens, reply.completion_tokens) == ("it is 1234567", PROMPT_TOKENS, 3)
    assert reply.lychee == {"budget": 512, "attended_fraction": 0.5, "recall": 0.9}
    assert reply.per_token_seconds is not None
    assert 0 <= reply.per_token_seconds < reply.first_token_seconds + 10
    (body,) = scripted.bodies
    assert body["messages"] == [{"role": "user", "content": "Which?"}]
    assert (body["lychee"], body["max_tokens"], body["temperature"], body["ignore_eos"]) == (
        {"budget": 512},
        7,
        0,
        True,
    )


def test_no_budget_is_no_field(gateway: Gateway, scripted: ScriptedGateway) -> None:
    gateway.ask("tiny", "Which?", budget=None, max_tokens=7)
    assert "lychee" not in scripted.bodies[0]


def test_one_token_has_no_time_per_token(gateway: Gateway, scripted: ScriptedGateway) -> None:
    scripted.reply = lambda _: "yes"
    assert gateway.ask("tiny", "Which?", budget=None, max_tokens=1).per_token_seconds is None


def test_a_refusal_has_the_servers_words(gateway: Gateway, scripted: ScriptedGateway) -> None:
    scripted.refusal = (400, json.dumps({"error": {"message": "lychee.budget is 0", "type": "x"}}))
    with pytest.raises(DemoError, match=r"^the server refused: 400, lychee\.budget is 0$"):
        gateway.ask("tiny", "Which?", budget=0, max_tokens=7)


def test_an_answer_that_breaks_off_is_an_error(gateway: Gateway, scripted: ScriptedGateway) -> None:
    scripted.breaks_off = True
    with pytest.raises(DemoError, match="broke off: the engine is gone"):
        gateway.ask("tiny", "Which?", budget=512, max_tokens=7)


def test_an_answer_without_a_summary_is_an_error(gateway: Gateway, scripted: ScriptedGateway) -> None:
    scripted.summary = None
    with pytest.raises(DemoError, match="says nothing of its sparsity"):
        gateway.ask("tiny", "Which?", budget=512, max_tokens=7)


def test_the_table_reads_once_and_asks_and_times_every_budget(gateway: Gateway, scripted: ScriptedGateway) -> None:
    lengths = measure_lengths(gateway, "tiny", 8192)
    answer = questions.table_question(lengths).answer
    scripted.reply = lambda body: "7654321" if body["lychee"]["budget"] == 512 else f"It is {answer}."
    scripted.bodies.clear()
    table = ask_table(gateway, "tiny", lengths, silent)
    assert [body["lychee"]["budget"] for body in scripted.bodies] == [
        *("dense", "dense", "dense"),
        *(2048, 2048, 1024, 1024, 512, 512),
    ]
    assert [bool(body.get("ignore_eos")) for body in scripted.bodies] == [False] + [False, True] * 4
    assert len({body["messages"][0]["content"] for body in scripted.bodies}) == 1
    assert [(row.budget, row.correct, row.as_dense) for row in table.rows] == [
        ("dense", True, True),
        (2048, True, True),
        (1024, True, True),
        (512, False, False),
    ]
    assert [(row.attended_fraction, row.recall) for row in table.rows] == [(0.5, 0.9)] * len(BUDGETS)
    assert (table.expected, table.context_tokens) == (answer, PROMPT_TOKENS)


def test_questions_compare_the_default_with_dense(gateway: Gateway, scripted: ScriptedGateway) -> None:
    lengths = measure_lengths(gateway, "tiny", 8192)
    expected = answers_of(lengths)
    wrong = questions.ten_questions(lengths)[3].text

    def reply(body: dict[str, Any]) -> str:
        text = body["messages"][0]["content"]
        if "lychee" in body:
            return f"It is {expected[text]}."
        return "no idea" if text == wrong else f"The number is {expected[text]}."

    scripted.reply = reply
    pairs = ask_questions(gateway, "tiny", lengths, silent)
    assert counts(pairs) == {
        "questions": 10,
        "same_answer": 9,
        "same_text": 0,
        "dense_correct": 10,
        "default_correct": 9,
    }
    assert [pair.budget for pair in pairs] == [1024] * 10
    assert not pairs[3].same_answer


def test_the_command_prints_and_writes_what_it_found(scripted: ScriptedGateway, tmp_path: Path) -> None:
    scripted.reply = lambda _: "It is [bold]1234567."
    file = tmp_path / "new" / "demo.json"
    outcome = CliRunner().invoke(app, ["--url", scripted.url, "--questions", "--json", str(file)])
    assert outcome.exit_code == 0, outcome.output
    assert "10 of 10 default answers are the dense answer (10 word for word)" in outcome.output
    assert "tiny at http://127.0.0.1" in outcome.output
    found = json.loads(file.read_text())
    assert found["served"] == {"model": "tiny", "window": 8192, "plan": "plan one"}
    assert found["counts"]["same_text"] == 10
    assert found["machine"]["cores"] >= 1
    assert {"command", "date", "commit", "versions"} <= found.keys()
    assert [row["budget"] for row in found["table"]["rows"]] == list(BUDGETS)
    assert len(found["questions"]) == 10


def test_errors_are_one_line_and_status_1(scripted: ScriptedGateway) -> None:
    scripted.refusal = (503, json.dumps({"error": {"message": "the engine is away"}}))
    outcome = CliRunner().invoke(app, ["--url", scripted.url])
    assert outcome.exit_code == 1
    assert "error: the server refused: 503, the engine is away" in outcome.output
    assert "Traceback" not in outcome.output


def test_a_server_that_starts_is_waited_for(scripted: ScriptedGateway) -> None:
    scripted.ready = [503, 503, 503]
    said: list[str] = []
    with server.server_at(scripted.url, said.append, patience=30):
        assert scripted.ready == []
    assert len(said) == 2  # the first look decides that somebody is there
    assert all(line.startswith(f"waiting for a server at {scripted.url} (") for line in said)


def test_a_stranger_at_the_address_is_named(scripted: ScriptedGateway) -> None:
    scripted.ready = [404, 404]
    with (
        pytest.raises(DemoError, match=r"/readyz answers 404; is that a gateway of lychee-sgl\?"),
        server.server_at(scripted.url, silent),
    ):
        pytest.fail("no server")


def test_patience_ends(scripted: ScriptedGateway) -> None:
    scripted.ready = [503] * 100
    with pytest.raises(DemoError, match="is not ready after 1 s"), server.server_at(scripted.url, silent, patience=1):
        pytest.fail("no server")


def test_only_this_machine_gets_a_server() -> None:
    command = server.serve_command("http://127.0.0.1:8123")
    assert command[command.index("--port") + 1] == "8123"
    for url in ("http://192.0.2.1:8000", "https://127.0.0.1:8000", "http://127.0.0.1"):
        with pytest.raises(DemoError, match=r"started only at http://127\.0\.0\.1:PORT"):
            server.serve_command(url)


def test_no_address_at_all() -> None:
    with pytest.raises(DemoError, match=r"--url nonsense: .*; allowed: an address like"):
        server.ready_status("nonsense")


def test_a_start_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SGLANG_PLUGINS", "nothing")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with (
        pytest.raises(DemoError, match=r"(?s)none could be started:\nerror: SGLANG_PLUGINS leaves out"),
        server.server_at(url, silent),
    ):
        pytest.fail("no server")


SERVER = """
import http.server, pathlib, signal, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
def stop(*_):
    pathlib.Path(sys.argv[2]).write_text("told to stop")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_a_started_server_is_stopped_in_order_even_after_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    farewell = tmp_path / "farewell"
    command = [sys.executable, "-c", SERVER, str(port), str(farewell)]
    monkeypatch.setattr(server, "serve_command", lambda url: command)
    url = f"http://127.0.0.1:{port}"

    def fail() -> None:
        with server.server_at(url, silent, patience=60):
            assert server.ready_status(url) == 200
            raise DemoError("the demo failed")

    with pytest.raises(DemoError, match=r"^the demo failed$"):
        fail()
    assert farewell.read_text() == "told to stop"
    assert server.ready_status(url) is None
