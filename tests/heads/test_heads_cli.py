"""The commands of `lychee-sgl heads`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lychee_sgl.heads.cli import WEIGHTINGS, app
from lychee_sgl.heads.gains import WEIGHTINGS as MEASURED
from lychee_sgl.heads.plan import HeadPlan, ModelShape


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def heuristic(model_folder: Path, tmp_path: Path) -> Path:
    out = tmp_path / "heuristic.json"
    assert call("heuristic", "--model", model_folder, "--out", out).exit_code == 0
    return out


def test_importing_the_commands_is_cheap() -> None:
    code = (
        "import sys, lychee_sgl.heads.cli;"
        "print([m for m in ('torch', 'transformers', 'numpy', 'matplotlib') if m in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_the_help_names_the_weightings_there_are() -> None:
    assert WEIGHTINGS == MEASURED


@pytest.mark.parametrize(("kind", "roles"), [
    ("layerwise", ("RRR", "RRR", "SSS", "RSS")), ("even", ("RRR", "SRS", "SRS", "SRS")), ("random", None),
])  # fmt: skip
def test_rivals_are_plans_that_can_be_served(kind: str, roles: object, model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "rival.json"
    count = "7" if kind == "layerwise" else "6"
    told = call("rival", kind, "--model", model_folder, "--retrieval-heads", count, "--out", out)
    assert told.exit_code == 0, told.output
    plan = HeadPlan.load(out)
    assert plan.retrieval_count == int(count)
    assert roles is None or plan.roles == roles


def test_a_rival_that_is_not_known(tmp_path: Path) -> None:
    told = call("rival", "best", "--model", tmp_path, "--retrieval-heads", "6", "--out", tmp_path / "p.json")
    assert told.exit_code == 1
    assert "kind is 'best'; allowed: layerwise, even, random" in told.output


def test_heuristic_writes_a_plan(heuristic: Path) -> None:
    plan = HeadPlan.load(heuristic)
    assert plan.model.name == "tiny-llama"
    assert plan.roles == ("RRR", "SRS", "RSR", "SRS")


def test_calibrate_writes_a_plan_that_fits(model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    told = call(
        "calibrate", "--model", model_folder, "--retrieval-heads", "5", "--budget", "48", "--out", out,
        "--prompts", "2", "--context", "100", "--seed", "9", "--model-name", "org/tiny", "--cache", tmp_path / "cache",
    )  # fmt: skip
    assert told.exit_code == 0, told.output
    plan = HeadPlan.load(out)
    assert (plan.retrieval_count, plan.defaults.budget, plan.provenance["seed"]) == (5, 48, 9)
    assert plan.model.name == "org/tiny"
    assert "5 of 12 heads retrieve" in told.stdout
    assert str(tmp_path) not in plan.provenance["command"]
    assert call("check", "--model", model_folder, "--heads", out).exit_code == 0


def test_show_draws_roles_and_sources(tmp_path: Path) -> None:
    shape = ModelShape("m", "LlamaForCausalLM", 3, 2, 2, 8)
    HeadPlan("drawn", shape, ("RR", "SR", "SS"), {(2, 1): (0, 0)}).save(tmp_path / "p.json")
    told = call("show", tmp_path / "p.json", "--png", tmp_path / "p.png")
    assert told.exit_code == 0, told.output
    assert "drawn: 3 of 6 heads retrieve" in told.stdout
    rows = [line.split() for line in told.stdout.splitlines()]
    assert ["0", "R", "R"] in rows
    assert ["1", "·", "0.0", "R"] in rows
    assert ["2", "·", "1.0", "·", "0.0"] in rows
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_check_refuses_another_shape(heuristic: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 5, "num_attention_heads": 6,
                    "num_key_value_heads": 3, "hidden_size": 48})
    )  # fmt: skip
    told = call("check", "--model", tmp_path, "--heads", heuristic)
    assert told.exit_code == 1
    assert "4 layers" in told.stderr
    assert "5 layers" in told.stderr


def test_check_tells_of_another_name(model_folder: Path, heuristic: Path, tmp_path: Path) -> None:
    data = json.loads(heuristic.read_text())
    data["model"]["name"] = "relative"
    (tmp_path / "other.json").write_text(json.dumps(data))
    told = call("check", "--model", model_folder, "--heads", tmp_path / "other.json")
    assert told.exit_code == 0
    assert "made for relative" in told.stdout


def test_compare_counts_what_two_plans_share(tmp_path: Path) -> None:
    shape = ModelShape("m", "LlamaForCausalLM", 3, 2, 2, 8)
    HeadPlan("a", shape, ("RR", "SR", "SS")).save(tmp_path / "a.json")
    HeadPlan("b", shape, ("RR", "SS", "SR"), {(2, 0): (0, 1)}).save(tmp_path / "b.json")
    told = call("compare", tmp_path / "a.json", tmp_path / "b.json")
    assert told.exit_code == 0, told.output
    assert "retrieval heads: 3 and 3, 2 in both" in told.stdout
    assert "Jaccard index: 0.500" in told.stdout
    assert "sparse in both: 2, of these 1 with the same root" in told.stdout  # 1.0 agrees, 2.0 does not


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("show", "missing.json"), "missing.json: cannot be read"),
        (("compare", "missing.json", "missing.json"), "cannot be read"),
        (("check", "--model", ".", "--heads", "missing.json"), "cannot be read"),
        (("heuristic", "--model", "no-model", "--out", "p.json"), "model no-model: cannot read config.json"),
        (("calibrate", "--model", "no-model", "--retrieval-heads", "3", "--out", "p.json"), "model no-model"),
        (("calibrate", "--model", ".", "--retrieval-heads", "3", "--out", "no/p.json"), "--out is no/p.json"),
        (("measure", "--model", ".", "--heads", "missing.json", "--out", "m.json"), "cannot be read"),
    ],
)
def test_errors_take_one_line(
    words: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = call(*words)
    assert told.exit_code == 1
    assert message in told.stderr
    assert told.stderr.count("\n") == 1
    assert told.stderr.startswith("error: ")
    assert "Traceback" not in told.output


def test_bad_settings_take_one_line(model_folder: Path, tmp_path: Path) -> None:
    told = call("calibrate", "--model", model_folder, "--retrieval-heads", "99", "--out", tmp_path / "p.json")
    assert told.exit_code == 1
    assert "retrieval heads is 99; allowed: 3" in told.stderr
    assert not (tmp_path / "p.json").exists()


def test_measure_records_scores(
    model_folder: Path, heuristic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lychee_sgl.heads.needles import NeedlePrompt

    monkeypatch.setattr(NeedlePrompt, "is_answered_by", lambda prompt, reply: bool(reply))
    told = call(
        "measure", "--model", model_folder, "--heads", heuristic, "--budget", "4000", "--questions", "2",
        "--shortest", "60", "--longest", "80", "--out", tmp_path / "m.json", "--record",
    )  # fmt: skip
    assert told.exit_code == 0, told.output
    report = json.loads((tmp_path / "m.json").read_text())
    assert report["plans"][0]["answered"] == 2
    plan = HeadPlan.load(heuristic)
    assert plan.provenance["scores"]["needles"] == [
        {"budget": 4000, "questions": 2, "answered": 2, "identical": 2, "recall": 1.0}
    ]
    assert report["plans"][0]["sha256"] == plan.sha256()
    assert "2 of 2 as dense, 2 token for token" in told.stdout
