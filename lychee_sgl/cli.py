"""The command line `lychee-sgl`. Importing it is cheap: every command imports what it needs when it runs."""

import importlib
import importlib.util
import json
import shlex
import signal
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import Annotated, Final, NoReturn

import typer
from rich.console import Console

from lychee_sgl import __version__
from lychee_sgl.config import ConfigError
from lychee_sgl.terminal import one_line_errors, run

# Commands of other rooms: the module with a typer application called `app`, and what it is for.
ROOMS: Final = {
    "heads": ("lychee_sgl.heads.cli", "Show, check, calibrate and train head plans."),
    "rewards": ("lychee_sgl.rewards.cli", "Gated rewards: the collapse experiment, and the sandbox of test runs."),
    "memory": ("lychee_sgl.memory.cli", "Train and measure the gate for documents that are read block by block."),
    "compressor": ("lychee_sgl.compressor.cli", "Train and evaluate a compressor of long texts."),
    "demo": ("lychee_sgl.demo.cli", "Find a needle in a long text, sparse and dense."),
    "bench": ("lychee_sgl.bench.cli", "Measure speed, the gateway, held recall, long documents."),
    "eval": ("lychee_sgl.eval.cli", "Measure quality: RULER, needles, long traces and your own files."),
    "plan-capacity": ("lychee_sgl.capacity.cli", "Say which model, context, batch and budget fit which GPUs."),
    "calibrate": ("lychee_sgl.bench.calibrate", "Measure an engine's time per token against budget, context, batch."),
}

LARGEST: Final = 2**31 - 1  # what the engine's 32-bit tables hold

app = typer.Typer(
    help="Hybrid-head sparse decoding for long contexts, inside stock SGLang, behind an OpenAI-compatible gateway.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _one_line_errors() -> AbstractContextManager[None]:
    from lychee_sgl.models.embedded import ModelUnavailable
    from lychee_sgl.serve.supervisor import StartFailed

    return one_line_errors(ModelUnavailable, StartFailed)


def _version(wanted: bool) -> None:
    if wanted:
        Console().print(f"lychee-sgl {__version__}", highlight=False)
        raise typer.Exit


Model = Annotated[str | None, typer.Option(help="Model folder or Hugging Face id [default: the embedded SmolLM2-135M]")]
ServedName = Annotated[str | None, typer.Option(help="The model's name in the API [default: its own]")]
Heads = Annotated[Path | None, typer.Option(help="Head plan [default: the built-in one, else a heuristic]")]
DenseBelow = Annotated[
    int | None,
    typer.Option(
        min=0, max=LARGEST, help="Contexts up to this length run dense [default: 4096 on a GPU, 1024 on a CPU]"
    ),
]
RecallEvery = Annotated[
    int | None, typer.Option(min=0, max=LARGEST, help="Audit one decode step in so many, 0: none [default: 32]")
]
PoolTokens = Annotated[
    int | None,
    typer.Option(min=1, max=LARGEST, help="Tokens in the KV pool [default: 32768 on a CPU, SGLang's choice on a GPU]"),
]
TensorParallel = Annotated[int, typer.Option(min=1, help="GPUs that share the model (tensor-parallel ranks)")]
EngineArgs = Annotated[
    list[str] | None, typer.Option(help="Further arguments of SGLang, e.g. --engine-arg '--page-size 64'; repeatable")
]


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of the program itself."""


@app.command()
def serve(
    model: Model = None,
    served_model_name: ServedName = None,
    heads: Heads = None,
    host: Annotated[str, typer.Option(help="Address the gateway listens on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the gateway")] = 8000,
    engine_port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port of the engine, on 127.0.0.1 [default: port + 1]"),
    ] = None,
    dense_below: DenseBelow = None,
    recall_every: RecallEvery = None,
    max_total_tokens: PoolTokens = None,
    tp: TensorParallel = 1,
    engine_arg: EngineArgs = None,
    start_timeout: Annotated[
        float, typer.Option(min=1, help="Seconds until a start that is not ready has failed")
    ] = 900,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the logs of both services")] = False,
) -> None:
    """Start the engine and the gateway, watch them, and stop both on Ctrl-C."""
    from lychee_sgl.serve.config import ServeConfig
    from lychee_sgl.serve.launch import serve as start

    with _one_line_errors():
        signal.signal(signal.SIGTERM, _terminated)  # until the supervisor takes over
        config = ServeConfig(
            model=model,
            served_name=served_model_name,
            heads=heads,
            host=host,
            port=port,
            engine_port=_port_after(port) if engine_port is None else engine_port,
            dense_below=dense_below,
            recall_every=recall_every,
            max_total_tokens=max_total_tokens,
            tp=tp,
            engine_args=tuple(word for argument in engine_arg or [] for word in _words(argument)),
            start_timeout=start_timeout,
        )
        start(config, Console(), verbose=verbose)


@app.command()
def engine(
    model: Model = None,
    served_model_name: ServedName = None,
    heads: Heads = None,
    host: Annotated[str, typer.Option(help="Address the engine listens on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the engine")] = 8001,
    dense_below: DenseBelow = None,
    recall_every: RecallEvery = None,
    max_total_tokens: PoolTokens = None,
    tp: TensorParallel = 1,
    engine_arg: EngineArgs = None,
) -> None:
    """Run the engine alone, in this process: for containers, where others watch it and the gateway is elsewhere."""
    from lychee_sgl.serve.config import ServeConfig
    from lychee_sgl.serve.launch import run_engine

    with _one_line_errors():
        config = ServeConfig(
            model=model,
            served_name=served_model_name,
            heads=heads,
            port=_port_after(port),
            engine_port=port,
            dense_below=dense_below,
            recall_every=recall_every,
            max_total_tokens=max_total_tokens,
            tp=tp,
            engine_args=tuple(word for argument in engine_arg or [] for word in _words(argument)),
        )
        run_engine(config, host, Console(stderr=True))


@app.command()
def doctor(
    host: Annotated[str, typer.Option(help="Address a server would listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65534, help="Port a server would take, and the next")] = 8000,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable")] = False,
) -> None:
    """Say what this machine can run and what is missing; exit status 1 when `serve` cannot work."""
    from lychee_sgl import doctor as room

    console = Console()
    checks = room.examine(host, port)
    if as_json:
        console.print_json(json.dumps([check.to_dict() for check in checks]))
    else:
        room.show(checks, console)
    raise typer.Exit(1 if any(check.status == "fail" for check in checks) else 0)


@app.command()
def model(
    verify: Annotated[bool, typer.Option("--verify", help="Hash every file, not only the small ones")] = False,
) -> None:
    """Print the folder of the embedded model; unpack it first where that is needed."""
    from lychee_sgl.models import embedded

    progress = Console(stderr=True)
    with _one_line_errors():
        folder = embedded.ensure_unpacked(lambda line: progress.print(line, markup=False, highlight=False))
        if verify:
            fault = embedded.find_unpacked(every_hash=True)[1]
            if fault is not None:
                raise embedded.ModelUnavailable(f"{folder}: {fault}; delete the folder and call again")
        Console(soft_wrap=True).print(str(folder), markup=False, highlight=False)


def _mount(name: str, module: str, summary: str) -> None:
    """Add a room's own application as a command that is imported when it is called, help included."""

    def delegate(ctx: typer.Context) -> None:
        run(importlib.import_module(module).app, ctx.args, f"lychee-sgl {name}")

    settings = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command(name, help=summary, add_help_option=False, context_settings=settings)(delegate)


def _port_after(port: int) -> int:
    return port + 1 if port < 65535 else port - 1


def _words(argument: str) -> list[str]:
    try:
        return shlex.split(argument)
    except ValueError as error:
        raise ConfigError(f"--engine-arg {argument!r}: {error}") from error


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


for _name, (_module, _summary) in ROOMS.items():
    if importlib.util.find_spec(_module) is not None:
        _mount(_name, _module, _summary)


def main() -> None:
    """Entry point of the script `lychee-sgl`."""
    run(app)
