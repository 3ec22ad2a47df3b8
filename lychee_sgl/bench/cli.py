"""`lychee-sgl bench`: measurements that anyone can repeat."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from lychee_sgl.bench.gateway_cli import gateway, router
from lychee_sgl.bench.memory_cli import memory
from lychee_sgl.terminal import one_line_errors, web_address, writable

if TYPE_CHECKING:
    from collections.abc import Callable

    from lychee_sgl.bench.gpu import Case

LONGEST_CONTEXT: Final = 8000  # tokens; the embedded model's window is little more
Number = TypeVar("Number", int, float)

app = typer.Typer(
    help="Measure speed against stock SGLang, the gateway and the router, held recall, long documents.",
    no_args_is_help=True,
    add_completion=False,
)
app.command()(gateway)
app.command()(router)
app.command()(memory)


@app.callback()
def _main() -> None:
    """Measure speed against stock SGLang, the gateway and the router, held recall, long documents."""


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

    with one_line_errors(bench.StartError):
        writable(out, folder_is_made=True)
        console = Console(stderr=True)
        with tempfile.TemporaryDirectory() as state, console.status("") as status:
            record = bench.run(Path(state), status.update, fresh=fresh)
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

    with one_line_errors(StartFailed, bench.GateError):
        writable(out, folder_is_made=True)
        lengths = _numbers("--contexts", contexts, int)
        if not all(bench.NEW_PROMPT_TOKENS < n <= LONGEST_CONTEXT for n in lengths):
            raise ValueError(
                f"--contexts is {contexts!r}; allowed: {bench.NEW_PROMPT_TOKENS + 1} to {LONGEST_CONTEXT}, with commas"
            )
        console = Console(stderr=True)
        with tempfile.TemporaryDirectory() as state, console.status("") as status:
            record = bench.run(Path(state), rounds, lengths, status.update)
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
    picture = plot or out.with_suffix(".png")
    with one_line_errors(bench.RecallError, StartFailed):
        if importlib.util.find_spec("matplotlib") is None:  # before an hour of measuring, not after it
            raise ValueError("the plot needs matplotlib, which comes with the extra `train`")
        writable(out, folder_is_made=True)
        writable(picture, "--plot", folder_is_made=plot is None)
        if engine_url is not None:
            web_address(engine_url, "--engine-url")
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
        record = {**record, **describe()}
        _write(out, record)
        draw(record, picture)
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
        kinds = "whole numbers" if kind is int else "numbers"
        raise ValueError(f"{option} is {text!r}; allowed: {kinds}, with commas") from None


@app.command()
def gpu(
    model: Annotated[Path, typer.Option(help="Folder with a config.json; weights are not needed.")],
    out: Annotated[
        Path, typer.Option(help="Where the JSON goes. A run that broke off goes on with what is in it.")
    ] = Path("gpu-engine.json"),
    cases: Annotated[str, typer.Option(help="Batches: CONTEXTxROWS or CONTEXT:BUDGET+..., with commas.")] = "131072x1",
    flashinfer: Annotated[str, typer.Option(help="Batches for a stock engine with FlashInfer.")] = "",
    triton: Annotated[str, typer.Option(help="Batches for a stock engine with its Triton backend.")] = "",
    retrieval_heads: Annotated[int, typer.Option(min=1, help="Retrieval heads, layer 0's among them.")] = 32,
    budget: Annotated[int, typer.Option(min=1, help="Budget of rows that name none.")] = 4096,
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
    from lychee_sgl.bench.gpu_cli import Wanted, measure
    from lychee_sgl.heads.shapes import read_shape
    from lychee_sgl.serve.supervisor import StartFailed

    console = Console(stderr=True, highlight=False)
    with one_line_errors(StartFailed):
        writable(out, folder_is_made=True)
        parsed = {
            name: {text: _case(text, budget) for text in texts.split(",") if text}
            for name, texts in {"ours": cases, "flashinfer": flashinfer, "triton": triton}.items()
        }
        read_shape(model)
        wanted = Wanted(
            model=model, cases=parsed.pop("ours"), stock={name: found for name, found in parsed.items() if found},
            retrieval=retrieval_heads, budget=budget, repeats=repeats, engine_args=tuple(engine_args.split()), tp=tp,
            placements=tuple(plans.split(",")), tokens=tokens, against=against, profiled=profile,
        )  # fmt: skip
        measure(wanted, out, fresh=fresh, say=lambda line: console.print(line, markup=False, soft_wrap=True))


def _case(text: str, budget: int) -> Case:
    from lychee_sgl.bench.gpu import Case

    try:
        return Case.parse(text, budget)
    except ValueError as error:
        raise ValueError(
            f"batch {text!r} ({error}); allowed: CONTEXTxROWS or CONTEXT:BUDGET+..., as 131072x4"
        ) from error
