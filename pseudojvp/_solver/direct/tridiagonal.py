from collections.abc import Callable

import jax.lax.linalg as jll
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Inexact, PyTree

from ..._kernel.determinant import of_tridiagonal
from ..._operator.matrix import widened
from ..factorisation import AbstractByParts, Slogdet
from .base import AbstractDirectSolver, bands_of, check_tagged, DirectState


class Tridiagonal(AbstractDirectSolver, AbstractByParts[DirectState]):
    """Solves tridiagonal systems by Gaussian elimination with partial pivoting.

    A must be tagged tridiagonal. `stats["reciprocal_condition"]` estimates the reciprocal
    condition number of A with scaled columns. If it is at most `eps * n`, A is singular
    to working precision and the result is `RESULTS.singular`. Use
    [`pseudojvp.PivotedQR`][] for such an A.

    Takes no `options`. Real and complex. Cost: O(n) a solve; for the estimate one solve
    with eight columns; one more solve for a JVP and one more for a VJP. No matrix is
    formed for a `lineax.TridiagonalLinearOperator`.

    **Raises:** `ValueError` at trace time for a non-square operator, one without the tag,
    or an option.

    **Sources:** Gudmundsson, Kenney & Laub, *Small-sample statistical estimates for
    matrix norms*, SIAM J. Matrix Anal. Appl. 16 (1995), for the estimate.

    **Example:**

    ```python
    import jax.numpy as jnp
    import lineax as lx
    import pseudojvp as pj

    off = -jnp.ones(3)
    A = lx.TridiagonalLinearOperator(2 * jnp.ones(4), off, off)
    b = jnp.array([1.0, 0.0, 0.0, 1.0])
    print(pj.linear_solve(A, b, pj.Tridiagonal()).value.round(2))  # [1. 1. 1. 1.]
    ```
    """

    def factorise(self, operator: lx.AbstractLinearOperator) -> PyTree[Array]:
        tagged = lx.is_tridiagonal(operator)
        check_tagged(self, operator, tagged, "tridiagonal", "tridiagonal_tag")
        return bands_of(operator)

    def slogdet_by_parts(
        self,
        operator: lx.AbstractLinearOperator,
        state: DirectState,
        factorised: Callable,
    ) -> Slogdet:
        return Slogdet(*of_tridiagonal(*bands_of(widened(operator))))

    def solve_columns(
        self, factors, columns: Inexact[Array, "n k"], transposed: bool
    ) -> Inexact[Array, "n k"]:
        diagonal, lower, upper = factors
        if transposed:
            lower, upper = upper, lower
        if diagonal.size == 0:
            return columns
        lower, upper = jnp.pad(lower, (1, 0)), jnp.pad(upper, (0, 1))
        return jll.tridiagonal_solve(lower, diagonal, upper, columns)
