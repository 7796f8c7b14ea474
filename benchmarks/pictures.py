"""Pictures of a run: the ratio to the fastest peer, and how the cost grows."""

import math
import pathlib
import textwrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from .harness import Row
from .results import Results
from .scaling import Panel, panels


_AHEAD, _BEHIND, _GREY = "#1f6fb4", "#c9622b", "#666666"
_STYLES = {
    ("pseudojvp", "QR()"): (_AHEAD, "-"),
    ("pseudojvp", "Normal(Cholesky())"): ("#2a9d8f", "-"),
    ("lineax", "QR()"): (_AHEAD, ":"),
    ("lineax", "Normal(Cholesky())"): ("#2a9d8f", ":"),
}


def draw(results: Results, folder: pathlib.Path) -> None:
    """Writes `benchmark_ratios.png` and `benchmark_scaling.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    ratios(results.main).savefig(folder / "benchmark_ratios.png", dpi=150)
    scaling(results.scaling).savefig(folder / "benchmark_scaling.png", dpi=150)


def ratios(rows: list[Row]) -> Figure:
    """A bar a job: the time of the fastest peer over that of our fastest solver."""
    rows = [row for row in rows if row.fastest_peer]
    figure = Figure(figsize=(10, 0.37 * len(rows) + 1.3), layout="constrained")
    axes = figure.subplots()
    places = list(range(len(rows)))[::-1]
    for place, row in zip(places, rows, strict=True):
        _bar(axes, place, row)
    axes.axvline(1, color="black", linewidth=0.8)
    _log_axis(axes)
    axes.set_yticks(places, [_wrapped(row.name) for row in rows], fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("← peer faster      time of the peer over ours      ours faster →")
    figure.suptitle(
        "Bars: the fastest peer of any library over our fastest solver. "
        "Circles: lineax over ours, the same kind of solver.",
        x=0.01,
        ha="left",
        fontsize=9.5,
        color=_GREY,
    )
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def _wrapped(name: str) -> str:
    return textwrap.fill(name.replace("`", ""), 46)


def _bar(axes: Axes, place: int, row: Row) -> None:
    peer = row.fastest_peer
    ratio = peer.over(row.our_fastest)
    color = _AHEAD if ratio >= 1 else _BEHIND
    axes.barh(place, ratio - 1, left=1, color=color, height=0.62)
    axes.annotate(
        f"{ratio:.2f}  {peer.library} {peer.name}",
        (1.01, place),
        xycoords=axes.get_yaxis_transform(),
        va="center",
        fontsize=8.5,
        color=color,
    )
    first = row.ours[0]
    for same in row.of("lineax", first.same):
        circle = {"markerfacecolor": "white", "markeredgecolor": _GREY, "markersize": 5}
        axes.plot(same.over(first), place, "o", **circle)


def _log_axis(axes: Axes) -> None:
    axes.set_xscale("log")
    lower, upper = axes.get_xlim()
    axes.set_xlim(min(0.9 * lower, 0.15), max(upper, 60))
    ticks = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.grid(axis="x", color="#e5e5e5", linewidth=0.7)
    axes.set_axisbelow(True)


def scaling(rows: list[Row]) -> Figure:
    """Small multiples, log-log: ours solid, lineax's dotted."""
    by_name = {row.name: row for row in rows}
    figure = Figure(figsize=(10, 7.2), layout="constrained")
    for axes, panel in zip(figure.subplots(2, 2).flat, panels, strict=True):
        _panel(axes, panel, [by_name[panel.name(size)] for size in panel.sizes])
    return figure


def _panel(axes: Axes, panel: Panel, rows: list[Row]) -> None:
    ends, hung = [], []
    for measurement in rows[0].measurements:
        library, name = measurement.library, measurement.name
        color, line = _STYLES.get((library, name), ("#8e44ad", "-"))
        times = [_median(row, library, name) for row in rows]
        for size, time in zip(panel.sizes, times, strict=True):
            if math.isnan(time):
                hung.append(f"{library} {name} hung at {size}")
        axes.loglog(panel.sizes, times, line, color=color, marker="o", markersize=3)
        ends.append((times[-1], f"{library} {name}", color))
    _label(axes, panel.sizes[-1], ends)
    axes.set_title("; ".join([panel.title, *hung]), fontsize=10, loc="left")
    axes.set_xlabel(panel.axis)
    axes.set_ylabel("milliseconds")
    axes.xaxis.set_major_locator(FixedLocator(panel.sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.7)


def _median(row: Row, library: str, name: str) -> float:
    """A gap in the line if it hung."""
    back = row.of(library, name)
    return back[0].median_ms if back else float("nan")


def _label(axes: Axes, right: float, ends: list[tuple[float, str, str]]) -> None:
    """Names at the ends of the lines, moved apart where they would overlap."""
    axes.figure.canvas.draw()
    height = axes.transData.transform((right, ends[0][0]))[1]
    gap = 13 * axes.figure.dpi / 72
    last = float("-inf")
    for time, name, color in sorted(end for end in ends if not math.isnan(end[0])):
        height = axes.transData.transform((right, time))[1]
        place = max(height, last + gap)
        last = place
        axes.annotate(
            name,
            (right, time),
            xytext=(6, (place - height) * 72 / axes.figure.dpi),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=color,
        )
