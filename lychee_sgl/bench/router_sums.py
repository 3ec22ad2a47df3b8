"""Holds what clients saw, what the gateway counted and what the engines wrote down against each other.

Nothing here talks to anybody: everything that is said of a run can be tested by hand.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lychee_sgl.bench.router_client import openai_shaped, outcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lychee_sgl.bench.router_client import Heard
    from lychee_sgl.bench.router_engines import Finished, Life
    from lychee_sgl.bench.router_requests import Asked

Metrics = dict[tuple[str, str], float]
REQUESTS = "sglang:num_requests_total"
GENERATED = "sglang:generation_tokens_total"
PROMPT = "sglang:prompt_tokens_total"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """All that is known when it is over.

    Attributes:
        asked: the requests, by number.
        heard: what their clients saw.
        lives: every process of every engine, in the order of their starts.
        metrics: the gateway's.
        outcomes: a word for each request.
    """

    asked: Sequence[Asked]
    heard: Sequence[Heard]
    lives: Sequence[Life]
    metrics: Metrics
    outcomes: list[str] = field(init=False)

    def __post_init__(self) -> None:
        words = [outcome(asked, heard) for asked, heard in zip(self.asked, self.heard, strict=True)]
        object.__setattr__(self, "outcomes", words)

    def numbers(self, *words: str) -> list[int]:
        """The requests that ended so."""
        return [number for number, word in enumerate(self.outcomes) if word in words]

    def last_life(self, number: int) -> Life | None:
        """The process that had a request last."""
        return next((life for life in reversed(self.lives) if number in life.received), None)

    def open_at_the_kill(self, number: int) -> bool:
        """Whether a request was open on an engine at the moment when that was killed."""
        heard = self.heard[number]
        return any(
            number in life.received and life.killed_at is not None and heard.began <= life.killed_at <= heard.ended
            for life in self.lives
        )

    def ended(self, number: int) -> Finished | None:
        """How the last engine that ended a request ended it."""
        return next((life.finished[number] for life in reversed(self.lives) if number in life.finished), None)


def labels_of(text: str) -> dict[str, str]:
    """Read the labels of a metric; their values have no commas here."""
    return {key: value.strip('"') for key, _, value in (pair.partition("=") for pair in text.split(",")) if key}


def statuses(metrics: Metrics, route: str) -> Counter[str]:
    """What the gateway counted of a route, by status."""
    found: Counter[str] = Counter()
    for (name, text), value in metrics.items():
        labels = labels_of(text)
        if name == "lychee_requests_total" and labels["route"] == route:
            found[labels["status"]] += int(value)
    return found


def endings(run: Run) -> Iterator[str]:
    """Say which requests ended as none may: hung, in silence, or in an error that was not theirs to have."""
    for number in run.numbers("hung", "broken"):
        yield f"request {number} {run.outcomes[number]}: {run.heard[number]}"
    for number in run.numbers("error"):
        heard = run.heard[number]
        if not run.asked[number].stream or not run.open_at_the_kill(number):
            yield f"request {number} was no stream on the killed engine, and got status {heard.status}: {heard.error}"
        if not openai_shaped(heard.error) or not heard.closed:
            yield f"the error of request {number} has not OpenAI's shape, or no end: {heard.error}"


def journeys(run: Run) -> Iterator[str]:
    """Say which requests were not where they had to be, or twice."""
    for number, word in enumerate(run.outcomes):
        had = [life for life in run.lives if number in life.received]
        if word == "refused" and had:
            yield f"request {number} was refused and reached an engine"
        if any(life.received[number] > 1 for life in had):
            yield f"request {number} reached an engine twice"
        if len(had) > 1 and not run.open_at_the_kill(number):
            yield f"request {number} reached {len(had)} engines, none of which had died with it"
        if word != "answered":
            continue
        done = run.ended(number)
        if done is None:
            yield f"request {number} was answered, and no engine has ended it"
        elif (done.reason, done.tokens) != ("length", run.asked[number].tokens):
            yield f"request {number} was ended with {done}, {run.asked[number].tokens} tokens were asked for"


def gateway_counts(run: Run) -> Iterator[str]:
    """Say where the gateway's counters differ from what the clients saw.

    A client that leaves may do so when its whole answer is on the way, or its engine has just died: the gateway counts
    what it saw first.
    """
    for route in sorted({asked.path for asked in run.asked}):
        words = Counter(word for asked, word in zip(run.asked, run.outcomes, strict=True) if asked.path == route)
        counted = statuses(run.metrics, route)
        errors = sum(number for status, number in counted.items() if status >= "500")
        unread, broken = counted["200"] - words["answered"], errors - words["error"]
        if (
            min(unread, broken) < 0
            or unread + broken + counted["499"] != words["left"]
            or counted["400"] != words["refused"]
            or counted.total() != words.total()
        ):
            yield f"{route}: clients saw {dict(words)}, the gateway counted {dict(counted)}"
    if run.metrics.get(("lychee_requests_in_flight", "")) != 0:
        yield "the gateway has requests in flight"


def _between(what: str, low: float, counted: float, high: float) -> Iterator[str]:
    if not low <= counted <= high:
        yield f"{what}: {counted:.0f} counted, {low:.0f} to {high:.0f} expected"


def gateway_sums(run: Run) -> Iterator[str]:
    """Say where the gateway's sums of tokens and KV entries differ from the answers'."""
    answered = [done for number in run.numbers("answered") if (done := run.ended(number))]
    # whole on the engine, and perhaps in the gateway, when its client left
    perhaps = [done for number in run.numbers("left") if (done := run.ended(number)) and done.reason == "length"]
    # a stream may break behind its last token
    perhaps += [done for number in run.numbers("error") if (done := run.ended(number)) and done.reason == "length"]
    sums = {
        "lychee_prompt_tokens_total": lambda done: done.prompt_tokens,
        "lychee_generation_tokens_total": lambda done: done.tokens,
        "lychee_decode_steps_total": lambda done: done.tokens - 1,
        "lychee_attended_kv_entries_total": lambda done: done.attended,
        "lychee_dense_equivalent_kv_entries_total": lambda done: done.dense,
    }
    for name, value in sums.items():
        counted = sum(found for (metric, _), found in run.metrics.items() if metric == name)
        low = sum(map(value, answered))
        yield from _between(name, low, counted, low + sum(map(value, perhaps)))


def replica_counts(run: Run) -> dict[str, tuple[int, int, int]]:
    """Of each replica the answers it must have begun, those that the gateway counted, and those it can have begun."""
    must: Counter[str] = Counter()
    can: Counter[str] = Counter()
    for number, word in enumerate(run.outcomes):
        life, heard = run.last_life(number), run.heard[number]
        if life is None:
            continue
        can[life.replica] += 1
        # a stream has begun when a chunk has come; an answer in one piece, when all of it has
        begun = run.asked[number].stream and heard.chunks > 0
        must[life.replica] += word == "answered" or begun
    counted = {
        labels_of(labels)["replica"]: int(value)
        for (name, labels), value in run.metrics.items()
        if name == "lychee_replica_answers_total"
    }
    return {replica: (must[replica], counted.get(replica, 0), can[replica]) for replica in {*can, *counted}}


def engine_counts(life: Life, asked: Sequence[Asked], heard: Sequence[Heard]) -> dict[str, Any]:
    """What an engine counted of itself beside what its journal says.

    Returns:
        Of requests and tokens `[low, counted, high]`; of a killed engine also how many requests it had ended since it
        was last asked, and how many at most that can be.
    """
    ended = [done for done in (*life.finished.values(), *life.others) if done.ran]
    # a request whose client has left can be counted though nobody waited for its end
    open_ = [number for number in life.received if number not in life.finished]
    requests, tokens = len(ended), sum(done.tokens for done in ended)
    record: dict[str, Any] = {"received": life.received.total(), "ended": len(life.finished), "own": len(life.others)}
    if life.killed_at is None:
        more = sum(asked[number].tokens for number in open_)
        record["requests"] = [requests, int(life.counted[REQUESTS]), requests + len(open_)]
        record["generated_tokens"] = [tokens, int(life.counted[GENERATED]), tokens + more]
    else:
        since = [
            number for number in life.received if heard[number].began <= life.killed_at and
            heard[number].ended >= life.looked_at
        ]  # fmt: skip
        record["died_with"] = len(open_)
        record["requests"] = [max(0, requests - len(since)), int(life.counted[REQUESTS]), requests + len(open_)]
        record["ended_since_last_asked"] = max(0, requests - int(life.counted[REQUESTS]))
        record["at_most"] = len(since)
    return record


def engines_and_replicas(run: Run) -> Iterator[str]:
    """Say where the engines' own counters differ from their journals, and the gateway's replicas from both."""
    for replica, (must, counted, can) in sorted(replica_counts(run).items()):
        yield from _between(f"answers of {replica}", must, counted, can)
    for place, life in enumerate(run.lives):
        record = engine_counts(life, run.asked, run.heard)
        for name in ("requests", "generated_tokens"):
            if name in record:
                low, counted, high = record[name]
                yield from _between(f"{name} of process {place}", low, counted, high)
    for replica in sorted({life.replica for life in run.lives}):
        last = [life for life in run.lives if life.replica == replica][-1]
        if not any(number in last.finished for number in run.numbers("answered")):
            yield f"{replica} has answered nothing since it was last started"


def problems(run: Run) -> list[str]:
    """Say everything that is not as it must be; nothing when all adds up."""
    checks = (endings, journeys, gateway_counts, gateway_sums, engines_and_replicas)
    return [problem for check in checks for problem in check(run)]
