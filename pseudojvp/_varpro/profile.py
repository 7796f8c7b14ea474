"""Intervals from the profile of the cost, where linear propagation is too optimistic."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.flatten_util as jfu
import numpy as np

from .curve import Curve, POINTS, rounding_of, Subject
from .data_sets import listed
from .failure import words_of
from .held import Target
from .plot import plot_profile
from .statistics import VarProStatistics
from .summary import all_names, held_of, place_of_coefficient, quantile_of


_TOLERANCE = 1e-6  # of an end, over its distance from the estimate
_ROUNDS = 24
_FIRST = np.arange(1, POINTS + 1) / 4  # in units of the linear half width
_FURTHER = 1.5 ** np.arange(1, POINTS + 1)
_FURTHEST = 1e5


@dataclasses.dataclass(frozen=True, eq=False)
class VarProProfile:
    """What `VarProFit.profile(name)` returns, on the host.

    - `name`, `value`: the name of the parameter, and its estimate.
    - `lower`, `upper`: the interval; ∓inf if the cost never rises enough, a bound if that
        is reached first, NaN if no fit gives the end.
    - `confidence`, `quantile`: the probability of the interval, and the t at which |root|
        ends it.
    - `linear_lower`, `linear_upper`: value ∓ t · standard deviation, as in `summary()`.
    - `values`: `(p,)`, the values at which the parameter was held, ascending, including
        the estimate.
    - `cost`: `(p,)`, the least cost at each value, over all other parameters.
    - `root`: `(p,)`, the signed root ± √(2 (cost − least cost)/s²) (the profile t of
        Bates & Watts): a straight line through zero for a linear model.
    - `theta`: `(p, q)`, the θ of these fits in the order of `ravel_pytree`.
    - `warnings`: a list of sentences.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    t = jnp.linspace(0.0, 4.0, 50)
    decay = lambda rate, t: jnp.exp(-rate * t)[:, None]
    y = 2 * jnp.exp(-0.5 * t) + 0.01 * jnp.cos(40 * t)
    fit = pj.varpro(decay, y, jnp.array(0.4), t)
    profile = fit.profile("theta")
    print(profile.lower < 0.5 < profile.upper)  # True
    ```
    """

    name: str
    value: float
    lower: float
    upper: float
    confidence: float
    quantile: float
    linear_lower: float
    linear_upper: float
    values: np.ndarray
    cost: np.ndarray
    root: np.ndarray
    theta: np.ndarray
    warnings: list[str]

    def plot(self, axes: Any = None) -> Any:
        """Draws the signed root over the value, and the ends of the interval.

        The dashed line is that of linear propagation. Needs matplotlib, from the extra
        `plot`.

        **Arguments:**

        - `axes`: matplotlib axes. Defaults to those of a new figure of
            `matplotlib.pyplot`.

        **Returns:** the axes.
        """
        return plot_profile(self, axes)


class Settings(NamedTuple):
    confidence: float
    absolute_sigma: bool
    bounds: Any
    values: Any
    batch_size: int
    throw: bool


def profile(
    fit: Any,
    name: str,
    statistics: VarProStatistics,
    varpro: Callable,
    settings: Settings,
) -> VarProProfile:
    """The profile of the number of that name."""
    caller = f"`VarProFit.profile({name!r})`"
    held = held_of(fit)
    place = _place(fit, name, held, caller, settings)
    freedom = int(statistics.degrees_of_freedom)
    if freedom <= 0 and not settings.absolute_sigma:
        raise ValueError(
            f"{caller} was called of a fit with {freedom} degrees of freedom, from which "
            "σ cannot be estimated. Pass `absolute_sigma=True` if the weights are 1/σ."
        )
    subject = _subject(fit, place, len(held), statistics)
    exact = not settings.absolute_sigma and float(fit.cost) <= rounding_of(fit)
    if exact or not subject.deviation > 0:
        raise ValueError(
            f"{caller} got a standard deviation of {subject.deviation}: the data do not "
            "determine it, or are met exactly. There is no interval to look for; "
            "`summary()` warns of more."
        )
    variance = 1.0 if settings.absolute_sigma else float(statistics.reduced_chi_square)
    sizes = np.asarray(statistics.theta_standard_deviation)
    curve = Curve(fit, subject, variance, varpro, held, sizes, settings)
    quantile = quantile_of(settings.confidence, freedom, settings.absolute_sigma)
    half = quantile * subject.deviation
    ends, told = _ends(curve, quantile, half)
    if settings.throw and any(math.isnan(end) for end in ends):
        raise RuntimeError(
            f"{caller} {' '.join(told)} With `throw=False` this is among `warnings` "
            "instead."
        )
    values, cost, root, theta = curve.known()
    return VarProProfile(
        name=name,
        value=subject.value,
        lower=ends[0],
        upper=ends[1],
        confidence=settings.confidence,
        quantile=quantile,
        linear_lower=subject.value - half,
        linear_upper=subject.value + half,
        values=values,
        cost=cost,
        root=root,
        theta=theta,
        warnings=told,
    )


def _ends(curve: Curve, quantile: float, half: float):
    """Both ends, and what is to be told of them."""
    sides = [_Side(sign, curve, quantile, half) for sign in (-1, 1)]
    for _ in range(_ROUNDS):
        asked = [side.ask() for side in sides]
        if all(points is None for points in asked):
            break
        # As many points in every round, so that there is one program.
        idle = np.full(POINTS, curve.value)
        curve.add(np.concatenate([idle if p is None else p for p in asked]))
    better = curve.better()
    if better is not None:
        return (math.nan, math.nan), [better]
    ends, told = zip(*(side.end() for side in sides), strict=True)
    return ends, [warning for warning in told if warning]


def _subject(fit: Any, place: int, q: int, statistics: VarProStatistics) -> Subject:
    if place < q:
        covariance = np.asarray(statistics.theta_covariance)
        value = float(jfu.ravel_pytree(fit.theta)[0][place])
        deviation = float(statistics.theta_standard_deviation[place])
        target, moved = Target(place), covariance[:, place]
    else:
        number, row, column = place_of_coefficient(fit, place - q)
        c, cross, deviations = (
            np.asarray(listed(block)[number])
            for block in (
                fit.coefficients,
                statistics.cross_covariance,
                statistics.coefficient_standard_deviation,
            )
        )
        index = (row, column)[: c.ndim]
        value, deviation = float(c[index]), float(deviations[index])
        target = Target(None, row, column, number)
        moved = (cross[row] if cross.ndim == 2 else cross[column, row]).real
    return Subject(target, value, deviation, moved / deviation**2 if deviation else moved)


def _place(fit: Any, name: str, held, caller: str, settings: Settings) -> int:
    """Of the number among all, if it has a profile."""
    names = all_names(fit)
    if name not in names:
        shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        raise ValueError(f"{caller} knows the names {shown}.")
    place = names.index(name)
    if names.count(name) > 1:
        raise ValueError(
            f"{caller} was called of a name that {names.count(name)} numbers have. "
            "Rename parts of `theta0`, so that the names in `summary()` differ."
        )
    failure = words_of(fit.result)
    if failure:
        raise ValueError(f"{caller} was called of a fit that failed: it {failure}")
    if fit._prior() is not None or fit._loss() is not None:
        raise ValueError(
            f"{caller} was called of a fit with priors, or of another loss than "
            "squares, whose profile it does not know. "
            "`summary()` has the interval by linear propagation."
        )
    if np.any(np.abs(held) == 1) and settings.bounds is None:
        raise ValueError(
            f"{caller} was called of a fit with parameters at their "
            "bounds. Pass `bounds`, as to `varpro`."
        )
    if place < len(held) and held[place] == 2:
        raise ValueError(f"{caller} was called of a fixed number.")
    number = 0
    if place >= len(held):
        number, *_ = place_of_coefficient(fit, place - len(held))
    c, rank = listed(fit.coefficients)[number], listed(fit.rank)[number]
    if place >= len(held) and np.iscomplexobj(c):
        raise ValueError(
            f"{caller} was called of a complex coefficient, which "
            "has no interval. Call it of a number of θ."
        )
    if place >= len(held) and fit.held_coefficients is not None:
        raise ValueError(
            f"{caller} was called of a coefficient of a fit with `coefficient_bounds`. "
            "Call it of a number of θ, or fit without bounds on c."
        )
    if place >= len(held) and np.min(rank) < len(c):
        raise ValueError(
            f"{caller} was called of a coefficient, but W Φ has no "
            "full rank: the data do not determine it."
        )
    return place


class _Side:
    """The search for one end: out from the estimate, then between two points."""

    def __init__(self, sign: int, curve: Curve, quantile: float, half: float):
        self.sign, self.curve, self.quantile, self.half = sign, curve, quantile, half
        self.limit = float(curve.limit(sign))

    def ask(self) -> np.ndarray | None:
        """Where to look next, or `None` where all is known."""
        inner, outer, failed = self._bracket()
        if math.isinf(inner) or inner == self._room():
            return None
        if outer is not None:
            if outer - inner <= _TOLERANCE * outer:
                return None
            return self._between(inner, outer)
        if failed is not None:
            if failed - inner <= 1e-3 * failed:
                return None
            return self._inside(
                inner + (failed - inner) * np.arange(1, POINTS + 1) / (POINTS + 1)
            )
        if inner >= _FURTHEST * self.half:
            return None
        factors = _FIRST * self.half if inner == 0 else _FURTHER * inner
        return self._inside(np.minimum(factors, self._room()))

    def end(self) -> tuple[float, str]:
        inner, outer, failed = self._bracket()
        if outer is not None:
            distances, roots = self._known()
            i, j = (int(np.flatnonzero(distances == d)[0]) for d in (inner, outer))
            part = (self.quantile - roots[i]) / (roots[j] - roots[i])
            return self.curve.value + self.sign * (inner + part * (outer - inner)), ""
        where = "lower" if self.sign < 0 else "upper"
        if inner == self._room():
            return self.limit, f"The {where} end is the bound."
        if failed is not None:
            last = self.curve.value + self.sign * inner
            return math.nan, f"found no {where} end: fits beyond {last:.6g} failed."
        return (
            self.sign * math.inf,
            f"There is no {where} end: the cost rises too little.",
        )

    def _room(self) -> float:
        return self.sign * (self.limit - self.curve.value)

    def _known(self, ok: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Distances from the estimate, ascending, and magnitudes of the roots."""
        distances = self.sign * (self.curve.values - self.curve.value)
        here = (distances >= 0) & (self.curve.ok == ok)
        order = np.argsort(distances[here])
        return distances[here][order], np.abs(self.curve.roots()[here][order])

    def _bracket(self) -> tuple[float, float | None, float | None]:
        """The last distance within, the first one beyond, or the first that failed."""
        distances, roots = self._known()
        beyond = np.flatnonzero(roots >= self.quantile)
        if beyond.size:
            first = int(beyond[0])
            return float(distances[first - 1]), float(distances[first]), None
        inner = float(distances[-1])
        failures, _ = self._known(ok=False)
        failures = failures[failures > inner]
        return inner, None, float(failures[0]) if failures.size else None

    def _between(self, inner: float, outer: float) -> np.ndarray:
        """Near the root of the cubic through four points, and in the middle."""
        distances, roots = self._known()
        nearest = np.argsort(np.abs(roots - self.quantile), kind="stable")[:4]
        guess = _interpolated(roots[nearest], distances[nearest], self.quantile)
        width = outer - inner
        if not inner < guess < outer:
            guess = inner + width / 2
        near = guess + width * np.array([0, -0.1, 0.1, -1e-2, 1e-2, -1e-3, 1e-3])
        near = np.where((near > inner) & (near < outer), near, inner + width * _SPARE)
        return self._inside(np.append(near, inner + width / 2))

    def _inside(self, distances: np.ndarray) -> np.ndarray:
        return self.curve.value + self.sign * distances


# Of points that would lie outside of the bracket: others within.
_SPARE = np.arange(1, 8) / 8.5


def _interpolated(x: np.ndarray, y: np.ndarray, at: float) -> float:
    """The polynomial through the points at `at`, or NaN if two x are equal."""
    if len(np.unique(x)) < len(x):
        return math.nan
    weights = [
        np.prod([(at - other) / (here - other) for other in x if other != here])
        for here in x
    ]
    return float(np.dot(weights, y))
