from collections.abc import Callable

import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, PyTree

from .._misc import first_failure, tree_sub


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
) -> lx.RESULTS:
    """`result`, or `stagnation` if b − A x does not meet the solver's tolerance.

    `lineax.GMRES` looks at the residual after its preconditioner, `lineax.BiCGStab` at
    one that it updates (lineax 0.1.1): both may be small where b − A x is not. One
    product `mv` with A for these two, none for the others.
    """
    if not isinstance(solver, lx.BiCGStab | lx.GMRES):
        return result
    if all(
        isinstance(tol, int | float) and tol == 0 for tol in (solver.rtol, solver.atol)
    ):
        return result  # asked for a number of steps
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
    return first_failure(result, told)
