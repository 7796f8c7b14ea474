"""The steps of `CG`, `LearnedCG` and `FlexibleCG`."""

from typing import Any

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Inexact, Integer, PyTree, Real

from ..._base.results import first_failure
from ..._base.structure import Structure
from ..._base.tree import tree_scale
from ..unrolled import Iteration, iteration_of, Outcome
from .cg import CG, definite_preconditioner
from .flexible import FlexibleState
from .flexible_cg import FlexibleCG
from .iteration import divide, dot, flat_system, KrylovState, length, over, System
from .learned_cg import LearnedCG
from .unrolled import check_quiet, check_steps, iteration, Progress, safe_length


class _Iterate(eqx.Module):
    solution: Inexact[Array, " n"]
    residual: Inexact[Array, " n"]
    direction: Inexact[Array, " n"]
    gamma: Real[Array, ""]  # <P r, r> before the last step; infinite to begin
    square: Real[Array, ""]  # |p|^2, in the norm of P^-1; a constant


@iteration_of.register(CG)
def _(solver: CG, state: KrylovState, vector: PyTree[Array], options: Any) -> Iteration:
    check_steps(solver)
    if not solver.well_posed:
        raise ValueError(
            "`UnrolledAdjoint` got `CG(well_posed=False)`, which runs three times. Pass "
            "`well_posed=True`, or `MINRES` or `LSMR` for a singular A."
        )
    return _conjugate_gradients(solver, state, vector, options)[0]


@iteration_of.register(LearnedCG)
def _(
    solver: LearnedCG, state: KrylovState, vector: PyTree[Array], options: Any
) -> Iteration:
    """Whose result is that of b − A x, computed as such."""
    check_quiet(solver)
    steps, system = _conjugate_gradients(
        solver, state, vector, options, solver.factors, solver.shifts
    )

    def finish(carry) -> Outcome:
        outcome = steps.finish(carry)
        x = lax.stop_gradient(carry[0].solution)
        residual = lax.stop_gradient(system.vector - system.mv(x))
        met, _ = system.judge(residual, length(residual))
        results = lx.RESULTS
        told = results.where(met, results.successful, results.max_steps_reached)
        return outcome._replace(result=first_failure(outcome.result, told))

    return steps._replace(finish=finish)


def _conjugate_gradients(
    solver: CG | LearnedCG,
    state: KrylovState,
    vector: PyTree[Array],
    options: Any,
    factors: Real[Array, " num_steps"] | None = None,
    shifts: Real[Array, " num_steps"] | None = None,
) -> tuple[Iteration, System]:
    """A step is `factors` times that of CG, `shifts` are added to the next β."""
    structure = Structure.of(state.operator.in_structure())
    preconditioner = definite_preconditioner(solver, options, structure)
    system = flat_system(solver, state, vector, options)
    precondition = system.mapped(preconditioner)
    residual = system.vector
    if "y0" in options:
        residual = residual - system.mv(system.guess)
    zero = jnp.zeros_like(system.norm)
    start = _Iterate(
        system.guess,
        residual,
        jnp.zeros_like(residual),
        jnp.full_like(zero, jnp.inf),
        zero,
    )

    def advance(iterate: _Iterate, progress: Progress):
        r = iterate.residual
        z = precondition(r)
        gamma = dot(z, r).real
        beta = divide(gamma, iterate.gamma)
        if shifts is not None:  # that of the step before, of which the first has none
            beta = beta + shifts[progress.count - 1].astype(beta.dtype)
        p = z + tree_scale(beta, iterate.direction)
        square = lax.stop_gradient(gamma + beta**2 * iterate.square)
        image = system.mv(p)
        product = dot(p, image).real
        curvature = lax.stop_gradient(divide(product, square))
        largest = jnp.maximum(progress.size, jnp.abs(curvature))
        moves = curvature > 10 * system.eps * largest
        step_size = jnp.where(moves, gamma / jnp.where(moves, product, 1), 0)
        if factors is not None:
            step_size = factors[progress.count].astype(step_size.dtype) * step_size
        new = _Iterate(
            iterate.solution + tree_scale(step_size, p),
            r - tree_scale(step_size, image),
            p,
            gamma,
            square,
        )
        told = progress.after(
            system, new.solution, length(new.residual), largest, broken=~moves
        )
        return new, told

    size = 0.5 if preconditioner is None else 0.0
    steps = iteration(
        system,
        start,
        advance,
        Progress.start(system, length(residual), size),
        residual,
        norm_of=lambda iterate: safe_length(iterate.residual),
        solution_of=lambda iterate: iterate.solution,
    )
    return steps, system


class _Flexible(eqx.Module):
    solution: Inexact[Array, " n"]
    residual: Inexact[Array, " n"]
    directions: Inexact[Array, "memory n"]  # d, of length one
    images: Inexact[Array, "memory n"]  # A d
    inverses: Real[Array, " memory"]  # 1 / <d, A d>; zero where there is none yet
    step: Integer[Array, ""]


@iteration_of.register(FlexibleCG)
def _(
    solver: FlexibleCG, state: FlexibleState, vector: PyTree[Array], options: Any
) -> Iteration:
    check_steps(solver)
    system = flat_system(solver, state.scaled, vector, options)
    residual = system.vector
    if "y0" in options:
        residual = residual - system.mv(system.guess)
    memory = max(min(solver.memory, residual.size, system.max_steps), 1)
    vectors = jnp.zeros((memory, residual.size), residual.dtype)
    zero = jnp.zeros_like(system.norm)
    start = _Flexible(
        system.guess,
        residual,
        vectors,
        vectors,
        jnp.zeros(memory, zero.dtype),
        jnp.array(0),
    )

    def advance(iterate: _Flexible, progress: Progress):
        r = iterate.residual
        z = state.precondition(over(safe_length(r), r))

        def conjugate(z):
            inner = _multiply(iterate.images.conj(), z)
            inner = iterate.inverses.astype(z.dtype) * inner
            return z - _multiply(inner, iterate.directions)

        new = conjugate(conjugate(z))
        lost = lax.stop_gradient(~(length(new) > system.eps**0.5 * length(z)))
        inverses = jnp.where(lost, 0, iterate.inverses)
        z = jnp.where(lost, z, new)
        direction = over(safe_length(z), z)
        image = system.mv(direction)
        curvature = dot(direction, image).real
        largest = jnp.maximum(progress.size, jnp.abs(lax.stop_gradient(curvature)))
        moves = curvature > 10 * system.eps * largest
        inverse = jnp.where(moves, 1 / jnp.where(moves, curvature, 1), 0)
        step_size = inverse.astype(z.dtype) * dot(direction, r)
        place = lax.rem(iterate.step, memory)
        new = _Flexible(
            iterate.solution + step_size * direction,
            r - step_size * image,
            iterate.directions.at[place].set(direction),
            iterate.images.at[place].set(image),
            inverses.at[place].set(inverse),
            iterate.step + 1,
        )
        told = progress.after(
            system, new.solution, length(new.residual), largest, broken=~moves
        )
        return new, told

    return iteration(
        system,
        start,
        advance,
        Progress.start(system, length(residual), 0.5),
        residual,
        norm_of=lambda iterate: safe_length(iterate.residual),
        solution_of=lambda iterate: iterate.solution,
    )


def _multiply(left, right):
    return jnp.matmul(left, right, precision=lax.Precision.HIGHEST)
