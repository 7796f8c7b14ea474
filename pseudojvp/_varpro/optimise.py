"""θ as the root of ∂(½‖r‖²)/∂θ, of a search that an adjoint differentiates."""

import functools as ft
from collections.abc import Callable
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import optimistix as optx
from jaxtyping import Array, Bool, Float, Inexact, Int, Integer, PyTree

from .._base.axes import as_varying, cond, like, varying_axes
from .._base.order import after, after_in_batch
from .._base.tree import all_finite
from .._front.adjoint import PseudoinverseAdjoint
from .._map.factorised import Factorised, nondifferentiable
from .._solver.counterpart import counterpart
from .compression import compress
from .data_sets import each, Eliminations, listed
from .elimination import Elimination
from .loss import Loss
from .model import Observations, size_of_data
from .parameters import Box
from .progress import EvaluationLine
from .real import as_real, squared_norm
from .residual import residual_columns
from .reweighting import reweighting, robust_system
from .search import Evaluated, Linearised, Search


# Bates & Watts (1981): below it, what is left to gain is lost in the statistical error.
_LARGEST_OFFSET = 1e-3


class Settings(eqx.Module):
    """How θ is looked for, as `unravel(scale * point)`."""

    unravel: Callable = eqx.field(static=True)
    scale: Float[Array, " q"]
    bounds: Box | None
    loss: Loss | None
    optimiser: optx.AbstractLeastSquaresSolver | optx.AbstractMinimiser
    adjoint: optx.AbstractAdjoint
    max_steps: int | None = eqx.field(static=True)
    exact: bool = eqx.field(static=True)
    # Of each data set, as are `coefficients`, the same of several columns; those are
    # `None` if columns cannot be combined.
    shift_shape: Any = eqx.field(static=True)
    coefficients: Any = eqx.field(static=True)
    progress: EvaluationLine | None = eqx.field(static=True)

    def theta(self, point: Float[Array, " q"]) -> PyTree[Array]:
        return self.unravel(self.inside(point))

    def inside(self, point: Float[Array, " q"]) -> Float[Array, " q"]:
        """The vector of θ, within its bounds whatever the rounding of `point` is."""
        vector = self.scale * point
        if self.bounds is None:
            return vector
        return self.bounds.held(vector, self.bounds.over(self.scale).side(point))

    def free(self, point: Float[Array, " q"]) -> Bool[Array, " q"] | None:
        """What is between its bounds, and not at one; `None` without bounds."""
        return None if self.box is None else self.box.side(point) == 0

    @property
    def box(self) -> Box | None:
        """The bounds of a point."""
        return None if self.bounds is None else self.bounds.over(self.scale)

    @property
    def through_the_search(self) -> bool:
        """Whether the iterates are differentiated, and not the point where they end."""
        return isinstance(self.adjoint, optx.RecursiveCheckpointAdjoint)

    @property
    def tolerances(self) -> tuple[float, float] | None:
        """Those of Levenberg–Marquardt with its default parts, or `QR()` of this library,
        for which `Search` has the steps; `None` for any other optimiser."""
        optimiser = self.optimiser
        if self.through_the_search or type(optimiser) is not optx.LevenbergMarquardt:
            return None
        rtol, atol = optimiser.rtol, optimiser.atol
        numbers = isinstance(rtol, float) and isinstance(atol, float)
        if not numbers:
            return None
        default = optx.LevenbergMarquardt(rtol, atol)
        same = _by_counterparts(optimiser) == _by_counterparts(default)
        return (rtol, atol) if same else None


class Outcome(eqx.Module):
    """What is known of a search besides θ."""

    result: optx.RESULTS
    num_steps: Int[Array, ""]
    polishing_steps: Int[Array, ""]
    relative_offset: Float[Array, ""]


class Solution(eqx.Module):
    """A point with the elimination there, of several data sets in tuples."""

    point: Float[Array, " q"]
    residual: PyTree[Inexact[Array, "_ _"]]
    coefficients: PyTree[Inexact[Array, "_ _"]]
    rank: PyTree[Integer[Array, "..."]]
    eliminated: lx.RESULTS
    outcome: Outcome


def optimise(
    elimination: Elimination | Eliminations,
    args: Any,
    observations: Observations | tuple[Observations, ...],
    start: Float[Array, " q"],
    settings: Settings,
) -> Solution:
    """Returns the solution, differentiable as the adjoint says."""
    start = as_varying(varying_axes((elimination, args, observations)), start)
    if start.size == 0:
        return _evaluated(elimination, args, observations, start, settings)
    # Other adjoints differentiate through the search, and the factor is a constant.
    if settings.through_the_search or settings.loss is not None:
        reduced = observations
    else:
        shapes = settings.shift_shape, settings.coefficients
        reduced = each(compress, observations, *shapes)
    # In units of ‖W y‖, no square or product of residuals over- or underflows.
    size = size_of_data(reduced)
    in_units = each(lambda o: o.over(size), reduced)
    inputs = elimination, args, observations, in_units, size, start, settings
    adjoint = settings.adjoint
    if isinstance(adjoint, PseudoinverseAdjoint):
        solver = nondifferentiable(adjoint.linear_solver)
        parts = zip(listed(reduced), listed(observations), strict=True)
        whole = all(part is given for part, given in parts)
        return _solution(inputs, whole, solver, adjoint.throw)
    point, (outcome, _) = adjoint.apply(_search, _stationarity, inputs, frozenset())
    at = _evaluate(elimination, settings.theta(point), args, observations)
    return Solution(point, at.residual, at.coefficients, at.rank, at.result, outcome)


def _evaluated(elimination, args, observations, point, settings: Settings) -> Solution:
    """Without a parameter to look for."""
    at = _evaluate(elimination, settings.theta(point), args, observations)
    none = jnp.array(0)
    offset = jnp.zeros((), point.dtype)
    outcome = Outcome(optx.RESULTS.successful, none, none, offset)
    return Solution(point, at.residual, at.coefficients, at.rank, at.result, outcome)


def _evaluate(elimination, theta, args, observations) -> Evaluated:
    at = Evaluated.of(elimination(theta, args, observations))
    # A finite sum of squares spares a pass over all of the data; it can overflow, too.
    finite = jnp.isfinite(squared_norm(at.residual))
    finite = cond(finite, lambda _: True, all_finite, at.residual)
    result = lx.RESULTS.where(finite, at.result, lx.RESULTS.nonfinite_input)
    return eqx.tree_at(lambda at: at.result, at, result)


@eqx.filter_custom_jvp
def _solution(inputs, known: bool, solver, throw: bool) -> Solution:
    """With the elimination that the search has made, if it is `known`."""
    del solver, throw
    elimination, args, observations, _, size, _, settings = inputs
    loop = ft.partial(eqxi.while_loop, kind="lax")
    search = _search if settings.loss is None else ft.partial(reweighting, _search)
    point, (outcome, at) = search((*inputs, loop))
    if known:
        r, c = _times(size, (at.residual, at.coefficients))
    else:
        at = _evaluate(elimination, settings.theta(point), args, observations)
        r, c = at.residual, at.coefficients
    return Solution(point, r, c, at.rank, at.result, outcome)


@_solution.def_jvp
def _solution_jvp(primals, tangents):
    """The implicit function theorem for s = 0, s = ∂(½‖r‖²)/∂point: with ẋ that of the
    point, ∂s/∂point ẋ + ṡ = 0; and those of r and c at a point that stays, and by ẋ."""
    inputs, known, solver, throw = primals
    (t_elimination, t_args, t_observations, *_, t_settings), *_ = tangents
    primal = _solution(inputs, known, solver, throw)
    *theta, _, size, _, settings = inputs
    point = after_in_batch(primal.residual, primal.point)
    theta = *theta, settings.loss
    t_theta = t_elimination, t_args, t_observations, t_settings.loss
    perturbed = jtu.tree_map(
        lambda t: t is not None, t_theta, is_leaf=lambda t: t is None
    )
    moving, still = eqx.partition(theta, perturbed)

    def system(point, moving):
        *problem, loss = eqx.combine(moving, still)
        inputs = *problem, None, size, None, settings
        if loss is not None:
            return robust_system(point, primal.coefficients, loss, inputs)
        gradient, at = _gradient(point, inputs)
        return gradient, at.residual, at.coefficients

    _, push = jax.linearize(system, point, moving)
    no_motion = jtu.tree_map(jnp.zeros_like, moving)
    by_point = jax.vmap(lambda unit: push(like(point, unit), no_motion))(
        jnp.eye(point.size, dtype=point.dtype)
    )
    hessian, *rest = by_point
    free = settings.free(point)
    hessian = lx.MatrixLinearOperator(_of_free(hessian.T, free))
    factorised, _ = Factorised.create(hessian, solver, throw=throw)
    t_theta = after_in_batch(factorised.state, t_theta)
    t_gradient, *t_rest = push(jnp.zeros_like(point), t_theta)
    # As a derivative: if the solve fails, tangents and cotangents are NaN.
    if free is not None:
        t_gradient = jnp.where(free, t_gradient, 0)
    t_point, *_ = factorised.for_derivative().apply(-t_gradient)
    assert t_point is not None
    t_r, t_c = jtu.tree_map(
        lambda t, by: (
            size.astype(t.dtype) * (t + jnp.tensordot(t_point.astype(t.dtype), by, 1))
        ),
        tuple(t_rest),
        tuple(rest),
    )
    t_solution = jtu.tree_map(lambda _: None, primal)
    return primal, eqx.tree_at(
        lambda s: (s.point, s.residual, s.coefficients, s.outcome.relative_offset),
        t_solution,
        # A zero that depends on something, so that reverse mode does not drop it.
        (t_point, t_r, t_c, 0 * jnp.sum(t_point)),
        is_leaf=lambda leaf: leaf is None,
    )


def _of_free(hessian: Float[Array, "q q"], free: Bool[Array, " q"] | None):
    """A multiple of the identity for what stays at its bound."""
    if free is None:
        return hessian
    kept = jnp.where(free[:, None] & free[None, :], hessian, 0)
    largest = jnp.max(jnp.abs(kept))
    return kept + jnp.diag(jnp.where(free, 0, jnp.where(largest > 0, largest, 1)))


def _search(inputs):
    elimination, args, _, reduced, _, start, settings, while_loop = inputs
    if settings.progress is not None:
        jax.debug.callback(settings.progress.begin)

    def linearise(point: Float[Array, " q"]) -> Linearised:
        theta = settings.theta(point)
        at = elimination(theta, args, reduced)
        jacobian = elimination.jacobian(theta, args, reduced, at, exact=settings.exact)
        jacobian = jax.vmap(as_real, out_axes=1)(jacobian)
        jacobian = jacobian * settings.scale.astype(jacobian.dtype)[None, :]
        if settings.progress is not None and settings.tolerances is not None:
            norm = jnp.sqrt(squared_norm(at.residual))
            jax.debug.callback(settings.progress.show, norm)
        return Linearised.create(
            Evaluated.of(at), jacobian, not settings.through_the_search
        )

    linearise = eqx.filter_closure_convert(linearise, start)
    results = optx.RESULTS
    search = Search(
        linearise,
        settings.box,
        settings.tolerances,
        settings.max_steps,
        settings.through_the_search,
    )
    stopped: Any = results.stagnation  # a name of lineax
    late = results.nonlinear_max_steps_reached
    if settings.tolerances is None:
        start, ended, num_steps = _by_optimistix(linearise, inputs)
        found = search(start, while_loop)
        good = results.where(ended == late, results.successful, ended)
        bad = results.where(ended == results.successful, stopped, ended)
    else:
        found = search(start, while_loop)
        num_steps, good, bad = found.num_steps, results.successful, stopped
        if settings.max_steps is not None:
            bad = results.where(num_steps == settings.max_steps, late, bad)
    offset = found.relative_offset()
    result = results.where(offset <= _LARGEST_OFFSET, good, bad)
    result = results.where(found.moved < jnp.inf, result, results.nonfinite)
    outcome = Outcome(result, jnp.asarray(num_steps), found.polishing_steps, offset)
    return found.point, (outcome, found.at)


def _by_optimistix(linearise, inputs):
    """The point at which the optimiser ends, its result and the number of its steps."""
    elimination, args, _, reduced, _, start, settings, _ = inputs
    # Optimistix takes no other dtype than the default (0.1.0).
    working = jnp.result_type(float)
    unit = jnp.ones((), working)
    if isinstance(settings.optimiser, optx.AbstractLeastSquaresSolver):
        # That in which a damping of one is the first of `Search`.
        unit = jnp.sqrt(linearise(start).first_damping()).astype(working)
        unit = lax.stop_gradient(unit)
    start = after(unit, start)

    def residual(point, elimination):
        inputs = elimination, args, reduced
        theta = settings.theta(point.astype(start.dtype))
        columns = residual_columns(theta, inputs, settings.exact)
        flat = as_real(columns).astype(working)
        if settings.progress is not None:
            jax.debug.callback(settings.progress.show, jnp.linalg.norm(flat))
        return flat / unit

    solution = optx.least_squares(
        residual,
        _by_counterparts(settings.optimiser),
        start.astype(working),
        elimination,
        max_steps=settings.max_steps,
        adjoint=settings.adjoint,
        throw=False,
    )
    point = solution.value.astype(start.dtype)
    return point, solution.result, solution.stats["num_steps"]


def _by_counterparts(optimiser):
    """With our solvers for lineax's, which fail in `jax.shard_map`."""
    is_solver = lambda part: isinstance(part, lx.AbstractLinearSolver)
    return jtu.tree_map(counterpart, optimiser, is_leaf=is_solver)


def _stationarity(point, _, inputs):
    gradient, _ = _gradient(point, inputs)
    settings = inputs[6]
    free = settings.free(point)
    if free is None:
        return gradient
    # Zero where a bound holds a number, and regular there.
    return jnp.where(free, gradient, point - lax.stop_gradient(point))


def _gradient(point, inputs):
    """∂(½‖r‖²)/∂point, with c as a constant: r is orthogonal to what c changes."""
    elimination, args, observations, _, size, _, settings, *_ = inputs
    observations = each(lambda o: o.over(size), observations)
    at = elimination(settings.theta(point), args, observations)

    def fitted(point):
        theta = settings.theta(point)
        gain = each(lambda o: o.gain, observations)
        value = elimination.predict(theta, args, at.coefficients, gain)
        return each(lambda o, v: o.weigh(v), observations, value)

    value, pull = jax.vjp(fitted, point)
    weights = jtu.tree_map(lambda r, v: -r.conj().astype(v.dtype), at.residual, value)
    (gradient,) = pull(weights)
    return gradient, at


def _times(size: Float[Array, ""], tree: PyTree[Array]) -> PyTree[Array]:
    return jtu.tree_map(lambda leaf: size.astype(leaf.dtype) * leaf, tree)
