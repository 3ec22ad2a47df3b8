"""What `lychee-sgl serve` was asked for, checked, and the two commands that follow from it."""

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lychee_sgl.config import ConfigError, EngineConfig
from lychee_sgl.heads.plan import HeadPlan, PlanError
from lychee_sgl.heads.ranks import check_plan
from lychee_sgl.heads.registry import shipped_plan
from lychee_sgl.models.embedded import MODEL_NAME
from lychee_sgl.serve.process import ServiceSpec
from lychee_sgl.serve.ready import url

ENGINE_HOST: Final = "127.0.0.1"
# The KV pool of a CPU engine; without a limit it takes most of the machine's memory.
CPU_MAX_TOTAL_TOKENS: Final = 32_768
# Seconds of silence after which SGLang takes a forward pass for hung; a long prefill on a CPU is not.
CPU_WATCHDOG_SECONDS: Final = 3600
GATEWAY_DRAIN_SECONDS: Final = 30.0  # the gateway's own default
GATEWAY_STOP_MARGIN: Final = 10.0  # what it may need beyond its drain
ENGINE_STOP_SECONDS: Final = 20.0
# SGLang's flags that the launcher sets itself, and the option to use in their place.
OWNED_FLAGS: Final = {
    "--model": "--model",
    "--model-path": "--model",
    "--host": "--host",
    "--port": "--engine-port",
    "--served-model-name": "--served-model-name",
    "--max-total-tokens": "--max-total-tokens",
    "--tp": "--tp",
    "--tp-size": "--tp",
    "--tensor-parallel-size": "--tp",
    "--attention-backend": "none: hybrid heads need the backend lychee",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """One deployment. Whoever makes one calls `check` before use.

    Attributes:
        model: folder or Hugging Face id; None for the embedded model.
        served_name: name of the model in the API; None for the model's own.
        heads: head plan file; None leaves the choice to the engine.
        host: address the gateway listens on.
        port: the gateway's port.
        engine_port: the engine's port, on this machine only.
        dense_below: contexts up to this length run dense; None for the engine's default.
        recall_every: one decode step in so many is audited; None for the engine's default.
        max_total_tokens: size of the KV pool in tokens; None for 32768 on a CPU and SGLang's choice on a GPU.
        tp: tensor-parallel ranks, each a GPU (or a process on a CPU).
        engine_args: further arguments of SGLang, the last word where they repeat ours.
        start_timeout: seconds until a start that is not ready counts as failed.
    """

    model: str | None = None
    served_name: str | None = None
    heads: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    engine_port: int = 8001
    dense_below: int | None = None
    recall_every: int | None = None
    max_total_tokens: int | None = None
    tp: int = 1
    engine_args: tuple[str, ...] = ()
    start_timeout: float = 900.0

    @property
    def gateway_url(self) -> str:
        """Where the gateway is reached from this machine."""
        return url(self.host, self.port)

    @property
    def engine_url(self) -> str:
        """Where the engine is reached."""
        return url(ENGINE_HOST, self.engine_port)

    def check(self, environ: Mapping[str, str]) -> None:
        """Refuse what cannot work, before anything is started.

        Args:
            environ: the environment that the engine will get its other settings from.

        Raises:
            ConfigError: a value is not allowed; names option, value and what is allowed.
        """
        if self.port == self.engine_port:
            raise ConfigError(f"--port and --engine-port are both {self.port}: they must differ")
        for flag in (argument.split("=", 1)[0] for argument in self.engine_args):
            if flag in OWNED_FLAGS:
                raise ConfigError(f"--engine-arg {flag} is set by the launcher; use instead: {OWNED_FLAGS[flag]}")
        _check_model(self.model)
        settings = EngineConfig.from_env(engine_settings(self, environ))
        if settings.heads is not None:
            try:
                check_plan(HeadPlan.load(settings.heads), self.tp, path=str(settings.heads))
            except (OSError, ValueError) as error:
                option = "--heads" if self.heads is not None else "LYCHEE_HEADS"
                raise ConfigError(f"{option}: {error}") from error
        elif self.model is None and self.tp > 1 and (plan := shipped_plan(MODEL_NAME)) is not None:
            try:
                check_plan(plan, self.tp)
            except PlanError as error:
                raise ConfigError(f"--tp {self.tp}: {error}") from error


def _check_model(model: str | None) -> None:
    if model is None:
        return
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigError(f"--model {model}: the folder has no config.json, it is no Hugging Face model")
        try:
            config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:  # bad UTF-8 is one, too
            raise ConfigError(f"--model {model}: config.json cannot be read: {error}") from error
        if not isinstance(config, dict):
            raise ConfigError(f"--model {model}: config.json holds no JSON object, it is no Hugging Face model")
    elif path.exists():
        raise ConfigError(f"--model {model}: a file; allowed are a model folder or a Hugging Face id")
    elif model.startswith(("/", ".", "~")) or model.count("/") > 1:
        raise ConfigError(f"--model {model}: there is no such folder")


def engine_settings(config: ServeConfig, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment with the options of the command line in it, as DESIGN.md section 5 names them."""
    given = {
        "LYCHEE_HEADS": None if config.heads is None else str(config.heads.expanduser().absolute()),
        "LYCHEE_DENSE_BELOW": config.dense_below,
        "LYCHEE_RECALL_EVERY": config.recall_every,
    }
    return {**environ, **{name: str(value) for name, value in given.items() if value is not None}}


def engine_service(
    config: ServeConfig,
    model: str,
    name: str,
    *,
    accelerator: bool,
    state: Path,
    environ: Mapping[str, str],
    host: str = ENGINE_HOST,
) -> ServiceSpec:
    """How to run the engine.

    Args:
        config: the checked configuration.
        model: folder or id of the model.
        name: the model's name in the API.
        accelerator: whether this machine has one that SGLang will use.
        state: folder of this deployment's logs.
        environ: the launcher's own environment.
        host: address the engine listens on.
    """
    arguments = {
        "--model-path": str(Path(model).expanduser()) if Path(model).expanduser().is_dir() else model,
        "--served-model-name": name,
        "--attention-backend": "lychee",
        "--host": host,
        "--port": str(config.engine_port),
    }
    if config.tp > 1:
        arguments["--tp-size"] = str(config.tp)
    flags = ["--enable-metrics"]
    environment = {**engine_settings(config, environ), "PYTHONUNBUFFERED": "1"}
    max_total_tokens = config.max_total_tokens
    if not accelerator:
        max_total_tokens = max_total_tokens or CPU_MAX_TOTAL_TOKENS
        arguments["--watchdog-timeout"] = str(CPU_WATCHDOG_SECONDS)
        flags.append("--sleep-on-idle")  # an idle scheduler would keep a core busy
        # An engine that failed would first wait a minute, with its clients, for dumps of a GPU that is not there.
        environment = {"SGLANG_CUDA_COREDUMP_BEFORE_CRASH": "0", "SGLANG_PYSPY_DUMP_BEFORE_CRASH": "0", **environment}
        # Decode runs fastest on one thread; idle threads that spin would slow it down twentyfold.
        environment.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
        if config.tp > 1:
            environment = {**shared_cores(config.tp), **environment}
    if max_total_tokens is not None:
        arguments["--max-total-tokens"] = str(max_total_tokens)
    words = [word for pair in arguments.items() for word in pair]
    command = [sys.executable, "-P", "-m", "sglang.launch_server", *words, *flags, *config.engine_args]
    return ServiceSpec(
        name="engine",
        command=tuple(command),
        environment=environment,
        log=state / "engine.log",
        stop_grace=ENGINE_STOP_SECONDS,
    )


def shared_cores(tp: int) -> dict[str, str]:
    """Lets more ranks share the cores than the machine has memory nodes, which SGLang wants to be told of.

    Ranks of a CPU meet through gloo; SGLang would load NCCL where it is installed, and fail without a GPU.
    """
    cores = sorted(os.sched_getaffinity(0))
    return {
        "SGLANG_CPU_OMP_THREADS_BIND": "|".join([",".join(str(core) for core in cores)] * tp),
        "SGLANG_NCCL_SO_PATH": "none",
        "LYCHEE_PREFILL_THREADS": str(max(1, len(cores) // tp)),
    }


def gateway_service(config: ServeConfig, *, state: Path, environ: Mapping[str, str]) -> ServiceSpec:
    """How to run the gateway; arguments as in `engine_service`."""
    arguments = ["--engine-url", config.engine_url, "--host", config.host, "--port", str(config.port)]
    return ServiceSpec(
        name="gateway",
        command=(sys.executable, "-P", "-m", "lychee_server", *arguments),
        environment={**environ, "PYTHONUNBUFFERED": "1"},
        log=state / "gateway.log",
        stop_grace=_drain_seconds(environ) + GATEWAY_STOP_MARGIN,
    )


def _drain_seconds(environ: Mapping[str, str]) -> float:
    try:
        return float(environ.get("LYCHEE_GATEWAY_DRAIN_TIMEOUT") or GATEWAY_DRAIN_SECONDS)
    except ValueError:
        return GATEWAY_DRAIN_SECONDS  # the gateway itself refuses the value, in its own words


def state_folder(port: int, environ: Mapping[str, str]) -> Path:
    """Folder for the logs of a port's deployment: `lychee-sgl/PORT` in `$XDG_STATE_HOME`, or in `~/.local/state`."""
    base = environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "lychee-sgl" / str(port)


def prepare_state(folder: Path) -> None:
    """Make the state folder; logs of the run before are kept once, with `.1` behind their name.

    Raises:
        ConfigError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for log in (folder / "engine.log", folder / "gateway.log"):
            if log.exists():
                shutil.move(log, f"{log}.1")
    except OSError as error:
        raise ConfigError(f"cannot write logs to {folder}: {error.strerror}; set XDG_STATE_HOME") from error


def current_environment() -> dict[str, str]:
    """This process's environment, with UTF-8 for children where the locale has none (SGLang prints it)."""
    environment = dict(os.environ)
    if sys.getfilesystemencoding() != "utf-8" or not _is_utf8_locale(environment):
        environment["LC_ALL"] = "C.UTF-8"
    return environment


def _is_utf8_locale(environ: Mapping[str, str]) -> bool:
    chosen = environ.get("LC_ALL") or environ.get("LC_CTYPE") or environ.get("LANG") or "C"
    return "utf-8" in chosen.lower() or "utf8" in chosen.lower()
