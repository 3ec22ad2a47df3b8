"""Dense attention of new tokens on the CPU against float64, with and without a prefix."""

import pytest
import torch

from lychee_kernels.testing import assert_close_to_float64
from lychee_sgl.cpu.extend import extend, merge


def draw(tokens: int, prefix: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    slots = torch.randperm(2 * (tokens + prefix) + 3)[: tokens + prefix]
    pool = torch.full((2, 2 * (tokens + prefix) + 3, 2, 16), torch.nan, dtype=dtype)
    pool[:, slots] = torch.randn(2, tokens + prefix, 2, 16).to(dtype)
    return torch.randn(tokens, 6, 16).to(dtype), pool[0], pool[1], slots


def causal_attention(q, k, v, slots, prefix, scale, dtype):
    keys, values = (pool[slots].to(dtype).repeat_interleave(3, dim=1) for pool in (k, v))
    scores = torch.einsum("thd,nhd->htn", q.to(dtype), keys) * scale
    position = torch.arange(len(slots))
    hidden = position[None] > (prefix + torch.arange(len(q)))[:, None]
    return torch.einsum("htn,nhd->thd", scores.masked_fill(hidden, -torch.inf).softmax(-1), values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize(("tokens", "prefix"), [(1, 0), (7, 0), (130, 0), (1, 9), (33, 64), (5, 257)])
def test_new_tokens_see_the_prefix_and_themselves(tokens: int, prefix: int, dtype: torch.dtype) -> None:
    q, k, v, slots = draw(tokens, prefix, dtype)
    exact = causal_attention(q, k, v, slots, prefix, 0.25, torch.float64)
    eager = causal_attention(q, k, v, slots, prefix, 0.25, torch.float32).to(dtype)
    assert_close_to_float64(extend(q, k, v, slots, prefix, 0.25), exact, eager=eager)


def test_merging_two_halves_gives_the_whole() -> None:
    scores, values = torch.randn(4, 10).double(), torch.randn(10, 3).double()
    parts = [(scores[:, p].softmax(-1) @ values[p], scores[:, p].logsumexp(-1)) for p in (slice(0, 6), slice(6, 10))]
    out, lse = merge(*parts)
    torch.testing.assert_close(out, scores.softmax(-1) @ values)
    torch.testing.assert_close(lse, scores.logsumexp(-1))
