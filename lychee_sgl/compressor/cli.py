"""The command line `lychee-sgl compressor`. Importing it is cheap: torch comes in only with the commands."""

import math
import shlex
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console

from lychee_sgl.heads.terminal import say
from lychee_sgl.terminal import one_line_errors, writable, writable_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lychee_sgl.compressor.reinforce import PlayReport
    from lychee_sgl.compressor.trainer import StepReport

UNFINISHED: Final = 75
"""Exit status of a training that ran out of minutes: the same command with --resume goes on."""

_LINE_SECONDS: Final = 10.0

app = typer.Typer(
    help="Train, reinforce and evaluate a compressor: a few input embeddings that stand for a long text.",
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
        float | None, typer.Option(min=0, help="Stop after so long; without --steps, train as many steps as fit")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the optimiser [default: those that fit]")] = None,
    batch: Annotated[int, typer.Option(help="Windows a step")] = 30,
    rate: Annotated[float, typer.Option(help="Learning rate")] = 1e-3,
    sweep: Annotated[
        list[float] | None, typer.Option(help="Rate for a pilot, of which the best is taken; repeatable")
    ] = None,
    pilot: Annotated[int, typer.Option(min=1, help="Steps for each rate of the pilot")] = 80,
    window: Annotated[int, typer.Option(help="Tokens that are compressed together")] = 512,
    ratio: Annotated[
        list[int] | None, typer.Option(help="Tokens that an embedding stands for; repeatable [default: 2, 4, 8, 16]")
    ] = None,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the LoRA adapter")] = 32,
    reader_rank: Annotated[
        int, typer.Option(min=0, help="Rank of an adapter for the reader, too; 0: the reader is the plain model")
    ] = 0,
    keep: Annotated[
        float, typer.Option(help="Weight of keeping that reader's reading of whole text as the plain model's")
    ] = 1.0,
    target: Annotated[int, typer.Option(help="Tokens of a continuation")] = 128,
    text: Annotated[list[Path] | None, typer.Option(help="Text to train on, in addition; repeatable")] = None,
    package: Annotated[
        list[str] | None, typer.Option(help="Installed package whose docstrings are read; repeatable [default: some]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of samples, ratios and first weights")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the state stands")] = False,
    device: Device = None,
) -> None:
    """Train on reconstruction, continuation and questions; exit status 75: time was up, --resume goes on."""
    with one_line_errors():
        writable_folder(out)
        from lychee_sgl.compressor.run import Job
        from lychee_sgl.compressor.run import train as run
        from lychee_sgl.compressor.settings import TrainSettings

        fixed = {} if steps is None else {"steps": steps}
        job = Job(
            model=model, out=out, minutes=minutes, fit=steps is None, sweep=tuple(sweep or ()), pilot=pilot,
            settings=TrainSettings(batch=batch, rate=rate, target=target, keep=keep, seed=seed, **fixed),
            ratios=tuple(ratio or (2, 4, 8, 16)), window=window, rank=rank, reader_rank=reader_rank,
            text=tuple(text or ()),
            packages=None if package is None else tuple(package), device=device, resume=resume, command=_command(model),
        )  # fmt: skip
        with _progress() as told:

            def tell(report: "StepReport", steps: int) -> None:
                losses = ", ".join(f"{name} {loss:.2f}" for name, loss in report.losses.items())
                drift = f", drift {report.drift:.3f}" if reader_rank and keep else ""
                told(report.step + 1, steps, f"ratio {report.ratio}, {losses}{drift}", report.seconds)

            done = run(job, say=say, tell=tell)
        _end(done, out)


@app.command()
def reinforce(
    model: Model,
    compressor: Annotated[Path, typer.Option(help="Folder of a training, where it starts; it stays as it is")],
    out: Annotated[Path, typer.Option(help="Folder of the result; the state lies in it until all is done")],
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Stop after so long; without --steps, go on so long")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps [default: those that fit]")] = None,
    direct: Annotated[bool, typer.Option("--direct", help="All rewards count, also where the answer is wrong")] = False,
    loop: Annotated[
        bool, typer.Option("--loop", help="Read window by window with notes, not all blocks at once")
    ] = False,
    ratio: Annotated[
        list[int] | None,
        typer.Option(help="Tokens that an embedding stands for; repeatable, a step draws one [default: 4]"),
    ] = None,
    tasks: Annotated[int, typer.Option(help="Documents, each with a question, a step")] = 16,
    group: Annotated[int, typer.Option(help="Trajectories of each document")] = 8,
    passes: Annotated[int, typer.Option(help="Updates over a step's trajectories")] = 2,
    windows: Annotated[int, typer.Option(help="Windows of a document")] = 4,
    two_hop: Annotated[float, typer.Option(help="Share of questions whose answer takes two facts")] = 0.5,
    limit: Annotated[int, typer.Option(help="Most tokens of a reply")] = 16,
    gate: Annotated[float, typer.Option(help="What the outcome has to reach for lower rewards to count")] = 1.0,
    evidence: Annotated[float, typer.Option(help="Weight of this reward; the outcome's is 1")] = 0.2,
    form: Annotated[float, typer.Option(help="Weight of the reward for being brief")] = 0.05,
    rate: Annotated[float, typer.Option(help="Learning rate")] = 3e-4,
    clip: Annotated[float, typer.Option(help="Clip the likelihood ratio at 1 plus or minus this")] = 0.2,
    kl: Annotated[float, typer.Option(help="Weight of the divergence from the start")] = 0.0,
    reader_rank: Annotated[int, typer.Option(help="Rank of the reader's adapter; 0: the compressor learns alone")] = 16,
    questions: Annotated[int, typer.Option(help="Held-out questions, before and after")] = 300,
    text: Annotated[list[Path] | None, typer.Option(help="Text for documents, in addition; repeatable")] = None,
    package: Annotated[
        list[str] | None, typer.Option(help="Installed package whose docstrings are read; repeatable [default: some]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of tasks, sampling and the adapter's first weights")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the state stands")] = False,
    device: Device = None,
) -> None:
    """Train compressor and reader together on the outcome; exit status 75: time was up, --resume goes on."""
    with one_line_errors():
        writable_folder(out)
        from lychee_sgl.compressor.folder import read_description

        read_description(compressor)  # a wrong folder is told before the model is read
        from lychee_sgl.compressor.corpus import PACKAGES
        from lychee_sgl.compressor.reinforce_run import ReinforceJob
        from lychee_sgl.compressor.reinforce_run import reinforce as run
        from lychee_sgl.compressor.settings import ReinforceSettings

        settings = ReinforceSettings(
            ratios=tuple(ratio or (4,)), tasks=tasks, group=group, passes=passes, windows=windows, two_hop=two_hop,
            limit=limit, loop=loop, gated=not direct, gate=gate, evidence=evidence, form=form, rate=rate, clip=clip,
            kl=kl, reader_rank=reader_rank, seed=seed,
        )  # fmt: skip
        job = ReinforceJob(
            model=model, compressor=compressor, out=out, settings=settings, steps=steps, minutes=minutes,
            questions=questions, text=tuple(text or ()), packages=PACKAGES if package is None else tuple(package),
            device=device, resume=resume, command=_command(model),
        )  # fmt: skip
        with _progress() as told:

            def tell(report: "PlayReport", steps: int) -> None:
                rewards = ", ".join(f"{name} {value:.2f}" for name, value in report.rewards.items())
                told(
                    report.step + 1,
                    steps,
                    f"ratio {report.ratio}, {rewards}, groups that differ {report.differ:.0%}",
                    report.seconds,
                )

            done = run(job, say=say, tell=tell)
        _end(done, out)


@app.command()
def evaluate(
    model: Model,
    compressor: Annotated[Path, typer.Option(help="Folder of a training; the record goes into it")],
    windows: Annotated[int, typer.Option(min=2, help="Windows of held-out text to reconstruct")] = 64,
    questions: Annotated[int, typer.Option(min=2, help="Questions about facts in held-out text")] = 300,
    seed: Annotated[int, typer.Option(help="Seed of both")] = 0,
    reader: Annotated[
        bool, typer.Option("--reader", help="Read with the reader's adapter of a reinforcement, not the plain model")
    ] = False,
    device: Device = None,
) -> None:
    """Measure a compressor at its ratios against an untrained one, truncation, no text and all of it."""
    with one_line_errors():
        from lychee_sgl.compressor.folder import read_description

        read_description(compressor)  # a wrong folder is told before the model is read
        from lychee_sgl.compressor.run import EVALUATION, measure

        measure(
            model, compressor, windows=windows, questions=questions, seed=seed, device=device, command=_command(model),
            say=say, reader=reader,
        )  # fmt: skip
        say(f"written: {compressor / EVALUATION}")


@app.command()
def merge(
    model: Model,
    compressor: Annotated[Path, typer.Option(help="Folder with a reader's adapter; it stays as it is")],
    out: Annotated[Path, typer.Option(help="Folder of the model that a server reads; a new one")],
) -> None:
    """Put the reader's adapter into the model's weights, and the compressor for them beside: what a server reads."""
    with one_line_errors():
        from lychee_sgl.compressor.folder import read_description

        read_description(compressor)  # a wrong folder is told before the model is read
        from lychee_sgl.compressor.merge import merge as run

        run(model, compressor, out, command=_command(model), say=say)
        say(f"done: {out}; lychee-sgl serve --model {out}")


@app.command()
def plot(
    records: Annotated[
        list[Path], typer.Argument(help="training.json of a compressor, or one or more reinforcement.json")
    ],
    png: Annotated[Path, typer.Option(help="Where the picture goes")],
    table: Annotated[
        Path | None, typer.Option(help="Where the results before and after go, as JSON (reinforcements only)")
    ] = None,
) -> None:
    """Draw a training's curves, or those of reinforcements, and say what each changed."""
    with one_line_errors():
        writable(png, "--png")
        if table is not None:
            writable(table, "--table")
        from lychee_sgl.compressor.picture import save_png

        save_png(records, png, table=table, say=say)
        say(f"drawn: {png}")


def _command(model: Path) -> str:
    """This call without what only this machine knows: the path to the model."""
    words = [model.resolve().name if word == str(model) else word for word in sys.argv[1:]]
    words = [Path(word).name if Path(word).is_absolute() else word for word in words]
    program = (
        Path(sys.argv[0]).name == "__main__.py"
    )  # python -m lychee_sgl.compressor, which takes no word `compressor`
    return shlex.join(["lychee-sgl", *(["compressor"] if program else []), *words])


def _end(done: bool, out: Path) -> None:
    if not done:
        say(f"time is up; the same command with --resume goes on ({out})")
        raise typer.Exit(UNFINISHED)
    say(f"done: {out}")


@contextmanager
def _progress() -> "Iterator[Callable[[int, int, str, float], None]]":
    """Told steps done, steps in all, what the last one showed and its seconds: a bar in a terminal, else some lines."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[told]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("steps", total=None, told="")
        began: tuple[float, int] | None = None  # when, and after which step: what went before says nothing of the pace
        last = -math.inf

        def tell(done: int, steps: int, told: str, seconds: float) -> None:
            nonlocal began, last
            bar.update(task, completed=done, total=steps, told=told)
            now = time.monotonic()
            began = began or (now - seconds, done - 1)
            if not console.is_terminal and (now - last >= _LINE_SECONDS or done == steps):
                last = now
                left = (now - began[0]) / (done - began[1]) * (steps - done)
                line = f"step {done} of {steps}: {told}, {seconds:.2f} s; {left / 60:.1f} minutes left"
                console.print(line, markup=False, highlight=False, soft_wrap=True)

        yield tell
