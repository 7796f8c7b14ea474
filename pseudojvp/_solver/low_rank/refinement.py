"""Iterative refinement of a solution of a low-rank update, by the residual of the sum."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Inexact, Real

from ..._base.axes import while_loop
from ..._base.results import first_failure
from ..._base.structure import Structure
from ..._kernel.norms import two_norm
from ..krylov.iteration import flat_mv
from .sizes import largest_of_columns, moduli


_GOAL = 10.0  # backward error to refine down to, in multiples of eps
LARGEST_ERROR = 1e4  # and the largest that is successful, as for `LU`
_ROUNDING_OF_ROWS = 1e3  # a row this small, in n eps, is rounding (Arioli et al.)
MOST_STEPS = 50  # of refinement, each of which halves the residual at least
_LARGEST_STEP = 0.1  # of a solution that has a digit


class Iterate(eqx.Module):
    solution: Inexact[Array, " n"]
    residual: Inexact[Array, " n"]
    norm: Real[Array, ""]  # of the residual, or a backward error
    before: Real[Array, ""]  # the norm one step earlier
    moved: Bool[Array, ""]  # whether the last step left the solution no digit
    step: Any
    inner_steps: Any
    result: lx.RESULTS


def refined(
    operator: lx.AbstractLinearOperator,
    vector: Inexact[Array, " n"],
    apply: Callable[[Array], tuple[Array, lx.RESULTS, Any]],
    aimed: Real[Array, ""] | None,
    size: Real[Array, ""] | None,
    doubtful: Bool[Array, ""] | bool,
) -> tuple[Iterate, Bool[Array, ""]]:
    """The last iterate, and whether its residual is small enough.

    `apply` is an approximate M⁻¹, with its result and its number of steps; `aimed`, if
    not `None`, what the norm of a residual may be. With `size`, |M v| of a unit vector
    v, norms of residuals are looked at, and without it each row. If the condition is
    `doubtful` one step of refinement is made in any case: what that moves is an error
    that a small residual may hide.
    """
    mv = flat_mv(operator)
    spaces = operator.in_structure(), operator.out_structure()
    eps = Structure.of(spaces).eps
    norm = two_norm(vector)

    if size is not None:
        largest = two_norm
        measure = lambda _, residual: two_norm(residual)
        rounding = lambda x: eps * (size * two_norm(x) + norm)
    else:
        columns = largest_of_columns(operator).astype(norm.dtype)
        units = jnp.where(columns > 0, columns, 1)
        largest = lambda x: jnp.max(units * jnp.abs(x), initial=0)
        measure = _backward_error(operator, vector, units, eps)
        rounding = lambda _: jnp.asarray(eps, norm.dtype)

    def goal(iterate):
        goal = _GOAL * rounding(iterate.solution)
        return goal if aimed is None else jnp.maximum(goal, aimed)

    def goes_on(iterate):
        moves = (iterate.norm > goal(iterate)) & (iterate.norm <= 0.5 * iterate.before)
        moves |= doubtful & (iterate.step == 1)
        moves &= jnp.isfinite(iterate.norm)  # else b of the next solve is not
        return (iterate.step == 0) | (moves & (iterate.step < MOST_STEPS))

    def advance(iterate):
        change, result, steps = apply(iterate.residual)
        solution = iterate.solution + change
        residual = vector - mv(solution)
        size = measure(solution, residual)
        better = (iterate.step == 0) | (size < iterate.norm)
        keep = lambda new, old: jnp.where(better, new, old)
        return Iterate(
            solution=keep(solution, iterate.solution),
            residual=keep(residual, iterate.residual),
            norm=keep(size, iterate.norm),
            before=iterate.norm,
            moved=largest(change) > _LARGEST_STEP * largest(solution),
            step=iterate.step + 1,
            inner_steps=iterate.inner_steps + steps,
            result=first_failure(iterate.result, result),
        )

    start = Iterate(
        solution=jnp.zeros(operator.in_size(), vector.dtype),
        residual=vector,
        norm=jnp.full_like(norm, jnp.inf),
        before=jnp.full_like(norm, jnp.inf),
        moved=jnp.array(True),
        step=jnp.array(0),
        inner_steps=jnp.array(0),
        result=lx.RESULTS.successful,
    )
    final = while_loop(goes_on, advance, start)
    allowed = goal(final)
    if aimed is None:
        allowed = LARGEST_ERROR * rounding(final.solution)
    return final, final.norm <= allowed


def _backward_error(
    operator: lx.AbstractLinearOperator,
    vector: Inexact[Array, " n"],
    units: Real[Array, " n"],
    eps: float,
) -> Callable[[Inexact[Array, " n"], Inexact[Array, " n"]], Real[Array, ""]]:
    """The largest of |b − M x| / (|M| |x| + |b|) over the rows, of x and b − M x.

    Where a row of |M| |x| + |b| is itself rounding, as of an x with zeros, its size takes
    the largest entry of x for all (Arioli, Demmel & Duff 1989, section 3), in `units` of
    the columns.
    """
    product, of_vector = moduli(operator), jnp.abs(vector)
    rows = product(1 / units)

    def error(solution, residual):
        solution = jnp.abs(solution)
        bound = product(solution) + of_vector
        whole = rows * jnp.max(units * solution, initial=0)
        tiny = bound <= _ROUNDING_OF_ROWS * vector.size * eps * whole
        bound = jnp.where(tiny, bound + whole, bound)
        errors = jnp.abs(residual) / jnp.where(bound > 0, bound, 1)
        errors = jnp.where(jnp.isfinite(bound), errors, jnp.inf)
        return jnp.max(errors, initial=0)

    return error
