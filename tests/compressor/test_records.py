"""What the README says was measured is what the records say."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_table_of_the_first_measurement() -> None:
    told = json.loads((ROOT / "docs/measurements/compressor-first.json").read_text(encoding="utf-8"))
    readme = (ROOT / "lychee_sgl/compressor/README.md").read_text(encoding="utf-8")
    judged = told["evaluation"]
    scores = {"no text": judged["bounds"]["nothing"], "whole text": judged["bounds"]["whole"]}
    for ratio, arms in judged["ratios"].items():
        scores |= {f"ratio {ratio}, {arm}": score for arm, score in arms.items()}
    rows = [f"| {name} | {at['token_accuracy'][0]:.1%} | {at['answers'][0]:.1%} |" for name, at in scores.items()]
    assert len(rows) == 14
    assert "\n".join(rows) in readme
    ends = told["training"]["last_80_steps"]
    assert (
        f"{ends['2']['losses']['answer']:.2f} nats a token at ratio 2 and {ends['4']['losses']['answer']:.2f} at 4"
        in (readme)
    )
    assert f"{told['training']['steps_done']} steps of {told['training']['settings']['batch']} windows" in readme
    runs = told["reinforcement"]
    assert {run["after"]["4"]["all"][0] for run in runs} == {run["before"]["4"]["all"][0] for run in runs} == {0.0}
    assert all("MODEL_FOLDER" in one["command"] for one in (told["training"], judged, *runs))
    said = " up to ".join(
        f"{min(shares):.0%} to {max(shares):.0%}"
        for shares in ([run[part]["outcome"] for run in runs] for part in ("first_tenth", "last_tenth"))
    )
    assert f"from {said}, and of held-out" in " ".join(readme.split())
