"""The demo's work: which questions are asked how, and what is kept of the answers."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from lychee_sgl.demo.client import Budget, Gateway, Reply
from lychee_sgl.demo.compare import has_number, same_answer
from lychee_sgl.demo.errors import DemoError
from lychee_sgl.demo.questions import Lengths, lengths, probe, table_question, ten_questions
from lychee_sgl.heads.needles import NeedlePrompt

BUDGETS: Final[tuple[Budget, ...]] = ("dense", 2048, 1024, 512)
ANSWER_TOKENS: Final = 48
TIMED_TOKENS: Final = 48  # of the run that is timed: more than most answers have
DEPTH_DIGITS: Final = 3

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The table's question at one budget; times are of a second run that goes on past the end of the answer."""

    budget: Budget
    answer: str
    correct: bool
    as_dense: bool
    attended_fraction: float | None
    recall: float | None
    per_token_seconds: float | None
    first_token_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One question at several budgets, all on the same cached prompt."""

    question: str
    expected: str
    depth: float
    context_tokens: int
    prefill_seconds: float
    timed_tokens: int
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One question, asked dense and without the field `lychee`."""

    question: str
    expected: str
    depth: float
    context_tokens: int
    dense_answer: str
    default_answer: str
    dense_correct: bool
    default_correct: bool
    same_answer: bool
    same_text: bool
    budget: int | str | None
    attended_fraction: float | None
    recall: float | None


def measure_lengths(gateway: Gateway, model: str, window: int) -> Lengths:
    """Find out how long the texts can be, with one short request.

    Raises:
        DemoError: the model's window is too small.
    """
    try:
        return lengths(probe_tokens=gateway.count_tokens(model, probe().text), window=window)
    except ValueError as error:
        raise DemoError(str(error)) from error


def ask_table(gateway: Gateway, model: str, found: Lengths, say: Say) -> Table:
    """Ask one question about the longest text at every budget.

    Args:
        gateway: where.
        model: the model's name.
        found: how long texts can be.
        say: gets a line for each thing begun.
    """
    prompt = table_question(found)
    say("reading the text (its prefill is shared by all that follows)")
    first = gateway.ask(model, prompt.text, budget="dense", max_tokens=1)
    replies, timed = [], []
    for budget in BUDGETS:
        say(f"asking at budget {budget}")
        replies.append(gateway.ask(model, prompt.text, budget=budget, max_tokens=ANSWER_TOKENS))
        say(f"timing budget {budget}")
        timed.append(gateway.ask(model, prompt.text, budget=budget, max_tokens=TIMED_TOKENS, ignore_eos=True))
    dense = replies[0].text
    rows = zip(BUDGETS, replies, timed, strict=True)
    return Table(
        question=prompt.question,
        expected=prompt.answer,
        depth=round(prompt.depth, DEPTH_DIGITS),
        context_tokens=replies[0].prompt_tokens,
        prefill_seconds=first.first_token_seconds,
        timed_tokens=TIMED_TOKENS,
        rows=tuple(_row(prompt, budget, dense, reply, timing) for budget, reply, timing in rows),
    )


def _row(prompt: NeedlePrompt, budget: Budget, dense: str, reply: Reply, timing: Reply) -> Row:
    return Row(
        budget=budget,
        answer=reply.text,
        correct=has_number(prompt.answer, reply.text),
        as_dense=same_answer(prompt.answer, dense, reply.text),
        attended_fraction=reply.lychee["attended_fraction"],
        recall=reply.lychee["recall"],
        per_token_seconds=timing.per_token_seconds,
        first_token_seconds=timing.first_token_seconds,
    )


def ask_questions(gateway: Gateway, model: str, found: Lengths, say: Say) -> tuple[Pair, ...]:
    """Ask ten questions, each dense and at the default budget; arguments as in `ask_table`."""
    pairs = []
    prompts = ten_questions(found)
    for number, prompt in enumerate(prompts, 1):
        say(f"question {number} of {len(prompts)}, dense")
        dense = gateway.ask(model, prompt.text, budget="dense", max_tokens=ANSWER_TOKENS)
        say(f"question {number} of {len(prompts)}, default budget")
        default = gateway.ask(model, prompt.text, budget=None, max_tokens=ANSWER_TOKENS)
        pairs.append(_pair(prompt, dense, default))
    return tuple(pairs)


def _pair(prompt: NeedlePrompt, dense: Reply, default: Reply) -> Pair:
    return Pair(
        question=prompt.question,
        expected=prompt.answer,
        depth=round(prompt.depth, DEPTH_DIGITS),
        context_tokens=dense.prompt_tokens,
        dense_answer=dense.text,
        default_answer=default.text,
        dense_correct=has_number(prompt.answer, dense.text),
        default_correct=has_number(prompt.answer, default.text),
        same_answer=same_answer(prompt.answer, dense.text, default.text),
        same_text=dense.text == default.text,
        budget=default.lychee["budget"],
        attended_fraction=default.lychee["attended_fraction"],
        recall=default.lychee["recall"],
    )


def counts(pairs: Sequence[Pair]) -> dict[str, int]:
    """How many of the questions had the same answer, the same text, and the expected number."""
    return {
        "questions": len(pairs),
        "same_answer": sum(pair.same_answer for pair in pairs),
        "same_text": sum(pair.same_text for pair in pairs),
        "dense_correct": sum(pair.dense_correct for pair in pairs),
        "default_correct": sum(pair.default_correct for pair in pairs),
    }


def record(table: Table, pairs: Sequence[Pair]) -> dict[str, Any]:
    """What was found, as it goes into a JSON file."""
    found: dict[str, Any] = {"table": asdict(table)}
    if pairs:
        found |= {"counts": counts(pairs), "questions": [asdict(pair) for pair in pairs]}
    return found
