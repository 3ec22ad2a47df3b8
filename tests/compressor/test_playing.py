"""Playing with a tiny model: tasks, sampling, trajectories and their rewards."""

import re
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch

from lychee_sgl.compressor import play
from lychee_sgl.compressor.data import Samples
from lychee_sgl.compressor.documents import Documents, Task
from lychee_sgl.compressor.play import Player, chain_of
from lychee_sgl.compressor.sampler import Said, say, stop_tokens
from tests.compressor.conftest import LONG, SETTINGS, SMALL, TEXT, shaken, with_reader


@pytest.fixture
def samples(tokenizer: Any) -> Samples:
    return Samples(tokenizer, TEXT, window=LONG, settings=SETTINGS)


def text_of(task: Task, tokenizer: Any) -> str:
    return str(tokenizer.decode([token for window in task.windows for token in window]))


def _wording(samples: Samples, task: Task) -> str:
    """The one that the question belongs to."""
    for fact, question in samples.facts.wordings:
        found = re.fullmatch(re.escape(fact).replace(r"\{name\}", "(.+)"), task.stem)
        if found is not None and question.format(name=found[1]) == task.question:
            return fact
    raise AssertionError(task)


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
        first = f"{task.stem} the same as for "
        other = whole.partition(first)[2].partition(".")[0].removeprefix("the ")
        second = f"{_wording(samples, task).format(name=other)} {task.value}."
        windows = [tokenizer.decode(window) for window in task.windows]
        (points,), (holds,) = ([at for at, text in enumerate(windows) if fact in text] for fact in (first, second))
        assert points <= holds or not loop
    assert hops == {1, 2}
    assert documents.batch(3) == documents.batch(3) != documents.batch(4)
    most = len(samples.facts.names) - 2
    with pytest.raises(ValueError, match=f"others is {most + 1}; allowed: up to {most}"):
        Documents(samples, replace(SMALL, others=most + 1))
    with pytest.raises(ValueError, match="allowed: more than 128000, a document"):
        Documents(samples, replace(SMALL, windows=1000))


def test_what_is_said_greedily_is_what_the_whole_pass_finds_likeliest(tokenizer: Any) -> None:
    compressor = shaken(with_reader(tokenizer))
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
    compressor = with_reader(tokenizer)
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
    player = Player(with_reader(tokenizer), samples, SMALL)
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
    player = Player(with_reader(tokenizer), samples, settings)
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
