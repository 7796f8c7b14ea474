from typing import Any

import equinox.internal as eqxi
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, ArrayLike, PyTree

from .._base.call import compiled
from .._base.checks import check_options, check_solver
from .._base.inexact import as_inexact
from .._base.structure import Structure
from .._base.tree import all_finite, stop_gradient
from .._map.primitive import bind
from .._map.rows import Blocks, Problem
from .._operator import as_operator, Matrix
from .._solver import AutoLinearSolver


class Unset:
    def __repr__(self):
        return "<unset>"


unset = Unset()


def linear_solve(
    operator: lx.AbstractLinearOperator | Matrix,
    vector: PyTree[ArrayLike],
    solver: lx.AbstractLinearSolver = AutoLinearSolver(well_posed=True),
    *,
    options: dict[str, Any] | None = None,
    state: PyTree[Any] = unset,
    throw: bool = True,
) -> lx.Solution:
    """Returns the pseudoinverse solution x = A†b of A x = b, with exact derivatives.

    A drop-in replacement for `lineax.linear_solve`. Depending on the solver, A may be
    square, tall (least squares), wide (minimum norm) or rank-deficient (both).

    **Arguments:**

    - `operator`: A; any `lineax.AbstractLinearOperator`, or an array of shape
        `(rows, cols)`.
    - `vector`: b; a pytree with the structure, shapes and dtypes of
        `operator.out_structure()`. Integers become floats.
    - `solver`: any `lineax.AbstractLinearSolver`, of this library, of lineax or your
        own. Defaults to `AutoLinearSolver(well_posed=True)`, for square nonsingular A.
    - `options`: a dictionary of run-time options of the solver (`"preconditioner"`,
        `"y0"`). Defaults to none. An unknown one is an error.
    - `state`: `solver.init(operator, options)`, to use a factorisation again. Defaults
        to computing it.
    - `throw`: whether a failed solve raises at run time, in the primal and in its
        derivatives. If `False`, nothing raises: `result` of the returned solution says
        what happened, and a failed derivative is NaN. Defaults to `True`.

    **Returns:** a `lineax.Solution`: `value` (x, a pytree as `operator.in_structure()`),
    `result` (compare with `lineax.RESULTS.successful`), `stats` and `state`.

    **Derivatives:** with respect to `operator` and `vector`, forward and reverse, of
    every order; for rank-deficient A along paths of constant rank. Beyond the primal,
    one application of the factorisation (or inner solve) for a JVP and one for a VJP if
    A has full rank; two and two for `SVD()`, up to three and three for other solvers that
    allow a deficient rank. `options`, `state` and a preconditioner
    within `solver` count as constants: the solution does not depend on them. Any other
    number within `solver` cannot be differentiated, and trying is an error.

    **Raises:** `TypeError` or `ValueError` at trace time for an operator or solver of
    another type, a vector that does not match, a solver that cannot take the operator,
    unknown options; a run-time error as `throw` says.

    **Sources:** Golub & Pereyra, SIAM J. Numer. Anal. 10 (1973), theorem 4.3, in the
    form of `docs/maths.md`.
    """
    # Outside of `jit`, where the indices of a sparse matrix are known.
    operator = as_operator(operator, "linear_solve")
    return _linear_solve(operator, vector, solver, options, state, throw)


@compiled
def _linear_solve(operator, vector, solver, options, state, throw) -> lx.Solution:
    operator, vector = check_system(operator, vector, solver, "linear_solve")
    if isinstance(operator, lx.IdentityLinearOperator):
        state = None if isinstance(state, Unset) else state
        return solve_identity(operator, vector, state, throw)
    problem, state = create_problem(operator, solver, options, state, throw)
    value, _, result, stats = apply_pseudoinverse(problem, vector)
    stats = eqxi.nondifferentiable_backward(stats)
    return lx.Solution(value=value, result=result, stats=stats, state=state)


def check_system(
    operator: Any, vector: PyTree[Any], solver: Any, caller: str
) -> tuple[lx.AbstractLinearOperator, PyTree[Array]]:
    """Returns operator and vector as such, or raises while JAX traces."""
    operator = as_operator(operator, caller)
    check_solver(solver, caller)
    vector = jtu.tree_map(lambda leaf: as_inexact(leaf, f"{caller}(vector=...)"), vector)
    given = Structure.of(vector)
    expected = Structure.of(operator.out_structure())
    if given != expected:
        raise ValueError(
            f"Vector and operator structures do not match: `{caller}` got a vector "
            f"with structure {given.as_tree()} and an operator with out-structure "
            f"{expected.as_tree()}. Pass a vector with the tree, shapes and dtypes of "
            "the latter."
        )
    return operator, vector


def create_problem(
    operator: lx.AbstractLinearOperator,
    solver: lx.AbstractLinearSolver,
    options: dict[str, Any] | None = None,
    state: PyTree[Any] = unset,
    throw: bool = True,
) -> tuple[Problem, PyTree[Any]]:
    """Returns the operator with its factorisation, and the solver's state alone.

    State, options and a preconditioner within the solver are constants.
    """
    options = {} if options is None else options
    if isinstance(solver, lx.BiCGStab | lx.CG | lx.GMRES):  # they do not look
        check_options(solver, options, ("preconditioner", "y0"))
    if isinstance(state, Unset):
        state = solver.init(stop_gradient(operator), options)
    state = stop_gradient(state)
    problem = Problem.create(
        operator, state, stop_gradient(options), nondifferentiable(solver), throw
    )
    return problem, state


def apply_pseudoinverse(
    problem: Problem,
    vector: PyTree[Array],
    *,
    solution: bool = True,
    residual: bool = False,
) -> tuple[PyTree[Array] | None, PyTree[Array] | None, lx.RESULTS, dict[str, Any]]:
    """Returns A†b and b − A A†b, the result and the solver's stats.

    `None` is what was not asked for, or a residual that is zero whatever the numbers. A
    wide A of full rank leaves no residual, and its solution is there unasked.
    """
    if problem.from_adjoint:
        rhs, wanted = Blocks(None, vector), Blocks(True, False, False)
        (x, _, _), result, stats = bind(problem, rhs, wanted)
        return x, None, result, stats
    wanted = Blocks(residual, solution, False)
    (r, x, _), result, stats = bind(problem, Blocks(vector), wanted)
    return x, r, result, stats


def solve_identity(operator, vector, state, throw: bool) -> lx.Solution:
    """The pseudoinverse of an identity, between spaces of any sizes, is its transpose."""
    value = operator.transpose().mv(vector)
    results = lx.RESULTS
    finite = all_finite(vector)
    result = results.where(finite, results.successful, results.nonfinite_input)
    if throw:
        value, result = result.error_if((value, result), ~finite)
    return lx.Solution(value=value, result=result, stats={}, state=state)


def nondifferentiable(solver: lx.AbstractLinearSolver) -> lx.AbstractLinearSolver:
    """The solver with its preconditioner a constant, an error at any other tangent."""

    def is_operator(node):
        return isinstance(node, lx.AbstractLinearOperator)

    def convert(node):
        if is_operator(node):
            return stop_gradient(node)
        return eqxi.nondifferentiable(node, name="`linear_solve(..., solver=...)`")

    return jtu.tree_map(convert, solver, is_leaf=is_operator)
