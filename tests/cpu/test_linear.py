"""Matrix products of several bfloat16 tokens: widened, and no less exact than torch's own."""

from types import SimpleNamespace

import pytest
import torch

from lychee_kernels.testing import assert_close_to_float64
from lychee_sgl.cpu import linear, threads
from lychee_sgl.memory.gate import GATES


def original(method, layer, x, bias=None):
    assert method == "method"
    return torch.nn.functional.linear(x, layer.weight, bias)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tokens", [1, 2, 9])
def test_products_err_no_more_than_torch(tokens: int, bias: bool) -> None:
    layer = SimpleNamespace(weight=torch.randn(24, 40).bfloat16())
    x, b = torch.randn(tokens, 40).bfloat16(), torch.randn(24).bfloat16() if bias else None
    exact = torch.nn.functional.linear(x.double(), layer.weight.double(), None if b is None else b.double())
    actual = linear.apply(original, "method", layer, x, b)
    assert actual.dtype == torch.bfloat16
    assert_close_to_float64(actual, exact, eager=original("method", layer, x, b))


@pytest.mark.parametrize(
    ("tokens", "dtype", "left_alone"), [(1, "bfloat16", True), (2, "bfloat16", False), (9, "float32", True)]
)
def test_single_tokens_and_other_dtypes_are_left_to_torch(tokens: int, dtype: str, left_alone: bool) -> None:
    calls = []
    layer = SimpleNamespace(weight=torch.randn(4, 8).to(getattr(torch, dtype)))
    spy = lambda *args: calls.append(args) or original(*args)  # noqa: E731
    linear.apply(spy, "method", layer, torch.randn(tokens, 8).to(getattr(torch, dtype)))
    assert bool(calls) == left_alone


def test_threads_come_back_after_an_error() -> None:
    before = torch.get_num_threads()

    def fail() -> None:
        with threads.torch_threads(before + 1):
            raise RuntimeError(f"inside on {torch.get_num_threads()}")

    with pytest.raises(RuntimeError, match=f"inside on {before + 1}"):
        fail()
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("extend", "tokens", "expected"), [(True, 64, 3), (True, 63, 1), (False, 64, 1)])
def test_only_large_prefills_get_the_threads(monkeypatch, extend: bool, tokens: int, expected: int) -> None:
    monkeypatch.setenv("LYCHEE_PREFILL_THREADS", "3")
    batch = SimpleNamespace(forward_mode=SimpleNamespace(is_extend=lambda: extend), input_ids=torch.zeros(tokens))
    with threads.torch_threads(1):
        found = threads.around_forward(lambda *_: torch.get_num_threads(), SimpleNamespace(), batch)
        assert found == expected


def test_settings_are_read_once_not_with_each_prefill(monkeypatch, tmp_path) -> None:
    """A gate file that is gone by the second prefill does not end the scheduler."""
    gate, runner = tmp_path / "gate.json", SimpleNamespace()
    gate.write_text((GATES / "words.json").read_text())
    monkeypatch.setenv("LYCHEE_MEMORY_GATE", str(gate))
    monkeypatch.setenv("LYCHEE_PREFILL_THREADS", "2")
    batch = SimpleNamespace(forward_mode=SimpleNamespace(is_extend=lambda: True), input_ids=torch.zeros(64))
    with threads.torch_threads(1):
        for _ in range(2):
            assert threads.around_forward(lambda *_: torch.get_num_threads(), runner, batch) == 2
            gate.unlink(missing_ok=True)
