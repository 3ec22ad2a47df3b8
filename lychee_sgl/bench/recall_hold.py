"""How well `min_recall` is held, and at what cost: real prompts through real gateways, beside fixed budgets.

Each asked recall has a gateway of its own, so that it learns from its own answers alone; another serves the fixed
budgets. All ask the same questions of the same engine, one document after the other: its text is prefilled once.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import httpx

from lychee_sgl.bench.recall_report import Answer, report
from lychee_sgl.heads.needles import needle_prompts
from lychee_sgl.serve.config import current_environment
from lychee_sgl.serve.process import Lifeline, Service, ServiceSpec, meaningful_tail
from lychee_sgl.serve.ready import Probe
from lychee_sgl.serve.solo import free_port, solo_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

LEAST_TOKENS = 64
READY_SECONDS = 120.0
ANSWER_SECONDS = 1800.0
TASKS = (None, "Summarise the text above in three sentences.", "List five terms that the text explains.")
"""What is asked of each document; None: for the fact that is hidden in it."""


class RecallError(RuntimeError):
    """The measurement cannot be made; the message is for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured; a journal is only gone on with under the same.

    Attributes:
        documents: how many texts; each is asked `len(TASKS)` questions.
        shortest: tokens of the shortest text, about.
        longest: tokens of the longest one.
        recalls: asked of the gateway.
        budgets: fixed ones.
        answer_tokens: longest answer.
        every: one decode step in so many is audited.
        warm_up: answers of each bucket that a held recall is given to settle.
        seed: of the texts.
    """

    documents: int
    shortest: int
    longest: int
    recalls: tuple[float, ...]
    budgets: tuple[int, ...]
    answer_tokens: int
    every: int
    warm_up: int
    seed: int

    def __post_init__(self) -> None:
        """Refuse what cannot be measured.

        Raises:
            ValueError: a length, a recall or a budget is out of range.
        """
        if not LEAST_TOKENS <= self.shortest < self.longest:
            raise ValueError(
                f"tokens is {self.shortest},{self.longest}; allowed: two different numbers from {LEAST_TOKENS}"
            )
        for recall in self.recalls:
            if not 0.5 <= recall <= 0.999:
                raise ValueError(f"recalls has {recall}; allowed: 0.5 to 0.999")
        for budget in self.budgets:
            if budget < 1:
                raise ValueError(f"budgets has {budget}; allowed: 1 and more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One prompt."""

    number: int
    text: str


def questions(plan: Plan) -> tuple[tuple[Question, ...], ...]:
    """Return the questions, those of one document together; each doubling of the length has as many documents."""
    borders = [2**power for power in range(1, 32) if plan.shortest < 2**power < plan.longest]
    ranges = list(pairwise((plan.shortest, *borders, plan.longest)))
    counts = [plan.documents // len(ranges) + (place < plan.documents % len(ranges)) for place in range(len(ranges))]
    prompts = [
        prompt
        for place, (tokens, count) in enumerate(zip(ranges, counts, strict=True))
        if count
        for prompt in needle_prompts(count, tokens=_inside(tokens), seed=plan.seed + place, kind="evaluation")
    ]
    random.Random(plan.seed).shuffle(prompts)
    return tuple(
        tuple(
            Question(
                number=index * len(TASKS) + place,
                text=prompt.text if task is None else f"{prompt.document}\n\n{task}",
            )
            for place, task in enumerate(TASKS)
        )
        for index, prompt in enumerate(prompts)
    )


def _inside(tokens: tuple[int, int]) -> tuple[int, int]:
    # Lengths are not exact, and a template comes on top: a text near a border would count on either side.
    return round(1.04 * tokens[0]), round(0.96 * tokens[1])


class Journal:
    """Answers as they come, one line each, so that an interrupted run does not ask for all of them again.

    Fixed budgets remember nothing, so their answers are kept. A gateway that holds a recall has forgotten what it had
    learnt when its process ended: its answers are asked for again, from the first.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        self._path = path
        self._head = {"plan": json.loads(json.dumps(asdict(plan)))}
        self._begun = False
        self.answers: list[Answer] = []

    def open(self, *, fresh: bool) -> None:
        """Read what is there. It is written anew with the first answer, not before: an engine may not be there.

        Raises:
            RecallError: it is another measurement's.
        """
        lines = (
            self._path.read_text("utf-8", errors="replace").splitlines() if self._path.exists() and not fresh else []
        )
        if lines and lines[0] != json.dumps(self._head):
            raise RecallError(f"{self._path} belongs to other settings; --fresh begins anew")
        kept = [Answer(**json.loads(line)) for line in lines[1:] if line.endswith("}")]
        self.answers = [answer for answer in kept if answer.recall_asked is None]

    def add(self, answer: Answer) -> None:
        """Keep an answer."""
        self.answers.append(answer)
        if self._begun:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(answer)) + "\n")
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        anew = self._path.with_name(f"{self._path.name}.new")
        rows = (self._head, *map(asdict, self.answers))
        anew.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        anew.replace(self._path)
        self._begun = True


@contextlib.contextmanager
def gateway(state: Path, name: str, engine_url: str, environ: dict[str, str]) -> Iterator[str]:
    """Run a gateway for the time of a block; yields its address.

    Raises:
        RecallError: it ended, or was not ready in time.
    """
    port = free_port()
    spec = ServiceSpec(
        name=name,
        command=(sys.executable, "-P", "-m", "lychee_server", "--engine-url", engine_url, "--port", str(port)),
        environment=environ,
        log=state / f"{name}.log",
        stop_grace=10.0,
    )
    service = Service(spec, lifeline := Lifeline())
    service.start()
    address = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + READY_SECONDS
        with contextlib.closing(Probe(f"{address}/readyz")) as ready:
            while not ready():
                if service.poll() is not None or time.monotonic() > end:
                    raise RecallError(f"{name} is not ready:\n" + "\n".join(meaningful_tail(spec.log)))
                time.sleep(0.1)
        yield address
    finally:
        service.stop()
        end = time.monotonic() + spec.stop_grace + 5
        while service.pid is not None and service.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        lifeline.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One way to ask: an address and the request field."""

    address: str
    recall: float | None = None
    budget: int | None = None

    def ask(self, client: httpx.Client, question: Question, tokens: int) -> Answer:
        """Ask a question.

        Raises:
            RecallError: there was no answer, or none with a summary.
        """
        field = {"min_recall": self.recall} if self.recall is not None else {"budget": self.budget}
        body = {
            "model": "default",
            "messages": [{"role": "user", "content": question.text}],
            "max_tokens": tokens,
            "temperature": 0,
            "lychee": field,
        }
        try:
            reply = client.post(f"{self.address}/v1/chat/completions", json=body)
        except httpx.HTTPError as error:
            raise RecallError(f"no answer to question {question.number}: {error}") from error
        told = reply.json() if reply.status_code == 200 else {}
        if "lychee" not in told:
            raise RecallError(f"no answer to question {question.number}: status {reply.status_code}, {reply.text:.200}")
        summary, usage = told["lychee"], told["usage"]
        return Answer(
            question=question.number,
            recall_asked=self.recall,
            budget_asked=self.budget,
            prompt_tokens=usage["prompt_tokens"],
            answer_tokens=usage["completion_tokens"],
            budget=summary["budget"],
            recall=summary["recall"],
            attended_fraction=summary["attended_fraction"],
        )


def measure(
    lanes: Sequence[Lane], plan: Plan, journal: Journal, at_once: int, say: Callable[[int, int], None]
) -> list[Answer]:
    """Ask every question in every lane.

    The first to ask a question prefills its prompt; the others find it in the cache and decode together.

    Args:
        lanes: the ways to ask.
        plan: what is asked.
        journal: gets every answer.
        at_once: how many ask at the same time.
        say: gets the number of answers, and how many there will be.

    Returns:
        All answers, of this run and of the journal.

    Raises:
        RecallError: a question was not answered.
    """
    known = {(answer.question, answer.budget_asked) for answer in journal.answers if answer.recall_asked is None}
    total = plan.documents * len(TASKS) * len(lanes)
    say(len(journal.answers), total)
    limits = httpx.Limits(max_connections=at_once)
    with (
        ThreadPoolExecutor(at_once) as pool,
        httpx.Client(timeout=ANSWER_SECONDS, limits=limits, trust_env=False) as client,
    ):
        for question in (each for document in questions(plan) for each in document):
            waiting = [lane for lane in lanes if lane.recall is not None or (question.number, lane.budget) not in known]
            if waiting:
                journal.add(waiting[0].ask(client, question, plan.answer_tokens))
            for answer in pool.map(lambda lane, q=question: lane.ask(client, q, plan.answer_tokens), waiting[1:]):
                journal.add(answer)
            say(len(journal.answers), total)
    return journal.answers


def run(
    plan: Plan, state: Path, journal: Journal, *, engine_url: str | None, at_once: int, say: Callable[[int, int], None]
) -> dict[str, Any]:
    """Start what is needed, measure and report.

    Args:
        plan: what is measured.
        state: folder for logs.
        journal: opened.
        engine_url: of a running engine with our backend; None: one is started on this machine's CPU.
        at_once: how many requests run at the same time.
        say: gets the number of answers, and how many there will be.

    Returns:
        The record as it is committed, without what `machine.describe` knows.

    Raises:
        RecallError: something that is needed does not run, or a question was not answered.
        StartFailed: the engine did not start.
    """
    environ = current_environment()
    # A policy or limits of the caller's own deployment would be measured instead.
    environ = {key: value for key, value in environ.items() if not key.startswith("LYCHEE_GATEWAY_")}
    with contextlib.ExitStack() as stack:
        if engine_url is None:
            engine_url = stack.enter_context(solo_engine(state, environ={"LYCHEE_RECALL_EVERY": str(plan.every)}))
        served = _served(engine_url, plan)
        held = [
            Lane(address=stack.enter_context(gateway(state, f"gateway-{recall:g}", engine_url, environ)), recall=recall)
            for recall in plan.recalls
        ]
        fixed = stack.enter_context(gateway(state, "gateway-fixed", engine_url, environ))
        lanes = [*held, *(Lane(address=fixed, budget=budget) for budget in plan.budgets)]
        answers = measure(lanes, plan, journal, at_once, say)
        learnt = {f"{lane.recall:g}": _state(lane.address) for lane in held}
    return {"kind": "recall-hold", "plan": asdict(plan), "served": served, **report(answers, plan), "learnt": learnt}


def _served(engine_url: str, plan: Plan) -> dict[str, Any]:
    try:
        info: dict[str, Any] = (
            httpx.get(f"{engine_url}/lychee/info", timeout=30, trust_env=False).raise_for_status().json()
        )
    except (httpx.HTTPError, ValueError) as error:
        raise RecallError(f"{engine_url} is no engine with our backend: {error}") from error
    if info["recall_every"] != plan.every:
        raise RecallError(
            f"the engine audits one step in {info['recall_every']}: give --every, or set LYCHEE_RECALL_EVERY"
        )
    if plan.longest + 500 > info["context_window"]:
        raise RecallError(f"the engine's window is {info['context_window']} tokens: --tokens reaches too far")
    return {key: info[key] for key in ("model", "plan", "dense_below", "recall_every", "context_window", "device")}


def _state(address: str) -> list[dict[str, Any]]:
    state: dict[str, Any] = httpx.get(f"{address}/v1/sparsity", timeout=30, trust_env=False).raise_for_status().json()
    found: list[dict[str, Any]] = state["recall"]
    return found
