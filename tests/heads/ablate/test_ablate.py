"""A whole ablation of a tiny model, cut short once; and configurations that do not do."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from lychee_sgl.heads.ablate.config import RIVALS, read_ablation
from lychee_sgl.heads.ablate.report import markdown
from lychee_sgl.heads.ablate.work import Workshop
from lychee_sgl.heads.cli import app
from lychee_sgl.heads.heuristic import heuristic_plan
from lychee_sgl.heads.plan import HeadPlan
from lychee_sgl.heads.shapes import read_shape

CONFIG = {
    "retrieval": 5,
    "counts": [4, 5, 7],
    "budgets": [24, 48],
    "curve_budgets": [24],
    "train": {"budget": 24, "sinks": 2, "recent": 4, "steps": 2, "draws": 2},
    "runs": {"kuma": {"sources": "measured"}, "kuma-other": {"sources": "measured", "seed": 1}},
    "rivals": list(RIVALS),
    "curve_runs": [],
    "curve_rivals": ["random"],
    "data": {"haystack": "prose.txt", "context": [100, 150], "needles": 2, "words": 2},
    "gain_samples": 1,
    "exam": {"tasks": ["single", "multi-value"], "lengths": [192], "questions": 2},
    "exam_haystack": "prose.txt",
    "plans": {"kept": "kept.json"},
    "workers": 2,
}


@pytest.fixture
def config(tmp_path: Path, model_folder: Path) -> Path:
    heuristic_plan(read_shape(model_folder)).save(tmp_path / "kept.json")
    (tmp_path / "prose.txt").write_text(
        "\n\n".join(
            f"Paragraph {i} speaks of nothing in particular, and does so at some length, so that it is long enough "
            "to be taken for the prose that it is."
            for i in range(60)
        )
    )
    path = tmp_path / "ablation.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return path


def test_a_whole_ablation_in_two_goes(config: Path, model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["ablate", "--config", str(config), "--model", str(model_folder), "--out", str(out), "--device", "cpu"]
    told = CliRunner().invoke(app, [*words, "--minutes", "0"])
    assert told.exit_code == 75, told.output
    assert "time is up; the same command goes on" in told.stdout
    assert not (out / "report.json").exists()

    told = CliRunner().invoke(app, words)
    assert told.exit_code == 0, told.output
    assert "gains on" not in told.stdout  # measured in the first go
    report = json.loads((out / "report.json").read_text())
    assert report["complete"]
    assert report["questions"] == 4
    assert {"kuma", "kuma-other", "kept", "random-4-heads", "random-7-heads", *RIVALS} <= set(report["plans"])
    same_count = [name for name in ("kuma", *RIVALS) if not name.startswith("heuristic")]
    assert {report["plans"][name]["retrieval_heads"] for name in same_count} == {5}
    assert report["scores"]["dense"]["all"]["asked"] == 4
    assert report["scores"]["random@48"]["multi-value-192"]["asked"] == 2
    assert "random-5-heads" not in report["plans"]  # that is `random`
    assert "random-7-heads@48" not in report["scores"]
    assert [entry["plans"] for entry in report["overlap"]] == [["kuma", "kuma-other"]]
    assert report["eighth"]["kept"]["budgets"] == {"192": 24}
    best = report["paired"]["best"]
    assert best not in report["paired"]["others"]
    assert set(report["paired"]["others"]["random" if best != "random" else "even"]) == {"24", "48"}
    text = (out / "report.md").read_text()
    assert text == markdown(report)
    assert "| dense | all |" in text
    assert "| random@24 |" in text
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert HeadPlan.load(out / "plans" / "random-7-heads.json").retrieval_count == 7

    (out / "curves.png").unlink()
    drawn = CliRunner().invoke(app, ["plot", str(out / "report.json"), "--png", str(out / "again.png")])
    assert drawn.exit_code == 0, drawn.output
    assert (out / "again.png").exists()
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 0
    assert "trained" not in again.stdout

    kept = HeadPlan.load(config.parent / "kept.json")
    HeadPlan("kept", kept.model, ("RRR", "SSS", "SSS", "SSS")).save(config.parent / "kept.json")
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 1
    assert "holds answers under another plan called kept" in told.stderr
    HeadPlan("kept", replace(kept.model, num_hidden_layers=3), ("RRR", "SSS", "SSS")).save(config.parent / "kept.json")
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 1
    assert "3 layers" in told.stderr
    assert "4 layers" in told.stderr
    for change, message in (
        ({"gain_samples": 2}, "is of another ablation: gain_samples was 1 and is 2"),
        ({"runs": {"kuma": {"sources": "measured", "draws": 3}}}, "was trained with draws 2, not 3"),
    ):
        config.write_text(yaml.safe_dump({**CONFIG, **change}))
        told = CliRunner().invoke(app, words)
        assert told.exit_code == 1
        assert message in told.stderr


def test_a_failed_training_is_told_with_its_last_line(config: Path, model_folder: Path, tmp_path: Path) -> None:
    config.write_text(yaml.safe_dump({**CONFIG, "runs": {"bad": {"retrieval": 12}}, "curve_runs": []}))
    told = CliRunner().invoke(
        app,
        ["ablate", "--config", str(config), "--model", str(model_folder), "--out", str(tmp_path), "--device", "cpu"],
    )
    assert told.exit_code == 1
    assert "training bad ended with 1: error: retrieval heads is 12" in told.stderr


@pytest.mark.parametrize("share", ["0/2", "3/2", "2", "1/0", "a/b", "1/2/3", "²/4", ""])
def test_a_share_that_is_none(share: str, config: Path, model_folder: Path, tmp_path: Path) -> None:
    paths = ["--config", str(config), "--model", str(model_folder), "--out", str(tmp_path / "out")]
    told = CliRunner().invoke(app, ["ablate", *paths, "--share", share])
    assert told.exit_code == 1
    assert told.output == f"error: --share is {share!r}; allowed: I/N with I from 1 to N\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"speed": 1}, "speed is not a key; known: retrieval, counts"),
        ({"train": {"budget": 24, "rates": 1}}, "train.rates is not a key"),
        ({"runs": {"a": {"clip": 1}}}, "runs.a.clip is not a key"),
        ({"rivals": ["best"]}, "rivals holds 'best'; allowed: random, even"),
        ({"curve_runs": ["best"]}, "curve_runs holds 'best'; allowed: kuma"),
        ({"budgets": [0]}, "budgets is 0; allowed: a whole number above 0"),
        ({"plans": {"kuma": "kept.json"}}, "kuma names two plans"),
        ({"exam": {"lengths": [3]}}, "lengths is"),
        ({"retrieval": None}, "retrieval is None"),
    ],
)
def test_configurations_that_do_not_do(config: Path, change: dict[str, object], message: str) -> None:
    config.write_text(yaml.safe_dump({**CONFIG, **change}))
    with pytest.raises(ValueError, match=message):
        read_ablation(config)


def test_trainings_are_done_again_at_every_count(config: Path) -> None:
    config.write_text(yaml.safe_dump({**CONFIG, "curve_runs": ["kuma"]}))
    told = {name: (run.retrieval, run.sources, run.seed) for name, run in read_ablation(config).trainings().items()}
    assert told == {
        "kuma": (5, "measured", 0), "kuma-other": (5, "measured", 1),
        "kuma-4-heads": (4, "measured", 0), "kuma-7-heads": (7, "measured", 0),
    }  # fmt: skip


def test_the_committed_configuration_is_one() -> None:
    ablation = read_ablation(Path(__file__).parents[3] / "docs" / "ablation" / "smollm2-135m.yaml")
    assert ablation.exam.questions >= 200
    assert {*ablation.counts} >= {5, 45}
    assert all(path.exists() for path in ablation.plans.values())


def test_no_configuration(tmp_path: Path) -> None:
    for text, message in (
        ("- a", "allowed: a mapping"),
        ("a: [", "is not YAML"),
        ("counts: [3]", "retrieval is missing"),
    ):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_ablation(tmp_path / "c.yaml")


def test_work_is_dealt_round_the_gpus_that_are_visible(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No host of these tests has two GPUs: how many there are is told."""
    workshop = Workshop(
        config=config, ablation=read_ablation(config), model=tmp_path, model_name=None, folder=tmp_path, until=None,
        tell=lambda line: None,
    )  # fmt: skip
    assert workshop._places() == [{}, {}]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2,5")
    assert [place["CUDA_VISIBLE_DEVICES"] for place in workshop._places()] == ["1", "2", "5", "1", "2", "5"]
    assert replace(workshop, device="cuda:1")._places() == [{}, {}]
