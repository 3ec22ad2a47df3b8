"""How long to wait before a service is started again."""

from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class Backoff:
    """Doubling pauses with a ceiling; a long enough healthy spell starts them over.

    Attributes:
        first: seconds before the first restart.
        ceiling: longest pause.
        healthy_after: seconds of health after which the next failure counts as the first again.
    """

    first: float = 1.0
    ceiling: float = 30.0
    healthy_after: float = 60.0
    _failures: int = 0
    _healthy_since: float | None = None

    def healthy(self, now: float) -> None:
        """The service works (again) since `now`; repeated calls keep the first time."""
        if self._healthy_since is None:
            self._healthy_since = now

    def failed(self, now: float) -> float:
        """The service ended.

        Args:
            now: the time, in seconds, on the same clock as in `healthy`.

        Returns:
            Seconds to wait before the next start.
        """
        if self._healthy_since is not None and now - self._healthy_since >= self.healthy_after:
            self._failures = 0
        self._healthy_since = None
        self._failures += 1
        # no power beyond what the ceiling needs: a service may fail for weeks
        return min(self.ceiling, self.first * 2.0 ** min(self._failures - 1, 30))
