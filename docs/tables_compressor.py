"""Tables of the compressor: what its blocks keep, and what reinforcement changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from table_text import Record, markdown, percent

if TYPE_CHECKING:
    from collections.abc import Sequence

_FOLDER = "../../docs/measurements"


def compressor(record: Record, file: str) -> str:
    """Reconstruction and answers by ratio: trained, untrained, truncation."""
    judged, training = record["evaluation"], record["training"]
    scores = [("no text", "-", judged["bounds"]["nothing"]), ("the whole text", "-", judged["bounds"]["whole"])]
    scores += [
        (f"ratio {ratio}", arm, score) for ratio, arms in judged["ratios"].items() for arm, score in arms.items()
    ]
    rows = [(name, arm, _tokens(score), _answers(score), f"{score['answer_loss']:.2f}") for name, arm, score in scores]
    plain = record["evaluation_plain"]["bounds"]["whole"]["answers"]
    head = ("held out", "", "tokens reconstructed", "questions answered", "nats a token of the answer")
    return (
        f"{training['steps_done']} steps of {training['settings']['batch']} samples in "
        f"{training['seconds'] / 60:.1f} minutes, over {training['text_tokens'] / 1e6:.1f} million tokens of text; "
        f"judged on {judged['windows']} windows of {judged['window']} tokens and {judged['questions']} questions that "
        f"were not trained on, read with the reader's adapter. The plain model answers {percent(plain[0])} of the "
        "questions from the whole text. 95% intervals.\n\n"
        f"{markdown(head, rows, left=2)}\n"
        f"{_origin(record, file, training['command'], judged['command'])}"
    )


def reinforcement(record: Record, file: str) -> str:
    """Right answers to held-out questions before and after, by seed and way of adding up, and what was said."""
    rows = []
    for direct in (False, True):
        runs = [run for run in record["reinforcement"] if run["direct"] is direct]
        rows += [_run(run) for run in runs]
        rows.append(_sum(runs))
    head = ("rewards", "seed", "before", "after", "gained and lost", "outcome", "form", "tokens said")
    commands = (
        next(run["command"] for run in record["reinforcement"] if run["direct"] is way) for way in (False, True)
    )
    return (
        "Right answers to 300 held-out questions of each seed, before and after; behind them means of all rollouts "
        "over the first and the last tenth of the steps: right ones, the reward for brevity, and the tokens of an "
        "answer.\n\n"
        f"{markdown(head, rows, left=1)}\n"
        f"{_origin(record, file, *commands)}"
    )


def _tokens(score: Record) -> str:
    value, half = score["token_accuracy"]
    return f"{percent(value)} ± {100 * half:.1f}"


def _answers(score: Record) -> str:
    value, low, high = score["answers"]
    return f"{percent(value)} ({percent(low)} to {percent(high)})"


def _ends(run: Record, column: str) -> tuple[float, float]:
    """Means over the first and the last tenth of the steps."""
    values = [row[run["columns"].index(column)] for row in run["history"]]
    tenth = max(1, len(values) // 10)
    return sum(values[:tenth]) / tenth, sum(values[-tenth:]) / tenth


def _way(run: Record) -> str:
    return "added up directly" if run["direct"] else "behind gates"


def _run(run: Record) -> tuple[str, ...]:
    ((before,), (after,), (changed,)) = (run[key].values() for key in ("before", "after", "changed"))
    outcome, form = (tuple(map(percent, _ends(run, column))) for column in ("outcome", "format"))
    said = _ends(run, "tokens_said")
    return (
        _way(run),
        str(run["seed"]),
        _share(before["all"]),
        _share(after["all"]),
        f"+{changed['gained']} -{changed['lost']}",
        f"{outcome[0]} to {outcome[1]}",
        f"{form[0]} to {form[1]}",
        f"{said[0]:.1f} to {said[1]:.1f}",
    )


def _share(four: Sequence[float]) -> str:
    value, low, high, _ = four
    return f"{percent(value)} ({percent(low)} to {percent(high)})"


def _sum(runs: Sequence[Record]) -> tuple[str, ...]:
    def right(key: str) -> int:
        return sum(round(at["all"][0] * at["all"][3]) for run in runs for at in run[key].values())

    asked = sum(int(at["all"][3]) for run in runs for at in run["before"].values())
    changed = [one for run in runs for one in run["changed"].values()]
    gained, lost = (sum(one[key] for one in changed) for key in ("gained", "lost"))
    before, after = (f"{right(key)} of {asked}" for key in ("before", "after"))
    return (_way(runs[0]), "all", before, after, f"+{gained} -{lost}", "", "", "")


def _origin(record: Record, file: str, *commands: str) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    again = "`, then `".join(commands)
    return f"{record['device']}, {versions}, {record['date']}. Again: `{again}`. Data: [{file}]({_FOLDER}/{file}).\n"
