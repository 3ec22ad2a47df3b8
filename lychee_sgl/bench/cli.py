"""`lychee-sgl bench`: measurements that anyone can repeat."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from lychee_sgl.bench.gateway_cli import gateway, router
from lychee_sgl.bench.memory_cli import memory

if TYPE_CHECKING:
    from collections.abc import Callable

Number = TypeVar("Number", int, float)

app = typer.Typer(
    help="Measure speed against stock SGLang, and how well a recall is held.",
    no_args_is_help=True,
    add_completion=False,
)
app.command()(gateway)
app.command()(router)
app.command()(memory)


@app.callback()
def _main() -> None:
    """Measure speed against stock SGLang, and how well a recall is held."""


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


@app.command()
def recall(
    out: Annotated[Path, typer.Option(help="Where the JSON goes; the answers are kept beside it, as .jsonl.")] = Path(
        "recall-hold.json"
    ),
    plot: Annotated[Path | None, typer.Option(help="Where the PNG goes; left out: beside the JSON.")] = None,
    documents: Annotated[
        int, typer.Option(min=2, help="Texts, as many in each doubling of the length; each is asked three questions.")
    ] = 60,
    tokens: Annotated[str, typer.Option(help="Shortest and longest text, in tokens.")] = "1200,6900",
    recalls: Annotated[str, typer.Option(help="Recalls to hold, with commas.")] = "0.9,0.95,0.99",
    budgets: Annotated[str, typer.Option(help="Fixed budgets, with commas.")] = "128,256,512,1024,2048,4096",
    answer_tokens: Annotated[int, typer.Option(min=2, help="Longest answer.")] = 48,
    every: Annotated[int, typer.Option(min=1, help="One decode step in so many is audited.")] = 8,
    warm_up: Annotated[
        int, typer.Option(min=0, help="Answers of each bucket before a held recall counts as settled.")
    ] = 20,
    at_once: Annotated[int, typer.Option(min=1, help="Requests at one time.")] = 4,
    engine_url: Annotated[str | None, typer.Option(help="A running engine; left out: one is started here.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Ask for everything again.")] = False,
) -> None:
    """How well `min_recall` is held on real prompts, and its cost beside fixed budgets with the same worst case."""
    from lychee_sgl.bench import recall_hold as bench
    from lychee_sgl.bench.machine import describe
    from lychee_sgl.bench.recall_report import plot as draw
    from lychee_sgl.serve.supervisor import StartFailed

    console = Console(stderr=True)
    if importlib.util.find_spec("matplotlib") is None:  # before an hour of measuring, not after it
        console.print("error: the plot needs matplotlib, which comes with the extra `train`", markup=False)
        raise typer.Exit(1)
    try:
        lengths = _numbers("--tokens", tokens, int)
        plan = bench.Plan(
            documents=documents,
            shortest=lengths[0],
            longest=lengths[-1],
            recalls=_numbers("--recalls", recalls, float),
            budgets=_numbers("--budgets", budgets, int),
            answer_tokens=answer_tokens,
            every=every,
            warm_up=warm_up,
            seed=3,
        )
        journal = bench.Journal(out.with_suffix(".jsonl"), plan)
        journal.open(fresh=fresh)
        with tempfile.TemporaryDirectory() as state, console.status("starting engine and gateways") as status:
            record = bench.run(
                plan,
                Path(state),
                journal,
                engine_url=engine_url,
                at_once=at_once,
                say=lambda done, total: status.update(f"{done} of {total} answers"),
            )
    except (bench.RecallError, StartFailed, ValueError) as error:
        console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    record = {**record, **describe()}
    _write(out, record)
    draw(record, plot or out.with_suffix(".png"))
    table = Table(title="recall held, when settled")
    for column in ("asked", "reached", "worst answer", "attended", "fixed budget with the same worst case"):
        table.add_column(column, justify="right")
    for target in record["targets"]:
        found = target.get("settled") or target["whole"]
        same = found["same_worst_case"]["worst_bucket"]
        beside = f"{same['budget']:.0f}: {same['attended_fraction']:.1%}" if same else "none measured"
        row = (f"{target['min_recall']:g}", f"{found['worst_bucket']:.4f}", f"{found['worst_answer']:.4f}")
        table.add_row(*row, f"{found['attended_fraction']:.1%}", beside)
    Console().print(table)


def _numbers(option: str, text: str, kind: Callable[[str], Number]) -> tuple[Number, ...]:
    try:
        return tuple(sorted({kind(word) for word in text.split(",")}))
    except ValueError:
        raise ValueError(f"{option} is {text!r}, allowed: numbers with commas") from None


@app.command()
def gpu(
    model: Annotated[Path, typer.Option(help="Folder with a config.json; weights are not needed.")],
    out: Annotated[
        Path, typer.Option(help="Where the JSON goes. A run that broke off goes on with what is in it.")
    ] = Path("gpu-engine.json"),
    cases: Annotated[str, typer.Option(help="Batches: CONTEXTxROWS or CONTEXT:BUDGET+..., with commas.")] = "131072x1",
    flashinfer: Annotated[str, typer.Option(help="Batches for a stock engine with FlashInfer.")] = "",
    triton: Annotated[str, typer.Option(help="Batches for a stock engine with its Triton backend.")] = "",
    retrieval_heads: Annotated[int, typer.Option(help="Retrieval heads, layer 0's among them.")] = 32,
    budget: Annotated[int, typer.Option(help="Budget of rows that name none.")] = 4096,
    repeats: Annotated[int, typer.Option(min=1, help="How often each batch is timed.")] = 3,
    engine_args: Annotated[
        str, typer.Option(help='Further arguments of SGLang, like "--kv-cache-dtype fp8_e4m3 --page-size 16".')
    ] = "",
    tp: Annotated[int, typer.Option(min=1, help="GPUs that share the model (tensor-parallel ranks).")] = 1,
    plans: Annotated[
        str, typer.Option(help="Where the retrieval heads lie: random, balanced, unbalanced; an engine for each.")
    ] = "random",
    tokens: Annotated[
        int, typer.Option(min=0, help="Prompts whose answers on one GPU and on --tp are compared, ours and stock's.")
    ] = 0,
    against: Annotated[
        Path | None, typer.Option(help="A measurement on one GPU: how much of its speedup is left.")
    ] = None,
    profile: Annotated[bool, typer.Option(help="Say for every batch where the time goes, on every rank.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure everything again.")] = False,
) -> None:
    """Time per token inside SGLang on GPUs: ours against FlashInfer's dense decode, with dummy weights."""
    from lychee_sgl.bench import gpu as bench
    from lychee_sgl.bench.gpu_cli import Wanted, measure
    from lychee_sgl.serve.supervisor import StartFailed

    console = Console(stderr=True, highlight=False)
    try:
        parsed = {
            name: {text: bench.Case.parse(text, budget) for text in texts.split(",") if text}
            for name, texts in {"ours": cases, "flashinfer": flashinfer, "triton": triton}.items()
        }
    except ValueError as error:
        console.print(f"error: a batch cannot be read ({error}); they look like 131072x4", markup=False)
        raise typer.Exit(2) from error
    try:
        wanted = Wanted(
            model=model, cases=parsed.pop("ours"), stock={name: found for name, found in parsed.items() if found},
            retrieval=retrieval_heads, budget=budget, repeats=repeats, engine_args=tuple(engine_args.split()), tp=tp,
            placements=tuple(plans.split(",")), tokens=tokens, against=against, profiled=profile,
        )  # fmt: skip
        measure(wanted, out, fresh=fresh, say=lambda line: console.print(line, markup=False, soft_wrap=True))
    except (StartFailed, ValueError, OSError) as error:
        console.print(f"error: {error}", markup=False)
        raise typer.Exit(1) from error
