"""The bench with real engines behind a router: its requests, its judgement and its sums, by hand; no engine runs."""

from __future__ import annotations

import copy
import json
import math
import re
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lychee_sgl.bench.cli import app
from lychee_sgl.bench.gateway_parts import DEPLOYED
from lychee_sgl.bench.router_alone import Token, gap_at_difference, tokens_of
from lychee_sgl.bench.router_client import Heard, alone, mismatches, outcome, slipped, take, told
from lychee_sgl.bench.router_engines import Finished, Life, totals
from lychee_sgl.bench.router_requests import CHAT, COMPLETIONS, EXAMPLE, MOST, NOT_ALLOWED, Asked, mix, number_of
from lychee_sgl.bench.router_sums import Run, engine_counts, problems, replica_counts

DOCKERFILE = Path(__file__).parents[2] / "Dockerfile"
ERROR = {"message": "gone", "type": "api_error", "param": None, "code": "engine_unavailable"}


def asked(number: int, *, path: str = CHAT, stream: bool = True, tokens: int = 4, **more: object) -> Asked:
    leaving = {key: more.pop(key) for key in ("leave_chunks", "leave_seconds") if key in more}
    body = {"model": "m", "max_tokens": tokens, "stream": stream, "messages": [], "prompt": "", **more}
    return Asked(number=number, kind="short", path=path, body=body, mark="483920", **leaving)  # type: ignore[arg-type]


def test_the_mix_is_what_it_says() -> None:
    found = mix(2000, "m")
    assert found == mix(2000, "m") != mix(2000, "m", seed=1)
    assert [each.number for each in found] == [number_of(each.trace) for each in found] == list(range(2000))
    assert len({each.mark[:4] for each in found} | {EXAMPLE[:4]}) == 2001
    assert {len(each.mark) for each in found} == {6}
    assert all(each.mark in str(each.body) and 4 <= each.tokens <= 24 for each in found)
    # every combination of what differs is there
    assert {(each.path, each.stream) for each in found} == {(p, s) for p in (CHAT, COMPLETIONS) for s in (True, False)}
    assert {each.kind for each in found} == {"short", "shared", "medium", "long"}
    assert len({json.dumps(each.body.get("lychee")) for each in found}) == 8
    assert {bool(each.leave_chunks) == each.stream for each in found if each.leaves} == {True}
    assert not [each for each in found if each.leaves and each.not_allowed]
    # a shared document begins several prompts, a fresh one none other
    starts = Counter((each.kind, str(each.body.get("prompt"))[:40]) for each in found if each.path == COMPLETIONS)
    assert min(count for (kind, _), count in starts.items() if kind == "shared") > 5
    assert {count for (kind, _), count in starts.items() if kind in ("medium", "long")} == {1}
    with pytest.raises(ValueError, match=f"requests is {MOST + 1}; allowed: 1 to {MOST}"):
        mix(MOST + 1, "m")


@pytest.mark.parametrize(
    ("text", "verdict"),
    [("483920, 483920", True), ("4839", True), ("The number is 483920.", True), ("483", None), ("none", None),
     ("", None), ("483921", True), ("17", False), ("4849", False), ("4839207", True), ("4839920", True)],
)  # fmt: skip
def test_whose_an_answer_is(text: str, verdict: bool | None) -> None:
    assert told("483920", text) is verdict


@pytest.mark.parametrize(
    ("text", "verdict"),
    [("483920", False), ("4839207", False), ("48392", False), ("4839", False), ("483921", True), ("4839920", True),
     ("484920", False), ("483", False), ("none", False)],
)  # fmt: skip
def test_a_slip_after_the_own_digits(text: str, verdict: bool) -> None:
    assert slipped("483920", text) is verdict


def test_how_a_request_ended() -> None:
    bad = asked(0, lychee=NOT_ALLOWED)
    cases = [
        (asked(0), Heard(status=200, done=True), "answered"),
        (asked(0), Heard(status=200, error=ERROR, closed=True), "error"),
        (asked(0), Heard(status=400, error=ERROR), "error"),
        (bad, Heard(status=400, error=ERROR), "refused"),
        (asked(0), Heard(status=200, left=True), "left"),
        (asked(0), Heard(status=200), "broken"),
        (asked(0), Heard(hung=True), "hung"),
    ]
    assert [outcome(request, heard) for request, heard, _ in cases] == [word for *_, word in cases]


def test_chunks_are_put_together() -> None:
    heard = Heard()
    for chunk in (
        {"id": "a", "choices": [{"delta": {"content": "48"}}], "usage": None},
        {"id": "a", "choices": [{"text": "39", "finish_reason": "length"}]},
        {"id": "a", "choices": [], "usage": {"prompt_tokens": 3}, "lychee": {"budget": 64}},
    ):
        take(heard, chunk)
    assert (heard.text, heard.chunks, heard.ids, heard.finish) == ("4839", 2, {"a"}, "length")
    assert (heard.usage, heard.lychee) == ({"prompt_tokens": 3}, {"budget": 64})
    take(heard, {"error": ERROR})
    assert heard.error == ERROR


def test_what_an_answer_says_of_itself() -> None:
    request = asked(0, lychee={"budget": "dense"}, stream_options={"include_usage": True})
    heard = Heard(
        status=200, ids={"a"}, done=True, finish="length", usage={"prompt_tokens": 10, "completion_tokens": 4},
        lychee={"context_tokens": 14, "budget": "dense", "attended_fraction": 1.0},
    )  # fmt: skip
    assert mismatches(request, heard, 10, 1024) == []
    assert mismatches(request, heard, 11, 1024) == ["context_tokens is 14, not 15", "prompt_tokens is 10, not 11"]
    assert mismatches(asked(0), heard, 10, 1024) == ["budget is 'dense', not 1024"]
    assert mismatches(asked(0, lychee={"mode": "ratio", "value": 0.5}), heard, 10, 1) == ["mode is None, not 'ratio'"]
    heard.ids.add("b")
    assert mismatches(request, heard, 10, 1024) == ["ids is 2, not 1"]


def test_the_same_request_alone() -> None:
    body = alone(asked(0, lychee={"budget": 64}, stream_options={}), 5)
    assert body["custom_params"] == {"lychee_budget": 64}
    assert (body["stream"], body["logprobs"], body["top_logprobs"]) == (False, True, 5)
    assert not {"lychee", "stream_options"} & body.keys()
    assert alone(asked(0, path=COMPLETIONS), 5)["logprobs"] == 5


def test_the_first_difference_by_hand() -> None:
    tokens = [Token("48", {"48": -0.1, "17": -3.1}), Token("39", {"39": -0.5, "40": -0.6, "4": -2.5})]
    assert gap_at_difference("4839", tokens) is None
    assert gap_at_difference("4840", tokens) == pytest.approx(0.1)
    assert gap_at_difference("1739", tokens) == pytest.approx(3.0)
    assert gap_at_difference("48zz", tokens) == math.inf
    assert gap_at_difference("48", tokens) == math.inf
    assert gap_at_difference("483", tokens, whole=False) is None
    assert gap_at_difference("484", tokens, whole=False) == pytest.approx(2.0)
    assert gap_at_difference("483900", tokens) == math.inf
    # "a.b" may be "a", "." or "a."; the choice was made there, and is seen later
    cut = [Token("a", {"a": -0.5, "a.": -0.75}), Token(".", {".": -0.25}), Token("c", {"c": -0.125, "d": -4.0})]
    assert gap_at_difference("a.b", cut) == pytest.approx(0.25)
    assert gap_at_difference("a.d", cut) == pytest.approx(0.25)
    assert gap_at_difference("b", cut) == math.inf
    chat = {"content": [{"token": "48", "logprob": -0.1, "top_logprobs": [{"token": "48", "logprob": -0.1}]}]}
    assert tokens_of({"choices": [{"logprobs": chat}]}, CHAT) == [Token("48", {"48": -0.1})]
    text = {"tokens": ["48"], "top_logprobs": [{"48": -0.1}]}
    assert tokens_of({"choices": [{"logprobs": text}]}, COMPLETIONS) == [Token("48", {"48": -0.1})]


def line(event: str, number: int | None, rid: str = "r", **meta: object) -> str:
    headers = {} if number is None else {"headers": {"traceparent": asked(number).trace}}
    out = {"out": {"meta_info": meta}} if meta else {}
    return f"[2026-01-01 00:00:00] {json.dumps({'event': event, 'rid': rid, **headers, **out})}\n"


def test_a_journal_is_read() -> None:
    life = Life(replica="a:1")
    end = {"finish_reason": {"type": "length"}, "prompt_tokens": 9, "completion_tokens": 3}
    steps = [None, [10, 40, 0, 64, 10, None, 2], [11, 44, 0, 64, 11, 0.9, 2]]
    life.read([
        line("request.received", None), line("request.finished", None, **end),
        line("request.finished", None, rid="HEALTH_CHECK_1", **end),
        line("request.received", 7), line("request.received", 8), line("request.finished", 7, **end, lychee=steps),
        line("request.finished", 8, finish_reason={"type": "abort"}, completion_tokens=0),
    ])  # fmt: skip
    assert life.received == {7: 1, 8: 1}
    assert life.finished == {
        7: Finished(reason="length", prompt_tokens=9, tokens=3, attended=21, dense=84),
        8: Finished(reason="abort", prompt_tokens=0, tokens=0, attended=0, dense=0, ran=False),
    }
    assert len(life.others) == 1
    text = '# HELP x y\nsglang:a_total{b="1",c="x"} 2.0\nsglang:a_total{b="2",c="x"} 3.0\nother 1\n'
    assert totals(text) == {"sglang:a_total": 5, "other": 1}


def done(tokens: int = 4, reason: str = "length") -> Finished:
    return Finished(reason=reason, prompt_tokens=10, tokens=tokens, attended=5, dense=20)


def small_run() -> Run:
    """Eight requests: a stream dies with the first engine, an answer in one piece is asked of the other, one leaves."""
    requests = [
        asked(0), asked(1), asked(2, stream=False), asked(3, path=COMPLETIONS), asked(4, lychee=NOT_ALLOWED),
        asked(5, leave_chunks=1), asked(6, path=COMPLETIONS), asked(7),
    ]  # fmt: skip
    fine = {"status": 200, "done": True, "closed": True, "chunks": 2}
    heard = [
        Heard(**fine, began=0, ended=2),
        Heard(status=200, chunks=3, error=ERROR, closed=True, began=3, ended=6),
        Heard(status=200, done=True, closed=True, chunks=1, began=4, ended=8),
        Heard(**fine, began=4, ended=7),
        Heard(status=400, error=ERROR, closed=True, began=4, ended=4),
        Heard(status=200, chunks=1, left=True, began=4, ended=5.5),
        Heard(**fine, began=9, ended=10),
        Heard(**fine, began=9, ended=10),
    ]
    counted = {"sglang:num_requests_total": 1.0, "sglang:generation_tokens_total": 4.0}
    first = Life(replica="a:1", received=Counter([0, 1, 2]), finished={0: done()}, others=[done(8)], counted=counted)
    first.looked_at, first.killed_at = 1.0, 5.0
    own = {"sglang:num_requests_total": 2.0, "sglang:generation_tokens_total": 12.0}
    again = Life(replica="a:1", received=Counter([6]), finished={6: done()}, others=[done(8)], counted=own)
    ends = {2: done(), 3: done(), 5: done(2, "abort"), 7: done()}
    own = {"sglang:num_requests_total": 5.0, "sglang:generation_tokens_total": 22.0}
    other = Life(replica="b:1", received=Counter([2, 3, 5, 7]), finished=ends, others=[done(8)], counted=own)
    counts = {(CHAT, "200"): 3, (CHAT, "502"): 1, (CHAT, "400"): 1, (CHAT, "499"): 1, (COMPLETIONS, "200"): 2}
    metrics = {
        ("lychee_requests_total", f'route="{route}",status="{status}"'): float(number)
        for (route, status), number in counts.items()
    }
    metrics |= {
        ("lychee_requests_in_flight", ""): 0.0,
        ("lychee_prompt_tokens_total", ""): 50.0,
        ("lychee_generation_tokens_total", ""): 20.0,
        ("lychee_decode_steps_total", 'decoding="sparse"'): 12.0,
        ("lychee_decode_steps_total", 'decoding="dense"'): 3.0,
        ("lychee_attended_kv_entries_total", ""): 25.0,
        ("lychee_dense_equivalent_kv_entries_total", ""): 100.0,
        ("lychee_replica_answers_total", 'engine="r",replica="a:1"'): 3.0,
        ("lychee_replica_answers_total", 'engine="r",replica="b:1"'): 4.0,
    }
    return Run(asked=requests, heard=heard, lives=[first, again, other], metrics=metrics)


def test_a_run_that_adds_up() -> None:
    run = small_run()
    assert run.outcomes == ["answered", "error", "answered", "answered", "refused", "left", "answered", "answered"]
    assert [number for number in range(8) if run.open_at_the_kill(number)] == [1, 2]
    assert problems(run) == []
    # the stream that died had begun on a, and request 2 counts where it was answered
    assert replica_counts(run) == {"a:1": (3, 3, 3), "b:1": (4, 4, 4)}
    first, again, other = (engine_counts(life, run.asked, run.heard) for life in run.lives)
    # its warm-up was counted; requests 0, 1 and 2 were open then or came later
    assert first == {
        "received": 3, "ended": 1, "own": 1, "died_with": 2, "requests": [0, 1, 4], "ended_since_last_asked": 1,
        "at_most": 3,
    }  # fmt: skip
    assert again == {"received": 1, "ended": 1, "own": 1, "requests": [2, 2, 2], "generated_tokens": [12, 12, 12]}
    assert other == {"received": 4, "ended": 4, "own": 1, "requests": [5, 5, 5], "generated_tokens": [22, 22, 22]}


def test_who_leaves_the_queue_is_not_in_the_engines_counters() -> None:
    run = small_run()
    run.lives[2].finished[5] = Finished(reason="abort", prompt_tokens=0, tokens=0, attended=0, dense=0, ran=False)
    assert engine_counts(run.lives[2], run.asked, run.heard)["requests"] == [4, 5, 4]


def _later(run: Run) -> None:
    run.heard[1].began = 5.5  # behind the kill


def _shapeless(run: Run) -> None:
    run.heard[1].error = {"message": "gone"}


def _hung(run: Run) -> None:
    run.outcomes[7] = "hung"


def _twice(run: Run) -> None:
    run.lives[1].received[7] += 1


def _nowhere(run: Run) -> None:
    del run.lives[2].finished[3]


def _short(run: Run) -> None:
    run.lives[2].finished[3] = done(3)


def _refused(run: Run) -> None:
    run.lives[2].received[4] += 1


def _unused(run: Run) -> None:
    run.lives[1].finished.clear()


def _uncounted(run: Run) -> None:
    run.lives[2].counted["sglang:num_requests_total"] = 4.0


def _whole_answer_fails(run: Run) -> None:
    run.heard[2].error, run.heard[2].done, run.outcomes[2] = ERROR, False, "error"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_later, "request 1 was no stream on the killed engine"),
        (_whole_answer_fails, "request 2 was no stream on the killed engine"),
        (_shapeless, "the error of request 1 has not OpenAI's shape"),
        (_hung, "request 7 hung"),
        (_twice, "request 7 reached 2 engines"),
        (_nowhere, "request 3 was answered, and no engine has ended it"),
        (_short, "request 3 was ended with"),
        (_refused, "request 4 was refused and reached an engine"),
        (_unused, "a:1 has answered nothing since it was last started"),
        (_uncounted, "requests of process 2: 4 counted, 5 to 5 expected"),
    ],
)
def test_what_does_not_add_up_is_said(change, words) -> None:
    run = copy.deepcopy(small_run())
    change(run)
    assert [problem for problem in problems(run) if words in problem], problems(run)


@pytest.mark.parametrize(
    ("name", "labels", "value"),
    [
        ("lychee_requests_total", f'route="{CHAT}",status="200"', 4.0),
        ("lychee_requests_total", f'route="{COMPLETIONS}",status="200"', 1.0),
        ("lychee_requests_in_flight", "", 1.0),
        ("lychee_prompt_tokens_total", "", 60.0),
        ("lychee_generation_tokens_total", "", 19.0),
        ("lychee_decode_steps_total", 'decoding="dense"', 4.0),
        ("lychee_attended_kv_entries_total", "", 26.0),
        ("lychee_replica_answers_total", 'engine="r",replica="b:1"', 5.0),
        ("lychee_replica_answers_total", 'engine="r",replica="c:1"', 1.0),
    ],
)
def test_a_counter_that_is_wrong_is_said(name: str, labels: str, value: float) -> None:
    run = small_run()
    run.metrics[name, labels] = value
    assert len(problems(run)) == 1


def test_the_router_is_started_as_in_its_container() -> None:
    (entry,) = re.findall(r'^ENTRYPOINT (\["smg".*?\])$', DOCKERFILE.read_text(), re.MULTILINE | re.DOTALL)
    words = json.loads(entry.replace("\\\n", ""))
    given = dict(zip(words[2::2], words[3::2], strict=True))
    addresses = {"--host", "--port", "--prometheus-host", "--prometheus-port"}
    assert {key: value for key, value in given.items() if key not in addresses} == DEPLOYED


@pytest.mark.parametrize(
    ("words", "told_"), [(["--engine", "vllm"], "allowed: echo, lychee"), (["--engine", "lychee", "--kills", "2"], "1")]
)
def test_options_of_the_router_are_checked(words: list[str], told_: str) -> None:
    answer = CliRunner().invoke(app, ["router", *words])
    assert answer.exit_code == 1
    assert told_ in answer.output
