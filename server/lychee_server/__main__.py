"""The command line: `python -m lychee_server --engine-url http://127.0.0.1:8001 --port 8000`."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

import uvicorn

from lychee_server import keys_cli
from lychee_server.app import create_app
from lychee_server.curve import CurveError
from lychee_server.drain import DrainingServer
from lychee_server.keys import KeysError
from lychee_server.logs import configure_logging
from lychee_server.policy.file import PolicyError
from lychee_server.settings import ENV_PREFIX, Settings, SettingsError, load_settings
from lychee_server.telemetry import TelemetryError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

    from fastapi import FastAPI

    from lychee_server.forward import Gateway

log = logging.getLogger(__name__)

BAD_SETTINGS = 2
NO_ADDRESS = 1
_GC_THRESHOLD = (20_000, 20, 20)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the gateway until SIGTERM or SIGINT, or `keys` instead.

    Returns:
        The exit status: 0 after a shutdown, 2 for bad settings, 1 when the address cannot be had.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] == "keys":
        return keys_cli.main(arguments[1:])
    flags = {name: value for name, value in vars(_parser().parse_args(arguments)).items() if value is not None}
    try:
        settings = load_settings(os.environ, flags)
        app = create_app(settings)
    except (SettingsError, KeysError, PolicyError, CurveError, TelemetryError) as error:
        return _fail(str(error), BAD_SETTINGS)
    try:
        listener = _listen(settings.host, settings.port)
    except OSError as error:
        return _fail(f"cannot listen on {settings.host}:{settings.port}: {_reason(error)}", NO_ADDRESS)
    configure_logging(settings.log_level, settings.log_format)
    with listener:
        _serve(settings, app, listener)
    return 0


def _serve(settings: Settings, app: FastAPI, listener: socket.socket) -> None:
    gateway: Gateway = app.state.gateway
    config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False)
    server = DrainingServer(config, gateway.drain, settings)

    def leave(_: int, __: FrameType | None) -> None:
        # uvicorn raises the signal once more when it has shut down: that one must not kill the process.
        if not server.should_exit:
            sys.exit(0)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the application runs: it would end the process
    host, port = listener.getsockname()[:2]
    log.info("listening", extra={"host": host, "port": port, "engines": settings.all_engine_urls})
    # What was built until now stays, and requests leave few cycles: rare collections keep pauses out of the streams.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLD)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])


def _parser() -> keys_cli.OneLineParser:
    parser = keys_cli.OneLineParser(
        prog="lychee-gateway",
        description="OpenAI's API in front of SGLang, with a sparsity budget for each request.",
        epilog=f"Every flag can be given as an environment variable too: --engine-url is {ENV_PREFIX}ENGINE_URL. "
        "`lychee-gateway keys --help` shows how keys for callers are made.",
    )
    for name, field in Settings.model_fields.items():
        default = "none" if field.default in (None, ()) else field.default
        help_text = f"{field.description} (default: {default})".replace("%", "%%")
        parser.add_argument(f"--{name.replace('_', '-')}", dest=name, metavar="VALUE", help=help_text)
    return parser


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)


def _reason(error: OSError) -> str:
    # Failed look-ups have negative numbers and good texts; failed binds the other way round.
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error.strerror or error)


def _fail(message: str, status: int) -> int:
    sys.stderr.write(f"lychee-gateway: {message}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
