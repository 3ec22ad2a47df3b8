"""`lychee-sgl calibrate`: measures the speed curve that the gateway takes as its dense reference."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from lychee_sgl.bench import curve, machine
from lychee_sgl.terminal import MENDABLE, complain, web_address, writable

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")

app = typer.Typer(add_completion=False)


@app.command()
def calibrate(
    url: Annotated[str, typer.Option(help="Address of the engine itself, not of the gateway.")] = (
        "http://127.0.0.1:8001"
    ),
    out: Annotated[Path, typer.Option(help="Where the curve goes; what is in it already is not measured again.")] = (
        Path("curve.json")
    ),
    budgets: Annotated[str, typer.Option(help="Budgets, with commas; dense is always measured.")] = "512,1024,2048",
    contexts: Annotated[
        str | None, typer.Option(help="Context lengths, with commas [default: 128 and fourfold, up to the window].")
    ] = None,
    batches: Annotated[
        str | None, typer.Option(help="Requests at one time, with commas [default: 1,2,4 on a CPU, else 1,4,16,64].")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each budget is asked, in turn.")] = 3,
    device: Annotated[
        str | None, typer.Option(help="Name of the engine's hardware [default: this machine's, if it runs here].")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="LYCHEE_ENGINE_API_KEY", help="Key of an engine that was started with one.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure all of it again.")] = False,
) -> None:
    """Measure time per token, dense and at several budgets, against context and batch, on a running engine.

    Nothing else should use the engine meanwhile. An interrupted run goes on where it was.
    """
    console = Console(stderr=True)
    try:
        web_address(url)
        writable(out)
        asked = _Asked(url, out, (budgets, contexts, batches), rounds, device, api_key, fresh)
        record = asyncio.run(_run(asked, console))
    except (*MENDABLE, curve.CalibrationError) as error:
        complain(str(error))
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        console.print(f"interrupted; what was measured is in {out}", markup=False, highlight=False)
        raise typer.Exit(130) from None
    Console().print(_table(record))


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the command line asks for; `grid` is budgets, contexts and batches as they were written."""

    url: str
    out: Path
    grid: tuple[str, str | None, str | None]
    rounds: int
    device: str | None
    api_key: str | None
    fresh: bool


async def _run(asked: _Asked, console: Console) -> dict[str, Any]:
    local = httpx.URL(asked.url).host in LOCAL_HOSTS
    async with httpx.AsyncClient(
        base_url=asked.url,
        headers={"authorization": f"Bearer {asked.api_key}"} if asked.api_key else {},
        timeout=1800,
        limits=httpx.Limits(max_connections=None),
        trust_env=not local,
    ) as client:
        facts = await curve.examine(client)
        grid = _grid(asked.grid, facts)
        identity = facts.identity(asked.device or _this_machine(local, facts))
        about = machine.describe()
        record: dict[str, Any] = {
            "schema": curve.SCHEMA,
            "version": 1,
            **identity,
            "date": about["date"],
            "command": about["command"].replace(asked.api_key, "...") if asked.api_key else about["command"],
            "points": [] if asked.fresh else curve.resume(asked.out, identity),
        }
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
            task = progress.add_task("examining the engine")

            def save(cell: curve.Cell, done: int, total: int) -> None:
                text = f"{cell[0]} tokens, {cell[1]} at a time" if done < total else "done"
                progress.update(task, description=text, completed=done, total=total)
                if record["points"]:
                    curve.write(asked.out, record)

            await curve.measure(client, grid, record, facts, asked.rounds, save)
    return record


def _grid(wanted: tuple[str, str | None, str | None], facts: curve.EngineFacts) -> curve.Grid:
    budgets, contexts, batches = wanted
    on_cpu = facts.info["device"] == "cpu"
    longest = facts.window - curve.TOKENS
    fourfold = [128 * 4**power for power in range(12) if 128 * 4**power < longest]
    return curve.Grid(
        budgets=_numbers("--budgets", budgets),
        contexts=(*fourfold, longest) if contexts is None else _numbers("--contexts", contexts),
        batches=_numbers("--batches", batches or ("1,2,4" if on_cpu else "1,4,16,64")),
    )


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        found = tuple(sorted({int(word) for word in text.split(",")}))
    except ValueError:
        found = ()
    if not found or found[0] < 1:
        raise curve.CalibrationError(f"{option} is {text!r}; allowed: whole numbers from 1, with commas")
    return found


def _this_machine(local: bool, facts: curve.EngineFacts) -> str:
    if not local:
        raise curve.CalibrationError("the engine is on another machine: name its hardware with --device")
    return machine.device_name(accelerator=facts.info["device"] != "cpu")


def _table(record: dict[str, Any]) -> Table:
    budgets = sorted({point["budget"] for point in record["points"]}, key=lambda b: (b != "dense", b))
    table = Table(title="milliseconds for a token")
    for column in ("context", "batch", *map(str, budgets)):
        table.add_column(column, justify="right")
    found = {(p["context"], p["batch"], p["budget"]): f"{p['itl_ms']:.1f}" for p in record["points"]}
    for context, batch in sorted({place[:2] for place in found}):
        table.add_row(str(context), str(batch), *(found.get((context, batch, budget), "") for budget in budgets))
    return table
