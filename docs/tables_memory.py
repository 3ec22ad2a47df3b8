"""Tables of documents that are read block by block: the gate, and what it saves."""

from __future__ import annotations

from table_text import Record, cell, markdown, milliseconds, origin, percent

_WAYS = {
    "classifier": "trained gate",
    "words": "trained on words alone",
    "gain": "gain alone",
    "bm25": "BM25 alone",
}
_ARMS = {"text": "no gate", "text-gate": "trained gate", "text-oracle": "oracle"}
_METHODS = {
    "text": "read block by block",
    "text-gate": "read with the gate",
    "text-oracle": "read with an oracle gate",
    "compressed": "read compressed",
    "compressed-gate": "read compressed, with the gate",
    "retrieval": "retrieval",
    "truncation": "truncation",
}
_KINDS = ("single", "two-hop", "two-hop-reversed")
_FOLDER = "../../docs/measurements"


def memory_gate(record: Record, file: str) -> str:
    """Precision, recall and area under the curve on held-out blocks."""

    def interval(three: list[float | None]) -> str:
        value, low, high = three
        return "-" if value is None else f"{value:.3f} ({low:.3f} to {high:.3f})"

    rows = [
        (_WAYS[name], *(interval(arm[key]) for key in ("auc", "precision", "recall", "skipped")))
        for name, arm in record["arms"].items()
    ]
    head = ("gate", "area under the ROC", "precision", "recall", "of the unneeded, skipped")
    ways = list(record["arms"])
    kinds = [
        (cell(kind), str(row["asked"]), *(percent(row["accepted"][way] / row["asked"]) for way in ways))
        for kind, row in record["kinds"].items()
        if row["asked"]
    ]
    by = f"with the gains of {cell(record['served'])}" if record["served"] else "by words alone"
    return (
        f"### Held-out blocks, {by}\n\n"
        f"{record['questions']:,} questions to {record['blocks']} held-out blocks of 500 to 2,500 tokens, "
        f"{record['needed']} of them needed; 95% intervals. Each threshold accepts "
        f"{percent(record['recall'])} of the needed blocks of the other half. Precision depends on how many blocks "
        "are needed, which in a long document are fewer; the last column does not.\n\n"
        f"{markdown(head, rows)}\n"
        f"![ROC curves, and what is accepted of each kind]({_FOLDER}/{file.removesuffix('.json')}.png)\n\n"
        "What is accepted of each kind; nobody can know the last one, and the second pass asks it again:\n\n"
        f"{markdown(('kind', 'asked', *(_WAYS[way] for way in ways)), kinds)}\n"
        f"{origin(record, file, _FOLDER)}"
    )


def memory_arms(record: Record, file: str) -> str:
    """Accuracy and time without a gate, with one, and with an oracle."""
    rows = []
    for one in record["cells"]:
        if one["kind"] == "all" and one["method"] in _ARMS:
            low, high = one["interval"]
            rows.append(
                (
                    _ARMS[one["method"]],
                    f"{one['right']} of {one['asked']} ({percent(low)} to {percent(high)})",
                    f"{one['blocks'] - one['gated']:.1f} of {one['blocks']:.1f}",
                    f"{one['tokens_read']:,}",
                    milliseconds(one["first_seconds"]),
                    milliseconds(one["later_seconds"]),
                )
            )
    plan = record["plan"]
    head = ("gate", "right", "blocks read", "prompt tokens", "first question", "later ones")
    return (
        "### Answers without a gate, with one, and with one that knows\n\n"
        f"{plan['documents']} documents of {', '.join(f'{tokens:,}' for tokens in plan['lengths'])} tokens in blocks "
        f"of {plan['chunk']:,}, three questions each (one fact; two hops in order, and the other way round); medians "
        "of the seconds:\n\n"
        f"{markdown(head, rows)}\n"
        f"{origin(record, file, _FOLDER)}"
    )


def memory_lengths(record: Record, file: str) -> str:
    """Accuracy by kind of question, tokens, time and memory, by length and method."""
    cells = {(one["tokens"], one["method"], one["kind"]): one for one in record["cells"]}
    rows = []
    for (tokens, method, kind), one in cells.items():
        if kind == "all":
            low, high = one["interval"]
            kinds = (cells[tokens, method, each] for each in _KINDS)
            rows.append(
                (
                    f"{tokens:,}",
                    _METHODS[method],
                    f"{one['right']} of {one['asked']} ({percent(low)} to {percent(high)})",
                    " + ".join(str(each["right"]) for each in kinds),
                    f"{one['tokens_read']:,}",
                    milliseconds(one["first_seconds"]),
                    milliseconds(one["later_seconds"]),
                    "-" if one["peak_gib"] is None else f"{one['peak_gib']:.2f} GiB",
                )
            )
    plan = record["plan"]
    head = (
        "tokens",
        "method",
        "right",
        "one fact + two hops + reversed",
        "prompt tokens",
        "first question",
        "later ones",
    )
    # on a CPU `origin` says it
    device = f"{record['device']}; " if "NVIDIA" in record["device"] else ""
    count = f"{plan['documents']} documents" if plan["documents"] > 1 else "One document"
    return (
        f"{count} of each length, three questions each, blocks of {plan['chunk']:,} tokens and notes of "
        f"{plan['working_memory']:,}; medians of the seconds, peak memory of the engine's processes:\n\n"
        f"{markdown((*head, 'memory'), rows, left=2)}\n"
        f"{device}{origin(record, file, _FOLDER)}"
    )
