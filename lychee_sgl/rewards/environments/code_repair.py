"""Repair of a small repository: read, edit, run the tests, submit. Standard library only.

The repository lives in memory; only a run of the tests makes files, in a fresh folder, behind the sandbox's walls. The
tests are the task's: what an edit does to their paths is refused, so a patch cannot change what it is judged by. A test
run counts as passed when it reports every test by a token that was read before any code of the patch ran, so a patch
cannot end the run early and say that it went well. A patch can still lie to its tests: with values that equal
everything, by replacing unittest's assertions, or by searching its interpreter's frames for the token. Nothing that
runs in one process with the code it judges can rule that out: read patches that a policy is rewarded for.
"""

import json
import secrets
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from lychee_sgl.rewards.environment import ResetNeeded, Step, step_of
from lychee_sgl.rewards.environments.sandbox import Sandbox, remove
from lychee_sgl.rewards.gated import Gate, GatedRewards, Level

OUTCOMES: Final = {"no_submit": 0.0, "empty_patch": 0.25, "failing": 0.5, "passing": 1.0}
"""The four levels of an episode's outcome."""

LONGEST_FILE: Final = 100_000
"""Characters that a file may have."""

TOOLS: Final[Mapping[str, tuple[str, ...]]] = {
    "read": ("path",),
    "write": ("path", "text"),
    "replace": ("path", "old", "new"),
    "test": (),
    "submit": (),
}
"""The calls there are, and the arguments that each needs: all strings."""

# Reads the token before anything of the repository is on the path; unittest is complete in memory by then. No module
# keeps the token, and the pipe it came through is empty.
_RUNNER: Final = """
import sys, unittest, os
def run(token):
    sys.path.insert(0, os.getcwd())
    sys.dont_write_bytecode = True
    suite = unittest.defaultTestLoader.discover("tests", top_level_dir=os.getcwd())
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=1).run(suite)
    bad = len(result.failures) + len(result.errors) + len(result.skipped) + len(result.unexpectedSuccesses)
    sys.stdout.write(f"\\n{token} {result.testsRun} {bad}\\n")
run(sys.stdin.read())
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairTask:
    """A repository with a fault.

    Attributes:
        name: of the task.
        issue: what is wrong, in words.
        files: path to text, without the tests.
        tests: path to text of unittest modules, `tests/test_*.py`; they are seen but cannot be edited.
        count: how many tests there are: a run that reports another number has not passed.
    """

    name: str
    issue: str
    files: Mapping[str, str]
    tests: Mapping[str, str]
    count: int

    def __post_init__(self) -> None:
        if not self.files or not self.tests or self.count < 1:
            raise ValueError(f"task {self.name} has no files or no tests; allowed: one or more of each")
        for path in (*self.files, *self.tests):
            if _clean(path) is None:
                raise ValueError(f"task {self.name}: path is {path!r}; allowed: relative, without '..'")
        for path in self.tests:
            if not (path.startswith("tests/test_") and path.endswith(".py")):
                raise ValueError(f"task {self.name}: test is {path!r}; allowed: tests/test_*.py")


@dataclass(frozen=True, slots=True)
class RepairTurn:
    """What the policy sees.

    Attributes:
        text: the issue at first, then what the last call brought.
        files: the repository's paths, tests included.
        turn: calls so far.
        of: the most there are.
    """

    text: str
    files: tuple[str, ...]
    turn: int
    of: int


def repair_rewards(at: float = OUTCOMES["failing"], tool: float = 0.05, form: float = 0.05) -> GatedRewards:
    """The usual order: outcome, useful calls, well-formed calls; no submission and an empty patch close the gate."""
    return GatedRewards((Level("outcome", Gate(at)), Level("tool", weight=tool), Level("format", weight=form)))


@dataclass(slots=True)
class _Episode:
    task: RepairTask
    files: dict[str, str]
    turn: int = 0
    over: bool = False


class CodeRepair:
    """An environment whose actions are JSON texts: `{"tool": "replace", "path": "a.py", "old": "x", "new": "y"}`.

    Rewards of a step: `format` 1 for a call that is well-formed; `tool` 1 for one that did something (a file was there
    to be read, an edit changed a file, tests ran); `outcome`, once, when the episode ends.
    """

    def __init__(self, tasks: tuple[RepairTask, ...], sandbox: Sandbox | None = None, turns: int = 20) -> None:
        """Prepares no episode yet.

        Args:
            tasks: what there is to repair; `reset` takes one by its seed, or by `options={"task": name}`.
            sandbox: walls and limits of test runs.
            turns: the most calls of an episode.

        Raises:
            ValueError: there is no task, or no turn.
            SandboxUnavailable: no sandbox was given, and none without a network can be had here.
        """
        if not tasks or turns < 1:
            raise ValueError(f"{len(tasks)} tasks and {turns} turns; allowed: 1 or more of each")
        self.tasks, self.turns = {task.name: task for task in tasks}, turns
        self.sandbox = sandbox or Sandbox()
        self._episode: _Episode | None = None
        self._next = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[RepairTurn, dict[str, Any]]:
        """Begin an episode: task `seed` modulo their number, without a seed the next one.

        Raises:
            ValueError: there is no such task.
        """
        name = (options or {}).get("task")
        if name is None:
            number = self._next if seed is None else seed
            self._next = number + 1
            name = list(self.tasks)[number % len(self.tasks)]
        if name not in self.tasks:
            raise ValueError(f"task is {name!r}; allowed: {', '.join(self.tasks)}")
        task = self.tasks[name]
        self._episode = _Episode(task, dict(task.files))
        return self._turn(self._episode, task.issue), {"task": task.name, "isolation": str(self.sandbox.isolation)}

    def step(self, action: str) -> Step[RepairTurn]:
        """Take one call.

        Raises:
            ResetNeeded: no episode is under way.
        """
        episode = self._episode
        if episode is None or episode.over:
            raise ResetNeeded("no repair is under way; call reset")
        episode.turn += 1
        call = _parse(action)
        if isinstance(call, str):
            return self._end_of_turn(episode, call, {"format": 0.0})
        tool, arguments = call["tool"], {name: call[name] for name in TOOLS[call["tool"]]}
        if tool == "submit":
            return self._submit(episode)
        text, did = _CALLS[tool](self, episode, arguments)
        return self._end_of_turn(episode, text, {"format": 1.0, "tool": float(did)})

    def close(self) -> None:
        """Forget the episode; nothing is left on disk by any."""
        self._episode = None

    def _end_of_turn(self, episode: _Episode, text: str, rewards: dict[str, float]) -> Step[RepairTurn]:
        if episode.turn < self.turns:
            return step_of(self._turn(episode, text), rewards)
        episode.over = True
        ended = {**rewards, "outcome": OUTCOMES["no_submit"]}
        return step_of(self._turn(episode, text), ended, truncated=True, outcome="no_submit", changed=_patched(episode))

    def _submit(self, episode: _Episode) -> Step[RepairTurn]:
        episode.over = True
        outcome, text = "empty_patch", "submitted without a change"
        if _patched(episode):
            passed, text = self._tests(episode)
            outcome = "passing" if passed else "failing"
        rewards = {"format": 1.0, "tool": 0.0, "outcome": OUTCOMES[outcome]}
        turn = self._turn(episode, text)
        return step_of(turn, rewards, terminated=True, outcome=outcome, changed=_patched(episode))

    def _turn(self, episode: _Episode, text: str) -> RepairTurn:
        return RepairTurn(text, (*sorted(episode.files), *sorted(episode.task.tests)), episode.turn, self.turns)

    def _tests(self, episode: _Episode) -> tuple[bool, str]:
        token = secrets.token_hex(16)
        folder = Path(tempfile.mkdtemp(prefix="lychee-repair-"))
        try:
            for path, text in {**episode.files, **episode.task.tests, "tests/__init__.py": ""}.items():
                place = folder / path
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(text, encoding="utf-8")
            ended = self.sandbox.run((sys.executable, "-I", "-S", "-B", "-c", _RUNNER), folder, stdin=token)
        finally:
            remove(folder)
        lines = [line for line in ended.output.splitlines() if token not in line]
        report = f"{token} {episode.task.count} 0"
        passed = ended.status == 0 and report in ended.output.splitlines()
        if ended.status is None:
            lines.append(f"killed after {self.sandbox.limits.seconds:g} s")
        return passed, "\n".join(lines).strip()

    def _read(self, episode: _Episode, given: Mapping[str, str]) -> tuple[str, bool]:
        text = {**episode.files, **episode.task.tests}.get(given["path"])
        return ("no such file", False) if text is None else (text, True)

    def _write(self, episode: _Episode, given: Mapping[str, str]) -> tuple[str, bool]:
        path = given["path"]
        refused = _refused(episode, path, given["text"])
        if refused is not None:
            return refused, False
        before = episode.files.get(path)
        episode.files[path] = given["text"]
        return "written", before != given["text"]

    def _replace(self, episode: _Episode, given: Mapping[str, str]) -> tuple[str, bool]:
        text = episode.files.get(given["path"])
        if text is None:
            return "no such file to edit", False
        found = text.count(given["old"]) if given["old"] else 0
        if found != 1:
            return f"the old text is there {found} times; it has to be there once", False
        return self._write(episode, {"path": given["path"], "text": text.replace(given["old"], given["new"])})

    def _test(self, episode: _Episode, given: Mapping[str, str]) -> tuple[str, bool]:
        return self._tests(episode)[1], True


_Call = Callable[[CodeRepair, _Episode, Mapping[str, str]], tuple[str, bool]]
_CALLS: Final[Mapping[str, _Call]] = {
    "read": CodeRepair._read,
    "write": CodeRepair._write,
    "replace": CodeRepair._replace,
    "test": CodeRepair._test,
}


def _patched(episode: _Episode) -> bool:
    return episode.files != dict(episode.task.files)


def _parse(action: str) -> dict[str, str] | str:
    """A call, or what is wrong with it."""
    try:
        call = json.loads(action)
    except (ValueError, RecursionError):
        return "not a call: not JSON"
    if not isinstance(call, dict) or call.get("tool") not in tuple(TOOLS):  # a tuple: the value may be a list
        return f"not a call: 'tool' has to be one of {', '.join(TOOLS)}"
    needed = {"tool", *TOOLS[call["tool"]]}
    if set(call) != needed or not all(isinstance(value, str) for value in call.values()):
        return f"not a call: {call['tool']} takes {', '.join(sorted(needed))}, all strings"
    return call


def _clean(path: str) -> str | None:
    """A path as it is kept, or None where it would lead out."""
    pure = PurePosixPath(path)
    if not path or "\0" in path or pure.is_absolute() or ".." in pure.parts or str(pure) != path:
        return None
    return path if _encodable(path) and len(path.encode()) <= 200 else None


def _encodable(text: str) -> bool:
    """Whether a text can be a file's: JSON can hold halves of surrogate pairs, UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refused(episode: _Episode, path: str, text: str) -> str | None:
    if _clean(path) is None:
        return "refused: a path is relative, without '..', of up to 200 bytes of UTF-8"
    if path == "tests" or path.startswith("tests/"):
        return "refused: tests stay as they are"
    if len(text) > LONGEST_FILE:
        return f"refused: a file has up to {LONGEST_FILE} characters"
    if not _encodable(text):
        return "refused: a file is text that UTF-8 can hold"
    taken = {*episode.files, *episode.task.tests}
    if any(str(above) in taken for above in PurePosixPath(path).parents):
        return "refused: a file is in the way"
    if any(other.startswith(f"{path}/") for other in taken):
        return "refused: a folder is in the way"
    return None
