"""`lychee-sgl heads recall`. Importing it is cheap: torch comes in only when the command runs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lychee_sgl.heads.plan import HeadPlan
from lychee_sgl.heads.shapes import read_shape
from lychee_sgl.heads.terminal import command_line, plan_for, say
from lychee_sgl.terminal import one_line_errors, progress, writable

if TYPE_CHECKING:
    from lychee_sgl.heads.evaluate.recall import RecallSettings
    from lychee_sgl.heads.measure import LoadedModel

SCHEMA = "lychee-sgl/recall-heads"


def recall(
    model: Annotated[Path, typer.Option(help="Model folder, as transformers reads it")],
    out: Annotated[Path, typer.Option(help="Where the numbers go (JSON)")],
    heads: Annotated[Path | None, typer.Option(help="Head plan [default: the built-in one of the model]")] = None,
    share: Annotated[float, typer.Option(help="Share of the context that a set holds")] = 0.125,
    context: Annotated[
        list[int] | None, typer.Option(help="Tokens of a prompt; repeatable [default: 2000 and 4000]")
    ] = None,
    questions: Annotated[int, typer.Option(help="Prompts of each context and of each of four kinds")] = 1,
    steps: Annotated[int, typer.Option(help="Most tokens decoded after a prompt")] = 24,
    seed: Annotated[int, typer.Option(help="Seed of the prompts")] = 0,
    haystack: Annotated[Path | None, typer.Option(help="Text of the prompts [default: Python's reference]")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    plot: Annotated[Path | None, typer.Option(help="Also a picture (PNG)")] = None,
    model_name: Annotated[str | None, typer.Option(help="What plans call the model [default: the folder]")] = None,
) -> None:
    """Measure, head by head, what attention mass the handed-down sets hold, and why they do not hold more."""
    with one_line_errors():
        writable(out)
        if plot is not None:
            writable(plot, "--plot")
        plan = plan_for(read_shape(model, name=model_name), None if heads is None else HeadPlan.load(heads))
        from lychee_sgl.heads.evaluate.recall import RecallSettings, run_recall
        from lychee_sgl.heads.haystack import file_haystack, reference_haystack
        from lychee_sgl.heads.train.run import load_for

        settings = RecallSettings(
            share=share, contexts=tuple(context or (2000, 4000)), questions=questions, steps=steps, seed=seed
        )
        text = file_haystack(haystack) if haystack is not None else reference_haystack("evaluation")
        loaded = load_for(model, name=model_name, device=device)
        about = _about(loaded, plan, settings, text.origin, model)
        with progress("prompt") as tell:
            report = {**about, **run_recall(loaded, plan, settings, haystack=text, tell=tell)}
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        if plot is not None:
            from lychee_sgl.heads.picture import save_recall

            save_recall(report, plot)
        for line in told(report):
            say(line)


def _about(loaded: "LoadedModel", plan: HeadPlan, settings: "RecallSettings", text: str, model: Path) -> dict[str, Any]:
    import dataclasses

    from lychee_sgl.bench.machine import describe, device_name

    return {
        "schema": SCHEMA,
        "version": 1,
        "model": loaded.shape.name,
        "plan": {"name": plan.name, "sha256": plan.sha256()},
        "device": device_name(accelerator=loaded.device.type != "cpu"),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        **describe(),
        "command": command_line(model),
        "text": text,
        "settings": dataclasses.asdict(settings),
    }


def told(report: dict[str, Any]) -> list[str]:
    """The report in lines: the mean, the loss by its parts, and the heads that lose most.

    Args:
        report: what `recall` writes.
    """
    mean, parts, worst = report["all"], report["shares"], report["worst"]
    sparse = sorted((row for row in report["heads"] if row["root"] is not None), key=lambda row: float(row["recall"]))
    return [
        f"recall {mean['recall']:.3f}, own best {mean['own']:.3f}, mean over {len(sparse)} sparse heads and "
        f"{len(report['prompts'])} prompts",
        "of the loss: " + ", ".join(f"{name} {share:.0%}" for name, share in parts.items()),
        f"the {worst['heads']} worst heads make {worst['loss_share']:.0%} of it: "
        + ", ".join(f"{row['layer']}.{row['head']} ({row['recall']:.3f})" for row in sparse[: worst["heads"]]),
    ]
