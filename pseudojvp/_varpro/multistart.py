"""One fit from many starts, in one program."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.core
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import lineax as lx
import numpy as np
import optimistix as optx
from jaxtyping import (
    Array,
    ArrayLike,
    Float,
    Inexact,
    Integer,
    Key,
    Num,
    PyTree,
    Real,
    UInt32,
)

from .._base.call import compiled_lazily, split
from .._base.tree import at_least_single
from .._solver import PivotedQR
from .chunks import in_chunks
from .data_sets import as_arrays, check_no_list, check_sets, each
from .failure import raise_if_failed
from .fit import VarProFit
from .loss import check_loss
from .model import Observations, size_of_data
from .parameters import Frozen
from .plot import plot_costs
from .prior import prior_of
from .residual import are_vectors, check_theta, prepare
from .varpro import varpro


_REACHED = 1e-6


class VarProStarts(eqx.Module):
    """What [`pseudojvp.varpro_multistart`][] returns, for S starts.

    The fits are sorted by cost, failed ones last.

    - `best`: the [`pseudojvp.VarProFit`][] with the least cost.
    - `count`: how many starts reached it, a scalar: the successful fits whose cost
        exceeds the least one by less than 1e-6 of it, or by less than the rounding errors
        of a zero residual. θ is not compared: fits that differ in the order of their
        components, or lie elsewhere in a flat valley, count too.
    - `theta`: a pytree like that of the starts, S in front of each leaf.
    - `coefficients`: `(S, n)` or `(S, n, k)`; for several data sets a tuple.
    - `cost`, `rank`, `result`: of each fit, S in front.
    - `start`: `(S,)`, the index in `theta0s` of the start of each fit.
    - `stats`: like those of a fit, S in front.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    t = jnp.linspace(0.0, 4.0, 50)
    decay = lambda rate, t: jnp.exp(-rate * t)[:, None]
    y, starts = 2 * jnp.exp(-0.5 * t), jnp.array([0.1, 1.0, 2.0])
    found = pj.varpro_multistart(decay, y, starts, t)
    print(found.theta.shape)  # (3,)
    ```
    """

    best: VarProFit
    count: Integer[Array, ""]
    theta: PyTree[Array]
    coefficients: PyTree[Inexact[Array, "starts ..."]]
    cost: Float[Array, " starts"]
    rank: PyTree[Integer[Array, "starts ..."]]
    result: optx.RESULTS
    start: Integer[Array, " starts"]
    stats: dict[str, Any]

    def __len__(self) -> int:
        return self.cost.shape[0]

    def plot(self, axes: Any = None) -> Any:
        """Draws the sorted costs: a staircase in which each step is a minimum.

        Failed fits are crosses; starts that reached the least cost are filled dots. Needs
        matplotlib, from the extra `plot`.

        **Arguments:**

        - `axes`: matplotlib axes. Defaults to those of a new figure of
            `matplotlib.pyplot`.

        **Returns:** the axes.
        """
        return plot_costs(self, axes)


def varpro_multistart(
    basis: Callable[[PyTree[Array], Any], Inexact[Array, "m n"]] | tuple[Callable, ...],
    data: Num[ArrayLike, " m"] | Num[ArrayLike, "m k"] | list | tuple[Any, ...],
    theta0s: PyTree[ArrayLike],
    args: Any = None,
    *,
    batch_size: int = 256,
    weights: Real[ArrayLike, " m"]
    | Real[ArrayLike, "m k"]
    | list
    | tuple[Any, ...]
    | None = None,
    offset: Callable[[PyTree[Array], Any], Inexact[Array, " m"] | Inexact[Array, "m k"]]
    | tuple[Callable | None, ...]
    | None = None,
    solver: lx.AbstractLinearSolver = PivotedQR(),
    optimiser: optx.AbstractLeastSquaresSolver | optx.AbstractMinimiser = (
        optx.LevenbergMarquardt(rtol=1e-5, atol=1e-5)
    ),
    jacobian: str = "exact",
    x_scale: PyTree[ArrayLike] | None = None,
    bounds: tuple[PyTree[ArrayLike], PyTree[ArrayLike]] | None = None,
    fixed: PyTree[Any] | None = None,
    coefficient_bounds: tuple[PyTree[ArrayLike], PyTree[ArrayLike]] | None = None,
    prior: tuple[PyTree[ArrayLike], PyTree[ArrayLike]] | None = None,
    coefficient_prior: tuple[PyTree[ArrayLike], PyTree[ArrayLike]] | None = None,
    loss: str | Callable = "linear",
    f_scale: ArrayLike = 1.0,
    max_steps: int | None = 256,
    throw: bool = True,
    progress: bool = False,
) -> VarProStarts:
    """Fits the same data from many starts, each like [`pseudojvp.varpro`][], in chunks.

    Use it for costs with many minima. Eliminating c does not remove minima in which
    components are exchanged or shifted by a period. Only the starts are multiplied: data
    and arguments are stored once, and only the residual of the best fit is kept.

    **Arguments:** those of `varpro` with the same defaults, except

    - `theta0s`: the starts, a pytree like `theta0` with S starts in front of each leaf,
        such as from [`pseudojvp.varpro_starts`][].
    - `batch_size`: the number of starts in a chunk, which are fitted at once; a chunk
        ends with its slowest fit. Defaults to 256.
    - `throw`: whether an error is raised at run time if *every* start failed: the error
        of the first one. If `False`, `best.result` reports it. Defaults to `True`.
    - `progress`: whether to show a progress bar over the chunks. Defaults to `False`.

    **Returns:** a [`pseudojvp.VarProStarts`][]; `best` is the fit with the least cost.

    **Derivatives:** none, and asking for one is an error. Fit once more from `best.theta`
    with `varpro`, which is differentiable and takes hardly a step.

    **Raises:** as `varpro`; `ValueError` at trace time if the leaves have different
    numbers of starts.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    t = jnp.linspace(0.0, 4.0, 50)
    decay = lambda rate, t: jnp.exp(-rate * t)[:, None]
    y, starts = 2 * jnp.exp(-0.5 * t), jnp.array([0.1, 1.0, 2.0])
    found = pj.varpro_multistart(decay, y, starts, t)
    print(found.best.theta.round(2))  # 0.5
    ```
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(
            f"`varpro_multistart(batch_size=...)` got {batch_size!r}. Pass 1 or more."
        )
    theta0s = check_theta(theta0s, "varpro_multistart")
    _check_starts(theta0s)
    check_no_list(data, "varpro_multistart")
    keywords = {
        "weights": weights,
        "offset": offset,
        "solver": solver,
        "optimiser": optimiser,
        "jacobian": jacobian,
        "x_scale": x_scale,
        "bounds": bounds,
        "fixed": Frozen.create(fixed),
        "coefficient_bounds": coefficient_bounds,
        "prior": prior,
        "coefficient_prior": coefficient_prior,
        "loss": loss,
        "f_scale": f_scale,
        "max_steps": max_steps,
        "throw": False,
    }
    as_array = lambda part: part if isinstance(part, jax.Array) else np.asarray(part)
    data, args = each(as_array, data), as_arrays(args)
    fits, order, count, residual = _fit_starts(
        basis, data, theta0s, args, keywords, batch_size, progress
    )
    first = jtu.tree_map(lambda leaf: leaf[0], fits)
    elimination, observations, *rest = _context(basis, data, first[0], keywords)
    args = check_sets(theta0s, args, observations, "varpro_multistart")
    arrays, functions = split((elimination, args, observations, *rest, varpro))
    best = VarProFit(
        *(*first[:2], residual, *first[2:]),
        _arrays=arrays,
        _functions=functions,
    )
    best = raise_if_failed(best) if throw else best
    theta, coefficients, cost, rank, result, *_, stats = fits
    return VarProStarts(
        best, count, theta, coefficients, cost, rank, result, order, stats
    )


@compiled_lazily
def _fit_starts(basis, data, theta0s, args, keywords, batch_size, progress):
    """The fits in their order but for residuals, that order, and what is of the best."""

    def member(theta0):
        fit = varpro(basis, data, theta0, args, **keywords)
        fields = fit.theta, fit.coefficients, fit.cost, fit.rank
        return *fields, fit.result, fit.held, fit.held_coefficients, fit.stats

    fits = in_chunks(member, theta0s, batch_size, progress)
    cost, result = fits[2], fits[4]
    failed = result != optx.RESULTS.successful
    order = jnp.lexsort((cost, failed))
    fits = jtu.tree_map(lambda leaf: leaf[order], fits)
    theta, cost, failed = fits[0], fits[2], failed[order]

    least = jtu.tree_map(lambda leaf: leaf[0], theta)
    elimination, observations, *rest = _context(basis, data, least, keywords)
    args = check_sets(theta0s, args, observations, "varpro_multistart")
    if any(part is not None for part in rest):
        # c is not that of the least squares of the data.
        c = each(lambda c: c[0].reshape(c.shape[1], -1), fits[1])
        gain = each(lambda o: o.gain, observations)
        value = elimination.predict(least, args, c, gain)
        residual = each(Observations.residual, observations, value)
    else:
        residual = elimination(least, args, observations).residual

    def as_data(residual, vector):
        residual = residual[:, 0] if vector else residual
        # 16 bits, if the data are.
        return residual if jnp.iscomplexobj(residual) else residual.astype(cost.dtype)

    residual = each(as_data, residual, are_vectors(data))
    zero = (1e3 * jnp.finfo(cost.dtype).eps * size_of_data(observations)) ** 2 / 2
    most = cost[0] + _REACHED * jnp.abs(cost[0])  # a loss may be negative
    reached = cost <= most + zero.astype(cost.dtype)
    count = jnp.sum(reached & ~failed)
    return eqxi.nondifferentiable(
        (fits, order, count, residual),
        msg="`varpro_multistart` has no derivative. Fit once more from `best.theta` by "
        "`varpro`, which is differentiable.",
    )


def _context(basis, data, theta, keywords):
    """The model and the observations of the fit that ended at `theta`, prior and loss."""
    names = "weights", "offset", "solver", "jacobian", "coefficient_bounds"
    elimination, observations, _ = prepare(
        "varpro_multistart", basis, data, *(keywords[name] for name in names)
    )
    of_theta, of_c = keywords["prior"], keywords["coefficient_prior"]
    known = prior_of(of_theta, of_c, at_least_single(theta), data)
    loss, f_scale = keywords["loss"], keywords["f_scale"]
    outliers = check_loss(loss, f_scale, observations, "varpro_multistart")
    return elimination, observations, known, outliers


def _check_starts(theta0s: PyTree[Array]) -> None:
    shapes = [leaf.shape for leaf in jtu.tree_leaves(theta0s)]
    if any(shape[:1] != shapes[0][:1] or shape[:1] in ((), (0,)) for shape in shapes):
        raise ValueError(
            f"`varpro_multistart(theta0s=...)` got leaves of shapes {shapes}. Put the "
            "axis of the starts in front of each, of the same length of at least 1."
        )


def varpro_starts(
    key: Key[Array, ""] | UInt32[Array, "2"],
    lower: PyTree[ArrayLike],
    upper: PyTree[ArrayLike],
    number: int,
    *,
    log: bool = False,
) -> PyTree[Array]:
    """Returns random starts between two values of θ, for
    [`pseudojvp.varpro_multistart`][].

    The starts form a Latin hypercube: the range of each parameter is divided into
    `number` equal parts, and each part has one start, at a random place. So even few
    starts cover each range evenly.

    **Arguments:**

    - `key`: a key of `jax.random`.
    - `lower`, `upper`: pytrees like `theta0`, finite, with lower ≤ upper.
    - `number`: the number of starts, at least 1.
    - `log`: whether the parts are equal on a logarithmic scale, for positive parameters
        of unknown magnitude, such as rates. Defaults to `False`.

    **Returns:** a pytree like `lower`, with an axis of `number` starts in front of each
    leaf.

    **Raises:** `ValueError` for bounds that do not match.

    **Sources:** McKay, Beckman & Conover, Technometrics 21 (1979).

    Cost: one random number for each parameter and start.

    **Example:**

    ```python
    import jax
    import pseudojvp as pj

    starts = pj.varpro_starts(jax.random.key(0), 0.1, 10.0, 8, log=True)
    print(starts.shape)  # (8,)
    ```
    """
    lower = check_theta(lower, "varpro_starts")
    upper = check_theta(upper, "varpro_starts")
    if not isinstance(number, int) or number < 1:
        raise ValueError(f"`varpro_starts(number=...)` got {number!r}. Pass 1 or more.")
    structures = [jtu.tree_structure(tree) for tree in (lower, upper)]
    shapes = [[leaf.shape for leaf in jtu.tree_leaves(tree)] for tree in (lower, upper)]
    if structures[0] != structures[1] or shapes[0] != shapes[1]:
        raise ValueError(
            f"`varpro_starts` got bounds of structures {structures[0]} and "
            f"{structures[1]}, and shapes {shapes[0]} and {shapes[1]}. Pass the same."
        )
    for low, high in zip(*map(jtu.tree_leaves, (lower, upper)), strict=True):
        _check_range(low, high, log)
    if log:
        lower, upper = jtu.tree_map(jnp.log, (lower, upper))
    keys = structures[0].unflatten(jr.split(key, len(shapes[0])))
    drawn = jtu.tree_map(lambda k, a, b: _latin(k, a, b, number), keys, lower, upper)
    return jtu.tree_map(jnp.exp, drawn) if log else drawn


def _check_range(lower: Array, upper: Array, log: bool) -> None:
    if isinstance(lower, jax.core.Tracer) or isinstance(upper, jax.core.Tracer):
        return
    low, high = np.asarray(lower), np.asarray(upper)
    right = (low <= high) & np.isfinite(low) & np.isfinite(high)
    right = right & (low > 0) if log else right
    if not np.all(right):
        positive = ", positive for `log=True`" if log else ""
        raise ValueError(
            f"`varpro_starts` got the bounds {low[~right][0]} and {high[~right][0]}. "
            f"Pass finite ones, lower ≤ upper{positive}."
        )


def _latin(key, lower: Array, upper: Array, number: int) -> Array:
    of_place, of_order = jr.split(key)
    shape = (number, *lower.shape)
    parts = jnp.arange(number, dtype=lower.dtype).reshape(number, *[1] * lower.ndim)
    parts = jr.permutation(
        of_order, jnp.broadcast_to(parts, shape), axis=0, independent=True
    )
    place = (parts + jr.uniform(of_place, shape, lower.dtype)) / number
    return lower[None] + (upper - lower)[None] * place
