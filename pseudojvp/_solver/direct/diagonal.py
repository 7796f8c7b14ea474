from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Inexact, PyTree

from ..._base.axes import has_explicit_axes, is_manual
from ..._base.checks import check_options
from ..state import conjugated, structures_of, swapped


class DiagonalState(eqx.Module):
    """The diagonal of A; `None` for ones."""

    diagonal: Inexact[Array, " n"] | None
    structures: eqxi.Static


def diagonal_solver(solver: Any, operator: lx.AbstractLinearOperator) -> Any:
    """`lineax.Diagonal` on a mesh as one that takes its vectors."""
    on_mesh = is_manual() or has_explicit_axes(operator)
    if isinstance(solver, lx.Diagonal) and on_mesh:
        return Diagonal(solver.well_posed, solver.rcond)
    return solver


class Diagonal(lx.AbstractLinearSolver[DiagonalState]):
    """`lineax.Diagonal`, which on a mesh compares shardings, and refuses."""

    well_posed: bool = False
    rcond: float | None = None

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> DiagonalState:
        check_options(self, options)
        state, _ = lx.Diagonal(self.well_posed, self.rcond).init(operator, options)
        return DiagonalState(state, structures_of(operator))

    def compute(
        self, state: DiagonalState, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        check_options(self, options)
        out_structure, in_structure = state.structures.value
        solution = out_structure.ravel(vector)
        if state.diagonal is not None:
            solution = solution / self._divisors(state.diagonal)
        return in_structure.unravel(solution), lx.RESULTS.successful, {}

    def _divisors(self, diagonal: Inexact[Array, " n"]) -> Inexact[Array, " n"]:
        """Infinite for an entry that counts as zero."""
        if self.well_posed:
            return diagonal
        eps = float(jnp.finfo(diagonal.dtype).eps)
        rcond = eps * diagonal.size if self.rcond is None else self.rcond
        rcond = jnp.asarray(rcond, diagonal.real.dtype)
        sizes = jnp.abs(diagonal)
        least = jnp.where(rcond < 0, eps, rcond) * jnp.max(sizes)
        return jnp.where(sizes > least, diagonal, jnp.inf)

    def transpose(self, state: DiagonalState, options: dict[str, Any]):
        return DiagonalState(state.diagonal, swapped(state.structures)), options

    def conj(self, state: DiagonalState, options: dict[str, Any]):
        return conjugated(state), options

    def assume_full_rank(self) -> bool:
        return self.well_posed
