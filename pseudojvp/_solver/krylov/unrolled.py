"""What the Krylov solvers share as steps that are differentiated."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Inexact, Integer, PyTree, Real

from ..._base.tree import all_finite, tree_where
from ..unrolled import hung, Iteration, Outcome
from .iteration import AbstractKrylovSolver, dot, length, over, System


class Progress(eqx.Module):
    """Whether more steps are taken, none of it differentiated.

    The steps end early where the residual is rounding, and where a step breaks down.
    """

    moves: Bool[Array, ""]
    broken: Bool[Array, ""]
    size: Real[Array, ""]  # the largest curvature or norm of A so far
    count: Integer[Array, ""]  # of the steps taken

    @classmethod
    def start(cls, system: System, norm: Real[Array, ""], size: Any) -> "Progress":
        norm, size = lax.stop_gradient((norm, size))
        size = jnp.zeros_like(system.norm) + size
        return cls(norm > 0, jnp.array(False), size, jnp.array(0))

    def after(
        self, system: System, solution, norm, size, *, ends: Any = False, broken: Any
    ) -> "Progress":
        """`norm` is that of the residual, or zero where it can become no smaller."""
        solution, norm, size, ends, broken = lax.stop_gradient(
            (solution, norm, size, ends, broken)
        )
        rounding = system.eps * (size * length(solution) + system.norm)
        # Not for NaN, which is to be seen at the end.
        moves = ~(norm <= rounding) & ~jnp.asarray(ends | broken)
        return Progress(moves, jnp.asarray(broken), size, self.count + 1)


def iteration(
    system: System,
    start: Any,
    advance: Callable[[Any, Progress], tuple[Any, Progress]],
    progress: Progress,
    residual: Array,
    norm_of: Callable[[Any], Array],
    solution_of: Callable[[Any], Array],
) -> Iteration:
    """The steps `advance`, each of which tells whether there is to be another.

    `progress` and `residual` are those before the first.
    """

    def step(carry):
        iterate, last = carry
        # At the start a step beyond the end has no NaN in its derivative.
        safe = tree_where(last.moves, iterate, start)
        new, told = advance(safe, last)
        told = tree_where(last.moves, told, last)
        iterate = tree_where(last.moves, new, iterate)
        return (iterate, told), system.unit * norm_of(iterate)

    def finish(carry):
        iterate, told = carry
        solution = solution_of(iterate)
        results = lx.RESULTS
        result = results.where(told.broken, results.breakdown, results.successful)
        finite = all_finite(lax.stop_gradient(solution))
        result = results.where(finite, result, results.singular)
        # No Krylov space is smooth in a residual that is zero.
        solution = hung(solution, progress.moves, residual)
        return Outcome(system.solution(solution), result, told.count)

    return Iteration((start, progress), step, system.max_steps, finish)


def check_steps(solver: AbstractKrylovSolver) -> None:
    """That `solver` takes a fixed number of steps, and tells no more than norms."""
    name = type(solver).__name__
    if solver.has_tolerance or solver.max_steps is None:
        raise ValueError(
            f"`UnrolledAdjoint` got `{name}` with a tolerance or without `max_steps`, "
            "whose number of steps is found as it runs. Pass "
            f"`{name}(rtol=0, atol=0, max_steps=...)`, or `ImplicitAdjoint()`."
        )
    check_quiet(solver)


def check_quiet(solver: AbstractKrylovSolver) -> None:
    """That nothing but norms is to be told of the steps."""
    name = type(solver).__name__
    if solver.progress > 0 or getattr(solver, "lanczos", False):
        raise ValueError(
            f"`UnrolledAdjoint` got `{name}(progress=...)` or `{name}(lanczos=True)`, "
            "which its steps do not tell. Leave them out."
        )


def safe_root(square: Real[Array, ""]) -> Real[Array, ""]:
    """The root, whose derivative at zero is zero."""
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


def safe_length(flat: Inexact[Array, " n"]) -> Real[Array, ""]:
    return safe_root(dot(flat, flat).real)


def safe_unit(flat: Inexact[Array, " n"]) -> PyTree[Array]:
    """The vector over its length, and that."""
    norm = safe_length(flat)
    return over(norm, flat), norm
