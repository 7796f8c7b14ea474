"""Variable projection: the search for θ with c eliminated."""

import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax.core
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import numpy as np
import optimistix as optx
from jaxtyping import Array, ArrayLike, Inexact, Num, PyTree, Real

from .._base.auto_axes import with_auto_axes
from .._base.call import compiled_lazily, split
from .._base.host import raise_if
from .._base.tree import all_finite, at_least_single
from .._front.adjoint import PseudoinverseAdjoint
from .._solver import PivotedQR, SVD
from .data_sets import as_arrays, check_sets, each, listed
from .failure import raise_if_failed, result_of
from .fit import VarProFit
from .limits import Limits
from .loss import check_loss
from .optimise import optimise, Settings
from .parameters import box_of, Parameters, vector_like
from .prior import prior_of, with_priors
from .progress import EvaluationLine
from .real import added, squared_norm
from .residual import are_vectors, check_theta, prepare
from .sizes import check_counts, check_real, count_coefficients, sizes_of
from .summary import timed


def varpro(
    basis: Callable[[PyTree[Array], Any], Inexact[Array, "m n"]] | tuple[Callable, ...],
    data: Num[ArrayLike, " m"] | Num[ArrayLike, "m k"] | list | tuple[Any, ...],
    theta0: PyTree[ArrayLike],
    args: Any = None,
    *,
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
    adjoint: optx.AbstractAdjoint | None = None,
    progress: bool = False,
) -> VarProFit:
    """Fits y ≈ offset(θ) + Φ(θ) c by variable projection.

        min over θ and c of ‖W (data − offset(θ) − Φ(θ) c)‖²

    For each θ the best c is a pseudoinverse solution. This leaves a problem in θ alone,
    whose exact Jacobian takes one more application of the same factorisation
    ([`pseudojvp.projected_residual`][]). So c needs no start, the search takes fewer
    steps, and each step treats the coupling of θ and c exactly.

    **Arguments:**

    - `basis`: a function of `(theta, args)` that returns Φ: an array `(m, n)` with one
        column for each coefficient, m > n, real or complex; or a lineax operator from
        `(n,)` to `(m,)`. For several data sets it is called for each; or pass a tuple of
        functions, also for `offset`.
    - `data`: y, `(m,)`; or `(m, k)` for k columns that share θ, each with its own c. A
        tuple of such arrays for several data sets, each with coefficients of its own,
        real or complex, with any m, n and k.
    - `theta0`: the start: a pytree of real floating-point arrays, q numbers in all. For
        several data sets that do not share all of it, a [`pseudojvp.SharedAndOwn`][].
    - `args`: passed to `basis` and `offset`, such as the points of measurement. For
        several data sets a tuple with those of each. Defaults to `None`.
    - `weights`: W, nonnegative, `(m,)` for all columns or `(m, k)`; they multiply the
        residual *before* it is squared: 1/σ for data of standard deviation σ. A datum of
        weight zero does not count. For several data sets a tuple, with `None` for one
        without weights. Defaults to `None`, all one.
    - `offset`: a function of `(theta, args)` that returns the part of the model without
        coefficients, `(m,)` or `(m, k)`. Defaults to `None`, no such part.
    - `solver`: the solver that eliminates c. Defaults to [`pseudojvp.PivotedQR`][]. It
        truncates a rank-deficient Φ, in residual, Jacobian and coefficients alike, and
        the fit goes on. `QR()` is faster, but fails if Φ does not have full rank.
    - `optimiser`: an Optimistix least-squares solver or minimiser. It sees θ / `x_scale`,
        and the residual in a unit of its own: a minimiser sees it divided by ‖W data‖, a
        least-squares solver in the unit in which the largest diagonal entry of JᵀJ at the
        start is 1000. Defaults to `optimistix.LevenbergMarquardt(rtol=1e-5, atol=1e-5)`,
        which in that unit starts with a damping of one. With any tolerances and otherwise
        default parts, `varpro` runs its steps in a loop of its own, which is a smaller
        program. Up to twenty undamped Gauss–Newton steps follow, as long as they bring r
        closer to orthogonal to ∂r/∂θ.
    - `jacobian`: `"exact"` (Golub & Pereyra) or `"kaufman"`, which leaves out the part in
        the range of Φ: the same gradient, slightly cheaper, with slower convergence if
        residuals are large. Defaults to `"exact"`.
    - `x_scale`: the typical sizes of θ, a pytree like `theta0` or a scalar; positive. The
        optimiser damps with the identity, and does not know that one parameter is a
        frequency in Hz and another a width in m. Defaults to `None`: |theta0|, and 1
        where that is zero.
    - `bounds`: a pair (lower, upper), each a pytree like `theta0`, in which a scalar may
        stand for a whole part, or one scalar; infinite where θ is free. `basis` and
        `offset` are never called with a θ outside. Each step minimises the damped linear
        model *within* the bounds, with an active set, so a parameter that ends at its
        bound equals it, and `held` says so. Only with the default `optimiser`, with any
        tolerances. Defaults to `None`.
    - `fixed`: booleans in pytrees like those of `bounds`: parameters that stay at their
        start. They are constants like `args`, with a derivative, and cost nothing.
        Defaults to `None`.
    - `coefficient_bounds`: a pair (lower, upper) of scalars or arrays `(n,)` or `(n, k)`
        for c: `(0, jnp.inf)` for nonnegative amplitudes. For real Φ and data. c is then
        the best one *within* the bounds, exactly, by an active set for each column. The
        Jacobian is that of the free coefficients, and each column has its own factors.
        Needs a solver for any rank. For several data sets each of the two may be a tuple.
        Defaults to `None`.
    - `prior`: a pair (mean μ, precision P) for θ, which adds (θ − μ)ᵀ P (θ − μ) to the
        sum of squares: each a pytree like `theta0` or a scalar, P also a matrix `(q, q)`.
        P is 1/σ² if `weights` are 1/σ, and zero for a parameter about which nothing is
        known. Defaults to `None`.
    - `coefficient_prior`: the same for the coefficients of each column; with mean zero it
        is a ridge. μ is a scalar, `(n,)` or `(n, k)`, P a scalar, `(n,)` or `(n, n)`. An
        operator Φ becomes an array. For several data sets each of the two may be a tuple.
        Defaults to `None`.
    - `loss`: `"linear"` (squares), `"soft_l1"`, `"huber"`, `"cauchy"`, `"arctan"` or a
        function ρ of z, with the meaning of `scipy.optimize.least_squares`: the sum of f²
        ρ(r²/f²) over weighted residuals r is minimised, in θ and c together. ρ is
        elementwise and written in JAX, or returns SciPy's three rows. Numbers within it
        are constants. The method is
        iteratively reweighted least squares with the weights √ρ′: each round is a whole
        search from the end of the last one, until the weights no longer change.
        `"poisson"` is the deviance of counts whose mean is the model. For real Φ. For
        complex data |r|² counts, and there is no derivative. Statistics are those of the
        weighted squares at the end. Defaults to `"linear"`.
    - `f_scale`: f, the size above which a weighted residual counts as an outlier.
        Defaults to 1.
    - `max_steps`: the largest number of steps of the optimiser. Defaults to 256.
    - `throw`: whether a failed fit raises at run time, here and in derivatives. If
        `False`, `result` reports the failure. Defaults to `True`.
    - `adjoint`: how the fit is differentiated, an Optimistix adjoint. Defaults to `None`:
        [`pseudojvp.PseudoinverseAdjoint`][] with `SVD()`. This is the implicit function
        theorem, with the minimum-norm derivative (in units of `x_scale`) if θ is not
        determined. It follows `throw`, whereas `optimistix.ImplicitAdjoint` always
        raises.
    - `progress`: whether to show ‖residual‖/‖W data‖ at each evaluation. Defaults to
        `False`.

    **Returns:** a [`pseudojvp.VarProFit`][].

    Cost: each step computes r and ∂r/∂θ with one factorisation of W Φ. ∂Φ/∂θ is never
    formed as one array; only its products with c and r are, for one parameter after the
    other. If k > m columns share weights and offset, the search replaces them by the m
    columns of a triangular factor: ‖r‖², JᵀJ and Jᵀr are the same. That factor is the
    Cholesky factor of Y Yᴴ; if rounding in it exceeds 1e-12 of ‖r‖² for some θ, it is
    that of a QR factorisation of Yᴴ, several times as slow.

    **Derivatives:** of `theta`, `coefficients`, `residual` and `cost` with respect to
    `data`, `weights`, `args` and arrays within `basis` and `offset`, forward and reverse:
    those of the solution of the full problem, whatever `jacobian` is. `basis` must be
    twice differentiable. The bounds have derivative zero, and so has `theta0`, except
    where it is fixed. A parameter at its bound is held there: the derivative is that of
    the other parameters, one-sided if the bound only just binds.

    **Raises:** `TypeError` or `ValueError` at trace time for shapes, dtypes or types that
    do not match; a run-time error as `throw` says.

    **Sources:** Golub & Pereyra, SIAM J. Numer. Anal. 10 (1973); Kaufman, BIT 15 (1975);
    O'Leary & Rust, Comput. Optim. Appl. 54 (2013); Bates & Watts, Technometrics 23
    (1981), for the relative offset; Madsen, Nielsen & Tingleff, *Methods for Non-Linear
    Least Squares Problems* (2004), (3.14), for the first damping.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    t = jnp.linspace(0.0, 4.0, 50)
    y = 2 * jnp.exp(-0.5 * t) + jnp.exp(-4 * t)
    decays = lambda rates, t: jnp.exp(-jnp.outer(t, rates))
    fit = pj.varpro(decays, y, jnp.array([0.4, 2.0]), t)
    print(fit.theta.round(2), fit.coefficients.round(2))  # [0.5 4. ] [2. 1.]
    ```
    """
    began = time.perf_counter()
    elimination, observations, exact = prepare(
        "varpro", basis, data, weights, offset, solver, jacobian, coefficient_bounds
    )
    given, theta0 = theta0, check_theta(theta0, "varpro")
    _check_types(optimiser, adjoint, max_steps)
    wide = at_least_single(theta0)
    args = check_sets(theta0, as_arrays(args), data, "varpro")
    parameters = Parameters.create(wide, fixed)
    box = box_of(bounds, parameters, wide, given, throw)
    scale = _check_scale(x_scale, wide, throw)
    if adjoint is None:
        adjoint = default_adjoint(throw)
    vector = are_vectors(data)
    options = _Options(optimiser, adjoint, max_steps, exact, vector, progress)
    outliers = check_loss(loss, f_scale, observations, "varpro")
    known = prior_of(prior, coefficient_prior, wide, data)
    closed = elimination.closed(theta0, args)
    fields = _fit(
        closed, args, observations, parameters, box, known, outliers, scale, options
    )
    fields = _as_given(fields, theta0, data)
    # `elimination` as given, for `args` of any shape; and not out of a compiled program,
    # which would copy the data.
    context = elimination, args, observations, known, outliers, varpro
    arrays, functions = split(context)
    fit = VarProFit(*fields, _arrays=arrays, _functions=functions)
    return timed(raise_if_failed(fit), began) if throw else fit


class _Options(eqx.Module):
    optimiser: optx.AbstractLeastSquaresSolver | optx.AbstractMinimiser
    adjoint: optx.AbstractAdjoint
    max_steps: int | None
    exact: bool
    vector: bool | tuple[bool, ...]
    progress: bool


@compiled_lazily
@with_auto_axes
def _fit(
    elimination, args, observations, parameters, box, prior, loss, scale, options
) -> tuple:
    """The public fields of the `VarProFit`."""
    whole = parameters.unravel(parameters.whole)
    rows = each(lambda o: len(o.data), observations)
    if prior is not None:
        count = lambda *parts: count_coefficients(whole, *parts)
        counts = each(count, elimination.parts, args, observations)
        elimination, observations = with_priors(prior, elimination, observations, counts)
    sizes = each(
        lambda *parts: sizes_of(whole, *parts), elimination.parts, args, observations
    )
    start = parameters.start
    check_counts(listed(sizes), start.size)
    if scale is None:
        scale = jnp.where(start == 0, 1, jnp.abs(start))
    else:
        scale = lax.stop_gradient(parameters.of(scale))
    settings = Settings(
        parameters.unravel if parameters.all_free else (lambda free: free),
        scale,
        box,
        loss,
        options.optimiser,
        options.adjoint,
        options.max_steps,
        options.exact,
        each(lambda sizes: sizes.shift, sizes),
        each(lambda sizes: sizes.combined, sizes),
        EvaluationLine() if options.progress else None,
    )
    restricted = elimination.restricted(parameters)
    if box is not None and settings.tolerances is None:
        raise ValueError(
            f"`varpro(bounds=..., optimiser={options.optimiser!r})` cannot keep θ within "
            "bounds. Use `optimistix.LevenbergMarquardt(rtol, atol)` with numbers for "
            "both and its default parts, and no `RecursiveCheckpointAdjoint`."
        )
    if loss is not None:
        if not isinstance(options.adjoint, PseudoinverseAdjoint):
            raise ValueError(
                f"`varpro(loss=..., adjoint={options.adjoint!r})`: of other losses than "
                "squares the fit is differentiated by `PseudoinverseAdjoint` alone."
            )
        each(lambda e, a: check_real(whole, e, a), elimination.parts, args)
    found = optimise(restricted, args, observations, start / scale, settings)
    free = scale * found.point if box is None else settings.inside(found.point)
    theta, outcome = parameters.unravel(parameters.flat(free)), found.outcome
    side = None if settings.box is None else settings.box.side(found.point)
    known = True if box is None else ~jnp.any(jnp.isnan(box.lower))
    cost = 0.5 * squared_norm(found.residual)
    if loss is not None:
        fitted = elimination.predict(
            theta, args, found.coefficients, each(lambda o: o.gain, observations)
        )
        cost = added(listed(each(loss.cost_of, found.residual, fitted, observations)))
    # The residual is, unless the result says so already.
    sound = all_finite((theta, found.coefficients))
    of_data = each(lambda o: (o.data, o.weights), observations)
    limits = each(lambda o: o.limits, observations)
    held_coefficients = None
    if any(part is not None for part in listed(limits)):
        held_coefficients = each(_held, limits, found.coefficients, options.vector)
    residual = each(lambda r, m: r[:m], found.residual, rows)
    columns = tuple(
        each(lambda x, vector: x[:, 0] if vector else x, x, options.vector)
        for x in (found.coefficients, residual)
    )
    stats = {
        "num_steps": outcome.num_steps,
        "max_steps": options.max_steps,
        "polishing_steps": outcome.polishing_steps,
        "relative_offset": outcome.relative_offset,
    }
    return (
        theta,
        *columns,
        cost,
        found.rank,
        result_of(
            outcome.result,
            found.eliminated,
            sound,
            all_finite((parameters.whole, of_data)) & known,
        ),
        parameters.held(side),
        held_coefficients,
        eqxi.nondifferentiable_backward(stats),
    )


def _held(limits: Limits | None, coefficients: Array, vector: bool):
    side = jnp.zeros(coefficients.shape, int)
    if limits is not None:
        n, k = coefficients.shape
        side = limits.columns(n, k, "varpro").side(coefficients)
    return side[:, 0] if vector else side


def _as_given(fields: tuple, theta0, data) -> tuple:
    """The fields in 16 bits where θ or the data came so: the fit is made in 32."""
    theta, *columns, rank, result, held, held_coefficients, stats = fields
    theta = jtu.tree_map(lambda leaf, given: leaf.astype(given.dtype), theta, theta0)
    dtypes = [np.dtype(getattr(part, "dtype", float)) for part in listed(data)]
    if all(d.itemsize == 2 and jnp.issubdtype(d, jnp.floating) for d in dtypes):
        dtype = dtypes[0] if len(set(dtypes)) == 1 else np.dtype(np.float32)
        narrow = lambda x: x if jnp.iscomplexobj(x) else x.astype(dtype)
        columns = jtu.tree_map(narrow, columns)
    return theta, *columns, rank, result, held, held_coefficients, stats


def default_adjoint(throw: bool) -> PseudoinverseAdjoint:
    # The smallest program for a symmetric matrix of a few parameters and any rank.
    return PseudoinverseAdjoint(SVD(), throw)


def _check_types(optimiser, adjoint, max_steps) -> None:
    if not isinstance(
        optimiser, optx.AbstractLeastSquaresSolver | optx.AbstractMinimiser
    ):
        raise TypeError(
            f"`varpro(optimiser=...)` got {optimiser!r}. Pass a least-squares solver or "
            "a minimiser of Optimistix, as `optimistix.LevenbergMarquardt(1e-5, 1e-5)`."
        )
    if adjoint is not None and not isinstance(adjoint, optx.AbstractAdjoint):
        raise TypeError(
            f"`varpro(adjoint=...)` got {adjoint!r}. Pass an adjoint of Optimistix, "
            "`PseudoinverseAdjoint()`, or `None`."
        )
    if max_steps is not None and (not isinstance(max_steps, int) or max_steps < 1):
        raise ValueError(f"`varpro(max_steps=...)` got {max_steps!r}. Pass 1 or more.")


def _check_scale(x_scale, theta0, throw: bool):
    if x_scale is None:
        return None
    scale = vector_like(x_scale, theta0, "x_scale")
    if not throw and isinstance(scale, jax.core.Tracer):
        return jnp.where(scale > 0, scale, jnp.nan)  # and so is the result
    message = "`varpro(x_scale=...)` got a number that is not positive."
    one = raise_if(jnp.any(~(scale > 0)).astype(jnp.int32), ("", message))
    return scale * one.astype(scale.dtype)
