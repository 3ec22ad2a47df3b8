"""Engine: SGLang's own metrics, and what the gateway sees of each engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploy.dashboards.panels import Query, add, frame, graph, mean, quantiles, rate, row

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders.dashboard import Dashboard

    from deploy.dashboards.panels import AnyPanel


def build() -> Dashboard:
    """Build the dashboard."""
    board = frame("lychee-engine", "lychee: engine", "SGLang's own view: load, KV pool, cache and latencies.")
    panels: list[AnyPanel] = [
        row("Load"),
        graph(
            "Requests",
            "In the engine: running, and waiting for their prefill.",
            "short",
            Query("sum by (instance) (sglang:num_running_reqs)", "{{instance}} running"),
            Query("sum by (instance) (sglang:num_queue_reqs)", "{{instance}} waiting"),
        ),
        graph(
            "Tokens a second",
            "Generated, and prompt tokens.",
            "short",
            Query(rate("sglang:generation_tokens_total"), "generated"),
            Query(rate("sglang:prompt_tokens_total"), "prompts"),
        ),
        graph(
            "Generation throughput",
            "As the scheduler measures it over its last decode steps.",
            "short",
            Query("sum by (instance) (sglang:gen_throughput)", "{{instance}}"),
        ),
        graph(
            "Retractions",
            "Requests whose decoding was taken back because the KV pool was full.",
            "short",
            Query("sum by (instance) (sglang:num_retracted_reqs)", "{{instance}}"),
        ),
        row("KV pool and prefix cache"),
        graph(
            "KV pool in use",
            "Share of the pool's tokens that running requests hold.",
            "percentunit",
            Query("max by (instance) (sglang:token_usage)", "{{instance}}"),
            largest=1,
        ),
        graph(
            "KV tokens",
            "Held by running requests, cached and free to be evicted, and free.",
            "short",
            Query("sum(sglang:kv_used_tokens)", "in use"),
            Query("sum(sglang:kv_evictable_tokens)", "cached"),
            Query("sum(sglang:kv_available_tokens)", "free"),
        ),
        graph(
            "Prefix cache hits",
            "Share of the last prefill batch's tokens that the cache had.",
            "percentunit",
            Query("max by (instance) (sglang:cache_hit_rate)", "{{instance}}"),
            largest=1,
        ),
        graph(
            "Prompt lengths",
            "Mean prompt of a finished request, and what of it the cache did not have.",
            "short",
            Query(mean("sglang:prompt_tokens_histogram"), "prompt"),
            Query(mean("sglang:uncached_prompt_tokens_histogram"), "not cached"),
        ),
        row("Latency"),
        graph("Time to first token", "In the engine.", "s", *quantiles("sglang:time_to_first_token_seconds")),
        graph("Time per token", "In the engine.", "s", *quantiles("sglang:inter_token_latency_seconds")),
        graph("Request latency", "In the engine.", "s", *quantiles("sglang:e2e_request_latency_seconds")),
        graph("Wait in the queue", "Before the prefill began.", "s", *quantiles("sglang:queue_time_seconds")),
        row("As the gateway sees them"),
        graph(
            "In service",
            "1 when the engine has generated a token since it was last away.",
            "short",
            Query("lychee_engine_up", "{{engine}}"),
        ),
        graph(
            "Requests in flight",
            "Completions that each engine works on.",
            "short",
            Query("lychee_engine_requests_in_flight", "{{engine}}"),
        ),
        graph(
            "Breakers and retries",
            "1 while an engine gets no requests because it failed too often; requests a second that moved on.",
            "short",
            Query("lychee_engine_breaker_open", "{{engine}} breaker"),
            Query(rate("lychee_engine_retries_total", "engine"), "{{engine}} retries"),
        ),
        graph(
            "Restarts",
            "Times each engine came back after its address refused connections.",
            "short",
            Query("lychee_engine_restarts_seen_total", "{{engine}}"),
        ),
        graph(
            "Replicas",
            "Behind a router: 1 while it takes an engine for healthy; answers a second that each began.",
            "short",
            Query("lychee_replica_up", "{{replica}} up"),
            Query(rate("lychee_replica_answers_total", "replica"), "{{replica}} answers"),
        ),
    ]
    return add(board, panels)
