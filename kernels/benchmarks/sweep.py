"""Tries launch settings of the attention kernel on a few layers; prints a table. For tuning, not for reports."""

from __future__ import annotations

import argparse
import itertools

import torch
from layers import MODELS, POOLS, DenseStep, Step, spread_roles
from timing import capture, kernel_times, time_graphs

from lychee_kernels.decode_plan.api import DENSE
from lychee_kernels.hybrid_decode.triton import Launch


def main() -> None:
    """Runs the sweep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", default=["131072x1", "131072x4", "65536x8"])
    parser.add_argument("--model", choices=list(MODELS), default="llama-3.1-8b")
    parser.add_argument("--kv", choices=list(POOLS), default="bf16", help="what the pool holds")
    parser.add_argument("--blocks", nargs="+", type=int, default=[128])
    parser.add_argument("--warps", nargs="+", type=int, default=[4])
    parser.add_argument("--stages", nargs="+", type=int, default=[3])
    parser.add_argument("--per-sm", nargs="+", type=int, default=[2])
    parser.add_argument("--layers", nargs="+", type=int, default=[0, 1, 2, 4])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--registers", type=int)
    parser.add_argument("--chunk", type=int, default=2048)
    parser.add_argument("--count-warps", type=int, default=4)
    parser.add_argument("--count-programs", type=int, default=1056)
    parser.add_argument("--dense", action="store_true", help="all rows dense")
    parser.add_argument("--whole", action="store_true", help="time all layers, too")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    model = MODELS[args.model]
    roles = spread_roles(model, 32, 1)
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    print("retrieval heads of the layers:", [model.kv_heads - roles[i].sparse for i in args.layers], flush=True)
    for case in args.cases:
        length, batch = map(int, case.split("x"))
        base = None
        for block, warps, stages, per_sm in itertools.product(args.blocks, args.warps, args.stages, args.per_sm):
            step = Step(
                model=model,
                lengths=[length] * batch,
                budgets=[DENSE if args.dense else 4096] * batch,
                roles=roles,
                programs=processors * per_sm,
                kv_dtype=POOLS[args.kv],
                block=block,
                chunk=args.chunk,
                pools=8 if args.whole else 2,
                launch=Launch(
                    warps=warps,
                    stages=stages,
                    registers=args.registers,
                    count_warps=args.count_warps,
                    count_programs=args.count_programs,
                ),
            )
            step.make_plan()
            if base is None:
                dense = DenseStep(step)
                base = time_graphs({"d": capture(lambda dense=dense: dense.run_layer(0))}, args.repeats)["d"][
                    "median_us"
                ]
                print(f"{case} FlashInfer {base:.1f} us a layer", flush=True)
            graphs = {str(i): capture(lambda i=i, step=step: step.run_layer(i)) for i in args.layers}
            if args.whole:
                graphs["ours"] = capture(step.run)
                graphs["dense"] = capture(DenseStep(step).run)
            times = time_graphs(graphs, args.repeats)
            if args.whole:
                ours, all_dense = times["ours"]["median_us"], times["dense"]["median_us"]
                print(
                    f"  all layers: {ours:.0f} us, FlashInfer {all_dense:.0f} us, {all_dense / ours:.2f}x", flush=True
                )
            shown = " ".join(f"{times[str(i)]['median_us']:8.1f}" for i in args.layers)
            print(f"{case} block {block} warps {warps} stages {stages} per_sm {per_sm}: {shown}", flush=True)
            if args.profile:
                for i in args.layers:
                    kernels = kernel_times(graphs[str(i)])
                    print(f"  layer {i}:", {name: round(k["us"], 1) for name, k in kernels.items()}, flush=True)
            del step, graphs
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
