import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lychee_sgl import doctor
from lychee_sgl.doctor import Check, _pins


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", "from lychee_sgl.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **environ})


def test_help_lists_the_commands() -> None:
    answer = run("--help")
    assert answer.returncode == 0
    for command in ("serve", "doctor", "model", "heads"):
        assert f" {command} " in answer.stdout


def test_a_rooms_own_help_is_shown() -> None:
    answer = run("heads", "--help")
    assert answer.returncode == 0
    assert "lychee-sgl heads" in answer.stdout


def test_version() -> None:
    assert run("--version").stdout == "lychee-sgl 0.1.0\n"


def test_busy_port_is_one_line_that_names_port_and_option(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        answer = run("serve", "--port", port, XDG_STATE_HOME=str(tmp_path))
        engine = run("serve", "--engine-port", port, "--port", _other(port), XDG_STATE_HOME=str(tmp_path))
    expected = f"error: port {port} on 127.0.0.1 is taken by another program: choose another with "
    assert (answer.returncode, answer.stdout, answer.stderr) == (1, "", expected + "--port or --host\n")
    assert (engine.returncode, engine.stdout, engine.stderr) == (1, "", expected + "--engine-port\n")


def _other(port: str) -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found = str(probe.getsockname()[1])
    assert found != port
    return found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--heads", "missing.json"), "--heads: "),
        (("--model", "./missing"), "--model ./missing: there is no such folder"),
        (("--engine-arg", "'open"), "No closing quotation"),
    ],
)
def test_mistakes_are_one_line_and_no_traceback(arguments: tuple[str, ...], message: str) -> None:
    answer = run("serve", *arguments)
    assert answer.returncode == 1
    assert answer.stdout == ""
    assert answer.stderr.startswith("error: ")
    assert message in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_the_engine_alone_becomes_sglang(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a container the engine is the process itself: signals and the exit status are its own."""
    from typer.testing import CliRunner

    from lychee_sgl.cli import app

    (tmp_path / "config.json").write_text("{}")
    became: list[tuple[str, tuple[str, ...], dict[str, str]]] = []
    monkeypatch.setattr(os, "execvpe", lambda *call: became.append(call))
    monkeypatch.setenv("LYCHEE_RECALL_EVERY", "8")
    options = ["--host", "0.0.0.0", "--port", "0", "--model", str(tmp_path)]
    assert CliRunner().invoke(app, ["engine", *options]).exit_code == 2  # a container has to know its port
    options[3] = str(free_port())
    result = CliRunner().invoke(app, ["engine", *options])
    assert result.exit_code == 0, result.output
    ((program, command, environment),) = became
    assert program == command[0] == sys.executable
    assert command[1:4] == ("-P", "-m", "sglang.launch_server")
    asked = dict(itertools.pairwise(command))
    assert asked["--host"] == "0.0.0.0"
    assert asked["--port"] == options[3]
    assert asked["--attention-backend"] == "lychee"
    assert "--enable-metrics" in command
    assert environment["LYCHEE_RECALL_EVERY"] == "8"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_masked_plug_in_is_refused() -> None:
    answer = run("serve", "--port", _other("0"), SGLANG_PLUGINS="nothing", CUDA_VISIBLE_DEVICES="")
    assert answer.returncode == 1
    assert answer.stderr.startswith("error: SGLANG_PLUGINS leaves out lychee and lychee_cpu")


def test_doctor_reports_as_json() -> None:
    answer = run("doctor", "--json", "--port", _other("0"))
    checks = {check["name"]: check for check in json.loads(answer.stdout)}
    assert checks["Python"]["status"] == "ok"
    assert checks["sglang"]["found"].startswith("0.5.")
    assert checks["plug-ins"]["status"] == "ok"
    assert checks["gateway port"]["status"] == "ok"
    failed = [check for check in checks.values() if check["status"] == "fail"]
    assert answer.returncode == (1 if failed else 0)


def test_doctor_fails_when_serve_cannot_work() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        if port == 65535:
            pytest.skip("the highest port has no next one")
        answer = run("doctor", "--port", str(port), SGLANG_PLUGINS="nothing")
    assert answer.returncode == 1
    assert f"port {port} on 127.0.0.1 is taken" in answer.stdout
    assert "SGLANG_PLUGINS leaves out" in answer.stdout


def test_doctor_names_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.preflight, "NEEDED_TO_SERVE", ("no-such-package", "torch"))
    found = {check.name: check for check in doctor._packages()}
    assert found["no-such-package"].status == "fail"
    assert found["torch"].status in ("ok", "warn")


def test_doctor_warns_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "requires", lambda _: ['torch==0.0.1; extra == "engine"', "triton>=3"])
    found = {check.name: check for check in doctor._packages()}
    assert found["torch"].status == "warn"
    assert "0.0.1" in found["torch"].advice
    assert found["triton"].status == "ok"


def test_pins_are_the_exact_requirements() -> None:
    requirements = ['sglang==0.5.17; extra == "engine"', "httpx>=0.28", "torch == 2.11.0"]
    assert _pins(requirements) == {"sglang": "0.5.17", "torch": "2.11.0"}


def test_too_little_memory_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        total = 2 * doctor.GIB
        available = 2 * doctor.GIB

    monkeypatch.setattr(doctor.psutil, "virtual_memory", Memory)
    assert doctor._memory() == Check(
        name="memory",
        status="fail",
        found="2.0 of 2.0 GiB free",
        advice="the embedded model on a CPU needs about 6 GiB",
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def test_interrupted_while_it_makes_the_model(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-P", "-c", "from lychee_sgl.cli import main; main()", "serve", "--port", _other("0")]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    with process:
        assert process.stdout is not None
        assert "reading the packed model" in process.stdout.readline()
        process.send_signal(number)
        assert process.wait(timeout=60) == 128 + number
        assert process.stderr is not None
        assert process.stderr.read() == ""
    deadline = time.monotonic() + 60
    while _group_alive(process.pid):
        assert time.monotonic() < deadline, "the conversion goes on"
        time.sleep(0.05)
    assert [
        path.name for path in (tmp_path / "lychee-sgl" / "models").iterdir() if not path.name.endswith(".lock")
    ] == []


def _group_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
