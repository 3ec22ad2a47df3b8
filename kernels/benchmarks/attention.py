"""Attention of whole decode steps, ours against FlashInfer's dense decode on the same memory, outputs checked first."""

from __future__ import annotations

import argparse
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import triton
from layers import MODELS, POOLS, DenseStep, Model, Step, spread_roles
from timing import capture, copy_bandwidth, kernel_times, time_graphs

from lychee_kernels.decode_plan.api import DENSE
from lychee_kernels.work import Row

RETRIEVAL, BUDGET = 32, 4096


def step_bytes(model: Model, lengths: list[int], budgets: list[int], itemsize: int) -> tuple[int, int]:
    """Bytes of keys and values that a step has to read: all heads dense, and as the roles and budgets have it."""
    entry = 2 * model.head_dim * itemsize
    heads = model.layers * model.kv_heads
    dense = sum(lengths) * heads * entry
    read = [
        n * heads if b == DENSE else n * RETRIEVAL + min(b, n) * (heads - RETRIEVAL)
        for n, b in zip(lengths, budgets, strict=True)
    ]
    return dense, sum(read) * entry


def exact_head(
    step: Step, layer: int, row: int, head: int, chosen: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output [G, D] and pooled weights [n] of one head in float64, over a whole context or a set of positions."""
    group, start = step.model.group, sum(step.lengths[:row])
    slots = step.kv_indices[start : start + step.lengths[row]].long()
    if chosen is not None:
        slots = slots[chosen.long()]
    keys, values = (
        pool[layer % step.pools][:, head].contiguous().view(torch.uint8)[slots].view(step.kv_dtype).double() * scale
        for pool, scale in zip((step.keys, step.values), step.scales, strict=True)
    )
    q = step.queries[layer][row, head * group : (head + 1) * group].double()
    weights = (q @ keys.T * step.model.head_dim**-0.5).softmax(-1)
    return weights @ values, weights.mean(0)


def check(step: Step) -> dict[str, float]:
    """Compares the outputs of the first layers with float64, and the sets with exact ones.

    Raises:
        AssertionError: an output is further off than bfloat16 explains, or a set is not what it should be.
    """
    worst, least = 0.0, 1.0
    step.workspace.set_positions.fill_(-1)
    for layer in range(3):
        step.outs[layer].fill_(torch.nan)
        step.run_layer(layer)
        assert not step.outs[layer].isnan().any()
        for row in {0, len(step.lengths) - 1}:
            heads, start = step.roles[layer], int(step.plan.rows[row, Row.SET_START])
            for head in range(step.model.kv_heads):
                root = max(heads.reads[head], heads.writes[head])
                count = int(step.workspace.set_counts[row, root])
                chosen = step.workspace.set_positions[root, start : start + count]
                sparse = heads.reads[head] >= 0
                expected, weights = exact_head(step, layer, row, head, chosen if sparse else None)
                group = step.model.group
                got = step.outs[layer][row, head * group : (head + 1) * group].double()
                worst = max(worst, ((got - expected).norm() / expected.norm()).item())
                if not sparse:
                    assert count == BUDGET
                    assert (chosen.diff() > 0).all()
                    window = torch.ones(len(weights), dtype=torch.bool, device="cuda")
                    window[:64] = window[-256:] = False
                    best = weights[~window].sum() + weights[window].topk(BUDGET - 320).values.sum()
                    least = min(least, (weights[chosen.long()].sum() / best).item())
    assert worst < 1e-2, f"relative error {worst}"
    assert least > 0.995, f"a set holds {least} of the mass that an exact one would"
    return {"relative_error": worst, "mass_of_exact": least}


def check_dense(step: Step, baseline: DenseStep) -> float:
    """Compares FlashInfer's output of a retrieval head of layer 0 with float64: it has to do the same work.

    Raises:
        AssertionError: it does something else.
    """
    expected, _ = exact_head(step, 0, 0, 0, None)
    got = baseline.run_layer(0)[0, : step.model.group].double()
    error = ((got - expected).norm() / expected.norm()).item()
    assert error < 2e-2, f"relative error of FlashInfer {error}"
    return error


def measure_case(
    model: Model, lengths: list[int], bandwidth: float, repeats: int, kv_dtype: torch.dtype
) -> dict[str, Any]:
    """Times all layers of a batch, and single layers of the kinds that matter."""
    roles = spread_roles(model, RETRIEVAL, 1)
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    budgets = [BUDGET] * len(lengths)
    made = {"model": model, "lengths": lengths, "roles": roles, "programs": 2 * processors, "kv_dtype": kv_dtype}
    step = Step(budgets=budgets, **made)
    step.make_plan()
    checked = check(step)
    baseline = DenseStep(step)
    checked["relative_error_flashinfer"] = check_dense(step, baseline)
    audited = Step(budgets=budgets, audit=True, share=step, **made)
    audited.make_plan()
    dense_rows = Step(budgets=[DENSE] * len(lengths), share=step, **made)
    dense_rows.make_plan()
    graphs = {
        "ours": capture(step.run),
        "flashinfer": capture(baseline.run),
        "ours_audited": capture(audited.run),
        "layer_flashinfer": capture(lambda: baseline.run_layer(0)),
        "layer_all_retrieval": capture(lambda: step.run_layer(0)),
        "layer_dense_rows": capture(lambda: dense_rows.run_layer(0)),
        "plan": capture(step.make_plan),
    }
    times = time_graphs(graphs, repeats)
    dense_bytes, bytes_read = step_bytes(model, lengths, budgets, kv_dtype.itemsize)
    ours, dense = times["ours"]["median_us"], times["flashinfer"]["median_us"]
    layer = times["layer_flashinfer"]["median_us"]
    return {
        "checked": checked,
        "times": times,
        "speedup": dense / ours,
        "bytes_dense": dense_bytes,
        "bytes_read": bytes_read,
        "ratio_of_bytes": dense_bytes / bytes_read,
        "ceiling_at_copy_bandwidth": dense / (bytes_read / bandwidth * 1e6),
        "ours_tb_per_s": bytes_read / ours / 1e6,
        "flashinfer_tb_per_s": dense_bytes / dense / 1e6,
        "all_retrieval_layer_over_flashinfer": times["layer_all_retrieval"]["median_us"] / layer,
        "dense_rows_layer_over_flashinfer": times["layer_dense_rows"]["median_us"] / layer,
        "audit_every_64_costs": (times["ours_audited"]["median_us"] - ours) / 64 / ours,
        "workspace_bytes": step.workspace.bytes(),
        "kernels": kernel_times(graphs["ours"]),
    }


def main() -> None:
    """Runs the cases and writes the JSON after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=list(MODELS), default="llama-3.1-8b")
    parser.add_argument("--kv", choices=list(POOLS), default="bf16", help="what the pool holds")
    parser.add_argument("--cases", nargs="+", default=["131072x1", "131072x4", "65536x8"])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("gpu-attention.json"))
    args = parser.parse_args()
    bandwidth = copy_bandwidth()
    record: dict[str, Any] = {
        "command": " ".join(["python", "kernels/benchmarks/attention.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": os.environ.get("LYCHEE_COMMIT"),
        "device": torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__, "triton": triton.__version__},
        "model": args.model,
        "kv": args.kv,
        "retrieval_heads": RETRIEVAL,
        "budget": BUDGET,
        "copy_tb_per_s": bandwidth / 1e12,
        "cases": {},
    }
    for case in args.cases:
        length, batch = map(int, case.split("x"))
        line = measure_case(MODELS[args.model], [length] * batch, bandwidth, args.repeats, POOLS[args.kv])
        record["cases"][case] = line
        args.out.write_text(json.dumps(record, indent=1) + "\n")
        shown = {k: v for k, v in line.items() if isinstance(v, float)}
        print(case, {name: round(t["median_us"], 1) for name, t in line["times"].items()}, line["checked"], flush=True)
        print("  ", {name: round(value, 3) for name, value in shown.items()}, flush=True)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
