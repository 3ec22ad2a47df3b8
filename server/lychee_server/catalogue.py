"""Every metric of the gateway: name, help text, labels and buckets, in one class."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Literal, get_args

from prometheus_client import Counter, Gauge, Histogram

from lychee_server import buckets
from lychee_server.present import PresentCounter
from lychee_server.schemas import Reason

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

Refusal = Literal["no_key", "requests_limit", "tokens_limit", "concurrency_limit", "queue_full", "queue_timeout"]
Uncounted = Literal["no_curve", "other_engine", "other_policy", "not_timed", "outside_curve"]
FALLBACK_REASONS = ("dense_below", "budget_covers_context", "workspace")
OTHER = "other"


class Catalogue:
    """The metrics, on a registry of the caller's; `GatewayMetrics` counts on them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._latency_metrics(registry)
        self._sparsity_metrics(registry)
        self._speedup_metrics(registry)
        self._traffic_metrics(registry)
        self._engine_metrics(registry)
        self._policy_metrics(registry)
        self._memory_metrics(registry)
        self._known_labels()

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
            "Time a request waited in the engine before its prefill began; documents read block by block do not count.",
            buckets=buckets.QUEUE_SECONDS,
            registry=registry,
        )
        self._overhead = Histogram(
            "lychee_gateway_overhead_seconds",
            "From the request to the answer's end, less the engine's time and waits for a place or a slow reader.",
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
        self._corrected = Counter(
            "lychee_corrected_tokens_total",
            "Decoded tokens that cache correction has run again densely.",
            registry=registry,
        )
        self._correction_seconds = Counter(
            "lychee_cache_correction_seconds_total",
            "Time the engine has spent on cache correction; it is part of the decode time.",
            registry=registry,
        )
        self._no_summary = Counter(
            "lychee_answers_without_summary_total",
            "Complete answers in which the engine gave no account of its sparsity.",
            registry=registry,
        )

    def _speedup_metrics(self, registry: CollectorRegistry) -> None:
        counter = functools.partial(Counter, registry=registry)
        gauge = functools.partial(Gauge, registry=registry)
        self._live_seconds = counter(
            "lychee_speedup_live_seconds_total",
            "Decode time of the answers that the speed curve covers, as the engine measured it.",
            ["context", "decoding"],
        )
        self._dense_seconds = counter(
            "lychee_speedup_dense_seconds_total",
            "Decode time of the same answers had they been dense, by the speed curve at their context and batch.",
            ["context", "decoding"],
        )
        self._uncounted = counter(
            "lychee_speedup_uncounted_total", "Answers that are not in the two sums, by why.", ["reason"]
        )
        self._curve = gauge(
            "lychee_speed_curve_info",
            "1 for the speed curve in use: what was measured, where and when.",
            ["model", "plan", "device", "date"],
        )
        self._curve_mismatch = gauge(
            "lychee_speed_curve_mismatch",
            "1 for each thing in which the engine differs from the one that the speed curve was measured on.",
            ["engine", "field"],
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
        counter = functools.partial(Counter, registry=registry)
        gauge = functools.partial(Gauge, registry=registry)
        self._engine_up = gauge(
            "lychee_engine_up", "1 when the engine has generated a token since it was last away.", ["engine"]
        )
        self._restarts = counter(
            "lychee_engine_restarts_seen_total",
            "Times the engine became ready again after its address refused connections.",
            ["engine"],
        )
        self._plan = gauge(
            "lychee_plan_info", "1 for the head plan the engine runs with.", ["engine", "name", "method", "heuristic"]
        )
        self._engine_load = gauge(
            "lychee_engine_requests_in_flight", "Completion requests the engine works on.", ["engine"]
        )
        self._breaker = gauge(
            "lychee_engine_breaker_open",
            "1 while the engine gets no requests because it failed too often in a row.",
            ["engine"],
        )
        self._retries = counter(
            "lychee_engine_retries_total",
            "Requests the engine failed before the first byte of the answer, and another engine got.",
            ["engine"],
        )

        self._replica_up = gauge(
            "lychee_replica_up",
            "1 for an engine behind a router that the router takes for healthy.",
            ["engine", "replica"],
        )
        self._replica_answers = PresentCounter(
            "lychee_replica_answers_total",
            "Answers of completions by the engine behind a router that began them, errors included.",
            ["engine", "replica"],
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

    def _memory_metrics(self, registry: CollectorRegistry) -> None:
        counter = functools.partial(Counter, registry=registry)
        self._memory_seconds = Histogram(
            "lychee_memory_read_seconds",
            "Answers from a document that was read block by block: time until it was read.",
            buckets=buckets.READ_SECONDS,
            registry=registry,
        )
        self._memory_chunks = counter(
            "lychee_memory_chunks_total", "Blocks of documents that were read, by whether they gave notes.", ["outcome"]
        )
        self._memory_read = counter("lychee_memory_tokens_read_total", "Prompt tokens of all steps that read blocks.")
        self._memory_cached = counter("lychee_memory_cached_tokens_total", "Of these, whose KV was there already.")
        self._memory_banked = counter(
            "lychee_memory_banked_steps_total", "Steps that an earlier request had finished, taken from the bank."
        )
        self._memory_retries = counter("lychee_memory_retries_total", "Steps that failed and were tried again.")

    def _known_labels(self) -> None:
        """Show what can be counted as zero from the start: a rate does not see the step from nothing to one."""
        for context in buckets.CONTEXT_LABELS:
            self._recall.labels(context)
            self._fraction.labels(context)
            for decoding in ("sparse", "dense"):
                self._live_seconds.labels(context, decoding)
                self._dense_seconds.labels(context, decoding)
        for decoding in ("sparse", "dense"):
            self._steps.labels(decoding)
        for reason in get_args(Reason):
            self._decisions.labels(reason)
        for reason in (*FALLBACK_REASONS, OTHER):
            self._fallbacks.labels(reason)
        for reason in get_args(Refusal):
            self._refused.labels(reason)
        for outcome in ("kept", "skipped"):
            self._memory_chunks.labels(outcome)
        for reason in get_args(Uncounted):
            self._uncounted.labels(reason)
