"""Tables of what was measured on a GPU."""

from __future__ import annotations

import json

from table_text import MEASUREMENTS, ROOT, Record, markdown, percent

KERNELS = ("attend_kernel", "merge_kernel", "count_scores_kernel", "compact_kernel")


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
    return (
        "## Speed on a GPU\n\n"
        "Time per token inside SGLang, CUDA graphs, radix cache and overlap scheduling on, in the shape of "
        f"{_about(record)}, against SGLang's FlashInfer backend. The ceiling is what the bytes that need not be "
        "read would save at FlashInfer's own rate. In the mixed batch each request has a length and a budget of its "
        "own, two of them `dense`.\n\n"
        f"{_gpu_rows(record)}\n"
        "![speedup by batch, and where the attention's time goes](docs/images/gpu.png)\n\n"
        f"{record['device'].removeprefix('1 x ')}, SGLang {record['versions']['sglang']}, torch "
        f"{record['versions']['torch']}, {record['date']}. Command and data: [{file}](docs/measurements/{file}); "
        "kernel by kernel and other models: [kernels/README.md](kernels/README.md).\n"
    )


def _triton() -> str:
    """Stock SGLang's other backend, measured beside ours."""
    file = MEASUREMENTS / "gpu-engine-triton.json"
    if not file.exists():
        return ""
    record = json.loads(file.read_text())
    ((name, stock),) = record["triton"]["batches"].items()
    ours = record["lychee"]["batches"][name]["sparse"]["median_ms"]
    slow = stock["dense"]["median_ms"]
    return (
        f"\nSGLang's own Triton backend takes {slow:.1f} ms a token at {_batch(name)} in the shape of "
        f"{SHAPES[record['model']][0]}, {slow / ours:.1f} times as long as lychee's {ours:.2f} ms "
        f"([{file.name}](../docs/measurements/{file.name})).\n"
    )


SHAPES = {"llama": ("Llama-3.1-8B", "llama-3.1-8b"), "qwen3": ("Qwen3-8B", "qwen3-8b")}
"""What a configuration calls its architecture: the model's name, and the folder with its shape."""


def _shape(record: Record) -> Record:
    folder = ROOT / "lychee_sgl" / "bench" / "shapes" / SHAPES[record["model"]][1]
    shape: Record = json.loads((folder / "config.json").read_text())
    return shape


def _about(record: Record) -> str:
    shape = _shape(record)
    heads = shape["num_hidden_layers"] * shape["num_key_value_heads"]
    return (
        f"{SHAPES[record['model']][0]} (dummy weights, {record['retrieval_heads']} retrieval heads of {heads}, budget "
        f"{record['budget']:,})"
    )


def gpu_engine_more(record: Record, file: str) -> str:
    """The same for another model."""
    device = record["device"].partition(" x ")[2]
    return (
        f"Time per token inside SGLang in the shape of {_about(record)}, against SGLang's FlashInfer backend:\n\n"
        f"{_gpu_rows(record)}\n"
        f"{device}, SGLang {record['versions']['sglang']}, torch {record['versions']['torch']}, {record['date']}. "
        f"Command and data: [{file}](../docs/measurements/{file}).\n"
        f"{_triton()}"
    )


def _gpu_rows(record: Record) -> str:
    shape = _shape(record)
    read = {
        "layers": shape["num_hidden_layers"],
        "kv_heads": shape["num_key_value_heads"],
        "entry": 2 * 2 * shape["head_dim"],
        "retrieval": record["retrieval_heads"],
    }
    rates = json.loads((MEASUREMENTS / "gpu-attention.json").read_text())["cases"]
    rows = []
    for name, line in (
        record["lychee"]["batches"].items() if "batches" in record["lychee"] else record["lychee"].items()
    ):
        if not isinstance(line, dict):
            continue
        stock = record["flashinfer"].get("batches", record["flashinfer"]).get(name, line)["dense"]["median_ms"]
        ours = line["sparse"]["median_ms"]
        dense_bytes, read_bytes = token_bytes(*_rows_of(name, record["budget"]), read)
        rate = rates.get(name, rates["131072x4"])["flashinfer_tb_per_s"]
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
    head = ("contexts x requests", "FlashInfer", "lychee", "speedup", "ceiling", "attended")
    return markdown(head, rows)


def gpu_ranks(record: Record, file: str) -> str:
    """Several GPUs: speedup beside that of one, plans of two kinds, and whether the tokens are one GPU's."""
    ours, other = record["lychee"]["batches"], record.get("lychee_unbalanced", {"batches": {}})["batches"]
    kept = record.get("kept", {}).get("lychee", {})
    rows = []
    for name, line in ours.items():
        stock = record.get("flashinfer", {"batches": {}})["batches"].get(name, line)["dense"]["median_ms"]
        rows.append(
            (
                _batch(name),
                f"{stock:.2f} ms",
                f"{line['sparse']['median_ms']:.2f} ms",
                f"**{line['speedup']:.2f}x**",
                f"{kept[name]:.2f}" if name in kept else "-",
                f"{other[name]['sparse']['median_ms']:.2f} ms" if name in other else "-",
                percent(line["attended_fraction"]),
            )
        )
    head = (
        "contexts x requests",
        "FlashInfer",
        "balanced plan",
        "speedup",
        "of one GPU's",
        "unbalanced plan",
        "attended",
    )
    device = record["device"].partition(" x ")[2] or record["device"]
    return (
        f"Time per token inside SGLang on {record['tp']} GPUs (`--tp {record['tp']}`), in the shape of "
        f"{_about(record)}. *Of one GPU's*: this speedup over that of one GPU. Where all retrieval heads behind the "
        "first layer lie on one rank (*unbalanced*), the others wait for it.\n\n"
        f"{markdown(head, rows)}\n"
        f"{_where_time_goes(record)}{_tokens_told(record)}"
        f"{device}, SGLang {record['versions']['sglang']}, torch {record['versions']['torch']}, {record['date']}. "
        f"Again: `{record['command']}`. Data: [{file}](../docs/measurements/{file}).\n"
    )


def _where_time_goes(record: Record) -> str:
    """A step's time by what kernels are for, mean over the ranks, of the batches that were profiled."""
    rows = []
    for key in ("lychee", "lychee_unbalanced"):
        for name, line in record.get(key, {"batches": {}})["batches"].items():
            for way, ranks in line.get("profile", {}).items():
                if way == "dense" and key != "lychee":
                    continue
                label = "dense" if way == "dense" else record[key]["placement"]
                spans = " / ".join(f"{rank['groups_ms']['attention']:.2f}" for rank in ranks)
                means = [
                    sum(rank["groups_ms"][group] for rank in ranks) / len(ranks)
                    for group in ("selection", "matrices", "all-reduce", "other")
                ]
                rows.append((_batch(name), label, spans, *(f"{mean:.2f}" for mean in means)))
    if not rows:
        return ""
    head = ("contexts x requests", "", "attention, by rank", "selection", "matrices", "all-reduce", "other")
    return f"Milliseconds of kernels in a step; selection runs beside the rest:\n\n{markdown(head, rows, left=2)}\n"


def _tokens_told(record: Record) -> str:
    found = record.get("tokens")
    if not found:
        return ""
    (stock,) = [key for key in found if isinstance(found[key], dict) and "noise" in found[key] and "beside" not in key]
    parts = [
        f"{name} {told['identical']} of {told['answers']} identical, {told['near_ties']} from a near tie on"
        for name, told in ((f"stock SGLang ({stock})", found[stock]), *found["lychee"].items())
    ]
    return (
        f"Greedy answers of a random model on {found['tp']} GPUs against one: {'; '.join(parts)}. A near tie is a "
        f"gap below {found[stock]['noise']:.3f}, by which stock's own gaps change between one GPU and "
        f"{found['tp']}.\n\n"
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
    head = (
        "contexts x requests",
        "FlashInfer",
        "lychee",
        "speedup",
        "bytes",
        "retrieval layer",
        "dense layer",
        "audit 1/64",
    )
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
        f"Outputs are within {max(c['relative_error'] for c in checked):.4f} of float64, sets hold at least "
        f"{percent(min(c['mass_of_exact'] for c in checked))} of the mass of exact ones. "
        f"{record['device']}, torch {record['versions']['torch']}, triton {record['versions']['triton']}, "
        f"{record['date']}. Again: `{record['command']}`. Data: [{file}](../docs/measurements/{file}).\n"
    )
