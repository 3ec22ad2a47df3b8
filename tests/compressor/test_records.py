"""What the README says in words beside its tables is what the record says."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECORD = json.loads((ROOT / "docs/measurements/compressor.json").read_text(encoding="utf-8"))
README = " ".join((ROOT / "lychee_sgl/compressor/README.md").read_text(encoding="utf-8").split())


def right(runs: list[dict], when: str) -> int:
    return sum(round(run[when]["2"]["all"][0] * run[when]["2"]["all"][3]) for run in runs)


def test_what_is_said_of_the_training() -> None:
    training, plain = RECORD["training"], RECORD["evaluation_plain"]
    assert (
        f"{training['steps_done']} steps were planned for 13 minutes and took {training['seconds'] / 60:.0f}" in README
    )
    read, nothing = plain["ratios"]["2"]["trained"], plain["bounds"]["nothing"]
    assert (
        f"({read['token_accuracy'][0]:.0%} of the tokens at ratio 2, with no text {nothing['token_accuracy'][0]:.0%})"
        in README
    )
    whole, start = RECORD["evaluation"]["bounds"]["whole"], plain["bounds"]["whole"]
    assert f"({whole['answers'][0]:.0%} of the answers, the plain model {start['answers'][0]:.0%})" in README
    ratios = RECORD["evaluation"]["ratios"].values()
    assert all(arms["trained"]["answer_loss"] < arms["truncation"]["answer_loss"] for arms in ratios)
    assert all(arms["trained"]["token_accuracy"] > arms["untrained"]["token_accuracy"] for arms in ratios)


def test_what_is_said_of_reinforcement() -> None:
    gated, direct = ([run for run in RECORD["reinforcement"] if run["direct"] is way] for way in (False, True))
    assert {run["seed"] for run in gated} == {run["seed"] for run in direct} == {0, 1, 2}
    assert f"from {right(gated, 'before')} to {right(gated, 'after')} of 900 questions" in README
    gained, lost = (sum(run["changed"]["2"][key] for run in gated) for key in ("gained", "lost"))
    assert f"; {gained} were gained and {lost} lost" in README
    assert f"{right(direct, 'after')} of 900 in place of {right(direct, 'before')}" in README
    assert all(run["after"]["2"]["all"][0] > run["before"]["2"]["all"][0] for run in gated)
    read = json.loads((ROOT / "docs/measurements/memory-compressed.json").read_text(encoding="utf-8"))
    answered = {
        method: sum(cell["right"] for cell in read["cells"] if (cell["method"], cell["kind"]) == (method, "all"))
        for method in ("compressed", "text", "retrieval")
    }
    said = "answered {compressed} of 36 questions from blocks at ratio 2, {text} from text and {retrieval} by retrieval"
    assert said.format(**answered) in README
    steps = [run["steps_done"] for run in RECORD["reinforcement"]]
    assert f"{min(steps)} to {max(steps)} steps of {gated[0]['settings']['tasks']} questions" in README
    begun = RECORD["evaluation"]["ratios"]["2"]["trained"]
    ended, farmed = (one["ratios"]["2"]["trained"] for one in RECORD["reinforced"])
    assert f"answers {ended['answers'][0]:.1%} ({begun['answers'][0]:.1%} before)" in README
    assert f"reconstructs {ended['token_accuracy'][0]:.1%} of the tokens ({begun['token_accuracy'][0]:.1%})" in README
    assert f"seed 0 reconstructs {farmed['token_accuracy'][0]:.1%}" in README


def test_brevity_is_farmed_without_gates_alone() -> None:
    """The reward for brevity and the length of answers, over the first and the last tenth of every run."""
    for run in RECORD["reinforcement"]:
        tenth = len(run["history"]) // 10
        form, said, outcome = (
            [
                sum(row[run["columns"].index(name)] for row in rows) / tenth
                for rows in (run["history"][:tenth], run["history"][-tenth:])
            ]
            for name in ("format", "tokens_said", "outcome")
        )
        if run["direct"]:
            assert form[1] > form[0] + 0.19
            assert said[1] < 0.6 * said[0]
            assert outcome[1] < outcome[0]
        else:
            assert abs(form[1] - form[0]) < 0.02
            assert abs(said[1] - said[0]) < 0.2
