"""Every metric of the gateway: name, help text, unit and buckets, in one class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from lychee_server import buckets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lychee_server.schemas import EngineSummary, PlanInfo, Reason

    Refusal = Literal["no_key", "requests_limit", "tokens_limit", "concurrency_limit", "queue_full", "queue_timeout"]

Uncounted = Literal["no_curve", "other_engine", "not_timed", "outside_curve"]
FALLBACK_REASONS = ("dense_below", "budget_covers_context")
OTHER = "other"


class GatewayMetrics:
    """The metrics, on a registry of the caller's. Methods are named after what happened."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._latency_metrics(registry)
        self._sparsity_metrics(registry)
        self._speedup_metrics(registry)
        self._traffic_metrics(registry)
        self._engine_metrics(registry)
        self._policy_metrics(registry)

    def _latency_metrics(self, registry: CollectorRegistry) -> None:
        self._first_token = Histogram(
            "lychee_time_to_first_token_seconds",
            "Streams: from the request to the first chunk.",
            buckets=buckets.FIRST_TOKEN_SECONDS,
            registry=registry,
        )
        self._token_gap = Histogram(
            "lychee_inter_token_latency_seconds",
            "Streams: time between two chunks with output of the same choice.",
            buckets=buckets.TOKEN_GAP_SECONDS,
            registry=registry,
        )
        self._latency = Histogram(
            "lychee_request_latency_seconds",
            "Successful completions: from the request to the end of the answer.",
            buckets=buckets.REQUEST_SECONDS,
            registry=registry,
        )
        self._queue_time = Histogram(
            "lychee_queue_time_seconds",
            "Time a request waited in the engine before its prefill began.",
            buckets=buckets.QUEUE_SECONDS,
            registry=registry,
        )
        self._overhead = Histogram(
            "lychee_gateway_overhead_seconds",
            "From the request to the end of the answer, less the engine's own time and the waits for a slow reader.",
            buckets=buckets.OVERHEAD_SECONDS,
            registry=registry,
        )

    def _sparsity_metrics(self, registry: CollectorRegistry) -> None:
        self._attended = Counter(
            "lychee_attended_kv_entries_total", "KV entries that decode steps have read.", registry=registry
        )
        self._dense_equivalent = Counter(
            "lychee_dense_equivalent_kv_entries_total",
            "KV entries that dense decoding would have read for the same answers.",
            registry=registry,
        )
        self._budget = Histogram(
            "lychee_effective_budget_tokens",
            "Budget in force at the end of an answer; answers without a number (dense, no bound) do not count.",
            buckets=buckets.BUDGET_TOKENS,
            registry=registry,
        )
        self._recall = Histogram(
            "lychee_recall_ratio",
            "Attention mass inside the sparse heads' sets, mean over an answer's audited steps.",
            ["context"],
            buckets=buckets.RECALL,
            registry=registry,
        )
        self._fraction = Histogram(
            "lychee_attended_fraction_ratio",
            "KV entries an answer has read over those dense decoding would have read.",
            ["context"],
            buckets=buckets.FRACTION,
            registry=registry,
        )
        self._fallbacks = Counter(
            "lychee_dense_fallbacks_total",
            "Answers with a sparse budget of which at least one decode step ran dense, by the last reason.",
            ["reason"],
            registry=registry,
        )
        self._decisions = Counter(
            "lychee_budget_decisions_total", "Answers by where their budget came from.", ["reason"], registry=registry
        )
        self._steps = Counter(
            "lychee_decode_steps_total",
            "Decode steps of complete answers, by whether the sparse heads read less than everything.",
            ["decoding"],
            registry=registry,
        )
        self._no_summary = Counter(
            "lychee_answers_without_summary_total",
            "Complete answers in which the engine gave no account of its sparsity.",
            registry=registry,
        )

    def _speedup_metrics(self, registry: CollectorRegistry) -> None:
        self._live_seconds = Counter(
            "lychee_speedup_live_seconds_total",
            "Decode time of the answers that the speed curve covers, as the engine measured it.",
            ["context", "decoding"],
            registry=registry,
        )
        self._dense_seconds = Counter(
            "lychee_speedup_dense_seconds_total",
            "Decode time of the same answers had they been dense, by the speed curve at their context and batch.",
            ["context", "decoding"],
            registry=registry,
        )
        self._uncounted = Counter(
            "lychee_speedup_uncounted_total",
            "Answers that are not in the two sums, by why.",
            ["reason"],
            registry=registry,
        )
        for reason in get_args(Uncounted):
            self._uncounted.labels(reason)
        self._curve = Gauge(
            "lychee_speed_curve_info",
            "1 for the speed curve in use: what was measured, where and when.",
            ["model", "plan", "device", "date"],
            registry=registry,
        )
        self._curve_mismatch = Gauge(
            "lychee_speed_curve_mismatch",
            "1 for each thing in which the engine differs from the one that the speed curve was measured on.",
            ["engine", "field"],
            registry=registry,
        )

    def _traffic_metrics(self, registry: CollectorRegistry) -> None:
        self._prompt_tokens = Counter(
            "lychee_prompt_tokens_total", "Prompt tokens of complete answers.", registry=registry
        )
        self._generation_tokens = Counter(
            "lychee_generation_tokens_total", "Generated tokens of complete answers.", registry=registry
        )
        self._requests = Counter(
            "lychee_requests_total",
            "Requests by route and HTTP status; a stream that broke counts with the status of its error, "
            "a request whose client left as 499. Probes, scrapes and the page are not counted.",
            ["route", "status"],
            registry=registry,
        )
        self._in_flight = Gauge(
            "lychee_requests_in_flight", "Completion requests being worked on now.", registry=registry
        )
        self._queued = Gauge(
            "lychee_requests_queued",
            "Completion requests that wait for a free place at the engines.",
            registry=registry,
        )
        self._queue_wait = Histogram(
            "lychee_gateway_queue_seconds",
            "Time a request waited in the gateway for a free place; requests that did not wait do not count.",
            buckets=buckets.QUEUE_SECONDS,
            registry=registry,
        )
        self._refused = Counter(
            "lychee_requests_refused_total",
            "Requests the gateway refused for want of a key or of room, by reason.",
            ["reason"],
            registry=registry,
        )
        self._disconnects = Counter(
            "lychee_client_disconnects_total", "Clients that left before their answer was complete.", registry=registry
        )

    def _engine_metrics(self, registry: CollectorRegistry) -> None:
        self._engine_up = Gauge(
            "lychee_engine_up",
            "1 when the engine has generated a token since it was last away.",
            ["engine"],
            registry=registry,
        )
        self._restarts = Counter(
            "lychee_engine_restarts_seen_total",
            "Times the engine became ready again after its address refused connections.",
            ["engine"],
            registry=registry,
        )
        self._plan = Gauge(
            "lychee_plan_info",
            "1 for the head plan the engine runs with.",
            ["engine", "name", "method", "heuristic"],
            registry=registry,
        )
        self._engine_load = Gauge(
            "lychee_engine_requests_in_flight",
            "Completion requests the engine works on.",
            ["engine"],
            registry=registry,
        )
        self._breaker = Gauge(
            "lychee_engine_breaker_open",
            "1 while the engine gets no requests because it failed too often in a row.",
            ["engine"],
            registry=registry,
        )
        self._retries = Counter(
            "lychee_engine_retries_total",
            "Requests the engine failed before the first byte of the answer, and another engine got.",
            ["engine"],
            registry=registry,
        )

    def _policy_metrics(self, registry: CollectorRegistry) -> None:
        self._rule_names: set[str] = set()
        self._rules = Counter(
            "lychee_policy_rule_answers_total",
            "Answers by the rule of the policy that gave their budget.",
            ["rule"],
            registry=registry,
        )
        self._reloads = Counter(
            "lychee_policy_reloads_total",
            "Times the policy file was read again: taken, or refused, and then the old one stays.",
            ["result"],
            registry=registry,
        )
        self._pressure = Gauge(
            "lychee_policy_pressure_ratio",
            "How far budgets are shrunk under load: 0 not at all, 1 to their lower bounds.",
            registry=registry,
        )
        self._tokenized = Counter(
            "lychee_prompts_tokenized_total",
            "Prompts whose length the engine was asked for, because a rule's border was near the estimate.",
            registry=registry,
        )

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
        self._decisions.labels(reason).inc()
        if rule is not None:
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
        if summary.queue_seconds is not None:
            self._queue_time.observe(max(0.0, summary.queue_seconds))
        if summary.dense_fallback is not None:
            known = summary.dense_fallback in FALLBACK_REASONS
            self._fallbacks.labels(summary.dense_fallback if known else OTHER).inc()

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
