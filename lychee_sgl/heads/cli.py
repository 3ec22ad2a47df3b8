"""The command line `lychee-sgl heads`. Importing it is cheap: torch comes in only with the commands that need it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console

from lychee_sgl.heads.cli_drift import drift
from lychee_sgl.heads.cli_recall import recall
from lychee_sgl.heads.cli_train import ablate, plot, step_time, train
from lychee_sgl.heads.heuristic import heuristic_plan
from lychee_sgl.heads.plan import HeadPlan, ModelShape
from lychee_sgl.heads.ranks import allowed_sizes, check_plan, pace
from lychee_sgl.heads.registry import shipped_plan
from lychee_sgl.heads.terminal import command_line, say
from lychee_sgl.terminal import one_line_errors, progress, writable, writable_folder

if TYPE_CHECKING:
    from lychee_sgl.heads.measure import LoadedModel

WEIGHTINGS: Final = ("mass", "output", "effect")
RIVALS: Final = ("layerwise", "even", "random")

app = typer.Typer(
    help="Show, check, calibrate and train head plans.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ModelPath = Annotated[Path, typer.Option("--model", help="Model folder, as transformers reads it")]
ModelName = Annotated[
    str | None, typer.Option("--model-name", help="What the plan calls the model [default: the folder]")
]
Cache = Annotated[Path | None, typer.Option(help="Keep prefilled prompts here and use them again (they are large)")]
PlanFile = Annotated[Path, typer.Argument(help="A head plan (JSON)")]


@app.command()
def calibrate(
    model: ModelPath,
    out: Annotated[Path, typer.Option(help="Where the plan goes")],
    retrieval_heads: Annotated[int, typer.Option(help="KV heads that retrieve, those of layer 0 included")],
    budget: Annotated[int, typer.Option(help="Tokens in a set; the plan's default budget")] = 1024,
    weighting: Annotated[str, typer.Option(help=f"What a set is worth to a head: {', '.join(WEIGHTINGS)}")] = "effect",
    seed: Annotated[int, typer.Option(help="Seed of the calibration prompts")] = 0,
    prompts: Annotated[int, typer.Option(help="Calibration prompts")] = 8,
    context: Annotated[int, typer.Option(help="Tokens of the longest prompt; the shortest has half")] = 3000,
    tp: Annotated[int, typer.Option(min=1, help="Balance the plan for so many tensor-parallel ranks")] = 1,
    name: Annotated[str | None, typer.Option(help="The plan's name [default: the model's]")] = None,
    model_name: ModelName = None,
    cache: Cache = None,
) -> None:
    """Measure a model's heads and choose which retrieve, and whose set every other head reads."""
    with one_line_errors():
        writable(out)
        if cache is not None:
            writable_folder(cache, "--cache")
        shape = _shape(model, model_name)  # a wrong path is told before seconds of imports
        from lychee_sgl.heads.calibrate import Settings
        from lychee_sgl.heads.calibrate import calibrate as run

        settings = Settings(
            retrieval=retrieval_heads, budget=budget, weighting=weighting,  # type: ignore[arg-type]  # checked just below
            seed=seed, prompts=prompts, context=context, tp=tp,
        )  # fmt: skip
        settings.check(shape)
        loaded = _load(model, model_name)
        with progress("prompt") as tell:
            plan = run(
                loaded,
                settings,
                name=name or loaded.shape.name,
                command=command_line(model),
                progress=lambda done: tell(done, prompts),
                cache=cache,
            )
        plan.save(out)
        covered = plan.provenance["scores"]["covered"]
        say(f"{out}: {plan.retrieval_count} of {plan.head_count} heads retrieve, {covered:.1%} of the need is covered")


@app.command()
def measure(
    model: ModelPath,
    heads: Annotated[list[Path], typer.Option(help="A head plan; repeat to compare several on the same prompts")],
    out: Annotated[Path, typer.Option(help="Where the measurement goes (JSON)")],
    budget: Annotated[
        list[int] | None, typer.Option(min=1, help="Tokens in a set; repeatable [default: each plan's own]")
    ] = None,
    questions: Annotated[int, typer.Option(min=1, help="Needle questions")] = 30,
    shortest: Annotated[int, typer.Option(help="Tokens of the shortest document")] = 1900,
    longest: Annotated[int, typer.Option(help="Tokens of the longest document")] = 6700,
    seed: Annotated[int, typer.Option(help="Seed of the questions")] = 7,
    record: Annotated[bool, typer.Option("--record", help="Write the scores into the plans' provenance too")] = False,
    model_name: ModelName = None,
    cache: Cache = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda [default: a GPU if there is one]")] = None,
) -> None:
    """Ask needle questions that no calibration prompt resembles, and count answers as dense gives them."""
    with one_line_errors():
        writable(out)
        if cache is not None:
            writable_folder(cache, "--cache")
        plans = {str(path): HeadPlan.load(path) for path in heads}
        shape = _shape(model, model_name)
        for plan in plans.values():
            plan.check_fits(shape)
        from lychee_sgl.heads.needles import needle_prompts
        from lychee_sgl.heads.score import score_plans

        prompts = needle_prompts(questions, tokens=(shortest, longest), seed=seed, kind="evaluation")
        loaded = _load(model, model_name, device)
        again, sizes = command_line(model), tuple(budget or ())
        report = score_plans(loaded, prompts, plans, budgets=sizes, seed=seed, command=again, tell=say, cache=cache)
        if record:
            for path in heads:
                rows = [row for row in report["plans"] if row["file"] == str(path)]
                digest = _record(path, rows, again)
                for row in rows:
                    row["sha256"] = digest  # of the plan as it is now
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        for row in report["plans"]:
            say(
                f"{row['plan']} budget {row['budget']}: {row['answered']} of {row['questions']} as dense, "
                f"{row['identical']} token for token, recall {row['recall']:.3f}"
            )


@app.command()
def show(
    plan: PlanFile,
    png: Annotated[Path | None, typer.Option(help="Draw it into this file as well")] = None,
) -> None:
    """Draw which heads retrieve and whose set every other head reads."""
    from lychee_sgl.heads.picture import role_table, save_png, title

    with one_line_errors():
        if png is not None:
            writable(png, "--png")
        loaded = HeadPlan.load(plan)
        say(title(loaded))
        Console().print(role_table(loaded))
        defaults = loaded.defaults
        bound = "no budget" if defaults.budget is None else f"budget {defaults.budget}"
        say(f"model {loaded.model}")
        say(f"defaults: {bound}, mode {defaults.mode}, {defaults.sinks} sinks, {defaults.recent} recent")
        say(f"sha256 {loaded.sha256()}")
        if png is not None:
            save_png(loaded, png)
            say(f"drawn: {png}")


@app.command()
def check(
    model: ModelPath,
    heads: Annotated[Path, typer.Option(help="A head plan (JSON)")],
    tp: Annotated[int, typer.Option(min=1, help="Tensor-parallel ranks it is to be served on")] = 1,
) -> None:
    """Say whether a plan fits a model, on so many ranks; exit status 1 when it does not."""
    with one_line_errors():
        plan, shape = HeadPlan.load(heads), _shape(model)
        plan.check_fits(shape)
        check_plan(plan, tp, path=str(heads))
        say(f"{heads} fits {shape}")
        say("tensor parallel: " + ", ".join(f"{n} (pace {pace(plan, n):.2f})" for n in allowed_sizes(plan)))
        if plan.model.base_name != shape.base_name:
            say(f"but it was made for {plan.model.name}: in another model of the same shape other heads retrieve")


@app.command()
def compare(first: PlanFile, second: Annotated[Path, typer.Argument(help="Another plan for the same shape")]) -> None:
    """Count the retrieval heads and sources that two plans share."""
    with one_line_errors():
        one, other = HeadPlan.load(first), HeadPlan.load(second)
        one.check_fits(other.model)
        left, right = ({head for head in _heads(plan) if plan.is_retrieval(*head)} for plan in (one, other))
        sparse = set(one.sparse_heads()) & set(other.sparse_heads())
        same = sum(one.root(*head) == other.root(*head) for head in sparse)
        say(f"retrieval heads: {len(left)} and {len(right)}, {len(left & right)} in both")
        say(f"Jaccard index: {len(left & right) / len(left | right):.3f}")
        say(f"sparse in both: {len(sparse)}, of these {same} with the same root")


@app.command()
def shard(
    plan: Annotated[str, typer.Argument(help="A head plan (JSON), or the model of one that ships with the package")],
    tp: Annotated[int, typer.Option(min=1, help="Tensor-parallel ranks")],
    out: Annotated[Path, typer.Option(help="Where the new plan goes")],
) -> None:
    """Balance a plan for tensor parallelism and keep every set on its rank, without measuring the model again."""
    from lychee_sgl.heads.shard import shard as run

    with one_line_errors():
        writable(out)
        old = shipped_plan(plan) or HeadPlan.load(plan)
        result = run(old, tp)
        result.plan.save(out)
        before, after = pace(old, tp), pace(result.plan, tp)
        say(
            f"{out}: {result.moved} of {old.retrieval_count} retrieval heads moved, {result.rerooted} sparse heads "
            f"read another set; pace {before:.2f} before, {after:.2f} now (1 is balanced)"
        )
        say(
            "nothing about the moved heads is measured: `lychee-sgl heads measure` tells what it cost, "
            f"`lychee-sgl heads calibrate --tp {tp}` chooses by measurement"
        )


@app.command()
def heuristic(
    model: ModelPath, out: Annotated[Path, typer.Option(help="Where the plan goes")], model_name: ModelName = None
) -> None:
    """Write the plan that is used for a model nobody has calibrated."""
    with one_line_errors():
        writable(out)
        plan = heuristic_plan(_shape(model, model_name))
        plan.save(out)
        say(f"{out}: {plan.retrieval_count} of {plan.head_count} heads retrieve; nothing about this plan is measured")


@app.command()
def rival(
    kind: Annotated[str, typer.Argument(help=f"Which heads retrieve: {', '.join(RIVALS)}")],
    model: ModelPath,
    retrieval_heads: Annotated[int, typer.Option(help="KV heads that retrieve, those of layer 0 included")],
    out: Annotated[Path, typer.Option(help="Where the plan goes")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of a random plan")] = 0,
    model_name: ModelName = None,
) -> None:
    """Write a plan to compare with: whole layers (as TidalDecode and OmniKV choose), evenly spread or random heads."""
    from lychee_sgl.heads.plan import PlanDefaults

    with one_line_errors():
        if kind not in RIVALS:
            raise ValueError(f"kind is {kind!r}; allowed: {', '.join(RIVALS)}")
        writable(out)
        from lychee_sgl.heads.rivals import even_plan, layerwise_plan, random_plan

        shape, defaults = _shape(model, model_name), PlanDefaults()
        if kind == "random":
            plan = random_plan(shape, retrieval_heads, seed=seed, defaults=defaults)
        else:
            plan = (layerwise_plan if kind == "layerwise" else even_plan)(shape, retrieval_heads, defaults=defaults)
        plan.save(out)
        say(f"{out}: {plan.retrieval_count} of {plan.head_count} heads retrieve; nothing about this plan is measured")


app.command()(train)
app.command()(plot)
app.command()(ablate)
app.command()(step_time)
app.command()(drift)
app.command()(recall)


def _heads(plan: HeadPlan) -> list[tuple[int, int]]:
    return [(i, h) for i in range(plan.model.num_hidden_layers) for h in range(plan.model.num_key_value_heads)]


def _shape(model: Path, name: str | None = None) -> ModelShape:
    from lychee_sgl.heads.shapes import read_shape

    return read_shape(model, name=name)


def _load(model: Path, name: str | None, device: str | None = "cpu") -> "LoadedModel":
    from lychee_sgl.heads.train.run import load_for

    return load_for(model, name=name, device=device, dtype="float32")


def _record(path: Path, rows: list[dict[str, Any]], command: str) -> str:
    """Put a plan's scores into its provenance and give the plan's new hash."""
    told = ("budget", "questions", "answered", "identical", "recall")
    data = HeadPlan.load(path).to_dict()
    scores = data["provenance"].setdefault("scores", {})
    scores["needles"] = [{key: row[key] for key in told} for row in rows]
    scores["needles_command"] = command
    plan = HeadPlan.from_dict(data)
    plan.save(path)
    return plan.sha256()
