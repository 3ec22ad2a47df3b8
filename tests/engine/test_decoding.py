"""The CPU backend at work without a server: a toy model decodes over its pool, with policies and with correction."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lychee_kernels.hybrid_decode import hybrid_decode
from lychee_sgl.backend import cpu_attention, hooks
from lychee_sgl.backend.ranks import Ranks
from lychee_sgl.config import EngineConfig
from lychee_sgl.heads.plan import HeadPlan, ModelShape, PlanDefaults

pytestmark = pytest.mark.filterwarnings("ignore")  # SGLang warns while it is imported where there is no GPU

LAYERS, HEADS, GROUP, SIZE, WIDTH = 3, 2, 2, 8, 32
SHAPE = ModelShape("toy", "LlamaForCausalLM", LAYERS, HEADS * GROUP, HEADS, SIZE)
PLAN = HeadPlan("toy", SHAPE, ("RR", "RS", "SS"), {}, PlanDefaults(budget=512, sinks=2, recent=3))
PROMPT, TOKENS = 40, 18


class Pool:
    """Keys and values by slot, as SGLang's pool gives and takes them."""

    def __init__(self, slots: int) -> None:
        self.keys, self.values = torch.full((2, LAYERS, slots, HEADS, SIZE), torch.nan)

    def get_key_buffer(self, layer: int) -> torch.Tensor:
        return self.keys[layer]

    def get_value_buffer(self, layer: int) -> torch.Tensor:
        return self.values[layer]

    def set_kv_buffer(
        self, layer: SimpleNamespace, where: object, k: torch.Tensor, v: torch.Tensor, *scales: object
    ) -> None:
        assert scales == (None, None)
        slots = where.loc  # type: ignore[attr-defined]
        self.keys[layer.layer_id, slots] = k.view(-1, HEADS, SIZE)
        self.values[layer.layer_id, slots] = v.view(-1, HEADS, SIZE)


class Toy:
    """A transformer of three layers on the backend, and requests that are prefilled and then decode given tokens."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cpu_attention, "hybrid_decode", hybrid_decode)  # the definition: nothing to compile
        generator = torch.Generator().manual_seed(3)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator) * 0.4

        self.embedding, self.out = draw(200, WIDTH) * 3, draw(LAYERS, HEADS * GROUP * SIZE, WIDTH)
        self.q, self.k, self.v = (draw(LAYERS, WIDTH, n * SIZE) for n in (HEADS * GROUP, HEADS, HEADS))
        self.pool, self.table = Pool(400), torch.zeros(9, 100, dtype=torch.int32)
        self.runner = SimpleNamespace(
            device="cpu", req_to_token_pool=SimpleNamespace(req_to_token=self.table), token_to_kv_pool=self.pool,
            model_config=SimpleNamespace(context_len=100), server_args=SimpleNamespace(chunked_prefill_size=-1),
        )  # fmt: skip
        config = EngineConfig(dense_below=0, recall_every=1, rival_policies=True)
        chosen = SimpleNamespace(plan=PLAN)
        self.runner.lychee = cpu_attention.LycheeCpuBackend(self.runner, chosen, config, Ranks())  # type: ignore[arg-type]
        self.free = torch.randperm(400, generator=generator).tolist()
        self.extends: list[list[int]] = []

    def forward(self, _runner: object, batch: object) -> SimpleNamespace:
        backend, decodes = self.runner.lychee, batch.forward_mode.is_decode()  # type: ignore[attr-defined]
        backend.init_forward_metadata(batch)
        if not decodes:
            self.extends.append(batch.seq_lens.tolist())  # type: ignore[attr-defined]
        x = self.embedding[batch.input_ids]  # type: ignore[attr-defined]
        for number in range(LAYERS):
            layer = SimpleNamespace(
                layer_id=number, tp_q_head_num=HEADS * GROUP, qk_head_dim=SIZE, scaling=0.35, k_scale=None, v_scale=None
            )
            attend = backend.forward_decode if decodes else backend.forward_extend
            parts = (x @ weights[number] for weights in (self.q, self.k, self.v))
            x = x + torch.tanh(attend(*parts, layer, batch) @ self.out[number])
        return SimpleNamespace(logits_output=SimpleNamespace(customized_info=None), x=x)

    def step(self, reqs: list[SimpleNamespace], mode: str, new: int) -> SimpleNamespace:
        """One pass over the last `new` tokens of each request's `tokens`, through the plug-in's own hooks."""
        from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode

        ends = [len(req.tokens) for req in reqs]
        for req, end in zip(reqs, ends, strict=True):
            taken = [self.free.pop() for _ in range(new)]
            self.table[req.req_pool_idx, end - new : end] = torch.tensor(taken, dtype=torch.int32)
        batch = ForwardBatch(
            forward_mode=ForwardMode[mode], batch_size=len(reqs), seq_lens=torch.tensor(ends), seq_lens_sum=sum(ends),
            input_ids=torch.tensor([token for req in reqs for token in req.tokens[-new:]]),
            req_pool_indices=torch.tensor([req.req_pool_idx for req in reqs]), seq_lens_cpu=torch.tensor(ends),
            out_cache_loc=torch.cat([self.table[r.req_pool_idx, e - new : e] for r, e in zip(reqs, ends, strict=True)])
            .long(), positions=torch.cat([torch.arange(end - new, end) for end in ends]),
            extend_prefix_lens_cpu=[end - new for end in ends], extend_seq_lens_cpu=[new] * len(reqs),
        )  # fmt: skip
        hooks.after_init_new(batch, ForwardBatch, SimpleNamespace(reqs=reqs), self.runner)
        return hooks.around_forward(self.forward, self.runner, batch)  # type: ignore[no-any-return]


def request(slot: int, seed: int, **asked: object) -> SimpleNamespace:
    prompt = torch.randint(0, 200, (PROMPT,), generator=torch.Generator().manual_seed(seed)).tolist()
    params = {f"lychee_{key}": value for key, value in asked.items()}
    sampling = SimpleNamespace(custom_params=params, max_new_tokens=99)
    return SimpleNamespace(
        req_pool_idx=slot, origin_input_ids=prompt, output_ids=[], tokens=[*prompt], sampling_params=sampling
    )


def decode(toy: Toy, reqs: list[SimpleNamespace]) -> tuple[torch.Tensor, list[list[tuple[object, ...]]]]:
    """Prefills and then decodes the same tokens whoever asks; the last hidden states [tokens, B, width], the steps."""
    toy.step(reqs, "EXTEND", PROMPT)
    toy.extends.clear()
    states, steps = [], []
    for i in range(TOKENS):
        for req in reqs:
            req.output_ids.append(7 * i % 200)
            req.tokens.append(7 * i % 200)
        output = toy.step(reqs, "DECODE", 1)
        states.append(output.x)
        rows = output.logits_output.customized_info["lychee"]
        steps.append([rows[b] for b in range(len(reqs))])
    return torch.stack(states), steps


def keys_of(toy: Toy, slot: int, start: int, end: int) -> torch.Tensor:
    slots = toy.table[slot, start:end].long()
    return torch.cat([toy.pool.keys[:, slots], toy.pool.values[:, slots]])


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    return Toy(monkeypatch)


def test_dense_decoding_does_not_change_when_it_is_corrected(toy: Toy) -> None:
    plain, _ = decode(toy, [request(1, 0, budget="dense")])
    corrected, steps = decode(toy, [request(2, 0, budget="dense", cache_correction=5)])
    torch.testing.assert_close(corrected, plain, atol=1e-4, rtol=1e-4)
    assert toy.extends == [[45], [50], [55]]
    assert [(i, row[0][7], row[0][8]) for i, row in enumerate(steps) if len(row[0]) > 7] == [
        (5, 5, 45 * 6), (10, 5, 50 * 6), (15, 5, 55 * 6),
    ]  # fmt: skip


def test_corrected_keys_and_values_are_those_of_dense_decoding(toy: Toy) -> None:
    """Beside an uncorrected row and a dense one in the same batch; the newest tokens are still sparse ones'."""
    budget = {"budget": 12}
    reqs = [request(1, 0, budget="dense"), request(2, 0, **budget), request(3, 0, **budget, cache_correction=5)]
    decode(toy, reqs)
    dense, sparse, corrected = (keys_of(toy, slot, PROMPT, PROMPT + 15) for slot in (1, 2, 3))
    assert (sparse - dense).abs().max() > 0.05, "the budget is too large for a difference"
    torch.testing.assert_close(corrected, dense, atol=1e-4, rtol=1e-4)
    newest = [keys_of(toy, slot, PROMPT + 15, PROMPT + TOKENS) for slot in (1, 3)]
    assert (newest[0] - newest[1]).abs().max() > 0.01
    # the prompt's, which others may share, were not touched
    torch.testing.assert_close(keys_of(toy, 3, 0, PROMPT), keys_of(toy, 1, 0, PROMPT))


@pytest.mark.parametrize("policy", ["plan", "block", "window", "random", "quest", "oracle"])
def test_a_policy_reads_what_its_definition_says_beside_others(toy: Toy, policy: str) -> None:
    asked = {"budget": 12, "policy": policy}
    alone, steps = decode(toy, [request(1, 0, **asked)])
    others = [request(2, 1, budget=9), request(4, 2, budget="dense"), request(5, 3, budget=20, policy="quest")]
    together, _ = decode(toy, [others[0], request(3, 0, **asked), *others[1:]])
    # products of a batch round otherwise, and layers and tokens amplify it; another policy differs by a tenth
    torch.testing.assert_close(together[:, 1], alone[:, 0], atol=5e-3, rtol=0)
    for number, (row,) in enumerate(steps):
        n = PROMPT + number + 1
        read = {"quest": 4 * n + 2 * (12 + -(-n // 16)), "plan": 3 * n + 3 * 12, "block": 3 * n + 3 * 12}
        assert row[0] == read.get(policy, 6 * 12)
        assert 0 < row[5] <= 1 + 1e-6


@pytest.mark.parametrize("mode", ["forward_decode", "forward_extend"])
def test_what_a_model_asks_beyond_q_k_and_v_is_not_left_out(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    attend = getattr(Toy(monkeypatch).runner.lychee, mode)
    with pytest.raises(NotImplementedError, match="has no sinks"):
        attend(*[torch.zeros(1, 8)] * 3, SimpleNamespace(), SimpleNamespace(), sinks=torch.zeros(4), idx_q=None)
