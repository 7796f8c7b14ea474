from typing import Any, NamedTuple

import lineax as lx
from jaxtyping import Array, ArrayLike, PyTree

from .._base.call import compiled
from .._base.tree import tree_sub
from .._map.factorised import Factorised, unset
from .._operator import Matrix
from .._operator.as_operator import with_known_pattern
from .._solver import AutoLinearSolver
from .._solver.known_blocks import with_known_blocks
from .linear_solve import check_system


class Projection(NamedTuple):
    """What [`pseudojvp.project`][] returns: b = `projection` + `residual`."""

    projection: PyTree[Array]
    """A A†b, the part of b within the range of A."""
    residual: PyTree[Array]
    """b − A A†b, the part orthogonal to it."""


def project(
    operator: lx.AbstractLinearOperator | Matrix,
    vector: PyTree[ArrayLike],
    solver: lx.AbstractLinearSolver = AutoLinearSolver(well_posed=False),
    *,
    options: dict[str, Any] | None = None,
    state: PyTree[Any] = unset,
    throw: bool = True,
) -> Projection:
    """Returns the orthogonal projection of b onto the range of A, and the residual.

        b = A A†b + (I − A A†) b

    The residual comes from the factors of the solver (b − Q Qᴴb and the like), so it is
    orthogonal to the range of A however ill-conditioned A is; the projection is b minus
    the residual. If A has independent rows by its shape and the solver's assumption
    (`QR()` of a wide A, `LU()`), the residual is exactly zero, and the solver runs only
    to notice a failure.

    **Arguments:**

    - `operator`: A; any `lineax.AbstractLinearOperator`, or an array of shape
        `(rows, cols)`.
    - `vector`: b; a pytree with the structure, shapes and dtypes of
        `operator.out_structure()`. Integers become floats.
    - `solver`: as for [`pseudojvp.linear_solve`][]. Defaults to
        `AutoLinearSolver(well_posed=False)`, for A of any shape and rank.
    - `options`: run-time options of the solver. Defaults to none.
    - `state`: `solver.init(operator, options)`, to reuse a factorisation. Defaults to
        computing it.
    - `throw`: whether a failed solve raises at run time, here and in derivatives. If
        `False`, both parts are NaN where it failed. Defaults to `True`.

    **Returns:** a named tuple `(projection, residual)` of pytrees with the structure of
    `vector`.

    **Derivatives:** with respect to `operator` and `vector`, of every order, along paths
    of constant rank. Cost as for `linear_solve`.

    **Raises:** as `linear_solve`.

    **Sources:** Golub & Pereyra, SIAM J. Numer. Anal. 10 (1973), lemma 4.1.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    A, b = jnp.array([[1.0], [1.0]]), jnp.array([1.0, 3.0])
    projected = pj.project(A, b)
    print(projected.projection.round(2), projected.residual.round(2))  # [2. 2.] [-1.  1.]
    ```
    """
    operator = with_known_pattern(operator, "project")
    solver = with_known_blocks(solver, operator)
    return _project(operator, vector, solver, options, state, throw)


@compiled
def _project(operator, vector, solver, options, state, throw) -> Projection:
    operator, vector = check_system(operator, vector, solver, "project")
    factorised, _ = Factorised.create(operator, solver, options, state, throw)
    residual = factorised.residual(vector)
    return Projection(tree_sub(vector, residual), residual)
