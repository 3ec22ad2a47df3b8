"""Writes the READMEs' tables out of the committed measurements: `python docs/tables.py`, with `--check` only compares.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`, its heading included. Where the measurement is
missing, the section is left out.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

ROOT = Path(__file__).parents[1]
MEASUREMENTS = ROOT / "docs" / "measurements"
PAGES = (ROOT / "README.md", ROOT / "server" / "README.md", ROOT / "kernels" / "README.md")
SECTION = re.compile(r"(?<=<!-- table: )(?P<name>[\w-]+) -->\n.*?(?=<!-- end -->)", re.DOTALL)

Record = dict[str, Any]


def markdown(head: Iterable[str], rows: Iterable[Iterable[str]], *, left: int = 1) -> str:
    """A table; the first `left` columns are aligned left, the others right."""
    names = list(head)
    lines = [names, [*["---"] * left, *["---:"] * (len(names) - left)], *map(list, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def percent(share: float | None) -> str:
    """A share in [0, 1] as a percentage with one decimal."""
    return "-" if share is None else f"{100 * share:.1f}%"


def milliseconds(value: float | None) -> str:
    """A time in seconds as milliseconds, or as seconds from one second on."""
    if value is None:
        return "-"
    return f"{value:.1f} s" if value >= 1 else f"{1000 * value:.0f} ms"


def cell(text: str) -> str:
    """Text of a model, safe inside a table's cell."""
    flat = " ".join(text.split())
    return re.sub(r"([\\|`*_<>\[\]])", r"\\\1", flat)


def origin(record: Record, file: str, folder: str = "docs/measurements") -> str:
    """Where a measurement was taken, and how it is repeated."""
    machine, versions = record["machine"], record["versions"]
    return (
        f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_before'][0]:.1f} before the run, "
        f"SGLang {versions['sglang']}, torch {versions['torch']}, {record['date']}. "
        f"Again: `{record['command']}`. Data: [{file}]({folder}/{file}).\n"
    )


def demo(record: Record, file: str) -> str:
    """One fact in the middle of a long text, at four budgets."""
    table = record["table"]
    rows = [
        (
            str(row["budget"]),
            cell(row["answer"]),
            "yes" if row["as_dense"] else "no",
            percent(row["attended_fraction"]),
            percent(row["recall"]),
            milliseconds(row["per_token_seconds"]),
            milliseconds(row["first_token_seconds"]),
        )
        for row in table["rows"]
    ]
    head = ("budget", "answer", "as dense?", "attended", "recall", "per token", "first token")
    return (
        "## The demo\n\n"
        f"`make demo` hides a fact in a text of {table['context_tokens']:,} tokens, at {100 * table['depth']:.0f}% "
        f"of it, and asks: *{cell(table['question'])}* It is {table['expected']}.\n"
        f"The text is read once ({milliseconds(table['prefill_seconds'])}); all rows find it in the cache.\n\n"
        f"{markdown(head, rows, left=2)}\n"
        f"{cell(record['served']['model'])} with the head plan {cell(str(record['served']['plan']))}, "
        f"{origin(record, file)}"
    )


def questions(record: Record, file: str) -> str:
    """The other questions, dense and at the default budget."""
    if "counts" not in record:
        return ""
    counts, asked = record["counts"], record["questions"]
    sizes = [pair["context_tokens"] for pair in asked]
    budgets = sorted({str(pair["budget"]) for pair in asked})
    shares = [pair["attended_fraction"] for pair in asked if pair["attended_fraction"] is not None]
    return (
        f"{counts['questions']} other questions, over texts of {min(sizes):,} to {max(sizes):,} tokens, asked dense "
        f"and without the field (budget {' or '.join(budgets)}): "
        f"**{counts['same_answer']} of {counts['questions']}** default answers are "
        f"the dense answer, {counts['same_text']} of them word for word.\n"
        f"Dense finds {counts['dense_correct']} of the numbers, the default {counts['default_correct']}; "
        f"it reads {percent(sum(shares) / len(shares) if shares else None)} of the KV entries on average.\n"
    )


def cpu_speed(record: Record, file: str) -> str:
    """Time per token against stock SGLang, by context and budget."""
    rows = []
    for context, ratio in zip(record["contexts"], record["ratios"], strict=True):
        times = context["per_token_seconds"]
        ours = [name for name in times if name != "stock"]
        rows.append(
            (
                f"{context['context_tokens']:,}",
                milliseconds(times["stock"]),
                *(f"{milliseconds(times[name])} ({ratio['per_token'][name]:.2f}x)" for name in ours),
                f"{ratio['first_token_after_hit']['dense']:.2f}x",
                f"{ratio['fresh_prefill']:.2f}x",
            )
        )
    names = [name for name in record["contexts"][0]["per_token_seconds"] if name != "stock"]
    head = ("context", "stock", *names, "first token after a hit", "prefill")
    floor, last = record["prefill_floor"], record["contexts"][-1]
    prefill = (
        f"A fresh prompt of {floor['tokens']:,} tokens takes {milliseconds(last['fresh_prefill_seconds']['lychee'])} "
        f"(stock: {milliseconds(last['fresh_prefill_seconds']['stock'])}); its "
        f"{floor['linear_gflop'] + floor['attention_gflop']:,.0f} GFLOP would take {milliseconds(floor['seconds'])} at "
        f"the {record['float32_gflops']:.0f} GFLOP/s of this machine's float32 matrix product.\n\n"
    )
    return (
        "## Speed on a CPU\n\n"
        "Time per token of stock SGLang (`torch_native`) and of lychee at three budgets, both running, asked in turn; "
        "in brackets and in the last columns, how many times faster than stock.\n\n"
        f"{markdown(head, rows)}\n"
        f"{prefill}"
        f"{origin(record, file)}"
    )


def start(record: Record, file: str) -> str:
    """From a bare clone to the first answer."""
    return (
        f"From `make serve` in a bare clone to the first answer: {record['first_answer_seconds']:.0f} s, with the "
        f"packages in uv's cache (else their download comes first). All processes together then hold "
        f"{record['pss_gib_ready']:.1f} GiB, after a prompt of {record['long_context_tokens']:,} tokens "
        f"{record['pss_gib_after_long']:.1f} GiB.\n"
        f"{origin(record, file)}"
    )


def recall_hold(record: Record, file: str) -> str:
    """Recalls that the gateway was asked to hold, beside fixed budgets."""
    rows = []
    for target in record["targets"]:
        whole, found = target["whole"], target["settled"]
        rows.append(
            (
                f"{target['min_recall']:g}",
                f"{found['worst_bucket']:.4f} ({found['off_by']:+.4f})",
                f"{found['worst_answer']:.4f}",
                percent(found["attended_fraction"]),
                _fixed(found["same_worst_case"]["worst_bucket"]),
                percent(whole["attended_fraction"]),
                _fixed(whole["same_worst_case"]["worst_bucket"]),
            )
        )
    head = ("asked", "reached", "worst answer", "attended", "fixed budget", "from the start", "fixed budget")
    plan = record["plan"]
    return (
        f"{record['targets'][0]['whole']['answers']} questions over texts of {plan['shortest']:,} to "
        f"{plan['longest']:,} tokens, asked with `min_recall` and with fixed budgets. *Reached* is the recall of nine "
        f"in ten answers in the worst of the buckets, after {plan['warm_up']} answers of each; *fixed budget* is the "
        "one with the same worst case, and what it attends.\n\n"
        f"{markdown(head, rows)}\n"
        f"![recall held, and its cost](../docs/measurements/{file.removesuffix('.json')}.png)\n\n"
        f"{origin(record, file, '../docs/measurements')}"
    )


def gateway(record: Record, file: str) -> str:
    """What the gateway adds to the first token, and what it holds."""
    rows = [
        (
            f"{line['prompt_characters']:,}",
            str(line["at_once"]),
            *(f"{line[p]['added_ms']:.2f} ms" for p in ("p50", "p99")),
        )
        for line in record["first_token"]
    ]
    streams, mix = record["streams"], record["mix"]
    saw = mix["clients_saw"]
    return (
        "Added to the time to first token, against asking the same scripted engine directly, in turns:\n\n"
        f"{markdown(('prompt, characters', 'clients at once', 'p50', 'p99'), rows)}\n"
        f"{streams['streams']} streams at once: {streams['chunks_received']:,} of "
        f"{streams['chunks_expected']:,} chunks arrived, the gap between two was "
        f"{milliseconds(streams['gap_seconds']['p99'])} at p99 where the engine pauses "
        f"{milliseconds(streams['pause_seconds'])}. {mix['requests']:,} mixed requests to {mix['engines']} engines, "
        f"killed {mix['kills']} times: {saw['answered']:,} answered, {saw['error']} errors, {saw['left']} clients "
        f"left, {saw['refused']} refused, {saw.get('wrong', 0)} with somebody else's answer; "
        f"{len(mix['problems'])} differences between these and the gateway's metrics.\n\n"
        f"{origin(record, file, '../docs/measurements')}"
    )


def _fixed(same: Record | None) -> str:
    return "-" if same is None else f"{same['budget']:.0f}: {percent(same['attended_fraction'])}"


def _batch(name: str) -> str:
    length, _, rows = name.partition("x")
    return f"{int(length):,} x {rows}" if rows else "1K to 128K x 8"


def token_bytes(contexts: list[int], budgets: list[int | str], read: Record) -> tuple[int, int]:
    """Bytes of keys and values of a step: all heads dense, and by roles and budgets."""
    heads = read["layers"] * read["kv_heads"]
    dense = sum(contexts) * heads * read["entry"]
    sparse = sum(
        n * heads if b == "dense" or int(b) >= n else n * read["retrieval"] + int(b) * (heads - read["retrieval"])
        for n, b in zip(contexts, budgets, strict=True)
    )
    return dense, sparse * read["entry"]


def _rows_of(name: str, budget: int) -> tuple[list[int], list[int | str]]:
    if ":" in name:
        pairs = [row.split(":") for row in name.split("+")]
        return [int(length) for length, _ in pairs], [budget for _, budget in pairs]
    length, _, rows = name.partition("x")
    return [int(length)] * int(rows), [budget] * int(rows)


def gpu_engine(record: Record, file: str) -> str:
    """Time per token inside SGLang on a GPU, against FlashInfer's dense decode."""
    shape = json.loads((ROOT / "lychee_sgl" / "bench" / "shapes" / "llama-3.1-8b" / "config.json").read_text())
    read = {
        "layers": shape["num_hidden_layers"],
        "kv_heads": shape["num_key_value_heads"],
        "entry": 2 * 2 * shape["head_dim"],
        "retrieval": record["retrieval_heads"],
    }
    rate = json.loads((MEASUREMENTS / "gpu-attention.json").read_text())["cases"]["131072x4"]["flashinfer_tb_per_s"]
    rows = []
    for name, line in (
        record["lychee"]["batches"].items() if "batches" in record["lychee"] else record["lychee"].items()
    ):
        if not isinstance(line, dict):
            continue
        stock = record["flashinfer"].get("batches", record["flashinfer"]).get(name, line)["dense"]["median_ms"]
        ours = line["sparse"]["median_ms"]
        dense_bytes, read_bytes = token_bytes(*_rows_of(name, record["budget"]), read)
        ceiling = stock / (stock - (dense_bytes - read_bytes) / (rate * 1e9))
        rows.append(
            (
                _batch(name),
                f"{stock:.2f} ms",
                f"{ours:.2f} ms",
                f"**{stock / ours:.2f}x**",
                f"{ceiling:.2f}x" if line["attended_fraction"] < 1 else "-",
                percent(line["attended_fraction"]),
            )
        )
    head = ("contexts x requests", "FlashInfer", "lychee", "", "ceiling", "attended")
    return (
        "## Speed on a GPU\n\n"
        "Time per token inside SGLang, CUDA graphs, radix cache and overlap scheduling on, in the shape of "
        f"Llama-3.1-8B (dummy weights, {record['retrieval_heads']} retrieval heads of 256, budget "
        f"{record['budget']:,}), against SGLang's FlashInfer backend. The ceiling is what the bytes that need not be "
        "read would save at FlashInfer's own rate. In the mixed batch each request has a length and a budget of its "
        "own, two of them `dense`.\n\n"
        f"{markdown(head, rows)}\n"
        "![speedup by batch, and where the attention's time goes](docs/images/gpu.png)\n\n"
        f"{record['device'].removeprefix('1 x ')}, SGLang {record['versions']['sglang']}, torch "
        f"{record['versions']['torch']}, {record['date']}. Command and data: [{file}](docs/measurements/{file}); "
        "kernel by kernel: [kernels/README.md](kernels/README.md).\n"
    )


def gpu_attention(record: Record, file: str) -> str:
    """Attention of a whole step on a GPU, and where its time goes."""
    rows, split = [], []
    for name, case in record["cases"].items():
        times = {key: value["median_us"] / 1000 for key, value in case["times"].items()}
        rows.append(
            (
                _batch(name),
                f"{times['flashinfer']:.2f} ms",
                f"{times['ours']:.2f} ms",
                f"**{case['speedup']:.2f}x**",
                f"{case['bytes_dense'] / case['bytes_read']:.2f}x",
                f"{case['all_retrieval_layer_over_flashinfer']:.2f}",
                f"{case['dense_rows_layer_over_flashinfer']:.2f}",
                percent(case["audit_every_64_costs"]),
            )
        )
        kernels = {key: value["us"] for key, value in case["kernels"].items() if value["us"]}
        whole = sum(kernels.values())
        rate = case["bytes_read"] / kernels["attend_kernel"] / 1e6
        split.append(
            (_batch(name), *(percent(kernels[key] / whole) for key in KERNELS), f"{rate:.2f} TB/s",
             f"{case['flashinfer_tb_per_s']:.2f} TB/s")
        )  # fmt: skip
    head = ("contexts x requests", "FlashInfer", "lychee", "", "bytes", "retrieval layer", "dense layer", "audit 1/64")
    parts = (
        "contexts x requests",
        *(name.removesuffix("_kernel") for name in KERNELS),
        "attend reads",
        "FlashInfer reads",
    )
    checked = [case["checked"] for case in record["cases"].values()]
    return (
        "Attention of a token step, all layers of Llama-3.1-8B's shape, in a CUDA graph, "
        f"{record['retrieval_heads']} retrieval heads, budget {record['budget']:,}. *Bytes*: how many times fewer have "
        "to be read, the ceiling at equal rates. *Retrieval layer*, *dense layer*: time of a layer all of whose heads "
        "retrieve and select, and of one whose rows are dense, over FlashInfer's. *Audit*: what measuring recall on "
        "one step in 64 adds to the attention.\n\n"
        f"{markdown(head, rows)}\n"
        "Where the time goes, and the rate at which the attention kernel reads:\n\n"
        f"{markdown(parts, split)}\n"
        f"Outputs are within {max(c['relative_error'] for c in checked):.4f} of float64, sets hold "
        f"{percent(min(c['mass_of_exact'] for c in checked)).removesuffix('%')}% or more of the mass of exact ones. "
        f"{record['device']}, torch {record['versions']['torch']}, triton {record['versions']['triton']}, "
        f"{record['date']}. Again: `{record['command']}`. Data: [{file}](../docs/measurements/{file}).\n"
    )


KERNELS = ("attend_kernel", "merge_kernel", "count_scores_kernel", "compact_kernel")

TABLES: dict[str, tuple[str, Callable[[Record, str], str]]] = {
    "demo": ("demo.json", demo),
    "questions": ("demo.json", questions),
    "cpu-speed": ("cpu-speed.json", cpu_speed),
    "start": ("start.json", start),
    "gpu-engine": ("gpu-engine.json", gpu_engine),
    "gpu-attention": ("gpu-attention.json", gpu_attention),
    "gateway": ("gateway.json", gateway),
    "recall-hold": ("recall-hold.json", recall_hold),
}


def fill(text: str, folder: Path) -> str:
    """Put every section anew.

    Args:
        text: the page, with its markers.
        folder: where the measurements are.

    Returns:
        The page; a section whose measurement is missing is empty.

    Raises:
        KeyError: a marker names an unknown table, or a measurement lacks a field.
    """

    def section(found: re.Match[str]) -> str:
        file, write = TABLES[found["name"]]
        path = folder / file
        body = write(json.loads(path.read_text(encoding="utf-8")), file) if path.exists() else ""
        return f"{found['name']} -->\n{body}"

    return SECTION.sub(section, text)


def main() -> int:
    """Write the pages, or with `--check` say whether they are up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 when a page is not current")
    check = parser.parse_args().check
    for page in PAGES:
        old = page.read_text(encoding="utf-8")
        new = fill(old, MEASUREMENTS)
        if check and new != old:
            return 1
        if not check:
            page.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
