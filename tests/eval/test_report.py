"""The report of a small made-up run, with every number by hand; the gate; the command line."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from lychee_sgl.eval.cli import app
from lychee_sgl.eval.errors import EvalError
from lychee_sgl.eval.gate import failures, make_figure
from lychee_sgl.eval.plots import _budget, _pareto, pareto_front, share_label
from lychee_sgl.eval.report import markdown, task_table, write_report
from lychee_sgl.eval.run import identity_of
from lychee_sgl.eval.sample import Sample
from lychee_sgl.eval.store import Record, Store
from lychee_sgl.eval.summary import line, load, summarise
from lychee_sgl.eval.tasks import catalogue
from tests.eval.conftest import settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.eval.oracle import Oracle

ARMS = [
    {"name": "dense", "lychee": {"budget": "dense"}},
    {"name": "ours 1/8", "lychee": {"mode": "ratio", "value": 0.125}},
    {"name": "ours 1/4", "lychee": {"mode": "ratio", "value": 0.25}},
]
RUNNER = CliRunner()


def sample(task: str, number: int, depth: float | None = None) -> Sample:
    return Sample(
        task=task, length=1000, number=number, prompt=f"{task}{number}", prefix="", answers=("a",),
        metric="match_all", max_tokens=8, depth=depth,
    )  # fmt: skip


def record(task: str, number: int, arm: str, score: float, *, tokens: int = 10, **more: Any) -> Record:
    share = {"stock 1/8": None, "dense": 1.0, "ours 1/8": 0.25, "ours 1/4": 0.4}[arm]
    return Record(
        sample=f"{task}/1000/{number}", arm=arm, score=score, reply="a", finish_reason="stop", prompt_tokens=900,
        answer_tokens=tokens, first_token_seconds=0.1, seconds=2.0, attended_fraction=share,
        recall=None if arm == "dense" else 0.9, context_tokens=910, **more,
    )  # fmt: skip


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run: two tasks of four samples; dense right but for one, 1/8 loses two of the needles."""

    def make(
        name: str = "run", arms: list[dict[str, Any]] = ARMS, change: Callable[[Record], Record | None] = lambda r: r
    ) -> Path:
        folder = tmp_path / name
        asked = settings(arms=arms, tasks=["needle", "vt"], samples=4, lengths=[1000])
        store = Store(folder)
        store.open(identity_of(asked, "tiny", {}), {"command": "lychee-sgl eval run", "date": "2026-01-01"})
        samples = [sample("needle", n, n / 3) for n in range(4)] + [sample("vt", n) for n in range(4)]
        store.keep_samples(samples)
        for arm in asked.arms:
            rows = [record("needle", n, arm.name, float(arm.name != "ours 1/8" or n > 1)) for n in range(4)]
            rows += [record("vt", n, arm.name, 0.2 * n, tokens=20 if arm.name != "dense" else 10) for n in range(4)]
            for row in map(change, rows):
                if row is not None:
                    store.add(row)
        store.close()
        return folder

    return make


def test_means_weigh_tasks_the_same_and_distances_are_paired(made: Callable[..., Path]) -> None:
    results = load([made()])
    dense, ours = (line(results, name, lambda _: True) for name in ("dense", "ours 1/8"))
    assert dense.score is not None
    assert dense.score.value == pytest.approx((1.0 + 0.3) / 2)
    assert dense.distance is None
    assert ours.score is not None
    assert ours.score.value == pytest.approx((0.5 + 0.3) / 2)
    assert ours.distance is not None
    assert ours.distance.value == pytest.approx(-0.25)
    assert (ours.asked, ours.answered, ours.errors) == (8, 8, 0)
    assert ours.answer_tokens == pytest.approx((4 * 10 + 4 * 20) / 8)
    assert ours.longer == pytest.approx(1.5)
    assert ours.seconds == 2.0
    assert ours.seconds_per_solved == pytest.approx(16 / (2 + 1.2))
    assert ours.attended is not None
    assert ours.attended.value == 0.25
    assert ours.recall is not None
    assert dense.recall is None


def test_the_tasks_that_the_baseline_can_do_are_counted_apart(made: Callable[..., Path]) -> None:
    summary = summarise(load([made(change=lambda r: replace(r, score=0.1) if "vt" in r.sample else r)]))
    assert summary["able"] == ["needle"]
    assert summary["over_able"]["dense"]["score"][0] == 1.0
    assert summary["all"]["dense"]["score"][0] == pytest.approx(0.55)


def test_the_report_has_tables_files_and_pictures(made: Callable[..., Path], tmp_path: Path) -> None:
    paths = write_report(load([made()]), tmp_path / "report")
    assert [path.name for path in paths] == [
        "summary.json", "results.csv", "report.md", "budget.png", "needle.png", "pareto.png",
    ]  # fmt: skip
    text = (tmp_path / "report" / "report.md").read_text()
    rows = {tuple(cell.strip() for cell in row.split("|")[1:-1]) for row in text.splitlines() if row.startswith("|")}
    assert ("needle", "100.0 [51, 100]", "50.0 [15, 85]", "100.0 [51, 100]") in rows  # Wilson of 4 of 4 and of 2 of 4
    (overview,) = [row for row in rows if row[0] == "ours 1/8"]
    assert overview[1].startswith("40.0 [")
    assert overview[2].startswith("-25.0 [")
    assert overview[3:] == ("15.0", "1.50x", "2.00", "5.0", "25.0", "90.0", "8", "0")
    assert "tiny; seed 1, 4 samples of each task and length; RULER as of c3f5e3b4f87f; 2026-01-01." in text
    with (tmp_path / "report" / "results.csv").open() as file:
        found = {(row["task"], row["length"], row["arm"]): row for row in csv.DictReader(file)}
    assert len(found) == 3 * (2 + 2 + 2)
    assert found["needle", "1000", "ours 1/8"]["score"] == "0.5"
    assert json.loads((tmp_path / "report" / "summary.json").read_text())["baseline"] == "dense"
    for name in ("budget.png", "needle.png", "pareto.png"):
        with Image.open(tmp_path / "report" / name) as image:
            assert min(image.size) > 200
            assert len(image.convert("RGB").getcolors(1 << 20) or []) > 20


def test_errors_and_gaps_are_said_first_and_count_in_no_mean(made: Callable[..., Path]) -> None:
    def change(one: Record) -> Record | None:
        if one.sample == "needle/1000/0":
            return replace(one, score=None, error="503: full") if one.arm != "dense" else one
        return None if (one.sample, one.arm) == ("vt/1000/3", "dense") else one

    results = load([made(change=change)])
    text = markdown(summarise(results))
    assert "**1 samples have not been asked yet.**" in text
    assert "**2 answers are errors and count in no mean.** 2 times: 503: full" in text
    ours = line(results, "ours 1/8", lambda s: s.task == "needle")
    assert (ours.answered, ours.errors) == (3, 1)
    assert ours.score is not None
    assert ours.score.value == pytest.approx(2 / 3)
    assert ours.distance is not None
    assert ours.distance.value == pytest.approx(-1 / 3)  # over the three that both answered


def test_distances_are_over_what_both_answered(made: Callable[..., Path]) -> None:
    gone = ("needle/1000/3", "dense")
    results = load([made(change=lambda one: None if (one.sample, one.arm) == gone else one)])
    ours = line(results, "ours 1/8", lambda s: s.task == "needle")
    assert ours.answered == 4
    assert ours.distance is not None
    assert ours.distance.value == pytest.approx(-2 / 3)  # it lost two of three


def test_an_arm_without_answers_to_a_task_is_not_compared_in_silence(made: Callable[..., Path]) -> None:
    def change(one: Record) -> Record:
        lost = one.arm == "ours 1/4" and one.sample.startswith("vt")
        return replace(one, score=None, error="400: too long") if lost else one

    text = markdown(summarise(load([made(change=change)])))
    assert "**`ours 1/4` has no answer to vt: its means are over the other tasks alone.**" in text
    assert text.count("has no answer to") == 1


def test_runs_of_the_same_samples_stand_side_by_side(made: Callable[..., Path]) -> None:
    results = load([made("one", ARMS[:2]), made("two", ARMS[2:])])
    assert [arm.name for arm in results.arms] == ["dense", "ours 1/8", "ours 1/4"]
    assert results.base == "dense"
    assert summarise(results)["missing"] == 0


def test_distances_can_be_taken_from_another_arm(made: Callable[..., Path]) -> None:
    folder = made()
    results = load([folder], "ours 1/4")
    dense, ours = (line(results, name, lambda _: True) for name in ("dense", "ours 1/8"))
    assert dense.distance is not None
    assert ours.distance is not None
    assert (dense.distance.value, ours.distance.value) == (0.0, pytest.approx(-0.25))
    with pytest.raises(EvalError, match="--baseline is 'x'; allowed: dense, ours 1/8, ours 1/4"):
        load([folder], "x")


def test_runs_that_do_not_belong_together_are_refused(made: Callable[..., Path], tmp_path: Path) -> None:
    one, two, three = made("one"), made("two"), made("three", ARMS[:1])
    with pytest.raises(EvalError, match="has the arm 'dense' of another folder"):
        load([one, two])
    path = three / "samples.jsonl"
    path.write_text(path.read_text().replace("vt3", "vt4"))
    with pytest.raises(EvalError, match="asks other samples than"):
        load([one, three])
    with pytest.raises(EvalError, match="holds no run"):
        load([tmp_path / "nowhere"])


def test_runs_that_were_asked_in_another_way_are_told_apart(made: Callable[..., Path]) -> None:
    one, two = made("one", ARMS[:2]), made("two", ARMS[2:])
    path = two / "run.json"
    run = json.loads(path.read_text())
    run["identity"]["settings"] |= {"prefix": "user", "temperature": 0.5}
    path.write_text(json.dumps(run))
    text = markdown(summarise(load([one, two])))
    assert '**The runs did not ask in the same way:** prefix is "continue", "user"; temperature is 0.0, 0.5.' in text
    assert "did not ask in the same way" not in markdown(summarise(load([one])))
    path = two / "samples.jsonl"
    path.write_text(path.read_text().replace('"max_tokens": 8', '"max_tokens": 9'))
    with pytest.raises(EvalError, match="asks other samples than"):
        load([one, two])


def test_budgets_on_an_axis_are_fractions_only_where_they_are() -> None:
    shares = (1 / 16, 0.125, 0.3, 1 / 3, 0.4, 0.5, 0.75, 1.0)
    assert [share_label(share) for share in shares] == ["1/16", "1/8", "0.3", "1/3", "0.4", "1/2", "0.75", "1"]


def test_an_arm_without_recall_has_its_colour_and_its_line_in_the_legends(made: Callable[..., Path]) -> None:
    arms = [{"name": "stock 1/8", "at": 0.125}, *ARMS[1:]]

    def change(one: Record) -> Record:
        if one.arm == "stock 1/8":
            return replace(one, attended_fraction=None, recall=None)
        return one

    results = load([made("run", arms, change)])
    summary = summarise(results)
    left, right = (
        {line.get_label(): line.get_color() for line in axis.get_lines()} for axis in _budget(results, summary).axes
    )
    assert set(right) == {"ours"}
    assert right["ours"] == left["ours"] != left["stock"]
    (legend,) = [axis.get_legend() for axis in _pareto(results, summary).axes if axis.get_legend() is not None]
    assert {text.get_text() for text in legend.get_texts()} == {"stock", "ours"}


def test_the_front_has_what_nothing_beats() -> None:
    assert pareto_front([(1.0, 50.0), (0.5, 40.0), (0.6, 30.0), (0.5, 20.0), (2.0, 50.0)]) == [(0.5, 40.0), (1.0, 50.0)]


def test_a_run_passes_its_own_gate_and_a_worse_one_does_not(made: Callable[..., Path]) -> None:
    figure = make_figure(load([made("figure")]))
    assert figure["arms"]["ours 1/8"]["score"][0] == pytest.approx(0.4)
    assert failures(load([made("same")]), figure) == []

    def worse(one: Record) -> Record:
        return replace(one, score=0.0) if one.arm == "ours 1/4" else one

    (found,) = failures(load([made("worse", change=worse)]), figure)
    low = figure["arms"]["ours 1/4"]["score"][1]
    assert found == f"ours 1/4: score is 0.0000, below {low:.4f}, the low end of the figure's 0.6500"


@pytest.mark.filterwarnings("ignore:The BCa confidence interval")
def test_less_recall_another_budget_and_errors_fail_the_gate(made: Callable[..., Path]) -> None:
    figure = make_figure(load([made("figure")]))
    less = failures(load([made("less", change=lambda r: replace(r, recall=r.recall and 0.89))]), figure)
    assert [text.split(" is ")[0] for text in less] == ["ours 1/8: recall", "ours 1/4: recall"]
    more = failures(load([made("more", change=lambda r: replace(r, attended_fraction=1.0))]), figure)
    assert "ours 1/8: attended is 1.000, not 0.250: another budget" in more
    nan = failures(load([made("nan", change=lambda r: replace(r, recall=r.recall and math.nan))]), figure)
    assert [text.split(",")[0] for text in nan] == ["ours 1/8: recall is nan", "ours 1/4: recall is nan"]
    gone = failures(
        load([made("gone", change=lambda r: replace(r, score=None, error="x") if r.arm == "dense" else r)]), figure
    )
    assert gone[0] == "dense: 0 answers of 8"


def test_a_figure_is_held_against_its_own_settings_and_model_only(made: Callable[..., Path], tmp_path: Path) -> None:
    figure = make_figure(load([made("figure")]))
    figure["settings"]["seed"] = 2
    with pytest.raises(EvalError, match="the run's settings are not the figure's"):
        failures(load([made("same")]), figure)
    other = {**make_figure(load([made("other")])), "model": "large"}
    with pytest.raises(EvalError, match="the run's model is 'tiny', not the figure's 'large'"):
        failures(load([tmp_path / "same"]), other)


def test_the_command_line_runs_reports_and_gates(oracle: tuple[Oracle, str], tmp_path: Path) -> None:
    _, url = oracle
    config = tmp_path / "small.yaml"
    config.write_text(
        "samples: 5\nlengths: [700]\nhaystack: reference\ntasks:\n- {name: needle, depths: 2}\n- trace_sum\n"
        "arms:\n- {name: dense, lychee: {budget: dense}}\n"
        "- {name: '{value}', lychee: {mode: ratio}, grid: {value: [0.25, 0.5]}}\n"
    )
    out, figure = str(tmp_path / "out"), str(tmp_path / "figure.json")
    ran = RUNNER.invoke(
        app, ["run", "--config", str(config), "--url", url, "--out", out, "--task", "needle", "--samples", "2"]
    )
    assert ran.exit_code == 0, ran.output
    assert "6 records of 2 samples" in ran.stdout
    assert "mean score 100.0" in ran.stderr
    told = RUNNER.invoke(app, ["report", out])
    assert told.exit_code == 0, told.output
    assert Path(told.stdout.split()[0]).name == "summary.json"
    assert RUNNER.invoke(app, ["gate", out, "--figure", figure, "--write"]).exit_code == 0
    held = RUNNER.invoke(app, ["gate", out, "--figure", figure])
    assert (held.exit_code, held.stdout) == (0, f"not worse than {figure}\n")
    worse = json.loads(Path(figure).read_text())
    worse["arms"]["0.25"]["recall"] = [0.99, 0.98, 1.0]
    Path(figure).write_text(json.dumps(worse))
    held = RUNNER.invoke(app, ["gate", out, "--figure", figure])
    assert held.exit_code == 1
    assert held.stderr.startswith("worse: 0.25: recall is")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--config", "CONFIG", "--task", "vt"], 1, "error: --task is 'vt'; allowed: needle"),
        (["--config", "CONFIG", "--arm", "x"], 1, "error: --arm is 'x'; allowed: dense"),
        (["--config", "nowhere.yaml"], 1, "No such file"),
        (["--config", "CONFIG", "--send-as", "x"], 2, "--send-as is 'x'; allowed: lychee, custom_params"),
        (["--config", "CONFIG", "--tokenizer", "nowhere"], 1, "--tokenizer is nowhere; allowed: an engine's address"),
        (["--config", "CONFIG", "--tokenizer", "URL/v2"], 1, "/tokenize does not count tokens"),
        (["--config", "CONFIG", "--url", "http://127.0.0.1:9"], 1, "/v1/models names no model: ConnectError"),
    ],
)
def test_what_the_command_line_refuses(
    oracle: tuple[Oracle, str], tmp_path: Path, arguments: list[str], status: int, message: str
) -> None:
    config = tmp_path / "small.yaml"
    config.write_text("samples: 1\nlengths: [700]\nhaystack: reference\ntasks: [needle]\narms: [{name: dense}]\n")
    words = [word.replace("CONFIG", str(config)).replace("URL", oracle[1]) for word in arguments]
    ran = RUNNER.invoke(app, ["run", "--url", oracle[1], "--out", str(tmp_path / "out"), *words])
    assert ran.exit_code == status
    assert message in ran.stderr


def test_every_task_is_listed() -> None:
    listed = RUNNER.invoke(app, ["tasks", "--markdown"])
    assert listed.stdout == task_table(catalogue())
    assert listed.stdout.count("\n") == 2 + len(catalogue())
