"""The collapse experiment: its world, what is best in it, its learner, its record."""

import itertools
import json
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from lychee_sgl.rewards.cli import app
from lychee_sgl.rewards.experiment.learn import Learners
from lychee_sgl.rewards.experiment.optimum import optimum
from lychee_sgl.rewards.experiment.run import report, train
from lychee_sgl.rewards.experiment.settings import Arm, Settings
from lychee_sgl.rewards.experiment.tables import markdown, read_record
from lychee_sgl.rewards.experiment.world import Episodes

TINY = Settings(
    places=2, noise=1, longest=4, worlds=((4, 0), (2, 5 / 12)), farms=(0.0, 0.5), gates=(0.5,), seeds=2, updates=12,
    tasks=2, group=4, width=4,
)  # fmt: skip
LOOK_0, LOOK_1, LOOK_2, PATCH_0, PATCH_1, PATCH_2, SUBMIT, BAD = range(8)


def played(actions: list[int], *, fault: int = 1, limit: int = 6) -> Episodes:
    episodes = Episodes.begin(torch.tensor([[fault]]), torch.tensor([[limit]]), places=3)
    for action in actions:
        episodes.step(torch.tensor([[action]]))
    return episodes


@pytest.mark.parametrize(
    ("actions", "outcome", "submitted", "calls", "alive"),
    [
        ([SUBMIT], 0.25, True, 0, False),
        ([PATCH_0, SUBMIT], 0.5, True, 1, False),
        ([LOOK_1, PATCH_1, SUBMIT], 1.0, True, 2, False),
        ([PATCH_1, PATCH_2, SUBMIT], 0.5, True, 2, False),  # the last patch is the one
        ([LOOK_0, LOOK_0, BAD], 0.0, False, 2, True),
        ([LOOK_0] * 6, 0.0, False, 6, False),
        ([LOOK_0] * 5 + [SUBMIT], 0.25, True, 5, False),
        ([SUBMIT, PATCH_1, LOOK_0], 0.25, True, 0, False),  # what has ended changes no more
    ],
)
def test_world_by_hand(actions: list[int], outcome: float, submitted: bool, calls: int, alive: bool) -> None:
    ended = played(actions)
    assert ended.outcome.item() == outcome
    assert ended.submitted.item() is submitted
    assert ended.calls.item() == calls
    assert ended.alive.item() is alive


def test_what_is_seen() -> None:
    episodes = played([LOOK_0, PATCH_2, LOOK_1])
    assert episodes.observe(longest=6)[0, 0].tolist() == [
        *(0, 1, 0), *(0, 0, 1), *(1, 0, 0),  # clean, faulty, unknown
        *(0, 0, 0, 1),  # the patch is on the third place
        *(0, 0, 0, 1, 0, 0),  # three turns are over
    ]  # fmt: skip


def test_totals_are_those_of_the_gated_rewards() -> None:
    arms = [Arm(farm=0.3, gate=gate, shortest=6) for gate in (None, 0.25, 0.5, 1.0)]
    learners = Learners(Settings(seeds=1), arms)
    for actions in itertools.product((LOOK_0, PATCH_1, SUBMIT, BAD), repeat=3):
        ended = played(list(actions))
        many = Episodes.begin(torch.ones(4, 1, dtype=torch.int64), torch.full((4, 1), 6), places=3)
        many.outcome, many.calls = ended.outcome.expand(4, 1), ended.calls.expand(4, 1)
        until = actions.index(SUBMIT) if SUBMIT in actions else 3
        steps = [{"format": float(action != BAD)} for action in actions[:until]] + [{"outcome": ended.outcome.item()}]
        wanted = [arm.chain().total(steps) for arm in arms]
        assert learners.totals(many)[:, 0].tolist() == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("arm", "places", "longest", "total", "submitted"),
    [
        (Arm(farm=0.0, gate=None, shortest=1), 2, 1, 0.25, 1.0),  # submit an empty patch
        (Arm(farm=0.0, gate=None, shortest=2), 2, 2, 0.75, 1.0),  # patch one of two, submit
        (Arm(farm=0.0, gate=None, shortest=3), 2, 3, 1.0, 1.0),  # look at one, know, patch, submit
        (Arm(farm=0.0, gate=None, shortest=3), 3, 3, (1 + 2 * 0.75) / 3, 1.0),  # look at one of three
        (Arm(farm=2.0, gate=None, shortest=4), 2, 4, 8.0, 0.0),  # farm to the end
        (Arm(farm=0.5, gate=None, shortest=4), 2, 4, 1.5 + 1.0, 1.0),  # farm, then submit in the last turn
        (Arm(farm=2.0, gate=1.0, shortest=4), 2, 4, 6.0 + 1.0, 1.0),
        (Arm(farm=2.0, gate=0.25, shortest=2), 2, 2, 2.0 + 0.75, 1.0),
        # limit 1 or 2, not told: submit at once, or a call and, half of the time, a submission after it
        (Arm(farm=0.1, gate=None, shortest=1), 2, 2, 0.1 + 0.5 * 0.75, 0.5),
        (Arm(farm=0.0, gate=1.0, shortest=1), 4, 2, 0.5 * 0.625, 0.5),
        (Arm(farm=0.1, gate=1.0, shortest=1), 4, 2, 0.5 * (0.25 * 1.1 + 0.75 * 0.5), 0.5),
    ],
)
def test_the_best_policy_by_hand(arm: Arm, places: int, longest: int, total: float, submitted: float) -> None:
    best = optimum(arm, places, longest)
    assert best.total == pytest.approx(total)
    assert best.submitted == pytest.approx(submitted)


def test_no_policy_beats_the_best_one() -> None:
    """All open-loop plans of four turns, and what they bring, against the optimum of policies that look."""
    plans = torch.tensor(list(itertools.product((LOOK_0, PATCH_0, PATCH_1, SUBMIT, BAD), repeat=4)))
    fault = torch.arange(3).unsqueeze(1).expand(3, len(plans))
    games = Episodes.begin(fault, torch.full_like(fault, 4), places=3)
    for turn in range(4):
        games.step(plans[:, turn].expand(3, -1))
    for gate in (None, 0.5, 1.0):
        opened = games.outcome >= (0.0 if gate is None else gate)
        found = (games.outcome + 0.2 * games.calls * opened).mean(0).max().item()
        best = optimum(Arm(farm=0.2, gate=gate, shortest=4), 3, 4).total
        assert 0.5 < found <= best + 1e-6


def test_arms_of_a_seed_meet_the_same_draws_and_warm_updates_know_no_calls() -> None:
    history = train(TINY)
    arms = TINY.arms()
    assert history.shape == (12, len(arms), 2, 5)
    assert bool(torch.isfinite(history).all())
    at = {(arm.shortest, arm.farm, arm.gate): number for number, arm in enumerate(arms)}
    # calls worth nothing: gated and direct are one
    assert torch.equal(history[:, at[4, 0.0, None]], history[:, at[4, 0.0, 0.5]])
    assert not torch.equal(history[:, at[4, 0.5, None]], history[:, at[4, 0.5, 0.5]])
    # the first five updates of the second world are on the outcome alone
    assert torch.equal(history[:6, at[2, 0.5, None], :, 1:], history[:6, at[2, 0.0, None], :, 1:])
    assert not torch.equal(history[6:, at[2, 0.5, None], :, 1:], history[6:, at[2, 0.0, None], :, 1:])
    assert not torch.equal(history[:, 0, 0], history[:, 0, 1])


def test_a_resumed_sweep_has_the_same_bits(tmp_path: Path) -> None:
    state = tmp_path / "state"
    whole = train(TINY)
    train(TINY, state=state, until=7)
    with pytest.raises(ValueError, match="holds an unfinished sweep"):
        train(TINY, state=state)
    other = Settings(**{**TINY.as_dict(), "rate": 0.5})
    with pytest.raises(ValueError, match=r"another training: rate was 0\.01 and is 0\.5"):
        train(other, state=state, resume=True)
    assert torch.equal(train(TINY, state=state, resume=True), whole)
    assert not state.exists()


def test_a_policy_learns() -> None:
    easy = Settings(
        places=2, noise=1, longest=4, worlds=((4, 0),), farms=(0.0,), gates=(1.0,), seeds=1, updates=80, rate=0.03
    )
    course = train(easy)[:, 0, 0, 1]
    assert course[-10:].mean() > course[:10].mean() + 0.2


def test_a_collapse_is_counted_as_one() -> None:
    history = torch.zeros(12, len(TINY.arms()), 2, 5)
    history[:6, :, :, 1] = 0.8
    history[6:, :, 0, 1] = 0.39  # below half of the best
    history[6:, :, 1, 1] = 0.41
    told = report(TINY, history, command="x", seconds=1)
    assert [row["collapsed"] for row in told["arms"]] == [1] * len(TINY.arms())
    assert told["arms"][0]["best_outcome"] == pytest.approx([0.8, 0.8])
    assert told["arms"][0]["end"]["outcome"] == pytest.approx([0.39, 0.41])


def test_command_line(tmp_path: Path) -> None:
    out, png = tmp_path / "record.json", tmp_path / "record.png"
    small = ["--seeds", "1", "--updates", "12", "--farm", "0.2", "--gate", "0.5"]
    ended = CliRunner().invoke(app, ["experiment", "--out", str(out), *small])
    assert ended.exit_code == 0, ended.output
    assert len(json.loads(out.read_text())["arms"]) == 3 * 2
    ended = CliRunner().invoke(app, ["show", str(out), "--png", str(png)])
    assert ended.exit_code == 0, ended.output
    assert "limit 10, competent start; call worth 0.2; gated 0.5: outcome" in ended.output
    assert png.read_bytes().startswith(b"\x89PNG")
    for arguments, said in (
        (["experiment", "--out", str(out), "--gate", "2"], "gates is (2.0,); allowed: numbers above 0, up to 1"),
        (["experiment", "--out", str(tmp_path / "no" / "x.json")], "allowed: a file in a folder that exists"),
        (["show", __file__], "is not a record of the experiment"),
        (["show", str(out), "--png", str(png), "--farm", "3"], "farm is 3.0; allowed: 0.2"),
        (["sandbox", "--isolation", "docker"], "isolation is 'docker'; allowed: bubblewrap, namespaces, process"),
    ):
        ended = CliRunner().invoke(app, arguments)
        assert ended.exit_code == 1
        assert said in ended.output
    ended = CliRunner().invoke(app, ["sandbox", "--isolation", "process"])
    assert "does not stop: it can use the network" in ended.output


ROOT = Path(__file__).parents[2]
README = ROOT / "lychee_sgl" / "rewards" / "README.md"


def test_the_table_is_what_the_measurement_gives() -> None:
    record = read_record(ROOT / "docs" / "measurements" / "gated-rewards.json")
    (table,) = re.findall(r"<!-- table: gated rewards -->\n(.*?)<!-- end -->", README.read_text(), re.DOTALL)
    assert table == markdown(record)
    assert record["settings"] == json.loads(json.dumps(Settings().as_dict()))
    gated = [row["collapsed"] for row in record["arms"] if row["gate"] is not None]
    direct = {row["farm"]: row["collapsed"] for row in record["arms"] if row["gate"] is None}
    assert set(gated) == {0}
    assert direct[0.0] == direct[0.05] == direct[0.1] == 0
    assert direct[0.5] >= 4
    # of those that collapsed from scratch none had learnt anything; with a competent start all had
    lost = {True: [], False: []}
    for row in record["arms"]:
        for best, end in zip(row["best_outcome"], row["end"]["outcome"], strict=True):
            if end < record["collapsed_below"] * best:
                lost[row["warm"] > 0].append(best)
    page = README.read_text()
    assert f"none of those {len(lost[False])} had a window above {max(lost[False]):.2f}" in page
    assert f"({min(lost[True]):.2f} and more) and lost it are the {len(lost[True])} of 12" in page
    # where the limit is known, the best policy submits under every reward
    assert {row["optimum"]["submitted"] for row in record["arms"] if row["shortest"] == 10} == {1.0}


def test_what_the_page_shows_runs() -> None:
    said: list[str] = []
    for block in re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(block, "README", "exec"), {"print": lambda *words: said.append(" ".join(map(str, words)))})
    assert said[:3] == ["0.0 0.65", "outcome", "2.0"]
