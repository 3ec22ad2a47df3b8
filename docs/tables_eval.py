"""The tables of lychee_sgl/eval/README.md: the gate's figure, whether answers drift, where recall is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from table_text import markdown, percent

if TYPE_CHECKING:
    from table_text import Record


def eval_gate(record: Record, file: str) -> str:
    """What the gate's arms reached."""

    def told(value: list[float] | None) -> str:
        return "-" if value is None else f"{percent(value[0])} [{percent(value[1])}, {percent(value[2])}]"

    rows = [
        (name, told(arm["score"]), told(arm["recall"]), percent(arm["attended"][0]), str(arm["answered"]))
        for name, arm in record["arms"].items()
    ]
    facts = record["facts"]
    return (
        f"{markdown(('arm', 'score', 'recall', 'attended', 'answers'), rows)}\n"
        f"{record['model']}, {facts['date']}. Again: `{facts['command']}`, then `lychee-sgl eval gate OUT --write`. "
        f"Data: [{file}](../../docs/measurements/{file}).\n"
    )


def drift(record: Record, file: str) -> str:
    """How far sparse rows are from the dense one, early and late in an answer, and with a corrected cache."""

    def told(one: dict[str, float] | None, unit: float = 1, digits: int = 3) -> str:
        return "-" if one is None else f"{one['mean'] / unit:.{digits}f} \u00b1 {one['error'] / unit:.{digits}f}"

    def nats(one: dict[str, float] | None) -> str:
        return told(one, 1e-3, 2)

    rows = []
    for arm in record["arms"]:
        first, last = arm["points"][0]["divergence"], arm["points"][-1]["divergence"]
        correction = f"every {arm['correction']}" if arm["correction"] else "none"
        rows.append(
            (
                f"{arm['budget']:,}", correction, nats(first), nats(last), nats(arm["grows"]["divergence"]),
                told(arm["all"]["agreement"]), told(arm["all"]["recall"]),
            )
        )  # fmt: skip
    head = ("budget", "correction", "KL at first", "KL at last", "late less early", "same token", "recall")
    asked = record["settings"]
    points = record["arms"][0]["points"]
    return (
        f"{record['model']} with its head plan on {asked['prompts']} traces of {asked['tokens']:,} tokens that the "
        f"dense model drew behind {asked['prompt_tokens']:,} tokens of prose. KL: of the next token's distribution "
        "from the dense one, in thousandths of a nat, over decoded tokens "
        f"{points[0]['from']:,} to {points[0]['to']:,} and "
        f"{points[-1]['from']:,} to {points[-1]['to']:,}; *late less early*: the last quarter less the first; all with "
        "their standard error over traces.\n\n"
        f"{markdown(head, rows, left=2)}\n"
        "![divergence and recall against the decoded position](../../docs/images/drift.png)\n\n"
        f"{record['device']}, {record['dtype']}, torch {record['torch']}, {record['date']}. Again: "
        f"`{record['command']}`. Data: [{file}](../../docs/measurements/{file}).\n"
    )


def recall_heads(record: Record, file: str) -> str:
    """What the sparse heads' sets hold, and why they do not hold more: over all, by layer and by head."""
    sparse = [row for row in record["heads"] if row["root"] is not None]
    losses = sorted(sparse, key=lambda row: float(row["recall"]))
    layers = sorted(record["layers"], key=lambda row: -float(row["loss_share"]))
    lost = sum(1 - row["recall"] for row in sparse)

    def line(name: str, row: Record, share: float, root: str = "", away: str = "") -> tuple[str, ...]:
        parts = (f"{value:.3f}" for value in row["parts"].values())
        return (name, root, away, f"{row['recall']:.3f}", f"{row['own']:.3f}", *parts, percent(share))

    rows = [line(f"all {len(sparse)}", record["all"], 1.0)]
    rows += [line(f"layer {row['layer']} ({row['sparse']})", row, row["loss_share"]) for row in layers[:6]]
    rows += [
        line(f"{row['layer']}.{row['head']}", row, (1 - row["recall"]) / lost, "{}.{}".format(*row["root"]),
             str(row["distance"]))
        for row in losses[:10]
    ]  # fmt: skip
    head = ("sparse heads", "root", "layers away", "recall", "own", *record["shares"], "of all loss")
    prompts, recall = record["prompts"], record["recall"]
    lengths = []
    for context in record["settings"]["contexts"]:
        some = [row for row in prompts if row["context"] == context]
        recalled, own = (sum(row[key] for row in some) / len(some) for key in ("recall", "own"))
        lengths.append(f"{recalled:.3f} of {own:.3f} at {context:,} tokens")
    return (
        f"{record['model']} with its head plan, sets of {record['share']:g} of the context, {len(prompts)} prompts "
        f"(needle questions and prose), {sum(row['steps'] for row in prompts)} decode steps: recall "
        f"{recall['mean']:.3f} \u00b1 {recall['error']:.3f}. Recall of what own sets would hold, by length: "
        f"{', '.join(lengths)}. With own sets of {record['attended']:g} of the context in all heads, which are as many "
        f"bytes as the plan reads: {record['equal']:.3f}.\n\n"
        f"{markdown(head, rows)}\n"
        "![recall, own sets and their difference for each head](../../docs/images/recall-heads.png)\n\n"
        f"{record['device']}, {record['dtype']}, torch {record['versions']['torch']}, {record['date']}. Again: "
        f"`{record['command']}`. Data: [{file}](../../docs/measurements/{file}).\n"
    )
