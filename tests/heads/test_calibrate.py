"""Calibration and scoring, end to end on a tiny model."""

from pathlib import Path

import pytest
import torch

from lychee_sgl.heads.calibrate import Settings, calibrate, measured_gains
from lychee_sgl.heads.gains import WEIGHTINGS, Weighting, measure_gains
from lychee_sgl.heads.heuristic import heuristic_plan
from lychee_sgl.heads.hybrid_hf import Decoding, hybrid_attention, prefill, step
from lychee_sgl.heads.measure import Exam, LoadedModel, examine, exams, load_model, prefilled
from lychee_sgl.heads.needles import NeedlePrompt, needle_prompts
from lychee_sgl.heads.plan import HeadPlan, PlanDefaults, PlanError
from lychee_sgl.heads.score import score_plans

SMALL = Settings(retrieval=6, budget=64, prompts=2, context=120, sinks=8, recent=16)
PROMPT = NeedlePrompt(
    document="A long tale. The code is 1234567.", needle="", question="?", answer="1234567", depth=0.5
)


@pytest.fixture(scope="module")
def gains(tiny: LoadedModel) -> dict[Weighting, torch.Tensor]:
    tokens = tiny.chat(needle_prompts(1, tokens=(60, 60), seed=1, kind="calibration")[0].text)
    return measure_gains(tiny, prefill(tiny.model, tokens), tiny.answer("It is 7."), budget=40, sinks=4, recent=8)


@pytest.mark.parametrize("kind", WEIGHTINGS)
def test_gains_are_bounded_by_what_a_head_needs(gains: dict[Weighting, torch.Tensor], kind: Weighting) -> None:
    gain = gains[kind]
    assert gain.shape == (12, 12)
    assert bool((gain >= 0).all())
    assert bool((gain <= gain.diagonal() + 1e-9).all())
    layers = torch.arange(12) // 3
    assert not gain[(layers[:, None] >= layers) & ~torch.eye(12, dtype=torch.bool)].any()
    assert gain[layers[:, None] < layers].sum() > 0


def test_mass_gain_is_the_mass_that_a_set_holds(tiny: LoadedModel) -> None:
    """What a head loses by reading a set is its need less its gain: measured by decoding with that very plan."""
    tokens = tiny.chat(needle_prompts(1, tokens=(60, 60), seed=2, kind="calibration")[0].text)
    prefix, reply = prefill(tiny.model, tokens), tiny.answer("It is 7.")
    gain = measure_gains(tiny, prefix, reply, budget=40, sinks=4, recent=8, weightings=("mass",))["mass"]
    for source in ((0, 0), (0, 1), (0, 2)):
        plan = HeadPlan(
            "t", tiny.shape, ("RRR", "RSR", "RRR", "RRR"), {(1, 1): source}, PlanDefaults(sinks=4, recent=8)
        )
        with torch.no_grad(), hybrid_attention(tiny.model):
            decoding = Decoding(prefix=prefix, plan=plan, budget=40)
            step(tiny.model, decoding, reply)
        lost = len(reply) * (1 - decoding.mean_recall)
        assert float(gain[4, 4] - gain[source[1], 4]) == pytest.approx(lost, abs=1e-4)


def test_effect_gain_is_the_slope_of_the_answers_log_odds(tiny: LoadedModel) -> None:
    """Move one head's output a little towards what a set would make of it: the log-odds must move as foretold."""
    tokens = tiny.chat(needle_prompts(1, tokens=(60, 60), seed=4, kind="calibration")[0].text)
    prefix = prefill(tiny.model, tokens)
    gain = measure_gains(tiny, prefix, [20, 30], budget=60, sinks=4, recent=8, weightings=("effect",))["effect"]

    def decode(plan: HeadPlan | None, layer: int, moved: torch.Tensor) -> tuple[float, torch.Tensor]:
        seen = []

        def observe(at: int, _p: torch.Tensor, _v: torch.Tensor, outputs: torch.Tensor) -> None:
            if at == layer:
                seen.append(outputs.clone())
                outputs += moved  # what the layer goes on with

        with torch.no_grad(), hybrid_attention(tiny.model):
            logits = step(tiny.model, Decoding(prefix=prefix, plan=plan, budget=60, observer=observe), [20])[0].double()
        rest = torch.cat((logits[:30], logits[31:])).logsumexp(0)
        return float(logits[30] - rest), seen[0]

    checked = 0
    for layer in (1, 2, 3):
        for head in range(3):
            mine, source = layer * 3 + head, layer * 3 - 2  # the middle head of the layer before
            rows = ["RRR"] * 4
            rows[layer] = "".join("S" if h == head else "R" for h in range(3))
            plan = HeadPlan(
                "t", tiny.shape, tuple(rows), {(layer, head): divmod(source, 3)}, PlanDefaults(sinks=4, recent=8)
            )
            nothing = torch.zeros(())
            dense, full = decode(None, layer, nothing)
            sparse = decode(plan, layer, nothing)[1]
            slope = (decode(None, layer, (sparse - full) * 0.01)[0] - dense) / 0.01
            left = float(gain[mine, mine] - gain[source, mine])  # damage that is left when the set is read
            if gain[source, mine] > 0:  # a gain cut off at 0 foretells nothing
                assert left == pytest.approx(abs(slope), rel=0.05, abs=1e-3)
                checked += 1
    assert checked >= 3


def test_the_same_settings_give_the_same_plan(tiny: LoadedModel, tmp_path: Path) -> None:
    done: list[int] = []
    first = calibrate(tiny, SMALL, name="a", command="c", progress=done.append, cache=tmp_path)
    again = calibrate(tiny, SMALL, name="a", command="c", cache=tmp_path)  # out of the cache
    assert (first.roles, first.sources) == (again.roles, again.sources)
    assert done == [1, 2]
    assert first.retrieval_count == 6
    assert first.model == tiny.shape
    assert (first.defaults.budget, first.defaults.sinks, first.defaults.recent) == (64, 8, 16)
    assert 0 < first.provenance["scores"]["covered"] <= 1
    assert first.provenance["seed"] == 0
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_gains_of_prompts_are_averaged(tiny: LoadedModel) -> None:
    for gain in measured_gains(tiny, SMALL, weightings=WEIGHTINGS).values():
        assert float(gain.diagonal().sum()) == pytest.approx(1.0)  # each prompt's needs sum to 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"retrieval": 2}, "retrieval heads is 2; allowed: 3 .*layer 0 alone.* to 12"),
        ({"retrieval": 13}, "retrieval heads is 13"),
        ({"budget": 0}, "budget is 0"),
        ({"prompts": 0}, "prompts is 0"),
        ({"context": 10}, "context is 10; allowed: 64 or more"),
        ({"context": 4000}, "context is 4000; allowed: up to 3840"),
        ({"weighting": "luck"}, "weighting is 'luck'; allowed: mass, output, effect"),
    ],
)
def test_settings_out_of_range(tiny: LoadedModel, change: dict[str, int], message: str) -> None:
    settings = Settings(**{"retrieval": 6, "budget": 64, **change})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        calibrate(tiny, settings, name="a", command="c")


def test_cached_prefixes_are_the_prefixes(tiny: LoadedModel, tmp_path: Path) -> None:
    tokens = tiny.chat("Hello there.")
    fresh, stored, read = (prefilled(tiny, tokens, cache) for cache in (None, tmp_path, tmp_path))
    assert torch.equal(fresh.keys, read.keys)
    assert torch.equal(stored.logits, read.logits)
    assert len(list(tmp_path.iterdir())) == 1
    prefilled(tiny, tokens[1:], tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def exam_of(tiny: LoadedModel, reply: str) -> Exam:
    exam = next(exams(tiny, [PROMPT]))
    return Exam(prompt=PROMPT, prefix=exam.prefix, reply=reply, tokens=exam.tokens, ending=exam.ending)


def test_examining_an_answer(tiny: LoadedModel) -> None:
    plan = heuristic_plan(tiny.shape)
    right = examine(tiny, exam_of(tiny, "It is 1234567."), plan, budget=4000)
    assert (right.identical, right.answered, right.reply) == (True, True, "It is 1234567.")
    assert right.recall == pytest.approx(1.0)
    other = examine(tiny, exam_of(tiny, "It is 1234567."), plan, budget=4)
    assert not other.identical
    assert not other.answered  # random weights do not find a number
    assert other.recall < 1


def test_a_model_that_answers_nothing_is_told_apart(tiny: LoadedModel) -> None:
    plan = heuristic_plan(tiny.shape)
    with pytest.raises(ValueError, match="answers none of the 1 questions"):
        score_plans(tiny, [PROMPT], {"p.json": plan}, budgets=(8,), seed=1, command="c")
    auto = HeadPlan("t", tiny.shape, plan.roles, {}, PlanDefaults(budget="auto"))
    with pytest.raises(ValueError, match=r"p\.json: the default budget is 'auto'"):
        score_plans(tiny, [PROMPT], {"p.json": auto}, seed=1, command="c")


def test_scores_count_what_dense_answers(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NeedlePrompt, "is_answered_by", lambda prompt, reply: prompt.question != "?" and bool(reply))
    asked = [PROMPT, *needle_prompts(2, tokens=(60, 90), seed=1, kind="evaluation")]
    lines: list[str] = []
    report = score_plans(
        tiny, asked, {"p.json": heuristic_plan(tiny.shape)}, budgets=(40, 4000), seed=1, command="c", tell=lines.append
    )
    assert (report["questions_asked"], report["dense_answers"]) == (3, 2)
    assert [row["budget"] for row in report["plans"]] == [40, 4000]
    full = report["plans"][1]
    assert (full["questions"], full["answered"], full["identical"], full["recall"]) == (2, 2, 2, 1.0)
    assert report["plans"][0]["recall"] < 1
    assert [entry["dense_answers"] for entry in report["questions"]] == [False, True, True]
    assert "dense fails, left out" in lines[0]
    assert "2 of 2 runs answer" in lines[1]


def test_no_model_no_traceback(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"cannot read config\.json: No such file"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(PlanError, match=r"config\.json is not JSON"):
        load_model(tmp_path)
