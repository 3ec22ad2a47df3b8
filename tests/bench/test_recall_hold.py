"""The measurement of held recalls: the report by hand, and a run of real gateways before a scripted engine."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from typer.testing import CliRunner

from lychee_sgl.bench import recall_hold
from lychee_sgl.bench.cli import app
from lychee_sgl.bench.recall_hold import TASKS, Plan, questions
from lychee_sgl.bench.recall_report import Answer, bucket, reached, report, same_worst_case, settled, summary
from lychee_sgl.heads.needles import CHARS_PER_TOKEN
from tests.gateway.scripted_engine import INFO, SUMMARY, ThreadedServer, chat_answer, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.requests import Request


def answer(question: int, recall: float | None, *, prompt: int = 3000, budget: int = 500, **more: Any) -> Answer:
    base = {"recall_asked": None, "budget_asked": None, "answer_tokens": 10, "attended_fraction": 0.3}
    return Answer(question=question, recall=recall, prompt_tokens=prompt, budget=budget, **{**base, **more})


@pytest.mark.parametrize(
    ("recalls", "value"),
    [([0.5], 0.5), ([0.9] * 9 + [0.1], 0.9), ([0.9] * 8 + [0.1] * 2, 0.1), ([i / 100 for i in range(100)], 0.1)],
)
def test_reached_by_nine_in_ten(recalls, value):
    assert reached(recalls) == value


def test_buckets():
    assert [bucket(tokens) for tokens in (2047, 2048, 4095, 4096)] == [
        "1024-2047",
        "2048-4095",
        "2048-4095",
        "4096-8191",
    ]


def test_a_summary_by_hand():
    found = summary(
        [
            answer(0, 0.9, attended_fraction=0.2),
            answer(1, 0.8, attended_fraction=0.4, budget=700),
            answer(2, 0.95, prompt=5000, attended_fraction=0.6),
            answer(3, None, attended_fraction=1.0),
        ]
    )
    assert (found["answers"], found["audited"], found["worst_answer"], found["worst_bucket"]) == (4, 3, 0.8, 0.8)
    assert found["attended_fraction"] == pytest.approx(0.55)
    assert found["mean_recall"] == pytest.approx(2.65 / 3)
    assert list(found["buckets"]) == ["2048-4095", "4096-8191"]
    assert found["buckets"]["2048-4095"]["mean_budget"] == 600
    assert found["buckets"]["4096-8191"]["reached"] == 0.95


def test_each_bucket_settles_for_itself():
    answers = [answer(0, 0.9), answer(1, 0.9, prompt=5000), answer(2, 0.9), answer(3, 0.9), answer(4, 0.9, prompt=5000)]
    assert [a.question for a in settled(list(reversed(answers)), 1)] == [2, 3, 4]


FIXED = [
    (100, {"worst_bucket": 0.90, "attended_fraction": 0.2}),
    (400, {"worst_bucket": 0.975, "attended_fraction": 0.4}),
    (800, {"worst_bucket": 0.97, "attended_fraction": 0.6}),
    (1600, {"worst_bucket": 0.99, "attended_fraction": 0.8}),
]


@pytest.mark.parametrize(
    ("value", "budget", "attended"),
    [
        (0.90, 100, 0.2),
        # Missing 0.05, the geometric middle of 0.1 and 0.025: budget 200, the middle of the attended fractions.
        (0.95, 200, 0.3),
        (0.975, 400, 0.4),
        (0.99, 1600, 0.8),
    ],
)
def test_the_fixed_budget_with_the_same_worst_case(value, budget, attended):
    found = same_worst_case(FIXED, "worst_bucket", value)
    assert found == {"budget": pytest.approx(budget), "attended_fraction": pytest.approx(attended)}


@pytest.mark.parametrize("value", [0.89, 0.995])
def test_no_fixed_budget_outside_of_those_measured(value):
    assert same_worst_case(FIXED, "worst_bucket", value) is None


PLAN = Plan(
    documents=3,
    shortest=2100,
    longest=3500,
    recalls=(0.9,),
    budgets=(100, 400),
    answer_tokens=8,
    every=4,
    warm_up=1,
    seed=3,
)


def test_a_report_compares_over_the_same_questions():
    held = [answer(n, 0.90 + n / 100, recall_asked=0.9, budget=300) for n in range(5)]
    fixed = [answer(n, 0.8 + n / 50, budget_asked=100, budget=100, attended_fraction=0.2) for n in range(5)]
    fixed += [answer(n, 0.99, budget_asked=400, budget=400, attended_fraction=0.4) for n in range(5)]
    record = report([*held, *fixed], PLAN)
    (target,) = record["targets"]
    assert (target["whole"]["worst_bucket"], target["settled"]["worst_bucket"]) == (0.90, 0.91)
    assert target["settled"]["off_by"] == pytest.approx(0.01)
    # Without the first question the budget of 100 reaches 0.82: from there to 0.99, where is 0.91?
    share = math.log(0.18 / 0.09) / math.log(0.18 / 0.01)
    same = target["settled"]["same_worst_case"]["worst_bucket"]
    assert same["attended_fraction"] == pytest.approx(0.2 + 0.2 * share)
    assert target["answers"][0] == [0, 3000, 300, 0.9, 0.3]
    assert record["fixed"]["400"]["mean_recall"] == pytest.approx(0.99)


def test_each_doubling_of_the_length_has_as_many_documents():
    plan = dataclasses.replace(PLAN, documents=7, shortest=1200, longest=6900)
    lengths = sorted(len(document[0].text) / CHARS_PER_TOKEN for document in questions(plan))
    # 1200 to 2048 three, to 4096 two, to 6900 two.
    borders = ((1200, 2048), (2048, 4096), (4096, 6900))
    assert [sum(low <= length < high for length in lengths) for low, high in borders] == [3, 2, 2]


def test_questions_of_one_document_share_its_text():
    documents = questions(PLAN)
    assert [[q.number for q in each] for each in documents] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    for first, second, third in documents:
        assert second.text.removesuffix(TASKS[1]) == third.text.removesuffix(TASKS[2])
        assert first.text[:2000] == second.text[:2000]
    assert documents == questions(PLAN)


def test_the_table_of_the_readme(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "docs")  # as where a script lies
    tables = importlib.import_module("tables_cpu")
    held = [answer(n, 0.90 + n / 100, recall_asked=0.9, budget=300) for n in range(5)]
    fixed = [answer(n, 0.82, budget_asked=100, budget=100, attended_fraction=0.2) for n in range(5)]
    fixed += [answer(n, 0.98, budget_asked=400, budget=400, attended_fraction=0.4) for n in range(5)]
    machine = {"cpu": "a CPU", "cores": 2, "load_before": [0.5]}
    versions = {"sglang": "0.5.17", "torch": "2.11.0"}
    about = {"machine": machine, "versions": versions, "date": "2026-11-22", "command": "lychee-sgl bench recall"}
    record = {**report([*held, *fixed], PLAN), "plan": dataclasses.asdict(PLAN), **about}
    record["served"] = {"plan": {"method": "hand"}}
    text = tables.recall_hold(json.loads(json.dumps(record)), "recall-hold.json")
    # Missing 0.09: from 0.18 to 0.02 in nine times, of which 2 is 0.3155 of the way from 100 to 400 tokens: 155.
    assert "| 0.9 | 0.9100 (+0.0100) | 0.9100 | 30.0% | 155: 26.3% | 30.0% | 145: 25.4% |" in text.splitlines()
    assert "5 questions over texts of 2,100 to 3,500 tokens" in text
    assert "The head plan was made by hand." in text


class RecallingEngine:
    """Answers with a recall that grows with the budget. The real one takes minutes for what this does at once."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.fails_at: int | None = None
        self.app = Starlette(
            routes=[
                Route("/health", lambda _: Response()),
                Route("/health_generate", lambda _: Response()),
                Route("/lychee/info", lambda _: JSONResponse({**INFO, "recall_every": 4})),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/abort_request", lambda _: Response(), methods=["POST"]),
            ]
        )

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        budget = body["custom_params"]["lychee_budget"]
        self.asked.append(budget)
        if len(self.asked) == self.fails_at:
            return JSONResponse({"message": "out of memory"}, status_code=500)
        prompt = len(body["messages"][0]["content"]) // 4
        recall = 1 - 0.1 * (300 / budget) ** 0.7
        summary = {**SUMMARY, "budget": budget, "recall": recall, "decode_steps": 7, "sparse_steps": 7}
        answer = chat_answer({**summary, "attended_fraction": min(1.0, budget / prompt)})
        return JSONResponse({**answer, "usage": {"prompt_tokens": prompt, "completion_tokens": 8}})


@pytest.fixture
def recalling() -> Iterator[tuple[RecallingEngine, str]]:
    engine = RecallingEngine()
    with serving(ThreadedServer(engine.app)) as server:
        yield engine, server.url


def invoke(out: Path, url: str, *more: str) -> Any:
    options = ["--documents", "5", "--tokens", "2100,3500", "--recalls", "0.9", "--budgets", "100,400,1600"]
    options += ["--answer-tokens", "8", "--every", "4", "--warm-up", "8", "--engine-url", url, "--out", str(out)]
    return CliRunner().invoke(app, ["recall", *options, *more])


def test_a_run_that_is_interrupted_and_gone_on_with(recalling, tmp_path):
    engine, url = recalling
    out = tmp_path / "recall.json"
    engine.fails_at = 40
    broken = invoke(out, url)
    assert broken.exit_code == 1
    assert "no answer to question 9: status 502" in broken.output.replace("\n", " ")
    assert not out.exists()
    kept = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()[1:]]
    fixed = sum(each["budget_asked"] is not None for each in kept)
    assert fixed >= 26
    engine.asked.clear()
    whole = invoke(out, url)
    assert whole.exit_code == 0, whole.output
    # 5 documents, 3 questions each: of the 45 fixed answers only those that were missing; the held ones all again.
    assert len(engine.asked) == 15 + 45 - fixed
    record = json.loads(out.read_text())
    (target,) = record["targets"]
    budgets = [row[2] for row in target["answers"]]
    assert len(budgets) == 15
    assert budgets[0] >= 1000
    assert budgets[-1] < budgets[0]
    assert record["fixed"]["400"]["answers"] == 15
    assert record["learnt"]["0.9"][0]["audited_answers"] > 0
    assert record["served"]["model"] == "tiny"
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    other = invoke(out, url, "--warm-up", "3")
    assert other.exit_code == 1
    assert "belongs to other settings; --fresh begins anew" in other.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokens", "many"], "--tokens is 'many'; allowed: whole numbers, with commas"),
        (["--every", "5"], "the engine audits one step in 4"),
        (["--tokens", "2100,8000"], "the engine's window is 8192 tokens: --tokens reaches too far"),
        (["--engine-url", "http://127.0.0.1:9"], "is no engine with our backend"),
    ],
)
def test_refused(recalling, tmp_path, options, message):
    result = invoke(tmp_path / "recall.json", recalling[1], *options)
    assert result.exit_code == 1
    assert message in result.output.replace("\n", " ")


def test_a_gateway_that_does_not_start(tmp_path):
    with (
        pytest.raises(recall_hold.RecallError, match="gateway-x is not ready"),
        recall_hold.gateway(tmp_path, "gateway-x", "no-address", {"PATH": "/usr/bin:/bin"}),
    ):
        pass
