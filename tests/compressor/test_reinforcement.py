"""Playing and reinforcing with a tiny model: tasks, sampling, trajectories, the objective by hand, state, command."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from lychee_sgl.compressor import play
from lychee_sgl.compressor.cli import UNFINISHED, app
from lychee_sgl.compressor.course import TrainingError
from lychee_sgl.compressor.data import Samples
from lychee_sgl.compressor.documents import Documents, Task
from lychee_sgl.compressor.folder import READER
from lychee_sgl.compressor.model import Compressor, load_compressor, shape_of
from lychee_sgl.compressor.parts import Parts
from lychee_sgl.compressor.play import Player, chain_of, compressed
from lychee_sgl.compressor.reinforce import COLUMNS, Lesson, Line, Reinforcer
from lychee_sgl.compressor.sampler import Said, say, stop_tokens
from lychee_sgl.compressor.settings import ReinforceSettings
from tests.compressor.conftest import RATIOS, SETTINGS, TEXT, WINDOW, drawn_model, shaken

SMALL = ReinforceSettings(
    steps=3, tasks=2, group=3, ratios=(2, 4), windows=2, others=1, limit=5, rate=0.01, warmup=2, reader_rank=2
)
LONG = 2 * WINDOW


@pytest.fixture
def samples(tokenizer: Any) -> Samples:
    return Samples(tokenizer, TEXT, window=LONG, settings=SETTINGS)


def made(tokenizer: Any, *, rank: int = 2) -> Compressor:
    model = drawn_model(tokenizer)
    compressor = Compressor(model, shape_of(model, ratios=RATIOS, window=LONG, rank=2))
    if rank:
        compressor.add_reader(rank)
    return compressor


def text_of(task: Task, tokenizer: Any) -> str:
    return str(tokenizer.decode([token for window in task.windows for token in window]))


@pytest.mark.parametrize("loop", [False, True])
def test_the_answer_of_a_task_stands_in_its_document(samples: Samples, tokenizer: Any, loop: bool) -> None:
    documents = Documents(samples, replace(SMALL, windows=3, others=2, loop=loop))
    hops = set()
    for number in range(40):
        task = documents.task(Random(number))
        assert [len(window) for window in task.windows] == [LONG] * 3
        whole = text_of(task, tokenizer)
        hops.add(task.hops)
        if task.hops == 1:
            assert f"{task.stem} {task.value}." in whole
            continue
        first = f"{task.stem} the same as for the "
        other = whole.partition(first)[2].partition(".")[0]
        name = next(name for name in samples.names if name in task.stem)
        second = f"{task.stem.replace(name, other)} {task.value}."
        windows = [tokenizer.decode(window) for window in task.windows]
        (points,), (holds,) = ([at for at, text in enumerate(windows) if fact in text] for fact in (first, second))
        assert points <= holds or not loop
    assert hops == {1, 2}
    assert documents.batch(3) == documents.batch(3) != documents.batch(4)
    with pytest.raises(ValueError, match="others is 31; allowed: up to 30"):
        Documents(samples, replace(SMALL, others=31))
    with pytest.raises(ValueError, match="allowed: more than 128000, a document"):
        Documents(samples, replace(SMALL, windows=1000))


def test_a_new_reader_changes_nothing_and_a_trained_one_only_the_reading(tokenizer: Any) -> None:
    plain, compressor = made(tokenizer, rank=0), made(tokenizer)
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
    compressor = shaken(made(tokenizer))
    compressor.read(compressor(torch.arange(10, 26).unsqueeze(0), 4)).square().sum().backward()
    missing = {name for name, value in compressor.trained().items() if value.grad is None or not value.grad.any()}
    assert missing == set()


def test_what_is_said_greedily_is_what_the_whole_pass_finds_likeliest(tokenizer: Any) -> None:
    compressor = shaken(made(tokenizer))
    with torch.no_grad():
        prompts = [compressor.embed(torch.arange(start, start + count)) for start, count in ((10, 9), (40, 4), (70, 6))]
    never = torch.zeros(len(tokenizer), dtype=torch.bool)
    told = say(compressor, prompts, limit=6, stops=never, rows=2)
    for prompt, one in zip(prompts, told, strict=True):
        assert not one.ended
        rows = torch.cat((prompt, compressor.embed(torch.tensor(one.tokens[:-1])))).unsqueeze(0)
        scores = compressor.logits(compressor.read(rows))[0, len(prompt) - 1 :]
        assert scores.argmax(-1).tolist() == list(one.tokens)
    stops = never.clone()
    stops[told[0].tokens[2]] = True
    cut = say(compressor, prompts[:1], limit=6, stops=stops)[0]
    place = told[0].tokens.index(told[0].tokens[2])
    assert cut == Said(told[0].tokens[: place + 1], True)


def test_sampling_follows_from_its_generator(tokenizer: Any) -> None:
    compressor = made(tokenizer)
    prompts = [compressor.embed(torch.arange(10, 15)).detach()] * 4
    never = torch.zeros(len(tokenizer), dtype=torch.bool)

    def drawn(seed: int) -> list[Said]:
        return say(compressor, prompts, limit=6, stops=never, draw=torch.Generator().manual_seed(seed))

    assert drawn(1) == drawn(1) != drawn(2)
    assert len({one.tokens for one in drawn(1)}) > 1


def test_stop_tokens_are_full_stops_line_ends_and_ends_of_turns(tokenizer: Any) -> None:
    stops = stop_tokens(tokenizer, len(tokenizer) + 3)
    assert stops.shape == (len(tokenizer) + 3,)
    for text, ends in ((".", True), ("\n", True), ("7", False), (" wind", False)):
        assert [bool(stops[token]) for token in tokenizer(text)["input_ids"]] == [ends] * len(
            tokenizer(text)["input_ids"]
        )
    assert stops[tokenizer.eos_token_id]
    assert stops[tokenizer.bos_token_id]


def speaking(player: Player, monkeypatch: pytest.MonkeyPatch, answer: Callable[[int], str]) -> list[int]:
    """A reader that says what it is told to, at its n-th call; the rest is real."""
    shown: list[int] = []

    def said(compressor: Any, prompts: Any, **given: Any) -> list[Said]:
        shown.extend(map(len, prompts))
        text = answer(len(shown))
        ids = player.samples.ids(text)
        return [Said(tuple(ids), text.endswith(".")) for _ in prompts]

    monkeypatch.setattr(play, "say", said)
    return shown


def task_with(samples: Samples, hops: int, *, loop: bool) -> Task:
    documents = Documents(samples, replace(SMALL, loop=loop, two_hop=float(hops == 2)))
    return documents.task(Random(0))


def test_rewards_of_an_answer_over_all_blocks(
    tokenizer: Any, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    player = Player(made(tokenizer), samples, SMALL)
    task = replace(task_with(samples, 1, loop=False), value="1234567")
    for text, right, evidence, ended in (
        (" 1234567.", 1.0, 1.0, True), (" 1234567", 1.0, 1.0, False), (" 1230000.", 0.0, 3 / 7, True),
        (" 12345678.", 0.0, 1.0, True), (".", 0.0, 0.0, True), (" 7 or 1234567.", 0.0, 0.0, True),
    ):  # fmt: skip
        form = max(0.0, 1 - (len(samples.ids(text)) - 1) / 5) if ended else 0.0  # of 5 tokens at most
        shown = speaking(player, monkeypatch, lambda _, text=text: text)  # type: ignore[misc]
        ((one,),) = player.play([task], 4)
        assert one.rewards == [{"outcome": right, "evidence": evidence, "format": form}]
        assert one.right is bool(right)
        prompt = one.conversations[0].prompt
        assert shown == [len(prompt.before) + SMALL.windows * LONG // 4 + len(prompt.after)]
    assert form == 0.0  # a long one
    assert len(samples.ids(".")) == 1  # at once: 1
    farmed = [{"outcome": 0.0, "evidence": 0.0, "format": 1.0}]
    assert chain_of(SMALL).total(farmed) == 0.0
    assert chain_of(replace(SMALL, gated=False)).total(farmed) == 0.05
    assert chain_of(SMALL).total([{"outcome": 1.0, "evidence": 1.0, "format": 1.0}]) == 1.25


def test_window_by_window_the_notes_are_all_that_is_carried(
    tokenizer: Any, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SMALL, loop=True)
    player = Player(made(tokenizer), samples, settings)
    task = task_with(samples, 1, loop=True)
    told = [" 5.", f" {task.value}.", f" {task.value}."]
    speaking(player, monkeypatch, lambda call: told[call - 1])
    ((one,),) = player.play([task], 4)
    assert [conversation.prompt.windows for conversation in one.conversations] == [(0,), (1,), ()]
    shown = [tokenizer.decode(conversation.prompt.after) for conversation in one.conversations]
    assert [text.count(task.stem) for text in shown] == [1, 2, 2]  # the answer's beginning, and the notes
    assert f"{task.stem} 5." in shown[1]
    assert f"{task.stem} {task.value}." in shown[2]
    assert one.rewards == [
        {"evidence": 0.0, "format": 1.0}, {"evidence": 1.0, "format": 1.0}, {"outcome": 1.0, "format": 1.0},
    ]  # fmt: skip
    assert one.right
    speaking(player, monkeypatch, lambda call: " 5")  # never comes to an end: no note is taken
    ((one,),) = player.play([task], 4)
    assert [step["format"] for step in one.rewards] == [0.0, 0.0, 0.0]
    assert one.conversations[1].prompt.after == one.conversations[0].prompt.after


def test_the_gradient_is_that_of_the_objective_by_hand(tokenizer: Any, samples: Samples) -> None:
    """Before the first update every ratio is 1: the gradient is that of the mean of advantage times log-likelihood."""
    compressor = shaken(made(tokenizer))
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
    compressor = shaken(made(tokenizer))
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
    reinforcer = Reinforcer(made(tokenizer), Documents(samples, settings), settings, {})
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
    reinforcer = Reinforcer(made(tokenizer), Documents(samples, SMALL), SMALL, {})
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
        return Reinforcer(made(tokenizer), Documents(samples, settings), settings, {"start": start})

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
    reinforcer = Reinforcer(made(tokenizer), Documents(samples, SMALL), SMALL, {})
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
    shaken(made(tokenizer, rank=0)).save(start)
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
    made(tokenizer, rank=0).save(start)
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
