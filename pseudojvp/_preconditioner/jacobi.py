from typing import Any

import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Inexact

from .operator import constant_square_operator


def jacobi(operator: Any, *, absolute: bool = False) -> lx.AbstractLinearOperator:
    """Returns the inverse of the diagonal of A, as a diagonal operator.

        P = diag(A)^-1

    Where a diagonal entry of A is zero, the entry of P is 1. If A is tagged positive
    semidefinite, or with `absolute=True`, P is diag(|a_ii|)^-1, positive definite and
    tagged so.

    Cost: the diagonal of A (n products, for the whole matrix, if A is known only through
    products); then n multiplications an application.

    **Arguments:**

    - `operator`: A, square; anything that [`pseudojvp.linear_solve`][] takes.
    - `absolute`: whether to take absolute values. P is then positive definite even for an
        indefinite A, as MINRES needs. Defaults to `False`.

    **Returns:** a lineax operator.

    **Derivatives:** none; a preconditioner is a constant.

    **Raises:** `ValueError` if A is not square.

    **Sources:** Saad, *Iterative Methods for Sparse Linear Systems*, 2nd ed. (2003),
    section 10.2.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    A = jnp.array([[2.0, 1.0], [1.0, 4.0]])
    P = pj.jacobi(A)
    print(P.mv(jnp.array([2.0, 4.0])))  # [1. 1.]
    x = pj.linear_solve(A, jnp.array([3.0, 5.0]), pj.GMRES(preconditioner=P)).value
    print(x.round(2))  # [1. 1.]
    ```
    """
    operator, structure = constant_square_operator(operator, "jacobi")
    definite = absolute or lx.is_positive_semidefinite(operator)
    entries = inverse_entries(lx.diagonal(operator), definite)
    inverse = lx.DiagonalLinearOperator(structure.unravel(entries))
    if not definite:
        return inverse
    return lx.TaggedLinearOperator(inverse, lx.positive_semidefinite_tag)


def inverse_entries(
    diagonal: Inexact[Array, "..."], definite: bool
) -> Inexact[Array, "..."]:
    """1 / d, or 1 / |d|; 1 where d is zero."""
    magnitude = jnp.abs(diagonal).astype(diagonal.dtype) if definite else diagonal
    return 1 / jnp.where(diagonal == 0, 1, magnitude)
