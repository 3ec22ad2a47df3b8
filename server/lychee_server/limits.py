"""What one caller may take: requests and tokens a minute, requests at one time."""

from __future__ import annotations

import contextlib
import math
import time
from typing import TYPE_CHECKING, Literal, Protocol

from lychee_server.errors import TooManyRequests

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from lychee_server.keys import Caller
    from lychee_server.metrics import GatewayMetrics

_MINUTE = 60.0
_BYTES_PER_TOKEN = 4
"""Of English text. A reservation only: what an answer really took is settled when it is complete."""
_IN_FLIGHT_RETRY = 1.0


class TierLimits(Protocol):
    """The part of a policy's tier that is needed here; None: unlimited."""

    @property
    def priority(self) -> int:
        """Requests of a higher one leave the queue first."""

    @property
    def requests_per_minute(self) -> int | None:
        """Requests of each key."""

    @property
    def tokens_per_minute(self) -> int | None:
        """Prompt and generated tokens of each key."""

    @property
    def max_in_flight(self) -> int | None:
        """Requests of each key at one time."""


class TokenBucket:
    """So much a minute, a minute's worth at once at most. Can go into debt, which is paid off first.

    The limiters of the libraries (`limits`, `pyrate-limiter`, `aiolimiter`) cannot take back what was reserved and
    not used, nor go into debt for what an answer took beyond it; both are needed to count tokens.
    """

    def __init__(self, per_minute: float, now: float) -> None:
        """Start full."""
        self._per_minute = per_minute
        self._level = per_minute
        self._at = now

    def resize(self, per_minute: float, now: float) -> None:
        """Change the rate; what has been taken stays taken."""
        self._fill(now)
        self._level += per_minute - self._per_minute
        self._per_minute = per_minute

    def wait(self, amount: float, now: float) -> float:
        """Return the seconds until `amount` is there; more than a whole minute's worth waits for a full bucket."""
        self._fill(now)
        missing = min(amount, self._per_minute) - self._level
        return max(0.0, missing * _MINUTE / self._per_minute)

    def take(self, amount: float) -> None:
        """Take an amount, there or not; a negative one is given back."""
        self._level -= amount

    def _fill(self, now: float) -> None:
        self._level = min(self._per_minute, self._level + (now - self._at) * self._per_minute / _MINUTE)
        self._at = now


class _Account:
    """What one caller has taken."""

    def __init__(self) -> None:
        self.requests: TokenBucket | None = None
        self.tokens: TokenBucket | None = None
        self.in_flight = 0


class Lease:
    """What one request holds of its caller's limits.

    Attributes:
        reserved: tokens, by the size of its body.
    """

    def __init__(self, account: _Account, reserved: float) -> None:
        self._account = account
        self.reserved = reserved

    def settle(self, tokens: float) -> None:
        """Say what the request really took; called once, at its end, whatever became of it."""
        if self._account.tokens is not None:
            self._account.tokens.take(tokens - self.reserved)


class Limits:
    """The accounts of all callers. They number as many as there are keys."""

    def __init__(
        self,
        tier_of: Callable[[Caller], TierLimits],
        metrics: GatewayMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take where limits come from; they are looked up for every request, so a reload counts at once."""
        self._tier_of = tier_of
        self._metrics = metrics
        self._clock = clock
        self._accounts: dict[str, _Account] = {}

    def priority(self, caller: Caller) -> int:
        """Return the priority of the caller's tier."""
        return self._tier_of(caller).priority

    def keep(self, ids: Collection[str]) -> None:
        """Forget the accounts of all callers but these; who has a request in flight is forgotten another time."""
        for name in [name for name, account in self._accounts.items() if name not in ids and not account.in_flight]:
            del self._accounts[name]

    def check(self, caller: Caller) -> None:
        """Refuse who could begin no request at all now, before anything is done for it; nothing is taken.

        Raises:
            TooManyRequests: as `open` would.
        """
        self._account(caller, 0)

    @contextlib.contextmanager
    def open(self, caller: Caller, body_bytes: int) -> Iterator[Lease]:
        """Take a request's share for the time of a block.

        Args:
            caller: whose request it is.
            body_bytes: the size of its body: tokens are reserved for it until they are known.

        Raises:
            TooManyRequests: a limit is reached; nothing has been taken. `retry_after` is when it would do.
        """
        account, reserved = self._account(caller, body_bytes)
        if account.tokens is not None:
            account.tokens.take(reserved)
        if account.requests is not None:
            account.requests.take(1)
        account.in_flight += 1
        try:
            yield Lease(account, reserved)
        finally:
            account.in_flight -= 1

    def _account(self, caller: Caller, body_bytes: int) -> tuple[_Account, float]:
        """Return a caller's account, and what a body of this size reserves; raises as `open`."""
        tier, now = self._tier_of(caller), self._clock()
        account = self._accounts.setdefault(caller.id, _Account())
        account.requests = _bucket(account.requests, tier.requests_per_minute, now)
        account.tokens = _bucket(account.tokens, tier.tokens_per_minute, now)
        if tier.max_in_flight is not None and account.in_flight >= tier.max_in_flight:
            self._metrics.refused("concurrency_limit")
            raise TooManyRequests(
                f"{tier.max_in_flight} requests of this key are in flight already, which is its limit",
                code="concurrency_limit_exceeded",
                retry_after=_IN_FLIGHT_RETRY,
            )
        if account.requests is not None:
            self._check(account.requests.wait(1, now), f"{tier.requests_per_minute} requests", "requests_limit")
        if account.tokens is None:
            return account, 0.0
        reserved = float(math.ceil(body_bytes / _BYTES_PER_TOKEN))
        self._check(account.tokens.wait(reserved, now), f"{tier.tokens_per_minute} tokens", "tokens_limit")
        return account, reserved

    def _check(self, wait: float, limit: str, reason: Literal["requests_limit", "tokens_limit"]) -> None:
        if wait > 0:
            self._metrics.refused(reason)
            raise TooManyRequests(
                f"the limit of this key, {limit} a minute, is reached; try again in {math.ceil(wait)} seconds",
                code=f"{reason}_exceeded",
                retry_after=wait,
            )


def _bucket(bucket: TokenBucket | None, per_minute: int | None, now: float) -> TokenBucket | None:
    if per_minute is None:
        return None
    if bucket is None:
        return TokenBucket(per_minute, now)
    bucket.resize(per_minute, now)
    return bucket
