"""Linear least squares between bounds, by an active-set method."""

import equinox as eqx
import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Real

from .._base.axes import while_loop
from .condition import resolve_rcond
from .norms import power_of_two
from .products import adjoint_matmul, matmul


# Steps per unknown before it gives up. Random problems take less than one.
_STEPS = 10
# Multiples of eps max(m, n) times the size of the terms of a multiplier, below which it
# counts as rounding.
ROUNDING = 4


class BoundedSolution(eqx.Module):
    """A minimiser of ‖b − A x‖ between bounds, and which of them bind.

    - `x`: NaN where A, b or a bound is not valid.
    - `active`: −1 where x is at its lower bound, 1 at its upper one, 0 where it is free.
    - `scales`: the norms of the columns if they were solved with at norm one, for which
        they are independent; ones otherwise.
    - `num_steps`: how many least-squares problems were solved.
    - `converged`: whether the Karush–Kuhn–Tucker conditions hold to rounding.
    """

    x: Float[Array, " n"]
    active: Int[Array, " n"]
    scales: Float[Array, " n"]
    num_steps: Int[Array, ""]
    converged: Bool[Array, ""]

    @property
    def free(self) -> Bool[Array, "*batch n"]:
        """Where x is away from its bounds."""
        return self.active == 0


class _Step(eqx.Module):
    """Between two steps: a point `x`, which is feasible once `starting` is over.

    `refused` are variables that would leave their bound by their multiplier, but that
    the last solves, at the same x, have sent back to it. `scaled` is whether the columns
    are taken at norm one, until some of them prove dependent.
    """

    x: Float[Array, " n"]
    active: Int[Array, " n"]
    refused: Bool[Array, " n"]
    starting: Bool[Array, ""]
    scaled: Bool[Array, ""]
    done: Bool[Array, ""]
    count: Int[Array, ""]


def reduced(
    a: Float[Array, "m n"], b: Float[Array, "m *k"]
) -> tuple[Float[Array, "short n"], Float[Array, "short *k"]]:
    """R and Qᵀb of A = Q R where A is tall, A and b otherwise: the same minimisers."""
    if a.shape[0] <= a.shape[1]:
        return a, b
    q, r = jnp.linalg.qr(a)
    return r, matmul(q.T, b)


def bounded_least_squares(
    a: Float[Array, "m n"],
    b: Float[Array, " m"],
    lower: Float[Array, " n"],
    upper: Float[Array, " n"],
    rcond: Real[ArrayLike, ""] | None = None,
) -> BoundedSolution:
    """Returns a minimiser of ‖b − A x‖ for lower ≤ x ≤ upper, and the bounds that bind.

    Of a real A of any shape and rank; bounds may be infinite, and may be equal. With N
    the columns at a bound and F the free ones, x_F = A_F† (b − A_N x_N): of minimum norm
    where the free columns are dependent. Singular values of A_F up to `rcond` times the
    largest one (by default 2 eps max(m, n)) count as zero.

    All variables start free, and those that the solution puts outside are fixed at their
    bounds, until none is. Then each step either goes towards the solution on the free
    variables, as far as the bounds allow, and fixes what it meets; or from that solution
    frees the variable of the largest multiplier, of columns scaled to norm one. So the
    residual falls from one such solution to the next, and none comes twice. One singular
    value decomposition a step, n × n at most; one step in all where no bound binds and
    the columns are independent. It is of columns of norm one while they are, as then the
    solution does not depend on that, unless `rcond` says what is small.

    It is not differentiated: callers stop the gradients of what they pass.

    **Sources:** Lawson & Hanson, *Solving Least Squares Problems* (1974), chapter 23;
    Stark & Parker, *Bounded-variable least-squares*, Computational Statistics 10 (1995).
    """
    eps = jnp.finfo(a.dtype).eps
    rounding = eps * max(a.shape)
    valid = jnp.all(jnp.isfinite(a)) & jnp.all(jnp.isfinite(b))
    valid = valid & jnp.all((lower <= upper) & (lower < jnp.inf) & (upper > -jnp.inf))
    a, b = reduced(jnp.where(valid, a, 0), jnp.where(valid, b, 0))
    n = a.shape[1]
    if n == 0:
        empty = jnp.zeros(0, jnp.int32)
        return BoundedSolution(lower, empty, lower, jnp.zeros((), jnp.int32), valid)
    if len(a) == 0:
        a, b = jnp.zeros((1, n), a.dtype), jnp.zeros(1, a.dtype)
    units, norms = unit_columns(a)
    norms = jnp.where(norms > 0, norms, 1)
    cutoff = resolve_rcond(rcond, 2 * rounding, a.dtype)
    fixed = lower >= upper

    def step(carry):
        free = carry.active == 0
        rest = b - matmul(a, jnp.where(free, 0, carry.x))
        matrix = jnp.where(free[None, :], jnp.where(carry.scaled, units, a), 0)
        target, rank = _least_squares(matrix, rest, cutoff)
        target = jnp.where(carry.scaled, target / norms, target)
        target = jnp.where(free, target, carry.x)
        void = carry.scaled & (rank < jnp.sum(free))
        x, active, stopped = _towards(target, carry, lower, upper)
        # Where the step stops at once, it is the variable freed last that is sent back.
        left = stopped & ~carry.starting & jnp.all(x == carry.x)
        arrived = ~stopped | left
        refused = (carry.refused | (active != carry.active)) & left
        slopes, size = slopes_of(units, a, b, x)
        multipliers = jnp.where(active > 0, -slopes, slopes)
        may_leave = (active != 0) & ~fixed & ~refused & arrived
        may_leave = may_leave & (multipliers > ROUNDING * rounding * size)
        largest = jnp.argmax(jnp.where(may_leave, multipliers, 0))
        leaves = may_leave & (jnp.arange(n) == largest)
        return _Step(
            jnp.where(void, carry.x, x),
            jnp.where(void, carry.active, jnp.where(leaves, 0, active)),
            jnp.where(void, carry.refused, refused),
            carry.starting & (stopped | void),
            carry.scaled & ~void,
            arrived & ~jnp.any(leaves) & ~void,
            carry.count + 1,
        )

    most = _STEPS * (n + 1)
    start = _Step(
        jnp.where(fixed, lower, 0),
        -fixed.astype(jnp.int32),
        jnp.zeros(n, bool),
        jnp.array(True),
        jnp.array(rcond is None and len(a) == n),
        ~valid,
        jnp.zeros((), jnp.int32),
    )
    end = while_loop(lambda carry: ~carry.done & (carry.count < most), step, start)
    converged = valid & end.done & jnp.all(jnp.isfinite(end.x))
    x = jnp.where(valid, end.x, jnp.nan)
    scales = jnp.where(end.scaled, norms, 1)
    return BoundedSolution(x, end.active, scales, end.count, converged)


def unit_columns(
    a: Float[Array, "m n"],
) -> tuple[Float[Array, "m n"], Float[Array, " n"]]:
    """The columns divided by their norms, and the norms; a column of zeros stays."""
    powers = power_of_two(a, axis=0)
    scaled = a / powers[None, :]
    norms = jnp.linalg.norm(scaled, axis=0)
    return scaled / jnp.where(norms > 0, norms, 1)[None, :], powers * norms


def slopes_of(
    units: Float[Array, "m n"],
    a: Float[Array, "m n"],
    b: Float[Array, " m"],
    x: Float[Array, " n"],
) -> tuple[Float[Array, " n"], Float[Array, ""]]:
    """How fast ‖b − A x‖²/2 falls along each column of norm one, and the size of the
    terms of b − A x, of which the slope has the rounding."""
    slopes = adjoint_matmul(units, b - matmul(a, x))
    terms = jnp.abs(b) + matmul(jnp.abs(a), jnp.abs(x))
    return slopes, jnp.max(terms, initial=0)


def _least_squares(matrix, b, cutoff) -> tuple[Float[Array, " n"], Int[Array, ""]]:
    """The solution of minimum norm, and the rank."""
    u, s, vt = jsl.svd(matrix, full_matrices=False)
    kept = s > cutoff * s[0]
    coefficients = jnp.where(kept, matmul(b, u) / jnp.where(kept, s, 1), 0)
    return adjoint_matmul(vt, coefficients), jnp.sum(kept)


def _towards(target, carry: _Step, lower, upper):
    """The point towards `target`, the bounds that bind there, and if any stopped it.

    From a feasible x the first bound on the way does. At the start all do that `target`
    is outside of.
    """
    x, free = carry.x, carry.active == 0
    side = jnp.where(target >= upper, 1, jnp.where(target <= lower, -1, 0))
    side = jnp.where(free, side, 0)
    bound = jnp.where(side > 0, upper, lower)
    outside = side != 0
    away = bound != x
    part = jnp.where(away, (bound - x) / jnp.where(away, target - x, 1), 0)
    part = jnp.where(outside, part, jnp.inf)
    step = jnp.where(carry.starting, 1, jnp.minimum(jnp.min(part), 1))
    # Where rounding would, it must not pass the target.
    moved = x + step * (target - x)
    moved = jnp.clip(moved, jnp.minimum(x, target), jnp.maximum(x, target))
    moved = jnp.where(step < 1, moved, target)
    meets = (
        (part <= step)
        | carry.starting
        | jnp.where(side > 0, moved >= bound, moved <= bound)
    )
    meets = outside & meets
    x = jnp.where(meets, bound, moved)
    return x, jnp.where(meets, side, carry.active), jnp.any(outside)
