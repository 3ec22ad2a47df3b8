"""Service levels: objectives, what was held of them, and how fast the rest is being used up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from deploy.dashboards.panels import Level, Query, add, bars, frame, graph, number, quantile, row

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders.dashboard import Dashboard

    from deploy.dashboards.panels import AnyPanel

# The objectives of prometheus/rules/lychee.yml: shares below an objective are read off a histogram's bucket, whose
# bound is part of the query.
TOKEN_SECONDS: Final = 0.1
FIRST_TOKEN_SECONDS: Final = 8.0
RECALL: Final = 0.9

_COMPLETIONS = 'lychee_requests_total{route=~"/v1/(chat/)?completions"'


def _failed(window: str) -> str:
    return (
        f'(sum(rate({_COMPLETIONS}, status=~"5.."}}[{window}])) or vector(0)) / sum(rate({_COMPLETIONS}}}[{window}]))'
    )


def _within(histogram: str, bound: float, window: str) -> str:
    return f'sum(rate({histogram}_bucket{{le="{bound}"}}[{window}])) / sum(rate({histogram}_count[{window}]))'


def build() -> Dashboard:
    """Build the dashboard."""
    board = frame("lychee-slo", "lychee: service levels", "Objectives, error budget and alerts.")
    token, first = "lychee_inter_token_latency_seconds", "lychee_time_to_first_token_seconds"
    burn = "/ on () (1 - lychee:objective:success_ratio)"
    panels: list[AnyPanel] = [
        number(
            "Completions that succeed",
            "In the range shown; what is wrong with a request does not count against it.",
            "percentunit",
            Query(f"1 - ({_failed('$__range')})"),
            Level(0, "red"),
            Level(0.99, "green"),
            width=6,
        ),
        number(
            f"Tokens within {TOKEN_SECONDS * 1000:g} ms",
            "Share of the tokens of streams, in the range shown.",
            "percentunit",
            Query(_within(token, TOKEN_SECONDS, "$__range")),
            Level(0, "red"),
            Level(0.95, "green"),
            width=6,
        ),
        number(
            f"First tokens within {FIRST_TOKEN_SECONDS:g} s",
            "Share of the streams, in the range shown.",
            "percentunit",
            Query(_within(first, FIRST_TOKEN_SECONDS, "$__range")),
            Level(0, "red"),
            Level(0.95, "green"),
            width=6,
        ),
        number(
            "Lowest recall",
            "Of the lengths of context, mean over five minutes.",
            "percentunit",
            Query("min(lychee:recall:ratio_rate5m)"),
            Level(0, "red"),
            Level(RECALL, "green"),
            width=6,
        ),
        row("Against the objectives"),
        graph(
            "Time per token, p95",
            "Streams, over five minutes.",
            "s",
            Query(quantile(0.95, token), "p95"),
            Query("lychee:objective:inter_token_latency_seconds", "objective"),
        ),
        graph(
            "Time to first token, p95",
            "Streams, over five minutes.",
            "s",
            Query(quantile(0.95, first), "p95"),
            Query("lychee:objective:time_to_first_token_seconds", "objective"),
        ),
        graph(
            "Error budget burn",
            "1 uses up exactly what the objective leaves; over five minutes and over an hour.",
            "suffix:x",
            Query(f"({_failed('5m')}) {burn}", "5 minutes"),
            Query(f"({_failed('1h')}) {burn}", "1 hour"),
        ),
        graph(
            "Recall",
            "By length of the context, and its floor.",
            "percentunit",
            Query("lychee:recall:ratio_rate5m", "{{context}}"),
            Query("lychee:objective:recall_ratio", "floor"),
            largest=1,
        ),
        row("Alerts"),
        bars(
            "Firing",
            "Alerts that fire now.",
            "short",
            Query('count by (alertname) (ALERTS{alertstate="firing", alertname=~"Lychee.*"})', "{{alertname}}"),
        ),
        graph(
            "Pending and firing",
            "Alerts over time.",
            "short",
            Query('count by (alertname, alertstate) (ALERTS{alertname=~"Lychee.*"})', "{{alertname}} {{alertstate}}"),
        ),
    ]
    return add(board, panels)
