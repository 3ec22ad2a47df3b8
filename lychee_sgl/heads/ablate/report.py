"""An ablation's outcome as JSON and Markdown. Needs neither torch nor a GPU."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import combinations
from typing import TYPE_CHECKING, Any

from lychee_sgl.heads.ablate.names import at_count
from lychee_sgl.heads.evaluate.scores import score, score_table, versus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lychee_sgl.heads.evaluate.store import Answers
    from lychee_sgl.heads.plan import Head, HeadPlan

SCHEMA = "lychee-sgl/ablation"


def build_report(
    plans: Mapping[str, HeadPlan],
    answers: Answers,
    *,
    asked: Mapping[str, Any],
    budgets: Sequence[int],
    command: str,
    device: str,
    complete: bool,
) -> dict[str, Any]:
    """Everything the tables and pictures are made of.

    Args:
        plans: by name.
        answers: of all variants so far.
        asked: the configuration, as JSON values.
        budgets: under which plans are compared.
        command: how this was called.
        device: where it ran.
        complete: whether all questions are answered.
    """
    keys = sorted({key for given in answers.answers.values() for key in given} - {"dense"})
    report = {
        "schema": SCHEMA,
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "device": device,
        "complete": complete,
        "asked": dict(asked),
        "budgets": list(budgets),
        "questions": len(answers.questions),
        "plans": {name: _about(plan) for name, plan in plans.items()},
        "scores": score_table(answers, ["dense", *keys]),
        "eighth": _eighth(answers, plans),
        "overlap": _overlap(plans),
    }
    return report | {"paired": _paired(report, answers)}


def _about(plan: HeadPlan) -> dict[str, Any]:
    told = plan.provenance
    return {
        "retrieval_heads": plan.retrieval_count,
        "heads": plan.head_count,
        "sha256": plan.sha256(),
        "method": told.get("method"),
        "seed": told.get("seed"),
        "seconds": told.get("seconds"),
        "training": told.get("scores") if "seconds" in told else None,
        "roles": list(plan.roles),
    }


def _eighth(answers: Answers, plans: Mapping[str, HeadPlan]) -> dict[str, dict[str, Any]]:
    """Every plan at an eighth of the context: of the budgets it was asked under, the one next to that, at each length.

    All tasks and lengths together, against the dense model on the same questions.
    """
    result: dict[str, dict[str, Any]] = {}
    for name in plans:
        budgets = sorted({
            int(key.rpartition("@")[2])
            for given in answers.answers.values() for key in given if key.rpartition("@")[0] == name
        })  # fmt: skip
        if not budgets:
            continue
        parts = []
        for length in sorted({int(key.partition("/")[0].rpartition("-")[2]) for key in answers.questions}):
            budget = min(budgets, key=lambda tokens: abs(tokens * 8 - length))
            keys = [key for key in answers.questions if key.partition("/")[0].endswith(f"-{length}")]
            one = score(answers, keys, f"{name}@{budget}")
            if one is not None and abs(budget * 8 - length) <= 0.2 * length:  # else there is no such budget
                parts.append((length, budget, one))
        asked = sum(one.asked for _, _, one in parts)
        if asked:
            result[name] = {
                "budgets": {str(length): budget for length, budget, _ in parts},
                "asked": asked,
                "right": sum(one.right for _, _, one in parts),
                "lost": sum(one.lost for _, _, one in parts),
                "gained": sum(one.gained for _, _, one in parts),
                "points": round(100 * sum(one.gained - one.lost for _, _, one in parts) / asked, 2),
            }
    return result


def _overlap(plans: Mapping[str, HeadPlan]) -> list[dict[str, Any]]:
    """Jaccard index of the retrieval heads behind layer 0, for trained plans of one method with different seeds."""
    told = []
    for (name, plan), (other_name, other) in combinations(plans.items(), 2):
        same = plan.provenance.get("method") == other.provenance.get("method") and "seconds" in plan.provenance
        if same and plan.provenance.get("seed") != other.provenance.get("seed"):
            one, two = _behind_layer_0(plan), _behind_layer_0(other)
            if plan.retrieval_count == other.retrieval_count:
                told.append({"plans": [name, other_name], "jaccard": round(len(one & two) / len(one | two), 3)})
    return told


def _paired(report: Mapping[str, Any], answers: Answers) -> dict[str, Any]:
    """The best plan against every other that answers under all budgets, on the same questions."""
    names = ranked(report)
    told: dict[str, Any] = {"best": names[0] if names else None, "others": {}}
    for name in names[1:]:
        pairs = {b: versus(answers, f"{names[0]}@{b}", f"{name}@{b}") for b in report["budgets"]}
        told["others"][name] = {
            str(b): {"won": pair[0], "lost": pair[1], "p": round(pair[2], 5)} for b, pair in pairs.items() if pair
        }
    return told


def _behind_layer_0(plan: HeadPlan) -> set[Head]:
    return {
        (layer, head) for layer, row in enumerate(plan.roles) for head, role in enumerate(row) if role == "R" and layer
    }


def markdown(report: Mapping[str, Any]) -> str:
    """The report's tables."""
    asked = report["asked"]
    state = "" if report["complete"] else " **Not all questions are answered yet.**"
    parts = [
        f"{report['questions']} questions, {report['device']}, {report['date']}; `{report['command']}`.{state}",
        "Share of the questions answered right with Wilson's 95% interval, in percent; recall: attention mass that the "
        "sparse heads' sets hold.",
        overall_table(report, asked["retrieval"]),
        "At one eighth of the context (all tasks and lengths), against the dense model on the same questions:\n\n"
        + eighth_table(report),
    ]
    pairs = paired_table(report)
    if pairs:
        parts.append("Questions that only one of two plans has right, McNemar's exact test:\n\n" + pairs)
    parts += [f"Budget {budget}, by task and length:\n\n" + cell_table(report, budget) for budget in report["budgets"]]
    curves = curve_table(report)
    if curves:
        parts.append("Score against the number of retrieval heads:\n\n" + curves)
    trained = training_table(report)
    if trained:
        parts.append("Trainings:\n\n" + trained)
    if report["overlap"]:
        parts.append("Retrieval heads behind layer 0, seed against seed:\n\n" + overlap_table(report))
    return "\n\n".join(parts) + "\n"


def _share(one: Mapping[str, Any] | None) -> str:
    if one is None:
        return ""
    return f"{100 * one['share']:.1f} ({100 * one['low']:.1f} to {100 * one['high']:.1f})"


def ranked(report: Mapping[str, Any]) -> list[str]:
    """Plans that answer under every budget, best first by the mean over budgets."""
    scores, budgets = report["scores"], report["budgets"]
    names = [name for name in report["plans"] if all(f"{name}@{budget}" in scores for budget in budgets)]
    return sorted(names, key=lambda name: -sum(scores[f"{name}@{budget}"]["all"]["share"] for budget in budgets))


def overall_table(report: Mapping[str, Any], retrieval: int) -> str:
    """Every plan under every budget, best first, with recall."""
    scores, budgets = report["scores"], report["budgets"]
    rows = [["dense", "all", *[_share(scores["dense"]["all"])] * len(budgets), *["1"] * len(budgets)]]
    for name in ranked(report):
        told = [scores[f"{name}@{budget}"]["all"] for budget in budgets]
        recalls = ["" if one["recall"] is None else f"{one['recall']:.3f}" for one in told]
        rows.append([name, str(report["plans"][name]["retrieval_heads"]), *map(_share, told), *recalls])
    head = ["plan", "retrieval heads", *(f"budget {b}" for b in budgets), *(f"recall {b}" for b in budgets)]
    return f"All tasks and lengths, {retrieval} retrieval heads:\n\n" + _table(head, rows)


def eighth_table(report: Mapping[str, Any]) -> str:
    """Every plan at an eighth of the context, against dense."""
    told = sorted(report["eighth"].items(), key=lambda pair: -pair[1]["points"])
    rows = [
        [name, f"{one['points']:+.1f}", str(one["lost"]), str(one["gained"]), str(one["asked"])] for name, one in told
    ]
    return _table(["plan", "points to dense", "lost", "gained", "questions"], rows)


def paired_table(report: Mapping[str, Any]) -> str:
    """The best plan against the others; empty where there is but one."""
    budgets, others = report["budgets"], report["paired"]["others"]

    def pair(one: Mapping[str, Any] | None) -> str:
        if one is None:
            return ""
        chance = f"p {one['p']:.2g}" if one["p"] >= 1e-4 else "p < 0.0001"
        return f"{one['won']} : {one['lost']} ({chance})"

    rows = [[name, *(pair(told.get(str(budget))) for budget in budgets)] for name, told in others.items()]
    return _table([f"{report['paired']['best']} against", *(f"budget {b}" for b in budgets)], rows) if rows else ""


def cell_table(report: Mapping[str, Any], budget: int) -> str:
    """Every plan under one budget, by task and length."""
    scores = report["scores"]
    cells = [cell for cell in scores["dense"] if cell != "all"]
    rows = [["dense", *(_share(scores["dense"][cell]) for cell in cells)]]
    rows += [[name, *(_share(scores[f"{name}@{budget}"].get(cell)) for cell in cells)] for name in ranked(report)]
    return _table(["plan", *cells], rows)


def curve_points(report: Mapping[str, Any]) -> dict[str, dict[int, Mapping[str, Any]]]:
    """For each family of plans and each number of retrieval heads the score over all cells, at the curves' budget."""
    asked, scores = report["asked"], report["scores"]
    points: dict[str, dict[int, Mapping[str, Any]]] = {}
    for budget in asked["curve_budgets"]:
        for family in (*asked["curve_runs"], *asked["curve_rivals"]):
            for name in (family, *(at_count(family, count) for count in asked["counts"])):
                if f"{name}@{budget}" in scores:
                    count = report["plans"][name]["retrieval_heads"]
                    points.setdefault(f"{family}@{budget}", {})[count] = scores[f"{name}@{budget}"]["all"]
    return points


def curve_table(report: Mapping[str, Any]) -> str:
    """Score against the number of retrieval heads; empty where there are no curves."""
    points = curve_points(report)
    counts = sorted({count for line in points.values() for count in line})
    rows = [[family, *(_share(line.get(count)) for count in counts)] for family, line in points.items()]
    return _table(["plan", *(f"{count} heads" for count in counts)], rows) if rows else ""


def training_table(report: Mapping[str, Any]) -> str:
    """What trainings took and where they ended; empty where nothing was trained."""
    rows = []
    for name, about in report["plans"].items():
        told = about["training"]
        if told:
            rows.append([
                name, f"{about['seconds']:.0f}", f"{told['loss']:.3f}", f"{told['expected_count']:.1f}",
                str(about["retrieval_heads"]), f"{100 * told['decided']:.0f}%",
            ])  # fmt: skip
    head = ["plan", "seconds", "loss", "expected count", "exported", "gates within 0.1 of 0 or 1"]
    return _table(head, rows) if rows else ""


def overlap_table(report: Mapping[str, Any]) -> str:
    """Seed against seed: how many retrieval heads two trainings have in common."""
    rows = [[" and ".join(entry["plans"]), f"{entry['jaccard']:.2f}"] for entry in report["overlap"]]
    return _table(["plans", "Jaccard"], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
