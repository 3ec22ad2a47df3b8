"""The regression gate: a small run, held against a committed figure (DESIGN.md section 10)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from lychee_sgl.eval.errors import EvalError
from lychee_sgl.eval.summary import line

if TYPE_CHECKING:
    from pathlib import Path

    from lychee_sgl.eval.summary import Results

SCHEMA: Final = "lychee-sgl/eval-gate"
VERSION: Final = 1
BUDGET_TOLERANCE: Final = 0.02
"""By how much the attended share may differ from the figure's: beyond it, another budget was measured."""


def make_figure(results: Results) -> dict[str, Any]:
    """The figure of a run: each arm's score, recall and attended share as value, low and high.

    Raises:
        EvalError: a sample has no answer.
    """
    arms = {}
    for arm in results.arms:
        found = line(results, arm.name, lambda sample: True)
        if found.answered < found.asked:
            raise EvalError(f"arm {arm.name!r} has {found.answered} answers of {found.asked}; a figure wants all")
        arms[arm.name] = {key: found.as_dict()[key] for key in ("score", "recall", "attended", "answered")}
    run = results.runs[0]
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "settings": run["identity"]["settings"],
        "model": run["identity"]["model"],
        "facts": run["facts"],
        "arms": arms,
    }


def read_figure(path: Path) -> dict[str, Any]:
    """A committed figure.

    Raises:
        EvalError: there is none, or of another version.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvalError(f"{path} is no figure: {error}") from error
    if (found.get("schema"), found.get("version")) != (SCHEMA, VERSION):
        raise EvalError(f"{path}: schema and version are not {SCHEMA} and {VERSION}")
    return found


def failures(results: Results, figure: dict[str, Any]) -> list[str]:
    """What is worse than the figure, one sentence each; empty: the gate is passed.

    Raises:
        EvalError: the run asked something else than the figure's.
    """
    identity = results.runs[0]["identity"]
    if identity["settings"] != figure["settings"]:
        raise EvalError("the run's settings are not the figure's; make the figure anew with --write")
    if identity["model"] != figure["model"]:
        raise EvalError(f"the run's model is {identity['model']!r}, not the figure's {figure['model']!r}")
    found = []
    for name, wanted in figure["arms"].items():
        now = line(results, name, lambda sample: True)
        if now.answered < now.asked:
            found.append(f"{name}: {now.answered} answers of {now.asked}")
            continue
        for what in ("score", "recall"):
            value = getattr(now, what)
            if wanted[what] is None:
                continue
            middle, low, _ = wanted[what]
            floor = middle if low is None else low
            if value is None or not value.value >= floor - 1e-9:  # no number is no success
                told = "nothing" if value is None else f"{value.value:.4f}"
                found.append(f"{name}: {what} is {told}, below {floor:.4f}, the low end of the figure's {middle:.4f}")
        if wanted["attended"] is not None:
            share = None if now.attended is None else now.attended.value
            if share is None or not abs(share - wanted["attended"][0]) <= BUDGET_TOLERANCE:
                told = "unknown" if share is None else f"{share:.3f}"
                found.append(f"{name}: attended is {told}, not {wanted['attended'][0]:.3f}: another budget")
    return found
