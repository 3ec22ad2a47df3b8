"""A counter of things that come and go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Counter
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

_AWAY = 256  # counts of things that are gone, at most; addresses that change with every start would else pile up


class PresentCounter(Collector):
    """A counter that shows what is there now.

    What is gone leaves the exposition, as a series without a source should, and keeps its count: should it return, the
    series goes on where it was. A counter that began again at zero would lose what was counted since the last scrape.
    """

    def __init__(self, name: str, documentation: str, labels: Sequence[str], *, registry: CollectorRegistry) -> None:
        """Nothing is there yet; the arguments are those of `prometheus_client.Counter`."""
        self._counter = Counter(name, documentation, labels, registry=None)
        self._labels = tuple(labels)
        self._there: set[tuple[str, ...]] = set()
        self._away: dict[tuple[str, ...], None] = {}  # the longest away first
        registry.register(self)

    def appeared(self, *values: str) -> None:
        """What has these label values is there, maybe again."""
        self._counter.labels(*values)
        self._away.pop(values, None)
        self._there.add(values)

    def gone(self, *values: str) -> None:
        """What has these label values is there no more."""
        if values not in self._there:
            return
        self._there.remove(values)
        self._away[values] = None
        if len(self._away) > _AWAY:
            longest = next(iter(self._away))
            del self._away[longest]
            self._counter.remove(*longest)

    def inc(self, *values: str) -> None:
        """Count one more."""
        self._counter.labels(*values).inc()

    def describe(self) -> Iterable[Metric]:
        """See `prometheus_client.Counter`."""
        return self._counter.describe()

    def collect(self) -> Iterable[Metric]:
        """Give the series of what is there."""
        families = list(self._counter.collect())
        for family in families:
            family.samples = [
                sample
                for sample in family.samples
                if tuple(sample.labels[name] for name in self._labels) in self._there
            ]
        return families
