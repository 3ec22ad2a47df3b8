"""`lychee-sgl bench`: measurements that anyone can repeat."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(help="Measure speed against stock SGLang.", no_args_is_help=True, add_completion=False)


@app.callback()
def _main() -> None:
    """Measure speed against stock SGLang."""


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
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n")
    table = Table(title="stock over lychee: how many times faster")
    for column in ("context", "per token, dense", "per token, 1024", "per token, 512", "first token after a hit"):
        table.add_column(column, justify="right")
    for ratio in record["ratios"]:
        values = [ratio["per_token"][key] for key in ("dense", "1024", "512")]
        values.append(ratio["first_token_after_hit"]["dense"])
        table.add_row(str(ratio["context_tokens"]), *(f"{value:.2f}" for value in values))
    Console().print(table)
