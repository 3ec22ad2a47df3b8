"""Tables of what was measured on a CPU: demo, speed, start, gateway."""

from __future__ import annotations

from table_text import Record, cell, markdown, milliseconds, origin, percent


def demo(record: Record, file: str) -> str:
    """One fact in the middle of a long text, at four budgets."""
    table = record["table"]
    rows = [
        (
            str(row["budget"]),
            cell(row["answer"]),
            "yes" if row["as_dense"] else "no",
            percent(row["attended_fraction"]),
            percent(row["recall"]),
            milliseconds(row["per_token_seconds"]),
            milliseconds(row["first_token_seconds"]),
        )
        for row in table["rows"]
    ]
    head = ("budget", "answer", "as dense?", "attended", "recall", "per token", "first token")
    return (
        "## The demo\n\n"
        f"`make demo` hides a fact in a text of {table['context_tokens']:,} tokens, at {100 * table['depth']:.0f}% "
        f"of it, and asks: *{cell(table['question'])}* It is {table['expected']}.\n"
        f"The text is read once ({milliseconds(table['prefill_seconds'])}); all rows find it in the cache.\n\n"
        f"{markdown(head, rows, left=2)}\n"
        f"{cell(record['served']['model'])} with the head plan {cell(str(record['served']['plan']))}, "
        f"{origin(record, file)}"
    )


def questions(record: Record, file: str) -> str:
    """The other questions, dense and at the default budget."""
    if "counts" not in record:
        return ""
    counts, asked = record["counts"], record["questions"]
    sizes = [pair["context_tokens"] for pair in asked]
    budgets = sorted({str(pair["budget"]) for pair in asked})
    shares = [pair["attended_fraction"] for pair in asked if pair["attended_fraction"] is not None]
    return (
        f"{counts['questions']} other questions, over texts of {min(sizes):,} to {max(sizes):,} tokens, asked dense "
        f"and without the field (budget {' or '.join(budgets)}): "
        f"**{counts['same_answer']} of {counts['questions']}** default answers are "
        f"the dense answer, {counts['same_text']} of them word for word. The same are two answers that give the number "
        "asked for, or the same wrong one, or none ([compare.py](lychee_sgl/demo/compare.py)).\n"
        f"Dense finds {counts['dense_correct']} of the numbers, the default {counts['default_correct']}; "
        f"it reads {percent(sum(shares) / len(shares) if shares else None)} of the KV entries on average.\n"
    )


def cpu_speed(record: Record, file: str) -> str:
    """Time per token against stock SGLang, by context and budget."""
    rows = []
    for context, ratio in zip(record["contexts"], record["ratios"], strict=True):
        times = context["per_token_seconds"]
        ours = [name for name in times if name != "stock"]
        rows.append(
            (
                f"{context['context_tokens']:,}",
                milliseconds(times["stock"]),
                *(f"{milliseconds(times[name])} ({ratio['per_token'][name]:.2f}x)" for name in ours),
                f"{ratio['first_token_after_hit']['dense']:.2f}x",
                f"{ratio['fresh_prefill']:.2f}x",
            )
        )
    names = [name for name in record["contexts"][0]["per_token_seconds"] if name != "stock"]
    head = ("context", "stock", *names, "first token after a hit", "prefill")
    floor, last = record["prefill_floor"], record["contexts"][-1]
    prefill = (
        f"A fresh prompt of {floor['tokens']:,} tokens takes {milliseconds(last['fresh_prefill_seconds']['lychee'])} "
        f"(stock: {milliseconds(last['fresh_prefill_seconds']['stock'])}); its "
        f"{floor['linear_gflop'] + floor['attention_gflop']:,.0f} GFLOP would take {milliseconds(floor['seconds'])} at "
        f"the {record['float32_gflops']:.0f} GFLOP/s of this machine's float32 matrix product.\n\n"
    )
    return (
        "## Speed on a CPU\n\n"
        "Time per token of stock SGLang (`torch_native`) and of lychee at three budgets, both running, asked in turn; "
        "in brackets and in the last columns, how many times faster than stock.\n\n"
        f"{markdown(head, rows)}\n"
        f"{prefill}"
        f"{origin(record, file)}"
    )


def start(record: Record, file: str) -> str:
    """From a bare clone to the first answer."""
    return (
        f"From `make serve` in a bare clone to the first answer: {record['first_answer_seconds']:.0f} s, with the "
        f"packages in uv's cache (else their download comes first). All processes together then hold "
        f"{record['pss_gib_ready']:.1f} GiB, after a prompt of {record['long_context_tokens']:,} tokens "
        f"{record['pss_gib_after_long']:.1f} GiB.\n"
        f"{origin(record, file)}"
    )


def recall_hold(record: Record, file: str) -> str:
    """Recalls that the gateway was asked to hold, beside fixed budgets."""
    rows = []
    for target in record["targets"]:
        whole, found = target["whole"], target["settled"]
        rows.append(
            (
                f"{target['min_recall']:g}",
                f"{found['worst_bucket']:.4f} ({found['off_by']:+.4f})",
                f"{found['worst_answer']:.4f}",
                percent(found["attended_fraction"]),
                _fixed(found["same_worst_case"]["worst_bucket"]),
                percent(whole["attended_fraction"]),
                _fixed(whole["same_worst_case"]["worst_bucket"]),
            )
        )
    head = ("asked", "reached", "worst answer", "attended", "fixed budget", "from the start", "fixed budget")
    plan = record["plan"]
    return (
        f"{record['targets'][0]['whole']['answers']} questions over texts of {plan['shortest']:,} to "
        f"{plan['longest']:,} tokens, asked with `min_recall` and with fixed budgets. *Reached* is the recall of nine "
        f"in ten answers in the worst of the buckets, after {plan['warm_up']} answers of each; *fixed budget* is the "
        "one with the same worst case, and what it attends. The head plan was made by "
        f"{record['served']['plan']['method']}.\n\n"
        f"{markdown(head, rows)}\n"
        f"![recall held, and its cost](../docs/measurements/{file.removesuffix('.json')}.png)\n\n"
        f"{origin(record, file, '../docs/measurements')}"
    )


def gateway(record: Record, file: str) -> str:
    """What the gateway adds to the first token, and what it holds."""
    rows = [
        (
            f"{line['prompt_characters']:,}",
            str(line["at_once"]),
            *(f"{line[p]['added_ms']:.2f} ms" for p in ("p50", "p99")),
        )
        for line in record["first_token"]
    ]
    streams, mix = record["streams"], record["mix"]
    saw = mix["clients_saw"]
    return (
        "Added to the time to first token, against asking the same scripted engine directly, in turns:\n\n"
        f"{markdown(('prompt, characters', 'clients at once', 'p50', 'p99'), rows)}\n"
        f"{streams['streams']} streams at once: {streams['chunks_received']:,} of "
        f"{streams['chunks_expected']:,} chunks arrived, the gap between two was "
        f"{milliseconds(streams['gap_seconds']['p99'])} at p99 where the engine pauses "
        f"{milliseconds(streams['pause_seconds'])}. {mix['requests']:,} mixed requests to {mix['engines']} engines, "
        f"killed {mix['kills']} times: {saw['answered']:,} answered, {saw['error']} errors, {saw['left']} clients "
        f"left, {saw['refused']} refused, {saw.get('wrong', 0)} with somebody else's answer; "
        f"{len(mix['problems'])} differences between these and the gateway's metrics.\n\n"
        f"{origin(record, file, '../docs/measurements')}"
    )


def _fixed(same: Record | None) -> str:
    return "-" if same is None else f"{same['budget']:.0f}: {percent(same['attended_fraction'])}"
