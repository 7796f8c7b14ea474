"""Pictures with matplotlib, of the extra `plot`: imported at the first one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import optimistix as optx

from .._base.optional import import_optional
from .data_sets import for_each, listed
from .model import Observations
from .statistics import VarProPrediction


_MOST_COLUMNS = 6
_COLOURS = tuple(f"C{i}" for i in range(10))


def axes_of(axes: Any, caller: str) -> Any:
    """`axes`, or those of a new figure."""
    if axes is not None:
        return axes
    pyplot = import_optional("matplotlib.pyplot", caller, "plot")
    return pyplot.subplots(layout="constrained")[1]


def plot_fit(
    fit: Any,
    axes: Any,
    band: Any,
    curve: tuple[Any, Any] | None,
    x: Any,
    columns: Sequence[int] | None,
    absolute_sigma: bool,
) -> Any:
    """Data, fit and band above, weighted residuals below; a pair for each data set."""
    _, args, observations = fit._context()
    several = type(observations) is tuple
    sets = listed(observations)
    axes = _pairs_of_axes(axes, len(sets))
    if not several:
        args = (args,)
    xs = for_each(x, observations, "VarProFit.plot(x=...)")
    at = (None,) * len(sets)
    if curve is not None:
        name = "VarProFit.plot(curve=(args, x))"
        abscissae = for_each(curve[1], observations, name)
        at = zip(listed(curve[0]), abscissae if several else (abscissae,), strict=True)
    of_each = zip(
        sets,
        listed(fit.residual),
        args,
        axes.T,
        listed(band),
        at,
        xs if several else (xs,),
        strict=True,
    )
    for of_set in of_each:
        _plot_set((columns, absolute_sigma), *of_set)
    if several:
        for number, upper in enumerate(axes[0]):
            title = upper.get_title(loc="left")
            name = f"data set {number}" + (f", {title}" if title else "")
            upper.set_title(name, loc="left", fontsize=9)
    return axes if several else axes[:, 0]


def _plot_set(how, observations, residual, args, axes, band, curve, x) -> None:
    columns, absolute_sigma = how
    data = np.asarray(observations.data)
    x = _abscissa(x, args, len(data))
    shown = _columns(columns, data.shape[1])
    upper, lower = axes
    bands = (band, x) if curve is None else (curve[0], _at(curve))
    residual = np.asarray(residual).reshape(data.shape)
    errors = _deviations(observations) if absolute_sigma else None
    counted = _counted(observations)
    for place, column in enumerate(shown):
        of_column = lambda array, column=column: _column(array, column)
        for part, (take, mark, line) in _parts(residual).items():
            colour = _COLOURS[place % len(_COLOURS)]
            label = " ".join([f"column {column}"] * (data.shape[1] > 1) + part.split())
            style = {"color": colour, "marker": mark, "linestyle": "none", "ms": 4}
            _dots(upper, x, take(data[:, column]), counted[:, column], style, label)
            _dots(lower, x, take(residual[:, column]), counted[:, column], style, None)
            if errors is not None:
                bar = errors[:, column]
                of_bar = {"ecolor": colour, "fmt": "none", "lw": 0.8}
                upper.errorbar(x, take(data[:, column]), bar, **of_bar)
            prediction, at = bands
            order = np.argsort(at, kind="stable")
            value = take(of_column(prediction.value))[order]
            upper.plot(at[order], value, color=colour, ls=line, lw=1.5)
            if prediction.lower is not None:
                edges = of_column(prediction.lower), of_column(prediction.upper)
                low, high = (np.asarray(edge)[order] for edge in edges)
                upper.fill_between(at[order], low, high, color=colour, alpha=0.25, lw=0)
    _finish(upper, lower, observations.weights is not None, shown, data.shape[1])


def _pairs_of_axes(axes: Any, sets: int) -> np.ndarray:
    """`(2, sets)`."""
    if axes is None:
        pyplot = import_optional("matplotlib.pyplot", "VarProFit.plot()", "plot")
        heights = {"height_ratios": [3, 1]}
        options = {"sharex": "col", "layout": "constrained", "gridspec_kw": heights}
        if sets > 1:
            options["figsize"] = (1 + 4 * sets, 4.8)
        return pyplot.subplots(2, sets, squeeze=False, **options)[1]
    if np.size(axes) != 2 * sets:
        of_each = "" if sets == 1 else f" for each of {sets} data sets"
        shape = "2" if sets == 1 else f"2, {sets}"
        raise ValueError(
            f"`VarProFit.plot(axes=...)` got {np.size(axes)} axes. Pass two{of_each}, "
            "for data and residuals, such as of "
            f"`matplotlib.pyplot.subplots({shape}, sharex='col')`."
        )
    return np.reshape(np.asarray(axes, dtype=object), (2, sets))


def _abscissa(x: Any, args: Any, rows: int) -> np.ndarray:
    """`x`, or `args` if that is one number for each row, or the number of the row."""
    if x is None:
        shape, dtype = getattr(args, "shape", None), getattr(args, "dtype", None)
        numbers = dtype is not None and np.dtype(dtype).kind in "fiu"
        return np.asarray(args) if numbers and shape == (rows,) else np.arange(rows)
    if np.shape(x) != (rows,):
        raise ValueError(
            f"`VarProFit.plot(x=...)` got an array of shape {np.shape(x)} for data of "
            f"{rows} rows. Pass one number for each row."
        )
    return np.asarray(x)


def _at(curve: tuple[VarProPrediction, Any]) -> np.ndarray:
    prediction, x = curve
    rows = len(prediction.value)
    if np.shape(x) != (rows,):
        raise ValueError(
            f"`VarProFit.plot(curve=(args, x))` got x of shape {np.shape(x)} for "
            f"{rows} rows at these args. Pass one number for each row."
        )
    return np.asarray(x)


def _columns(columns: Sequence[int] | None, count: int) -> Sequence[int]:
    if columns is None:
        return range(min(count, _MOST_COLUMNS))
    wrong = [column for column in columns if not 0 <= column < count]
    if wrong:
        raise ValueError(
            f"`VarProFit.plot(columns=...)` got {wrong} for data of {count} columns. "
            f"Pass numbers from 0 to {count - 1}."
        )
    return columns


def _column(array: Any, column: int) -> np.ndarray:
    array = np.asarray(array)
    return array if array.ndim == 1 else array[:, column]


def _parts(residual: np.ndarray) -> dict[str, tuple]:
    """What is drawn of each column: how it is taken, its mark, its line."""
    if not np.iscomplexobj(residual):
        return {"": (np.real, "o", "-")}
    return {"real": (np.real, "o", "-"), "imaginary": (np.imag, "s", "--")}


def _counted(observations: Observations) -> np.ndarray:
    return np.broadcast_to(_weights(observations) != 0, observations.data.shape)


def _deviations(observations: Observations) -> np.ndarray:
    """1/weights, and zero where that is infinite."""
    weights = _weights(observations)
    deviations = np.where(weights != 0, 1 / np.where(weights != 0, weights, 1), 0)
    return np.broadcast_to(deviations, observations.data.shape)


def _weights(observations: Observations) -> np.ndarray:
    if observations.weights is None:
        return np.ones((1, 1))
    weights = np.asarray(observations.weights)
    return weights if weights.ndim == 2 else weights[:, None]


def _dots(axes, x, y, counted, style: dict, label: str | None) -> None:
    """Those of weight zero are hollow and pale."""
    axes.plot(x[counted], y[counted], label=label, **style)
    if not np.all(counted):
        axes.plot(x[~counted], y[~counted], mfc="none", alpha=0.5, **style)


def _finish(upper, lower, weighted: bool, shown: Sequence[int], count: int) -> None:
    lower.axhline(0, color="0.5", lw=0.8, zorder=0)
    upper.set_ylabel("data and fit")
    lower.set_ylabel("W (data − fit)" if weighted else "data − fit")
    if len(shown) < count:
        upper.set_title(f"{len(shown)} of {count} columns", loc="left", fontsize=9)
    if any(upper.get_legend_handles_labels()[1]):
        upper.legend(frameon=False)


def plot_costs(starts: Any, axes: Any) -> Any:
    """The costs of many starts in their order."""
    axes = axes_of(axes, "VarProStarts.plot()")
    cost = np.asarray(starts.cost)
    failed = np.asarray(starts.result != optx.RESULTS.successful)
    number, count = np.arange(1, len(cost) + 1), int(starts.count)
    reached = number <= count
    style = {"marker": "o", "linestyle": "none", "ms": 5, "color": "C0"}
    axes.plot(number[reached], cost[reached], label=f"least cost: {count}", **style)
    other = ~reached & ~failed
    if np.any(other):
        label = f"higher: {np.sum(other)}"
        axes.plot(number[other], cost[other], mfc="none", label=label, **style)
    if np.any(failed):
        style |= {"marker": "x", "color": "C3"}
        unknown = np.sum(failed & np.isnan(cost))
        label = f"failed: {np.sum(failed)}"
        label += f", {unknown} of them at no cost" if unknown else ""
        axes.plot(number[failed], cost[failed], label=label, **style)
    known = cost[np.isfinite(cost)]
    if known.size and np.min(known) > 0:
        axes.set_yscale("log")
    axes.set(xlabel="starts in the order of their cost", ylabel="cost")
    axes.legend(frameon=False)
    return axes


def plot_profile(profile: Any, axes: Any) -> Any:
    """Signed roots over the values, and the interval."""
    axes = axes_of(axes, "VarProProfile.plot()")
    axes.plot(profile.values, profile.root, "o-", ms=3, color="C0", label="profile")
    ends = [profile.linear_lower, profile.linear_upper]
    t = profile.quantile
    axes.plot(ends, [-t, t], "--", color="0.5", label="linear")
    for level, end in ((-t, profile.lower), (t, profile.upper)):
        axes.axhline(level, color="0.8", lw=0.8, zorder=0)
        if np.isfinite(end):
            axes.axvline(end, color="C0", lw=0.8, ls=":")
    axes.set_xlabel(profile.name, parse_math=False)
    axes.set_ylabel("signed root of the cost")
    axes.set_ylim(-1.5 * t, 1.5 * t)
    # Where an end is not known, three linear half widths are shown.
    half = 3 * (profile.value - profile.linear_lower)
    low, high = (
        end if np.isfinite(end) else profile.value + sign * half
        for sign, end in ((-1, profile.lower), (1, profile.upper))
    )
    margin = 0.2 * (high - low)
    axes.set_xlim(low - margin, high + margin)
    axes.legend(frameon=False)
    return axes
