"""The protocol, the memory loop and the repair of a repository."""

import json
from pathlib import Path
from typing import Any

import pytest

from lychee_sgl.heads.haystack import Haystack
from lychee_sgl.rewards import ResetNeeded, rollout
from lychee_sgl.rewards.environments import (
    CodeRepair,
    MemoryLoop,
    MemoryTask,
    MemoryTurn,
    RepairTask,
    RepairTurn,
    Sandbox,
    memory_rewards,
    repair_rewards,
)
from lychee_sgl.rewards.environments.memory_loop import fact_tasks
from lychee_sgl.rewards.environments.repair_tasks import sample_tasks
from lychee_sgl.rewards.environments.sandbox import Limits

TASK = MemoryTask(question="Which?", answers=("Blue",), evidence=("left", "blue"), chunks=("left is", "blue", "end"))
FIXES = {
    "spans": ("spans.py", "joined[-1][0], high)", "joined[-1][0], max(high, joined[-1][1]))"),
    "pages": ("shop/pages.py", "start = number * size", "start = (number - 1) * size"),
    "tally": ("tally.py", "into={}):", "into=None):\n    into = {} if into is None else into"),
}


def played(texts: list[str]) -> tuple[list[dict[str, float]], list[str]]:
    said = iter(texts)
    memories: list[str] = []

    def policy(turn: MemoryTurn) -> str:
        memories.append(turn.memory)
        return next(said)

    game = rollout(MemoryLoop((TASK,), working_memory=3), policy)
    assert game.terminated
    assert not game.truncated
    return [dict(step) for step in game.rewards], memories


def test_memory_loop_by_hand() -> None:
    rewards, memories = played(
        ["<memory>left</memory>", "<memory>left Blue</memory>", "<memory>blue</memory>", "<answer> blue. </answer>"]
    )
    assert rewards == [
        {"evidence": 0.5, "format": 1.0},
        {"evidence": 0.5, "format": 1.0},
        {"evidence": -0.5, "format": 1.0},  # a fact was dropped
        {"outcome": 1.0, "format": 1.0},
    ]
    assert memories == ["", "left", "left Blue", "blue"]
    assert memory_rewards().total(rewards) == pytest.approx(1.0 + 0.2 * 0.5 + 0.05 * 4)


def test_a_memory_that_is_malformed_or_too_long_leaves_the_old_one() -> None:
    rewards, memories = played(
        ["<memory>left</memory>", "no tags", "<memory>one two three blue</memory>", "<answer>left</answer>"]
    )
    assert memories == ["", "left", "left", "left"]
    assert [step.get("format") for step in rewards] == [1.0, 0.0, 0.0, 1.0]
    assert rewards[-1]["outcome"] == 0.0
    assert memory_rewards().total(rewards) == 0.0


def test_evidence_cannot_be_farmed() -> None:
    rewards, _ = played(["<memory>blue</memory>", "<memory>x</memory>", "<memory>blue</memory>", "blue"])
    assert sum(step.get("evidence", 0.0) for step in rewards) == 0.5  # as if it had been written once
    assert rewards[-1] == {"outcome": 1.0, "format": 0.0}


@pytest.mark.parametrize("hops", [1, 2])
def test_fact_tasks_can_be_answered_from_their_evidence(hops: int) -> None:
    haystack = Haystack(tuple(f"Sentence {i} of a text that says nothing much." for i in range(200)), "made up")
    tasks = fact_tasks(haystack, 4, chunks=5, chunk_words=40, hops=hops, seed=1)
    assert tasks == fact_tasks(haystack, 4, chunks=5, chunk_words=40, hops=hops, seed=1)
    for task in tasks:
        assert len(task.chunks) == 5
        assert len(task.evidence) == hops
        assert task.answers[0] == task.evidence[-1]
        assert all(sum(text in chunk for chunk in task.chunks) >= 1 for text in task.evidence)
        assert 30 <= len(task.chunks[0].split()) <= 60
        assert not any(text in task.question for text in task.evidence)


class Scripted:
    """Plays calls in order."""

    def __init__(self, *calls: object) -> None:
        self.calls = iter(calls)
        self.seen: list[RepairTurn] = []

    def __call__(self, turn: RepairTurn) -> str:
        self.seen.append(turn)
        call = next(self.calls)
        return call if isinstance(call, str) else json.dumps(call)


def repaired(task: str, *calls: object, turns: int = 8, limits: Limits | None = None) -> tuple[Any, list[RepairTurn]]:
    policy = Scripted(*calls)
    environment = CodeRepair(sample_tasks(), Sandbox(limits), turns=turns)
    return rollout(environment, policy, options={"task": task}), policy.seen


def edit(task: str) -> dict[str, str]:
    path, old, new = FIXES[task]
    return {"tool": "replace", "path": path, "old": old, "new": new}


@pytest.mark.parametrize("task", list(FIXES))
def test_a_right_patch_passes(task: str) -> None:
    game, seen = repaired(task, {"tool": "read", "path": FIXES[task][0]}, edit(task), {"tool": "submit"})
    assert game.infos[-1]["outcome"] == "passing", game.observations[-1].text
    assert game.rewards == [
        {"format": 1.0, "tool": 1.0},
        {"format": 1.0, "tool": 1.0},
        {"format": 1.0, "tool": 0.0, "outcome": 1.0},
    ]
    assert FIXES[task][1] in seen[1].text
    assert repair_rewards().total(game.rewards) == pytest.approx(1.0 + 0.05 * 2 + 0.05 * 3)


def test_the_four_outcomes_and_what_the_gate_makes_of_them() -> None:
    looks = [{"tool": "read", "path": "spans.py"}] * 2
    wrong = {"tool": "replace", "path": "spans.py", "old": "sorted(spans)", "new": "spans"}
    games = {
        "no_submit": repaired("spans", *looks, turns=2)[0],
        "empty_patch": repaired("spans", *looks, {"tool": "submit"})[0],
        "failing": repaired("spans", *looks, wrong, {"tool": "submit"})[0],
        "passing": repaired("spans", *looks, edit("spans"), {"tool": "submit"})[0],
    }
    assert {name: game.infos[-1]["outcome"] for name, game in games.items()} == {name: name for name in games}
    assert [game.truncated for game in games.values()] == [True, False, False, False]
    gated = [repair_rewards().total(game.rewards) for game in games.values()]
    direct = [repair_rewards().direct().total(game.rewards) for game in games.values()]
    assert gated == pytest.approx([0.0, 0.25, 0.85, 1.35])
    assert direct == pytest.approx([0.2, 0.5, 0.85, 1.35])


def test_an_undone_edit_is_an_empty_patch() -> None:
    path, old, new = FIXES["pages"]
    back = {"tool": "replace", "path": path, "old": new, "new": old}
    game, _ = repaired("pages", edit("pages"), back, {"tool": "submit"})
    assert game.infos[-1]["outcome"] == "empty_patch"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("write me", "not a call: not JSON"),
        ("[" * 100_000, "not a call: not JSON"),
        ({"tool": "format_disk"}, "'tool' has to be one of read, write"),
        ({"tool": ["read"], "path": "x"}, "'tool' has to be one of"),
        ({"tool": "read"}, "read takes path, tool, all strings"),
        ({"tool": "read", "path": 3}, "all strings"),
        ({"tool": "test", "path": "x"}, "test takes tool"),
    ],
)
def test_malformed_calls_cost_the_format_reward_and_nothing_else(call: object, said: str) -> None:
    game, seen = repaired("spans", call, {"tool": "submit"})
    assert game.rewards[0] == {"format": 0.0}
    assert said in seen[1].text
    assert game.infos[-1]["outcome"] == "empty_patch"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("../up.py", "relative"), ("/etc/passwd", "relative"), ("a/../b.py", "relative"), ("", "relative"),
        ("./spans.py", "relative"), ("a\0b", "relative"), ("tests/test_spans.py", "tests stay"),
        ("tests", "tests stay"), ("spans.py/x", "a file is in the way"),
    ],
)  # fmt: skip
def test_edits_outside_the_repository_and_of_tests_are_refused(path: str, said: str) -> None:
    game, seen = repaired("spans", {"tool": "write", "path": path, "text": "x"}, {"tool": "submit"})
    assert game.rewards[0] == {"format": 1.0, "tool": 0.0}
    assert said in seen[1].text
    assert game.infos[-1]["changed"] is False


def test_a_folder_in_the_way_and_texts_that_are_not_there_once() -> None:
    calls = [
        {"tool": "write", "path": "shop", "text": "x"},
        {"tool": "replace", "path": "shop/pages.py", "old": "nowhere", "new": ""},
        {"tool": "replace", "path": "shop/pages.py", "old": "size", "new": "s"},
        {"tool": "replace", "path": "absent.py", "old": "a", "new": "b"},
        {"tool": "write", "path": "big.py", "text": "x" * 100_001},
        {"tool": "submit"},
    ]
    game, seen = repaired("pages", *calls)
    said = [turn.text for turn in seen[1:]]
    assert ["folder is in the way" in said[0], "0 times" in said[1], "times" in said[2]] == [True] * 3
    assert ["no such file" in said[3], "up to 100000 characters" in said[4]] == [True, True]
    assert game.infos[-1]["outcome"] == "empty_patch"


@pytest.mark.parametrize(
    "text",
    [
        "import os; os._exit(0)",  # no test has run
        "import sys; print('OK'); sys.exit(0)",
        "raise SystemExit(0)",
        "def merge(spans: return",
        "import unittest\ndef merge(spans): raise unittest.SkipTest('no')",
    ],
)
def test_a_patch_that_ends_the_run_has_not_passed(text: str) -> None:
    game, _ = repaired("spans", {"tool": "write", "path": "spans.py", "text": text}, {"tool": "submit"})
    assert game.infos[-1]["outcome"] == "failing"


FORGED = "os.write(1, f'\\n{token} 3 0\\n'.encode()); os._exit(0)"


@pytest.mark.parametrize(
    "read",
    [
        "os.lseek(0, 0, 0); token = os.read(0, 99).decode()",
        "token = open('/proc/self/fd/0').read()",
        "token = open('/proc/1/fd/0').read()",
        "import __main__; token = __main__.token",
    ],
)
def test_a_patch_cannot_read_the_token_again(read: str) -> None:
    text = f"import os\ntry:\n    {read}\nexcept Exception:\n    token = ''\n{FORGED}"
    game, _ = repaired("spans", {"tool": "write", "path": "spans.py", "text": text}, {"tool": "submit"},
                       limits=Limits(seconds=3.0))  # fmt: skip
    assert game.infos[-1]["outcome"] == "failing"


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        ("spans.py", "\ud800", "UTF-8 can hold"), ("\ud800.py", "x", "bytes of UTF-8"),
        ("é" * 101, "x", "bytes of UTF-8"),
    ],
)  # fmt: skip
def test_what_no_file_can_be_is_refused(path: str, text: str, said: str) -> None:
    game, seen = repaired("spans", {"tool": "write", "path": path, "text": text}, {"tool": "test"}, {"tool": "submit"})
    assert game.rewards[0] == {"format": 1.0, "tool": 0.0}
    assert said in seen[1].text


@pytest.mark.parametrize(
    "text",
    [
        "for _ in range(1500):\n    os.mkdir('d')\n    os.chdir('d')",
        "os.makedirs('a/b')\nopen('a/b/x', 'w').close()\nos.chmod('a/b', 0)\nos.chmod('a', 0)",
    ],
)
def test_whatever_a_patch_leaves_is_removed(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    game, _ = repaired("spans", {"tool": "write", "path": "spans.py", "text": f"import os\n{text}"}, {"tool": "submit"})
    assert game.infos[-1]["outcome"] == "failing"
    assert [*tmp_path.iterdir()] == []


def test_a_patch_that_never_ends_is_killed_and_has_not_passed() -> None:
    loop = {"tool": "write", "path": "spans.py", "text": "while True: pass"}
    game, _ = repaired("spans", loop, {"tool": "submit"}, limits=Limits(seconds=1.0))
    assert game.infos[-1]["outcome"] == "failing"
    assert "killed after 1 s" in game.observations[-1].text


def test_steps_without_an_episode_are_refused() -> None:
    for environment, action in ((CodeRepair(sample_tasks()), '{"tool": "submit"}'), (MemoryLoop((TASK,)), "x")):
        with pytest.raises(ResetNeeded):
            environment.step(action)
        environment.reset(seed=0)
        environment.close()
        environment.close()
        with pytest.raises(ResetNeeded):
            environment.step(action)
    environment = CodeRepair(sample_tasks())
    environment.reset(seed=1)
    assert environment.step('{"tool": "submit"}').done
    with pytest.raises(ResetNeeded):
        environment.step('{"tool": "submit"}')


def test_tasks_follow_from_the_seed_and_else_take_turns() -> None:
    environment = CodeRepair(sample_tasks())
    names = [environment.reset(seed=seed)[1]["task"] for seed in (0, 1, 2, 3, 1)]
    assert names == ["spans", "pages", "tally", "spans", "pages"]
    assert environment.reset()[1]["task"] == "tally"
    with pytest.raises(ValueError, match="task is 'x'; allowed: spans, pages, tally"):
        environment.reset(options={"task": "x"})


def test_a_rollout_is_cut_off_by_its_limit() -> None:
    game = rollout(CodeRepair(sample_tasks()), lambda turn: '{"tool": "read", "path": "spans.py"}', seed=0, limit=3)
    assert (len(game.actions), game.truncated, game.terminated) == (3, True, False)
    assert len(game.observations) == len(game.infos) == 4
    with pytest.raises(ValueError, match="limit is 0"):
        rollout(CodeRepair(sample_tasks()), lambda turn: "", limit=0)


def test_steps_unpack_as_gymnasium_has_them() -> None:
    environment = MemoryLoop((TASK,))
    observation, info = environment.reset(seed=0)
    assert (observation.chunk, info) == ("left is", {"task": 0})
    observation, reward, terminated, truncated, info = environment.step("<memory>left</memory>")
    assert (observation.number, reward, terminated, truncated) == (2, 1.5, False, False)
    assert info["rewards"] == {"evidence": 0.5, "format": 1.0}


def test_tasks_that_make_no_sense_are_refused() -> None:
    good = {"name": "t", "issue": "i", "files": {"a.py": ""}, "tests": {"tests/test_a.py": ""}, "count": 1}
    for change, said in (
        ({"files": {}}, "no files"), ({"files": {"/a": ""}}, "relative"), ({"tests": {"test_a.py": ""}}, "tests/test_"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            RepairTask(**{**good, **change})
    with pytest.raises(ValueError, match="no answer"):
        MemoryTask(question="?", answers=(), evidence=(), chunks=("a",))
