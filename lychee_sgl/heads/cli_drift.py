"""`lychee-sgl heads drift`. Importing it is cheap: torch comes in only when the command runs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lychee_sgl.heads.plan import HeadPlan
from lychee_sgl.heads.terminal import command_line, plan_for, say, share_of
from lychee_sgl.terminal import one_line_errors, progress, writable

if TYPE_CHECKING:
    from lychee_sgl.heads.measure import LoadedModel

SCHEMA = "lychee-sgl/drift"


def drift(
    model: Annotated[Path, typer.Option(help="Model folder, as transformers reads it")],
    out: Annotated[Path, typer.Option(help="Where the numbers go (JSON)")],
    budget: Annotated[list[int], typer.Option(min=1, help="Tokens in a set; repeatable")],
    heads: Annotated[Path | None, typer.Option(help="Head plan [default: the built-in one of the model]")] = None,
    correction: Annotated[
        list[int] | None, typer.Option(min=1, help="Also with a cache correction after so many tokens; repeatable")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens decoded")] = 1024,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of prose in front")] = 512,
    prompts: Annotated[int, typer.Option(help="Traces")] = 4,
    temperature: Annotated[
        float, typer.Option(help="Sampling temperature of the dense model; 0: the likeliest token")
    ] = 0.7,
    buckets: Annotated[int, typer.Option(help="Stretches of positions that are averaged")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of prompts and draws")] = 0,
    haystack: Annotated[Path | None, typer.Option(help="Text of the prompts [default: Python's reference]")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    plot: Annotated[Path | None, typer.Option(help="Also a picture (PNG)")] = None,
    model_name: Annotated[str | None, typer.Option(help="What plans call the model [default: the folder]")] = None,
    share: Annotated[
        str,
        typer.Option(help="Share of the traces, for several processes with the same --out: 2/4 is the second of four"),
    ] = "1/1",
) -> None:
    """Measure whether a sparse answer drifts from the dense one with its length, with and without cache correction.

    Finished traces lie beside OUT, in OUT.traces: the same command goes on where an ended one stopped.
    """
    with one_line_errors():
        part = share_of(share)
        writable(out)
        if plot is not None:
            writable(plot, "--plot")
        import torch

        from lychee_sgl.heads.evaluate.drift import Arm, DriftSettings, run_drift
        from lychee_sgl.heads.evaluate.traces import Traces
        from lychee_sgl.heads.evaluate.variants import Variant
        from lychee_sgl.heads.haystack import file_haystack, reference_haystack
        from lychee_sgl.heads.measure import load_model

        settings = DriftSettings(
            prompts=prompts, prompt_tokens=prompt_tokens, tokens=tokens, temperature=temperature, seed=seed,
            buckets=buckets,
        )  # fmt: skip
        plan = None if heads is None else HeadPlan.load(heads)
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        loaded = load_model(model, name=model_name, device=device, dtype=dtype)
        plan = plan_for(loaded.shape, plan)
        arms = [
            Arm(variant=Variant(name=plan.name, plan=plan, budget=size), correction=every)
            for size in budget
            for every in (0, *(correction or ()))
        ]
        text = file_haystack(haystack) if haystack is not None else reference_haystack("evaluation")
        about = _about(loaded, plan, settings, text.origin, device, model)
        decided = {key: about[key] for key in ("model", "dtype", "text")} | about["settings"]
        decided |= {"plan": plan.sha256(), "arms": [arm.name for arm in arms]}
        kept = Traces(out.with_name(out.name + ".traces"), decided)
        with progress("token") as tell:
            found = run_drift(loaded, arms, settings, haystack=text, kept=kept, share=part, tell=tell)
        if found is None:
            say(f"this share is done; {out} is written by the last one")
            return
        report = {**about, **found}
        out.write_text(json.dumps(report, indent=1) + "\n")
        if plot is not None:
            from lychee_sgl.heads.picture import save_drift

            save_drift(report, plot)
        for line in told(report):
            say(line)


def _about(loaded: "LoadedModel", plan: HeadPlan, settings: Any, text: str, device: str, model: Path) -> dict[str, Any]:
    import dataclasses
    from datetime import UTC, datetime

    import torch

    name = torch.cuda.get_device_name() if device.startswith("cuda") else device
    return {
        "schema": SCHEMA,
        "version": 1,
        "model": loaded.shape.name,
        "plan": plan.name,
        "device": name,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
        "command": command_line(model),
        "text": text,
        "settings": dataclasses.asdict(settings),
    }


def told(report: dict[str, Any]) -> list[str]:
    """The report in lines: for each arm the means, and what the last quarter has more than the first.

    Args:
        report: what `drift` writes.
    """
    lines = []
    for arm in report["arms"]:
        parts = []
        for measure, words in (("divergence", "KL"), ("agreement", "same token"), ("recall", "recall")):
            mean, more = arm["all"][measure], arm["grows"][measure]
            if mean is not None:
                parts.append(f"{words} {mean['mean']:.4f}, late less early {more['mean']:+.4f} ± {more['error']:.4f}")
        lines.append(f"{arm['name']}: " + "; ".join(parts))
    return lines
