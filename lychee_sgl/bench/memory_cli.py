"""`lychee-sgl bench memory`."""

from __future__ import annotations

import contextlib
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from lychee_sgl.terminal import one_line_errors, web_address, writable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def memory(
    out: Annotated[
        Path, typer.Option(help="Where the JSON goes; the answers are kept beside it, as .jsonl, the plot as .png.")
    ] = Path("memory.json"),
    lengths: Annotated[str, typer.Option(help="Tokens of the documents, with commas.")] = "32000",
    documents: Annotated[int, typer.Option(min=1, help="Documents of each length; each is asked three questions.")] = 4,
    methods: Annotated[
        str,
        typer.Option(
            help="With commas; also compressed (with --compressor, or a model that has its own), text-gate and "
            "compressed-gate (with --gate), and text-oracle, a gate that knows the facts."
        ),
    ] = "text,retrieval,truncation",
    chunk: Annotated[int, typer.Option(min=64, help="Most tokens of a block.")] = 4096,
    working_memory: Annotated[int, typer.Option(min=32, help="Most tokens of the notes.")] = 1024,
    gate: Annotated[
        str | None,
        typer.Option(
            help="Gate of the methods that have one: a least gain, a gate file or the name of a shipped gate."
        ),
    ] = None,
    compressor: Annotated[
        Path | None,
        typer.Option(help="Folder of a compressor, for the engine that is started [default: the model's own]"),
    ] = None,
    ratio: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens that an embedding of a compressed block stands for [default: the engine's]"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the documents.")] = 0,
    haystack: Annotated[Path | None, typer.Option(help="Text file or folder [default: Python's documentation]")] = None,
    engine_url: Annotated[str | None, typer.Option(help="A running engine; left out: one is started here.")] = None,
    model: Annotated[str | None, typer.Option(help="Model folder of the engine that is started.")] = None,
    engine_arg: Annotated[list[str] | None, typer.Option(help="Further arguments of SGLang; repeatable.")] = None,
    accelerator: Annotated[bool, typer.Option(help="The engine that is started has a GPU.")] = False,
) -> None:
    """Ask about documents beyond the window: read block by block, retrieval, truncation. Goes on where it stopped."""
    import httpx

    from lychee_sgl.bench import memory as room
    from lychee_sgl.bench.machine import describe, device_name
    from lychee_sgl.bench.memory_report import plot, report
    from lychee_sgl.bench.memory_tasks import haystack as built_in
    from lychee_sgl.heads.haystack import file_haystack
    from lychee_sgl.models.embedded import ModelUnavailable
    from lychee_sgl.serve.supervisor import StartFailed

    console = Console()
    with one_line_errors(room.MemoryBenchError, httpx.HTTPError, StartFailed, ModelUnavailable):
        writable(out)
        if engine_url is not None:
            web_address(engine_url, "--engine-url")
        wanted = tuple(word.strip() for word in methods.split(","))
        sizes = _sizes(lengths)
        for word in wanted:
            if word not in room.METHODS:
                raise ValueError(f"--methods has {word!r}; allowed: {', '.join(room.METHODS)}")
        _check_gate(gate, wanted, engine_url)
        if engine_url is not None and compressor is not None:
            raise ValueError("--compressor is for an engine that is started; a running one has LYCHEE_COMPRESSOR")
        given = None if haystack is None else file_haystack(haystack)
        with _engine(engine_url, model, engine_arg or [], gate, compressor, accelerator=accelerator) as address:
            name, own_gate = room.served(address)
            if own_gate is None and _gated(wanted):
                raise room.MemoryBenchError(f"{address} has no gate (LYCHEE_MEMORY_GATE)")
            compressing = (
                room.served_compressor(address, ratio) if set(room.COMPRESSED).intersection(wanted) else (None, None)
            )
            text = built_in() if given is None else given
            plan = room.Plan(
                lengths=sizes,
                documents=documents,
                chunk=chunk,
                working_memory=working_memory,
                seed=seed,
                model=name,
                haystack=text.digest,
                gate=own_gate,
                compressor=compressing[0],
                ratio=compressing[1],
            )
            answers = room.Answers(out.with_suffix(".jsonl"), plan)
            chars = room.chars_per_token(address, name, text)
            with contextlib.closing(room.Bench(address, plan, ours=engine_url is None)) as bench:
                bench.run(
                    room.made(plan, text, chars),
                    wanted,
                    answers,
                    lambda line: console.print(line, highlight=False, markup=False),
                    chars=chars,
                )
    records = report(answers.rows)
    about = {"device": device_name(accelerator=accelerator), "plan": asdict(plan), "chars_per_token": chars}
    out.write_text(json.dumps({"kind": "memory", **describe(), **about, "cells": records}, indent=1) + "\n")
    with contextlib.suppress(ModuleNotFoundError):
        plot(records, out.with_suffix(".png"))
    console.print(_table(records))


def _sizes(lengths: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(word) for word in lengths.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1000:
        raise ValueError(f"--lengths is {lengths!r}; allowed: whole numbers from 1000, with commas")
    return sizes


def _gated(methods: Sequence[str]) -> bool:
    from lychee_sgl.bench.memory import GATED

    return bool(set(GATED).intersection(methods))


def _check_gate(gate: str | None, methods: Sequence[str], url: str | None) -> None:
    from lychee_sgl.memory.gate import GateError, load

    if url is not None and gate is not None:
        raise ValueError("--gate is for an engine that is started; a running one has LYCHEE_MEMORY_GATE")
    if url is None and (gate is None) is _gated(methods):
        allowed = "a gate with text-gate or compressed-gate among --methods, and only then"
        raise ValueError(f"--gate is {gate}; allowed: {allowed}")
    try:
        if gate is not None:
            load(gate)
    except GateError as error:
        raise ValueError(f"--gate: {error}") from error


@contextlib.contextmanager
def _engine(
    url: str | None,
    model: str | None,
    arguments: Sequence[str],
    gate: str | None,
    compressor: Path | None,
    *,
    accelerator: bool,
) -> Iterator[str]:
    """A running engine, or one of our own without a bank of steps: every first question is to be a first one."""
    from lychee_sgl.serve.solo import solo_engine

    if url is not None:
        yield url
        return
    environ = {"LYCHEE_MEMORY_BANK_BYTES": "0", "LYCHEE_MEMORY_ORACLE": "1"}
    if gate is not None:
        environ["LYCHEE_MEMORY_GATE"] = str(Path(gate).resolve()) if Path(gate).is_file() else gate
    if compressor is not None:
        environ["LYCHEE_COMPRESSOR"] = str(compressor.resolve())
    words = tuple(word for argument in arguments for word in argument.split())
    with (
        tempfile.TemporaryDirectory() as state,
        solo_engine(
            Path(state),
            model=model,
            engine_args=words,
            environ={**environ, "LYCHEE_MEMORY_BANK": str(Path(state) / "memory.sqlite")},
            accelerator=accelerator,
        ) as address,
    ):
        yield address


def _table(records: Sequence[dict[str, Any]]) -> Table:
    table = Table("tokens", "method", "question", "right", "95%", "blocks", "tokens read", "first", "later", "GiB")
    for record in records:
        low, high = record["interval"]
        first, later = record.get("first_seconds"), record.get("later_seconds")
        table.add_row(
            f"{record['tokens']:,}",
            record["method"],
            record["kind"],
            f"{record['right']} of {record['asked']}",
            f"{low:.0%} to {high:.0%}",
            "" if record["blocks"] is None else f"{record['blocks'] - record['gated']:.1f} of {record['blocks']:.1f}",
            f"{record['tokens_read']:,}",
            "" if first is None else f"{first:.1f} s",
            "" if later is None else f"{later:.1f} s",
            "" if record["peak_gib"] is None else f"{record['peak_gib']:.2f}",
        )
    return table
