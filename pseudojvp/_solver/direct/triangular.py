from collections.abc import Callable

import equinox.internal as eqxi
import jax.scipy.linalg as jsl
import lineax as lx
from jaxtyping import Array, Inexact, PyTree

from ..._operator.matrix import matrix_of
from ..factorisation import AbstractByParts, Slogdet
from .base import AbstractDirectSolver, check_tagged, DirectState, slogdet_of_diagonal


class Triangular(AbstractDirectSolver, AbstractByParts[DirectState]):
    """Solves triangular systems by substitution.

    A must be tagged lower or upper triangular. With `lineax.unit_diagonal_tag` the
    diagonal is taken as ones, whatever is stored there. `stats["reciprocal_condition"]`
    estimates the reciprocal condition number of A with scaled columns. If it is at most
    `eps * n`, A is singular to working precision and the result is `RESULTS.singular`.
    Use [`pseudojvp.PivotedQR`][] for such an A.

    Takes no `options`. Real and complex. Cost: n² flops a solve; for the estimate one
    solve with eight columns; one more solve for a JVP and one more for a VJP.

    **Raises:** `ValueError` at trace time for a non-square operator, one without the tag,
    or an option.

    **Sources:** Gudmundsson, Kenney & Laub, *Small-sample statistical estimates for
    matrix norms*, SIAM J. Matrix Anal. Appl. 16 (1995), for the estimate.

    **Example:**

    ```python
    import jax.numpy as jnp
    import lineax as lx
    import pseudojvp as pj

    lower = jnp.array([[2.0, 0.0], [1.0, 4.0]])
    A = lx.MatrixLinearOperator(lower, lx.lower_triangular_tag)
    print(pj.linear_solve(A, jnp.array([2.0, 5.0]), pj.Triangular()).value)  # [1. 1.]
    ```
    """

    def factorise(self, operator: lx.AbstractLinearOperator) -> PyTree[Array]:
        lower = lx.is_lower_triangular(operator)
        tagged = lower or lx.is_upper_triangular(operator)
        tags = "lower_triangular_tag", "upper_triangular_tag"
        check_tagged(self, operator, tagged, "triangular", *tags)
        unit = lx.has_unit_diagonal(operator)
        matrix = matrix_of(operator)
        return (matrix, eqxi.Static(lower), eqxi.Static(unit))

    def slogdet_by_parts(
        self,
        operator: lx.AbstractLinearOperator,
        state: DirectState,
        factorised: Callable,
    ) -> Slogdet:
        return slogdet_of_diagonal(operator)

    def solve_columns(
        self, factors, columns: Inexact[Array, "n k"], transposed: bool
    ) -> Inexact[Array, "n k"]:
        matrix, lower, unit = factors
        return jsl.solve_triangular(
            matrix,
            columns,
            trans="T" if transposed else "N",
            lower=lower.value,
            unit_diagonal=unit.value,
        )
