from typing import Any

import lineax as lx

from .._base.checks import check_solver
from .._map.adjoints import AbstractAdjoint, check_adjoint
from .._map.factorised import implicit, unset
from .._operator import as_operator, Matrix
from .._operator.adjoint import hermitian_tag, is_hermitian
from .._operator.as_operator import with_known_pattern
from .._solver import AutoLinearSolver
from .._solver.known_blocks import with_known_blocks
from .factorise import factorise_
from .inverse import InverseLinearOperator


def invert(
    operator: lx.AbstractLinearOperator | Matrix,
    solver: lx.AbstractLinearSolver = AutoLinearSolver(well_posed=True),
    *,
    options: dict[str, Any] | None = None,
    throw: bool = True,
    adjoint: AbstractAdjoint = implicit,
) -> InverseLinearOperator:
    """Returns the (pseudo)inverse A† as a linear operator: one solve a product.

    `invert(A, solver).mv(b)` is `linear_solve(A, b, solver).value`; `invert(A,
    solver).solve(b)` returns the whole solution, with `result` and `stats`. The
    factorisation is computed once, here. `mm` and `@` take blocks of columns.
    `as_matrix`, `transpose`, `lineax.conj`, sums and compositions with other operators
    work, as do `jax.vmap` and derivatives of every order with respect to `operator`,
    through every solver.

    **Arguments:** `operator`, `solver`, `options`, `throw` and `adjoint` as in
    [`pseudojvp.linear_solve`][], with one difference: under `throw=False` a product whose
    solve failed is NaN.

    **Returns:** a [`pseudojvp.InverseLinearOperator`][] from the space of b to that of x.
    It carries the tags that an inverse inherits: symmetric, Hermitian, diagonal,
    triangular, (semi)definite, and unit diagonal if it is diagonal or triangular.

    Cost: one factorisation here; then, for each product, one application of the factors
    or one run of an iterative solver.

    **Raises:** as [`pseudojvp.linear_solve`][].

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    A = jnp.array([[2.0, 0.0], [0.0, 4.0], [0.0, 0.0]])
    inverse = pj.invert(A, pj.QR())
    print(inverse.mv(jnp.array([2.0, 4.0, 1.0])).round(2))  # [1. 1.]
    print(inverse.as_matrix().shape)  # (2, 3)
    ```
    """
    operator = as_operator(operator, "invert")
    check_solver(solver, "invert")
    check_adjoint(adjoint, "invert")
    operator = with_known_pattern(operator, "invert")
    solver = with_known_blocks(solver, operator)
    factorised = factorise_(operator, solver, options, unset, throw, adjoint)
    inherited = {
        lx.symmetric_tag: lx.is_symmetric,
        hermitian_tag: is_hermitian,
        lx.diagonal_tag: lx.is_diagonal,
        lx.lower_triangular_tag: lx.is_lower_triangular,
        lx.upper_triangular_tag: lx.is_upper_triangular,
        lx.positive_semidefinite_tag: lx.is_positive_semidefinite,
        lx.negative_semidefinite_tag: lx.is_negative_semidefinite,
    }
    tags = {tag for tag, holds in inherited.items() if holds(operator)}
    triangular = {lx.diagonal_tag, lx.lower_triangular_tag, lx.upper_triangular_tag}
    if lx.has_unit_diagonal(operator) and tags & triangular:
        tags.add(lx.unit_diagonal_tag)
    return InverseLinearOperator.of(factorised, frozenset(tags))
