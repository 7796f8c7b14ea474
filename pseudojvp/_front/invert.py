from typing import Any

import equinox as eqx
import lineax as lx
from jaxtyping import Array, ArrayLike, PyTree

from .._base.call import Frame, split
from .._base.checks import check_solver
from .._operator import as_operator, Matrix
from .._solver import AutoLinearSolver
from .factorise import factorise


class _Inverse(eqx.Module):
    """`solve` of a `Factorised`, of which only the arrays are leaves."""

    arrays: list[Array]
    rest: Frame

    def __call__(self, vector: PyTree[ArrayLike]) -> PyTree[Array]:
        return self.rest.filled(self.arrays).solve(vector)


def invert(
    operator: lx.AbstractLinearOperator | Matrix,
    solver: lx.AbstractLinearSolver = AutoLinearSolver(well_posed=True),
    *,
    options: dict[str, Any] | None = None,
    throw: bool = True,
) -> lx.FunctionLinearOperator:
    """Returns the (pseudo)inverse A† as a linear operator: one solve a product.

    `invert(A, solver).mv(b)` is `linear_solve(A, b, solver).value`; the factorisation is
    computed once, here. `as_matrix`, `transpose`, `lineax.conj`, sums and compositions
    with other operators work, as do `jax.vmap` and derivatives of every order with
    respect to `operator`, through every solver.

    **Arguments:** `operator`, `solver`, `options`, `throw` as in
    [`pseudojvp.linear_solve`][].

    **Returns:** a `lineax.FunctionLinearOperator` from the space of b to that of x. It
    carries the tags that an inverse inherits: symmetric, diagonal, triangular,
    (semi)definite, and unit diagonal where it is diagonal or triangular.

    **Raises:** as [`pseudojvp.linear_solve`][].
    """
    operator = as_operator(operator, "invert")
    check_solver(solver, "invert")
    factorised = factorise(operator, solver, options=options, throw=throw)
    inherited = {
        lx.symmetric_tag: lx.is_symmetric,
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
    # Not as a jaxpr, which could not be pickled.
    return lx.FunctionLinearOperator(
        _Inverse(*split(factorised)),
        operator.out_structure(),
        frozenset(tags),
        closure_convert=False,
    )
