"""Mistakes on the command line: one line that names option, value and what is allowed, before any work."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer

from lychee_sgl.cli import ROOMS, app
from lychee_sgl.models.embedded import find_unpacked
from lychee_sgl.terminal import one_line_errors, run, web_address, writable, writable_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]


def leaves(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    below = getattr(command, "commands", None)
    if below is None:
        yield words, command
        return
    for name, one in below.items():
        room = ROOMS.get(name) if not words else None
        found = one if room is None else typer.main.get_command(importlib.import_module(room[0]).app)
        yield from leaves(found, (*words, name))


COMMANDS = dict(leaves(typer.main.get_command(app), ()))
NUMBERS = {int: "a whole number", list[int]: "whole numbers", float: "a number", list[float]: "numbers"}
NUMERIC = [
    (words, param.opts[0], NUMBERS[kind])
    for words, command in COMMANDS.items()
    for param in command.params
    if (kind := getattr(param.type_descriptor, "annotation", None)) in NUMBERS
]


def told(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[object, str]:
    """Exit status and the line on standard error; there has to be exactly one, and nothing on standard output."""
    with pytest.raises(SystemExit) as ended:
        run(app, words, "lychee-sgl")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return ended.value.code, err


def test_every_room_is_walked() -> None:
    assert {words[0] for words in COMMANDS} >= {*ROOMS, "serve", "engine", "doctor", "model"}
    assert len(NUMERIC) > 100


@pytest.mark.parametrize(
    ("words", "option", "kind"), NUMERIC, ids=lambda part: " ".join(part) if isinstance(part, tuple) else None
)
def test_what_is_no_number_is_named(
    words: tuple[str, ...], option: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, line = told(capsys, *words, option, "many")
    assert status == 2
    assert f"{option} is 'many'; allowed: {kind}" in line
    assert line.endswith(f"; see lychee-sgl {' '.join(words)} --help\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("serve", "--port", "0"),
            "--port is '0'; allowed: a whole number from 1 to 65535; see lychee-sgl serve --help",
        ),
        (("serve", "--nope"), "No such option: --nope"),
        (("serve", "surplus"), "Got unexpected extra argument(s) (surplus); see lychee-sgl serve --help"),
        (("nonsense",), "No such command 'nonsense'; see lychee-sgl --help"),
        (("heads", "shwo"), "No such command 'shwo'. Did you mean 'show'"),
        (("heads", "show"), "Missing argument 'plan'; see lychee-sgl heads show --help"),
        (("memory", "gate", "train"), "Missing option '--out'; see lychee-sgl memory gate train --help"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, tuple) else None,
)
def test_a_command_line_that_cannot_be_read(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, line = told(capsys, *words)
    assert status == 2
    assert message in line


def test_every_option_says_what_it_is() -> None:
    fragments = [
        f"{' '.join(words)} {param.opts[0]}: {param.help}"
        for words, command in COMMANDS.items()
        for param in command.params
        if param.name != "help" and (not param.help or param.help.startswith("Of "))
    ]
    assert fragments == []


def documented() -> Iterator[tuple[str, str]]:
    """Every command that a page names, in a block or between backquotes, on one line."""
    pages = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for page in pages.split():
        text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
        for found in re.finditer(r"^\s*(?:[A-Z_]+=\S+ )*(lychee-sgl .*)$|`(lychee-sgl [^`]+)`", text, re.MULTILINE):
            yield page, found[1] or found[2]


def test_documents_name_commands_and_options_that_exist() -> None:
    commands = list(documented())
    assert len(commands) > 40
    rooms = {words[:size] for words in COMMANDS for size in (1, 2)}
    wrong = []
    for page, text in commands:
        words = tuple(shlex.split(text, comments=True)[1:])
        name = next((words[:size] for size in (3, 2, 1) if words[:size] in COMMANDS), None)
        if name is None and words[:1] not in rooms:
            wrong.append(f"{page}: {text}")
        known = {option for param in COMMANDS[name].params for option in param.opts} if name else set()
        named = {word.partition("=")[0] for word in words if re.fullmatch(r"--[a-z-]+(=.*)?", word)}
        wrong += [f"{page}: {text}: {option}" for option in named - known - {"--help"}]
    assert wrong == []


SHIPPED = ("--model", "MODEL")
WRITERS: list[tuple[str, ...]] = [
    ("heads", "calibrate", *SHIPPED, "--retrieval-heads", "18", "--out"),
    ("heads", "measure", *SHIPPED, "--heads", "plan.json", "--out"),
    ("heads", "shard", "SmolLM2-135M-Instruct", "--tp", "1", "--out"),
    ("heads", "heuristic", *SHIPPED, "--out"),
    ("heads", "rival", "even", *SHIPPED, "--retrieval-heads", "18", "--out"),
    ("heads", "train", *SHIPPED, "--retrieval-heads", "18", "--out"),
    ("heads", "step-time", *SHIPPED, "--out"),
    ("heads", "drift", *SHIPPED, "--budget", "8", "--out"),
    ("heads", "recall", *SHIPPED, "--out"),
    ("heads", "show", "plan.json", "--png"),
    ("heads", "plot", "record.json", "--png"),
    ("rewards", "experiment", "--out"),
    ("rewards", "show", "record.json", "--png"),
    ("memory", "gate", "train", "--words-only", "--out"),
    ("memory", "gate", "train", "--words-only", "--out", "gate.json", "--features"),
    ("memory", "gate", "evaluate", "words", "--out"),
    ("compressor", "plot", "record.json", "--png"),
    ("demo", "--json"),
    ("bench", "start", "--out"),
    ("bench", "cpu", "--out"),
    ("bench", "gateway", "--out"),
    ("bench", "router", "--out"),
    ("bench", "recall", "--out"),
    ("bench", "memory", "--out"),
    ("bench", "gpu", *SHIPPED, "--out"),
    ("calibrate", "--out"),
]


@pytest.mark.parametrize("words", WRITERS, ids=" ".join)
def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    model = find_unpacked()[0] or tmp_path
    asked = [str(model) if word == "MODEL" else word for word in words]
    assert told(capsys, *asked, "folder") == (1, f"error: {words[-1]} is folder, a folder; allowed: a file\n")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]


@pytest.mark.parametrize(
    "words",
    [
        ("heads", "ablate", "--config", "c.yaml", *SHIPPED, "--out"),
        ("compressor", "train", *SHIPPED, "--out"),
        ("compressor", "reinforce", *SHIPPED, "--compressor", "c", "--out"),
        ("eval", "run", "--config", "c.yaml", "--out"),
        ("eval", "report", "runs", "--out"),
    ],
    ids=" ".join,
)
def test_an_output_folder_that_is_a_file_is_refused_before_any_work(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    status, line = told(capsys, *words, "file")
    assert status == 1
    assert line == "error: --out is file: file is a file; allowed: a folder, which is made if there is none\n"
    assert [(path.name, path.read_text()) for path in tmp_path.rglob("*")] == [("file", "mine")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("bench", "cpu", "--contexts", "64,,7"), "--contexts is '64,,7'; allowed: whole numbers, with commas"),
        (("bench", "cpu", "--contexts", "9000"), "--contexts is '9000'; allowed: 21 to 8000, with commas"),
        (("bench", "recall", "--recalls", "2"), "recalls has 2.0; allowed: 0.5 to 0.999"),
        (("bench", "recall", "--tokens", "900"), "tokens is 900,900; allowed: two different numbers from 64"),
        (("bench", "recall", "--budgets", "0"), "budgets has 0; allowed: 1 and more"),
        (("bench", "recall", "--engine-url", "here"), "--engine-url is 'here'; allowed: an address such as http://"),
        (("bench", "memory", "--lengths", "x"), "--lengths is 'x'; allowed: whole numbers from 1000, with commas"),
        (("bench", "memory", "--methods", "magic"), "--methods has 'magic'; allowed: text, "),
        (
            ("bench", "memory", "--gate", "words"),
            "--gate is words; allowed: a gate with text-gate or compressed-gate among",
        ),
        (("bench", "gpu", *SHIPPED, "--cases", "many"), "allowed: CONTEXTxROWS or CONTEXT:BUDGET+..., as 131072x4"),
        (("bench", "gpu", *SHIPPED), "model MODEL: cannot read config.json: No such file or directory"),
        (("bench", "router", "--engine", "x"), "--engine is 'x'; allowed: echo, lychee"),
        (("calibrate", "--url", "127.0.0.1:8001"), "--url is '127.0.0.1:8001'; allowed: an address such as http://"),
        (("demo", "--url", ""), "--url is ''; allowed: an address such as http://"),
        (("memory", "gate", "train", "--out", "g.json", "--local", "tpu"), "--local is 'tpu'; allowed: cpu, cuda"),
        (
            ("compressor", "evaluate", *SHIPPED, "--compressor", "there"),
            "compressor is there; allowed: a folder that a training wrote ([Errno 2]",
        ),
        (("plan-capacity", "--tp", "2"), "--tp is for one model; allowed: with --model"),
        (("eval", "run", "--config", "c", "--out", "o", "--url", "ftp://a"), "--url is 'ftp://a'; allowed: an address"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, tuple) else None,
)
def test_values_that_no_type_tells(
    words: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    status, line = told(capsys, *words)
    assert status == 1
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_several_lines_is_told_in_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, one_line_errors(RuntimeError):
        raise RuntimeError("a\n  b\nc")
    assert (ended.value.exit_code, capsys.readouterr().err) == (1, "error: a b c\n")
    with pytest.raises(RuntimeError), one_line_errors():  # not an error that a caller can mend
        raise RuntimeError("bug")
    with pytest.raises(typer.Exit) as ended, one_line_errors():
        raise KeyboardInterrupt
    assert ended.value.exit_code == 130


def test_a_file_that_can_be_written_is_let_alone(tmp_path: Path) -> None:
    old = tmp_path / "old.json"
    old.write_text("{}")
    for file in (old, tmp_path / "new.json"):
        writable(file)
    writable(tmp_path / "a" / "b" / "new.json", folder_is_made=True)
    writable_folder(tmp_path / "a" / "b")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("old.json", "{}")]
    with pytest.raises(ValueError, match=r"--png is .*new\.json; allowed: a file in a folder that exists"):
        writable(tmp_path / "a" / "new.json", "--png")
    with pytest.raises(ValueError, match=r"the folder of --out is .*: .*old\.json is a file; allowed: a folder"):
        writable(old / "new.json", folder_is_made=True)


@pytest.mark.parametrize("text", ["http://127.0.0.1:8000", "https://host/prefix", "http://[::1]:80"])
def test_addresses(text: str) -> None:
    assert web_address(text) == text


@pytest.mark.parametrize(
    "text", ["", "host:80", "http://", "ftp://host", "http://host:port", "http://[::1", "http://h:0"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"--url is .* allowed: an address such as"):
        web_address(text)
