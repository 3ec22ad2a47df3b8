"""`lychee-sgl plan-capacity`."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from lychee_sgl.capacity.plan import FRACTION, Capacity, Heads, capacity
from lychee_sgl.capacity.sizes import GIB, GPUS, MODELS, Gpu, ModelSizes
from lychee_sgl.heads.plan import HeadPlan
from lychee_sgl.heads.ranks import check_plan, rank_heads
from lychee_sgl.terminal import MENDABLE, complain

CONTEXTS: Final = (32_768, 131_072)
COUNTS: Final = (1, 2, 4)
AT_ONCE: Final = tuple(f"{context // 1024}K at once" for context in CONTEXTS)
COLUMNS: Final = ("model", "GPUs", "weights", "KV pool, tokens", "workspace", *AT_ONCE)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def plan_capacity(
    ctx: typer.Context,
    model: Annotated[
        str | None, typer.Option(help="Folder with a config.json, or a model of the table [default: show the table]")
    ] = None,
    gpu: Annotated[str, typer.Option(help=f"GPU: {', '.join(g.name for g in GPUS)}, or its GiB of memory")] = "H200",
    tp: Annotated[int, typer.Option(min=1, help="GPUs that share the model (tensor-parallel ranks)")] = 1,
    context: Annotated[int, typer.Option(min=1, help="Tokens of a request, answer included")] = 131_072,
    budget: Annotated[int, typer.Option(min=1, help="Tokens that a sparse head reads")] = 4096,
    heads: Annotated[Path | None, typer.Option(help="Head plan [default: half of the heads retrieve]")] = None,
    mem_fraction: Annotated[float, typer.Option(help="SGLang's --mem-fraction-static")] = FRACTION,
    weight_bytes: Annotated[float, typer.Option(help="Bytes of a weight: 2 for bfloat16, 1 for FP8")] = 2.0,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable")] = False,
) -> None:
    """Say which model, context, batch and budget fit which GPUs; computed, nothing is started."""
    try:
        if model is None:
            _refuse_options_of_one_model(ctx)
            _show_table()
            return
        sizes = _model(model)
        plan = None if heads is None else HeadPlan.load(heads)
        found = capacity(
            sizes,
            _gpu(gpu),
            tp=tp,
            context=context,
            budget=budget,
            heads=None if plan is None else heads_of(plan, sizes, tp),
            fraction=mem_fraction,
            weight_bytes=weight_bytes,
        )
    except MENDABLE as error:
        complain(str(error))
        raise typer.Exit(1) from error
    if as_json:
        told = {name: getattr(found, name) for name in ("weights", "pool_tokens", "pool", "rows", "sparse_rows")}
        Console().print_json(json.dumps(told | {"workspace": found.workspace.bytes}))
    else:
        _say(found, context, budget)
    raise typer.Exit(0 if found.rows else 1)


def _refuse_options_of_one_model(ctx: typer.Context) -> None:
    for param in ctx.command.params:
        source = ctx.get_parameter_source(str(param.name))
        if source is not None and source.name == "COMMANDLINE":
            raise ValueError(
                f"{param.opts[0]} is for one model; allowed: with --model, a folder or a name of the table"
            )


def heads_of(plan: HeadPlan, sizes: ModelSizes, tp: int) -> Heads:
    """The sets of a head plan on the rank with most of them.

    Raises:
        PlanError: the plan is for another shape, or its sets cross ranks.
    """
    plan.check_fits(sizes.shape)
    check_plan(plan, tp)
    columns = [rank_heads(sizes.shape.num_key_value_heads, tp, rank) for rank in range(tp)]
    roots = [[root for root in plan.roots() if root[1] in mine] for mine in columns]
    writers = [[layer for layer, _ in found] for found in roots]
    return Heads(
        roots=max(len(found) for found in roots),
        writers=max((layers.count(layer) for layers in writers for layer in set(layers)), default=1),
    )


def table_rows() -> Iterator[tuple[str, ...]]:
    """The table: for each model the GPUs that hold it; requests at once, and of these sparse where not all can be."""
    for model in MODELS:
        for gpu in GPUS:
            for count in COUNTS:
                found = [capacity(model, gpu, tp=count, context=context) for context in CONTEXTS]
                if not found[0].rows:
                    continue
                ours = max(each.workspace.bytes for each in found)
                yield (
                    model.shape.name,
                    f"{count} x {gpu.name}",
                    f"{found[0].weights / GIB:.1f} GiB",
                    f"{found[0].pool_tokens:,}",
                    f"{ours / GIB:.1f} GiB",
                    *(_at_once(each) for each in found),
                )
                break  # the fewest that hold it


def _at_once(found: Capacity) -> str:
    if not found.rows:
        return "no"
    return f"{found.rows}" if found.sparse_rows == found.rows else f"{found.rows} ({found.sparse_rows} sparse)"


def _show_table() -> None:
    table = Table(title="What fits on one GPU of the group")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in COLUMNS[:2] else "right")
    for row in table_rows():
        table.add_row(*row)
    Console().print(table)


def _say(found: Capacity, context: int, budget: int) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"each GPU: weights {found.weights / GIB:.1f} GiB, KV pool {found.pool / GIB:.1f} GiB "
        f"({found.pool_tokens:,} tokens), workspace {found.workspace.bytes / GIB:.2f} GiB"
    )
    if found.rows:
        console.print(
            f"{found.rows} requests of {context:,} tokens at once, {found.sparse_rows} of them sparse in one step "
            f"with a budget of {budget:,}"
        )
    else:
        console.print(f"not one request of {context:,} tokens fits")


def _model(text: str) -> ModelSizes:
    known = {model.shape.name.lower(): model for model in MODELS}
    if text.lower() in known:
        return known[text.lower()]
    file = Path(text) / "config.json"
    if not file.is_file():
        raise ValueError(f"--model is {text!r}, allowed: a folder with a config.json, or {', '.join(known)}")
    return ModelSizes.from_config(json.loads(file.read_text()), name=Path(text).resolve().name)


def _gpu(text: str) -> Gpu:
    for gpu in GPUS:
        if text.lower() in (gpu.name.lower(), gpu.name.split("-")[0].lower()):
            return gpu
    try:
        memory = float(text)
    except ValueError:
        memory = math.nan
    if not 0 < memory < math.inf:
        names = ", ".join(gpu.name for gpu in GPUS)
        raise ValueError(f"--gpu is {text!r}, allowed: {names}, or a number of GiB above 0")
    return Gpu(f"{text} GiB", memory, 132)
