"""What this machine can run and what is missing, line by line, in words that say what to do."""

import json
import locale
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Final, Literal

import psutil
from rich.console import Console

from lychee_sgl.models import embedded
from lychee_sgl.serve import preflight
from lychee_sgl.serve.config import ENGINE_HOST, current_environment
from lychee_sgl.serve.ready import port_problem

Status = Literal["ok", "warn", "fail"]

GIB: Final = 2**30
# Engine, scheduler and detokenizer of the embedded model hold 3.5 GiB together, the KV pool 0.7 GiB.
MEMORY_NEEDED_GIB: Final = 6
PYTHONS: Final = ((3, 11), (3, 12))
TORCH_PROBE: Final = (
    "import json, torch; a = torch.accelerator.current_accelerator(check_available=True); "
    "print(json.dumps([torch.__version__, str(a) if a else None]))"
)
MARKS: Final = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[bold red]fail[/]"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One finding.

    Attributes:
        name: what was looked at.
        status: `fail` means that `serve` cannot work, `warn` that something is missing or slower.
        found: what is there.
        advice: what to do about it; empty when nothing needs doing.
    """

    name: str
    status: Status
    found: str
    advice: str = ""

    def to_dict(self) -> dict[str, str]:
        """As JSON has it."""
        return asdict(self)


def examine(host: str, port: int) -> list[Check]:
    """Look at everything that `serve` depends on; takes some seconds, since torch is asked too.

    Args:
        host: address that a gateway would listen on.
        port: its port; the engine takes the next.
    """
    environ = current_environment()
    gpus = preflight.accelerators(environ)
    return [
        _python(),
        _machine(),
        _memory(),
        _cache_disk(),
        *_packages(),
        *_accelerator(gpus),
        _plugins(environ, accelerator=bool(gpus)),
        _model(),
        _port("gateway port", host, port, "--port"),
        _port("engine port", ENGINE_HOST, port + 1, "--engine-port"),
        _locale(),
    ]


def show(checks: list[Check], console: Console) -> None:
    """Print findings for a person."""
    for check in checks:
        console.print(f"{MARKS[check.status]:<20} {check.name}:", check.found, highlight=False, soft_wrap=True)
        if check.advice:
            console.print(f"     -> {check.advice}", markup=False, highlight=False, soft_wrap=True)
    failed = sum(check.status == "fail" for check in checks)
    verdict = f"{failed} thing(s) in the way of `lychee-sgl serve`" if failed else "`lychee-sgl serve` can start"
    console.print(verdict, highlight=False)


def _python() -> Check:
    found = f"{sys.version.split()[0]} at {sys.executable}"
    if sys.version_info[:2] not in PYTHONS:
        return Check(name="Python", status="fail", found=found, advice="use Python 3.11 (make does)")
    return Check(name="Python", status="ok", found=found)


def _machine() -> Check:
    cores = len(os.sched_getaffinity(0))
    found = f"{cores} core(s), {os.uname().machine}, Linux {os.uname().release}"
    if sys.platform != "linux":
        return Check(name="machine", status="fail", found=sys.platform, advice="SGLang needs Linux")
    if cores < 2:
        advice = "engine and gateway share one core: answers will stutter"
        return Check(name="machine", status="warn", found=found, advice=advice)
    return Check(name="machine", status="ok", found=found)


def _memory() -> Check:
    memory = psutil.virtual_memory()
    found = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free"
    if memory.total < MEMORY_NEEDED_GIB * GIB:
        advice = f"the embedded model on a CPU needs about {MEMORY_NEEDED_GIB} GiB"
        return Check(name="memory", status="fail", found=found, advice=advice)
    if memory.available < MEMORY_NEEDED_GIB * GIB:
        advice = f"end other programs: the embedded model on a CPU needs about {MEMORY_NEEDED_GIB} GiB"
        return Check(name="memory", status="warn", found=found, advice=advice)
    return Check(name="memory", status="ok", found=found)


def _cache_disk() -> Check:
    root = embedded.cache_root()
    place = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(place).free
    found = f"{free / GIB:.1f} GiB free in {root}"
    if not os.access(place, os.W_OK):
        return Check(name="cache", status="fail", found=f"{place} is read-only", advice="set XDG_CACHE_HOME")
    if free < embedded.NEEDED_BYTES:
        advice = f"make {embedded.NEEDED_BYTES // 10**6} MB of room, or set XDG_CACHE_HOME"
        return Check(name="cache", status="warn", found=found, advice=advice)
    return Check(name="cache", status="ok", found=found)


def _packages() -> list[Check]:
    """The packages that `serve` needs, against the versions that our own metadata pins."""
    pins = _pins(requires("lychee-sgl") or [])
    checks = []
    for name in (*preflight.NEEDED_TO_SERVE, "triton"):
        try:
            found = version(name)
        except PackageNotFoundError:
            advice = "pip install -c constraints.txt 'lychee-sgl[engine,gateway]', or make install"
            checks.append(Check(name=name, status="fail", found="not installed", advice=advice))
            continue
        pinned = pins.get(name)
        if pinned is None or found.split("+")[0] == pinned:
            checks.append(Check(name=name, status="ok", found=found))
        else:
            advice = f"tested with {pinned}; make install brings it"
            checks.append(Check(name=name, status="warn", found=found, advice=advice))
    return checks


def _pins(requirements: list[str]) -> dict[str, str]:
    """Exact versions among requirements such as `sglang==0.5.17; extra == "engine"`."""
    exact = [requirement.split(";")[0].split("==") for requirement in requirements if "==" in requirement]
    return {parts[0].strip(): parts[1].strip() for parts in exact if len(parts) == 2}


def _accelerator(gpus: list[str]) -> list[Check]:
    """What the driver shows, and whether torch agrees (asked in a process of its own)."""
    advice = "the sparse kernels of this version run on CPUs: start with CUDA_VISIBLE_DEVICES= set to nothing"
    seen = (
        Check(name="accelerator", status="fail", found=", ".join(gpus), advice=advice)
        if gpus
        else Check(name="accelerator", status="ok", found="none: the engine runs on the CPU")
    )
    try:
        probe = subprocess.run(
            [sys.executable, "-P", "-c", TORCH_PROBE], capture_output=True, text=True, timeout=180, check=True
        )
        torch_version, device = json.loads(probe.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        advice = "torch does not import: make install"
        return [seen, Check(name="torch works", status="fail", found=type(error).__name__, advice=advice)]
    found = f"{torch_version} sees {device or 'no accelerator'}"
    if bool(gpus) != (device is not None):
        advice = "driver and torch disagree about the accelerator: the engine follows torch"
        return [seen, Check(name="torch works", status="warn", found=found, advice=advice)]
    return [seen, Check(name="torch works", status="ok", found=found)]


def _plugins(environ: Mapping[str, str], *, accelerator: bool) -> Check:
    problem = preflight.plugin_problem(environ, accelerator=accelerator)
    if problem is not None:
        return Check(name="plug-ins", status="fail", found="SGLang will not load ours", advice=problem)
    return Check(name="plug-ins", status="ok", found="registered with SGLang, not masked")


def _model() -> Check:
    try:
        folder, fault = embedded.find_unpacked(every_hash=True)
    except embedded.ModelUnavailable as error:
        advice = f"{error}; or serve another one with --model"
        return Check(name="embedded model", status="warn", found="not available", advice=advice)
    if fault is None:
        return Check(name="embedded model", status="ok", found=str(folder))
    advice = "the first `lychee-sgl serve` or `lychee-sgl model` makes it, in about ten seconds"
    return Check(name="embedded model", status="ok", found=fault, advice=advice)


def _port(name: str, host: str, port: int, option: str) -> Check:
    problem = port_problem(host, port)
    if problem is not None:
        return Check(name=name, status="fail", found=problem, advice=f"choose another with {option}")
    return Check(name=name, status="ok", found=f"{port} is free on {host}")


def _locale() -> Check:
    before = locale.setlocale(locale.LC_CTYPE)
    try:
        locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
    except locale.Error:
        advice = "SGLang may fail on texts that are not ASCII: set LC_ALL to a UTF-8 locale that `locale -a` lists"
        return Check(name="locale", status="warn", found="C.UTF-8 is not there", advice=advice)
    finally:
        locale.setlocale(locale.LC_CTYPE, before)
    return Check(name="locale", status="ok", found="C.UTF-8 is there")
