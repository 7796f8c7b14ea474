from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx

from .._base.tree import stop_gradient
from .._kernel.products import matmul
from .._operator import LowRankUpdate
from .._operator.adjoint import adjoint
from .operator import constant_square_operator


def woodbury(
    preconditioner: Any, U: Any, V: Any = None, C: Any = None
) -> lx.AbstractLinearOperator:
    """Returns a preconditioner of A + U C Vᴴ from a preconditioner P of A:

        (P⁻¹ + U C Vᴴ)⁻¹ = P − P U (I + C Vᴴ P U)⁻¹ C Vᴴ P.

    P may be any preconditioner: `amg(A)` or `incomplete_cholesky(A)` of the sparse part
    of a sum, or `jacobi(D)` for D + U Uᴴ. With `invert(A)` and a direct solver the result
    is the exact inverse.

    Cost: k products with P, k more with its adjoint if V is given, and 2 k³ flops; then a
    product with P and 4 n k flops an application. Memory: n × k, twice that if V is
    given.

    **Arguments:**

    - `preconditioner`: P, a square `lineax.AbstractLinearOperator` or array near A⁻¹.
    - `U`, `V`, `C`: as for [`pseudojvp.LowRankUpdate`][], with the same defaults.

    **Returns:** a [`pseudojvp.LowRankUpdate`][] of P; positive definite and tagged so if
    P is, V is left out, and C is left out or tagged so.

    **Derivatives:** none; a preconditioner is a constant.

    **Raises:** `ValueError` if P is not square, and as [`pseudojvp.LowRankUpdate`][].

    **Sources:** Hager, *Updating the inverse of a matrix*, SIAM Review 31 (1989),
    equation (2).

    **Example:**

    ```python
    import jax.numpy as jnp
    import lineax as lx
    import pseudojvp as pj

    D, U = jnp.array([1.0, 2.0, 4.0]), jnp.ones((3, 1))
    P = pj.woodbury(pj.jacobi(lx.DiagonalLinearOperator(D)), U)
    matrix = jnp.diag(D) + U @ U.T
    print(jnp.allclose(P.as_matrix() @ matrix, jnp.eye(3), atol=1e-5))  # True
    ```
    """
    operator, structure = constant_square_operator(preconditioner, "woodbury")
    update = stop_gradient(LowRankUpdate(operator, U, V, C))

    def columns_of(part: lx.AbstractLinearOperator, columns):
        mv = lambda flat: structure.ravel(part.mv(structure.unravel(flat)))
        return jax.vmap(mv, 1, 1)(columns)

    left = columns_of(operator, update.U)
    core = update.core()
    capacitance = matmul(core, matmul(update.right.conj().T, left))
    capacitance = capacitance + jnp.eye(update.rank, dtype=core.dtype)
    weights = jnp.linalg.solve(capacitance, core)
    if lx.is_positive_semidefinite(update):
        weights = (weights + weights.conj().T) / 2
        inverse = LowRankUpdate(operator, left, None, -weights)
        return lx.TaggedLinearOperator(inverse, lx.positive_semidefinite_tag)
    right = columns_of(adjoint(operator), update.right)
    return LowRankUpdate(operator, left, right, -weights)
