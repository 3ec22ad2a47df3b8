"""`lychee-sgl bench gateway` and `lychee-sgl bench router`."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from lychee_sgl.terminal import one_line_errors, writable, writable_folder


def gateway(
    out: Annotated[Path, typer.Option(help="Where the JSON goes.")] = Path("gateway.json"),
    rounds: Annotated[int, typer.Option(min=10, help="Questions through the gateway, and as many past it.")] = 500,
    streams: Annotated[int, typer.Option(min=1, help="Streams at the same time.")] = 500,
    requests: Annotated[int, typer.Option(min=100, help="Requests of the mix with killed engines.")] = 10_000,
) -> None:
    """What the gateway adds to the time to the first token, and how many streams it holds; needs no model."""
    from lychee_sgl.bench import gateway as bench
    from lychee_sgl.bench import gateway_mix
    from lychee_sgl.bench.gateway_parts import GatewayBenchError

    with one_line_errors(GatewayBenchError):
        writable(out, folder_is_made=True)
        with Console(stderr=True).status("") as status:
            record = bench.run(rounds, streams, status.update)
            mix = gateway_mix.run(requests, status.update)
    record["mix"] = {key: value for key, value in mix.items() if key not in record}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n")
    table = Table(title="milliseconds that the gateway adds to the first token")
    for column in ("prompt, characters", "at once", "p50", "p90", "p99"):
        table.add_column(column, justify="right")
    for row in record["first_token"]:
        added = (f"{row[share]['added_ms']:.2f}" for share in ("p50", "p90", "p99"))
        table.add_row(f"{row['prompt_characters']:,}", str(row["at_once"]), *added)
    Console().print(table)
    held = record["streams"]
    Console().print(
        f"{held['whole_answers']} of {held['streams']} streams whole, {held['chunks_received']:,} of "
        f"{held['chunks_expected']:,} chunks, gap p99 {held['gap_seconds']['p99'] * 1000:.0f} ms "
        f"(the engine's: {held['pause_seconds'] * 1000:.0f} ms)",
        highlight=False,
    )
    Console().print(
        f"{requests:,} mixed requests: {mix['clients_saw']}, counted {mix['gateway_counted']}; "
        f"{'; '.join(mix['problems']) or 'all add up'}",
        highlight=False,
    )
    if mix["problems"] or held["whole_answers"] != held["streams"]:
        raise typer.Exit(1)


def router(
    out: Annotated[Path, typer.Option(help="Where the JSON goes.")] = Path("router.json"),
    requests: Annotated[int, typer.Option(min=100, help="Mixed requests.")] = 2_000,
    at_once: Annotated[int, typer.Option(min=1, help="Clients.")] = 32,
    kills: Annotated[int, typer.Option(min=0, help="Engines that are killed and brought back, in turn.")] = 1,
    engine: Annotated[
        str, typer.Option(help="echo: needs no model; lychee: real engines on this CPU, of which one is killed.")
    ] = "echo",
    logs: Annotated[Path | None, typer.Option(help="Folder that keeps the real engines' logs.")] = None,
) -> None:
    """Mixed requests through the gateway and SGLang's router to two engines, one of which dies."""
    from lychee_sgl.bench.gateway_parts import GatewayBenchError
    from lychee_sgl.serve.supervisor import StartFailed

    console = Console(stderr=True, log_path=False)
    with one_line_errors(GatewayBenchError, StartFailed):
        problem = _router_problem(engine, kills)
        if problem is not None:
            raise ValueError(problem)
        writable(out, folder_is_made=True)
        if logs is not None:
            writable_folder(logs, "--logs")
        if engine == "echo":
            record = _echo(console, requests, at_once, kills)
        else:
            record = _real(console, requests, at_once, logs)
    record["versions"]["smg"] = version("smg")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n")
    Console().print(
        f"{requests:,} mixed requests, {kills} killed engines: {record['clients_saw']}, counted "
        f"{record['gateway_counted']}, of each engine {record['replicas']}; "
        f"{'; '.join(record['problems']) or 'all add up'}",
        highlight=False,
        markup=False,
    )
    if record["problems"]:
        raise typer.Exit(1)


def _router_problem(engine: str, kills: int) -> str | None:
    if importlib.util.find_spec("smg") is None:
        return "SGLang's router is not installed: it comes with the extra `router`"
    if engine not in ("echo", "lychee"):
        return f"--engine is {engine!r}; allowed: echo, lychee"
    if engine == "lychee" and kills != 1:
        return f"--kills is {kills}; allowed with --engine lychee: 1"
    return None


def _echo(console: Console, requests: int, at_once: int, kills: int) -> dict[str, Any]:
    from lychee_sgl.bench import gateway_mix

    with console.status("") as status:
        return gateway_mix.run(requests, status.update, at_once=at_once, kills=kills, routed=True)


def _real(console: Console, requests: int, at_once: int, logs: Path | None) -> dict[str, Any]:
    from lychee_sgl.bench import router_real

    wanted = router_real.Wanted(requests=requests, at_once=at_once)
    with contextlib.ExitStack() as stack:
        state = logs if logs is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        state.mkdir(parents=True, exist_ok=True)
        return router_real.run(wanted, state, lambda line: console.log(line, markup=False, highlight=False))
