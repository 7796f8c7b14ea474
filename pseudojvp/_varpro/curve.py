"""The least cost with one number held, as a curve over its values."""

import math
from typing import Any, NamedTuple

import jax.flatten_util as jfu
import numpy as np

from .._base.tree import at_least_single
from .data_sets import listed
from .held import refit, Target
from .parameters import vector_like


_ROUNDING = 30  # in units of eps, over the data
POINTS = 8  # on each side of the estimate in a round


class Subject(NamedTuple):
    """The number: where it is, and its estimate; `along` is how θ moves with it."""

    target: Target
    value: float
    deviation: float
    along: np.ndarray


class Curve:
    """The points of the profile that are known."""

    def __init__(self, fit, subject: Subject, variance, varpro, held, sizes, settings):
        theta = np.asarray(jfu.ravel_pytree(at_least_single(fit.theta))[0])
        self.value, self.least, self.variance = subject.value, float(fit.cost), variance
        self._subject, self._fit, self._varpro = subject, fit, varpro
        self._fixed = tuple(int(i) for i in np.flatnonzero(held == 2))
        self._scale = np.where(sizes > 0, sizes, 1).astype(theta.dtype)
        self._bounds, self._batch_size = settings.bounds, settings.batch_size
        self._lower, self._upper = _bounds_of(fit, settings.bounds, theta)
        self.values, self.cost = np.array([subject.value]), np.array([self.least])
        self.theta, self.ok = theta[None].astype(np.float64), np.array([True])
        wanted = [] if settings.values is None else np.ravel(settings.values)
        for start in range(0, len(wanted), 2 * POINTS):
            some = wanted[start : start + 2 * POINTS]
            self.add(np.resize(some, 2 * POINTS).astype(np.float64))

    def limit(self, sign: int) -> float:
        """The bound of the number on that side, or ∓inf."""
        place = self._subject.target.theta
        return sign * math.inf if place is None else self._bound(sign)[place]

    def _bound(self, sign: int) -> np.ndarray:
        return self._lower if sign < 0 else self._upper

    def add(self, values: np.ndarray) -> None:
        dtype = self._scale.dtype
        found = refit(
            self._fit,
            self._varpro,
            self._subject.target,
            self._fixed,
            values.astype(dtype),
            self._starts(values).astype(dtype),
            self._scale,
            self._bounds,
            self._batch_size,
        )
        cost, theta, ok = (np.asarray(x) for x in found)
        ok = ok & np.isfinite(cost)
        both = np.concatenate([self.values, values])
        values, first = np.unique(both, return_index=True)
        join = lambda old, new: np.concatenate([old, new])[first]
        self.cost, self.theta = join(self.cost, cost), join(self.theta, theta)
        self.values, self.ok = values, join(self.ok, ok)

    def _starts(self, values: np.ndarray) -> np.ndarray:
        """θ between those of the neighbours; along the linear profile at first."""
        known, theta = self.values[self.ok], self.theta[self.ok]
        if len(known) == 1:
            starts = theta + np.outer(values - self.value, self._subject.along)
        else:
            starts = [np.interp(values, known, part) for part in theta.T]
            starts = np.stack(starts, axis=1)
        # What is fixed may be outside of the bounds.
        free = ~np.isin(np.arange(starts.shape[1]), self._fixed)
        inside = np.clip(starts, self._lower, self._upper)
        return np.where(free[None, :], inside, starts)

    def roots(self) -> np.ndarray:
        rise = np.maximum(self.cost - self.least, 0)
        return np.sign(self.values - self.value) * np.sqrt(2 * rise / self.variance)

    def better(self) -> str | None:
        cost = self.cost[self.ok]
        if np.min(cost) >= self.least * (1 - 1e-6) - rounding_of(self._fit):
            return None
        best = int(np.argmin(cost))
        return (
            f"met the cost {cost[best]:.6g}, below {self.least:.6g} of the fit, at "
            f"θ = {self.theta[self.ok][best]}: the fit is not the best one. Start there."
        )

    def known(self) -> tuple[np.ndarray, ...]:
        ok = self.ok
        return self.values[ok], self.cost[ok], self.roots()[ok], self.theta[ok]


def rounding_of(fit: Any) -> float:
    """The cost of residuals that are the rounding errors of the data."""
    sets = [np.asarray(o.weigh(o.data)) for o in listed(fit._context()[2])]
    size = np.linalg.norm([np.linalg.norm(data) for data in sets])
    return float(_ROUNDING * np.finfo(sets[0].dtype).eps * size) ** 2 / 2


def _bounds_of(fit: Any, bounds: Any, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As vectors beside that of θ."""
    if bounds is None:
        return np.full(theta.shape, -np.inf), np.full(theta.shape, np.inf)
    like = at_least_single(fit.theta)
    lower, upper = (
        np.asarray(vector_like(bound, like, f"bounds[{i}]"))
        for i, bound in enumerate(bounds)
    )
    return lower, upper
