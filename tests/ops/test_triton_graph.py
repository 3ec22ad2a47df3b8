"""Two layers in a CUDA graph: what is replayed with other lengths and budgets equals what runs without a graph."""

import pytest
import torch

from lychee_kernels.decode_plan.api import PlanRules
from lychee_kernels.decode_plan.triton import plan_decode
from lychee_kernels.hybrid_decode.triton import Launch, attend_layer, select_layer
from lychee_kernels.layout import LayerHeads
from lychee_kernels.work import DecodePlan, LayerTable, WorkShape, Workspace

pytestmark = pytest.mark.gpu

SHAPE = WorkShape(kv_heads=4, group=4, head_dim=128, block=128, programs=264, chunk=2048, patterns=(1, 4))
LAYERS = (
    LayerHeads(writes=(0, 1, 2, 3), reads=(-1, -1, -1, -1)),
    LayerHeads(writes=(-1, -1, -1, -1), reads=(-1, 1, 2, 0)),
)
LONGEST, ROWS = 9000, 3


class Step:
    """Static memory of a step, as a server keeps it: the plan is made outside, the layers may be captured."""

    def __init__(self) -> None:
        device = "cuda"
        pool = (ROWS * LONGEST + 1, 4, 128)
        self.keys = [torch.randn(pool, device=device, dtype=torch.bfloat16) for _ in LAYERS]
        self.values = [torch.randn(pool, device=device, dtype=torch.bfloat16) for _ in LAYERS]
        self.queries = [torch.randn((ROWS, 16, 128), device=device, dtype=torch.bfloat16) for _ in LAYERS]
        self.outs = [torch.empty_like(q) for q in self.queries]
        self.slots = torch.randperm(ROWS * LONGEST, device=device, dtype=torch.int32) + 1
        self.plan = DecodePlan.empty(ROWS, len(SHAPE.patterns), device)
        self.tables = [LayerTable.build(heads, SHAPE.patterns, device) for heads in LAYERS]
        self.patterns = torch.tensor(SHAPE.patterns, dtype=torch.int32, device=device)
        self.lse = torch.empty((ROWS, 16), device=device)
        self.selection = torch.cuda.Stream()
        self.workspace = Workspace.empty(
            SHAPE,
            max_rows=ROWS,
            layers=len(LAYERS),
            roots=4,
            writers=4,
            set_capacity=ROWS * LONGEST,
            score_capacity=-(-ROWS * LONGEST // 16) * 16,
            device=device,
        )

    def make_plan(self, lengths: list[int], budgets: list[int]) -> None:
        params = [[0, budget, 64, 256, n - 1] for budget, n in zip(budgets, lengths, strict=True)]
        plan_decode(
            torch.arange(ROWS, device="cuda"),
            torch.tensor(lengths, device="cuda"),
            torch.tensor(params, dtype=torch.int32, device="cuda"),
            torch.zeros(ROWS, dtype=torch.float64, device="cuda"),
            PlanRules(recall_every=2**30),
            SHAPE,
            self.plan,
            self.patterns,
        )

    def run(self) -> None:
        launch, selecting = Launch(), False
        for i, table in enumerate(self.tables):
            if selecting:
                torch.cuda.current_stream().wait_stream(self.selection)
            attend_layer(
                self.queries[i],
                self.keys[i],
                self.values[i],
                self.slots,
                table,
                self.plan,
                self.workspace,
                SHAPE,
                0.09,
                self.outs[i],
                self.lse,
                recall=self.workspace.recall[:, i],
                launch=launch,
            )
            if table.writers:
                self.selection.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(self.selection):
                    select_layer(
                        self.lse,
                        self.slots,
                        table,
                        self.plan,
                        self.workspace,
                        SHAPE,
                        max_context=LONGEST,
                        launch=launch,
                    )
                selecting = True

    def results(self) -> list[torch.Tensor]:
        torch.cuda.synchronize()
        counts, recall = self.workspace.set_counts, self.workspace.recall
        return [tensor.clone() for tensor in (*self.outs, counts, recall)]


def test_replays_with_other_lengths_and_budgets_equal_eager_runs() -> None:
    step = Step()
    cases = [([1, 1, 1], [-1, -1, -1]), ([9000, 700, 5000], [512, 64, -1]), ([300, 8999, 4097], [-1, 4096, 1024])]
    eager = []
    for lengths, budgets in cases:
        step.make_plan(lengths, budgets)
        step.run()
        eager.append(step.results())
    step.make_plan(*cases[0])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step.run()
    for (lengths, budgets), expected in [*zip(cases, eager, strict=True)][::-1]:
        for out in step.outs:
            out.fill_(torch.nan)
        step.make_plan(lengths, budgets)
        graph.replay()
        sparse = torch.tensor([budget != -1 for budget in budgets], device="cuda")
        for got, want in zip(step.results(), expected, strict=True):
            # what a dense row's sets and recall hold is of no meaning
            rows = slice(None) if got.dim() == 3 and got.shape[-1] == 128 else sparse
            assert torch.equal(got[rows], want[rows])
