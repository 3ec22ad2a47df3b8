"""Scores of head plans over needle questions, as a report that can be kept."""

from __future__ import annotations

import platform
import statistics
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import torch
import transformers

from lychee_sgl.heads.measure import LoadedModel, Result, examine, exams
from lychee_sgl.heads.train.export import device_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from lychee_sgl.heads.needles import NeedlePrompt
    from lychee_sgl.heads.plan import HeadPlan


def score_plans(
    loaded: LoadedModel,
    prompts: Sequence[NeedlePrompt],
    plans: Mapping[str, HeadPlan],
    *,
    budgets: Sequence[int] = (),
    seed: int,
    command: str,
    tell: Callable[[str], None] = lambda line: None,
    cache: Path | None = None,
) -> dict[str, Any]:
    """Decode every question that the dense model answers under every plan and budget.

    Args:
        loaded: the model.
        prompts: the questions; those the dense model fails are counted and left out.
        plans: by the file they came from.
        budgets: tokens in a set; none: each plan's own default, which must then be a number.
        seed: of the questions, for the report.
        command: how this was called, for the report.
        tell: told a line about each question.
        cache: folder for prefilled prompts, or None.

    Returns:
        A JSON object: what was asked, one entry a question, one row for each plan and budget.

    Raises:
        ValueError: no budget was given and a plan's default is no number, or the dense model answers no question.
    """
    runs = [(file, plan, budget) for file, plan in plans.items() for budget in budgets or (_own(file, plan),)]
    results: list[list[Result]] = [[] for _ in runs]
    asked = []
    for exam in exams(loaded, prompts, cache=cache):
        entry: dict[str, Any] = {
            "context_tokens": len(exam.prefix),
            "depth": round(exam.prompt.depth, 3),
            "question": exam.prompt.question,
            "answer": exam.prompt.answer,
            "dense_reply": exam.reply,
            "dense_answers": exam.passed,
        }
        asked.append(entry)
        if exam.passed:
            for (_, plan, budget), kept in zip(runs, results, strict=True):
                kept.append(examine(loaded, exam, plan, budget))
            entry["missed_by"] = [
                {"plan": plan.name, "budget": budget, "reply": kept[-1].reply}
                for (_, plan, budget), kept in zip(runs, results, strict=True)
                if not kept[-1].answered
            ]
        missed = len(entry.get("missed_by", ()))
        verdict = f"{len(runs) - missed} of {len(runs)} runs answer" if exam.passed else "dense fails, left out"
        tell(f"question {len(asked)} of {len(prompts)}, {len(exam.prefix)} tokens: {verdict}")
    if not results[0]:
        raise ValueError(f"the dense model answers none of the {len(prompts)} questions: nothing can be compared")
    return {
        "what": "needle questions answered as the dense model answers them",
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "device": f"{device_name(loaded.device)}, {str(loaded.model.dtype).removeprefix('torch.')}",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__.partition("+")[0],
            "transformers": transformers.__version__,
        },
        "model": loaded.shape.name,
        "seed": seed,
        "questions_asked": len(asked),
        "dense_answers": sum(bool(entry["dense_answers"]) for entry in asked),
        "plans": [_row(file, plan, budget, kept) for (file, plan, budget), kept in zip(runs, results, strict=True)],
        "questions": asked,
    }


def _own(file: str, plan: HeadPlan) -> int:
    budget = plan.defaults.budget
    if not isinstance(budget, int):
        raise ValueError(f"{file}: the default budget is {budget!r}; give one with --budget")
    return budget


def _row(file: str, plan: HeadPlan, budget: int, results: Sequence[Result]) -> dict[str, Any]:
    return {
        "plan": plan.name,
        "file": file,
        "sha256": plan.sha256(),
        "method": plan.provenance.get("method"),
        "made_by": plan.provenance.get("command"),
        "retrieval_heads": plan.retrieval_count,
        "heads": plan.head_count,
        "budget": budget,
        "questions": len(results),
        "answered": sum(result.answered for result in results),
        "identical": sum(result.identical for result in results),
        "recall": round(statistics.fmean(result.recall for result in results), 4),
    }
