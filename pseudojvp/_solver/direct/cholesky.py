import equinox.internal as eqxi
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import lineax as lx
from jaxtyping import Array, Inexact, PyTree

from ..._kernel.determinant import of_product
from ..._operator.matrix import matrix_of
from ..factorisation import Slogdet
from .base import AbstractDirectSolver, check_tagged, DirectState


class Cholesky(AbstractDirectSolver):
    """Solves definite systems by a Cholesky factorisation.

    A must be tagged positive or negative semidefinite; a singular or indefinite A is
    reported. `stats["reciprocal_condition"]` estimates the reciprocal condition number of
    A with scaled columns. If it is at most `eps * n`, A is singular to working precision
    and the result is `RESULTS.singular`. Use [`pseudojvp.PivotedQR`][] for such an A.

    Takes no `options`. Real and complex. Cost: one factorisation, n³/3 flops, and for the
    estimate one application of the factor to eight columns; then one application a solve,
    one more for a JVP and one more for a VJP.

    **Raises:** `ValueError` at trace time for a non-square operator, one without the tag,
    or an option.

    **Sources:** Golub & Van Loan, *Matrix Computations*, 4th ed. (2013), section 4.2;
    Gudmundsson, Kenney & Laub, *Small-sample statistical estimates for matrix norms*,
    SIAM J. Matrix Anal. Appl. 16 (1995), for the estimate.

    **Example:**

    ```python
    import jax.numpy as jnp
    import lineax as lx
    import pseudojvp as pj

    matrix = jnp.array([[2.0, 1.0], [1.0, 3.0]])
    A = lx.MatrixLinearOperator(matrix, lx.positive_semidefinite_tag)
    b = jnp.array([3.0, 4.0])
    print(pj.linear_solve(A, b, pj.Cholesky()).value.round(2))  # [1. 1.]
    ```
    """

    def factorise(self, operator: lx.AbstractLinearOperator) -> PyTree[Array]:
        negative = lx.is_negative_semidefinite(operator)
        tagged = negative or lx.is_positive_semidefinite(operator)
        kind = "positive or negative definite"
        check_tagged(self, operator, tagged, kind, "positive_semidefinite_tag")
        matrix = matrix_of(operator)
        factor = jsl.cholesky(-matrix if negative else matrix)
        return (factor, eqxi.Static(negative))

    def slogdet(self, state: DirectState) -> Slogdet:
        factor, negative = state.factors
        pivots = jnp.diagonal(factor)
        _, logabsdet = of_product(pivots)
        sign = -1 if negative.value and pivots.size % 2 else 1
        return Slogdet(jnp.array(sign, pivots.dtype), 2 * logabsdet)

    def solve_columns(
        self, factors, columns: Inexact[Array, "n k"], transposed: bool
    ) -> Inexact[Array, "n k"]:
        factor, negative = factors
        factor = factor.conj() if transposed else factor
        solved = jsl.solve_triangular(factor, columns, trans="C")
        solved = jsl.solve_triangular(factor, solved)
        return -solved if negative.value else solved
