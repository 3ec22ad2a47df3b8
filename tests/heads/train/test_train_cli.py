"""`lychee-sgl heads train` and `plot`, and a training that is killed half way."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lychee_sgl.heads.cli import app
from lychee_sgl.heads.plan import HeadPlan


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    entries = [
        {"context": "The colour of the house is green. " * i, "question": "Which colour?", "answer": f"Green {i}."}
        for i in range(2, 6)
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(json.dumps(entry) for entry in entries))
    return path


def words(model: Path, questions: Path, out: Path, *more: str) -> list[str]:
    return [
        "train", "--model", str(model), "--retrieval-heads", "6", "--budget", "16", "--sinks", "2", "--recent", "4",
        "--data", str(questions), "--out", str(out), "--draws", "2", "--device", "cpu", "--sources", "measured",
        "--gain-samples", "1", "--context", "400", "--checkpoint-every", "1", *more,
    ]  # fmt: skip


def test_two_steps_and_a_picture(model_folder: Path, questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    told = CliRunner().invoke(app, words(model_folder, questions, out, "--steps", "2"))
    assert told.exit_code == 0, told.output
    plan = HeadPlan.load(out)
    assert (plan.retrieval_count, plan.defaults.budget, plan.defaults.sinks) == (6, 16, 2)
    assert plan.provenance["method"] == "HardKuma, measured sources, deployed chain, logits distillation"
    assert str(tmp_path) not in plan.provenance["data"]
    record = json.loads((tmp_path / "plan.training.json").read_text())
    assert len(record["history"]["loss"]) == 2
    drawn = CliRunner().invoke(app, ["plot", str(tmp_path / "plan.training.json"), "--png", str(tmp_path / "t.png")])
    assert drawn.exit_code == 0, drawn.output
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


def test_a_killed_training_goes_on_to_equal_bits(model_folder: Path, questions: Path, tmp_path: Path) -> None:
    start = [sys.executable, "-c", "from lychee_sgl.heads.cli import app; app()"]
    plans = []
    for name in ("whole", "killed"):
        out = tmp_path / name / "plan.json"
        out.parent.mkdir()
        again = words(model_folder, questions, out, "--steps", "5")
        if name == "killed":
            with subprocess.Popen([*start, *again], stderr=subprocess.PIPE, text=True) as process:
                assert process.stderr is not None
                for line in process.stderr:
                    if line.startswith("step 3 of 5"):
                        break
                process.kill()
            assert not out.exists()
            assert out.with_suffix(".checkpoint").exists()
            again.append("--resume")
        told = CliRunner().invoke(app, again)
        assert told.exit_code == 0, told.output
        record = json.loads(out.with_suffix(".training.json").read_text())
        record["history"].pop("seconds")
        record.pop("command")
        plans.append((HeadPlan.load(out).roles, HeadPlan.load(out).sources, record))
    assert plans[0] == plans[1]


def test_mistakes_are_one_line(model_folder: Path, questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    for more, message in (
        (("--gate", "soft"), "gate is 'soft'; allowed: hardkuma, hardconcrete, l1"),
        (("--retrieval-heads", "3"), "retrieval heads is 3; allowed: 4 to 11"),
        (("--dtype", "float8"), "dtype is 'float8'; allowed: float32, bfloat16"),
        (("--context", "9999"), "allowed: up to 3584 for tiny-llama"),
        (("--gain", str(questions)), "allowed: a file that a training left"),
        (("--out", str(tmp_path / "no" / "plan.json")), "allowed: a file in a folder that exists"),
    ):
        told = CliRunner().invoke(app, words(model_folder, questions, out, *more))
        assert told.exit_code == 1
        last = told.stderr.splitlines()[-1]
        assert last.startswith("error: ")
        assert message in last


def test_a_steps_time_on_a_shape(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((model_folder / "config.json").read_text())  # no weights, no tokeniser
    out = tmp_path / "step.json"
    words = [
        "step-time",
        "--model",
        str(tmp_path),
        "--out",
        str(out),
        "--prompt",
        "60",
        "--answer",
        "5",
        "--budget",
        "16",
    ]
    told = CliRunner().invoke(
        app, [*words, "--retrieval-heads", "6", "--steps", "4", "--device", "cpu", "--dtype", "float32"]
    )
    assert told.exit_code == 0, told.output
    measured = json.loads(out.read_text())
    assert measured["steps"] == 3
    assert 0 < measured["seconds"]["low"] <= measured["seconds"]["median"] <= measured["seconds"]["high"]
    assert measured["peak_bytes"] is None
    assert measured["settings"]["recompute"]
    refused = CliRunner().invoke(app, [*words, "--steps", "3", "--retrieval-heads", "6", "--device", "cpu"])
    assert refused.exit_code == 1
    assert "steps is 3; allowed: 4 or more" in refused.stderr
