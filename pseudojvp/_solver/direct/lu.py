import functools as ft

import jax.lax.linalg as jll
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import lineax as lx
from jaxtyping import Array, Inexact, PyTree, Real

from ..._kernel.condition import (
    estimate_of,
    largest_entries,
    largest_singular_value,
    PROBES,
    probes,
)
from ..._kernel.determinant import of_product, parity
from ..._kernel.products import matmul
from ..._operator.matrix import matrix_of
from ..factorisation import Slogdet
from .base import AbstractDirectSolver, DirectState


_LARGEST_ERROR = 1e4  # backward, in multiples of eps


class LU(AbstractDirectSolver):
    """Solves square nonsingular systems by an LU factorisation with partial pivoting.

    Like `lineax.LU()`, with an estimate of the reciprocal condition number of A with
    scaled columns, in `stats["reciprocal_condition"]`. The result is `RESULTS.singular`
    if that is at most `eps * n` (A is singular to working precision), or if the factors
    have a backward error above 1e4 eps, as partial pivoting has for a few contrived
    matrices. Use [`pseudojvp.PivotedQR`][] in both cases.

    Takes no `options`. Real and complex. Cost: one factorisation, 2n³/3 flops, and for
    the estimate one application of the factors to eight columns; then one application a
    solve, one more for a JVP and one more for a VJP.

    **Raises:** `ValueError` at trace time for a non-square operator or an option.

    **Sources:** Golub & Van Loan, *Matrix Computations*, 4th ed. (2013), section 3.4;
    Gudmundsson, Kenney & Laub, *Small-sample statistical estimates for matrix norms*,
    SIAM J. Matrix Anal. Appl. 16 (1995), for the estimate.

    **Example:**

    ```python
    import jax.numpy as jnp
    import lineax as lx
    import pseudojvp as pj

    A = jnp.array([[1.0, 2.0], [2.0, 4.0]])  # singular
    solution = pj.linear_solve(A, jnp.array([1.0, 1.0]), pj.LU(), throw=False)
    print(solution.result == lx.RESULTS.singular)  # True
    ```
    """

    def factorise(self, operator: lx.AbstractLinearOperator) -> PyTree[Array]:
        factors, _, permutation = jll.lu(matrix_of(operator))
        return factors, permutation

    def estimate(
        self, operator: lx.AbstractLinearOperator, factors: PyTree[Array]
    ) -> Real[Array, ""]:
        matrix = matrix_of(operator)
        scale = largest_entries(matrix)
        if matrix.size == 0:
            return jnp.ones((), scale.dtype)
        lu, permutation = factors
        vectors = probes(len(matrix), PROBES, scale.dtype).astype(matrix.dtype)
        adjoint_mv = lambda vector: (vector.conj() @ matrix).conj()
        largest = largest_singular_value(scale, matrix.__matmul__, adjoint_mv, vectors)
        # A⁻¹Pᵀ: a random vector may have its entries in any order.
        solved = self.solve_columns((lu, None), vectors, transposed=False)
        inverse = jnp.linalg.norm(scale[:, None].astype(solved.dtype) * solved)
        # The backward error is eps times the growth of the entries in U: some ten for
        # what people solve, 2^(n − 1) for Wilkinson's matrix. It takes no pass over U,
        # which XLA would copy from LAPACK's memory order to its own.
        image = _ordered(matmul(matrix, solved), permutation)
        eps = float(jnp.finfo(scale.dtype).eps)
        error = jnp.linalg.norm(image - vectors)
        near = error <= _LARGEST_ERROR * eps * largest * inverse
        return jnp.where(near, estimate_of(largest, inverse, vectors.shape), 0)

    def slogdet(self, state: DirectState) -> Slogdet:
        lu, permutation = state.factors
        sign, logabsdet = of_product(jnp.diagonal(lu))
        return Slogdet(sign * parity(permutation).astype(sign.dtype), logabsdet)

    def solve_columns(
        self, factors, columns: Inexact[Array, "n k"], transposed: bool
    ) -> Inexact[Array, "n k"]:
        lu, permutation = factors
        solve = ft.partial(jsl.solve_triangular, lu, trans="T" if transposed else "N")
        lower = ft.partial(solve, lower=True, unit_diagonal=True)
        if transposed:
            solved = lower(solve(columns))
            places = jnp.zeros_like(solved).at[permutation]
            return places.set(solved, unique_indices=True, mode="promise_in_bounds")
        if permutation is not None:
            columns = _ordered(columns, permutation)
        return solve(lower(columns))


def _ordered(rows: Inexact[Array, "n k"], permutation) -> Inexact[Array, "n k"]:
    return rows.at[permutation].get(unique_indices=True, mode="promise_in_bounds")
