import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.serve.conftest import wait_for

Deploy = Callable[..., Any]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda s: s.name)
def test_stops_on_signal_gateway_first_and_leaves_nothing(deploy: Deploy, number: signal.Signals) -> None:
    deployment = deploy()
    deployment.wait_ready()
    pids = deployment.all_pids()
    assert len(pids) == 4  # two services, a grandchild each
    assert deployment.stop(number) == 0
    deployment.wait_gone()
    gateway, engine = (deployment.diary_of(name, "term") for name in ("gateway", "engine"))
    assert len(gateway) == len(engine) == 1
    assert gateway[0]["time"] < engine[0]["time"]


def test_killed_engine_comes_back_after_growing_pauses_without_orphans(deploy: Deploy) -> None:
    deployment = deploy()
    deployment.wait_ready()
    gateway = deployment.pid("gateway")
    for times, pause in ((1, 1), (2, 2)):
        engine, grandchild = deployment.pid("engine"), deployment.grandchild("engine")
        killed_at = time.time()
        os.kill(engine, signal.SIGKILL)
        deployment.wait_ready(times + 1)
        assert (
            f"the engine was killed by SIGKILL; starting it again in {pause} s" in deployment.said("event")[-1]["text"]
        )
        assert deployment.diary_of("engine", "start")[-1]["time"] - killed_at >= pause
        assert engine != deployment.pid("engine")
        assert not os.path.exists(f"/proc/{grandchild}")
    assert deployment.pid("gateway") == gateway
    assert len(deployment.diary_of("gateway", "start")) == 1
    assert deployment.stop(signal.SIGTERM) == 0
    deployment.wait_gone()


def test_killed_gateway_comes_back_and_the_engine_stays(deploy: Deploy) -> None:
    deployment = deploy()
    deployment.wait_ready()
    os.kill(deployment.pid("gateway"), signal.SIGKILL)
    deployment.wait_ready(2)
    assert len(deployment.diary_of("engine", "start")) == 1
    assert len(deployment.diary_of("gateway", "start")) == 2
    assert deployment.stop(signal.SIGTERM) == 0
    deployment.wait_gone()


def test_what_cannot_be_started_again_is_tried_later_and_the_other_stays(deploy: Deploy) -> None:
    """Its log cannot be opened for a while, as where a disk is full or a folder is gone."""
    deployment = deploy()
    deployment.wait_ready()
    log = deployment.folder / "engine.log"
    log.unlink()
    log.symlink_to(deployment.folder / "gone" / "engine.log")
    os.kill(deployment.pid("engine"), signal.SIGKILL)
    wait_for(lambda: bool(deployment.said("event")), "the end of the engine")
    wait_for(lambda: "cannot be started ([Errno 2]" in deployment.said("event")[-1]["text"], "the failed start")
    log.unlink()
    deployment.wait_ready(2)
    assert len(deployment.diary_of("gateway", "start")) == 1
    assert deployment.stop(signal.SIGTERM) == 0
    deployment.wait_gone()


def test_killed_keeper_takes_its_service_along(deploy: Deploy) -> None:
    deployment = deploy()
    deployment.wait_ready()
    engine, grandchild = deployment.pid("engine"), deployment.grandchild("engine")
    os.kill(deployment.keeper("engine"), signal.SIGKILL)
    deployment.wait_ready(2)
    assert not os.path.exists(f"/proc/{engine}")
    assert not os.path.exists(f"/proc/{grandchild}")
    assert deployment.stop(signal.SIGTERM) == 0


def test_killed_supervisor_leaves_no_process(deploy: Deploy) -> None:
    deployment = deploy()
    deployment.wait_ready()
    deployment.process.kill()
    deployment.process.wait()
    deployment.wait_gone()


def test_engine_that_fails_at_start_is_reported_not_restarted(deploy: Deploy) -> None:
    deployment = deploy(engine={"fail": "a plan for 30 layers does not fit a model of 32"})
    assert deployment.process.wait(timeout=60) == 1
    (failure,) = deployment.said("failed")
    assert "the engine ended with status 1 while it was starting" in failure["text"]
    assert "\n  ValueError: a plan for 30 layers does not fit a model of 32\n" in failure["text"]
    assert str(deployment.folder / "engine.log") in failure["text"]
    assert deployment.said("event") == []
    deployment.wait_gone()


def test_start_that_takes_too_long_has_failed(deploy: Deploy) -> None:
    deployment = deploy(engine={"never_ready": True}, start_timeout=2.0)
    assert deployment.process.wait(timeout=60) == 1
    (failure,) = deployment.said("failed")
    assert "not ready after 2 s" in failure["text"]
    deployment.wait_gone()


def test_service_that_ignores_the_request_is_killed_after_its_grace(deploy: Deploy) -> None:
    deployment = deploy(engine={"ignore_term": True}, grace=1.0)
    deployment.wait_ready()
    begun = time.monotonic()
    assert deployment.stop(signal.SIGTERM) == 0
    assert time.monotonic() - begun >= 1.0
    deployment.wait_gone()


def test_second_signal_hurries(deploy: Deploy) -> None:
    deployment = deploy(gateway={"ignore_term": True}, grace=600.0)
    deployment.wait_ready()
    deployment.process.send_signal(signal.SIGINT)
    wait_for(lambda: bool(deployment.diary_of("gateway", "term")), "the gateway was asked to stop")
    assert deployment.process.poll() is None
    assert deployment.stop(signal.SIGINT) == 0
    deployment.wait_gone()


def test_two_signals_at_once_hurry_too(deploy: Deploy) -> None:
    """Of two equal signals to a keeper that has not run since, the system keeps one."""
    deployment = deploy(gateway={"ignore_term": True}, grace=600.0)
    deployment.wait_ready()
    keeper = deployment.keeper("gateway")
    os.kill(keeper, signal.SIGSTOP)
    deployment.process.send_signal(signal.SIGTERM)
    deployment.process.send_signal(signal.SIGINT)
    wait_for(lambda: _pending(keeper, signal.SIGTERM), "the keeper was asked")
    time.sleep(0.3)  # the second time, too: were this too short, the test would find less and not fail
    os.kill(keeper, signal.SIGCONT)
    assert deployment.process.wait(timeout=60) == 0
    deployment.wait_gone()


def _pending(pid: int, number: signal.Signals) -> bool:
    fields = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(fields["ShdPnd"], 16) >> (number - 1) & 1)


def test_log_lines_reach_the_reporter(deploy: Deploy) -> None:
    deployment = deploy()
    deployment.wait_ready()
    assert deployment.stop(signal.SIGTERM) == 0
    said = {(line["service"], line["line"]) for line in deployment.said("log")}
    assert said == {("engine", "engine says hello"), ("gateway", "gateway says hello")}
