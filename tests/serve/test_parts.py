"""The small parts of the launcher: pauses, logs, stages, ports, plug-in checks, what the operator reads."""

import http.server
import importlib.metadata
import json
import shlex
import socket
import threading
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from lychee_sgl.config import ConfigError
from lychee_sgl.serve import launch, preflight
from lychee_sgl.serve.backoff import Backoff
from lychee_sgl.serve.banner import ConsoleReporter, curl
from lychee_sgl.serve.config import ServeConfig
from lychee_sgl.serve.process import LogFollower, describe_status, meaningful_tail
from lychee_sgl.serve.ready import FIRST_STAGE, Probe, later_stage, port_problem, url


def test_pauses_double_up_to_the_ceiling() -> None:
    backoff = Backoff()
    assert [backoff.failed(float(now)) for now in range(7)] == [1, 2, 4, 8, 16, 30, 30]


def test_a_minute_of_health_starts_over_and_less_does_not() -> None:
    backoff = Backoff()
    assert backoff.failed(0.0) == 1
    backoff.healthy(10.0)
    assert backoff.failed(69.9) == 2
    backoff.healthy(80.0)
    backoff.healthy(130.0)  # still healthy: the spell began at 80
    assert backoff.failed(140.0) == 1


def test_failures_without_end_do_not_overflow() -> None:
    backoff = Backoff()
    assert {backoff.failed(0.0) for _ in range(3000)} == {1.0, 2.0, 4.0, 8.0, 16.0, 30.0}


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "ended with status 0"),
        (1, "ended with status 1"),
        (137, "was killed by SIGKILL"),
        (-9, "was killed by SIGKILL"),
        (-15, "was killed by SIGTERM"),
        (128, "ended with status 128"),
        (255, "ended with status 255"),
    ],
)
def test_status_in_words(status: int, words: str) -> None:
    assert describe_status(status) == words


def test_follower_gives_complete_new_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("of an earlier run\n")
    follower = LogFollower(log)
    assert follower.new_lines() == []
    with log.open("a") as stream:
        stream.write("one\n\x1b[31mtwo\x1b[0m\nthr")
        stream.flush()
        assert follower.new_lines() == ["one", "two"]
        stream.write("ee\n 10%\r 90%\n")
        stream.flush()
        assert follower.new_lines() == ["three", " 90%"]
    assert LogFollower(tmp_path / "missing").new_lines() == []


def test_tail_shows_the_exceptions_and_not_their_stacks(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "[2026-01-01] Scheduler hit an exception: Traceback (most recent call last):\n"
        '  File "scheduler.py", line 1, in run\n'
        "    raise ValueError('no')\n"
        "lychee_sgl.backend.errors.PlanError: plan has 30 layers, model has 32\n"
        "\n"
        "lychee_sgl.backend.errors.PlanError: plan has 30 layers, model has 32\n"
        "Killed\n"
    )
    assert meaningful_tail(log) == ["lychee_sgl.backend.errors.PlanError: plan has 30 layers, model has 32"]


def test_tail_without_an_exception_is_the_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {number}\n\n" for number in range(20)))
    assert meaningful_tail(log, 2) == ["line 18", "line 19"]
    log.write_text("x" * 1000)
    assert meaningful_tail(log) == ["x" * 300 + " ..."]
    assert meaningful_tail(tmp_path / "missing") == []


def test_stages_follow_the_log() -> None:
    assert later_stage(FIRST_STAGE, ["nothing to see"]) == FIRST_STAGE
    lines = ["[..] Load weight begin. avail mem=1 GB", "noise", "[..] Load weight end. elapsed=1 s"]
    assert later_stage(FIRST_STAGE, lines[:2]) == "loading the weights"
    assert later_stage(FIRST_STAGE, lines) == "setting aside memory for the KV cache"


def test_taken_port_is_named_and_a_free_one_is_not() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        assert port_problem("127.0.0.1", port) == f"port {port} on 127.0.0.1 is taken by another program"
    assert port_problem("127.0.0.1", port) is None
    assert (
        port_problem("192.0.2.1", port)
        == f"cannot listen on port {port} of 192.0.2.1 (Cannot assign requested address)"
    )


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("box", "http://box:80"),
    ],
)
def test_addresses_reach_this_machine(host: str, address: str) -> None:
    assert url(host, 80) == address


def test_probe_of_nothing_is_not_ready() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))  # bound and not listening: refused
        probe = Probe(f"http://127.0.0.1:{holder.getsockname()[1]}/")
        assert probe() is False
        probe.close()


@pytest.mark.parametrize(("status", "up"), [(200, True), (401, True), (404, False), (503, False)])
def test_an_engine_that_wants_a_key_is_up(status: int, up: bool) -> None:
    """Its gateway has the key; the launcher waited for a 200 in vain, and then stopped both."""

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as server:
        answering = threading.Thread(target=server.handle_request)
        answering.start()
        probe = launch._engine_probe(ServeConfig(engine_port=server.server_port))
        assert probe() is up
        answering.join()
        probe.close()


def test_a_key_that_only_the_engine_has_is_refused_before_anything_starts() -> None:
    config = ServeConfig(engine_args=("--api-key", "secret"))
    with pytest.raises(ConfigError, match="set LYCHEE_GATEWAY_ENGINE_API_KEY") as refused:
        launch._check_machine(config, {}, accelerator=False)
    assert "secret" not in str(refused.value)


def test_our_plug_ins_are_registered() -> None:
    assert preflight.plugin_problem({}, accelerator=False) is None
    assert preflight.plugin_problem({"SGLANG_PLUGINS": "other, lychee,lychee_cpu"}, accelerator=False) is None
    assert preflight.plugin_problem({"SGLANG_PLUGINS": "lychee"}, accelerator=True) is None
    assert preflight.plugin_problem({"SGLANG_PLATFORM": "lychee_cpu"}, accelerator=False) is None


@pytest.mark.parametrize(
    ("environ", "accelerator", "message"),
    [
        ({"SGLANG_PLUGINS": "lychee"}, False, "SGLANG_PLUGINS leaves out lychee_cpu:"),
        ({"SGLANG_PLUGINS": "other"}, False, "SGLANG_PLUGINS leaves out lychee and lychee_cpu:"),
        ({"SGLANG_PLUGINS": "other"}, True, "SGLANG_PLUGINS leaves out lychee:"),
        ({"SGLANG_PLATFORM": "other"}, False, "SGLANG_PLATFORM is 'other'"),
        ({"SGLANG_PLATFORM": "lychee_cpu"}, True, "SGLANG_PLATFORM is 'lychee_cpu'"),
    ],
)
def test_masked_plug_ins_are_named(environ: dict[str, str], accelerator: bool, message: str) -> None:
    problem = preflight.plugin_problem(environ, accelerator=accelerator)
    assert problem is not None
    assert problem.startswith(message)


@pytest.fixture
def no_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "entry_points", lambda **_: importlib.metadata.EntryPoints())


@pytest.mark.usefixtures("no_entry_points")
def test_unregistered_plug_in_is_named() -> None:
    problem = preflight.plugin_problem({}, accelerator=True)
    assert problem is not None
    assert problem.startswith("the plug-in lychee is not registered in the group sglang.srt.plugins")


def test_hidden_accelerators_are_not_seen() -> None:
    assert preflight.accelerators({"CUDA_VISIBLE_DEVICES": ""}) == []
    assert preflight.accelerators({"CUDA_VISIBLE_DEVICES": "-1"}) == []


def test_accelerators_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the driver's files where there is no nvidia-smi, as in a slim image; else by its lines."""
    for name in ("nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.setenv("PATH", str(tmp_path))

    def count(**environ: str) -> int:
        return len(preflight.accelerators(environ, tmp_path))

    assert [count(), count(CUDA_VISIBLE_DEVICES="1,2"), count(CUDA_VISIBLE_DEVICES="0,1,2,3")] == [3, 2, 3]
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200'\necho 'NVIDIA H200'\n")
    tool.chmod(0o755)
    assert [count(), count(CUDA_VISIBLE_DEVICES="GPU-5d")] == [2, 1]


def test_report_without_a_terminal_is_plain_lines() -> None:
    output = StringIO()
    reporter = ConsoleReporter(Console(file=output, width=80), ServeConfig(), "Tiny", verbose=False)
    for seconds in (0.0, 0.2, 0.4):
        reporter.waiting("importing SGLang", seconds)
    reporter.waiting("loading the weights", 5.0)
    reporter.log_line("engine", "not shown")
    reporter.ready(6.0)
    reporter.event("the engine [bold]died[/bold]")
    reporter.waiting("importing SGLang", 1.0)
    reporter.ready(9.0)
    reporter.close()
    lines = output.getvalue().splitlines()
    assert lines[:3] == ["starting: importing SGLang (0 s)", "starting: loading the weights (5 s)", "ready after 6 s"]
    for address in ("8000/v1", "8000/docs", "8000/metrics", "8001/metrics"):
        assert sum(line.endswith(f"http://127.0.0.1:{address}") for line in lines) == 1
    assert lines[-3:] == [
        "the engine [bold]died[/bold]",
        "starting again: importing SGLang (1 s)",
        "ready again after 9 s",
    ]
    assert "not shown" not in output.getvalue()


def test_logs_are_shown_on_request() -> None:
    output = StringIO()
    reporter = ConsoleReporter(Console(file=output), ServeConfig(), "Tiny", verbose=True)
    reporter.log_line("engine", "[1] something")
    assert output.getvalue() == "[engine] [1] something\n"


def test_curl_survives_a_shell() -> None:
    words = shlex.split(curl(ServeConfig(port=9), "it's"))
    assert words[:2] == ["curl", "http://127.0.0.1:9/v1/chat/completions"]
    assert json.loads(words[-1])["model"] == "it's"
