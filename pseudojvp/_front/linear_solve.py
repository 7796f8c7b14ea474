from typing import Any

import lineax as lx
from jaxtyping import Array, ArrayLike, PyTree

from .._base.auto_axes import with_auto_axes
from .._base.call import compiled
from .._base.checks import check_solver, check_vector
from .._base.statistics import without_derivative
from .._map.adjoints import AbstractAdjoint, check_adjoint
from .._map.factorised import Factorised, implicit, unset
from .._operator import as_operator, Matrix
from .._operator.as_operator import with_known_pattern
from .._solver import AutoLinearSolver
from .._solver.known_blocks import with_known_blocks


def linear_solve(
    operator: lx.AbstractLinearOperator | Matrix,
    vector: PyTree[ArrayLike],
    solver: lx.AbstractLinearSolver = AutoLinearSolver(well_posed=True),
    *,
    options: dict[str, Any] | None = None,
    state: PyTree[Any] = unset,
    throw: bool = True,
    adjoint: AbstractAdjoint = implicit,
) -> lx.Solution:
    """Returns the pseudoinverse solution x = A†b of A x = b, with exact derivatives.

    A drop-in replacement for `lineax.linear_solve`. Depending on the solver, A may be
    square, tall (least squares), wide (minimum norm) or rank-deficient (both).

    **Arguments:**

    - `operator`: A; any `lineax.AbstractLinearOperator`, or an array of shape
        `(rows, cols)`.
    - `vector`: b; a pytree with the structure, shapes and dtypes of
        `operator.out_structure()`. Integers become floats. If b or x mixes real and
        complex leaves, the system is solved over the reals.
    - `solver`: any `lineax.AbstractLinearSolver`, of this library, of lineax or your own.
        A lineax solver with a counterpart here (all but `LSMR`, `Diagonal`, and `GMRES`
        with `max_steps`) is replaced by it, unless you pass a `state` of the lineax
        solver. Defaults to `AutoLinearSolver(well_posed=True)`, for square nonsingular A.
    - `options`: a dictionary of run-time options of the solver (`"preconditioner"`,
        `"y0"`). Defaults to none. An unknown one is an error.
    - `state`: `solver.init(operator, options)`, to reuse a factorisation. Defaults to
        computing it.
    - `throw`: whether a failed solve raises at run time, in the primal and in its
        derivatives. If `False`, nothing raises: `result` of the returned solution says
        what happened, `value` is what the solver has (the last iterate, a partial sum),
        and a failed derivative is NaN. Defaults to `True`.
    - `adjoint`: how the solution is differentiated. Defaults to
        [`pseudojvp.ImplicitAdjoint`][], the derivative of A†b by further solves; the text
        below describes it. [`pseudojvp.UnrolledAdjoint`][] differentiates the steps of an
        iterative solver; [`pseudojvp.TruncatedAdjoint`][] and
        [`pseudojvp.StochasticAdjoint`][] are cheaper approximations.

    **Returns:** a `lineax.Solution`: `value` (x, a pytree as `operator.in_structure()`),
    `result` (compare with `lineax.RESULTS.successful`), `stats` and `state`.

    **Derivatives:** with respect to `operator` and `vector`, forward and reverse, of
    every order; for rank-deficient A along paths of constant rank. If A has full rank, a
    JVP takes one application of the factorisation (or inner solve) beyond the primal, and
    a VJP one. They take two each for `SVD()`, and up to three each for other solvers that
    allow a deficient rank. `options`, `state` and a preconditioner within `solver` count
    as constants, since the solution does not depend on them. Differentiating any other
    number within `solver` is an error, and so is differentiating `stats` in reverse mode.

    **Raises:** `TypeError` or `ValueError` at trace time for an operator or solver of
    another type, a vector that does not match, a solver that cannot take the operator, or
    unknown options; a run-time error as `throw` says.

    **Sources:** Golub & Pereyra, SIAM J. Numer. Anal. 10 (1973), theorem 4.3, in the
    form of `docs/maths.md`.

    **Example:**

    ```python
    import jax
    import jax.numpy as jnp
    import pseudojvp as pj

    A, b = jnp.array([[2.0, 1.0], [0.0, 4.0]]), jnp.array([3.0, 4.0])
    print(pj.linear_solve(A, b).value)  # [1. 1.]
    gradient = jax.grad(lambda A: pj.linear_solve(A, b).value.sum())(A)
    print(gradient.tolist())  # [[-0.5, -0.5], [-0.125, -0.125]]
    ```
    """
    operator = with_known_pattern(operator, "linear_solve")
    solver = with_known_blocks(solver, operator)
    check_adjoint(adjoint, "linear_solve")
    return _linear_solve(operator, vector, solver, options, state, throw, adjoint)


@compiled
def _linear_solve(operator, vector, solver, options, state, throw, adjoint):
    operator, vector = check_system(operator, vector, solver, "linear_solve")
    adjoint = adjoint.for_solve(operator, vector)
    # Its steps are differentiated by JAX, and loops are among them.
    solve = with_auto_axes(_solved) if adjoint.unrolls else _solved
    return solve(operator, vector, solver, options, state, throw, adjoint)


def _solved(operator, vector, solver, options, state, throw, adjoint) -> lx.Solution:
    factorised, state = Factorised.create(
        operator, solver, options, state, throw, adjoint
    )
    value, _, result, stats = factorised.apply(vector)
    if not adjoint.unrolls:
        stats = without_derivative(stats, operator, vector, solver, options)
    return lx.Solution(value=value, result=result, stats=stats, state=state)


def check_system(
    operator: Any, vector: PyTree[Any], solver: Any, caller: str
) -> tuple[lx.AbstractLinearOperator, PyTree[Array]]:
    """Returns operator and vector as such, or raises while JAX traces."""
    operator = as_operator(operator, caller)
    check_solver(solver, caller)
    return operator, check_vector(vector, operator.out_structure(), caller)
