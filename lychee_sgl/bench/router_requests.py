"""The mix of requests for real engines behind a router. Each asks to go on with a number that no other request has.

A model of any size copies digits that its prompt repeats, so an answer says whose it is. The numbers differ in their
first four digits: the shortest answer, four tokens, is enough to tell.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from lychee_sgl.heads.needles import needle_prompts

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MOST = 8_000
"""Requests; more would leave too few beginnings of four digits to choose from."""
TOLD = 4
"""Digits that tell whose an answer is."""
SHORTEST, LONGEST = 4, 24
"""Tokens of an answer."""
BUDGETS: tuple[dict[str, Any] | None, ...] = (
    None,
    {"budget": 64},
    {"budget": 512},
    {"budget": "dense"},
    {"budget": "auto"},
    {"mode": "ratio", "value": 0.5},
    {"mode": "top_p", "value": 0.95},
)
NOT_ALLOWED: dict[str, Any] = {"budget": 0}
EXAMPLE = "9015736"
"""Repeated in the first turn of every chat; a digit longer than the numbers asked for, and so none of them."""
_BEGINNINGS = [number for number in range(1_000, 10_000) if not EXAMPLE.startswith(str(number))]
SHARED = ((6, (100, 700)), (2, (1_350, 1_450)))
"""Documents that many requests begin with: how many, and their tokens."""
FRESH = {"medium": (150, 350), "long": (1_000, 1_400)}
"""Tokens of documents that one request alone has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request.

    Attributes:
        number: its place in the mix.
        kind: `short`, `shared`, `medium` or `long`.
        path: route.
        body: as it is sent.
        mark: the number it asks for.
        leave_chunks: the client leaves after so many chunks with text; 0: it stays.
        leave_seconds: the client leaves after this time; 0: it stays.
    """

    number: int
    kind: str
    path: str
    body: dict[str, Any]
    mark: str
    leave_chunks: int = 0
    leave_seconds: float = 0.0

    @property
    def stream(self) -> bool:
        """Whether the answer comes in chunks."""
        return bool(self.body["stream"])

    @property
    def not_allowed(self) -> bool:
        """Whether it has to be refused."""
        return self.body.get("lychee") == NOT_ALLOWED

    @property
    def leaves(self) -> bool:
        """Whether its client may leave before the end."""
        return bool(self.leave_chunks or self.leave_seconds)

    @property
    def tokens(self) -> int:
        """Tokens of its answer, which always reaches its limit."""
        return int(self.body["max_tokens"])

    @property
    def trace(self) -> str:
        """The header `traceparent` that every process passes on and the engine writes into its log."""
        return f"00-{self.number + 1:032x}-{1:016x}-01"


def number_of(trace: str) -> int:
    """Return the request's number out of its `traceparent`."""
    return int(trace.split("-")[1], 16) - 1


def mix(count: int, model: str, seed: int = 0) -> list[Asked]:
    """Draw the requests: the same for the same arguments.

    Args:
        count: how many.
        model: the engines' name of it.
        seed: everything that is drawn follows from it.

    Raises:
        ValueError: more than `MOST`.
    """
    if not 0 < count <= MOST:
        raise ValueError(f"requests is {count}; allowed: 1 to {MOST}")
    draw = random.Random(f"lychee-sgl router {seed}")
    marks = [f"{first}{draw.randrange(100):02d}" for first in draw.sample(_BEGINNINGS, count)]
    kinds = draw.choices(("short", "shared", "medium", "long"), weights=(75, 22, 2.4, 0.6), k=count)
    shared = [text for number, tokens in SHARED for text in _documents(number, tokens, seed)]
    fresh = {kind: iter(_documents(kinds.count(kind), tokens, seed + 1)) for kind, tokens in FRESH.items()}
    return [
        _asked(number, kind, draw.choice(shared) if kind == "shared" else next(fresh.get(kind, iter(())), ""), mark,
               model, draw)
        for number, (kind, mark) in enumerate(zip(kinds, marks, strict=True))
    ]  # fmt: skip


def _documents(count: int, tokens: tuple[int, int], seed: int) -> list[str]:
    found = needle_prompts(count, tokens=tokens, seed=seed, kind="evaluation") if count else ()
    return [prompt.document for prompt in found]


def _asked(number: int, kind: str, document: str, mark: str, model: str, draw: random.Random) -> Asked:
    path = draw.choice((CHAT, COMPLETIONS))
    front = f"Ticket {mark}.\n\n" if kind in FRESH else ""  # nobody else's prompt begins so
    # every token is text: an answer can be held against its tokens
    body: dict[str, Any] = {"model": model, "temperature": 0, "ignore_eos": True, "skip_special_tokens": False}
    if path == CHAT:
        before = f"{front}{document}\n\n" if document else ""
        body["messages"] = [
            {"role": "user", "content": f"{before}Repeat the number {EXAMPLE}."},
            {"role": "assistant", "content": EXAMPLE},
            {"role": "user", "content": f"Repeat the number {mark}."},
        ]
    else:
        body["prompt"] = f"{front}{document}\n\n" * bool(document) + f"Ticket {mark}. " * 3 + "Ticket "
    body |= {"max_tokens": draw.randint(SHORTEST, LONGEST), "stream": draw.random() < 0.6}
    if body["stream"] and draw.random() < 0.5:
        body["stream_options"] = {"include_usage": True}
    budget = draw.choice(BUDGETS)
    if budget is not None:
        body["lychee"] = budget
    chance, chunks, seconds = draw.random(), draw.randint(1, 3), draw.uniform(0.2, 2.0)
    if chance < 0.02:
        body["lychee"] = NOT_ALLOWED
        return Asked(number=number, kind=kind, path=path, body=body, mark=mark)
    if chance > 0.93:
        body["max_tokens"] = LONGEST
        leaving = {"leave_chunks": chunks} if body["stream"] else {"leave_seconds": seconds}
        return Asked(number=number, kind=kind, path=path, body=body, mark=mark, **leaving)
    return Asked(number=number, kind=kind, path=path, body=body, mark=mark)
