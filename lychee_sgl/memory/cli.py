"""The command line `lychee-sgl memory`. Importing it is cheap: numbers come in only with the commands."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from lychee_sgl.terminal import one_line_errors, progress, web_address, writable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lychee_sgl.memory.gate import Classifier
    from lychee_sgl.memory.gate_examples import Split
    from lychee_sgl.memory.http_model import HttpModel
    from lychee_sgl.memory.local_model import LocalModel

_EMBEDDED: Final = "SmolLM2-135M-Instruct"

app = typer.Typer(
    help="Documents beyond the window: make and measure the gate that says which blocks are worth reading.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
gate_app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(gate_app, name="gate", help="Train and evaluate a gate on generated blocks.")


@app.callback()
def _main() -> None:
    """Make and measure what reading documents beyond the window is done with."""


Blocks = Annotated[int, typer.Option(min=2, help="Blocks to learn from")]
HeldOut = Annotated[int, typer.Option(min=2, help="Blocks to measure on: other text, names and wordings")]
Recall = Annotated[
    float,
    typer.Option(min=0.01, max=1, help="Share of the needed training blocks that the threshold has to accept"),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the blocks")]
FeaturesFile = Annotated[
    Path | None, typer.Option(help="File of features; what it holds is not asked again [default: --out with .jsonl]")
]
EngineUrl = Annotated[str | None, typer.Option(help="A running engine; left out: one is started here")]
Model = Annotated[str | None, typer.Option(help="Model folder of the engine that is started [default: the embedded]")]
EngineArgs = Annotated[list[str] | None, typer.Option(help="Further arguments of SGLang; repeatable")]
Local = Annotated[
    str | None, typer.Option(help="No engine: --model runs in this process, with transformers, on cpu or cuda")
]
Accelerator = Annotated[bool, typer.Option("--accelerator", help="The engine that is started has a GPU")]


@gate_app.command()
def train(
    out: Annotated[Path, typer.Option(help="The gate's file; the features lie beside it as .jsonl")],
    record: Annotated[
        Path | None,
        typer.Option(help="The measurement's JSON, a picture beside it [default: --out with .measured.json]"),
    ] = None,
    blocks: Blocks = 110,
    held_out: HeldOut = 80,
    recall: Recall = 0.98,
    words_only: Annotated[
        bool,
        typer.Option(
            "--words-only", help="Features of words alone: no model is asked, neither here nor when the gate is used"
        ),
    ] = False,
    seed: Seed = 0,
    features: FeaturesFile = None,
    engine_url: EngineUrl = None,
    model: Model = None,
    engine_arg: EngineArgs = None,
    local: Local = None,
    accelerator: Accelerator = False,
) -> None:
    """Ask an engine about generated blocks, fit a gate, and measure it on others. Goes on where it stopped."""
    from lychee_sgl.bench.machine import describe

    with _errors():
        kept, record = features or out.with_suffix(".jsonl"), record or out.with_suffix(".measured.json")
        _check({"--out": out, "--record": record, "--features": kept})
        from lychee_sgl.memory.gate_features import NAMES, OF_WORDS
        from lychee_sgl.memory.gate_fit import fit, judged

        about = describe()
        asked: dict[Split, int] = {"train": blocks, "held-out": held_out}
        with _asked(
            local, engine_url, model, engine_arg or [], accelerator=accelerator, wanted=not words_only
        ) as served:
            rows, name = _collected(served, kept, asked, seed)
        made = {
            "by": "logistic regression", "command": about["command"], "date": about["date"], "seed": seed,
            "blocks": blocks, "recall": recall, "text": "generated facts in Python's documentation",
        }  # fmt: skip
        names = OF_WORDS if words_only else NAMES
        gate = fit(judged(rows, "train"), recall=recall, model=name, made=made, names=names)
        out.write_text(json.dumps(gate.to_dict(), indent=1) + "\n", encoding="utf-8")
        _measured(gate, rows, recall, {**about, "served": name, "seed": seed}, record)


@gate_app.command()
def evaluate(
    gate: Annotated[str, typer.Argument(help="A gate file, or the name of a shipped gate")],
    out: Annotated[Path, typer.Option(help="The measurement's JSON, a picture beside it; the features as .jsonl")],
    blocks: Blocks = 110,
    held_out: HeldOut = 80,
    recall: Recall = 0.98,
    seed: Seed = 0,
    features: FeaturesFile = None,
    engine_url: EngineUrl = None,
    model: Model = None,
    engine_arg: EngineArgs = None,
    local: Local = None,
    accelerator: Accelerator = False,
) -> None:
    """Measure a gate on held-out blocks, against thresholds on gain and BM25 that are chosen on --blocks others."""
    from lychee_sgl.bench.machine import describe

    with _errors():
        from lychee_sgl.memory.gate import Classifier, foreign, load

        found = load(gate)
        if not isinstance(found, Classifier):
            raise ValueError(f"gate is {gate!r}; allowed: a file or a name: a number is measured beside every gate")
        kept = features or out.with_suffix(".jsonl")
        _check({"--out": out, "--features": kept}, read=Path(gate))
        about = describe()
        asked: dict[Split, int] = {"train": blocks, "held-out": held_out}
        with _asked(
            local, engine_url, model, engine_arg or [], accelerator=accelerator, wanted=found.needs_gain
        ) as served:
            if served is not None and (doubt := foreign(found, served.name)):
                Console(stderr=True).print(doubt, markup=False, highlight=False, soft_wrap=True)
            rows, name = _collected(served, kept, asked, seed)
        _measured(found, rows, recall, {**about, "served": name, "seed": seed}, out)


def _check(written: dict[str, Path], read: Path | None = None) -> None:
    """Finds what would fail, or destroy another file, only when the engine has been asked for minutes.

    Raises:
        ModuleNotFoundError: what fits and measures is not installed.
        ValueError: a file cannot be written, or two files are one.
    """
    import scipy.optimize  # noqa: F401

    for option, file in written.items():
        writable(file, option)
    files = [*written.values(), *([] if read is None else [read])]
    if len({file.resolve() for file in files}) < len(files):
        raise ValueError(
            f"files are {', '.join(map(str, files))}; allowed: gate, measurement and features, each its own"
        )


def _collected(
    served: HttpModel | LocalModel | None, path: Path, counts: dict[Split, int], seed: int
) -> tuple[list[dict[str, Any]], str | None]:
    """The features of all blocks, and the model's name; of words alone where there is no model."""
    from lychee_sgl.memory.gate_collect import Features, collect

    name = None if served is None else served.name
    with progress("block") as tell:
        return collect(served, Features(path, model=name, seed=seed), counts, seed=seed, tell=tell), name


def _measured(
    gate: Classifier, rows: Sequence[dict[str, Any]], recall: float, about: dict[str, Any], path: Path
) -> None:
    """Measures a gate, writes and shows what it came to."""
    from lychee_sgl.memory.gate_fit import arms, judged, measure
    from lychee_sgl.memory.gate_picture import save_png

    found = measure(rows, arms(judged(rows, "train"), gate, recall=recall), seed=about["seed"])
    record = {"kind": "memory-gate", **about, "recall": recall, "gate": gate.to_dict(), **found}
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    with contextlib.suppress(ModuleNotFoundError):
        save_png(record, path.with_suffix(".png"))
    Console().print(_table(record))


def _table(record: dict[str, Any]) -> Table:
    table = Table("gate", "area under the ROC", "precision", "recall", "skipped of the unneeded")
    for name, arm in record["arms"].items():
        cells = (arm[key] for key in ("auc", "precision", "recall", "skipped"))
        table.add_row(name, *("-" if v is None else f"{v:.3f} ({low:.3f} to {high:.3f})" for v, low, high in cells))
    return table


@contextlib.contextmanager
def _asked(
    local: str | None, url: str | None, model: str | None, arguments: Sequence[str], *, accelerator: bool, wanted: bool
) -> Iterator[HttpModel | LocalModel | None]:
    """A model in this process, a running engine, or one of our own; none where nobody is asked."""
    from lychee_sgl.models.embedded import ensure_unpacked
    from lychee_sgl.serve.solo import solo_engine

    with contextlib.ExitStack() as stack:
        if not wanted:
            yield None
            return
        served: HttpModel | LocalModel
        if local is not None:
            if re.fullmatch(r"cpu|cuda(:\d+)?", local) is None:
                raise ValueError(f"--local is {local!r}; allowed: cpu, cuda, cuda: and a number")
            from lychee_sgl.memory.local_model import LocalModel

            folder, name = (Path(model), Path(model).name) if model else (ensure_unpacked(lambda _: None), _EMBEDDED)
            served = LocalModel(folder, name=name, device=local)
        else:
            from lychee_sgl.memory.http_model import HttpModel

            if url is None:
                words = tuple(word for argument in arguments for word in argument.split())
                state = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                url = stack.enter_context(solo_engine(state, model=model, engine_args=words, accelerator=accelerator))
            served = HttpModel(web_address(url, "--engine-url"))
        yield stack.enter_context(contextlib.closing(served))


def _errors() -> contextlib.AbstractContextManager[None]:
    from lychee_sgl.memory.model import ModelFailed
    from lychee_sgl.models.embedded import ModelUnavailable
    from lychee_sgl.serve.supervisor import StartFailed

    return one_line_errors(ModelFailed, ModelUnavailable, StartFailed)
