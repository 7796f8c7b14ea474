"""Whether the solver of a part iterates, and to which tolerance."""

import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, Real

from ..auto import AutoLinearSolver
from ..function import FunctionSolver
from ..krylov.iteration import AbstractKrylovSolver, resolve_rtol
from ..neumann import Neumann
from ..normal import Normal


_ITERATING = (
    AbstractKrylovSolver,
    FunctionSolver,
    Neumann,
    lx.BiCGStab,
    lx.CG,
    lx.GMRES,
    lx.LSMR,
)


def resolved(solver: lx.AbstractLinearSolver, state) -> lx.AbstractLinearSolver:
    return state.solver if isinstance(solver, AutoLinearSolver) else solver


def iterates(solver: lx.AbstractLinearSolver) -> bool:
    parts = jtu.tree_leaves(solver, is_leaf=lambda part: isinstance(part, _ITERATING))
    return any(isinstance(part, _ITERATING) for part in parts)


def tolerance(
    solver: lx.AbstractLinearSolver, norm: Real[Array, ""], eps: float
) -> Real[Array, ""] | None:
    """What a residual of the sum may be by the solver of A; `None` if it has none."""
    if isinstance(solver, Normal):
        return tolerance(solver.inner_solver, norm, eps)
    if isinstance(solver, Neumann) or not isinstance(solver, _ITERATING):
        return None
    given = solver.rtol, solver.atol
    if all(isinstance(tol, int | float) and tol == 0 for tol in given):
        return jnp.full_like(norm, jnp.inf)  # asked for a number of steps
    if isinstance(solver, FunctionSolver) and solver.rtol is None:
        rtol = jnp.asarray(eps**0.5, norm.dtype)
    else:
        rtol = resolve_rtol(solver.rtol, norm.dtype, eps)
    return jnp.asarray(solver.atol, norm.dtype) + rtol * norm
