"""The iteration of conjugate gradients, on trees: what `CG` runs once or three times."""

import dataclasses

import equinox as eqx
import equinox.internal as eqxi
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import lineax.internal as lxi
from jaxtyping import Array, Bool, Integer, PyTree, Real, Scalar

from ..._base.tree import is_zero, promoting, tree_add, tree_scale, tree_sub
from ..._kernel.norms import largest_part, max_norm, power_of_two, two_norm
from .tolerance import Tolerance


_dot = promoting(lxi.tree_dot)


class System(eqx.Module):
    """A y = vector + A offset, from the guess `y0`; `None` is zero, or the identity."""

    operator: lx.AbstractLinearOperator
    size: Real[Array, ""]  # a lower bound of the norm of A
    vector: PyTree[Array]
    preconditioner: lx.AbstractLinearOperator | None
    y0: PyTree[Array] | None
    offset: PyTree[Array] | None
    to_floor: Bool[Array, ""] | None  # whether to go on until rounding stops it
    tolerance: Tolerance | None
    stabilise_every: int | None
    rounding: Real[Array, ""] | None  # of the vector: no residual is asked to be smaller
    # Constants of the loop: what the residual may be, and the length of b.
    allowed: PyTree[Array] | None
    norm_of_vector: Real[Array, ""]

    @classmethod
    def create(
        cls,
        operator,
        size,
        vector,
        *,
        tolerance,
        stabilise_every,
        preconditioner=None,
        y0=None,
        offset=None,
        to_floor=None,
        rounding=None,
    ) -> "System":
        allowed = None if tolerance is None else tolerance.allowed(vector)
        if rounding is not None:
            floor = lambda leaf: jnp.maximum(leaf, rounding.astype(leaf.dtype))
            allowed = jtu.tree_map(floor, allowed)
        return cls(
            operator,
            size,
            vector,
            preconditioner,
            y0,
            offset,
            to_floor,
            tolerance,
            stabilise_every,
            rounding,
            allowed,
            two_norm(vector),
        )

    def residual(self, solution: PyTree[Array]) -> PyTree[Array]:
        """b − A x, without over- or underflow within A where A is near one in size."""
        moved = tree_sub(solution, self.offset)
        size = power_of_two(largest_part(moved))
        image = self.operator.mv(tree_scale(1 / size, moved))
        return tree_sub(self.vector, tree_scale(size, image))

    def residual_met(self, residual, norm, unit) -> Bool[Array, ""]:
        """Of a residual in multiples of `unit`, and its Euclidean norm."""
        if self.tolerance is None:
            return jnp.array(False)
        if self.tolerance.norm is None:
            return norm <= self.allowed / unit
        return self.tolerance.excess(residual, self.allowed) <= 1 / unit

    def change_met(self, change, solution) -> Bool[Array, ""]:
        assert self.tolerance is not None
        return self.tolerance.excess(change, self.tolerance.allowed(solution)) <= 1


class Iterate(eqx.Module):
    solution: PyTree[Array]
    residual: PyTree[Array]  # in multiples of `unit`
    unit: Real[Array, ""]  # the largest entry of b: no product over- or underflows
    direction: PyTree[Array]  # p, of length one: the next step is along it
    gamma: Real[Array, ""]  # <M r, r>
    length: Real[Array, ""]  # of p before it was scaled to one
    curvature: Real[Array, ""]  # the largest <p, A p> so far
    travelled: Real[Array, ""]  # a bound of the length of y - offset
    residual_met: Bool[Array, ""]  # after a step, not at the start
    converged: Bool[Array, ""]
    definite: Bool[Array, ""]
    resting: Bool[Array, ""]  # no step is left that rounding would not drown
    step: Integer[Array, ""]

    @property
    def goes_on(self) -> Bool[Array, ""]:
        stopped = self.converged | self.resting | ~self.definite
        return (self.gamma > 0) & ~stopped


def start(system: System) -> Iterate:
    vector = system.vector
    zeros = jtu.tree_map(jnp.zeros_like, vector)
    solution = zeros if system.y0 is None else system.y0
    unit, residual = unit_of(vector), vector
    if not (system.y0 is None and system.offset is None):
        residual = system.residual(solution)
    if system.offset is not None:
        unit = jnp.where(is_zero(vector), unit_of(residual), unit)
    residual = tree_scale(1 / unit, residual)
    zero = jnp.zeros_like(unit)
    travelled = zero
    for begin in (system.y0, system.offset):
        travelled = travelled if begin is None else travelled + two_norm(begin)
    first = Iterate(
        solution=solution,
        residual=residual,
        unit=unit,
        direction=zeros,
        gamma=jnp.full_like(unit, jnp.inf),
        length=zero,
        curvature=zero,
        travelled=travelled,
        residual_met=jnp.array(False),
        converged=jnp.array(False),
        definite=jnp.array(True),
        resting=jnp.array(False),
        step=jnp.array(0),
    )
    gamma, length, direction, _ = _turned(system, first, residual)
    return dataclasses.replace(first, gamma=gamma, length=length, direction=direction)


def advance(system: System, iterate: Iterate) -> Iterate:
    unit, gamma, direction = iterate.unit, iterate.gamma, iterate.direction
    image = system.operator.mv(direction)
    curvature = _dot(direction, image).real / unit
    largest = jnp.maximum(iterate.curvature, jnp.abs(curvature))
    if system.preconditioner is None:
        largest = jnp.maximum(largest, system.size.astype(unit.dtype) / unit)
    # A direction in the null space, up to rounding: no step along it. For a singular
    # A the limit is where rounding makes a direction of the range of one that is not.
    limit = (10 if system.to_floor is None else 1000) * jnp.finfo(largest.dtype).eps
    flat = jnp.abs(curvature) <= limit * largest
    scale = largest * iterate.travelled + system.norm_of_vector / unit
    resting = flat | _at_floor(system, iterate, scale)
    definite = (curvature > 0) | resting
    moves = definite & ~resting
    step_size = jnp.where(moves, gamma / (iterate.length * curvature), 0)
    solution = tree_add(iterate.solution, tree_scale(step_size, direction))
    step = iterate.step + 1
    residual = _residual(system, iterate, solution, step_size, image)
    gamma, length, turned, norm = _turned(system, iterate, residual)
    residual_met = system.residual_met(residual, norm, unit)
    converged = jnp.array(False)
    if system.tolerance is not None:
        # Looked at only where the residual is met, which is in a few iterations.
        change_met = lax.cond(
            eqxi.nonbatchable(eqxi.unvmap_any(residual_met)),
            lambda: system.change_met(tree_scale(step_size, direction), solution),
            lambda: jnp.array(False),
        )
        # A residual of zero leaves nothing to change.
        converged = definite & residual_met & (change_met | (gamma == 0))
    if system.to_floor is not None:
        converged = jnp.where(system.to_floor, resting, converged)
    return Iterate(
        solution=solution,
        residual=residual,
        unit=unit,
        direction=turned,
        gamma=gamma,
        length=length,
        curvature=largest,
        travelled=iterate.travelled + step_size,
        residual_met=residual_met,
        converged=converged,
        definite=definite,
        resting=resting,
        step=step,
    )


def _turned(system: System, iterate: Iterate, residual: PyTree[Array]):
    """(<M r, r>, |M r + β p|, the next direction p, |r|).

    The direction is scaled to length one, <p, M⁻¹ p> = 1.
    """
    preconditioner = system.preconditioner
    z = residual if preconditioner is None else preconditioner.mv(residual)
    gamma = _dot(z, residual).real
    square = gamma if preconditioner is None else _dot(residual, residual).real
    beta = jnp.where(gamma > 0, gamma / iterate.gamma, 0)
    tail = beta * iterate.length
    length = jnp.sqrt(gamma + tail**2)  # as <r, p> = 0
    shrink = jnp.where(length > 0, 1 / length, 0)
    direction = tree_scale(shrink, tree_add(z, tree_scale(tail, iterate.direction)))
    return gamma, length, direction, jnp.sqrt(square)


def truly_met(system: System, final: Iterate) -> Bool[Array, ""]:
    """Whether b − A x itself is as small as its update by recurrence says.

    The update drifts away where a singular A has no solution. Up to ten times the
    tolerance, or the rounding of A x, as long as that is small beside b.
    """
    assert system.tolerance is not None
    residual = system.residual(final.solution)
    within = system.tolerance.excess(residual, system.allowed) <= 10
    unit, eps = final.unit, jnp.finfo(final.unit.dtype).eps
    norm = two_norm(residual) / unit
    norm_of_vector = system.norm_of_vector / unit
    rounding = 10 * eps * (final.curvature * final.travelled + norm_of_vector)
    small = jnp.minimum(rounding, jnp.sqrt(eps) * norm_of_vector)
    met = within | (norm <= small)
    if system.to_floor is None:
        return met
    return jnp.where(system.to_floor, norm <= 10 * rounding, met)


def _at_floor(system: System, iterate: Iterate, scale) -> Bool[Array, ""]:
    """Whether the residual is the rounding of A x and b, and good enough.

    A step along it would go anywhere in the null space of a singular A.
    """
    if system.preconditioner is not None:
        return jnp.array(False)
    rounding = 10 * jnp.finfo(scale.dtype).eps * scale
    if system.rounding is not None:
        rounding = jnp.maximum(rounding, system.rounding / iterate.unit)
    floor = jnp.sqrt(iterate.gamma) <= rounding
    enough = iterate.residual_met
    if system.to_floor is not None:
        enough = enough | system.to_floor
    return floor & enough


def _residual(system: System, iterate: Iterate, solution, step_size, image):
    """The residual after a step, recomputed if it is time."""
    every = system.stabilise_every

    def update():
        return tree_sub(iterate.residual, tree_scale(step_size / iterate.unit, image))

    def recompute():
        return tree_scale(1 / iterate.unit, system.residual(solution))

    if every is None:
        return update()
    step = eqxi.unvmap_max(iterate.step) + 1  # one branch for a whole batch
    return lax.cond(eqxi.nonbatchable(step % every == 0), recompute, update)


def unit_of(vector: PyTree[Array]) -> Scalar:
    """The largest entry, or one if that is no scale."""
    largest = max_norm(vector)
    return jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
