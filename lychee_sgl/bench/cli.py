"""`lychee-sgl bench`: measurements that anyone can repeat."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(help="Measure speed against stock SGLang.", no_args_is_help=True, add_completion=False)


@app.callback()
def _main() -> None:
    """Measure speed against stock SGLang."""


def _write(out: Path, record: dict[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n")


@app.command()
def start(
    out: Annotated[Path, typer.Option(help="Where the JSON goes.")] = Path("start.json"),
    fresh: Annotated[bool, typer.Option(help="Clone the project and run `make serve` there, from nothing.")] = False,
) -> None:
    """Seconds from `lychee-sgl serve` to the first answer, and the memory of all processes after a long one."""
    from lychee_sgl.bench import start as bench

    console = Console(stderr=True)
    try:
        with tempfile.TemporaryDirectory() as state, console.status("") as status:
            record = bench.run(Path(state), status.update, fresh=fresh)
    except bench.StartError as error:
        console.print(f"error: {error}", markup=False)
        raise typer.Exit(1) from error
    _write(out, record)
    Console().print(
        f"ready after {record['ready_seconds']:.0f} s, first answer after {record['first_answer_seconds']:.0f} s, "
        f"all processes together {record['pss_gib_after_long']:.1f} GiB",
        highlight=False,
    )


@app.command()
def cpu(
    out: Annotated[Path, typer.Option(help="Where the JSON goes.")] = Path("cpu-speed.json"),
    rounds: Annotated[int, typer.Option(min=1, help="How often each question is asked, in turn.")] = 3,
    contexts: Annotated[str, typer.Option(help="Context lengths, with commas.")] = "64,1000,2000,4000,7000",
) -> None:
    """Time per token and to the first token on this CPU: stock SGLang (torch_native) and lychee, asked in turn."""
    from lychee_sgl.bench import cpu as bench
    from lychee_sgl.serve.supervisor import StartFailed

    console = Console(stderr=True)
    try:
        lengths = tuple(sorted(int(word) for word in contexts.split(",")))
    except ValueError:
        console.print(f"error: --contexts is {contexts!r}, allowed: whole numbers with commas", markup=False)
        raise typer.Exit(2) from None
    if not all(bench.NEW_PROMPT_TOKENS < n <= 8000 for n in lengths):
        console.print(
            f"error: --contexts is {contexts!r}, allowed: {bench.NEW_PROMPT_TOKENS + 1} to 8000", markup=False
        )
        raise typer.Exit(2)
    try:
        with tempfile.TemporaryDirectory() as state, console.status("") as status:
            record = bench.run(Path(state), rounds, lengths, status.update)
    except (StartFailed, bench.GateError) as error:
        console.print(f"error: {error}", markup=False)
        raise typer.Exit(1) from error
    _write(out, record)
    table = Table(title="stock over lychee: how many times faster")
    for column in ("context", "per token, dense", "per token, 1024", "per token, 512", "first token after a hit"):
        table.add_column(column, justify="right")
    for ratio in record["ratios"]:
        values = [ratio["per_token"][key] for key in ("dense", "1024", "512")]
        values.append(ratio["first_token_after_hit"]["dense"])
        table.add_row(str(ratio["context_tokens"]), *(f"{value:.2f}" for value in values))
    Console().print(table)
