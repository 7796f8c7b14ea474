"""How each solver applies the saddle-point map: the ordered `isinstance` dispatch.

With A the operator of the problem (or its adjoint, see `Problem.from_adjoint`), the map
takes the blocks (v, w, y) to (r, x, P y), where P = A†A and

    x = A†v − (A^H A)†w,    r = (I − A A†)v + A†^H w.

Each row below is one line of algebra on what its solver has factorised. The solvers know
nothing of this file. `None` is a zero block, of the input or of the output: it costs
nothing, and neither does a block that is not wanted.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, PyTree

from .._base.checks import check_options
from .._base.order import after_in_batch
from .._base.results import first_failure
from .._base.tree import tree_add, tree_conj, tree_neg, tree_sub
from .._operator.adjoint import adjoint
from .._solver import (
    AbstractKrylovSolver,
    AutoLinearSolver,
    CG,
    Cholesky,
    CholeskyQR,
    MINRES,
    Neumann,
    Normal,
    PivotedQR,
    QR,
    SVD,
)
from .._solver.verified import verified


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
        guess, an iterative solver its tolerance for derivatives, and it is NaN if it
        failed.
    - `judged`: a primal solve with this state has told what is wrong with it. A solver
        that factorises does not say so again.
    """

    operator: lx.AbstractLinearOperator
    state: PyTree[Any]
    options: dict[str, Any]
    solver: lx.AbstractLinearSolver
    throw: bool = eqx.field(static=True)
    from_adjoint: bool = eqx.field(static=True)
    derivative: bool = eqx.field(static=True, default=False)
    judged: bool = eqx.field(static=True, default=False)

    @classmethod
    def create(cls, operator, state, options, solver, throw) -> "Problem":
        if isinstance(solver, AutoLinearSolver):
            check_options(solver, options)
            solver, state = state.solver.value, state.state
        wide = operator.in_size() > operator.out_size()
        from_adjoint = wide and solver.assume_full_rank()
        return cls(operator, state, options, solver, throw, from_adjoint)

    def for_derivative(self, *, judged: bool = False) -> "Problem":
        options = {key: val for key, val in self.options.items() if key != "y0"}
        return Problem(
            self.operator,
            self.state,
            options,
            _for_derivative(self.solver),
            self.throw,
            self.from_adjoint,
            derivative=True,
            judged=judged or self.judged,
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


def _for_derivative(solver: lx.AbstractLinearSolver) -> lx.AbstractLinearSolver:
    """Also where the iterative solver is within another, as in `Normal(CG(...))`."""

    def is_krylov(node):
        return isinstance(node, AbstractKrylovSolver)

    return jtu.tree_map(
        lambda node: node.for_derivative() if is_krylov(node) else node,
        solver,
        is_leaf=is_krylov,
    )


def apply_saddle_point(
    problem: Problem, rhs: Blocks, wanted: Blocks
) -> tuple[Blocks, lx.RESULTS, dict[str, Any]]:
    """Returns the wanted blocks of (r, x, P y), the result and the solver's stats."""
    if wanted.projection and problem.independent_columns:  # P = I
        rest = wanted._replace(projection=False)
        out, result, stats = apply_saddle_point(problem, rhs, rest)
        return out._replace(projection=rhs.projection), result, stats
    solver = problem.solver
    wanted = _without_zeros(problem, rhs, wanted)
    if isinstance(solver, QR):
        return _qr(solver, problem, rhs, wanted)
    if isinstance(solver, CholeskyQR):
        return _cholesky_qr(solver, problem, rhs, wanted)
    if isinstance(solver, PivotedQR | SVD):
        return _orthogonal(solver, problem, rhs, wanted)
    if isinstance(solver, Normal):
        return _normal(solver, problem, rhs, wanted)
    if isinstance(solver, Neumann):
        return _neumann(solver, problem, rhs, wanted)
    if problem.independent_rows:
        return _square_full_rank(problem, rhs, wanted)
    return _any_solver(problem, rhs, wanted)


def structure_of_blocks(problem: Problem, rhs: Blocks, wanted: Blocks) -> Blocks:
    """Shapes and dtypes of the blocks that `apply_saddle_point` returns."""
    data, unknown = problem.operator.out_structure(), problem.operator.in_structure()
    if problem.from_adjoint:
        data, unknown = unknown, data
    data_wanted, unknown_wanted, projection_wanted = _without_zeros(problem, rhs, wanted)
    return Blocks(
        data if data_wanted else None,
        unknown if unknown_wanted else None,
        unknown if projection_wanted else None,
    )


def _without_zeros(problem: Problem, rhs: Blocks, wanted: Blocks) -> Blocks:
    """The wanted blocks less those that are zero whatever the numbers."""
    solved = rhs.data is not None or rhs.unknown is not None
    residual = solved and not (problem.independent_rows and rhs.unknown is None)
    return Blocks(
        wanted.data and residual,
        wanted.unknown and solved,
        wanted.projection and rhs.projection is not None,
    )


def _raveled(problem: Problem, rhs: Blocks):
    """The structures of the two spaces, and v and w as flat vectors."""
    data, unknown = problem.state.structures.value
    if problem.from_adjoint:
        data, unknown = unknown, data
    v = None if rhs.data is None else data.ravel(rhs.data)
    w = None if rhs.unknown is None else unknown.ravel(rhs.unknown)
    return data, unknown, v, w


def _qr(solver: QR, problem: Problem, rhs: Blocks, wanted: Blocks):
    """A = QR, or B = A^H = QR: c = Q^H v − R^-H w, x = R^-1 c, r = v − Q c."""
    check_options(solver, problem.options)
    state = problem.state
    data, unknown, v, w = _raveled(problem, rhs)
    qh_v = None if v is None else state.qh_mv(v)
    rh_w = None if w is None else state.r_solve(after_in_batch(qh_v, w), adjoint=True)
    c = tree_sub(qh_v, rh_w)
    x = state.r_solve(c) if wanted.unknown else None
    r = None
    if wanted.data and problem.independent_rows:
        r = data.unravel(state.q_mv(after_in_batch(x, rh_w)))
    elif wanted.data:
        r = data.unravel(tree_sub(v, state.q_mv(after_in_batch(x, c))))
    x = None if x is None else unknown.unravel(x)
    return Blocks(r, x, None), solver.result(state), solver.stats(state)


def _cholesky_qr(solver: CholeskyQR, problem: Problem, rhs: Blocks, wanted: Blocks):
    """B = A or A^H: r + B x = v, B^H r = w, by the Gram matrix, refined."""
    check_options(solver, problem.options)
    state = problem.state
    data, unknown, v, w = _raveled(problem, rhs)
    x = r = None
    if wanted.data or wanted.unknown:
        x, r = state.solve(v, w, residual=wanted.data)
        x = unknown.unravel(x) if wanted.unknown else None
        r = data.unravel(r) if wanted.data else None
    return Blocks(r, x, None), solver.result(state), solver.stats(state)


def _orthogonal(solver: PivotedQR | SVD, problem: Problem, rhs: Blocks, wanted: Blocks):
    """A = Q T Z^H: c = Q^H v − T^-H Z^H w, x = Z T^-1 c, r = v − Q c; P = Z Z^H."""
    check_options(solver, problem.options)
    state = problem.state
    data, unknown, v, w = _raveled(problem, rhs)
    qh_v = None if v is None else state.qh_mv(v)
    th_w = None
    if w is not None:
        th_w = state.t_solve(state.zh_mv(after_in_batch(qh_v, w)), adjoint=True)
    c = tree_sub(qh_v, th_w)
    x = r = p = None
    last = c
    if wanted.unknown:
        last = x = state.z_mv(state.t_solve(c))
    if wanted.data:
        last = r = tree_sub(v, state.q_mv(after_in_batch(last, c)))
    if wanted.projection:
        y = unknown.ravel(rhs.projection)
        last = p = state.z_mv(state.zh_mv(after_in_batch(last, y)))
    # Whoever needs one of them waits for all.
    x = None if x is None else unknown.unravel(after_in_batch(last, x))
    r = None if r is None else data.unravel(after_in_batch(last, r))
    p = None if p is None else unknown.unravel(p)
    return Blocks(r, x, p), solver.result(state), solver.stats(state)


def _normal(solver: Normal, problem: Problem, rhs: Blocks, wanted: Blocks):
    """G = A^H A: x = G†(A^H v − w), r = v − A x, P y = G†(A^H A y).

    With A / unit in the place of A, x and w are those of A / unit as well.
    """
    state = problem.state
    if not (state.tall.value or problem.from_adjoint):
        return _any_solver(problem, rhs, wanted)  # wide, and perhaps deficient
    forward, backward = state.operator, state.adjoint
    if problem.from_adjoint:
        forward, backward = backward, forward
    in_data = not problem.from_adjoint

    def inner_solve(vector, source=None):
        return solver.inner_solve(state, vector, problem.options, source)

    solve = _Attempt(lambda vector: inner_solve(vector, v if w is None else None))
    project = _Attempt(lambda source: inner_solve(backward.mv(source), source))

    def to_inner(vector, *, out):
        return None if vector is None else solver.to_inner(state, vector, out=out)

    v, w = to_inner(rhs.data, out=in_data), to_inner(rhs.unknown, out=not in_data)
    r = x = p = None
    if (wanted.data or wanted.unknown) and v is None:
        x = solver.over_unit(state, tree_neg(solve(w)))  # a first guess is of solve(w)
    elif wanted.data or wanted.unknown:
        x = solve(tree_sub(backward.mv(v), solver.over_unit(state, w)))
    if wanted.data:
        r = solver.from_inner(state, tree_sub(v, forward.mv(x)), out=in_data)
    if wanted.projection:
        y = to_inner(rhs.projection, out=not in_data)
        p = project(forward.mv(y))
        solve.note(project.result)
        p = solver.from_inner(state, p, out=not in_data)
    if wanted.unknown:
        x = solver.from_inner(state, solver.over_unit(state, x), out=not in_data)
    return Blocks(r, x if wanted.unknown else None, p), solve.result, solve.stats


def _neumann(solver: Neumann, problem: Problem, rhs: Blocks, wanted: Blocks):
    """N the series: x = N v − N N^H w, r = v − A N v + N^H w.

    For the exact inverse r is v − A x. The form here keeps the block from w to r the
    adjoint of the block from v to x for every truncation, so that the gradient with
    respect to b is the one of the truncated series.
    """
    state, options = problem.state, problem.options
    v, w, y = rhs
    solve = _Attempt(lambda z: solver.compute(state, z, options))
    n_v = None if v is None else solve(v)
    n_w = gram_w = None
    if w is not None and solver.has_gram_series(state, options):
        n_w, gram_w, result = solver.gram_inverse(state, w, options)
        solve.note(result)
    elif w is not None:
        n_w = _adjoint_solve(problem, solve, w)
        gram_w = solve(n_w) if wanted.unknown else None
    r = x = p = None
    if wanted.unknown:
        x = tree_sub(n_v, gram_w)
    if wanted.data:
        rest = None if v is None else tree_sub(v, state.operator.mv(n_v))
        r = tree_add(rest, n_w)
    if wanted.projection:
        p, result = solver.row_space_projection(state, y, options)
        solve.note(result)
    return Blocks(r, x, p), solve.result, solve.stats


def _square_full_rank(problem: Problem, rhs: Blocks, wanted: Blocks):
    """CG, LU, Cholesky and all others: c = A^-H w, x = A^-1 (v − c), r = c."""
    solve = _compute(problem)
    c = None if rhs.unknown is None else _adjoint_solve(problem, solve, rhs.unknown)
    x = solve(tree_sub(rhs.data, c)) if wanted.unknown else None
    return Blocks(c if wanted.data else None, x, None), solve.result, solve.stats


def _any_solver(problem: Problem, rhs: Blocks, wanted: Blocks):
    """c = A†^H w, x = A†(v − c), r = v − A x, P y = A†(A y), for any shape and rank."""
    v, w, y = rhs
    attempt = _compute(problem)
    operator, solve = problem.operator, attempt
    adjoint_solve: Callable = lambda z: _adjoint_solve(problem, attempt, z)
    if problem.from_adjoint:
        operator = adjoint(operator)
        solve, adjoint_solve = adjoint_solve, solve
    c = None if w is None else adjoint_solve(w)
    r = x = p = None
    if wanted.unknown or (wanted.data and v is not None):
        x = solve(tree_sub(v, c))
    if wanted.data:
        r = c if v is None else tree_sub(v, operator.mv(x))
    if wanted.projection:
        p = solve(operator.mv(y))
    return Blocks(r, x if wanted.unknown else None, p), attempt.result, attempt.stats


class _Attempt:
    """Calls a solver, keeping the first failure and the stats of the last call."""

    def __init__(self, compute: Callable):
        self._compute = compute
        self.result = lx.RESULTS.successful
        self.stats: dict[str, Any] = {}

    def __call__(self, vector: PyTree[Array]) -> PyTree[Array]:
        solution, result, self.stats = self._compute(vector)
        self.note(result)
        return solution

    def note(self, result: lx.RESULTS) -> None:
        self.result = first_failure(self.result, result)


def _compute(problem: Problem) -> _Attempt:
    solver, operator = problem.solver, problem.operator

    def compute(vector):
        solution, result, stats = solver.compute(problem.state, vector, problem.options)
        return *verified(solver, operator.mv, vector, solution, result), stats

    return _Attempt(compute)


def _adjoint_solve(problem: Problem, solve: _Attempt, vector: PyTree[Array]):
    """A†^H w = conj(A†^T conj(w)): never through `solver.conj`, see `Normal`."""
    solver, options = problem.solver, problem.options
    if isinstance(solver, CG | Cholesky | MINRES | lx.CG | lx.Cholesky):
        return solve(vector)  # Hermitian
    if isinstance(solver, lx.Normal):
        # Its `transpose` conjugates the inner state, wrongly for LU (lineax 0.1.1).
        _, options = solver.transpose(problem.state, options)
        state = solver.init(problem.operator.transpose(), options)
    else:
        state, options = solver.transpose(problem.state, options)

    def transpose_mv(vector):  # built where it is called: not every operator has one
        return problem.operator.transpose().mv(vector)

    vector = tree_conj(vector)
    solution, result, solve.stats = solver.compute(state, vector, options)
    solution, result = verified(solver, transpose_mv, vector, solution, result)
    solve.note(result)
    return tree_conj(solution)
