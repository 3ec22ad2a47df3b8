import json
import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lychee_sgl.config import ConfigError
from lychee_sgl.serve import launch
from lychee_sgl.serve.config import (
    ServeConfig,
    current_environment,
    engine_service,
    gateway_service,
    prepare_state,
    state_folder,
)


def engine(config: ServeConfig, *, accelerator: bool = False, **environ: str) -> Any:
    return engine_service(config, "some/model", "Nice", accelerator=accelerator, state=Path("/s"), environ=environ)


def flags(command: tuple[str, ...]) -> dict[str, str]:
    return {word: following for word, following in pairwise(command) if word.startswith("--")}


def test_engine_on_a_cpu() -> None:
    spec = engine(ServeConfig(engine_port=9001, dense_below=0, recall_every=7), HOME="/h")
    assert spec.command[:4] == (sys.executable, "-P", "-m", "sglang.launch_server")
    given = flags(spec.command)
    assert given["--model-path"] == "some/model"
    assert given["--served-model-name"] == "Nice"
    assert given["--attention-backend"] == "lychee"
    assert (given["--host"], given["--port"]) == ("127.0.0.1", "9001")
    assert given["--max-total-tokens"] == "32768"
    assert {"--enable-metrics", "--sleep-on-idle", "--watchdog-timeout"} <= set(spec.command)
    assert spec.environment == {
        "HOME": "/h",
        "PYTHONUNBUFFERED": "1",
        "LYCHEE_DENSE_BELOW": "0",
        "LYCHEE_RECALL_EVERY": "7",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "SGLANG_CUDA_COREDUMP_BEFORE_CRASH": "0",
        "SGLANG_PYSPY_DUMP_BEFORE_CRASH": "0",
    }
    assert spec.log == Path("/s/engine.log")


def test_an_engine_alone_listens_where_it_is_told() -> None:
    config = ServeConfig(engine_port=9001)
    spec = engine_service(config, "some/model", "Nice", accelerator=False, state=Path("/s"), environ={}, host="0.0.0.0")
    assert spec.command[spec.command.index("--host") + 1] == "0.0.0.0"
    assert spec.command[spec.command.index("--port") + 1] == "9001"


def test_engine_on_a_gpu_keeps_sglangs_choices() -> None:
    spec = engine(ServeConfig(), accelerator=True)
    assert not {"--max-total-tokens", "--sleep-on-idle", "--watchdog-timeout"} & set(spec.command)
    assert not {"OMP_NUM_THREADS", "SGLANG_PYSPY_DUMP_BEFORE_CRASH"} & spec.environment.keys()


def test_dumps_of_a_crash_can_be_asked_for() -> None:
    assert (
        engine(ServeConfig(), SGLANG_PYSPY_DUMP_BEFORE_CRASH="1").environment["SGLANG_PYSPY_DUMP_BEFORE_CRASH"] == "1"
    )


def test_options_win_over_the_environment_and_further_arguments_come_last() -> None:
    config = ServeConfig(max_total_tokens=5000, recall_every=1, engine_args=("--page-size", "2"))
    spec = engine(config, LYCHEE_RECALL_EVERY="64", LYCHEE_DENSE_BELOW="10")
    assert flags(spec.command)["--max-total-tokens"] == "5000"
    assert spec.command[-2:] == ("--page-size", "2")
    assert spec.environment["LYCHEE_RECALL_EVERY"] == "1"
    assert spec.environment["LYCHEE_DENSE_BELOW"] == "10"


def test_ranks() -> None:
    assert "--tp-size" not in engine(ServeConfig()).command
    spec = engine(ServeConfig(tp=3))
    assert flags(spec.command)["--tp-size"] == "3"
    # SGLang wants to be told which cores three ranks may use; here all of them
    cores = spec.environment["SGLANG_CPU_OMP_THREADS_BIND"].split("|")
    assert cores == [",".join(map(str, sorted(os.sched_getaffinity(0))))] * 3
    assert spec.environment["LYCHEE_PREFILL_THREADS"] == str(max(1, len(os.sched_getaffinity(0)) // 3))
    told = engine(ServeConfig(tp=3), SGLANG_CPU_OMP_THREADS_BIND="0|1|2", LYCHEE_PREFILL_THREADS="4").environment
    assert (told["SGLANG_CPU_OMP_THREADS_BIND"], told["LYCHEE_PREFILL_THREADS"]) == ("0|1|2", "4")
    assert "SGLANG_CPU_OMP_THREADS_BIND" not in engine(ServeConfig(tp=3), accelerator=True).environment


def test_more_ranks_than_gpus() -> None:
    launch._check_gpus(ServeConfig(tp=2), ["H200", "H200"])
    launch._check_gpus(ServeConfig(tp=3), [])  # a CPU's ranks are processes
    launch._check_gpus(ServeConfig(tp=4, engine_args=("--nnodes", "2")), ["H200", "H200"])
    with pytest.raises(ConfigError, match="--tp is 3; allowed on this machine: 1 to 2"):
        launch._check_gpus(ServeConfig(tp=3), ["H200", "H200"])


def test_heads_reach_the_engine_as_an_absolute_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert engine(ServeConfig(heads=Path("plan.json"))).environment["LYCHEE_HEADS"] == str(tmp_path / "plan.json")


def test_gateway() -> None:
    config = ServeConfig(host="0.0.0.0", port=9000, engine_port=9005)
    spec = gateway_service(config, state=Path("/s"), environ={"LYCHEE_GATEWAY_DRAIN_TIMEOUT": "120"})
    assert spec.command[:4] == (sys.executable, "-P", "-m", "lychee_server")
    given = flags(spec.command)
    assert given["--engine-url"] == "http://127.0.0.1:9005"
    assert (given["--host"], given["--port"]) == ("0.0.0.0", "9000")
    assert spec.stop_grace == 130.0
    assert config.gateway_url == "http://127.0.0.1:9000"


@pytest.mark.parametrize("timeout", ["", "soon"])
def test_gateway_grace_without_a_usable_drain_timeout(timeout: str) -> None:
    spec = gateway_service(ServeConfig(), state=Path("/s"), environ={"LYCHEE_GATEWAY_DRAIN_TIMEOUT": timeout})
    assert spec.stop_grace == 40.0


@pytest.mark.parametrize(
    ("config", "environ", "message"),
    [
        (ServeConfig(port=9, engine_port=9), {}, "--port and --engine-port are both 9"),
        (ServeConfig(engine_args=("--port", "1")), {}, "--engine-arg --port is set by the launcher"),
        (ServeConfig(engine_args=("--tp", "2")), {}, "--engine-arg --tp is set by the launcher; use instead: --tp"),
        (ServeConfig(tp=3), {}, "sparse heads read the set of a head on another rank"),
        (ServeConfig(tp=2), {}, "tensor parallel size is 2; allowed for"),
        (ServeConfig(engine_args=("--model-path=x",)), {}, "--engine-arg --model-path is set by the launcher"),
        (ServeConfig(model="./missing"), {}, "--model ./missing: there is no such folder"),
        (ServeConfig(model="a/b/c"), {}, "--model a/b/c: there is no such folder"),
        (ServeConfig(heads=Path("missing.json")), {}, "--heads: .*missing.json"),
        (ServeConfig(), {"LYCHEE_HEADS": "missing.json"}, "LYCHEE_HEADS: .*missing.json"),
        (ServeConfig(), {"LYCHEE_RECALL_EVERY": "-1"}, "LYCHEE_RECALL_EVERY is '-1'"),
    ],
)
def test_refusals(config: ServeConfig, environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.check(environ)


def test_model_folder_needs_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        ServeConfig(model=str(tmp_path)).check({})
    for text, message in (("hello", "config.json cannot be read: Expecting value"), ("[]", "holds no JSON object")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ConfigError, match=message):
            ServeConfig(model=str(tmp_path)).check({})
    (tmp_path / "config.json").write_text("{}")
    ServeConfig(model=str(tmp_path)).check({})
    ServeConfig(model="HuggingFaceTB/SmolLM2-135M-Instruct").check({})


def test_malformed_plan_is_refused_before_anything_starts(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"schema": "something else"}))
    with pytest.raises(ConfigError, match=r"--heads: .*plan\.json"):
        ServeConfig(heads=plan).check({})


def test_logs_of_the_run_before_are_kept_once(tmp_path: Path) -> None:
    folder = state_folder(8123, {"XDG_STATE_HOME": str(tmp_path)})
    assert folder == tmp_path / "lychee-sgl" / "8123"
    for text in ("first", "second"):
        prepare_state(folder)
        assert not (folder / "engine.log").exists()
        (folder / "engine.log").write_text(text)
    assert (folder / "engine.log.1").read_text() == "first"


def test_state_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="XDG_STATE_HOME"):
        prepare_state(tmp_path / "file" / "below")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"LC_ALL": "POSIX"}, "C.UTF-8"),
        ({}, "C.UTF-8"),
        ({"LANG": "de_DE.UTF-8"}, None),
        ({"LC_ALL": "C.utf8"}, "C.utf8"),
    ],
)
def test_children_speak_utf8(monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: str | None) -> None:
    for name in ("LC_ALL", "LC_CTYPE", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert current_environment().get("LC_ALL") == expected
