import jax.scipy.linalg as jsl
import lineax as lx
from jaxtyping import Array, Inexact

from .direct import AbstractDirectSolver


class LU(AbstractDirectSolver):
    """Solves square nonsingular systems by an LU factorisation with partial pivoting.

    As `lineax.LU()`, with an estimate of the reciprocal condition number of A with its
    columns scaled, in `stats["rcond"]`. If it is at most `eps * n`, A is singular to
    working precision and the result is `RESULTS.singular`; use [`pseudojvp.PivotedQR`][]
    there.

    Takes no `options`. Real and complex. Cost: one factorisation, 2n³/3 flops, and the
    estimate, one application of the factors to eight columns; then one application a
    solve, one more for a JVP and one more for a VJP.

    **Raises:** `ValueError` at trace time for a non-square operator or an option.

    **Sources:** Golub & Van Loan, *Matrix Computations*, 4th ed. (2013), section 3.4;
    Gudmundsson, Kenney & Laub, *Small-sample statistical estimates for matrix norms*,
    SIAM J. Matrix Anal. Appl. 16 (1995), for the estimate.
    """

    def factorise(self, operator: lx.AbstractLinearOperator):
        return jsl.lu_factor(operator.as_matrix())

    def solve_columns(
        self, factors, columns: Inexact[Array, "n k"], transposed: bool
    ) -> Inexact[Array, "n k"]:
        return jsl.lu_solve(factors, columns, trans=1 if transposed else 0)
