from collections.abc import Callable

import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, PyTree

from .._base.results import first_failure
from .._base.tree import is_zero, tree_sub, tree_where


# How far the residual b − A x may stand above the tolerance, for what the recurrences of
# the solver lose to rounding, and where the tolerance is itself rounding.
_SLACK = 10.0
_ROUNDING = 100.0


def verified(
    solver: lx.AbstractLinearSolver,
    mv: Callable[[PyTree[Array]], PyTree[Array]],
    vector: PyTree[Array],
    solution: PyTree[Array],
    result: lx.RESULTS,
) -> tuple[PyTree[Array], lx.RESULTS]:
    """The solution and `result`, which is `stagnation` if b − A x is too large.

    `lineax.GMRES` looks at the residual after its preconditioner, `lineax.BiCGStab` at
    one that it updates (lineax 0.1.1): both may be small where b − A x is not. One
    product `mv` with A for these two, none for the others. `lineax.BiCGStab` is NaN for
    b = 0, such as the cotangent of a masked loss: here it is zero.
    """
    if not isinstance(solver, lx.BiCGStab | lx.GMRES):
        return solution, result
    if isinstance(solver, lx.BiCGStab):
        zero = is_zero(vector)
        solution = tree_where(zero, jtu.tree_map(jnp.zeros_like, solution), solution)
        result = lx.RESULTS.where(zero, lx.RESULTS.successful, result)
    if all(
        isinstance(tol, int | float) and tol == 0 for tol in (solver.rtol, solver.atol)
    ):
        return solution, result  # asked for a number of steps
    residual = tree_sub(vector, mv(solution))

    def scaled(r, b):
        size = jnp.abs(b)
        eps = jnp.finfo(size.dtype).eps
        largest = jnp.max(size, initial=0)
        tolerance = (
            jnp.asarray(solver.atol, size.dtype)
            + jnp.asarray(solver.rtol, size.dtype) * size
        )
        allowed = _SLACK * tolerance + _ROUNDING * eps * largest
        return jnp.where(r == 0, 0, jnp.abs(r) / jnp.where(r == 0, 1, allowed))

    met = solver.norm(jtu.tree_map(scaled, residual, vector)) <= 1
    told = lx.RESULTS.where(met, lx.RESULTS.successful, lx.RESULTS.stagnation)
    return solution, first_failure(result, told)
