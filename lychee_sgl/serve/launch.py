"""`lychee-sgl serve` from checks to the last process gone."""

import logging
import os
from pathlib import Path
from typing import Final, NoReturn

from rich.console import Console
from rich.markup import escape

from lychee_sgl.config import ConfigError
from lychee_sgl.models.embedded import MODEL_NAME, ensure_unpacked
from lychee_sgl.serve.banner import ConsoleReporter
from lychee_sgl.serve.config import (
    ENGINE_HOST,
    ServeConfig,
    current_environment,
    engine_service,
    gateway_service,
    prepare_state,
    state_folder,
)
from lychee_sgl.serve.preflight import accelerators, missing_packages, plugin_problem
from lychee_sgl.serve.ready import Probe, port_problem
from lychee_sgl.serve.supervisor import Supervisor

ENGINE_KEY: Final = "LYCHEE_GATEWAY_ENGINE_API_KEY"


def serve(config: ServeConfig, console: Console, *, verbose: bool) -> None:
    """Check, make the model if need be, run engine and gateway until told to stop.

    Args:
        config: what was asked for.
        console: where to report to.
        verbose: show the logs of both services too.

    Raises:
        ConfigError: something asked for cannot work here; nothing was started.
        ModelUnavailable: the embedded model is wanted and cannot be made.
        StartFailed: a service did not start; nothing is left running.
        OSError: a process or a log could not be made.
    """
    logging.getLogger("httpx").setLevel(logging.WARNING)
    environ = current_environment()
    gpus = accelerators(environ)
    accelerator = bool(gpus)
    config.check(environ)
    _check_gpus(config, gpus)
    _check_machine(config, environ, accelerator=accelerator)
    state = state_folder(config.port, environ)
    prepare_state(state)
    model, name = _model(config, console)
    console.print(f"{name} on {'the GPU' if accelerator else 'the CPU'}; logs: {state}", highlight=False, markup=False)
    reporter = ConsoleReporter(console, config, name, verbose=verbose)
    engine_up, gateway_ready = _engine_probe(config), Probe(f"{config.gateway_url}/readyz")
    supervisor = Supervisor(
        engine_service(config, model, name, accelerator=accelerator, state=state, environ=environ),
        gateway_service(config, state=state, environ=environ),
        lambda: engine_up() and gateway_ready(),
        reporter,
        start_timeout=config.start_timeout,
    )
    try:
        supervisor.run()
    finally:
        reporter.close()
        engine_up.close()
        gateway_ready.close()
    console.print("stopped", highlight=False)


def _engine_probe(config: ServeConfig) -> Probe:
    # The engine answers this only when its weights are loaded; the gateway knows when it is warm too. One that wants
    # a key (SGLang's --api-key), which the gateway has, answers 401.
    return Probe(f"{config.engine_url}/v1/models", statuses=(200, 401))


def run_engine(config: ServeConfig, host: str, console: Console) -> NoReturn:
    """Become the engine of a deployment, without a gateway: for containers, which watch and restart it themselves.

    Args:
        config: what was asked for; of the gateway's part nothing is used.
        host: address the engine listens on.
        console: where to report to.

    Raises:
        ConfigError: something asked for cannot work here.
        ModelUnavailable: the embedded model is wanted and cannot be made.
    """
    environ = current_environment()
    gpus = accelerators(environ)
    accelerator = bool(gpus)
    config.check(environ)
    _check_gpus(config, gpus)
    problem = plugin_problem(environ, accelerator=accelerator) or port_problem(host, config.engine_port)
    if problem is not None:
        raise ConfigError(problem)
    model, name = _model(config, console)
    spec = engine_service(config, model, name, accelerator=accelerator, state=Path(), environ=environ, host=host)
    console.print(f"{name} on {'the GPU' if accelerator else 'the CPU'}", highlight=False, markup=False)
    os.execvpe(spec.command[0], spec.command, dict(spec.environment))


def _check_gpus(config: ServeConfig, gpus: list[str]) -> None:
    if gpus and config.tp > len(gpus) and not any(word.startswith("--nnodes") for word in config.engine_args):
        raise ConfigError(f"--tp is {config.tp}; allowed on this machine: 1 to {len(gpus)}, it has so many GPUs")


def _check_machine(config: ServeConfig, environ: dict[str, str], *, accelerator: bool) -> None:
    wants_key = any(word.split("=", 1)[0] == "--api-key" for word in config.engine_args)
    if wants_key and not any(environ.get(f"{ENGINE_KEY}{end}") for end in ("", "_FILE")):
        raise ConfigError(f"--engine-arg --api-key: the gateway needs that key, too; set {ENGINE_KEY}")
    for option, host, port in (
        ("--port or --host", config.host, config.port),
        ("--engine-port", ENGINE_HOST, config.engine_port),
    ):
        problem = port_problem(host, port)
        if problem is not None:
            raise ConfigError(f"{problem}: choose another with {option}")
    missing = missing_packages()
    if missing:
        raise ConfigError(f"not installed: {', '.join(missing)}; install lychee-sgl[engine,gateway]")
    problem = plugin_problem(environ, accelerator=accelerator)
    if problem is not None:
        raise ConfigError(problem)


def _model(config: ServeConfig, console: Console) -> tuple[str, str]:
    """Folder or id of the model, and its name in the API."""
    if config.model is not None:
        own_name = Path(config.model).expanduser().resolve().name if Path(config.model).exists() else config.model
        return config.model, config.served_name or own_name
    if console.is_terminal:
        with console.status("looking for the embedded model") as status:
            folder = ensure_unpacked(lambda line: status.update(escape(line)))
    else:
        folder = ensure_unpacked(lambda line: console.print(line, highlight=False, markup=False))
    return str(folder), config.served_name or MODEL_NAME
