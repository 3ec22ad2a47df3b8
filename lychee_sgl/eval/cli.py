"""`lychee-sgl eval`: quality of any OpenAI-compatible server, with intervals."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from lychee_sgl.eval.errors import EvalError
from lychee_sgl.terminal import MENDABLE, complain, web_address, writable, writable_folder

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import TaskID

    from lychee_sgl.eval.store import Record

app = typer.Typer(
    help="Measure quality: RULER, needles, long traces and your own files, under any budgets and policies.",
    no_args_is_help=True,
    add_completion=False,
)


@app.callback()
def _main() -> None:
    """Measure quality: RULER, needles, long traces and your own files, under any budgets and policies."""


class _Shown:
    """Progress with the mean score and the errors so far: a bar in a terminal, else a line every tenth of the way."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console,
            disable=not console.is_terminal,
        )  # fmt: skip
        self._task: TaskID | None = None
        self._text, self._total = "", 0
        self._done, self._errors = 0, 0
        self._scores: list[float] = []

    def __enter__(self) -> _Shown:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def stage(self, text: str, total: int | None = None) -> None:
        """Begin another bar."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(text, total=total, note="")
        self._text, self._total, self._done = text, total or 0, 0
        if not self._console.is_terminal:
            self._console.print(text, highlight=False)

    def advance(self, record: Record | None = None) -> None:
        """One step further."""
        if record is not None and record.score is not None:
            self._scores.append(record.score)
        self._errors += record is not None and record.error is not None
        mean = [f"mean score {100 * sum(self._scores) / len(self._scores):.1f}"] if self._scores else []
        note = ", ".join([*mean, *([f"{self._errors} errors"] if self._errors else [])])
        assert self._task is not None
        self._bar.update(self._task, advance=1, note=note)
        self._done += 1
        tenth = self._done % max(1, self._total // 10) == 0 or self._done == self._total
        if tenth and not self._console.is_terminal:
            line = f"{self._text}: {self._done} of {self._total}" + (f", {note}" if note else "")
            self._console.print(line, highlight=False, soft_wrap=True)


def _fail(error: Exception, status: int = 1) -> typer.Exit:
    complain(str(error))
    return typer.Exit(status)


Config = Annotated[Path, typer.Option(help="What to ask: a YAML file; lychee_sgl/eval/README.md has its fields.")]


@app.command()
def run(
    config: Config,
    out: Annotated[Path, typer.Option(help="Folder of the run; an interrupted one goes on.")],
    url: Annotated[str, typer.Option(help="Any OpenAI-compatible server.")] = "http://127.0.0.1:8000",
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Who counts tokens: an SGLang engine's address (with `lychee-sgl serve` the port after the "
            "gateway's), or a folder with a tokenizer.json [default: --url]"
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model [default: the first served]")] = None,
    api_key: Annotated[str, typer.Option(envvar="OPENAI_API_KEY", help="API key", show_envvar=True)] = "none",
    send_as: Annotated[
        str, typer.Option(help="Where arms' fields go: `lychee` (our gateway) or `custom_params` (an engine alone).")
    ] = "lychee",
    concurrency: Annotated[int, typer.Option(min=1, help="Samples at a time; the arms of one are asked in turn.")] = 1,
    task: Annotated[list[str] | None, typer.Option(help="Only this task; repeatable.")] = None,
    arm: Annotated[list[str] | None, typer.Option(help="Only this arm; repeatable.")] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Samples of each task and length, instead of the file's.")
    ] = None,
) -> None:
    """Ask every arm for every sample. Exit status 1 where records are errors; the same command asks for those again."""
    from lychee_sgl.eval.config import narrowed, read_settings
    from lychee_sgl.eval.run import Target
    from lychee_sgl.eval.run import run as work

    where = _send_as(send_as)
    try:
        web_address(url)
        writable_folder(out)
        settings = narrowed(read_settings(config), tasks=task or (), arms=arm or (), samples=samples)
        target = Target(url=url, tokenizer=tokenizer, model=model, key=api_key, send_as=where, concurrency=concurrency)
        with _Shown(Console(stderr=True)) as shown:
            outcome = work(settings, target, out, shown, _facts())
    except ModuleNotFoundError as error:
        raise _fail(EvalError(f"{error}: pip install 'lychee-sgl[eval]'")) from error
    except (EvalError, *MENDABLE) as error:
        raise _fail(error) from error
    except KeyboardInterrupt:
        raise _fail(EvalError("interrupted; the same command goes on"), 130) from None
    Console().print(
        f"{outcome.records} records of {outcome.samples} samples in {out}, {outcome.errors} of them errors",
        highlight=False,
    )
    raise typer.Exit(1 if outcome.errors else 0)


def _send_as(name: str) -> Literal["lychee", "custom_params"]:
    match name:
        case "lychee" | "custom_params":
            return name
    raise _fail(EvalError(f"--send-as is {name!r}; allowed: lychee, custom_params"), 2)


def _facts() -> dict[str, str]:
    from lychee_sgl import __version__

    command = shlex.join(["lychee-sgl", "eval", *sys.argv[2:]])
    return {"command": command, "date": time.strftime("%Y-%m-%d"), "lychee_sgl": __version__}


@app.command()
def tasks(
    markdown: Annotated[bool, typer.Option("--markdown", help="As the table of the README.")] = False,
) -> None:
    """List all tasks."""
    from lychee_sgl.eval.tasks import catalogue

    entries = catalogue()
    if markdown:
        from lychee_sgl.eval.report import task_table

        typer.echo(task_table(entries), nl=False)
        return
    table = Table("task", "what is asked", "from", "score", "needs")
    for entry in entries:
        table.add_row(entry.name, entry.summary, entry.source, entry.metric, entry.needs)
    Console().print(table)


@app.command()
def report(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders of runs of the same samples; arms stand side by side.")
    ],
    out: Annotated[Path | None, typer.Option(help="Where the report goes [default: `report` in the first]")] = None,
    baseline: Annotated[
        str | None, typer.Option(help="The arm that distances are taken from [default: the run's]")
    ] = None,
) -> None:
    """Write report.md, results.csv, summary.json and the plots."""
    try:
        writable_folder(out or folders[0] / "report")
        from lychee_sgl.eval.report import write_report
        from lychee_sgl.eval.summary import load

        paths = write_report(load(folders, baseline), out or folders[0] / "report")
    except ModuleNotFoundError as error:
        raise _fail(EvalError(f"{error}: pip install 'lychee-sgl[eval]'")) from error
    except (EvalError, *MENDABLE) as error:
        raise _fail(error) from error
    for path in paths:
        Console(soft_wrap=True).print(str(path), markup=False, highlight=False)


@app.command()
def gate(
    folder: Annotated[Path, typer.Argument(help="Folder of a run of docs/eval/gate.yaml.")],
    figure: Annotated[Path, typer.Option(help="The committed figure.")] = Path("docs/measurements/eval-gate.json"),
    write: Annotated[bool, typer.Option("--write", help="Make this run the figure.")] = False,
) -> None:
    """Hold a run against the committed figure; exit status 1 where it is worse by more than the interval."""
    import json

    from lychee_sgl.eval.gate import failures, make_figure, read_figure
    from lychee_sgl.eval.summary import load

    try:
        results = load([folder])
        if write:
            writable(figure, "--figure")
            figure.write_text(json.dumps(make_figure(results), indent=1) + "\n", encoding="utf-8")
            return
        found = failures(results, read_figure(figure))
    except (EvalError, *MENDABLE) as error:
        raise _fail(error) from error
    for failure in found:
        Console(stderr=True).print(f"worse: {failure}", markup=False, highlight=False, soft_wrap=True)
    if not found:
        Console().print(f"not worse than {figure}", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1 if found else 0)
