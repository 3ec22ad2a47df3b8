"""Metrics under the names, types and labels of SGLang 0.5.17, as far as our dashboards use them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from starlette.responses import Response

if TYPE_CHECKING:
    from starlette.requests import Request

MODEL: Final = {"engine_type": "unified", "model_name": "tiny"}
RANK: Final = {**MODEL, "moe_ep_rank": "0", "pp_rank": "0", "tp_rank": "0"}

# What each gauge shows while the engine works.
GAUGES: Final = {
    "sglang:num_running_reqs": 1,
    "sglang:num_queue_reqs": 0,
    "sglang:gen_throughput": 12.5,
    "sglang:num_retracted_reqs": 0,
    "sglang:token_usage": 0.25,
    "sglang:kv_used_tokens": 2048,
    "sglang:kv_evictable_tokens": 1024,
    "sglang:kv_available_tokens": 5120,
    "sglang:cache_hit_rate": 0.5,
}
# By how much a completion raises each counter.
COUNTERS: Final = {"sglang:generation_tokens_total": 4, "sglang:prompt_tokens_total": 1000}
# What a completion adds to each histogram, and whether it is told apart by streaming.
HISTOGRAMS: Final = {
    "sglang:prompt_tokens_histogram": (1000, False),
    "sglang:uncached_prompt_tokens_histogram": (500, False),
    "sglang:time_to_first_token_seconds": (0.2, True),
    "sglang:inter_token_latency_seconds": (0.02, False),
    "sglang:e2e_request_latency_seconds": (0.3, True),
    "sglang:queue_time_seconds": (0.01, False),
}


class SglangMetrics:
    """The metrics of one engine, and the endpoint that shows them."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        for name, value in GAUGES.items():
            Gauge(name, name, list(RANK), registry=self._registry).labels(**RANK).set(value)
        streaming = [*MODEL, "is_streaming"]
        self._counters = {name: Counter(name, name, streaming, registry=self._registry) for name in COUNTERS}
        self._histograms = {
            name: Histogram(name, name, streaming if told else list(MODEL), registry=self._registry)
            for name, (_, told) in HISTOGRAMS.items()
        }

    def completion(self, *, streaming: bool) -> None:
        """The engine has got one more completion."""
        told = {"is_streaming": str(streaming).lower()}
        for name, amount in COUNTERS.items():
            self._counters[name].labels(**MODEL, **told).inc(amount)
        for name, (value, by_streaming) in HISTOGRAMS.items():
            self._histograms[name].labels(**MODEL, **(told if by_streaming else {})).observe(value)

    def exposition(self, request: Request) -> Response:
        """Answer in the format that is asked for, as SGLang does: in one of them the names change."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self._registry), headers={"content-type": content_type})
