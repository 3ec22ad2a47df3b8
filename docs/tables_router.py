"""What was counted of replicas behind SGLang's router, one of which was killed."""

from __future__ import annotations

from table_text import Record, markdown, origin

PLACES = ("the killed engine", "the same, started again", "the other engine")


def router_engines(record: Record, file: str) -> str:
    """Requests to two engines with a model, one of them killed: what became of each, and whether it adds up."""
    saw, answers, killed = record["clients_saw"], record["answers"], record["killed"]
    rows = [
        (
            place,
            f"{process['received']:,}",
            f"{process['ended']:,}",
            f"{process['died_with']:,}" if "died_with" in process else "-",
            _counted(process["requests"]),
        )
        for place, process in zip(PLACES, record["processes"], strict=True)
    ]
    head = ("", "requests", "ended", "died with it", "its own count")
    compared = (
        f"{answers['as_alone']} of {answers['asked_again_alone']} answers that were asked again alone came word for "
        f"word, {len(answers['near_ties'])} from a near tie on"
    )
    return (
        f"{record['requests']:,} requests to {record['engines']} engines with {record['model']} on a core each, "
        f"{record['at_once']} at once: {record['chats']:,} chats and {record['requests'] - record['chats']:,} text "
        f"completions, {record['streams']:,} of them streams, prompts of up to "
        f"{record['prompt_tokens']['longest']:,} tokens, seven kinds of budgets. One engine was killed with "
        f"{record['open_at_the_kill']['streams']} streams and {record['open_at_the_kill']['whole_answers']} answers "
        f"in one piece open on it, and was in use again {killed['in_the_router_seconds']:.0f} s later. "
        f"{saw['answered']:,} were answered, {saw.get('error', 0)} streams ended in an error, {saw['left']} clients "
        f"left, {saw['refused']} were refused, {saw.get('hung', 0)} hung; the slowest took "
        f"{record['slowest_seconds']:.0f} s.\n\n"
        f"{markdown(head, rows)}\n"
        f"{answers['began_with_their_number']:,} answers began with the four digits that only their request had; "
        f"{compared}, {len(answers['parted_with_their_number'])} with their number but further from it than stock "
        f"SGLang is from itself; {len(answers['others'])} could not be told to be their own. Beside these, "
        f"{len(record['problems']) - len(answers['others'])} differences between what clients saw, the gateway's "
        "metrics, and the engines' logs and counters.\n\n"
        f"{origin(record, file, '../docs/measurements')}"
    )


def _counted(bounds: list[int]) -> str:
    low, counted, high = bounds
    return f"{counted:,}" if low == high else f"{counted:,} ({low:,} to {high:,})"
