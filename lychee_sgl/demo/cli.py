"""`lychee-sgl demo`: a needle in a long text, asked for at several budgets."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from lychee_sgl.demo.errors import DemoError
from lychee_sgl.terminal import one_line_errors, web_address, writable

FILE_WIDTH: Final = 160

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def demo(
    url: Annotated[str, typer.Option(help="Address of a gateway; where none runs, one is started for the demo")] = (
        "http://127.0.0.1:8000"
    ),
    questions: Annotated[
        bool, typer.Option("--questions", help="Ask ten more, each dense and at the default budget")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything there")] = None,
) -> None:
    """Ask for one fact in the middle of a long text: dense, and with sparse heads at three budgets."""
    progress = Console(stderr=True)
    with one_line_errors(DemoError):
        web_address(url)
        if json_file is not None:
            writable(json_file, "--json", folder_is_made=True)
            json_file.parent.mkdir(parents=True, exist_ok=True)
        with progress.status("looking for a server") as status:
            found = _run(url, questions, _console(), lambda line: status.update(line))
        if json_file is not None:
            json_file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _console() -> Console:
    console = Console()
    # a file has no width of its own, and the tables have long lines
    return console if console.is_terminal else Console(width=FILE_WIDTH)


def _run(url: str, questions: bool, console: Console, say: Callable[[str], None]) -> dict[str, Any]:
    from lychee_sgl.bench.machine import describe
    from lychee_sgl.demo.asking import ask_questions, ask_table, measure_lengths, record
    from lychee_sgl.demo.client import Gateway
    from lychee_sgl.demo.server import server_at
    from lychee_sgl.demo.show import show_questions, show_table

    origin = describe()  # before the work: it notes how loaded the machine was
    with server_at(url, say):
        gateway = Gateway(url)
        try:
            served = gateway.served()
            console.print(f"{served.model} at {gateway.url}, head plan {served.plan}", markup=False, highlight=False)
            found = measure_lengths(gateway, served.model, served.window)
            table = ask_table(gateway, served.model, found, say)
            show_table(table, console)
            pairs = ask_questions(gateway, served.model, found, say) if questions else ()
            if pairs:
                show_questions(pairs, console)
        finally:
            gateway.close()
    return {"kind": "demo", **origin, "served": asdict(served), "lengths": asdict(found), **record(table, pairs)}
