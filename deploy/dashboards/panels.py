"""What all dashboards share: a frame, three kinds of panels, and the shapes of PromQL that repeat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from grafana_foundation_sdk.builders import bargauge, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.builders.common import ReduceDataOptions, VizLegendOptions, VizTooltipOptions
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    TooltipDisplayMode,
    VisibilityMode,
    VizOrientation,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    AnyPanel = timeseries.Panel | stat.Panel | bargauge.Panel | dashboard.Row

SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
WINDOW: Final = "$__rate_interval"
TAG: Final = "lychee"
QUANTILES: Final = (0.5, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Query:
    """One expression and how its series are named in the legend."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Level:
    """From `value` upwards the colour is this one."""

    value: float
    colour: str


def frame(uid: str, title: str, description: str) -> dashboard.Dashboard:
    """Begin a dashboard: the last half hour, refreshed, with a choice of Prometheus and links to the others."""
    link = dashboard.DashboardLink("lychee").type(DashboardLinkType.DASHBOARDS).tags([TAG])
    return (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .time("now-30m", "now")
        .refresh("10s")
        .timezone("browser")
        .readonly()
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(link.as_dropdown(False).keep_time(True).include_vars(True))
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    )


def _targets(queries: Sequence[Query], *, instant: bool) -> list[prometheus.Dataquery]:
    found = []
    for number, query in enumerate(queries):
        target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(chr(ord("A") + number))
        found.append(target.instant() if instant else target.range())
    return found


def _thresholds(levels: Sequence[Level]) -> dashboard.ThresholdsConfig:
    steps = [Threshold(value=None, color="text"), *(Threshold(value=at.value, color=at.colour) for at in levels)]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def graph(
    title: str, description: str, unit: str, *queries: Query, width: int = 12, largest: float | None = None
) -> timeseries.Panel:
    """Draw series over time, from zero; `largest` is the end of the axis."""
    legend = VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM).show_legend(True)
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .min(0)
        .line_width(2)
        .fill_opacity(5)
        .show_points(VisibilityMode.NEVER)
        .legend(legend)
        .tooltip(VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
        .height(8)
        .span(width)
        .targets(list(_targets(queries, instant=False)))
    )
    return panel if largest is None else panel.max(largest)


def number(
    title: str, description: str, unit: str, query: Query, *levels: Level, decimals: int = 2, width: int = 4
) -> stat.Panel:
    """Show the latest value, large, with its course behind it."""
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .decimals(decimals)
        .no_value("no data")
        .thresholds(_thresholds(levels))
        .graph_mode(BigValueGraphMode.AREA)
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
        .height(4)
        .span(width)
        .targets(list(_targets([query], instant=False)))
    )


def bars(title: str, description: str, unit: str, *queries: Query, width: int = 12) -> bargauge.Panel:
    """Show the latest value of each series as a bar."""
    return (
        bargauge.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .min(0)
        .thresholds(_thresholds([]))
        .orientation(VizOrientation.HORIZONTAL)
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
        .height(8)
        .span(width)
        .targets(list(_targets(queries, instant=True)))
    )


def row(title: str) -> dashboard.Row:
    """Head the panels that follow."""
    return dashboard.Row(title)


def rate(metric: str, by: str = "") -> str:
    """Give what is added to a counter in a second, in all or by labels."""
    return f"{_sum(by)}(rate({metric}[{WINDOW}]))"


def ratio(above: str, below: str, by: str = "") -> str:
    """Give what is added to one counter over what is added to another; no value while that is nothing."""
    return f"{rate(above, by)} / ({rate(below, by)} > 0)"


def mean(histogram: str, by: str = "") -> str:
    """Give the mean of a histogram's observations."""
    return ratio(f"{histogram}_sum", f"{histogram}_count", by)


def quantile(at: float, histogram: str, by: str = "") -> str:
    """Give a quantile of a histogram's observations."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({at:g}, {rate(f'{histogram}_bucket', labels)})"


def quantiles(histogram: str) -> list[Query]:
    """Give median, 95th and 99th percentile of a histogram."""
    return [Query(quantile(at, histogram), f"p{at * 100:g}") for at in QUANTILES]


def _sum(by: str) -> str:
    return f"sum by ({by}) " if by else "sum"


def add(board: dashboard.Dashboard, panels: Sequence[AnyPanel]) -> dashboard.Dashboard:
    """Put panels and rows on a dashboard, numbered, from left to right and from top to bottom."""
    for number_of_panel, panel in enumerate(panels, start=1):
        if isinstance(panel, dashboard.Row):
            board.with_row(panel.id(number_of_panel))
        else:
            board.with_panel(panel.id(number_of_panel))
    return board
