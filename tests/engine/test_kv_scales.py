"""Keys and values that go through SGLang's pool of eight bits come back through the definition, scales and all."""

from types import SimpleNamespace

import pytest
import torch

from lychee_kernels.hybrid_decode import hybrid_decode
from lychee_kernels.layout import TokenSets
from lychee_kernels.testing import layer, make_rows
from lychee_sgl import compat

pytestmark = pytest.mark.filterwarnings("ignore")  # SGLang warns while it is imported where there is no GPU


def attention_layer(k_scale: float | None, v_scale: float | None) -> SimpleNamespace:
    """What SGLang's RadixAttention has of it, once a checkpoint is loaded."""
    device = {f"{name}_scale": None if s is None else torch.tensor(s) for name, s in (("k", k_scale), ("v", v_scale))}
    return SimpleNamespace(layer_id=0, k_scale_float=k_scale, v_scale_float=v_scale, **device)


@pytest.mark.parametrize("scales", [(None, None), (0.25, 4.0)])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float8_e4m3fn, 0.1), (torch.float8_e5m2, 0.2)])
def test_what_is_written_is_read(dtype: torch.dtype, error: float, scales: tuple[float | None, float | None]) -> None:
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

    pool = MHATokenToKVPool(
        size=64, page_size=16, dtype=dtype, head_num=2, head_dim=64, layer_num=1, device="cpu",
        enable_memory_saver=False,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    keys, values = (torch.randn(40, 2, 64, generator=generator, dtype=torch.bfloat16) for _ in range(2))
    q = torch.randn(1, 4, 64, generator=generator, dtype=torch.bfloat16)
    at, slots = attention_layer(*scales), torch.randperm(64, generator=generator)[:40]
    compat.write_kv(pool, at, slots, keys.clone(), values.clone())
    k_buffer, v_buffer = pool.get_kv_buffer(0)
    assert k_buffer.dtype == dtype
    k_scale, v_scale = compat.kv_scales(at)
    result = hybrid_decode(
        q, k_buffer, v_buffer, torch.tensor([0, 40]), slots, layer("RR"), TokenSets.empty(1, 2, 8),
        make_rows(1, budget=8), 0.125, k_scale=k_scale, v_scale=v_scale,
    )  # fmt: skip
    grouped = q.double().view(1, 2, 2, 64)
    weights = (torch.einsum("bhgd,nhd->bhgn", grouped, keys.double()) * 0.125).softmax(-1)
    expected = torch.einsum("bhgn,nhd->bhgd", weights, values.double()).reshape(1, 4, 64)
    assert (result.out.double() - expected).norm() < error * expected.norm()


def test_a_pool_of_sixteen_bits_takes_no_scales() -> None:
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

    pool = MHATokenToKVPool(
        size=16, page_size=1, dtype=torch.bfloat16, head_num=1, head_dim=64, layer_num=1, device="cpu",
        enable_memory_saver=False,
    )  # fmt: skip
    keys = torch.randn(2, 1, 64).bfloat16()
    compat.write_kv(pool, attention_layer(0.5, 0.5), torch.tensor([3, 7]), keys.clone(), keys.clone())
    assert torch.equal(pool.get_kv_buffer(0)[0][torch.tensor([3, 7])], keys)


@pytest.mark.parametrize(
    ("version", "scales", "loses"),
    [
        ((0, 5, 17), (0.5, 1.0), True),
        ((0, 5, 17), (1.0, 1.0), False),
        ((0, 5, 17), (None, None), False),
        ((0, 5, 23), (0.5, 2.0), False),
    ],
)
def test_a_prefill_that_would_lose_scales_is_known(
    monkeypatch: pytest.MonkeyPatch,
    version: tuple[int, ...],
    scales: tuple[float | None, float | None],
    loses: bool,
) -> None:
    monkeypatch.setattr(compat, "sglang_version", lambda: version)
    assert compat.loses_scales([attention_layer(None, None), attention_layer(*scales)]) is loses
