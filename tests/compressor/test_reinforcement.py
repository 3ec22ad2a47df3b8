"""Reinforcing a tiny model: the reader's adapter, the objective by hand, state, command."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from lychee_sgl.compressor.cli import UNFINISHED, app
from lychee_sgl.compressor.course import TrainingError
from lychee_sgl.compressor.data import Samples
from lychee_sgl.compressor.documents import Documents
from lychee_sgl.compressor.folder import READER
from lychee_sgl.compressor.model import Compressor, load_compressor, shape_of
from lychee_sgl.compressor.parts import Parts
from lychee_sgl.compressor.play import compressed
from lychee_sgl.compressor.reinforce import COLUMNS, Lesson, Line, Reinforcer
from lychee_sgl.compressor.settings import ReinforceSettings
from tests.compressor.conftest import LONG, RATIOS, SETTINGS, SMALL, TEXT, drawn_model, shaken, with_reader


@pytest.fixture
def samples(tokenizer: Any) -> Samples:
    return Samples(tokenizer, TEXT, window=LONG, settings=SETTINGS)


def test_a_new_reader_changes_nothing_and_a_trained_one_only_the_reading(tokenizer: Any) -> None:
    plain, compressor = with_reader(tokenizer, rank=0), with_reader(tokenizer)
    ids = torch.arange(10, 26).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(plain.read(plain.embed(ids)), compressor.read(compressor.embed(ids)))
        before = compressor(ids, 4)
        for name, value in compressor.trained().items():
            if f".{READER}." in name:
                value += 0.1
        assert torch.equal(compressor(ids, 4), before)
        assert not torch.allclose(plain.read(plain.embed(ids)), compressor.read(compressor.embed(ids)))
    assert len(compressor.trained()) == len(plain.trained()) + 2 * 7 * 2


def test_gradients_reach_compressor_and_reader_through_the_blocks(tokenizer: Any) -> None:
    compressor = shaken(with_reader(tokenizer))
    compressor.read(compressor(torch.arange(10, 26).unsqueeze(0), 4)).square().sum().backward()
    missing = {name for name, value in compressor.trained().items() if value.grad is None or not value.grad.any()}
    assert missing == set()


def test_the_gradient_is_that_of_the_objective_by_hand(tokenizer: Any, samples: Samples) -> None:
    """Before the first update every ratio is 1: the gradient is that of the mean of advantage times log-likelihood."""
    compressor = shaken(with_reader(tokenizer))
    reinforcer = Reinforcer(compressor, Documents(samples, SMALL), SMALL, {})
    _, tasks, played = reinforcer._played(0)
    signs = (1.0, -2.0, 0.5)
    lessons = [
        Lesson(task, tuple(Line(one.conversations[0], sign) for one, sign in zip(group, signs, strict=True)))
        for task, group in zip(tasks, played, strict=True)
    ]
    tokens = sum(len(line.conversation.said) for lesson in lessons for line in lesson.lines)
    found = [reinforcer._gradient([lesson], 4, tokens) for lesson in lessons]
    assert found == [(0.0, 0.0)] * len(lessons)
    seen = {name: value.grad.clone() for name, value in compressor.trained().items() if value.grad is not None}
    reinforcer._forget()
    total = torch.zeros(())
    for lesson in lessons:
        document = compressed(compressor, [lesson.task], 4)[0]
        for line in lesson.lines:
            prompt, said = line.conversation.prompt, torch.tensor(line.conversation.said)
            rows = [compressor.embed(torch.tensor(prompt.before)), document.flatten(0, 1)]
            rows += [compressor.embed(torch.tensor(prompt.after)), compressor.embed(said[:-1])]
            scores = compressor.logits(compressor.read(torch.cat(rows).unsqueeze(0)))[0, -len(said) :].log_softmax(-1)
            total = total - line.advantage * scores[torch.arange(len(said)), said].sum() / tokens
    total.backward()
    for name, value in compressor.trained().items():
        torch.testing.assert_close(seen[name], value.grad, atol=1e-6, rtol=1e-3)


def test_the_ratio_is_clipped_and_the_divergence_counted(tokenizer: Any, samples: Samples) -> None:
    settings = replace(SMALL, kl=0.5, clip=0.2)
    compressor = shaken(with_reader(tokenizer))
    reinforcer = Reinforcer(compressor, Documents(samples, settings), settings, {})
    _, tasks, played = reinforcer._played(0)
    conversation = played[0][0].conversations[0]
    count = len(conversation.said)
    line = Line(conversation, 1.0)
    lesson = Lesson(tasks[0], (line,))
    with torch.no_grad():
        scores, _ = reinforcer._scores([lesson], 4)
    line.old = scores - math.log(1.5)  # half as likely again as it was: over the bound of 1.2
    line.start = scores + 1.0
    clipped, divergence = reinforcer._gradient([lesson], 4, count)
    assert clipped == pytest.approx(1.0)
    assert divergence == pytest.approx(math.e - 2, rel=1e-4)
    upward = {name: value.grad.clone() for name, value in compressor.trained().items() if value.grad is not None}
    reinforcer._forget()
    line.advantage, line.start = 0.0, scores + 1.0
    reinforcer._gradient([lesson], 4, count)  # what was clipped gives nothing: only the divergence pulls
    for name, value in compressor.trained().items():
        torch.testing.assert_close(upward[name], value.grad, atol=1e-7, rtol=1e-4)


def test_what_is_rewarded_becomes_likelier_and_the_rest_less(tokenizer: Any, samples: Samples) -> None:
    settings = replace(SMALL, passes=2, warmup=0)
    reinforcer = Reinforcer(with_reader(tokenizer), Documents(samples, settings), settings, {})
    _, tasks, played = reinforcer._played(0)
    signs = (1.0, -1.0, 0.0)
    lessons = [
        Lesson(task, tuple(Line(one.conversations[0], sign) for one, sign in zip(group, signs, strict=True)))
        for task, group in zip(tasks, played, strict=True)
    ]

    def likelihood(number: int) -> float:
        with torch.no_grad():
            scores, row = reinforcer._scores(lessons, 4)
        return float(scores[row % len(signs) == number].sum())

    before = [likelihood(number) for number in (0, 1)]
    clipped, divergence = reinforcer._learn(lessons, 4)
    assert likelihood(0) > before[0] + 0.1
    assert likelihood(1) < before[1] - 0.1
    assert 0.0 <= clipped < 1.0
    assert divergence == 0.0


def test_groups_of_equal_totals_change_nothing(tokenizer: Any, samples: Samples) -> None:
    reinforcer = Reinforcer(with_reader(tokenizer), Documents(samples, SMALL), SMALL, {})
    before = reinforcer.weights()
    reinforcer.run()
    rows = reinforcer.history
    assert [row[COLUMNS.index("groups_that_differ")] for row in rows] == [0.0] * SMALL.steps  # nobody guesses a number
    assert all(torch.equal(value, before[name]) for name, value in reinforcer.compressor.trained().items())


@pytest.mark.parametrize("loop", [False, True])
def test_a_resumed_reinforcement_has_the_same_bits(
    tokenizer: Any, samples: Samples, tmp_path: Path, loop: bool
) -> None:
    settings = replace(SMALL, gated=False, form=1.0, kl=0.1, loop=loop)

    def fresh(start: str = "a") -> Reinforcer:
        return Reinforcer(with_reader(tokenizer), Documents(samples, settings), settings, {"start": start})

    whole, half, rest, state = fresh(), fresh(), fresh(), tmp_path / "state"
    whole.run()
    assert half.run(state=state, until=0.0) is False

    class Stop(Exception):
        pass

    def stop(report: Any) -> None:
        if report.step == 1:
            raise Stop

    with pytest.raises(Stop):
        half.run(state=state, every=2, tell=stop)
    rest.resume(state)
    assert rest.step == 2
    rest.run(state=state)
    moved = fresh().weights()
    for name, value in whole.compressor.trained().items():
        assert torch.equal(rest.compressor.trained()[name], value), name
    assert any(not torch.equal(value, moved[name]) for name, value in whole.compressor.trained().items())
    seconds = COLUMNS.index("seconds")
    assert [row[:seconds] + row[seconds + 1 :] for row in rest.history] == [
        row[:seconds] + row[seconds + 1 :] for row in whole.history
    ]
    with pytest.raises(ValueError, match="another training: start was 'a' and is 'b'"):
        fresh("b").resume(state)


def test_scores_that_are_no_numbers_stop_it(tokenizer: Any, samples: Samples) -> None:
    reinforcer = Reinforcer(with_reader(tokenizer), Documents(samples, SMALL), SMALL, {})
    with torch.no_grad():
        reinforcer.compressor.readout.fill_(math.nan)
    with pytest.raises(TrainingError, match="step 0: the model's scores are not finite"):
        reinforcer.run()


def test_parts_are_halved_when_memory_is_out() -> None:
    """The device's error is raised by hand: a CPU has none."""
    seen: list[int] = []
    begun: list[None] = []

    def work(rows: Any) -> int:
        seen.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return sum(rows)

    parts: Parts[int, int] = Parts(100)
    assert parts.run([1, 2, 3, 4, 5, 6, 7], work, lambda: begun.append(None)) == [3, 7, 11, 7]
    assert (seen, parts.rows, len(begun)) == ([7, 4, 2, 2, 2, 1], 2, 2)
    with pytest.raises(torch.OutOfMemoryError):
        parts.run([1], lambda rows: work([1, 1, 1]), lambda: None)


def test_settings_are_refused() -> None:
    for change, said in (
        ({"group": 1}, "group is 1; allowed: 2 or more"), ({"clip": 0.0}, "clip is 0.0; allowed: a number above 0"),
        ({"kl": -1.0}, "kl is -1.0; allowed: a number from 0 on"), ({"gate": 0.0}, "gate 0.0; allowed: shares"),
        ({"ratios": ()}, "one or more of the compressor's"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            ReinforceSettings(**change)


def test_from_a_compressor_to_a_judged_policy(folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    start, out = tmp_path / "start", tmp_path / "made"
    shaken(with_reader(tokenizer, rank=0)).save(start)
    asked = ["reinforce", "--model", str(folder), "--compressor", str(start), "--out", str(out), "--tasks", "2"]
    asked += ["--group", "2", "--windows", "2", "--limit", "4", "--reader-rank", "2", "--questions", "4", "--direct"]
    asked += ["--package", "rich", "--device", "cpu", "--form", "1"]
    ended = CliRunner().invoke(app, [*asked, "--steps", "2", "--minutes", "0"])
    assert ended.exit_code == UNFINISHED, ended.output
    assert "none is answered yet" in ended.output
    ended = CliRunner().invoke(app, [*asked, "--steps", "2"])
    assert "holds an unfinished training; go on with --resume" in ended.output
    ended = CliRunner().invoke(app, [*asked, "--steps", "2", "--resume"])
    assert ended.exit_code == 0, ended.output
    assert "step 2 of 2: ratio 4, total 0." in ended.output
    ended = CliRunner().invoke(app, [*asked, "--steps", "2", "--resume"])
    assert (ended.exit_code, "is complete; without --resume" in ended.output) == (0, True)
    record = json.loads((out / "reinforcement.json").read_text())
    assert (record["complete"], record["steps_done"], len(record["history"])) == (True, 2, 2)
    assert record["before"]["4"]["all"] == [0.0, 0.0, 0.4899, 4]
    assert record["changed"] == {"4": {"gained": 0, "lost": 0}}
    assert str(tmp_path) not in record["command"]
    assert {path.name for path in out.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "compressor.json", "compressor.safetensors", READER,
        "reinforcement.json",
    }  # fmt: skip
    assert {path.name for path in (out / READER).iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    again = load_compressor(out, drawn_model(tokenizer))
    again.add_reader(adapter=out / READER)
    assert any(value.any() for name, value in again.trained().items() if f"lora_B.{READER}" in name)
    few = ["--compressor", str(out), "--windows", "2", "--questions", "2"]
    ended = CliRunner().invoke(app, ["evaluate", "--model", str(folder), *few, "--reader"])
    assert ended.exit_code == 0, ended.output
    assert json.loads((out / "evaluation.json").read_text())["reader"] == "adapter"
    further = [word if word != str(start) else str(out) for word in asked]
    further[further.index("--out") + 1] = str(tmp_path / "further")
    ended = CliRunner().invoke(app, [*further, "--minutes", "0"])  # no steps: what fits is all there is to be
    assert ended.exit_code == 0, ended.output
    png, table = tmp_path / "curves.png", tmp_path / "table.json"
    pair = [str(out / "reinforcement.json"), str(tmp_path / "further" / "reinforcement.json")]
    ended = CliRunner().invoke(app, ["plot", *pair, "--png", str(png), "--table", str(table)])
    assert ended.exit_code == 0, ended.output
    assert "direct, seed 0, 2 steps: ratio 4: 0.0% (0.0% to 49.0%) before" in " ".join(ended.output.split())
    assert png.read_bytes().startswith(b"\x89PNG")
    assert [row["steps_done"] for row in json.loads(table.read_text())] == [2, 0]


def test_what_cannot_be_reinforced(folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    start, other = tmp_path / "start", tmp_path / "other"
    with_reader(tokenizer, rank=0).save(start)
    model = drawn_model(tokenizer, layers=1)
    Compressor(model, shape_of(model, ratios=RATIOS, window=LONG, rank=2)).save(other)

    def said(*words: str, compressor: Path = start, out: str = "made") -> str:
        given = ["--model", str(folder), "--compressor", str(compressor), "--out", str(tmp_path / out)]
        ended = CliRunner().invoke(app, ["reinforce", *given, "--device", "cpu", "--package", "rich", *words])
        assert ended.exit_code == 1
        return " ".join(ended.output.split())

    assert "neither steps nor minutes are given" in said()
    assert "where it starts from; allowed: another folder" in said("--steps", "1", out="start")
    assert "the compressor is for" in said("--steps", "1", compressor=other)
    assert "allowed: a folder that a training wrote" in said("--steps", "1", compressor=folder)
    assert "ratio is 3; allowed: 2, 4" in said("--steps", "1", "--ratio", "3")
