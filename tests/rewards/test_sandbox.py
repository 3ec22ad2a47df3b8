"""What the sandbox stops, for each kind of walls that stands here."""

import os
import socket
import sys
import threading
from pathlib import Path

import pytest

from lychee_sgl.rewards.environments.sandbox import Isolation, Limits, Sandbox, SandboxUnavailable

MIB = 1 << 20


def python(text: str) -> tuple[str, ...]:
    return (sys.executable, "-I", "-S", "-c", text)


@pytest.fixture(params=list(Isolation))
def kind(request: pytest.FixtureRequest) -> Isolation:
    kind: Isolation = request.param
    try:
        Sandbox(isolation=kind)
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    return kind


def test_output_status_and_input(kind: Isolation, tmp_path: Path) -> None:
    ended = Sandbox(isolation=kind).run(python("import sys; print(input()); sys.exit(3)"), tmp_path, stdin="hello\n")
    assert (ended.status, ended.output) == (3, "hello\n")
    assert ended.seconds > 0


def test_the_folder_is_its_own_and_the_environment_is_clean(
    kind: Isolation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_SECRET", "1")
    text = "import os; open('made', 'w').write('x'); print(os.getcwd()); print(sorted(os.environ))"
    ended = Sandbox(isolation=kind).run(python(text), tmp_path)
    assert ended.status == 0, ended.output
    where, names = ended.output.splitlines()
    assert (tmp_path / "made").read_text() == "x"
    assert Path(where) == tmp_path
    assert "SOME_SECRET" not in names


def test_time_and_what_is_left_running(kind: Isolation, tmp_path: Path) -> None:
    text = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'input()'], stdin=-1); time.sleep(60)"
    ended = Sandbox(Limits(seconds=1.0), kind).run(python(text), tmp_path)
    assert ended.status is None
    assert ended.seconds < 10
    if kind is Isolation.PROCESS:
        return  # killed too, but nobody waits for a process that is not our child
    marked = [entry for entry in Path("/proc").iterdir() if entry.name.isdigit() and _in(entry, tmp_path)]
    assert marked == []


def _in(process: Path, folder: Path) -> bool:
    try:
        return Path(os.readlink(process / "cwd")) == folder
    except OSError:  # gone, or not ours
        return False


def test_processor_time_memory_files_and_output(kind: Isolation, tmp_path: Path) -> None:
    sandbox = Sandbox(Limits(cpu_seconds=1, memory=256 * MIB, file=MIB, output=10), kind)
    assert sandbox.run(python("while True: pass"), tmp_path).status not in (0, None)
    assert (
        "MemoryErr" in Sandbox(Limits(memory=256 * MIB), kind).run(python(f"bytearray({512 * MIB})"), tmp_path).output
    )
    assert sandbox.run(python(f"open('big', 'wb').write(bytes({2 * MIB}))"), tmp_path).status != 0
    assert sandbox.run(python("print('a' * 1000 + 'end')"), tmp_path).output == "aaaaaaend\n"


def test_no_network(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        reached = threading.Event()

        def accept() -> None:
            try:
                server.accept()[0].close()
                reached.set()
            except OSError:  # closed below
                pass

        threading.Thread(target=accept, daemon=True).start()
        text = f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)"
        for kind in (Isolation.BUBBLEWRAP, Isolation.NAMESPACES):
            try:
                ended = Sandbox(isolation=kind).run(python(text), tmp_path)
            except SandboxUnavailable:
                continue
            assert ended.status != 0
        assert not reached.is_set()
        assert Sandbox(isolation="process").run(python(text), tmp_path).status == 0  # as it says of itself
        assert reached.wait(5)


def test_bubblewrap_hides_and_protects_files(tmp_path: Path) -> None:
    try:
        sandbox = Sandbox(isolation="bubblewrap")
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (outside / "secret").write_text("secret")
    assert "FileNotFound" in sandbox.run(python(f"open({str(outside / 'secret')!r})"), inside).output
    sandbox.run(python(f"open({str(outside / 'made')!r}, 'w').write('x')"), inside)
    assert not (outside / "made").exists()
    assert sandbox.run(python("open('/usr/made', 'w')"), inside).status != 0


def test_bubblewrap_leaves_no_power_to_take_its_walls_down(tmp_path: Path) -> None:
    """Root would keep its capabilities inside, and could mount the system's programs again, to be written."""
    try:
        sandbox = Sandbox(isolation="bubblewrap")
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    text = (
        "import ctypes; print(ctypes.CDLL(None).mount(b'none', b'/usr', b'none', 0x1020, b''))\n"
        "print(open('/proc/self/status').read().split('CapEff:')[1].split()[0].strip('0') or 'none')"
    )
    assert sandbox.run(python(text), tmp_path).output.split() == ["-1", "none"]


def test_what_is_read_from_the_input_is_gone_and_may_be_long(kind: Isolation, tmp_path: Path) -> None:
    text = "import os, sys; print(len(sys.stdin.read())); print(os.read(os.open('/proc/self/fd/0', os.O_RDONLY), 9))"
    assert Sandbox(isolation=kind).run(python(text), tmp_path, stdin="x" * 200_000).output.split() == ["200000", "b''"]
    ended = Sandbox(Limits(seconds=1.0), kind).run(python("import time; time.sleep(9)"), tmp_path, stdin="x" * 200_000)
    assert ended.status is None


def test_every_kind_says_what_it_does_not_stop(kind: Isolation) -> None:
    told = Sandbox(isolation=kind).does_not_stop
    assert len(told) >= 3
    assert ("it can use the network" in told) is (kind is Isolation.PROCESS)


def test_sockets_in_the_file_system_are_reached_as_each_kind_says(kind: Isolation, tmp_path: Path) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        text = f"import socket; socket.socket(socket.AF_UNIX).connect({str(tmp_path / 's')!r})"
        reached = Sandbox(isolation=kind).run(python(text), inside).status == 0
    told = " ".join(Sandbox(isolation=kind).does_not_stop)
    assert reached is ("sockets in the file system" in told or "use the network" in told)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="isolation is 'docker'; allowed: bubblewrap, namespaces, process"):
        Sandbox(isolation="docker")
    with pytest.raises(ValueError, match="seconds is 0; allowed: a number above 0"):
        Limits(seconds=0)
    with pytest.raises(ValueError, match="allowed: an absolute path"):
        Sandbox(isolation="process").run(("python",), tmp_path)


def test_without_walls_nothing_is_chosen_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lychee_sgl.rewards.environments.sandbox._works", lambda kind: False)
    with pytest.raises(SandboxUnavailable, match="neither bubblewrap nor unshare works here"):
        Sandbox()
    with pytest.raises(SandboxUnavailable, match="install bubblewrap"):
        Sandbox(isolation="bubblewrap")
