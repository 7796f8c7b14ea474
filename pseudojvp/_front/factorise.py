from typing import Any

import lineax as lx
from jaxtyping import PyTree

from .._base.call import compiled
from .._base.checks import check_solver
from .._map.factorised import Factorised, implicit, unset
from .._operator import as_operator, Matrix
from .._operator.as_operator import with_known_pattern
from .._solver import AutoLinearSolver
from .._solver.known_blocks import with_known_blocks


def factorise(
    operator: lx.AbstractLinearOperator | Matrix,
    solver: lx.AbstractLinearSolver = AutoLinearSolver(well_posed=True),
    *,
    options: dict[str, Any] | None = None,
    state: PyTree[Any] = unset,
    throw: bool = True,
) -> Factorised:
    """Returns A with its factors: every block of its pseudoinverse map, by name.

        factorised = pj.factorise(A, pj.QR())
        x = factorised.solve(b)                # A†b
        r = factorised.residual(b)             # (I − A A†)b
        q = factorised.adjoint_solve(w)        # A†ᴴw
        g = factorised.gram_inverse(w)         # (AᴴA)†w
        p = factorised.project(y)              # A†A y

    Each block is correct for A of every shape and rank that the solver takes. All come
    from the same factors, most of them by one application.

    **Arguments:**

    - `operator`: A; any `lineax.AbstractLinearOperator`, an array of shape
        `(rows, cols)`, or a sparse matrix.
    - `solver`: as for [`pseudojvp.linear_solve`][]. Defaults to
        `AutoLinearSolver(well_posed=True)`, for square nonsingular A.
    - `options`: run-time options of the solver. Defaults to none. A first guess `y0` is
        used by `solve` only.
    - `state`: `solver.init(operator, options)`, to reuse a factorisation. Defaults to
        computing it.
    - `throw`: whether a failed method or its derivative raises at run time. If `False`,
        both are NaN where it failed. Defaults to `True`. Nothing raises before a method
        is called; `result` and `stats` of the returned object report on the factors.

    **Returns:** a [`pseudojvp.Factorised`][].

    **Derivatives:** of every method, with respect to `operator` and the vector, forward
    and reverse, of every order, along paths of constant rank; the cost is that of
    `linear_solve`. To differentiate with respect to A, call `factorise` inside the
    differentiated function. The factors themselves are constants.

    **Raises:** `TypeError` or `ValueError` at trace time if the operator or solver has
    another type, the solver cannot take the operator, or an option is unknown; the
    methods raise the same for a vector that does not match.

    **Sources:** Björck, *Numerical Methods for Least Squares Problems* (1996), section
    1.2 for the blocks; Golub & Pereyra, SIAM J. Numer. Anal. 10 (1973), for their
    derivatives.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    A = jnp.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    factors = pj.factorise(A, pj.QR())
    b = jnp.array([1.0, 4.0, 5.0])
    print(factors.solve(b).round(2))  # [1. 2.]
    print(jnp.abs(factors.residual(b)).round(2))  # [0. 0. 5.]
    ```
    """
    operator = with_known_pattern(operator, "factorise")
    check_solver(solver, "factorise")
    solver = with_known_blocks(solver, operator)
    return factorise_(operator, solver, options, state, throw, implicit)


@compiled
def factorise_(operator, solver, options, state, throw, adjoint) -> Factorised:
    operator = as_operator(operator, "factorise")
    return Factorised.create(operator, solver, options, state, throw, adjoint)[0]
