"""Runs against a server on a socket: what is sent, kept, retried, refused, and gone on with after a kill."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import pytest

from lychee_sgl.eval.config import parse_settings
from lychee_sgl.eval.errors import EvalError
from lychee_sgl.eval.metrics import score
from lychee_sgl.eval.run import Target, run
from lychee_sgl.eval.store import Record, Store, read_records
from tests.eval.conftest import Silent, settings
from tests.eval.oracle import QUERY, read
from tests.gateway.scripted_engine import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.eval.oracle import Oracle

ONE = [{"name": "dense", "lychee": {"budget": "dense"}}]
MOVING = ("seconds", "first_token_seconds", "prefill_seconds")


def still(folder: Path) -> list[dict[str, Any]]:
    """All records in the order of the file, without times."""
    rows = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in MOVING} for row in rows]


def asked(oracle: Oracle) -> list[dict[str, Any]]:
    """Requests for more than one token."""
    return [body for body in oracle.bodies if body["max_tokens"] > 1]


def test_arms_of_a_sample_are_asked_in_a_row_after_a_request_of_one_token(
    oracle: tuple[Oracle, str], tmp_path: Path, silent: Silent
) -> None:
    server, url = oracle
    outcome = run(settings(), Target(url=url), tmp_path, silent, {"command": "x"})
    assert (outcome.samples, outcome.records, outcome.asked, outcome.errors) == (6, 30, 30, 0)
    bodies = server.bodies[5:]  # the first five try every arm
    for start in range(0, len(bodies), 6):
        warm, *arms = bodies[start : start + 6]
        assert (warm["max_tokens"], warm["lychee"]) == (1, {"budget": "dense"})
        assert [body["lychee"] for body in arms] == [
            {"budget": "dense"},
            {"mode": "ratio", "policy": "ours", "value": 0.125},
            {"mode": "ratio", "policy": "ours", "value": 0.25},
            {"mode": "ratio", "policy": "quest", "value": 0.125},
            {"mode": "ratio", "policy": "quest", "value": 0.25},
        ]
        assert all(body["messages"] == warm["messages"] for body in arms)
        user, prefix = arms[0]["messages"]
        assert (user["role"], prefix["role"], arms[0]["continue_final_message"]) == ("user", "assistant", True)
        assert (arms[0]["temperature"], arms[0]["max_tokens"], arms[0]["model"]) == (0.0, 128, "tiny")
    record = read_records(tmp_path)["niah_single_2/1500/0", "ours 0.25"]
    assert (record.score, record.attended_fraction, record.recall) == (1.0, 0.25, pytest.approx(0.4375))
    assert record.context_tokens == (record.prompt_tokens or 0) + (record.answer_tokens or 0)
    assert (record.first_token_seconds or 0) <= (record.seconds or 0)
    assert silent.stages == ["asking the server what it is", "making samples", "asking"]
    assert [row["sample"] for row in still(tmp_path)[:6]] == ["niah_single_2/1500/0"] * 5 + ["niah_single_2/1500/1"]
    # the first sample of every task comes before the second of any: a run may be ended early
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    numbers = {row["prompt"]: (row["number"], row["task"]) for row in rows}
    order = [numbers[body["messages"][0]["content"]] for body in bodies[::6]]
    assert order == [(number, task) for number in range(3) for task in ("niah_single_2", "niah_multivalue")]


def test_an_engine_without_gateway_gets_custom_params(
    oracle: tuple[Oracle, str], tmp_path: Path, silent: Silent
) -> None:
    server, url = oracle
    arms = [
        {"name": "a", "lychee": {"budget": 64}, "custom_params": {"other": 1}, "body": {"top_p": 0.5}},
        {"name": "b"},
    ]
    run(settings(arms=arms, samples=1), Target(url=url, send_as="custom_params"), tmp_path, silent, {})
    one, other = asked(server)[:2]
    assert (one["custom_params"], one["top_p"]) == ({"other": 1, "lychee_budget": 64}, 0.5)
    assert "lychee" not in one
    assert not {"lychee", "custom_params"} & other.keys()


@pytest.mark.parametrize(("prefix", "roles"), [("user", ["user"]), ("none", ["user"])])
def test_the_beginning_of_the_answer_can_stand_elsewhere(
    oracle: tuple[Oracle, str], tmp_path: Path, silent: Silent, prefix: str, roles: list[str]
) -> None:
    server, url = oracle
    run(settings(prefix=prefix, arms=ONE, samples=1), Target(url=url), tmp_path, silent, {})
    body = asked(server)[0]
    assert [message["role"] for message in body["messages"]] == roles
    assert "continue_final_message" not in body
    assert ("The special magic number for" in body["messages"][0]["content"]) is (prefix == "user")


def test_plain_completions_take_prompt_and_prefix_as_one_text(
    oracle: tuple[Oracle, str], tmp_path: Path, silent: Silent
) -> None:
    server, url = oracle
    outcome = run(settings(api="completions", arms=ONE, samples=1), Target(url=url), tmp_path, silent, {})
    assert outcome.errors == 0
    for body in asked(server):
        assert re.search(
            r"provided text\? The special magic numbers? for \S+ mentioned in .+ (is|are)$", body["prompt"]
        )
    assert {record.score for record in read_records(tmp_path).values()} == {1.0}


def test_a_tokenizer_of_ones_own_counts_the_words_and_the_server_its_template(
    oracle: tuple[Oracle, str], tmp_path: Path, silent: Silent
) -> None:
    """Of a vocabulary of letters; the server counts ten tokens for its template and one for every four letters."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split

    server, url = oracle
    made = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
    made.pre_tokenizer = Split(Regex(".{1,4}"), "isolated")
    made.save(str(tmp_path / "tokenizer.json"))
    run(
        settings(arms=ONE, tasks=["niah_single_1"]),
        Target(url=url, tokenizer=str(tmp_path)),
        tmp_path / "out",
        silent,
        {},
    )
    assert server.counts["tokenize"] == 0
    for record in read_records(tmp_path / "out").values():
        assert 1200 < (record.prompt_tokens or 0) + 128 <= 1500


def test_a_busy_server_is_asked_again_when_it_says(oracle: tuple[Oracle, str], tmp_path: Path, silent: Silent) -> None:
    server, url = oracle
    busy = {
        2: (429, {"retry-after": "0"}, "slow down"),
        3: (503, {"retry-after": "Thu, 01 Jan 2026 00:00:00 GMT"}, "full"),
    }
    server.trouble = busy.get
    outcome = run(settings(arms=ONE, samples=1, tasks=["niah_single_2"]), Target(url=url), tmp_path, silent, {})
    assert (outcome.records, outcome.errors) == (1, 0)
    assert len(server.bodies) == 1 + 1 + 3


def test_a_warm_up_that_failed_is_asked_for_again_before_the_next_arm(
    oracle: tuple[Oracle, str], tmp_path: Path, silent: Silent
) -> None:
    server, url = oracle
    server.trouble = lambda number: (502, {}, "no engine") if number == 2 else None  # after one for each arm
    arms = [*ONE, {"name": "other", "lychee": {"budget": 64}}]
    outcome = run(
        settings(arms=arms, tasks=["niah_single_2"], samples=1), Target(url=url, retries=0), tmp_path, silent, {}
    )
    assert (outcome.records, outcome.errors) == (2, 1)
    assert [(body["max_tokens"], body["lychee"]["budget"]) for body in server.bodies[2:]] == [
        (1, "dense"), (1, "dense"), (128, 64),
    ]  # fmt: skip


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_an_answer_that_the_server_gave_up_is_an_error_and_no_wrong_answer(
    oracle: tuple[Oracle, str], tmp_path: Path, silent: Silent, reason: str
) -> None:
    server, url = oracle
    server.reason = lambda body: reason if body["max_tokens"] > 1 else "stop"
    wanted = settings(arms=ONE, samples=1, tasks=["niah_single_2"])
    assert run(wanted, Target(url=url), tmp_path, silent, {}).errors == 1
    (bad,) = read_records(tmp_path).values()
    assert (bad.score, bad.error) == (None, f"the answer broke off: its finish reason is {reason!r}")


def test_replies_and_samples_may_hold_any_character(oracle: tuple[Oracle, str], tmp_path: Path, silent: Silent) -> None:
    server, url = oracle
    server.raw = True  # SGLang writes UTF-8, not escapes
    file = tmp_path / "m.jsonl"
    file.write_text(
        json.dumps({"context": "a\u2028b\x85c", "input": "q", "answers": ["é"], "all_classes": None}) + "\n"
    )
    wanted = settings(
        arms=ONE, samples=1,
        tasks=["niah_single_2", {"name": "longbench/qasper", "file": str(file)}],
    )  # fmt: skip
    server.answer = lambda text, body: (read(text) if QUERY.search(text) else "é") + " \u2028 \x85 \x0b"
    for _ in range(2):
        outcome = run(wanted, Target(url=url), tmp_path / "out", silent, {})
        assert (outcome.records, outcome.errors) == (2, 0)
    assert "a\u2028b\x85c" in (Store(tmp_path / "out").samples() or [])[1].prompt
    assert {record.reply[-6:] for record in read_records(tmp_path / "out").values()} == {" \u2028 \x85 \x0b"}
    store = Store(tmp_path / "half")
    store.open({}, {})
    store.add(Record(sample="a", arm="x", reply="\ud83d"))
    assert store.records()["a", "x"].reply == "\ud83d"
    store.close()


def test_records_and_samples_are_enough_to_score_again(
    oracle: tuple[Oracle, str], tmp_path: Path, silent: Silent
) -> None:
    server, url = oracle
    server.answer = lambda text, body: read(text)[:20]  # half of several answers
    run(settings(), Target(url=url), tmp_path, silent, {})
    samples = {sample.key: sample for sample in Store(tmp_path).samples() or []}
    records = read_records(tmp_path).values()
    assert {record.score for record in records} > {1.0}
    assert all(score(record.reply, samples[record.sample]) == record.score for record in records)


def test_errors_are_kept_reported_and_asked_for_again(
    oracle: tuple[Oracle, str], tmp_path: Path, silent: Silent
) -> None:
    server, url = oracle
    server.trouble = lambda number: (400, {}, "too long") if number == 2 else None
    wanted = settings(arms=ONE, tasks=["niah_single_2"])
    outcome = run(wanted, Target(url=url), tmp_path, silent, {})
    assert (outcome.records, outcome.errors) == (3, 1)
    (bad,) = [record for record in read_records(tmp_path).values() if record.error is not None]
    assert (bad.error, bad.score, bad.reply) == ("400: too long", None, "")
    again = run(wanted, Target(url=url), tmp_path, silent, {})
    assert (again.records, again.asked, again.errors) == (3, 1, 0)


def test_a_server_that_is_gone_stops_the_run_which_then_goes_on(
    oracle: tuple[Oracle, str], tmp_path: Path, silent: Silent
) -> None:
    server, url = oracle
    wanted = settings(arms=ONE, tasks=["niah_single_2"], samples=6)
    server.trouble = lambda number: (502, {}, "no engine") if number >= 5 else None
    with pytest.raises(EvalError, match=r"is gone: 502: no engine; the same command goes on"):
        run(wanted, Target(url=url, retries=0, patience=2), tmp_path, silent, {})
    before = read_records(tmp_path)
    assert sum(record.error is None for record in before.values()) == 2
    server.trouble = lambda number: None
    outcome = run(wanted, Target(url=url), tmp_path, silent, {})
    assert (outcome.records, outcome.asked, outcome.errors) == (6, 4, 0)


def test_an_arm_that_the_server_refuses_is_known_before_anything_is_asked(
    oracle: tuple[Oracle, str], tmp_path: Path, silent: Silent
) -> None:
    server, url = oracle
    server.trouble = lambda number: (400, {}, "lychee.policy is 'ours'") if number == 1 else None
    with pytest.raises(
        EvalError, match=r"arm 'ours 0.125': the server refuses .*'policy': 'ours'.*: 400: lychee.policy"
    ):
        run(settings(), Target(url=url), tmp_path, silent, {})
    assert asked(server) == []


@pytest.mark.parametrize(
    ("changed", "where"),
    [
        ({"seed": 2}, "settings.seed was 1 and is 2"),
        ({"samples": 4}, "settings.samples was 3 and is 4"),
        ({"lengths": [1600]}, r"settings.lengths\[0\] was 1500 and is 1600"),
        ({"temperature": 1.0}, "settings.temperature was 0.0 and is 1.0"),
        ({"arms": ONE}, "settings.arms was"),
    ],
)
def test_another_run_in_the_same_folder_is_refused(
    oracle: tuple[Oracle, str], tmp_path: Path, silent: Silent, changed: dict[str, Any], where: str
) -> None:
    _, url = oracle
    run(settings(tasks=["niah_single_2"]), Target(url=url), tmp_path, silent, {})
    before = still(tmp_path)
    with pytest.raises(EvalError, match=f"is another run: {where}.*; take another --out"):
        run(settings(**{"tasks": ["niah_single_2"], **changed}), Target(url=url), tmp_path, silent, {})
    assert still(tmp_path) == before


def test_another_head_plan_is_another_run(oracle: tuple[Oracle, str], tmp_path: Path, silent: Silent) -> None:
    server, url = oracle
    wanted = settings(arms=ONE, samples=1)
    run(wanted, Target(url=url), tmp_path, silent, {})
    server.plan = {"name": "tiny", "sha256": "cd"}
    with pytest.raises(EvalError, match="is another run: plan was 'ab' and is 'cd'"):
        run(wanted, Target(url=url), tmp_path, silent, {})


@pytest.mark.parametrize("has", [{"name": "tiny", "sha256": "ab"}, None])
def test_an_arm_of_another_head_plan_is_refused_before_anything_is_asked(
    oracle: tuple[Oracle, str], tmp_path: Path, silent: Silent, has: dict[str, str] | None
) -> None:
    server, url = oracle
    server.plan = has
    told = "has 'tiny'" if has else "names no head plan"
    wanted = settings(arms=[*ONE, {"name": "other 1/8", "lychee": {"budget": 8}, "plan": "other"}], samples=1)
    with pytest.raises(EvalError, match=f"arm 'other 1/8': plan is 'other', and the server {told}"):
        run(wanted, Target(url=url), tmp_path / "out", silent, {})
    assert not (tmp_path / "out").exists()  # nor is a sample made
    assert server.bodies == []
    server.plan = {"name": "other", "sha256": "cd"}
    assert run(wanted, Target(url=url), tmp_path / "out", silent, {}).errors == 0


def test_a_torn_last_line_is_asked_for_again_and_a_broken_one_is_refused(
    oracle: tuple[Oracle, str], tmp_path: Path, silent: Silent
) -> None:
    _, url = oracle
    wanted = settings(arms=ONE, tasks=["niah_single_2"])
    run(wanted, Target(url=url), tmp_path, silent, {})
    whole = still(tmp_path)
    path = tmp_path / "records.jsonl"
    text = path.read_text()
    path.write_text(text[:-40])
    outcome = run(wanted, Target(url=url), tmp_path, silent, {})
    assert (outcome.asked, outcome.records) == (1, 3)
    assert still(tmp_path) == whole
    path.write_text("{}\n" + text)
    with pytest.raises(EvalError, match=r"records.jsonl, line 1 is no record"):
        run(wanted, Target(url=url), tmp_path, silent, {})
    assert path.read_text() == "{}\n" + text


def test_only_one_process_writes_into_a_folder(tmp_path: Path) -> None:
    one, other = Store(tmp_path), Store(tmp_path)
    one.open({"seed": 1}, {})
    with pytest.raises(EvalError, match="is being written by another process"):
        other.open({"seed": 1}, {})
    one.close()
    other.close()
    other.open({"seed": 1}, {})
    other.close()


def test_a_later_record_replaces_an_earlier_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.open({}, {})
    first = Record(sample="a", arm="x", error="503")
    store.add(first)
    store.add(replace(first, error=None, score=1.0))
    assert asdict(store.records()["a", "x"])["score"] == 1.0
    store.close()


KILLED = """
import sys
from pathlib import Path
from lychee_sgl.eval.config import parse_settings
from lychee_sgl.eval.run import Target, run
import json
from tests.eval.conftest import Silent
settings = parse_settings(json.loads(sys.argv[1]), "x")
run(settings, Target(url=sys.argv[2], concurrency=2), Path(sys.argv[3]), Silent(), {})
"""


def test_a_run_that_was_killed_gives_the_same_records(
    oracle: tuple[Oracle, str], tmp_path: Path, silent: Silent
) -> None:
    server, url = oracle
    server.answer = lambda text, body: (
        "none" if len(text) % 3 == 0 and body["lychee"].get("value") == 0.125 else read(text)
    )
    wanted = settings(samples=2)
    run(wanted, Target(url=url), tmp_path / "whole", silent, {})
    server.bodies.clear()
    arguments = [json.dumps(wanted.model_dump(mode="json")), url, str(tmp_path / "cut")]
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    with subprocess.Popen([sys.executable, str(script), *arguments], env=dict(os.environ)) as process:
        wait_until(lambda: len(server.bodies) >= 13 or process.poll() is not None, 60)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    outcome = run(wanted, Target(url=url), tmp_path / "cut", silent, {})
    assert outcome.records == 20
    assert outcome.asked > 0
    assert still(tmp_path / "cut") == still(tmp_path / "whole")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seeds": 1}, "seeds: Extra inputs are not permitted|seeds is 1: Extra inputs"),
        ({"samples": 0}, "samples is 0: Input should be greater than or equal to 1"),
        ({"lengths": [32]}, "lengths has 32; allowed: from 64 on"),
        ({"lengths": [64, 96, 64]}, r"lengths is \[64, 96, 64\]; allowed: every length once"),
        ({"arms": []}, "arms: "),
        ({"arms": [*ONE, *ONE]}, "arms has 'dense' twice"),
        ({"tasks": ["vt", "vt"]}, "tasks has 'vt' twice"),
        ({"baseline": "x"}, "baseline is 'x'; allowed: dense"),
        ({"arms": [{"name": "{x}", "grid": {"policy": ["a"]}}]}, r"arms.name is '{x}'; allowed names in it: policy"),
        ({"arms": [{"name": "a", "grid": {"policy": "a"}}]}, "arms.grid: allowed are names with lists of values"),
        ({"prefix": "x"}, "prefix is 'x': Input should be 'continue', 'user' or 'none'"),
    ],
)
def test_a_wrong_configuration_is_refused_by_field_and_value(values: dict[str, Any], message: str) -> None:
    with pytest.raises(EvalError, match=message):
        parse_settings({"tasks": ["vt"], "arms": ONE, **values}, "test")
