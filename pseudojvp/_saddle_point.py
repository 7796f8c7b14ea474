"""How each solver applies the saddle-point map: the ordered `isinstance` dispatch.

With A the operator of the problem (or its adjoint, see `Problem.from_adjoint`), the map
takes the blocks (v, w, y) to (r, x, P y), where P = A†A and

    x = A†v − (A^H A)†w,    r = (I − A A†)v + A†^H w.

Each row below is one line of algebra on what its solver has factorised. The solvers know
nothing of this file. `None` is a zero block, of the input or of the output.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import lineax as lx
from jaxtyping import Array, PyTree

from ._misc import (
    adjoint,
    first_failure,
    tree_add,
    tree_conj,
    tree_neg,
    tree_sub,
)
from ._solver import AutoLinearSolver, CG, Neumann, Normal, QR, SVD


class Blocks(NamedTuple):
    """(v, w, y) going in or (r, x, P y) coming out; as booleans, which are wanted."""

    data: Any = None  # v, r: in the space of b
    unknown: Any = None  # w, x: in the space of x
    projection: Any = None  # y, P y: in the space of x


class Problem(eqx.Module):
    """An operator with its factorisation, and how failures are told.

    - `from_adjoint`: the map is that of B = A^H. A wide A of full rank is entered from
        this side, so that B always has independent columns.
    - `derivative`: the solve belongs to a tangent or a cotangent. It takes no first
        guess, and it is NaN if it failed.
    """

    operator: lx.AbstractLinearOperator
    state: PyTree[Any]
    options: dict[str, Any]
    solver: lx.AbstractLinearSolver
    throw: bool = eqx.field(static=True)
    from_adjoint: bool = eqx.field(static=True, default=False)
    derivative: bool = eqx.field(static=True, default=False)

    @classmethod
    def create(cls, operator, state, options, solver, throw) -> "Problem":
        if isinstance(solver, AutoLinearSolver):
            solver, state = state.solver.value, state.state
        wide = operator.in_size() > operator.out_size()
        from_adjoint = wide and solver.assume_full_rank()
        return cls(operator, state, options, solver, throw, from_adjoint)

    def for_derivative(self) -> "Problem":
        options = {key: val for key, val in self.options.items() if key != "y0"}
        return Problem(
            self.operator,
            self.state,
            options,
            self.solver,
            self.throw,
            self.from_adjoint,
            True,
        )

    @property
    def _square(self) -> bool:
        return self.operator.in_size() == self.operator.out_size()

    @property
    def independent_columns(self) -> bool:
        """P = I, by `from_adjoint` also for wide operators of full rank."""
        tall = self.operator.in_size() <= self.operator.out_size()
        return self.solver.assume_full_rank() and (tall or self.from_adjoint)

    @property
    def independent_rows(self) -> bool:
        """I − A A† = 0: v leaves no residual."""
        return self.solver.assume_full_rank() and self._square


def apply_saddle_point(
    problem: Problem, rhs: Blocks, wanted: Blocks
) -> tuple[Blocks, lx.RESULTS, dict[str, Any]]:
    """Returns the wanted blocks of (r, x, P y), the result and the solver's stats."""
    solver = problem.solver
    if isinstance(solver, QR):
        return _qr(solver, problem, rhs, wanted)
    if isinstance(solver, SVD):
        return _svd(solver, problem, rhs, wanted)
    if isinstance(solver, Normal):
        return _normal(solver, problem, rhs, wanted)
    if isinstance(solver, Neumann):
        return _neumann(solver, problem, rhs, wanted)
    if problem.independent_rows:
        return _square_full_rank(problem, rhs, wanted)
    return _any_solver(problem, rhs, wanted)


def _qr(solver: QR, problem: Problem, rhs: Blocks, wanted: Blocks):
    """A = QR, or B = A^H = QR: c = Q^H v − R^-H w, x = R^-1 c, r = v − Q c."""
    state = problem.state
    data, unknown = state.structures.value
    if problem.from_adjoint:
        data, unknown = unknown, data
    v, w = _ravel(rhs.data, data), _ravel(rhs.unknown, unknown)
    c = tree_sub(
        None if v is None else state.qh_mv(v),
        None if w is None else state.r_solve(w, adjoint=True),
    )
    r = x = None
    if wanted.unknown:
        x = unknown.unravel(state.r_solve(c))
    if wanted.data and problem.independent_rows:
        r = None if w is None else state.q_mv(state.r_solve(w, adjoint=True))
    elif wanted.data:
        r = tree_sub(v, state.q_mv(c))
    r = None if r is None else data.unravel(r)
    return Blocks(r, x, None), solver.result(state), {}


def _svd(solver: SVD, problem: Problem, rhs: Blocks, wanted: Blocks):
    """A = U S V^H: c = U^H v − S^-1 V^H w, x = V S^-1 c, r = v − U c; P = V V^H."""
    state = problem.state
    data, unknown = state.structures.value
    v, w = _ravel(rhs.data, data), _ravel(rhs.unknown, unknown)
    y = _ravel(rhs.projection, unknown)
    c = tree_sub(
        None if v is None else state.uh_mv(v),
        None if w is None else state.s_solve(state.vh_mv(w)),
    )
    r = x = p = None
    if wanted.unknown and c is not None:
        x = unknown.unravel(state.v_mv(state.s_solve(c)))
    if wanted.data and c is not None:
        r = data.unravel(tree_sub(v, state.u_mv(c)))
    if wanted.projection and y is not None:
        p = unknown.unravel(state.v_mv(state.vh_mv(y)))
    return Blocks(r, x, p), solver.result(state), solver.stats(state)


def _normal(solver: Normal, problem: Problem, rhs: Blocks, wanted: Blocks):
    """G = A^H A: x = G†(A^H v − w), r = v − A x, P y = G†(A^H A y)."""
    state = problem.state
    if not (state.tall.value or problem.from_adjoint):
        return _any_solver(problem, rhs, wanted)  # wide, and perhaps deficient
    forward, backward = state.operator, state.adjoint
    if problem.from_adjoint:
        forward, backward = backward, forward
    in_data = not problem.from_adjoint
    solve = _Attempt(lambda z: solver.inner_solve(state, z, problem.options))
    to_inner = lambda z, out: None if z is None else solver.to_inner(state, z, out=out)
    v, w = to_inner(rhs.data, in_data), to_inner(rhs.unknown, not in_data)
    y = to_inner(rhs.projection, not in_data)
    r = x = p = None
    if v is not None or w is not None:
        x = tree_neg(solve(w)) if v is None else solve(tree_sub(backward.mv(v), w))
        if wanted.data and not (problem.independent_rows and w is None):
            r = solver.from_inner(state, tree_sub(v, forward.mv(x)), out=in_data)
    if wanted.projection and y is not None:
        p = solver.from_inner(state, solve(backward.mv(forward.mv(y))), out=not in_data)
    if x is not None:
        x = solver.from_inner(state, x, out=not in_data) if wanted.unknown else None
    return Blocks(r, x, p), solve.result, solve.stats


def _neumann(solver: Neumann, problem: Problem, rhs: Blocks, wanted: Blocks):
    """N the series: x = N v − N N^H w, r = v − A N v + N^H w.

    For the exact inverse r is v − A x. The form here keeps the block from w to r the
    adjoint of the block from v to x for every truncation, so that the gradient with
    respect to b is the one of the truncated series.
    """
    state, options = problem.state, problem.options
    v, w, y = rhs
    solve = _Attempt(lambda z: solver.compute(state, z, options))
    x_v = gram_w = c = p = None
    if v is not None:
        x_v = solve(v)
    if w is not None:
        if solver.has_gram_series(state, options):
            c, gram_w, result = solver.gram_inverse(state, w, options)
            solve.note(result, {"num_steps": 0, "max_steps": solver.num_terms})
        else:
            c = _adjoint_solve(problem, solve, w)
            gram_w = solve(c) if wanted.unknown else None
    if wanted.projection and y is not None:
        p, result = solver.row_space_projection(state, y, options)
        solve.note(result, {"num_steps": solver.num_terms, "max_steps": solver.num_terms})
    r = x = None
    if wanted.unknown:
        x = tree_sub(x_v, gram_w)
    if wanted.data:
        rest = None if v is None else tree_sub(v, state.operator.mv(x_v))
        r = tree_add(rest, c)
    return Blocks(r, x, p), solve.result, solve.stats


def _square_full_rank(problem: Problem, rhs: Blocks, wanted: Blocks):
    """CG, LU, Cholesky and all others: c = A^-H w, x = A^-1 (v − c), r = c."""
    solve = _Attempt(lambda z: problem.solver.compute(problem.state, z, problem.options))
    c = None if rhs.unknown is None else _adjoint_solve(problem, solve, rhs.unknown)
    x = None
    if wanted.unknown and not (rhs.data is None and c is None):
        x = solve(tree_sub(rhs.data, c))
    return Blocks(c if wanted.data else None, x, None), solve.result, solve.stats


def _any_solver(problem: Problem, rhs: Blocks, wanted: Blocks):
    """c = A†^H w, x = A†(v − c), r = v − A x, P y = A†(A y), for any shape and rank."""
    v, w, y = rhs
    forward_solve = _Attempt(
        lambda z: problem.solver.compute(problem.state, z, problem.options)
    )
    operator = problem.operator
    adjoint_solve: Callable = lambda z: _adjoint_solve(problem, forward_solve, z)
    solve = forward_solve
    if problem.from_adjoint:
        operator = adjoint(operator)
        solve, adjoint_solve = adjoint_solve, solve
    c = None if w is None else adjoint_solve(w)
    r = x = p = None
    if wanted.unknown or (wanted.data and v is not None):
        x = solve(tree_sub(v, c))
    if wanted.data:
        r = c if v is None else tree_sub(v, operator.mv(x))
    if wanted.projection and y is not None:
        p = solve(operator.mv(y))
    x = x if wanted.unknown else None
    return Blocks(r, x, p), forward_solve.result, forward_solve.stats


class _Attempt:
    """Calls a solver, keeping the first failure and the stats of the last call."""

    def __init__(self, compute: Callable):
        self._compute = compute
        self.result = lx.RESULTS.successful
        self.stats: dict[str, Any] = {}

    def __call__(self, vector: PyTree[Array]) -> PyTree[Array]:
        solution, result, stats = self._compute(vector)
        self.note(result, stats)
        return solution

    def note(self, result: lx.RESULTS, stats: dict[str, Any]) -> None:
        self.result = first_failure(self.result, result)
        self.stats = stats


def _adjoint_solve(problem: Problem, solve: _Attempt, vector: PyTree[Array]):
    """A†^H w = conj(A†^T conj(w)): never through `solver.conj`, see `Normal`."""
    solver, options = problem.solver, problem.options
    if isinstance(solver, CG | lx.CG | lx.Cholesky):
        return solve(vector)  # Hermitian
    if isinstance(solver, lx.Normal):
        # Its `transpose` conjugates the inner state, wrongly for LU (lineax 0.1.1).
        _, options = solver.transpose(problem.state, options)
        state = solver.init(problem.operator.transpose(), options)
    else:
        state, options = solver.transpose(problem.state, options)
    solution, result, stats = solver.compute(state, tree_conj(vector), options)
    solve.note(result, stats)
    return tree_conj(solution)


def _ravel(vector, structure):
    return None if vector is None else structure.ravel(vector)
