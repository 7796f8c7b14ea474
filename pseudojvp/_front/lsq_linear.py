"""Least squares between bounds: `lsq_linear` and `nnls`, as SciPy has them."""

import dataclasses
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
from jax.lax import stop_gradient
from jaxtyping import Array, ArrayLike, Float, Inexact, Int, Real

from .._base.auto_axes import with_auto_axes
from .._base.call import compiled
from .._base.host import raise_if
from .._base.results import nan_after_failure
from .._base.statistics import without_derivative
from .._kernel.active_set import (
    bounded_least_squares,
    BoundedSolution,
    reduced,
    ROUNDING,
    slopes_of,
    unit_columns,
)
from .._kernel.norms import power_of_two
from .._kernel.products import matmul
from .._map.factorised import Factorised
from .arrays import resolve
from .lsq_linear_input import Bound, checked, Columns, Matrix


# How far from rounding the conditions of a minimum may be at the end, in cutoffs of a
# singular value relative to the largest column: what truncation leaves is one at most.
_MARGIN = 100
_SUBJECT = "A least-squares problem between bounds"
_MESSAGES = (
    "",
    f"{_SUBJECT} got NaN or Inf in `a` or `b`. Look for where they come from.",
    f"{_SUBJECT} got a lower bound above the upper one, or a NaN, or a lower bound of "
    "+Inf or an upper one of -Inf: no finite x is between them.",
    f"{_SUBJECT} did not find the bounds that bind within 10 (n + 1) steps. Scale the "
    "columns of `a` to one size, or pass an `rcond` above their near dependence.",
    f"{_SUBJECT} has free columns whose rank is not clear. Pass an `rcond` in a gap of "
    "their singular values, or `solver=SVD()`.",
)


def lsq_linear(
    a: Matrix,
    b: Columns,
    bounds: tuple[Bound, Bound] = (None, None),
    rcond: Real[ArrayLike, ""] | None = None,
    *,
    solver: lx.AbstractLinearSolver | None = None,
    throw: bool = True,
) -> lx.Solution:
    """Returns the least-squares solution of a x = b between bounds, exactly.

        min ‖b − a x‖²   for   lower ≤ x ≤ upper

    Uses an active-set method, like `scipy.optimize.lsq_linear(method="bvls")`: the
    Karush-Kuhn-Tucker conditions hold to rounding. Given the variables at their bounds,
    the free variables are the solution of minimum norm. So if no bound binds, x is the
    solution of [`pseudojvp.lstsq`][].

    **Arguments:**

    - `a`: real, of shape `(m, n)`, with any shape and rank: an array; a sparse matrix of
        up to a million entries, counting zeros; or a lineax operator of arrays with one
        axis. The latter two are made dense.
    - `b`: real, of shape `(m,)`, or `(m, k)` for k right-hand sides; different bounds may
        bind for each.
    - `bounds`: the pair `(lower, upper)`, in the units of x. Each is a scalar, an array
        of shape `(n,)` (or `(n, k)` with k right-hand sides), or `None` for no bound. An
        infinite entry is no bound either. If `lower == upper`, x is fixed. Defaults to
        `(None, None)`.
    - `rcond`: singular values of the free columns at most `rcond` times the largest one
        count as zero; a number without unit. Defaults to `None`: the `rcond` of `solver`
        if that is set, else `eps * max(m, n)`. A negative value means `eps`.
    - `solver`: solves for the free variables once they are known:
        [`pseudojvp.PivotedQR`][] or [`pseudojvp.SVD`][]. Defaults to `None`,
        `PivotedQR()`.
    - `throw`: whether a failure raises at run time: NaN or Inf in `a` or `b`, bounds that
        no x satisfies, a search that does not end, or free columns without a clear rank.
        If `False`, nothing raises: `result` reports the failure, and x and its
        derivatives are NaN. Defaults to `True`.

    **Returns:** a `lineax.Solution`:

    - `value`: x, of shape `(n,)` or `(n, k)`. It satisfies the bounds, and equals a bound
        that binds exactly.
    - `result`: `successful`; `nonfinite_input`; `breakdown` if no x satisfies the bounds;
        `max_steps_reached` after 10 (n + 1) steps; `singular` if the rank of the free
        columns is not clear. Of shape `(k,)` with k right-hand sides.
    - `stats`: `active_mask`, of the shape of x: −1 if x is fixed at its lower bound, 1 at
        its upper bound, 0 if it is free. And for each right-hand side: the `rank` of the
        free columns; `num_steps`; `optimality`, the amount by which the gradient aᵀ(a x −
        b) violates the conditions, as in SciPy; and `degenerate`, whether, to rounding, a
        multiplier is zero or a free x is at a bound, so that the derivative is one-sided.

    Cost: a QR factorisation of a tall `a`, shared by all right-hand sides. Then, for each
    right-hand side, one singular value decomposition of a `min(m, n)` × n matrix in each
    step (one step if no bound binds, usually fewer than n), and one factorisation of the
    m × n matrix of the free columns, with memory of that size.

    **Derivatives:** with respect to `a`, `b` and `bounds`, forward and reverse, of every
    order, as long as the same bounds bind and the rank of the free columns stays: the
    derivative is that of the solve with these columns. A variable at its bound moves with
    the bound. If `degenerate`, the derivative holds the bounds of `active_mask` fixed and
    is right on one side only. The search is not differentiated; each derivative costs
    what one of `lstsq` does.

    **Raises:** `TypeError` or `ValueError` at trace time for arguments of another shape,
    dtype or type, and for another solver; a run-time error as `throw` says.

    **Sources:** Stark & Parker, *Bounded-variable least-squares*, Computational
    Statistics 10 (1995); Lawson & Hanson, *Solving Least Squares Problems* (1974),
    chapter 23.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    a, b = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([0.5, 3.0])
    solution = pj.lsq_linear(a, b, (0.0, 2.0))
    print(solution.value.round(2), solution.stats["active_mask"])  # [0.5 2. ] [0 1]
    ```
    """
    arguments = checked("lsq_linear", a, b, bounds, rcond, solver)
    return _found(arguments, throw)[0]


def nnls(
    a: Matrix,
    b: Columns,
    rcond: Real[ArrayLike, ""] | None = None,
    *,
    solver: lx.AbstractLinearSolver | None = None,
    throw: bool = True,
) -> tuple[Inexact[Array, "n *k"], Inexact[Array, "*k"]]:
    """Returns the least-squares solution of a x = b with x ≥ 0, as SciPy's `nnls`.

    This is [`pseudojvp.lsq_linear`][] with `bounds=(0, None)`. See there for the cost and
    the derivatives; call it if you need `result` and `stats`.

    **Arguments:**

    - `a`: real, of shape `(m, n)`, of any shape and rank.
    - `b`: real, of shape `(m,)`, or `(m, k)` for k right-hand sides.
    - `rcond`, `solver`: as for `lsq_linear`. Default to `None`.
    - `throw`: whether a failure raises at run time. If `False`, x, the norm and their
        derivatives are NaN. Defaults to `True`.

    **Returns:** the tuple `(x, residual_norm)`:

    - `x`: of shape `(n,)` or `(n, k)`, nowhere negative.
    - `residual_norm`: ‖b − a x‖, of shape `()` or `(k,)`. Where it is exactly zero, its
        derivative is zero.

    **Raises:** as `lsq_linear`.

    **Sources:** Lawson & Hanson, *Solving Least Squares Problems* (1974), chapter 23.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    a, b = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([3.0, -4.0])
    x, residual_norm = pj.nnls(a, b)
    print(x.round(2), residual_norm.round(2))  # [3. 0.] 4.0
    ```
    """
    arguments = checked("nnls", a, b, (0.0, None), rcond, solver)
    solution, residual_norm = _found(arguments, throw)
    return solution.value, residual_norm


class _Problem(NamedTuple):
    """Of one right-hand side."""

    a: Float[Array, "m n"]
    b: Float[Array, " m"]
    lower: Float[Array, " n"]
    upper: Float[Array, " n"]


def _found(arguments: tuple, throw: bool) -> tuple[lx.Solution, Array]:
    """The solution and the norm of the residual, in the dtype given."""
    *arrays, rcond, solver, given = arguments
    solution, norm = _lsq_linear(*arrays, rcond, solver, throw)
    if given.itemsize == 2:
        value = solution.value.astype(given)
        solution = eqx.tree_at(lambda solution: solution.value, solution, value)
        norm = norm.astype(given)
    return solution, norm


@compiled
@with_auto_axes
def _lsq_linear(a, b, lower, upper, rcond, solver, throw) -> tuple[lx.Solution, Array]:
    given, solver = rcond, dataclasses.replace(solver, rcond=resolve(rcond, a))
    columns = b if b.ndim == 2 else b[:, None]
    # Once for all right-hand sides.
    short, short_columns = reduced(stop_gradient(a), stop_gradient(columns))

    def one(column, short_column, lower, upper):
        fixed_bounds = stop_gradient(lower), stop_gradient(upper)
        found = bounded_least_squares(short, short_column, *fixed_bounds, given)
        problem = _Problem(a, column, lower, upper)
        constant = stop_gradient(problem)
        told = _told(constant, found)
        # In cotangents too, of which what is fixed at a bound hands none on to b.
        problem = nan_after_failure(_result(told), problem)
        x, rank, unclear = _solve_free(problem, found, solver)
        optimality, degenerate, misses = _judge(
            constant, stop_gradient(x), found.active, solver.rcond
        )
        told = jnp.where((told == 0) & (unclear | misses), 4, told)
        stats = {
            "active_mask": found.active,
            "rank": rank,
            "num_steps": found.num_steps,
            "optimality": optimality,
            "degenerate": degenerate,
        }
        result = _result(told)
        x = nan_after_failure(result, x)
        return x, _norm(column - matmul(a, x)), told, result, stats

    if b.ndim == 1:
        x, norm, told, result, stats = one(b, short_columns[:, 0], lower, upper)
    else:
        x, norm, told, result, stats = eqx.filter_vmap(one, in_axes=1)(
            columns, short_columns, lower, upper
        )
        x, stats["active_mask"] = x.T, stats["active_mask"].T
    if throw:
        factor = raise_if(jnp.max(told, initial=0), _MESSAGES).astype(x.dtype)
        x, norm = x * factor, norm * factor
    stats = without_derivative(stats, a, b, lower, upper)
    return lx.Solution(value=x, result=result, stats=stats, state=None), norm


def _solve_free(problem: _Problem, found: BoundedSolution, solver):
    """x with its derivatives, those of a solve with the free columns; their rank, and
    whether the solver finds that unclear."""
    a, b, lower, upper = problem
    at_bound = jnp.where(found.active < 0, lower, upper)
    at_bound = jnp.where(found.free, 0, at_bound)
    # Exact for independent columns, whatever the constants are.
    matrix = jnp.where(found.free[None, :], a / found.scales[None, :], 0)
    operator = lx.MatrixLinearOperator(matrix)
    factorised, _ = Factorised.create(operator, solver, throw=False)
    factorised = factorised.nan_if_failed()
    x, _, result, stats = factorised.apply(b - matmul(a, at_bound))
    x = jnp.asarray(x) / found.scales
    # Rounding may leave the bounds. Its derivative is that of what it rounds.
    constant = stop_gradient(x)
    nearest = jnp.clip(constant, stop_gradient(lower), stop_gradient(upper))
    x = jnp.where(nearest == constant, x, nearest + (x - constant))
    x = jnp.where(found.free, x, at_bound)
    return x, stats["rank"], result != lx.RESULTS.successful


def _judge(problem: _Problem, x, active, rcond):
    """How far x misses the conditions, whether they are degenerate, and whether it
    misses them by more than rounding and truncation do."""
    a, b, lower, upper = problem
    units, norms = unit_columns(a)
    slopes, size = slopes_of(units, a, b, x)
    free = active == 0
    wrong = jnp.where(active < 0, slopes, -slopes)
    wrong = jnp.where(free, jnp.abs(slopes), jnp.maximum(wrong, 0))
    wrong = jnp.where(lower < upper, wrong, 0)
    largest = jnp.max(norms, initial=0)
    rounding = jnp.finfo(a.dtype).eps * max(a.shape)
    margin = _MARGIN * jnp.maximum(rcond, rounding) * size
    misses = jnp.any(wrong * (norms / jnp.where(largest > 0, largest, 1)) > margin)
    room = jnp.minimum(x - lower, upper - x) * norms
    slack = jnp.where(free, room, jnp.abs(slopes))
    may = (lower < upper) & ~(free & (norms == 0))
    degenerate = jnp.any(may & (slack <= ROUNDING * rounding * size))
    return jnp.max(wrong * norms, initial=0), degenerate, misses


def _told(problem: _Problem, found: BoundedSolution) -> Int[Array, ""]:
    """Which of `_MESSAGES` says why it failed."""
    a, b, lower, upper = problem
    finite = jnp.all(jnp.isfinite(a)) & jnp.all(jnp.isfinite(b))
    between = (lower <= upper) & (lower < jnp.inf) & (upper > -jnp.inf)
    told = jnp.where(found.converged, 0, 3)
    told = jnp.where(jnp.all(between), told, 2)
    return jnp.where(finite, told, 1)


def _result(told: Int[Array, ""]) -> lx.RESULTS:
    results = lx.RESULTS
    result = results.where(told == 1, results.nonfinite_input, results.successful)
    result = results.where(told == 2, results.breakdown, result)
    result = results.where(told == 3, results.max_steps_reached, result)
    return results.where(told == 4, results.singular, result)


def _norm(r: Inexact[Array, " m"]) -> Inexact[Array, ""]:
    """‖r‖ without overflow, and of zero with the derivative zero."""
    unit = power_of_two(stop_gradient(r))
    square = jnp.sum((r / unit) ** 2)
    root = unit * jnp.sqrt(jnp.where(square == 0, 1, square))
    return jnp.where(square == 0, 0, root)
