"""Overview: how much faster than dense, how fast, how much."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploy.dashboards.panels import (
    Level,
    Query,
    add,
    frame,
    graph,
    mean,
    number,
    quantile,
    quantiles,
    rate,
    ratio,
    row,
)

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders.dashboard import Dashboard

    from deploy.dashboards.panels import AnyPanel

DENSE, LIVE = "lychee_speedup_dense_seconds_total", "lychee_speedup_live_seconds_total"
READ, ALL = "lychee_attended_kv_entries_total", "lychee_dense_equivalent_kv_entries_total"


def speedup(decoding: str, by: str = "") -> str:
    """Give the time dense decoding would have taken over the time that decoding took."""
    chosen = f'{{decoding="{decoding}"}}'
    return ratio(DENSE + chosen, LIVE + chosen, by)


def build() -> Dashboard:
    """Build the dashboard."""
    board = frame("lychee-overview", "lychee: overview", "Speedup, latency and throughput as clients see them.")
    panels: list[AnyPanel] = [
        number(
            "Speedup",
            "Sparse answers: decode time that the speed curve gives for dense, over the time that decoding took.",
            "suffix:x",
            Query(speedup("sparse")),
            Level(0, "red"),
            Level(1, "green"),
        ),
        number(
            "KV entries read",
            "Share of the KV entries that dense decoding would have read.",
            "percentunit",
            Query(ratio(READ, ALL)),
            decimals=1,
        ),
        number(
            "Recall",
            "Attention mass inside the sparse heads' sets, mean of the audited answers.",
            "percentunit",
            Query(mean("lychee_recall_ratio")),
            Level(0, "red"),
            Level(0.9, "green"),
            decimals=1,
        ),
        number("Tokens a second", "Generated tokens.", "short", Query(rate("lychee_generation_tokens_total"))),
        number("In flight", "Completions now.", "short", Query("sum(lychee_requests_in_flight)"), decimals=0),
        number(
            "Engines in service",
            "Engines that have generated a token since they were last away.",
            "short",
            Query("sum(lychee_engine_up)"),
            Level(0, "red"),
            Level(1, "green"),
            decimals=0,
        ),
        row("Speed"),
        graph(
            "Speedup over dense",
            "Sparse answers against the speed curve. The dense answers check the curve: they should be near 1.",
            "suffix:x",
            Query(speedup("sparse"), "sparse answers"),
            Query(speedup("dense"), "dense answers"),
        ),
        graph(
            "Time per token",
            "Streams: time between two chunks with output of the same choice.",
            "s",
            *quantiles("lychee_inter_token_latency_seconds"),
        ),
        graph(
            "Time to first token",
            "Streams: from the request to the first chunk.",
            "s",
            *quantiles("lychee_time_to_first_token_seconds"),
        ),
        graph(
            "Request latency",
            "From the request to the end of the answer.",
            "s",
            *quantiles("lychee_request_latency_seconds"),
        ),
        row("Throughput"),
        graph(
            "Tokens a second",
            "Of complete answers.",
            "short",
            Query(rate("lychee_generation_tokens_total"), "generated"),
            Query(rate("lychee_prompt_tokens_total"), "prompts"),
        ),
        graph(
            "Requests a second by status",
            "499: the client left before its answer was complete.",
            "reqps",
            Query(rate("lychee_requests_total", "status"), "{{status}}"),
        ),
        graph(
            "Refused",
            "Requests a second that the gateway refused for want of a key or of room; clients that left.",
            "reqps",
            Query(rate("lychee_requests_refused_total", "reason"), "{{reason}}"),
            Query(rate("lychee_client_disconnects_total"), "client left"),
        ),
        graph(
            "Line before the engines",
            "Requests that wait for a place.",
            "short",
            Query("sum by (instance) (lychee_requests_queued)", "{{instance}}"),
        ),
        row("Where time goes beside decoding"),
        graph(
            "Gateway overhead",
            "From the request to the answer's end, less the engine's time and waits for a place or a slow reader.",
            "s",
            *quantiles("lychee_gateway_overhead_seconds"),
        ),
        graph(
            "Waits",
            "In the gateway's line for a place, of those that had to; and in the engine before the prefill.",
            "s",
            Query(quantile(0.95, "lychee_gateway_queue_seconds"), "gateway p95"),
            Query(quantile(0.95, "lychee_queue_time_seconds"), "engine p95"),
        ),
    ]
    return add(board, panels)
