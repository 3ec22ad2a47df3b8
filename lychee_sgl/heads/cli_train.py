"""`lychee-sgl heads train`, `plot` and `ablate`. Importing it is cheap: torch comes in only when a command runs."""

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from lychee_sgl.heads.terminal import command_line, say, share_of
from lychee_sgl.terminal import one_line_errors, writable, writable_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lychee_sgl.heads.train.trainer import StepReport

TRAIN, MODEL, SIZE = "Training", "Model", "Data"


def train(
    model: Annotated[Path, typer.Option(help="Model folder, as transformers reads it", rich_help_panel=MODEL)],
    out: Annotated[Path, typer.Option(help="Where the plan goes; its record and state lie beside it")],
    retrieval_heads: Annotated[int, typer.Option(help="KV heads that retrieve, those of layer 0 included")],
    budget: Annotated[int, typer.Option(help="Tokens in a set; the plan's default budget")] = 1024,
    data: Annotated[
        str, typer.Option(help="passkey, or a JSONL file of context, question, answer", rich_help_panel=SIZE)
    ] = "passkey",
    haystack: Annotated[
        Path | None,
        typer.Option(help="Text around the passkeys [default: Python's documentation]", rich_help_panel=SIZE),
    ] = None,
    shortest: Annotated[int, typer.Option(help="Tokens of the shortest document", rich_help_panel=SIZE)] = 1000,
    context: Annotated[int, typer.Option(help="Tokens of the longest document", rich_help_panel=SIZE)] = 6000,
    needles: Annotated[int, typer.Option(help="Most passkeys in a document", rich_help_panel=SIZE)] = 6,
    words: Annotated[int, typer.Option(help="Words of a passkey", rich_help_panel=SIZE)] = 8,
    sources: Annotated[
        str, typer.Option(help="same-index, measured or learned: whose set a sparse head reads", rich_help_panel=TRAIN)
    ] = "learned",
    objective: Annotated[str, typer.Option(help="logits or hidden", rich_help_panel=TRAIN)] = "logits",
    gate: Annotated[str, typer.Option(help="hardkuma, hardconcrete or l1", rich_help_panel=TRAIN)] = "hardkuma",
    chain: Annotated[
        str, typer.Option(help="deployed, or previous: a fresh set of the layer before", rich_help_panel=TRAIN)
    ] = "deployed",
    steps: Annotated[int, typer.Option(help="Steps of the optimiser", rich_help_panel=TRAIN)] = 400,
    draws: Annotated[int, typer.Option(help="Draws of the gates a step", rich_help_panel=TRAIN)] = 4,
    rate: Annotated[float, typer.Option(help="Learning rate", rich_help_panel=TRAIN)] = 0.05,
    ramp: Annotated[
        float, typer.Option(help="Share of the steps in which the count comes down", rich_help_panel=TRAIN)
    ] = 0.25,
    sinks: Annotated[int, typer.Option(help="First tokens always kept", rich_help_panel=TRAIN)] = 64,
    recent: Annotated[int, typer.Option(help="Last tokens always kept", rich_help_panel=TRAIN)] = 256,
    gain_samples: Annotated[
        int, typer.Option(min=1, help="Samples on which sources are measured", rich_help_panel=TRAIN)
    ] = 8,
    gain: Annotated[
        Path | None, typer.Option(help="Gains measured before, instead (written beside a plan)", rich_help_panel=TRAIN)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of samples and noise", rich_help_panel=TRAIN)] = 0,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Recompute activations: less memory, more time", rich_help_panel=TRAIN)
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the state beside --out stands")] = False,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps between two states")] = 25,
    name: Annotated[str | None, typer.Option(help="The plan's name [default: the model's]")] = None,
    model_name: Annotated[
        str | None, typer.Option(help="What the plan calls the model [default: the folder]", rich_help_panel=MODEL)
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 [default: a GPU if there is one]", rich_help_panel=MODEL)
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32 or bfloat16 [default: bfloat16 on a GPU]", rich_help_panel=MODEL)
    ] = None,
) -> None:
    """Train gates on every KV head against the dense model, and write the plan they end in."""
    with one_line_errors():
        writable(out)
        from lychee_sgl.heads.shapes import read_shape

        read_shape(model)  # a wrong path is told before seconds of imports
        from lychee_sgl.heads.train.run import DataSettings, load_for, load_gain, measured_gain, train_plan
        from lychee_sgl.heads.train.settings import TrainSettings
        from lychee_sgl.heads.train.trainer import TrainingError

        settings = TrainSettings(
            retrieval=retrieval_heads, budget=budget, sinks=sinks, recent=recent, steps=steps, draws=draws, rate=rate,
            ramp=ramp, gate=gate, sources=sources, objective=objective, chain=chain,  # type: ignore[arg-type]  # checked just below
            seed=seed, recompute=recompute,
        )  # fmt: skip
        where = DataSettings(
            source=data, haystack=haystack, context=(shortest, context), needles=needles, words=words, seed=seed
        )
        settings.check(read_shape(model, name=model_name))
        measured = None
        if sources != "same-index":
            kept = gain or out.with_suffix(".gain.safetensors")
            if gain is None and not (resume and kept.exists()):
                say(f"measuring sources on {gain_samples} samples")
                exact = load_for(model, name=model_name, device=device, dtype="float32")
                measured_gain(exact, where.open(exact), settings, samples=gain_samples, path=kept)
                del exact
            measured = load_gain(kept)
        loaded = load_for(model, name=model_name, device=device, dtype=dtype)  # type: ignore[arg-type]  # checked inside
        samples = where.open(loaded)
        try:
            with _progress(steps) as tell:
                plan = train_plan(
                    loaded, samples, settings, out=out, name=name or loaded.shape.name, command=command_line(model),
                    gain=measured, resume=resume, every=checkpoint_every, tell=tell,
                )  # fmt: skip
        except TrainingError as error:
            raise ValueError(str(error)) from error
        scores = plan.provenance["scores"]
        say(
            f"{out}: {plan.retrieval_count} of {plan.head_count} heads retrieve; {scores['decided']:.0%} of the gates "
            f"have decided, loss {scores['loss']:.3f} of none"
        )


@contextmanager
def _progress(steps: int) -> "Iterator[Callable[[StepReport], None]]":
    """A bar with loss, count and time left in a terminal; else a line every twentieth of the way."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[told]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    spent: list[float] = []

    def told(report: "StepReport") -> str:
        return f"loss {report.loss:.3f}, {report.count:.1f} heads (to be {report.target:.1f})"

    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("steps", total=steps, told="")

        def tell(report: "StepReport") -> None:
            spent.append(report.seconds)
            done = report.step + 1
            bar.update(task, completed=done, told=told(report))
            if not console.is_terminal and (done % max(1, steps // 20) == 0 or done == steps):
                left = (steps - done) * sum(spent[-20:]) / len(spent[-20:])
                line = f"step {done} of {steps}: {told(report)}, {left:.0f} s left"
                console.print(line, markup=False, highlight=False, soft_wrap=True)

        yield tell


def plot(
    record: Annotated[Path, typer.Argument(help="X.training.json of a training, or report.json of an ablation")],
    png: Annotated[Path, typer.Option(help="Where the picture goes")],
) -> None:
    """Draw a training (loss, expected count, every gate over time) or an ablation's curves."""
    with one_line_errors():
        writable(png, "--png")
        from lychee_sgl.heads.ablate.pictures import read_report, save_curves_png
        from lychee_sgl.heads.train.picture import save_training_png

        if record.name == "report.json":
            save_curves_png(read_report(record), png)
        else:
            save_training_png(record, png)
        say(f"drawn: {png}")


def ablate(
    config: Annotated[Path, typer.Option(help="What to make and ask (YAML)")],
    model: Annotated[Path, typer.Option(help="Model folder, as transformers reads it")],
    out: Annotated[Path, typer.Option(help="Folder for all of it; an ablation goes on with what it finds there")],
    minutes: Annotated[
        float | None, typer.Option(help="Stop after so long; the same command goes on [default: no limit]")
    ] = None,
    model_name: Annotated[str | None, typer.Option(help="What plans call the model [default: the folder]")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda [default: a GPU if there is one]")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Plans and budgets that decode at once")] = 128,
    share: Annotated[str | None, typer.Option(hidden=True, help="I/N: only answer this share of the questions")] = None,
) -> None:
    """Train and make many plans, ask them all the same held-out questions, and write tables and pictures."""
    import json
    import time
    from dataclasses import asdict

    with one_line_errors():
        started = time.monotonic()
        part = None if share is None else share_of(share)
        writable_folder(out)
        from lychee_sgl.heads.ablate.config import read_ablation
        from lychee_sgl.heads.ablate.pictures import save_curves_png
        from lychee_sgl.heads.ablate.report import build_report, markdown
        from lychee_sgl.heads.ablate.work import UNFINISHED, Workshop
        from lychee_sgl.heads.checks import write_text
        from lychee_sgl.heads.shapes import read_shape
        from lychee_sgl.heads.train.export import device_name
        from lychee_sgl.heads.train.run import chosen_device

        ablation = read_ablation(config)
        read_shape(model)
        chosen_device(device)
        out.mkdir(parents=True, exist_ok=True)
        until = None if minutes is None else started + 60 * minutes
        shop = Workshop(
            config=config, ablation=ablation, model=model, model_name=model_name, folder=out, until=until, tell=say,
            device=device, at_once=rows,
        )  # fmt: skip
        if part is not None:
            raise typer.Exit(0 if shop.answer_share(part) else UNFINISHED)
        plans, answers, done = shop.run()
        if answers is not None and answers.answers:
            report = build_report(
                plans, answers, asked=json.loads(json.dumps(asdict(ablation), default=str)), budgets=ablation.budgets,
                command=command_line(model), device=device_name(chosen_device(device)), complete=done,
            )  # fmt: skip
            write_text(out / "report.json", json.dumps(report, allow_nan=False) + "\n")
            write_text(out / "report.md", markdown(report))
            try:
                save_curves_png(report, out / "curves.png")
            except ModuleNotFoundError:
                say("no matplotlib here: draw the curves elsewhere, with `plot report.json`")
        if not done:
            say(f"time is up; the same command goes on ({out})")
            raise typer.Exit(UNFINISHED)
        say(f"done: {out / 'report.md'}")


def step_time(
    model: Annotated[Path, typer.Option(help="Folder with a config.json; weights are drawn")],
    out: Annotated[Path, typer.Option(help="Where the measurement goes (JSON)")],
    prompt: Annotated[int, typer.Option(min=2, help="Tokens of a prompt")] = 32768,
    answer: Annotated[int, typer.Option(min=2, help="Tokens of an answer")] = 64,
    retrieval_heads: Annotated[int, typer.Option(help="KV heads that retrieve")] = 32,
    budget: Annotated[int, typer.Option(help="Tokens in a set")] = 4096,
    draws: Annotated[int, typer.Option(help="Draws of the gates a step")] = 2,
    steps: Annotated[int, typer.Option(help="Steps; the first is not counted")] = 6,
    recompute: Annotated[bool, typer.Option(help="Recompute activations: less memory, more time")] = True,
    device: Annotated[str | None, typer.Option(help="cpu, cuda [default: a GPU if there is one]")] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16")] = "bfloat16",
) -> None:
    """Measure a training step on a model's shape, without its weights: what training a larger model will take."""
    with one_line_errors():
        writable(out)
        if dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype is {dtype!r}; allowed: float32, bfloat16")
        from lychee_sgl.heads.shapes import read_shape
        from lychee_sgl.heads.train.settings import TrainSettings
        from lychee_sgl.heads.train.speed import RandomSamples, drawn_model, save_step_time
        from lychee_sgl.heads.train.speed import step_time as measured

        settings = TrainSettings(
            retrieval=retrieval_heads, budget=budget, draws=draws, steps=steps, sources="same-index", reference=1,
            recompute=recompute,
        )  # fmt: skip
        settings.check(read_shape(model))
        loaded = drawn_model(model, device=device, dtype=dtype)  # type: ignore[arg-type]  # checked above
        samples = RandomSamples(prompt=prompt, answer=answer, vocabulary=loaded.model.config.vocab_size)
        told = measured(loaded, settings, samples)
        save_step_time(told, out)
        memory = "" if told["peak_bytes"] is None else f", {told['peak_bytes'] / 2**30:.1f} GiB"
        say(f"{told['device']}: {told['seconds']['median']:.2f} s a step{memory}")
