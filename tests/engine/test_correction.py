"""Cache correction: when tokens are run again, with what batch, and how that is counted."""

from __future__ import annotations

from array import array
from types import SimpleNamespace

import pytest
import torch

from lychee_kernels.layout import Mode
from lychee_sgl.backend import factory, hooks
from lychee_sgl.backend.correction import (
    Corrected,
    CorrectedSteps,
    Due,
    Schedule,
    Stopwatch,
    extend_batch,
    passes,
    refusals,
)
from lychee_sgl.backend.hybrid import HybridHeads
from lychee_sgl.backend.request import BudgetRequest, RowSpec, resolve
from lychee_sgl.backend.results import HostSteps
from lychee_sgl.backend.rows import RowTable
from lychee_sgl.backend.summary import Step, Times, summarise
from lychee_sgl.heads.plan import PlanDefaults

PROMPT = 10


def request(slot: int, output: int, prompt: int = PROMPT, **params: object) -> SimpleNamespace:
    """A request whose output so far is the numbers 100, 101, ..."""
    sampling = SimpleNamespace(custom_params={f"lychee_{k}": v for k, v in params.items()}, max_new_tokens=99)
    tokens = array("q", range(100, 100 + output))
    return SimpleNamespace(
        req_pool_idx=slot, origin_input_ids=[1] * prompt, output_ids=tokens, sampling_params=sampling
    )


def spans(schedule: Schedule, *rows: tuple[SimpleNamespace, int]) -> list[tuple[int, int, int]]:
    due = schedule.due([req for req, _ in rows], [length for _, length in rows])
    return [(each.row, each.start, each.end) for each in due]


def test_four_tokens_are_run_again_before_the_fifth_step() -> None:
    """A context of n has the current token at n - 1: the first four decoded ones stand at 10 to 13 when n is 15."""
    schedule = Schedule(4)
    schedule.admit([2], [4], [PROMPT])
    for length in range(11, 15):
        assert spans(schedule, (request(2, length - PROMPT), length)) == []
    assert spans(schedule, (request(2, 5), 15)) == [(0, 10, 14)]
    assert [spans(schedule, (request(2, n - PROMPT), n)) for n in range(16, 19)] == [[], [], []]
    assert spans(schedule, (request(2, 9), 19)) == [(0, 14, 18)]


def test_with_overlap_the_current_tokens_number_is_not_needed() -> None:
    """Of the step before nothing is known on the host yet: four numbers where the context has five."""
    schedule = Schedule(4)
    schedule.admit([1], [4], [PROMPT])
    (due,) = schedule.due([request(1, 4)], [15])
    assert due == Due(row=0, slot=1, start=10, tokens=[100, 101, 102, 103])


def test_a_number_that_is_not_known_yet_delays_the_correction_and_moves_no_border() -> None:
    schedule = Schedule(4)
    schedule.admit([1], [4], [PROMPT])
    assert spans(schedule, (request(1, 3), 15)) == []
    assert spans(schedule, (request(1, 5), 16)) == [(0, 10, 14)]
    assert spans(schedule, (request(1, 9), 19)) == [(0, 14, 18)]


def test_after_a_retraction_what_was_prefilled_again_is_dense() -> None:
    schedule = Schedule(4)
    schedule.admit([1], [4], [PROMPT])
    assert spans(schedule, (request(1, 5), 15)) == [(0, 10, 14)]
    schedule.admit([3], [4], [16])  # the prompt and six decoded tokens, in another slot
    assert spans(schedule, (request(3, 10), 20)) == []
    assert spans(schedule, (request(3, 11), 21)) == [(0, 16, 20)]
    (due,) = schedule.due([request(3, 15)], [25])
    assert due.tokens == [110, 111, 112, 113]


def test_chunks_of_a_prefill_move_the_border_to_the_last_ones_end() -> None:
    schedule = Schedule(2)
    for end in (4, 8, 10):
        schedule.admit([1], [4], [end])
    assert spans(schedule, (request(1, 5), 15)) == [(0, 10, 14)]


def test_rows_of_a_batch_are_due_for_themselves_and_a_reused_slot_inherits_nothing() -> None:
    schedule = Schedule(4)
    schedule.admit([1, 2, 3], [4, 0, 2], [10, 10, 10])
    rows = ((request(1, 5), 15), (request(2, 5), 15), (request(3, 5), 15))
    assert spans(schedule, *rows) == [(0, 10, 14), (2, 10, 12)]
    assert spans(schedule, *rows) == [(2, 12, 14)]
    schedule.admit([3], [0], [10])
    assert spans(schedule, (request(3, 9), 19)) == []


def test_nobody_looks_until_somebody_has_asked() -> None:
    schedule = Schedule(2)
    schedule.admit([1, 2], [0, 0], [10, 10])
    assert not schedule.asked
    schedule.admit([1], [8], [10])
    assert schedule.asked


def due(row: int, start: int, size: int) -> Due:
    return Due(row=row, slot=row + 1, start=start, tokens=[*range(500 + start, 500 + start + size)])


def test_a_pass_has_no_more_tokens_than_a_prefill() -> None:
    each = [due(0, 10, 4), due(1, 20, 4), due(2, 30, 8), due(3, 40, 20), due(4, 50, 1)]
    assert [[one.row for one in group] for group in passes(each, 10)] == [[0, 1], [2], [3], [4]]


@pytest.mark.filterwarnings("ignore")  # SGLang warns while it is imported where there is no GPU
def test_the_batch_that_runs_tokens_again_writes_into_the_slots_that_are_there() -> None:
    from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardBatch, ForwardMode

    decode = ForwardBatch(
        forward_mode=ForwardMode.DECODE,
        batch_size=3,
        input_ids=torch.tensor([7, 8, 9]),
        req_pool_indices=torch.tensor([1, 2, 3]),
        seq_lens=torch.tensor([15, 40, 26]),
        seq_lens_cpu=torch.tensor([15, 40, 26]),
        orig_seq_lens=torch.tensor([15, 40, 26], dtype=torch.int32),
        out_cache_loc=torch.tensor([70, 71, 72]),
        seq_lens_sum=81,
        positions=torch.tensor([14, 39, 25]),
        rids=["a", "b", "c"],
        lora_ids=[None, None, None],
        return_logprob=True,
        top_logprobs_nums=[1, 1, 1],
        sampling_info=SimpleNamespace(),
        capture_hidden_mode=CaptureHiddenMode.LAST,
    )
    table = torch.arange(4 * 50, dtype=torch.int32).view(4, 50)
    again = extend_batch(decode, [due(0, 10, 4), due(2, 22, 3)], table, (ForwardMode, CaptureHiddenMode))
    assert again.forward_mode is ForwardMode.EXTEND
    assert again.input_ids.tolist() == [510, 511, 512, 513, 522, 523, 524]
    assert again.positions.tolist() == [10, 11, 12, 13, 22, 23, 24]
    assert again.out_cache_loc.tolist() == [60, 61, 62, 63, 172, 173, 174]
    assert again.out_cache_loc.dtype == torch.int64
    assert (again.req_pool_indices.tolist(), again.seq_lens.tolist(), again.seq_lens_sum) == ([1, 3], [14, 25], 39)
    assert (again.extend_prefix_lens_cpu, again.extend_seq_lens_cpu) == ([10, 22], [4, 3])
    assert (again.extend_prefix_lens.tolist(), again.extend_seq_lens.tolist()) == ([10, 22], [4, 3])
    assert (again.extend_start_loc.tolist(), again.extend_num_tokens) == ([0, 4], 7)
    assert (again.rids, again.batch_size, again.num_token_non_padded_cpu) == (["a", "c"], 2, 7)
    assert (again.return_logprob, again.capture_hidden_mode) == (False, CaptureHiddenMode.NULL)
    assert (decode.batch_size, decode.input_ids.tolist()) == (3, [7, 8, 9])


def step(attended: int = 40) -> Step:
    return Step(attended, 100, 0, 10, 25, None, 2)


def test_a_correction_is_read_by_its_step_and_told_beside_it() -> None:
    watch = Stopwatch(torch.device("cpu"))
    watch._host = [1.0, 1.5]
    corrected = Corrected(entries={1: 84}, tokens={1: 4}, watches={1: (watch, 2)})
    steps = CorrectedSteps(HostSteps([step(), step()]), corrected)
    steps.start_copy()
    assert steps.sparse == [True, True]
    assert (steps[0], steps[1]) == (tuple(step()), (*step(124), 4, 84, 0.25))


def test_an_answer_adds_its_corrections_up() -> None:
    spec = RowSpec(mode=Mode.TOPK, budget=10, value=0.0, sinks=1, recent=1, cache_correction=4)
    got = summarise([[None, tuple(step()), (*step(124), 4, 84, 0.25), (*step(140), 4, 100, 0.5)]], spec, 29, Times())
    assert (got["attended_tokens"], got["dense_tokens"]) == (40 + 124 + 140, 300)
    assert (got["cache_correction"], got["corrected_tokens"], got["correction_seconds"]) == (4, 8, 0.75)
    plain = RowSpec(mode=Mode.TOPK, budget=10, value=0.0, sinks=1, recent=1)
    assert "cache_correction" not in summarise([[None, tuple(step())]], plain, 29, Times())


class Pool:
    req_to_token = torch.arange(5 * 50, dtype=torch.int32).view(5, 50)


def backend(**attributes: object) -> HybridHeads:
    made = HybridHeads()
    made.context_window, made.req_to_token_pool, made._pass_tokens = 8192, Pool(), 100
    made.plan, made.table = SimpleNamespace(defaults=PlanDefaults(budget=512)), RowTable(4, "cpu")
    made.schedule, made.heads = Schedule(4), [SimpleNamespace(reads=(-1, -1))] * 3
    made.all_heads = 6
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("attributes", "params", "expected"),
    [
        ({}, {}, 0),
        ({}, {"cache_correction": 8}, 8),
        ({"correction": 32}, {}, 32),
        ({"correction": 32}, {"cache_correction": 0}, 0),
        ({"_uncorrectable": True}, {"cache_correction": 8}, 0),
        ({"correction": 32}, {"budget": "nonsense"}, 32),
    ],
)
def test_how_often_a_request_is_corrected(attributes, params, expected) -> None:
    made = backend(**attributes)
    made.admit([request(1, 0, **params)], [PROMPT])
    assert made.schedule._every[1] == expected


@pytest.mark.filterwarnings("ignore")
def test_a_decode_step_is_preceded_by_its_corrections_and_an_extend_by_none() -> None:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode

    made, order = backend(), []
    reqs = [request(1, 5, cache_correction=4), request(2, 5)]
    made.admit(reqs, [PROMPT, PROMPT])
    made.batch_reqs = reqs
    made.take_results = lambda: HostSteps([step(), step()])
    fields = {"req_pool_indices": torch.tensor([1, 2]), "seq_lens": torch.tensor([15, 15])}
    decode = ForwardBatch(
        forward_mode=ForwardMode.DECODE, batch_size=2, input_ids=torch.tensor([7, 8]),
        out_cache_loc=torch.tensor([3, 4]), seq_lens_sum=30, positions=torch.tensor([14, 14]), **fields,
    )  # fmt: skip

    def forward(_runner: object, batch: ForwardBatch) -> SimpleNamespace:
        order.append((batch.forward_mode, batch.seq_lens.tolist()))
        return SimpleNamespace(logits_output=SimpleNamespace(customized_info=None))

    output = hooks.around_forward(forward, SimpleNamespace(lychee=made), decode)
    assert order == [(ForwardMode.EXTEND, [14]), (ForwardMode.DECODE, [15, 15])]
    rows = output.logits_output.customized_info["lychee"]
    # 14 tokens in three layers of two heads
    assert rows[0][:9] == (*step(40 + 14 * 6), 4, 14 * 6)
    assert rows[1] == tuple(step())
    made.batch_reqs = reqs
    assert made.correct(lambda _: None, SimpleNamespace(forward_mode=ForwardMode.EXTEND)) is None


def test_a_batch_nobody_of_which_wants_correction_is_not_looked_through() -> None:
    """Once any request has asked, every step asks: by the slots alone, for neither lengths nor tokens are here."""
    schedule = Schedule(4)
    schedule.admit([1, 2], [4, 0], [PROMPT, PROMPT])
    assert [schedule.wanted([SimpleNamespace(req_pool_idx=slot) for slot in slots]) for slots in ([2, 3], [3, 1])] == [
        False,
        True,
    ]


@pytest.mark.filterwarnings("ignore")
def test_a_step_without_statistics_may_have_a_correction_before_it() -> None:
    """As a GPU's is where SGLang keeps no copy of the lengths on the host."""
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    made = backend(correct=lambda *_: Corrected(entries={0: 84}, tokens={0: 4}, watches={}), take_results=lambda: None)
    made.batch_reqs = [request(1, 5)]
    output = SimpleNamespace(logits_output=SimpleNamespace(customized_info=None))
    step = SimpleNamespace(forward_mode=ForwardMode.DECODE)
    hooks.around_forward(lambda *_: output, SimpleNamespace(lychee=made), step)
    assert output.logits_output.customized_info == {"lychee": [None]}


@pytest.mark.parametrize("every", [-1, 1025, 2.0, True, "32"], ids=str)
def test_a_distance_that_is_not_allowed(every: object) -> None:
    message = f"lychee_cache_correction is {every!r}, allowed: a whole number from 0 to 1024"
    with pytest.raises(ValueError, match=message):
        BudgetRequest.from_custom_params({"lychee_cache_correction": every}, 8192)


def test_the_engines_default_holds_where_a_request_says_nothing() -> None:
    defaults = PlanDefaults(budget=512)
    assert resolve(BudgetRequest(), defaults, 10, cache_correction=16).cache_correction == 16
    assert resolve(BudgetRequest(cache_correction=0), defaults, 10, cache_correction=16).cache_correction == 0


def test_what_an_extend_of_our_own_would_leave_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SimpleNamespace(model_is_mrope=False)
    assert not any(refused for refused, _ in refusals(SimpleNamespace(), model))
    args = SimpleNamespace(enable_lora=True)
    assert [what for refused, what in refusals(args, model) if refused] == ["--enable-lora"]
    padded = SimpleNamespace(moe_a2a_backend="deepep", moe_dense_tp_size=1)
    expected = ["--moe-a2a-backend deepep", "--moe-dense-tp-size 1"]
    assert [what for refused, what in refusals(padded, model) if refused] == expected
    assert not any(refused for refused, _ in refusals(SimpleNamespace(moe_a2a_backend="none"), model))
    monkeypatch.setenv("LYCHEE_CACHE_CORRECTION", "32")
    monkeypatch.setattr(hooks, "missing", list)
    monkeypatch.setattr(factory, "check_server_args", lambda _: None)
    with pytest.raises(factory.BackendRefused, match="LYCHEE_CACHE_CORRECTION is 32, allowed with --enable-lora: 0"):
        factory.create_backend(SimpleNamespace(server_args=args, model_config=model))
