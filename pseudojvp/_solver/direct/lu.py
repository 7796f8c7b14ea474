import functools as ft

import jax.lax.linalg as jll
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import lineax as lx
from jaxtyping import Array, Inexact

from ..._kernel.condition import largest_entries
from .base import AbstractDirectSolver, Factors


_MOST_GROWTH = 1e4


class LU(AbstractDirectSolver):
    """Solves square nonsingular systems by an LU factorisation with partial pivoting.

    As `lineax.LU()`, with an estimate of the reciprocal condition number of A with its
    columns scaled, in `stats["reciprocal_condition"]`. If it is at most `eps * n`, A is
    singular to working precision and the result is `RESULTS.singular`; so it is if
    entries of U are more than 1e4 times those of A, which partial pivoting allows for a
    few contrived matrices. Use [`pseudojvp.PivotedQR`][] there.

    Takes no `options`. Real and complex. Cost: one factorisation, 2n³/3 flops, and the
    estimate, one application of the factors to eight columns; then one application a
    solve, one more for a JVP and one more for a VJP.

    **Raises:** `ValueError` at trace time for a non-square operator or an option.

    **Sources:** Golub & Van Loan, *Matrix Computations*, 4th ed. (2013), section 3.4;
    Gudmundsson, Kenney & Laub, *Small-sample statistical estimates for matrix norms*,
    SIAM J. Matrix Anal. Appl. 16 (1995), for the estimate.
    """

    def factorise(self, operator: lx.AbstractLinearOperator) -> Factors:
        matrix = jnp.asarray(operator.as_matrix())
        factors, _, permutation = jll.lu(matrix)
        # The backward error is eps times the growth of the entries in U: some ten for
        # what people solve, 2^(n − 1) for Wilkinson's matrix.
        largest = jnp.max(largest_entries(matrix), initial=0)
        # LAPACK's memory order: XLA would copy U to the other.
        grown = jnp.max(jnp.abs(jnp.tril(factors.T)), initial=0)
        tame = grown <= _MOST_GROWTH * largest
        return Factors((factors, permutation), tame, unordered=(factors, None))

    def solve_columns(
        self, factors, columns: Inexact[Array, "n k"], transposed: bool
    ) -> Inexact[Array, "n k"]:
        lu, permutation = factors
        solve = ft.partial(jsl.solve_triangular, lu, trans="T" if transposed else "N")
        lower = ft.partial(solve, lower=True, unit_diagonal=True)
        if transposed:
            solved = lower(solve(columns))
            if permutation is None:
                return solved
            scattered = jnp.zeros_like(solved).at[permutation]
            return scattered.set(solved, unique_indices=True)
        return solve(lower(columns[permutation]))
