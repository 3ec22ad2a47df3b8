"""The tables of lychee_sgl/heads/README.md: what an ablation of head plans found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lychee_sgl.heads.ablate import report

if TYPE_CHECKING:
    from table_text import Record


def plans(record: Record, file: str) -> str:
    """What an ablation of head plans found."""
    exam = record["asked"]["exam"]
    whole = exam["questions"] * len(exam["tasks"]) * len(exam["lengths"])
    cells = {cell: one["asked"] for cell, one in record["scores"]["dense"].items() if cell != "all"}
    short = [f"`{cell}` {asked}" for cell, asked in cells.items() if asked < exam["questions"]]
    missing = f" {whole - record['questions']} are still to be asked: of {', '.join(short)} are in." if short else ""
    parts = (
        f"## {record['plans']['calibrated']['heads']} KV heads of SmolLM2-135M-Instruct\n",
        f"{record['questions']:,} questions that no plan was made from: one fact, one of four, two of two "
        f"(`single`, `multi-key`, `multi-value`), in texts of 2,000, 4,000 and 7,500 tokens. Share answered right in "
        "percent with Wilson's 95% interval; recall: attention mass that the sparse heads' sets hold."
        f"{missing}\n",
        report.overall_table(record, record["asked"]["retrieval"]) + "\n",
        "Against the best, on the same questions: those that only the best, and only the other, has right "
        "(McNemar's exact test).\n",
        report.paired_table(record) + "\n",
        "At one eighth of the context, against the dense model on the same questions:\n",
        report.eighth_table(record) + "\n",
        "Score against the number of retrieval heads:\n",
        report.curve_table(record) + "\n",
        "![score against retrieval heads](../../docs/images/plans.png)\n",
        "The trainings, each one of four that shared a GPU:\n",
        report.training_table(record) + "\n",
        "Retrieval heads behind layer 0 in common, one seed with another:\n",
        report.overlap_table(record) + "\n",
        "![the shipped plan's gates, step by step](../../docs/images/gates.png)\n",
        f"By task and length: [plans.md](../../docs/measurements/plans.md). {record['device']}, {record['date']}. "
        f"Again: `{record['command']}`. Data: [{file}](../../docs/measurements/{file}).\n",
    )
    return "\n".join(parts)


RECIPE_STEPS = 400
"""Of the trainings above; a larger model's gates have as few numbers."""


def step_times(record: Record, file: str) -> str:
    """What a step takes on the shapes of larger models, and a training at that pace."""
    lines = [
        f"| {run['model']} | {run['seconds']['median']:.1f} s | {run['peak_bytes'] / 2**30:.1f} GiB "
        f"| {RECIPE_STEPS * run['seconds']['median'] / 60:.0f} minutes |"
        for run in record["runs"]
    ]
    first = record["runs"][0]
    settings = first["settings"]
    parts = (
        f"A step on prompts of {first['prompt']:,} tokens with answers of {first['answer']}, {settings['draws']} draws "
        f"of the gates, {settings['retrieval']} retrieval heads, budget {settings['budget']:,}, {first['dtype']}:\n",
        f"| model | a step | most memory | {RECIPE_STEPS} steps |",
        "|---|---|---|---|",
        *lines,
        f"\n{first['device']}, {record['date']}, {settings['sources']} sources. Again: `{first['command']}`. "
        f"Data: [{file}](../../docs/measurements/{file}).\n",
    )
    return "\n".join(parts)
