"""The Triton kernels of a hybrid layer against the definition in float64."""

from dataclasses import replace

import pytest
import torch

from lychee_kernels.hybrid_decode.triton import Launch
from lychee_kernels.layout import Mode
from lychee_kernels.testing import assert_close_to_float64
from tests.ops.triton_cases import DTYPES, POOLS, Case, random_case

pytestmark = [pytest.mark.gpu, pytest.mark.interpret]


def assert_agrees(case: Case, launch: Launch | None = None) -> None:
    """Output, log-sum-exp, counts and recall; the set may differ among weights that differ by less than 1/32."""
    result, sets = case.fast(launch)
    expected, expected_sets = case.float64()
    eager = case.eager()
    assert_close_to_float64(result.out, expected.out, eager=eager.out, slack=2e-3)
    assert_close_to_float64(result.lse, expected.lse, eager=eager.lse, slack=2e-3)
    torch.testing.assert_close(result.recall_sum, expected.recall_sum, atol=2e-3, rtol=2e-3)
    assert result.recall_heads.tolist() == expected.recall_heads.tolist()
    assert result.attended.tolist() == expected.attended.tolist()
    for root in (w for w in case.heads.writes if w >= 0):
        for b in range(len(case.rows)):
            if not case.rows.dense[b]:
                assert sets.counts[b, root] == expected_sets.counts[b, root]
                count = int(sets.counts[b, root])
                positions = sets.positions[b, root, :count]
                assert (positions.diff() > 0).all(), "positions must rise"
                same = torch.isin(positions, expected_sets.positions[b, root, :count]).sum().item()
                assert same >= count - max(2, count // 10)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("roles", ["RRR", "RSS", "SSS", "NRS", "SR"])
def test_a_batch_of_very_different_rows(dtype: torch.dtype, roles: str, generator: torch.Generator) -> None:
    lengths, budgets = [1, 300, 37, 130], [-1, 40, 16, -1]
    assert_agrees(random_case(generator, lengths, roles, budgets=budgets, dtype=dtype))


@pytest.mark.parametrize("group", [1, 4, 7, 16])
def test_group_sizes(group: int, generator: torch.Generator) -> None:
    assert_agrees(random_case(generator, [90, 33], "RS", budgets=[24, 20], group=group))


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("programs", [1, 2, 33])
def test_any_number_of_programs(head_dim: int, programs: int, generator: torch.Generator) -> None:
    case = random_case(generator, [257, 64, 15], "RSN", budgets=[60, 30, 12], head_dim=head_dim, programs=programs)
    assert_agrees(case)


def test_a_set_of_one_token_and_an_empty_set(generator: torch.Generator) -> None:
    case = random_case(generator, [50, 50], "RS", budgets=[1, 2])
    case.sets.counts[:, 2:] = 0
    assert_agrees(case)


def test_unaudited_rows_report_no_recall(generator: torch.Generator) -> None:
    case = random_case(generator, [50, 40], "RS", budgets=[10, 10], recall_every=0)
    result, _ = case.fast()
    assert result.recall_heads.tolist() == [0, 0]
    assert result.recall_sum.tolist() == [0.0, 0.0]
    assert_agrees(case)


def test_modes(generator: torch.Generator) -> None:
    assert_agrees(random_case(generator, [200, 90], "RS", budgets=[0, 0], mode=Mode.RATIO, value=0.25))
    result, sets = random_case(generator, [200], "R", budgets=[0], mode=Mode.THRESHOLD, value=0.01).fast()
    assert 8 <= int(sets.counts[0, 0]) <= 110
    assert result.out.isfinite().all()


def test_more_rows_than_a_warp_has_lanes_and_more_chunks_than_programs(generator: torch.Generator) -> None:
    lengths = torch.randint(1, 30, (70,), generator=generator).tolist()
    budgets = [(-1, 4, 12)[row % 3] for row in range(70)]
    case = random_case(generator, lengths, "RS", budgets=budgets, group=1, chunk=16)
    assert_agrees(case, Launch(count_programs=2))


@pytest.mark.parametrize(
    ("pool", "dtype", "scales"),
    [(POOLS[0], DTYPES[0], (1.0, 1.0)), (POOLS[0], DTYPES[1], (0.02, 3.0)), (POOLS[1], DTYPES[0], (0.02, 3.0))],
)
def test_a_pool_of_eight_bits(
    pool: torch.dtype, dtype: torch.dtype, scales: tuple[float, float], generator: torch.Generator
) -> None:
    lengths, budgets = [1, 150, 37], [-1, 40, 16]
    assert_agrees(random_case(generator, lengths, "RSN", budgets=budgets, dtype=dtype, pool=pool, scales=scales))


def test_keys_of_eight_bits_under_queries_that_float16_cannot_hold(generator: torch.Generator) -> None:
    case = random_case(generator, [120, 40], "RS", budgets=[30, 20], dtype=DTYPES[1], pool=POOLS[0])
    case.inputs.q.mul_(2.0**21)
    case.inputs.q[:, 0] = 0
    assert_agrees(replace(case, scales=(2.0**-21, 1.0)))


def test_twice_gives_the_same_bits(generator: torch.Generator) -> None:
    case = random_case(generator, [300, 120], "RRS", budgets=[64, 32])
    (first, first_sets), (second, second_sets) = case.fast(), case.fast()
    assert torch.equal(first.out, second.out)
    assert torch.equal(first_sets.positions, second_sets.positions)
