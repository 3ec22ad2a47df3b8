"""The command line `lychee-sgl compressor`. Importing it is cheap: torch comes in only with the commands."""

import shlex
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console

from lychee_sgl.heads.terminal import one_line_errors, say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lychee_sgl.compressor.trainer import StepReport

UNFINISHED: Final = 75
"""Exit status of a training that ran out of minutes: the same command with --resume goes on."""

app = typer.Typer(
    help="Train and evaluate a compressor: a few input embeddings that stand for a long text.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Model = Annotated[Path, typer.Option(help="Model folder, as transformers reads it")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 [default: a GPU if there is one]")]


@app.command()
def train(
    model: Model,
    out: Annotated[Path, typer.Option(help="The compressor's folder; the state lies in it until all is done")],
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Stop after so long; without --steps, train as many as fit")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the optimiser [default: those that fit]")] = None,
    batch: Annotated[int, typer.Option(help="Windows a step")] = 30,
    rate: Annotated[float, typer.Option(help="Learning rate")] = 1e-3,
    window: Annotated[int, typer.Option(help="Tokens that are compressed together")] = 512,
    ratio: Annotated[list[int] | None, typer.Option(help="Repeatable [default: 2, 4, 8, 16]")] = None,
    rank: Annotated[int, typer.Option(help="Of the LoRA adapter")] = 64,
    target: Annotated[int, typer.Option(help="Tokens of a continuation")] = 128,
    text: Annotated[list[Path] | None, typer.Option(help="Text to train on, in addition; repeatable")] = None,
    package: Annotated[
        list[str] | None, typer.Option(help="Installed package whose docstrings are read; repeatable [default: some]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of samples, ratios and first weights")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the state stands")] = False,
    device: Device = None,
) -> None:
    """Train on reconstruction, continuation and questions; exit status 75: time was up, --resume goes on."""
    with one_line_errors():
        from lychee_sgl.compressor.run import Job
        from lychee_sgl.compressor.run import train as run
        from lychee_sgl.compressor.settings import TrainSettings

        fixed = {} if steps is None else {"steps": steps}
        job = Job(
            model=model, out=out, minutes=minutes, fit=steps is None,
            settings=TrainSettings(batch=batch, rate=rate, target=target, seed=seed, **fixed),
            ratios=tuple(ratio or (2, 4, 8, 16)), window=window, rank=rank, text=tuple(text or ()),
            packages=None if package is None else tuple(package), device=device, resume=resume, command=_command(model),
        )  # fmt: skip
        with _progress() as tell:
            done = run(job, say=say, tell=tell)
        if not done:
            say(f"time is up; the same command with --resume goes on ({out})")
            raise typer.Exit(UNFINISHED)
        say(f"done: {out}")


@app.command()
def evaluate(
    model: Model,
    compressor: Annotated[Path, typer.Option(help="Folder of a training; the record goes into it")],
    windows: Annotated[int, typer.Option(help="Windows of held-out text to reconstruct")] = 64,
    questions: Annotated[int, typer.Option(help="Questions about facts in held-out text")] = 300,
    seed: Annotated[int, typer.Option(help="Of both")] = 0,
    device: Device = None,
) -> None:
    """Measure a compressor at its ratios against an untrained one, truncation, no text and all of it."""
    with one_line_errors():
        from lychee_sgl.compressor.run import EVALUATION, measure

        measure(
            model, compressor, windows=windows, questions=questions, seed=seed, device=device, command=_command(model),
            say=say,
        )  # fmt: skip
        say(f"written: {compressor / EVALUATION}")


@app.command()
def plot(
    record: Annotated[Path, typer.Argument(help="training.json of a compressor")],
    png: Annotated[Path, typer.Option(help="Where the picture goes")],
) -> None:
    """Draw a training's curves."""
    with one_line_errors():
        from lychee_sgl.compressor.picture import save_png

        save_png(record, png)
        say(f"drawn: {png}")


def _command(model: Path) -> str:
    """This call without what only this machine knows: the path to the model."""
    words = [model.resolve().name if word == str(model) else word for word in sys.argv[1:]]
    program = (
        Path(sys.argv[0]).name == "__main__.py"
    )  # python -m lychee_sgl.compressor, which takes no word `compressor`
    return shlex.join(["lychee-sgl", *(["compressor"] if program else []), *words])


@contextmanager
def _progress() -> "Iterator[Callable[[StepReport, int], None]]":
    """A bar with losses and time left in a terminal; else a line every fiftieth of the way."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[told]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("steps", total=None, told="")

        def tell(report: "StepReport", steps: int) -> None:
            losses = ", ".join(f"{name} {loss:.2f}" for name, loss in report.losses.items())
            done = report.step + 1
            bar.update(task, completed=done, total=steps, told=losses)
            if not console.is_terminal and (done % max(1, steps // 50) == 0 or done == steps):
                line = f"step {done} of {steps}: ratio {report.ratio}, {losses}, {report.seconds:.2f} s"
                console.print(line, markup=False, highlight=False, soft_wrap=True)

        yield tell
