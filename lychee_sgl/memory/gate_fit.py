"""Fits a gate to features, and measures gates on features of other blocks. Needs numpy and scipy (extra `eval`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from lychee_sgl.heads.evaluate.scores import wilson
from lychee_sgl.memory.gate import FURTHEST, Classifier, Weight
from lychee_sgl.memory.gate_examples import EARLY, NEEDED, NOT_NEEDED
from lychee_sgl.memory.gate_features import NAMES, OF_THE_GAIN, OF_WORDS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

RIDGE: Final = 1.0
"""Penalty on half the sum of the squared weights, against the sum of the losses of all questions."""
RESAMPLES: Final = 1000
_POINTS: Final = 200

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Judged:
    """Questions that a gate can be right or wrong about.

    Attributes:
        values: their features.
        needed: whether the block is needed.
        kinds: of the questions.
        blocks: which block each belongs to.
    """

    values: tuple[Mapping[str, float], ...]
    needed: tuple[bool, ...]
    kinds: tuple[str, ...]
    blocks: tuple[str, ...]


def judged(rows: Sequence[Row], split: str) -> Judged:
    """Gives the questions of one half.

    Raises:
        ValueError: not both answers are among them.
    """
    found = [
        (asked["features"], asked["needed"], asked["kind"], row["block"])
        for row in rows
        if row["split"] == split
        for asked in row["asked"]
        if asked["needed"] is not None
    ]
    if len({needed for _, needed, _, _ in found}) < 2:
        raise ValueError(f"the {split} blocks are too few: allowed are such with and without a needed block")
    values, needed, kinds, blocks = zip(*found, strict=True)
    return Judged(values, needed, kinds, blocks)


def fit(
    data: Judged, *, recall: float, model: str | None, made: Mapping[str, Any], names: Sequence[str] = NAMES
) -> Classifier:
    """Fits a logistic regression with a ridge penalty, and chooses its threshold.

    Args:
        data: what is learnt.
        recall: share of the needed blocks that is to be accepted, among these.
        model: whose gains these are.
        made: goes into the gate.
        names: features to use.

    Raises:
        ValueError: recall is not between 0 and 1.
    """
    import numpy as np
    from scipy.optimize import minimize

    raw = np.array([[one[name] for name in names] for one in data.values])
    wanted = np.array(data.needed, dtype=float)
    mean, scale = raw.mean(0), raw.std(0)
    scale[scale < 1e-9] = 1.0
    x = np.clip((raw - mean) / scale, -FURTHEST, FURTHEST)

    def loss(parameters: Array) -> tuple[float, Array]:
        weights, bias = parameters[:-1], parameters[-1]
        odds = x @ weights + bias
        value = np.logaddexp(0, odds).sum() - wanted @ odds + RIDGE / 2 * weights @ weights
        off = 1 / (1 + np.exp(-odds)) - wanted
        return float(value), np.append(off @ x + RIDGE * weights, off.sum())

    found = minimize(loss, np.zeros(len(names) + 1), jac=True, method="L-BFGS-B").x
    weights = tuple(
        Weight(name=name, mean=float(m), scale=float(s), weight=float(w))
        for name, m, s, w in zip(names, mean, scale, found[:-1], strict=True)
    )
    gained = any(name in OF_THE_GAIN for name in names)
    gate = Classifier(weights=weights, bias=float(found[-1]), threshold=0.5, model=model if gained else None, made=made)
    scores = [gate.probability(one) for one in data.values]
    return replace(gate, threshold=min(1 - 1e-9, max(1e-9, threshold_for(scores, data.needed, recall))))


def threshold_for(scores: Sequence[float], needed: Sequence[bool], recall: float) -> float:
    """Gives the highest threshold that accepts this share of the needed.

    Raises:
        ValueError: recall is not above 0 and up to 1.
    """
    if not 0 < recall <= 1:
        raise ValueError(f"recall is {recall}; allowed: above 0, up to 1")
    right = sorted(score for score, is_needed in zip(scores, needed, strict=True) if is_needed)
    return right[int((1 - recall) * len(right) + 1e-9)]


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to judge: a score of the features, and from where on it accepts."""

    score: Callable[[Mapping[str, float]], float]
    threshold: float


def arms(train: Judged, gate: Classifier, *, recall: float) -> dict[str, Arm]:
    """The gate and what it is held against, each with a threshold of the same recall on the same blocks.

    `classifier` is the gate as it is; `words`, one that never asks the model; `gain`, the mean gain alone; `bm25`, the
    best sentence's score for question and notes alone. What the features do not tell is left out.
    """

    def alone(name: str) -> Arm:
        return Arm(
            lambda values: values[name], threshold_for([one[name] for one in train.values], train.needed, recall)
        )

    found = {"classifier": Arm(gate.probability, gate.threshold)}
    if gate.needs_gain:
        words = fit(train, recall=recall, model=None, made={}, names=OF_WORDS)
        found["words"] = Arm(words.probability, words.threshold)
    if "gain_mean" in train.values[0]:
        found["gain"] = alone("gain_mean")
    return {**found, "bm25": alone("bm25_both")}


def measure(rows: Sequence[Row], ways: Mapping[str, Arm], *, split: str = "held-out", seed: int = 0) -> dict[str, Any]:
    """Measures ways to judge on one half of the blocks.

    Returns:
        `arms`: for each the area under the ROC curve (its 95% interval by a bootstrap over blocks), precision, recall
        and the share of the unneeded that is skipped (Wilson's intervals), each as value, low, high; the threshold, and
        the ROC curve. `kinds`: how many questions of each kind, and how many of them each way accepts.
    """
    data = judged(rows, split)
    early = [
        asked["features"] for row in rows if row["split"] == split for asked in row["asked"] if asked["kind"] == EARLY
    ]
    found, kinds = {}, {}
    for name, arm in ways.items():
        scores = [arm.score(one) for one in data.values]
        found[name] = {"threshold": arm.threshold, **_quality(scores, data, arm.threshold, seed)}
    for kind in (*NEEDED, *NOT_NEEDED, EARLY):
        these = early if kind == EARLY else [v for v, k in zip(data.values, data.kinds, strict=True) if k == kind]
        accepted = {name: sum(arm.score(one) >= arm.threshold for one in these) for name, arm in ways.items()}
        kinds[kind] = {"asked": len(these), "accepted": accepted}
    blocks = len({*data.blocks})
    counts = {"blocks": blocks, "questions": len(data.needed), "needed": sum(data.needed)}
    return {**counts, "arms": found, "kinds": kinds}


def _quality(scores: Sequence[float], data: Judged, threshold: float, seed: int) -> dict[str, Any]:
    import numpy as np

    score, needed = np.array(scores), np.array(data.needed)
    accepted = score >= threshold
    right = int((accepted & needed).sum())
    order, of_block = np.unique(np.array(data.blocks), return_inverse=True)
    members = [np.flatnonzero(of_block == number) for number in range(len(order))]
    draw, areas = np.random.default_rng(seed), []
    for _ in range(RESAMPLES):
        rows = np.concatenate([members[i] for i in draw.integers(len(members), size=len(members))])
        if 0 < needed[rows].sum() < len(rows):
            areas.append(area(score[rows], needed[rows]))
    low, high = np.percentile(areas, (2.5, 97.5))
    steps = np.quantile(score, np.linspace(0, 1, _POINTS))
    curve = [[float((score[~needed] >= step).mean()), float((score[needed] >= step).mean())] for step in steps]
    return {
        "auc": [round(value, 4) for value in (area(score, needed), float(low), float(high))],
        "precision": _share(right, int(accepted.sum())),
        "recall": _share(right, int(needed.sum())),
        "skipped": _share(int((~accepted & ~needed).sum()), int((~needed).sum())),
        "roc": [[round(a, 4), round(b, 4)] for a, b in dict.fromkeys(map(tuple, curve))],
    }


def area(score: Array, needed: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: how often a needed block scores higher than another, ties counting half."""
    from scipy.stats import rankdata

    count = int(needed.sum())
    ranks = rankdata(score)[needed].sum()
    return float((ranks - count * (count + 1) / 2) / (count * (len(needed) - count)))


def _share(right: int, of: int) -> list[float | None]:
    if of == 0:
        return [None, None, None]
    return [round(value, 4) for value in (right / of, *wilson(right, of))]
