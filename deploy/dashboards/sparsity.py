"""Sparsity: which budgets are in force and why, what they cost in recall, what they save."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploy.dashboards.overview import ALL, READ, speedup
from deploy.dashboards.panels import WINDOW, Query, add, bars, frame, graph, mean, quantile, rate, ratio, row

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders.dashboard import Dashboard

    from deploy.dashboards.panels import AnyPanel

BUDGET, RECALL = "lychee_effective_budget_tokens", "lychee_recall_ratio"


def build() -> Dashboard:
    """Build the dashboard."""
    board = frame("lychee-sparsity", "lychee: sparsity", "Budgets, recall, what is read, and dense fallbacks.")
    panels: list[AnyPanel] = [
        row("Budgets"),
        graph(
            "Effective budget",
            "Tokens that a sparse head may read, in force at the end of an answer.",
            "short",
            *(Query(quantile(at, BUDGET), f"p{at * 100:g}") for at in (0.1, 0.5, 0.9)),
        ),
        graph(
            "Budget decisions",
            "Answers a second by where their budget came from.",
            "short",
            Query(rate("lychee_budget_decisions_total", "reason"), "{{reason}}"),
        ),
        graph(
            "Policy",
            "Answers a second by the rule of the policy that gave their budget.",
            "short",
            Query(rate("lychee_policy_rule_answers_total", "rule"), "{{rule}}"),
        ),
        graph(
            "Pressure",
            "How far the policy shrinks budgets under load: 1 is to their lower bounds.",
            "percentunit",
            Query("max by (instance) (lychee_policy_pressure_ratio)", "{{instance}}"),
            largest=1,
        ),
        row("Recall and what is read, by length of the context"),
        graph(
            "Recall",
            "Attention mass inside the sparse heads' sets: mean of the audited answers, and the floor.",
            "percentunit",
            Query(mean(RECALL, "context"), "{{context}}"),
            Query("lychee:objective:recall_ratio", "floor"),
            largest=1,
        ),
        graph(
            "Recall of the worst twentieth",
            "Fifth percentile of the audited answers.",
            "percentunit",
            Query(quantile(0.05, RECALL, "context"), "{{context}}"),
            largest=1,
        ),
        graph(
            "Attended fraction",
            "KV entries read over those that dense decoding reads, mean over answers.",
            "percentunit",
            Query(mean("lychee_attended_fraction_ratio", "context"), "{{context}}"),
            largest=1,
        ),
        graph(
            "Speedup over dense",
            "Sparse answers against the speed curve.",
            "suffix:x",
            Query(speedup("sparse", "context"), "{{context}}"),
        ),
        row("What decoding reads"),
        graph(
            "KV entries a second",
            "Read by decode steps, and what dense decoding would have read for the same answers.",
            "short",
            Query(rate(READ), "read"),
            Query(rate(ALL), "dense"),
        ),
        graph(
            "Decode steps a second",
            "By whether the sparse heads read less than everything.",
            "short",
            Query(rate("lychee_decode_steps_total", "decoding"), "{{decoding}}"),
        ),
        graph(
            "Cache correction",
            "Decoded tokens run again each second, and seconds that the engines spend on it each second.",
            "short",
            Query(rate("lychee_corrected_tokens_total"), "tokens"),
            Query(rate("lychee_cache_correction_seconds_total"), "seconds"),
        ),
        row("Documents read block by block"),
        graph(
            "Time to read a document",
            "From the request until its document was read.",
            "s",
            *(Query(quantile(at, "lychee_memory_read_seconds"), f"p{at * 100:g}") for at in (0.5, 0.95)),
        ),
        graph(
            "Blocks a second",
            "By whether they gave notes; and steps that were tried again, or taken from the bank.",
            "short",
            Query(rate("lychee_memory_chunks_total", "outcome"), "{{outcome}}"),
            Query(rate("lychee_memory_retries_total"), "tried again"),
            Query(rate("lychee_memory_banked_steps_total"), "from the bank"),
        ),
        graph(
            "Tokens read for documents",
            "A second, and of these those whose KV was in the cache.",
            "short",
            Query(rate("lychee_memory_tokens_read_total"), "read"),
            Query(rate("lychee_memory_cached_tokens_total"), "cached"),
        ),
        row("Fallbacks, and how far the numbers reach"),
        graph(
            "Dense fallbacks",
            "Answers with a sparse budget of which a decode step ran dense, by the last reason: share of all answers.",
            "percentunit",
            Query(
                f"{rate('lychee_dense_fallbacks_total', 'reason')} / on () group_left () "
                f"{rate('lychee_budget_decisions_total')}",
                "{{reason}}",
            ),
        ),
        graph(
            "Audited answers",
            "Share of the answers of which at least one step was audited for recall.",
            "percentunit",
            Query(ratio(f"{RECALL}_count", "lychee_budget_decisions_total"), "audited"),
            largest=1,
        ),
        bars(
            "Answers not held against the speed curve",
            "In the range shown, by why. Their time is in neither side of the speedup.",
            "short",
            Query("sum by (reason) (increase(lychee_speedup_uncounted_total[$__range]))", "{{reason}}"),
        ),
        graph(
            "Answers without a summary",
            "A second, of engines without the plug-in.",
            "short",
            Query(f"sum(rate(lychee_answers_without_summary_total[{WINDOW}]))", "answers"),
        ),
        bars(
            "Policy file",
            "Times it was read again in the range shown, and prompts whose length the engine was asked for.",
            "short",
            Query("sum by (result) (increase(lychee_policy_reloads_total[$__range]))", "{{result}}"),
            Query("sum(increase(lychee_prompts_tokenized_total[$__range]))", "prompts counted"),
        ),
        bars("Speed curve", "The dense reference in use.", "short", Query("lychee_speed_curve_info", CURVE), width=6),
        bars("Head plans", "The plan of each engine.", "short", Query("lychee_plan_info", PLAN), width=6),
    ]
    return add(board, panels)


CURVE = "{{model}}, plan {{plan}}, {{device}}, {{date}}"
PLAN = "{{engine}}: {{name}}, {{method}}"
