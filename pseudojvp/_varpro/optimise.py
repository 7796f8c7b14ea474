"""θ as the root of ∂(½‖r‖²)/∂θ: an optimiser of Optimistix, and then a polish."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import optimistix as optx
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._base.order import after
from .._map.factorised import Factorised
from .._solver import PivotedQR
from .compression import compress
from .elimination import Elimination
from .model import Observations
from .progress import EvaluationLine
from .real import as_real
from .residual import residual_columns


# Undamped steps after the optimiser. Levenberg–Marquardt compares sums of squares, in
# which a change of θ by √eps is lost in rounding; a Gauss–Newton step has no such floor.
_POLISHING_STEPS = 20
# What Levenberg–Marquardt first adds to the diagonal of JᵀJ, over its largest entry:
# Madsen, Nielsen & Tingleff, Methods for Non-Linear Least Squares Problems (2004),
# (3.14).
_FIRST_DAMPING = 1e-3
# Bates & Watts (1981): below it, what is left to gain is lost in the statistical error.
_LARGEST_OFFSET = 1e-3
# θ is then known to 1e-10 of its standard deviation, and a batch waits for its slowest.
_NEGLIGIBLE_OFFSET = 1e-10
# Residuals below this multiple of eps ‖W y‖ are rounding.
_ROUNDING = 1e2


class Settings(eqx.Module):
    """How θ is looked for, as `unravel(scale * point)`."""

    unravel: Callable = eqx.field(static=True)
    scale: Float[Array, " q"]
    optimiser: optx.AbstractLeastSquaresSolver | optx.AbstractMinimiser
    adjoint: optx.AbstractAdjoint
    max_steps: int | None = eqx.field(static=True)
    exact: bool = eqx.field(static=True)
    shift_shape: tuple[int, ...] | None = eqx.field(static=True)
    coefficients: int = eqx.field(static=True)  # of each column
    progress: EvaluationLine | None = eqx.field(static=True)

    def theta(self, point: Float[Array, " q"]) -> PyTree[Array]:
        return self.unravel(self.scale * point)


class Outcome(eqx.Module):
    """What is known of a search besides θ.

    - `relative_offset`: the size of ∂r/∂θ (∂r/∂θ)†r per parameter over that of the rest
        of r per datum: the cosine between r and what θ can still change, as a multiple
        of the statistical error. Zero where r is rounding.
    """

    result: optx.RESULTS
    num_steps: Int[Array, ""]
    polishing_steps: Int[Array, ""]
    relative_offset: Float[Array, ""]


def optimise(
    elimination: Elimination,
    args: Any,
    observations: Observations,
    start: Float[Array, " q"],
    settings: Settings,
) -> tuple[Float[Array, " q"], Outcome]:
    """Returns the point and the outcome, differentiable as the adjoint says."""
    # Other adjoints differentiate through the search, and the factor is a constant.
    if isinstance(settings.adjoint, optx.RecursiveCheckpointAdjoint):
        reduced = observations
    else:
        reduced = compress(observations, settings.shift_shape, settings.coefficients)
    # In units of ‖W y‖, no square or product of residuals over- or underflows.
    size = reduced.size()
    inputs = elimination, args, observations, reduced.over(size), size, start, settings
    return settings.adjoint.apply(_search, _stationarity, inputs, frozenset())


def _search(inputs):
    elimination, args, _, reduced, _, start, settings, while_loop = inputs
    step = _GaussNewtonStep(elimination, args, reduced, settings)
    # Optimistix takes no other dtype than the default (0.1.0).
    working = jnp.result_type(float)
    unit = _first_unit(step, start).astype(working)
    start = after(unit, start)

    def residual(point, elimination):
        inputs = elimination, args, reduced
        theta = settings.theta(point.astype(start.dtype))
        columns = residual_columns(theta, inputs, settings.exact)
        flat = as_real(columns).astype(working)
        if settings.progress is not None:
            jax.debug.callback(settings.progress.show, jnp.linalg.norm(flat))
        return flat / unit

    if settings.progress is not None:
        jax.debug.callback(settings.progress.begin)
    solution = optx.least_squares(
        residual,
        settings.optimiser,
        start.astype(working),
        elimination,
        max_steps=settings.max_steps,
        adjoint=settings.adjoint,
        throw=False,
    )
    point, polishing_steps, at = _polish(
        step, solution.value.astype(start.dtype), while_loop
    )
    results = optx.RESULTS
    result = results.where(
        at.converged & (solution.result == results.nonlinear_max_steps_reached),
        results.successful,
        solution.result,
    )
    stopped = results.promote(lx.RESULTS.stagnation)
    unknown = ~at.converged & (result == results.successful)
    result = results.where(unknown, stopped, result)
    num_steps = jnp.asarray(solution.stats["num_steps"])
    return point, Outcome(result, num_steps, polishing_steps, at.relative_offset)


def _first_unit(step: "_GaussNewtonStep", start: Float[Array, " q"]) -> Float[Array, ""]:
    """In which r is measured so that the I of JᵀJ + I damps as `_FIRST_DAMPING` says."""
    if isinstance(step.settings.optimiser, optx.AbstractMinimiser):
        return jnp.ones((), start.dtype)
    _, jacobian = step.linearised(start)
    longest = jnp.max(jnp.linalg.norm(jacobian, axis=0))
    unit = jax.lax.stop_gradient(math.sqrt(_FIRST_DAMPING) * longest)
    return jnp.where(jnp.isfinite(unit) & (unit > 0), unit, 1)


class _State(eqx.Module):
    """The Gauss–Newton step at some point, and what it would change."""

    step: Float[Array, " q"]
    norm: Float[Array, ""]  # ‖r‖
    moved: Float[Array, ""]  # ‖J J†r‖
    relative_offset: Float[Array, ""]
    converged: Bool[Array, ""]
    negligible: Bool[Array, ""]  # no step from here is worth its while


class _GaussNewtonStep(eqx.Module):
    elimination: Elimination
    args: Any
    observations: Observations
    settings: Settings

    def linearised(self, point: Float[Array, " q"]):
        """r and ∂r/∂point, as real numbers."""
        theta = self.settings.theta(point)
        at = self.elimination(theta, self.args, self.observations)
        jacobian = self.elimination.jacobian(
            theta, self.args, self.observations, at, exact=self.settings.exact
        )
        jacobian = jax.vmap(as_real, out_axes=1)(jacobian)
        scale = self.settings.scale.astype(jacobian.dtype)
        return as_real(at.residual), jacobian * scale[None, :]

    def __call__(self, point: Float[Array, " q"]) -> _State:
        r, jacobian = self.linearised(point)
        # Columns of one length: none is lost for the scale of its parameter.
        length = jnp.linalg.norm(jacobian, axis=0)
        length = jnp.where(length > 0, length, 1)
        operator = lx.MatrixLinearOperator(jacobian / length[None, :])
        factorised, _ = Factorised.create(operator, PivotedQR(), throw=False)
        step, rest, _, _ = factorised.apply(r, residual=True)
        assert step is not None
        assert rest is not None  # J has more rows than columns
        moved, rest = jnp.linalg.norm(r - rest), jnp.linalg.norm(rest)
        rows, cols = jacobian.shape
        per_datum = rest * math.sqrt(cols / max(rows - cols, 1))
        rounding = moved <= _ROUNDING * jnp.finfo(r.dtype).eps
        offset = jnp.where(
            rounding, 0, moved / jnp.where(per_datum > 0, per_datum, moved)
        )
        return _State(
            (step / length).astype(point.dtype),
            jnp.linalg.norm(r),
            moved,
            offset,
            offset <= _LARGEST_OFFSET,
            moved <= _NEGLIGIBLE_OFFSET * per_datum,
        )


def _polish(step: _GaussNewtonStep, point, while_loop):
    """Gauss–Newton steps for as long as they bring r closer to orthogonal to J."""

    def cond(carry):
        return ~carry[-1]

    def body(carry):
        point, evaluations, at, _ = carry
        new_point = point - at.step
        new_at = step(new_point)
        eps = jnp.finfo(at.norm.dtype).eps
        better = (new_at.moved < at.moved) & (new_at.norm <= at.norm * (1 + eps**0.5))
        point, at = jtu.tree_map(
            lambda new, old: jnp.where(better, new, old), (new_point, new_at), (point, at)
        )
        evaluations = evaluations + better.astype(evaluations.dtype)
        return point, evaluations, at, ~better | at.negligible

    # Before the first evaluation, at the point itself, all is as bad as can be.
    structure = eqx.filter_eval_shape(step, point)
    at = jtu.tree_map(lambda s: jnp.full(s.shape, jnp.inf, s.dtype), structure)
    at = eqx.tree_at(
        lambda at: (at.step, at.converged, at.negligible),
        at,
        (jnp.zeros_like(point), jnp.array(False), jnp.array(False)),
    )
    carry = (point, jnp.array(0), at, jnp.array(False))
    carry = while_loop(cond, body, carry, max_steps=1 + _POLISHING_STEPS)
    point, evaluations, at, _ = carry
    return point, jnp.maximum(evaluations - 1, 0), at


def _stationarity(point, _, inputs):
    """∂(½‖r‖²)/∂point, with c as a constant: r is orthogonal to what c changes."""
    elimination, args, observations, _, size, _, settings, *_ = inputs
    observations = observations.over(size)
    at = elimination(settings.theta(point), args, observations)

    def fitted(point):
        theta = settings.theta(point)
        value = elimination.predict(theta, args, at.coefficients, observations.gain)
        return observations.weigh(value)

    value, pull = jax.vjp(fitted, point)
    (gradient,) = pull(-at.residual.conj().astype(value.dtype))
    return gradient
