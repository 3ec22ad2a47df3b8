"""Samples, training, evaluation and the command line, with a tiny model."""

import json
import math
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from lychee_sgl.compressor.cli import UNFINISHED, app
from lychee_sgl.compressor.course import TrainingError
from lychee_sgl.compressor.data import Sample, Samples
from lychee_sgl.compressor.evaluate import ARMS, BOUNDS, evaluate, held_out_samples, standing_for
from lychee_sgl.compressor.model import Compressor
from lychee_sgl.compressor.reader import read, task_means
from lychee_sgl.compressor.run import Job, measure, pilot, train
from lychee_sgl.compressor.settings import TASKS, TrainSettings
from lychee_sgl.compressor.trainer import Trainer
from tests.compressor.conftest import RATIOS, SETTINGS, TEXT, WINDOW


@pytest.fixture
def samples(tokenizer: Any) -> Samples:
    return Samples(tokenizer, TEXT, window=WINDOW, settings=SETTINGS)


class OneWindow(Samples):
    """The same window to reconstruct in every step."""

    def batch(self, step: int) -> list[Sample]:
        del step
        return [self.sample("reconstruct", Random(0))]


def test_training_brings_the_loss_down_and_leaves_the_model_alone(compressor: Compressor, tokenizer: Any) -> None:
    settings = TrainSettings(steps=60, batch=3, target=8, facts=1, rate=0.03, warmup=0.0, decay=0.5)
    samples = OneWindow(tokenizer, TEXT, window=8, settings=settings)
    frozen = {name: value.clone() for name, value in compressor.named_parameters() if not value.requires_grad}
    trainer = Trainer(compressor, samples, settings, {})
    assert trainer.run()
    first, last = (sum(row[2] for row in rows) / len(rows) for rows in (trainer.history[:6], trainer.history[-6:]))
    assert last < first - 0.05  # a reader with drawn weights is hard to move
    assert {row[0] for row in trainer.history} == set(RATIOS)
    after = {name: value for name, value in compressor.named_parameters() if not value.requires_grad}
    assert all(torch.equal(after[name], value) for name, value in frozen.items())


def test_a_resumed_training_has_the_same_bits(tokenizer: Any, samples: Samples, tmp_path: Path) -> None:
    from lychee_sgl.compressor.model import shape_of
    from tests.compressor.conftest import drawn_model

    def fresh(settings: TrainSettings = SETTINGS, text: str = "a") -> Trainer:
        model = drawn_model(tokenizer)
        made = Compressor(model, shape_of(model, ratios=RATIOS, window=WINDOW, rank=2), seed=settings.seed)
        return Trainer(made, samples, settings, {"text": text})

    whole = fresh()
    whole.run()
    state = tmp_path / "state"
    first = fresh()
    assert first.run(state=state, every=2, until=math.inf)
    half = fresh()
    steps: list[int] = []

    class Stop(Exception):
        pass

    def stop(report: Any) -> None:
        steps.append(report.step)
        if report.step == 3:
            raise Stop

    with pytest.raises(Stop):
        half.run(state=state, every=2, tell=stop)
    rest = fresh()
    rest.resume(state)
    assert rest.step == 4
    rest.run(state=state)
    for name, value in whole.compressor.trained().items():
        assert torch.equal(rest.compressor.trained()[name], value), name
    assert [row[2:] for row in rest.history] == [row[2:] for row in whole.history]
    with pytest.raises(ValueError, match="another training: text was 'a' and is 'b'"):
        fresh(text="b").resume(state)


def test_where_steps_take_minutes_each_is_saved(
    compressor: Compressor, samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill used to cost up to 200 steps, hours of them on a CPU."""
    monkeypatch.setattr("lychee_sgl.compressor.course.SAVED_AGAIN", -1.0)
    trainer, state, saved = Trainer(compressor, samples, SETTINGS, {}), tmp_path / "state", []
    trainer.run(state=state, tell=lambda report: saved.append(torch.load(state, weights_only=True)["step"]))
    assert saved == list(range(1, SETTINGS.steps + 1))


def test_a_loss_that_is_no_number_stops_the_training(compressor: Compressor, samples: Samples) -> None:
    with torch.no_grad():
        compressor.readout.fill_(math.nan)
    with pytest.raises(TrainingError, match="step 0: losses are"):
        Trainer(compressor, samples, SETTINGS, {}).run()


def test_pace_trains_nothing(compressor: Compressor, samples: Samples) -> None:
    trainer = Trainer(compressor, samples, SETTINGS, {})
    before = {name: value.clone() for name, value in compressor.trained().items()}
    assert trainer.pace(rounds=1) > 0
    assert all(torch.equal(value, before[name]) for name, value in compressor.trained().items())
    assert all(value.grad is None for value in compressor.trained().values())


def test_what_stands_for_a_window(compressor: Compressor) -> None:
    ids = torch.arange(10, 18).unsqueeze(0)
    embedded = compressor.embed(ids)
    shown = {arm: standing_for(compressor, ids, arm, 1 if arm in BOUNDS else 4)[0] for arm in (*ARMS, *BOUNDS)}
    assert {arm: len(rows) for arm, rows in shown.items()} == {
        "trained": 2, "untrained": 2, "truncation": 2, "nothing": 0, "whole": 8,
    }  # fmt: skip
    assert torch.equal(shown["truncation"], embedded[0, :2])
    torch.testing.assert_close(shown["untrained"][1], embedded[0, 4:].mean(0))
    torch.testing.assert_close(shown["trained"], shown["untrained"])  # before the first step
    with pytest.raises(ValueError, match="arm is 'x'"):
        standing_for(compressor, ids, "x", 4)


def test_evaluation_of_a_compressor_that_was_not_trained(compressor: Compressor, tokenizer: Any) -> None:
    repeat, answer = held_out_samples(tokenizer, TEXT, SETTINGS, window=WINDOW, windows=3, questions=4)
    told: list[str] = []
    found = evaluate(compressor, repeat, answer, batch=2, tell=told.append)
    assert list(found["ratios"]) == ["2", "4"]
    for arms in found["ratios"].values():
        assert arms["trained"] == arms["untrained"]
    scores = [*found["bounds"].values(), *(score for arms in found["ratios"].values() for score in arms.values())]
    assert all(0 <= score["token_accuracy"][0] <= 1 and score["token_loss"] > 0 for score in scores)
    assert len(told) == len(scores) == 2 + 2 * 3
    json.dumps(found, allow_nan=False)
    with pytest.raises(ValueError, match="windows is 1"):
        held_out_samples(tokenizer, TEXT, SETTINGS, window=WINDOW, windows=1, questions=4)


def test_from_a_folder_to_an_evaluated_compressor(folder: Path, tmp_path: Path) -> None:
    out, text = tmp_path / "made", tmp_path / "more.txt"
    text.write_text("\n\n".join(f"{one} {one}" for one in TEXT), encoding="utf-8")
    small = ["--window", "64", "--ratio", "2", "--ratio", "4", "--rank", "2", "--batch", "3", "--target", "8"]
    asked = ["train", "--model", str(folder), "--out", str(out), *small, "--text", str(text), "--package", "rich"]
    asked += ["--device", "cpu"]
    ended = CliRunner().invoke(app, [*asked, "--steps", "4", "--minutes", "0"])
    assert ended.exit_code == UNFINISHED, ended.output
    assert json.loads((out / "training.json").read_text())["complete"] is False
    ended = CliRunner().invoke(app, [*asked, "--steps", "4"])
    assert "holds an unfinished training; go on with --resume" in ended.output
    ended = CliRunner().invoke(app, [*asked, "--steps", "4", "--resume"])
    assert ended.exit_code == 0, ended.output
    weights = (out / "compressor.safetensors").stat().st_mtime_ns
    ended = CliRunner().invoke(app, [*asked, "--steps", "4", "--resume"])  # a script that goes on until it is done
    assert (ended.exit_code, "is complete; without --resume" in ended.output) == (0, True)
    assert (out / "compressor.safetensors").stat().st_mtime_ns == weights
    record = json.loads((out / "training.json").read_text())
    assert (record["complete"], record["steps_done"], len(record["history"])) == (True, 4, 4)
    assert not (out / "training.checkpoint").exists()
    ended = CliRunner().invoke(
        app, ["evaluate", "--model", str(folder), "--compressor", str(out), "--windows", "2", "--questions", "2"]
    )
    assert ended.exit_code == 0, ended.output
    assert "truncation at ratio 4:" in ended.output
    assert set(json.loads((out / "evaluation.json").read_text())["ratios"]) == {"2", "4"}
    png = tmp_path / "curves.png"
    assert CliRunner().invoke(app, ["plot", str(out / "training.json"), "--png", str(png)]).exit_code == 0
    assert png.read_bytes().startswith(b"\x89PNG")
    ended = CliRunner().invoke(app, ["plot", str(out / "compressor.json"), "--png", str(png)])
    assert "is not the record of a compressor's training" in ended.output


def test_steps_that_fit_are_kept_by_a_training_that_goes_on(folder: Path, tmp_path: Path) -> None:
    settings = TrainSettings(batch=3, target=8, facts=1)
    job = Job(
        model=folder, out=tmp_path / "made", settings=settings, fit=True, minutes=0.005, ratios=RATIOS, window=WINDOW,
        rank=2, packages=("rich",), device="cpu",
    )  # fmt: skip
    said: list[str] = []
    assert train(job, say=said.append) is False  # reading the text took the time
    assert "steps fit into 0.005 minutes" in said[1]
    steps = json.loads((tmp_path / "made" / "training.json").read_text())["settings"]["steps"]
    again = Job(**{**{name: getattr(job, name) for name in Job.__slots__}, "resume": True, "minutes": 10.0})
    assert train(again, say=said.append) is True
    assert json.loads((tmp_path / "made" / "training.json").read_text())["steps_done"] == steps
    (tmp_path / "made" / "training.checkpoint").write_bytes(b"torn")
    with pytest.raises(ValueError, match="is not a checkpoint"):
        train(again, say=said.append)
    with pytest.raises(ValueError, match="without minutes to fit into"):
        train(Job(model=folder, out=tmp_path / "x", settings=settings, fit=True), say=said.append)
    with pytest.raises(ValueError, match="allowed: a folder that transformers reads"):
        measure(tmp_path, tmp_path, windows=2, questions=2)


def test_a_pilot_picks_a_rate_that_learns_and_leaves_no_trace(compressor: Compressor, tokenizer: Any) -> None:
    settings = TrainSettings(steps=1000, batch=3, target=8, facts=1, warmup=0.0)
    samples = OneWindow(tokenizer, TEXT, window=8, settings=settings)
    before = {name: value.clone() for name, value in compressor.trained().items()}
    said: list[str] = []
    best, found = pilot(compressor, samples, settings, (0.1, 1e-6), 12, said.append)
    assert best == 0.1
    assert list(found) == ["1e-06", "0.1"]
    assert found["0.1"] < 0.99 * found["1e-06"]
    assert len(said) == 2
    assert all(torch.equal(value, before[name]) for name, value in compressor.trained().items())
    assert pilot(compressor, samples, settings, (1.1e-6, 1e-6), 1, said.append)[0] == 1e-6  # as good: the lower one
    with torch.no_grad():
        compressor.readout.fill_(math.nan)
    with pytest.raises(ValueError, match=r"sweep is 0\.01; allowed: a rate that keeps the loss finite"):
        pilot(compressor, samples, settings, (0.01,), 2, said.append)
    assert "step 0: losses are" in said[-1]


def test_losses_and_gradients_of_parts_add_up_to_those_of_the_whole(compressor: Compressor, tokenizer: Any) -> None:
    settings = TrainSettings(steps=1, batch=9, target=8, facts=1)
    samples = Samples(tokenizer, TEXT, window=WINDOW, settings=settings)
    trainer = Trainer(compressor, samples, settings, {})
    seen = []
    for rows in (9, 2):
        trainer._parts.rows = rows
        losses = {task: float(loss) for task, loss in trainer._learn(samples.batch(0), 4)[0].items()}
        seen.append((losses, {name: value.grad for name, value in compressor.trained().items()}))
        trainer._forget()
    (whole, gradient), (parts, other) = seen
    assert list(whole) == list(parts) == list(TASKS)
    assert parts == pytest.approx(whole, rel=1e-5)
    for name, value in gradient.items():
        torch.testing.assert_close(other[name], value, atol=1e-6, rtol=1e-3)
    batch = samples.batch(0)
    assert {len(sample.window) // WINDOW for sample in batch} > {1}
    with torch.no_grad():
        blocks = [compressor(torch.tensor(one.window).unflatten(0, (-1, WINDOW)), 4).flatten(0, 1) for one in batch]
        wanted = task_means(read(compressor, batch, blocks).loss, batch)
    assert whole == pytest.approx({task: float(loss) for task, loss in wanted.items()}, rel=1e-5)


def test_a_reader_may_learn_with_its_compressor(folder: Path, tmp_path: Path) -> None:
    settings = TrainSettings(steps=2, batch=3, target=8, facts=1, warmup=0.0)
    job = Job(
        model=folder, out=tmp_path / "made", settings=settings, ratios=RATIOS, window=WINDOW, rank=2, reader_rank=2,
        sweep=(0.001, 0.01), pilot=1, packages=("rich",), device="cpu",
    )  # fmt: skip
    said: list[str] = []
    assert train(job, say=said.append)
    record = json.loads((tmp_path / "made" / "training.json").read_text())
    assert set(record["pilot"]) == {"0.001", "0.01"}
    assert record["columns"] == ["ratio", "seconds", *TASKS, "drift"]
    assert [len(row) for row in record["history"]] == [6, 6]
    assert [row[-1] > 0 for row in record["history"]] == [False, True]  # before its first step the reader is the model
    assert record["settings"]["rate"] in (0.001, 0.01)
    kept = load_file(tmp_path / "made" / "reader" / "adapter_model.safetensors")
    assert any("lora_B" in name and value.any() for name, value in kept.items())
    told = measure(folder, tmp_path / "made", windows=2, questions=2, reader=True)
    assert told["bounds"]["whole"] != measure(folder, tmp_path / "made", windows=2, questions=2)["bounds"]["whole"]
    assert told["reader"] == "adapter"
    plain = Job(**{**{name: getattr(job, name) for name in Job.__slots__}, "reader_rank": 0, "sweep": ()})
    assert train(plain, say=said.append)  # over a compressor that had a reader: that is gone, too
    with pytest.raises(ValueError, match="allowed: a folder with an adapter for this model"):
        measure(folder, tmp_path / "made", windows=2, questions=2, reader=True)
