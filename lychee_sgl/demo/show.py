"""What the demo found, as tables on a terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from lychee_sgl.demo.asking import Pair, Table, counts

NOTHING = "-"


def percent(share: float | None) -> str:
    """A share in [0, 1] as a percentage."""
    return NOTHING if share is None else f"{share:.1%}"


def seconds(value: float | None) -> str:
    """A time in seconds, in milliseconds below one second."""
    if value is None:
        return NOTHING
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def yes(value: bool) -> str:
    """A word for a truth value."""
    return "yes" if value else "no"


def one_line(text: str) -> str:
    """An answer without line breaks and markup."""
    return escape(" ".join(text.split()))


def show_table(table: Table, console: Console) -> None:
    """Print one question at several budgets."""
    console.print(
        f"{table.context_tokens} tokens, the fact at {table.depth:.0%} of the text; "
        f"prefill {seconds(table.prefill_seconds)}, once for all rows",
        highlight=False,
    )
    console.print(f"{table.question} (expected: {table.expected})", markup=False, highlight=False)
    grid = Grid()
    for name in ("budget", "answer", "as dense?", "attended", "recall", "per token", "first token"):
        grid.add_column(name, justify="left" if name == "answer" else "right")
    for row in table.rows:
        grid.add_row(
            str(row.budget),
            one_line(row.answer),
            yes(row.as_dense),
            percent(row.attended_fraction),
            percent(row.recall),
            seconds(row.per_token_seconds),
            seconds(row.first_token_seconds),
        )
    console.print(grid)


def show_questions(pairs: Sequence[Pair], console: Console) -> None:
    """Print ten questions, each dense and at the default budget."""
    grid = Grid()
    for name in ("tokens", "depth", "expected", "dense", "default", "same?", "budget", "attended", "recall"):
        grid.add_column(name, justify="left" if name in ("dense", "default") else "right")
    for pair in pairs:
        grid.add_row(
            str(pair.context_tokens),
            f"{pair.depth:.0%}",
            pair.expected,
            one_line(pair.dense_answer),
            one_line(pair.default_answer),
            yes(pair.same_answer),
            str(pair.budget),
            percent(pair.attended_fraction),
            percent(pair.recall),
        )
    console.print(grid)
    found = counts(pairs)
    console.print(
        "{same_answer} of {questions} default answers are the dense answer ({same_text} word for word); "
        "with the expected number: {dense_correct} dense, {default_correct} default".format(**found),
        highlight=False,
    )
