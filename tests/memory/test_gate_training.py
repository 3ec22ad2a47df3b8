"""Generated blocks, features from an engine, the fit, and what is measured: a scripted model, made-up features."""

from __future__ import annotations

import json
import math
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from typer.testing import CliRunner

from lychee_sgl.heads.haystack import Haystack
from lychee_sgl.memory import gate_collect, gate_fit, http_model
from lychee_sgl.memory.cli import app
from lychee_sgl.memory.gate import Classifier, load
from lychee_sgl.memory.gate_collect import Features, collect
from lychee_sgl.memory.gate_examples import EARLY, NEEDED, NOT_NEEDED, SPLITS, WORLDS, sample
from lychee_sgl.memory.gate_features import NAMES, OF_WORDS
from lychee_sgl.memory.gate_fit import area, arms, fit, judged, measure, threshold_for
from lychee_sgl.memory.gate_picture import save_png
from tests.memory.scripted_model import ScriptedModel

if TYPE_CHECKING:
    from pathlib import Path

TEXT = Haystack(tuple(f"Paragraph {number} says nothing of interest at all." for number in range(900)), "test")


def test_the_halves_share_no_name_and_no_wording() -> None:
    train, held_out = (WORLDS[split] for split in SPLITS)
    assert not {*train.names, *train.people} & {*held_out.names, *held_out.people}
    words = [
        {fact.sentence for fact in world.facts} | {hops.first for hops in world.hops} for world in (train, held_out)
    ]
    assert not words[0] & words[1]
    family = [{word for name in world.people for word in name.split()} for world in (train, held_out)]
    assert not family[0] & family[1]


@pytest.mark.parametrize("split", SPLITS)
def test_a_block_holds_what_is_needed_and_nothing_else(split: Any) -> None:
    kinds: set[str] = set()
    for number in range(60):
        block = sample(split, number, 0, TEXT, 4.0)
        assert block == sample(split, number, 0, TEXT, 4.0)
        assert 4 * 490 < len(block.text) < 4 * 2600
        world = WORLDS[split]
        for asked in block.questions:
            kinds.add(asked.kind)
            said = {**dict(world.names.items()), **dict.fromkeys(world.people, "nobody else")}
            subjects = [name for name, other in said.items() if name in asked.question or other in asked.question]
            assert len(subjects) == 1
            (subject,) = subjects
            if asked.kind in ("fact", "fact named otherwise", "first hop"):
                assert subject in block.text
                assert (subject in asked.question) is (asked.kind != "fact named otherwise")
            elif asked.kind == "second hop":
                assert subject not in block.text
                assert [name for name in world.people if name in asked.notes and name in block.text]
            elif asked.kind == EARLY:
                assert asked.needed is None
            else:
                assert subject not in block.text
                assert not [name for name in world.people if name in asked.notes and name in block.text]
            assert world.names.get(subject, "nobody else") not in block.text
    assert kinds == {*NEEDED, *NOT_NEEDED, EARLY}


def model_of(names: tuple[str, ...]) -> ScriptedModel:
    model = ScriptedModel(wanted=names)
    model.name = "scripted"  # type: ignore[attr-defined]
    return model


def test_features_are_collected_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_collect, "text_of", lambda split: TEXT)
    path, told = tmp_path / "f.jsonl", []
    counts: dict[Any, int] = {"train": 2, "held-out": 1}
    model = model_of(("code",))
    kept = Features(path, model="scripted", seed=0)
    rows = collect(model, kept, counts, seed=0, tell=lambda done, of: told.append((done, of)))
    assert [row["block"] for row in rows] == ["train-0", "held-out-0", "train-1"]
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert all({*asked["features"]} == {*NAMES} for row in rows for asked in row["asked"])
    # a crash in the middle of a line: that block alone is asked again, and further ones
    path.write_text(path.read_text()[:-40])
    other = model_of(("code",))
    again = collect(
        other, Features(path, model="scripted", seed=0), {**counts, "train": 3}, seed=0, tell=lambda *_: None
    )
    assert [row for row in again if row["block"] != "train-2"] == rows
    assert 0 < len(other.asked) < len(model.asked) * 2
    with pytest.raises(ValueError, match="holds features of something else"):
        Features(path, model="another", seed=0)


def made_up(draw: Random, blocks: int, split: str) -> list[dict[str, Any]]:
    """Blocks whose need shows in `hop`, a little in the gain, and in nothing else."""
    rows = []
    for number in range(blocks):
        asked = []
        for kind in (*NEEDED, *NOT_NEEDED, EARLY):
            needed = None if kind == EARLY else kind in NEEDED
            found = {name: draw.gauss(0, 1) for name in NAMES}
            found["hop"] += 4.0 * bool(needed)
            found["gain_mean"] += 0.5 * bool(needed)
            found["noted"] = 1.0
            asked.append({"kind": kind, "needed": needed, "features": found})
        rows.append({"block": f"{split}-{number}", "split": split, "characters": 1, "asked": asked})
    return rows


def test_a_fit_finds_what_shows_and_is_measured_on_other_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_fit, "RESAMPLES", 100)
    draw = Random(1)
    rows = [*made_up(draw, 60, "train"), *made_up(draw, 40, "held-out")]
    train = judged(rows, "train")
    gate = fit(train, recall=0.95, model="m", made={"by": "test"})
    weights = {one.name: one.weight for one in gate.weights}
    assert max(weights, key=lambda name: abs(weights[name])) == "hop"
    assert abs(weights["noted"]) < 1e-6  # it never differs
    # a logistic regression's gradient is zero where it was fitted: the bias's says that probabilities sum to what is
    assert sum(map(gate.probability, train.values)) == pytest.approx(sum(train.needed), rel=1e-3)
    found = measure(rows, arms(train, gate, recall=0.95))
    json.dumps(found)
    assert (found["blocks"], found["questions"], found["needed"]) == (40, 40 * 11, 40 * 4)
    auc = {name: arm["auc"] for name, arm in found["arms"].items()}
    # two normal distributions four standard deviations apart: area = Phi(4 / sqrt 2)
    assert auc["classifier"][0] == pytest.approx(0.5 * (1 + math.erf(4 / math.sqrt(2) / math.sqrt(2))), abs=0.01)
    assert auc["gain"][0] == pytest.approx(0.5 * (1 + math.erf(0.5 / 2)), abs=0.07)
    assert all(low <= value <= high for value, low, high in auc.values())
    assert found["arms"]["classifier"]["recall"][0] == pytest.approx(0.95, abs=0.06)
    assert found["kinds"]["second hop"]["asked"] == 40
    assert found["kinds"][EARLY]["asked"] == 40
    words = fit(train, recall=0.95, model="m", made={}, names=OF_WORDS)
    assert (words.model, words.needs_gain) == (None, False)
    save_png(found, tmp_path / "gate.png")
    assert (tmp_path / "gate.png").read_bytes().startswith(b"\x89PNG")


def test_numbers_by_hand() -> None:
    score, needed = np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, False, True, True])
    assert area(score, needed) == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    scores = [0.1, 0.2, 0.3, 0.4, 0.05]
    right = [True, True, True, True, False]
    assert threshold_for(scores, right, 1.0) == 0.1
    assert threshold_for(scores, right, 0.75) == 0.2
    assert threshold_for(scores, right, 0.76) == 0.1
    with pytest.raises(ValueError, match="recall is 0; allowed: above 0, up to 1"):
        threshold_for(scores, right, 0)
    with pytest.raises(ValueError, match="the train blocks are too few"):
        judged([], "train")


def run(*words: str) -> Any:
    return CliRunner().invoke(app, ["gate", *words])


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_collect, "text_of", lambda split: TEXT)
    monkeypatch.setattr(gate_fit, "RESAMPLES", 20)
    words = tuple(word for world in WORLDS.values() for word in world.names)

    def served(address: str) -> ScriptedModel:
        assert address == "http://engine"
        model = model_of(words)
        model.close = lambda: None  # type: ignore[attr-defined]
        return model

    monkeypatch.setattr(http_model, "HttpModel", served)
    out, few = tmp_path / "gate.json", ("--blocks", "12", "--held-out", "12", "--engine-url", "http://engine")
    result = run("train", "--out", str(out), *few)
    assert result.exit_code == 0, result.output
    gate = load(str(out))
    assert isinstance(gate, Classifier)
    assert (gate.model, gate.made["blocks"], len(gate.weights)) == ("scripted", 12, len(NAMES))
    record = json.loads((tmp_path / "gate.measured.json").read_text())
    assert (record["kind"], record["blocks"], record["gate"]) == ("memory-gate", 12, gate.to_dict())
    assert (tmp_path / "gate.measured.png").exists()
    result = run("train", "--out", str(tmp_path / "words.json"), "--words-only", *few[:4])
    assert result.exit_code == 0, result.output
    alone = load(str(tmp_path / "words.json"))
    assert (alone.model, alone.needs_gain) == (None, False)
    result = run(
        "evaluate", str(out), "--out", str(tmp_path / "e.json"), "--features", str(out.with_suffix(".jsonl")), *few
    )
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "e.json").read_text())["arms"] == record["arms"]


def test_what_the_commands_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_collect, "text_of", lambda split: TEXT)
    out = str(tmp_path / "gate.json")
    for words, told in (
        (("train", "--out", out, "--engine-url", "http://127.0.0.1:1"), "error: http://127.0.0.1:1/lychee/info: "),
        (("train", "--out", str(tmp_path / "no" / "gate.json")), "allowed: a file in a folder that exists"),
        (("train", "--out", out, "--record", out), "gate, measurement and features, each its own"),
        (("train", "--out", f"{out}l"), "gate, measurement and features, each its own"),
        (("evaluate", "1.2", "--out", out), "allowed: a file or a name"),
        (("evaluate", "no-such", "--out", out), "'no-such' is no file, allowed"),
    ):
        result = run(*words)
        assert (result.exit_code, told in result.output) == (1, True), result.output
    assert run("train", "--out", out, "--recall", "1.5").exit_code == 2
    assert not list(tmp_path.iterdir())
