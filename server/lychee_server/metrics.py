"""Counts what happens in the gateway; what is counted is in the catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lychee_server import buckets
from lychee_server.catalogue import FALLBACK_REASONS, OTHER, Catalogue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lychee_server.catalogue import Refusal, Uncounted
    from lychee_server.schemas import EngineSummary, MemoryAnswer, PlanInfo, Reason


class GatewayMetrics(Catalogue):
    """The metrics of one gateway. Methods are named after what happened."""

    def engine_added(self, engine: str) -> None:
        """There is an engine of this name; nothing is known of it yet."""
        self._engine_up.labels(engine).set(0)
        self._engine_load.labels(engine).set(0)
        self._breaker.labels(engine).set(0)
        self._restarts.labels(engine)
        self._retries.labels(engine)

    def first_token(self, seconds: float) -> None:
        """A stream's first chunk arrived, `seconds` after the request."""
        self._first_token.observe(seconds)

    def token_gap(self, seconds: float) -> None:
        """A chunk with output arrived `seconds` after the one before it."""
        self._token_gap.observe(seconds)

    def request_started(self) -> None:
        """A completion request came in."""
        self._in_flight.inc()

    def request_left(self) -> None:
        """A completion request is over, in whatever way."""
        self._in_flight.dec()

    def request_answered(self, seconds: float) -> None:
        """A completion was delivered in full, `seconds` after its request."""
        self._latency.observe(seconds)

    def request_counted(self, route: str, status: int) -> None:
        """A request ended; `route` is one of a fixed set."""
        self._requests.labels(route, str(status)).inc()

    def queued(self, waiting: int) -> None:
        """A request waits; now so many do."""
        self._queued.set(waiting)

    def queue_left(self, waiting: int, seconds: float) -> None:
        """A request waits no more, after `seconds`; now so many do."""
        self._queued.set(waiting)
        self._queue_wait.observe(seconds)

    def refused(self, reason: Refusal) -> None:
        """A request was refused."""
        self._refused.labels(reason).inc()

    def client_left(self) -> None:
        """A client went away before its answer was complete."""
        self._disconnects.inc()

    def tokens(self, prompt: int, generated: int) -> None:
        """An answer was complete, with so many tokens."""
        self._prompt_tokens.inc(prompt)
        self._generation_tokens.inc(generated)

    def summary_missing(self) -> None:
        """An answer was complete and had no (readable) summary."""
        self._no_summary.inc()

    def summary(self, summary: EngineSummary, reason: Reason, rule: str | None = None) -> None:
        """An answer was complete, with the engine's summary, the reason of its budget and the rule that gave it."""
        self._attended.inc(summary.attended_tokens)
        self._dense_equivalent.inc(summary.dense_tokens)
        self._corrected.inc(summary.corrected_tokens)
        self._correction_seconds.inc(summary.correction_seconds)
        self._decisions.labels(reason).inc()
        if rule in self._rule_names:  # a new policy may have lost it since
            self._rules.labels(rule).inc()
        if isinstance(summary.budget, int):
            self._budget.observe(summary.budget)
        context = buckets.context_bucket(summary.context_tokens)
        if summary.recall is not None:
            self._recall.labels(context).observe(summary.recall)
        if summary.attended_fraction is not None:
            self._fraction.labels(context).observe(summary.attended_fraction)
        self._steps.labels("sparse").inc(summary.sparse_steps)
        self._steps.labels("dense").inc(max(0, summary.decode_steps - summary.sparse_steps))
        if summary.memory is not None:
            self._document_read(summary.memory)
        elif summary.queue_seconds is not None:  # of a document it is the sum of all calls' waits
            self._queue_time.observe(max(0.0, summary.queue_seconds))
        if summary.dense_fallback is not None:
            known = summary.dense_fallback in FALLBACK_REASONS
            self._fallbacks.labels(summary.dense_fallback if known else OTHER).inc()

    def _document_read(self, memory: MemoryAnswer) -> None:
        self._memory_seconds.observe(memory.seconds)
        self._memory_chunks.labels("kept").inc(memory.kept)
        self._memory_chunks.labels("skipped").inc(memory.skipped)
        self._memory_read.inc(memory.tokens_read)
        self._memory_cached.inc(memory.cached_tokens)
        self._memory_banked.inc(memory.banked_steps)
        self._memory_retries.inc(memory.retries)

    def overhead(self, seconds: float) -> None:
        """A complete answer took so much longer than the engine's part of it."""
        self._overhead.observe(max(0.0, seconds))

    def speedup(self, summary: EngineSummary, dense_seconds: float) -> None:
        """An answer's decoding took `summary.decode_seconds`; dense it would have taken `dense_seconds`."""
        labels = buckets.context_bucket(summary.context_tokens), "sparse" if summary.sparse_steps else "dense"
        self._live_seconds.labels(*labels).inc(max(0.0, summary.decode_seconds or 0.0))
        self._dense_seconds.labels(*labels).inc(dense_seconds)

    def speedup_uncounted(self, reason: Uncounted) -> None:
        """An answer could not be held against the curve."""
        self._uncounted.labels(reason).inc()

    def curve_loaded(self, model: str, plan: str, device: str, date: str) -> None:
        """There is a speed curve, of this model and plan, measured there and then."""
        self._curve.labels(model, plan, device, date).set(1)

    def curve_compared(self, engine: str, differences: Sequence[str]) -> None:
        """A ready engine differs in these fields from the one that the curve was measured on."""
        self._curve_mismatch.remove_by_labels({"engine": engine})
        for field in differences:
            self._curve_mismatch.labels(engine, field).set(1)

    def policy_loaded(self, rules: Sequence[str]) -> None:
        """A policy is in force now; rules that it does not have are forgotten."""
        self._reloads.labels("taken")
        self._reloads.labels("refused")
        for rule in self._rule_names - set(rules):
            self._rules.remove(rule)
        self._rule_names = set(rules)
        for rule in rules:
            self._rules.labels(rule)

    def policy_reloaded(self, *, taken: bool) -> None:
        """The policy file was read again."""
        self._reloads.labels("taken" if taken else "refused").inc()

    def policy_pressure(self, level: float) -> None:
        """The engines are pressed so hard, in [0, 1]."""
        self._pressure.set(level)

    def prompt_tokenized(self) -> None:
        """The engine was asked for a prompt's length."""
        self._tokenized.inc()

    def engine_ready(self, engine: str, plan: PlanInfo | None) -> None:
        """The engine is ready, with this plan (None: without the plug-in)."""
        self._engine_up.labels(engine).set(1)
        self._plan.remove_by_labels({"engine": engine})
        if plan is not None:
            self._plan.labels(engine, plan.name, plan.method, str(plan.heuristic).lower()).set(1)

    def engine_lost(self, engine: str) -> None:
        """The engine is out of service."""
        self._engine_up.labels(engine).set(0)

    def engine_restarted(self, engine: str) -> None:
        """The engine is ready again after it had been away."""
        self._restarts.labels(engine).inc()

    def engine_load(self, engine: str, requests: int) -> None:
        """The engine works on so many completions."""
        self._engine_load.labels(engine).set(requests)

    def engine_breaker(self, engine: str, *, open: bool) -> None:
        """The engine's breaker is open or closed."""
        self._breaker.labels(engine).set(int(open))

    def engine_retried(self, engine: str) -> None:
        """Another engine got a request on which this one had failed."""
        self._retries.labels(engine).inc()

    def replica_seen(self, engine: str, replica: str, *, up: bool) -> None:
        """The router `engine` has this replica."""
        self._replica_up.labels(engine, replica).set(int(up))
        self._replica_answers.appeared(engine, replica)

    def replica_gone(self, engine: str, replica: str) -> None:
        """The router `engine` no longer has this replica."""
        self._replica_up.remove(engine, replica)
        self._replica_answers.gone(engine, replica)

    def replica_answered(self, engine: str, replica: str) -> None:
        """A replica has begun an answer."""
        self._replica_answers.inc(engine, replica)
