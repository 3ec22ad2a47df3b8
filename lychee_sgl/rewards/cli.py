"""The command line `lychee-sgl rewards`. Importing it is cheap: torch comes in only with the experiment."""

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lychee_sgl.heads.terminal import say
from lychee_sgl.terminal import one_line_errors, writable

app = typer.Typer(
    help="Gated rewards: train where step rewards can be farmed, and see what the sandbox stops.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def experiment(
    out: Annotated[Path, typer.Option(help="Where the record goes (JSON); the state lies beside it")],
    seeds: Annotated[int | None, typer.Option(help="Runs of each arm [default: 6]")] = None,
    updates: Annotated[int | None, typer.Option(help="Steps of the optimiser [default: 500]")] = None,
    farm: Annotated[
        list[float] | None, typer.Option(help="What a well-formed call is worth; repeatable [default: 0 to 0.5]")
    ] = None,
    gate: Annotated[
        list[float] | None, typer.Option(help="Threshold on the outcome; repeatable [default: 0.25, 0.5, 1]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the state beside --out stands")] = False,
) -> None:
    """Train with direct accumulation and with gates, for every size of the farmable reward; minutes on two cores."""
    with one_line_errors():
        writable(out)
        from lychee_sgl.rewards.experiment.run import experiment as run
        from lychee_sgl.rewards.experiment.settings import Settings
        from lychee_sgl.rewards.experiment.tables import summary

        asked = {"seeds": seeds, "updates": updates, "farms": farm and tuple(farm), "gates": gate and tuple(gate)}
        settings = Settings(**{name: value for name, value in asked.items() if value is not None})  # type: ignore[arg-type]
        with _progress(settings.updates) as tell:
            record = run(settings, out, command=shlex.join(["lychee-sgl", *sys.argv[1:]]), resume=resume, tell=tell)
        for line in summary(record):
            say(line)


@contextmanager
def _progress(updates: int) -> Iterator[Callable[[int], None]]:
    """A bar in a terminal; else a line every twentieth of the way."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("updates", total=updates)

        def tell(done: int) -> None:
            bar.update(task, completed=done)
            if not console.is_terminal and done % max(1, updates // 20) == 0:
                console.print(f"update {done} of {updates}", highlight=False)

        yield tell


@app.command()
def show(
    record: Annotated[Path, typer.Argument(help="A record of the experiment")],
    png: Annotated[Path | None, typer.Option(help="Draw it into this file as well")] = None,
    farm: Annotated[float, typer.Option(help="Draw the courses for this worth of a call")] = 0.2,
) -> None:
    """Say what an experiment showed, a line an arm, and draw it."""
    with one_line_errors():
        if png is not None:
            writable(png, "--png")
        from lychee_sgl.rewards.experiment.tables import read_record, save_png, summary

        told = read_record(record)
        for line in summary(told):
            say(line)
        if png is not None:
            save_png(told, png, farm)
            say(f"drawn: {png}")


@app.command()
def sandbox(
    isolation: Annotated[
        str | None, typer.Option(help="bubblewrap, namespaces or process [default: the best but process]")
    ] = None,
) -> None:
    """Say which walls stand around a test run on this machine, and what they do not stop."""
    with one_line_errors():
        from lychee_sgl.rewards.environments.sandbox import Sandbox, SandboxUnavailable

        try:
            found = Sandbox(isolation=isolation)
        except SandboxUnavailable as error:
            raise ValueError(str(error)) from error
        say(f"isolation: {found.isolation}")
        say(f"limits: {found.limits}")
        for line in found.does_not_stop:
            say(f"does not stop: {line}")
