from collections.abc import Callable

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Inexact, PyTree

from ..._base.axes import while_loop
from ..._kernel.substitution import Substitution
from ..._operator.sparse import SparseLinearOperator, untagged
from ..factorisation import AbstractByParts, Slogdet
from .base import AbstractDirectSolver, check_tagged, DirectState, slogdet_of_diagonal


class SparseTriangular(AbstractDirectSolver, AbstractByParts[DirectState]):
    """Solves sparse triangular systems by substitution, without a dense matrix.

    A must be a [`pseudojvp.SparseLinearOperator`][] that is triangular by its indices or
    tagged so. `stats["reciprocal_condition"]` estimates the reciprocal condition number
    of A with scaled columns. If it is at most `eps * n`, A is singular to working
    precision and the result is `RESULTS.singular`; a zero or missing entry on the
    diagonal has that effect. With `lineax.unit_diagonal_tag` the diagonal is taken as
    ones, stored or not, and has no derivative.

    Rows that do not depend on each other are solved for at once. These groups (levels)
    are found when the operator is built, if its indices are known then. Otherwise the
    solve sweeps over all rows until the solution no longer changes, which is exact after
    as many sweeps as there are levels.

    Takes no `options`. Real and complex. Cost of a solve: one product with A, in one step
    for each level; with traced indices one product for each level. The estimate is one
    solve with eight columns. A JVP takes one more solve, a VJP one more; several
    right-hand sides under `jax.vmap` are columns of one solve.

    **Raises:** `ValueError` at trace time for an operator that is not square, not
    triangular or not sparse, or for an option.

    **Sources:** Anderson & Saad, *Solving sparse triangular linear systems on parallel
    computers*, Int. J. High Speed Computing 1 (1989), for the levels; Gudmundsson,
    Kenney & Laub, *Small-sample statistical estimates for matrix norms*, SIAM J. Matrix
    Anal. Appl. 16 (1995), for the estimate.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    row, col = jnp.array([0, 1, 1]), jnp.array([0, 0, 1])
    A = pj.SparseLinearOperator((jnp.array([2.0, 1.0, 4.0]), row, col, (2, 2)))
    b = jnp.array([2.0, 5.0])
    print(pj.linear_solve(A, b, pj.SparseTriangular()).value)  # [1. 1.]
    ```
    """

    def factorise(self, operator: lx.AbstractLinearOperator) -> PyTree[Array]:
        sparse = untagged(operator)
        if not isinstance(sparse, SparseLinearOperator):
            raise ValueError(
                "`SparseTriangular` takes a `pseudojvp.SparseLinearOperator`, but got a "
                f"`{type(sparse).__name__}`. Use `Triangular()`."
            )
        lower = lx.is_lower_triangular(operator)
        tags = "lower_triangular_tag", "upper_triangular_tag"
        triangular = lower or lx.is_upper_triangular(operator)
        check_tagged(self, operator, triangular, "triangular", *tags)
        diagonal = lx.diagonal(sparse)
        if lx.has_unit_diagonal(operator):
            diagonal = jnp.ones_like(diagonal)
        sparsity = sparse.sparsity
        if sparsity.triangle is None:
            return _Swept(sparse, diagonal, eqxi.Static(lower))
        scaled = sparse.data / diagonal.at[sparsity.col].get(mode="clip")
        inverse = sparsity.triangle.substitution(scaled)
        return _Substituted(inverse, diagonal)

    def slogdet_by_parts(
        self,
        operator: lx.AbstractLinearOperator,
        state: DirectState,
        factorised: Callable,
    ) -> Slogdet:
        return slogdet_of_diagonal(operator)

    def solve_columns(
        self,
        factors: "_Substituted | _Swept",
        columns: Inexact[Array, "n k"],
        transposed: bool,
    ) -> Inexact[Array, "n k"]:
        return factors.solve(columns, transposed)


class _Substituted(eqx.Module):
    """A = T D with a unit triangular T."""

    inverse: Substitution
    diagonal: Inexact[Array, " n"]

    def solve(self, columns, transposed: bool):
        pivots = self.diagonal[:, None]
        if transposed:
            return self.inverse.transpose()(columns / pivots)
        return self.inverse(columns) / pivots


class _Swept(eqx.Module):
    """x ← D⁻¹(b − N x), until x is what it was: N is nilpotent, so it ends there."""

    operator: SparseLinearOperator
    diagonal: Inexact[Array, " n"]
    lower: eqxi.Static

    def solve(self, columns, transposed: bool):
        sparsity = self.operator.sparsity
        below = sparsity.row - sparsity.col
        beside = below > 0 if self.lower.value else below < 0
        data = jnp.where(beside, self.operator.data, 0)
        rest = SparseLinearOperator((data, sparsity))
        if transposed:
            rest = rest.transpose()
        pivots = self.diagonal[:, None]

        def sweep(state):
            count, x, _ = state
            swept = (columns - jax.vmap(rest.mv, 1, 1)(x)) / pivots
            return count + 1, swept, jnp.all((swept == x) | jnp.isnan(swept))

        def going(state):
            count, _, still = state
            return ~still & (count < sparsity.shape[0])

        start = 0, columns / pivots, jnp.array(False)
        return while_loop(going, sweep, start)[1]
