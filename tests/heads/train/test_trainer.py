"""Training on a model of four layers: it moves, it ends where asked, it resumes to the bit, it stops at NaN."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lychee_sgl.heads.measure import LoadedModel
from lychee_sgl.heads.plan import HeadPlan
from lychee_sgl.heads.train.data import Sample
from lychee_sgl.heads.train.export import decided, export_plan
from lychee_sgl.heads.train.gates import GATE_KINDS, Gates, exact_top
from lychee_sgl.heads.train.losses import CountConstraint, count_target, distillation, rate_factor
from lychee_sgl.heads.train.run import train_plan
from lychee_sgl.heads.train.settings import TrainSettings
from lychee_sgl.heads.train.trainer import StepReport, Trainer, TrainingError


class RandomTokens:
    origin = "random tokens"

    def sample(self, index: int) -> Sample:
        draw = torch.Generator().manual_seed(index)
        tokens = torch.randint(3, 259, (58,), generator=draw).tolist()
        return Sample(prompt=tuple(tokens[:50]), answer=tuple(tokens[50:]))


SETTINGS = TrainSettings(retrieval=6, budget=16, sinks=2, recent=4, steps=4, draws=2, sources="same-index", reference=1)
GAIN = torch.rand(12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("gate", GATE_KINDS)
@pytest.mark.parametrize(
    "more",
    [{}, {"sources": "measured"}, {"sources": "learned", "objective": "hidden"}, {"chain": "previous"}],
    ids=["same-index", "measured", "learned", "previous"],
)
def test_two_steps_of_every_kind(tiny: LoadedModel, gate: str, more: dict[str, str]) -> None:
    settings = replace(SETTINGS, gate=gate, steps=2, **more)  # type: ignore[arg-type]
    weights = {name: value.clone() for name, value in tiny.model.state_dict().items()}
    trainer = Trainer(tiny, RandomTokens(), settings, gain=GAIN)
    before = trainer.gates.mean()
    trainer.run()
    plan = export_plan(trainer, name="t", command="none")
    assert (trainer.step, len(trainer.history.loss), plan.retrieval_count) == (2, 2, 6)
    assert not torch.equal(trainer.gates.mean()[1:], before[1:])
    assert all(torch.equal(value, weights[name]) for name, value in tiny.model.state_dict().items())
    plan.check_fits(tiny.shape)
    assert plan.provenance["data"] == "random tokens"


def test_the_count_arrives_from_both_sides(tiny: LoadedModel) -> None:
    """With no loss to hold against it, the constraint alone brings the count down, and up again after too few."""
    for start in (0.0, 4.0):  # a = b = 1: 0.92 of the heads; log_b = 4: next to none
        trainer = Trainer(tiny, RandomTokens(), replace(SETTINGS, steps=120, ramp=0.0, rate=0.1))
        with torch.no_grad():
            trainer.gates.parameters["log_b"].fill_(start)
        trainer._loss = lambda *given: torch.zeros(())  # type: ignore[method-assign]
        trainer.unit = 1.0
        trainer.run()
        assert trainer.history.count[-1] == pytest.approx(6.0, abs=0.5)


def test_resuming_gives_equal_bits(tiny: LoadedModel, tmp_path: Path) -> None:
    for kind in ("same-index", "learned"):
        settings = replace(SETTINGS, sources=kind)  # type: ignore[arg-type]
        whole = Trainer(tiny, RandomTokens(), settings, gain=GAIN)
        whole.run()
        first = Trainer(tiny, RandomTokens(), settings, gain=GAIN)
        first.run(checkpoint=tmp_path / kind, until=2)
        second = Trainer(tiny, RandomTokens(), settings, gain=GAIN)
        second.resume(tmp_path / kind)
        assert second.step == 2
        second.run()
        for trained in ("gates", "sources"):
            one, other = (getattr(trainer, trained).parameters for trainer in (whole, second))
            assert all(torch.equal(one[name], other[name]) for name in one)
        assert second.history.loss == whole.history.loss
        assert second.history.gates == whole.history.gates


def test_another_trainings_state_is_refused(tiny: LoadedModel, tmp_path: Path) -> None:
    trainer = Trainer(tiny, RandomTokens(), SETTINGS)
    trainer.run(checkpoint=tmp_path / "state", until=1)
    other = Trainer(tiny, RandomTokens(), replace(SETTINGS, budget=17))
    with pytest.raises(ValueError, match="belongs to another training: budget was 16 and is 17"):
        other.resume(tmp_path / "state")
    (tmp_path / "torn").write_bytes((tmp_path / "state").read_bytes()[:300])
    (tmp_path / "text").write_text("not a checkpoint")
    for name in ("torn", "text"):
        with pytest.raises(ValueError, match="is not a checkpoint"):
            trainer.resume(tmp_path / name)


def test_an_unfinished_training_is_not_overwritten(tiny: LoadedModel, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    Trainer(tiny, RandomTokens(), SETTINGS).run(checkpoint=tmp_path / "plan.checkpoint", until=1)
    arguments = {"out": out, "name": "t", "command": "none", "gain": None}
    with pytest.raises(ValueError, match="holds an unfinished training; go on with --resume"):
        train_plan(tiny, RandomTokens(), SETTINGS, resume=False, **arguments)  # type: ignore[arg-type]
    seen: list[StepReport] = []
    plan = train_plan(tiny, RandomTokens(), SETTINGS, resume=True, tell=seen.append, **arguments)  # type: ignore[arg-type]
    assert [report.step for report in seen] == [1, 2, 3]
    assert HeadPlan.load(out).sha256() == plan.sha256()
    assert not (tmp_path / "plan.checkpoint").exists()
    assert (tmp_path / "plan.training.json").exists()


def test_nan_stops_and_names_the_step(tiny: LoadedModel, tmp_path: Path) -> None:
    trainer = Trainer(tiny, RandomTokens(), SETTINGS)

    def poison(report: StepReport) -> None:
        if report.step == 1:
            with torch.no_grad():
                trainer.gates.parameters["log_a"][0, 0] = float("nan")

    with pytest.raises(TrainingError, match="step 2: loss is nan"):
        trainer.run(checkpoint=tmp_path / "state", every=1, tell=poison)
    again = Trainer(tiny, RandomTokens(), SETTINGS)
    again.resume(tmp_path / "state")
    assert again.step == 2
    assert all(torch.isfinite(value).all() for value in again.gates.parameters.values())


def test_a_budget_that_covers_everything_is_refused(tiny: LoadedModel) -> None:
    with pytest.raises(TrainingError, match="does the budget cover the whole context"):
        Trainer(tiny, RandomTokens(), replace(SETTINGS, budget=100)).run()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"retrieval": 3}, "retrieval heads is 3; allowed: 4 to 11"),
        ({"retrieval": 12}, "retrieval heads is 12"),
        ({"steps": 0}, "steps is 0; allowed: 1 or more"),
        ({"rate": 0.0}, "rate is 0.0; allowed: a number above 0"),
        ({"ramp": 1.5}, "ramp is 1.5; allowed: 0 to 1"),
        ({"gate": "soft"}, "gate is 'soft'; allowed: hardkuma, hardconcrete, l1"),
        ({"chain": "none"}, "chain is 'none'; allowed: deployed, previous"),
        ({"sources": "measured"}, "gain has shape None"),
    ],
)
def test_settings_out_of_range(tiny: LoadedModel, change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trainer(tiny, RandomTokens(), replace(SETTINGS, **change))  # type: ignore[arg-type]


def test_exactly_as_many_heads_as_asked() -> None:
    mean = torch.tensor([[0.0, 0.0], [0.9, 0.2], [0.9, 0.9], [0.1, 0.95]])
    assert exact_top(mean, 4).tolist() == [[True, True], [True, False], [False, False], [False, True]]
    assert exact_top(mean, 2).tolist() == [[True, True], [False, False], [False, False], [False, False]]
    assert int(exact_top(torch.full((5, 4), 0.5), 11).sum()) == 11
    with pytest.raises(ValueError, match=r"retrieval heads is 1; allowed: 2 \(layer 0 alone\) to 8"):
        exact_top(mean, 1)
    assert decided(torch.tensor([[0.5], [0.05], [0.95], [0.5], [0.7]])) == pytest.approx(0.5)


def test_gates_leave_layer_0_on() -> None:
    gates = Gates("hardkuma", 3, 2)
    drawn = gates.sample(50, torch.Generator().manual_seed(0))
    assert drawn.shape == (50, 3, 2)
    assert torch.equal(drawn[:, 0], torch.ones(50, 2))
    assert float(gates.expected_count().detach()) == pytest.approx(2 + 4 * 11 / 12)
    with pytest.raises(ValueError, match="the model has 1 layers"):
        Gates("l1", 1, 2)


def test_schedules_by_hand() -> None:
    assert [rate_factor(i, 10, warmup=0.2, decay=0.2) for i in (0, 1, 5, 8, 9)] == [0.5, 1.0, 1.0, 1.0, 0.5]
    assert rate_factor(0, 100, warmup=0.5, decay=0.0) == pytest.approx(0.1)
    assert [count_target(i, 10, start=30.0, end=10, ramp=0.4) for i in (0, 2, 4, 9)] == [30.0, 20.0, 10.0, 10.0]
    constraint = CountConstraint(heads=10, rate=2.0, stiffness=4.0, multiplier=1.0)
    # violation (9 - 4) / 10 = 0.5: 1.0 * 0.5 + 2.0 * 0.25
    assert float(constraint.penalty(torch.tensor(9.0), 4.0)) == pytest.approx(1.0)
    constraint.update(9.0, 4.0)
    assert constraint.multiplier == pytest.approx(2.0)
    constraint.update(1.0, 4.0)
    assert constraint.multiplier == pytest.approx(1.4)


def test_distillation_by_hand() -> None:
    teacher, student = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]]])
    assert float(distillation("hidden", student, teacher, torch.eye(2))) == pytest.approx(0.5)
    # softmax (e, 1) / (e + 1) against its mirror: sum p log(p / q) = (p0 - p1) * 1 = tanh(1 / 2); the other row is 0
    assert float(distillation("logits", student, teacher, torch.eye(2))) == pytest.approx(0.46212 / 2, abs=1e-4)
