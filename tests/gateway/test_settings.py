"""Settings, and the command line with a real process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading

import httpx
import pytest

from lychee_server.__main__ import main
from lychee_server.settings import Settings, SettingsError, load_settings
from tests.gateway.scripted_engine import DONE, Script, wait_until


def test_defaults_then_environment_then_flags():
    environ = {"LYCHEE_GATEWAY_PORT": "1", "LYCHEE_GATEWAY_HOST": "::1", "PATH": "/bin"}
    settings = load_settings(environ, {"port": "2"})
    assert (settings.port, settings.host, settings.max_concurrency) == (2, "::1", 256)
    assert load_settings({}, {}) == Settings()
    assert load_settings({}, {"engine_url": "http://engine:1/"}).engine_url == "http://engine:1"


@pytest.mark.parametrize(
    ("environ", "flags", "message"),
    [
        ({"LYCHEE_GATEWAY_PORT": "70000"}, {}, "LYCHEE_GATEWAY_PORT is '70000': Input should be less than or equal to"),
        ({"LYCHEE_GATEWAY_PORT": "1"}, {"port": "x"}, "--port is 'x': Input should be a valid integer"),
        ({}, {"max_concurrency": "0"}, "--max-concurrency is '0': Input should be greater than or equal to 1"),
        ({}, {"drain_timeout": "nan"}, "--drain-timeout is 'nan': Input should be "),
        ({}, {"engine_url": "engine:80"}, "--engine-url is 'engine:80': must look like http://HOST:PORT"),
        ({}, {"engine_url": "http://e:99999"}, "--engine-url is 'http://e:99999': Port out of range 0-65535"),
        (
            {},
            {"engine_url": "http://e/?a"},
            "--engine-url is 'http://e/?a': must have no port 0, user, query or fragment",
        ),
        ({"LYCHEE_GATEWAY_PROT": "1"}, {}, "LYCHEE_GATEWAY_PROT: there is no such setting; known are access_log, "),
    ],
)
def test_bad_settings_name_place_value_and_range(environ, flags, message):
    with pytest.raises(SettingsError) as refused:
        load_settings(environ, flags)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_main_says_in_one_line_what_is_wrong(capsys):
    assert main(["--port", "-1"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "lychee-gateway: --port is '-1': Input should be greater than or equal to 0"
    ]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--port", str(port)]) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"lychee-gateway: cannot listen on 127.0.0.1:{port}: Address already in use"
    ]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--nope", "1"], "lychee-gateway: unrecognized arguments: --nope 1; see lychee-gateway --help\n"),
        (
            ["keys"],
            "lychee-gateway keys: the following arguments are required: COMMAND; see lychee-gateway keys --help\n",
        ),
    ],
)
def test_a_command_line_that_cannot_be_read_is_one_line(arguments, line, capsys):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert (left.value.code, capsys.readouterr().err) == (2, line)


def test_every_setting_has_a_flag(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')} " in shown for name in Settings.model_fields)


def test_a_real_process_serves_logs_json_and_drains_on_sigterm(running):
    gate = threading.Event()
    running.engine.script = Script(gate=gate)
    command = [sys.executable, "-m", "lychee_server", "--engine-url", running.server.url, "--port", "0"]
    environ = {**os.environ, "PYTHONPATH": "server", "LYCHEE_GATEWAY_HEALTH_INTERVAL": "0.05"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ)
    try:
        assert process.stderr is not None
        first = json.loads(process.stderr.readline())
        assert first["message"] == "listening"
        with httpx.Client(base_url=f"http://127.0.0.1:{first['port']}", timeout=60) as client:
            wait_until(lambda: responds(client))
            body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
            with client.stream("POST", "/v1/chat/completions", json=body) as reply:
                process.send_signal(signal.SIGTERM)
                wait_until(lambda: not accepts(first["port"]))
                gate.set()
                assert reply.read().endswith(DONE)
        assert process.wait(60) == 0
        assert all(json.loads(line)["level"] in ("info", "warning") for line in process.stderr)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def responds(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def test_a_file_left_empty_is_none():
    """A compose file can pass a variable on, but cannot leave it out."""
    settings = load_settings({"LYCHEE_GATEWAY_CURVE_FILE": "", "LYCHEE_GATEWAY_POLICY_FILE": ""}, {})
    assert settings.curve_file is None
    assert settings.policy_file is None


def test_an_empty_key_is_no_open_gateway():
    with pytest.raises(SettingsError, match="LYCHEE_GATEWAY_API_KEY"):
        load_settings({"LYCHEE_GATEWAY_API_KEY": ""}, {})
