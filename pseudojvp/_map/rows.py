"""How each solver applies the saddle-point map: the ordered `isinstance` dispatch.

With A the operator of the problem (or its adjoint, see `Problem.from_adjoint`), the map
takes the blocks (v, w, y) to (r, x, P y), where P = A†A and

    x = A†v − (A^H A)†w,    r = (I − A A†)v + A†^H w.

Each row below is one line of algebra on what its solver has factorised. The solvers know
nothing of this file. `None` is a zero block, of the input or of the output: it costs
nothing, and neither does a block that is not wanted.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import equinox.internal as eqxi
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, PyTree

from .._base.checks import check_options
from .._base.order import Steps
from .._base.results import first_failure
from .._base.tree import stop_gradient, tree_add, tree_conj, tree_neg, tree_sub
from .._operator.adjoint import adjoint, transpose_of
from .._solver import (
    AbstractKrylovSolver,
    AutoLinearSolver,
    CholeskyQR,
    FunctionSolver,
    Neumann,
    Normal,
    PivotedQR,
    PreconditioningFunction,
    QR,
    SVD,
)
from .._solver.guess import combined
from .._solver.verified import verified
from .thinned import Thinning
from .traits import order_of, traits_of


class Blocks(NamedTuple):
    """(v, w, y) going in or (r, x, P y) coming out; as booleans, which are wanted."""

    codomain: Any = None  # v, r
    domain: Any = None  # w, x
    projection: Any = None  # y, P y: in the domain


class Problem(eqx.Module):
    """An operator with its factorisation.

    - `from_adjoint`: the map is that of B = A^H. A wide A of full rank is entered from
        this side, so that B always has independent columns.
    - `in_row_space`: w is in the row space of A whatever the numbers, for it is A†b.
    - `other`: the solver of derivatives, where that is another.
    - `full_rank`: what the primal solver assumes, where `solver` is that other.
    - `first_order`: the name of what has no second derivative; empty if there is none.
    - `adjoints`: what earlier adjoint solves gave, for a first guess, along the last axis
        of each leaf; `None` if there is none.
    - `axes`: of each block, those of a mesh that it varies over; `None` outside of
        `jax.shard_map`. See `mesh.py`.
    """

    operator: lx.AbstractLinearOperator
    state: PyTree[Any]
    options: dict[str, Any]
    solver: lx.AbstractLinearSolver
    from_adjoint: bool = eqx.field(static=True)
    in_row_space: bool = eqx.field(static=True, default=False)
    other: "Other | None" = None
    full_rank: bool | None = eqx.field(static=True, default=None)
    first_order: str = eqx.field(static=True, default="")
    adjoints: PyTree[Array] | None = None
    axes: Blocks | None = eqx.field(static=True, default=None)

    @classmethod
    def create(cls, operator, state, options, solver) -> "Problem":
        if isinstance(solver, AutoLinearSolver):
            check_options(solver, options)
            solver, state = state.solver, state.state
        wide = operator.in_size() > operator.out_size()
        if isinstance(solver, QR | CholeskyQR):  # or the factors of a square A are A^H's
            wide = state.wide.value
        from_adjoint = wide and solver.assume_full_rank()
        return cls(operator, state, options, solver, from_adjoint)

    def for_derivative(self, in_row_space: bool = False) -> "Problem":
        """Without a first guess, and with the tolerance for derivatives."""
        if self.other is not None:
            return self._with_other(self.other, in_row_space)
        options = {key: val for key, val in self.options.items() if key != "y0"}
        solver = _for_derivative(self.solver)
        return dataclasses.replace(
            self, options=options, solver=solver, in_row_space=in_row_space
        )

    def _with_other(self, other: "Other", in_row_space: bool) -> "Problem":
        return dataclasses.replace(
            self,
            state=other.state,
            options=other.options,
            solver=_for_derivative(other.solver),
            in_row_space=in_row_space,
            other=None,
            full_rank=self.solver.assume_full_rank(),
            first_order=other.first_order,
            adjoints=None,
        )

    @property
    def derivative_solver(self) -> lx.AbstractLinearSolver:
        return self.solver if self.other is None else self.other.solver

    @property
    def _assumes_full_rank(self) -> bool:
        known = self.full_rank
        return self.solver.assume_full_rank() if known is None else known

    @property
    def _square(self) -> bool:
        return self.operator.in_size() == self.operator.out_size()

    @property
    def independent_columns(self) -> bool:
        """P = I, by `from_adjoint` also for wide operators of full rank."""
        tall = self.operator.in_size() <= self.operator.out_size()
        return self._assumes_full_rank and (tall or self.from_adjoint)

    @property
    def independent_rows(self) -> bool:
        """I − A A† = 0: v leaves no residual."""
        return self._assumes_full_rank and self._square


def nondifferentiable(solver: lx.AbstractLinearSolver) -> lx.AbstractLinearSolver:
    """The solver with its preconditioner a constant, an error at any other tangent."""

    def is_constant(node):
        return isinstance(node, lx.AbstractLinearOperator | PreconditioningFunction)

    def convert(node):
        if is_constant(node):
            return stop_gradient(node)
        return eqxi.nondifferentiable(node, name="`linear_solve(..., solver=...)`")

    return jtu.tree_map(convert, solver, is_leaf=is_constant)


class Other(eqx.Module):
    """A solver for derivatives alone, with its state; see `Problem`."""

    solver: lx.AbstractLinearSolver
    state: PyTree[Any]
    options: dict[str, Any]
    first_order: str = eqx.field(static=True, default="")
    thinning: Thinning | None = None


def _for_derivative(solver: lx.AbstractLinearSolver) -> lx.AbstractLinearSolver:
    """Also where the iterative solver is within another, as in `Normal(CG(...))`."""

    def has_tolerance(node):
        return isinstance(node, AbstractKrylovSolver | FunctionSolver)

    return jtu.tree_map(
        lambda node: node.for_derivative() if has_tolerance(node) else node,
        solver,
        is_leaf=has_tolerance,
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
    codomain, domain, _ = spaces(problem)
    wanted = _without_zeros(problem, rhs, wanted)
    return Blocks(
        codomain if wanted.codomain else None,
        domain if wanted.domain else None,
        domain if wanted.projection else None,
    )


def spaces(problem: Problem) -> Blocks:
    """The structures of the blocks."""
    codomain, domain = problem.operator.out_structure(), problem.operator.in_structure()
    if problem.from_adjoint:
        codomain, domain = domain, codomain
    return Blocks(codomain, domain, domain)


def _without_zeros(problem: Problem, rhs: Blocks, wanted: Blocks) -> Blocks:
    """The wanted blocks less those that are zero whatever the numbers."""
    solved = rhs.codomain is not None or rhs.domain is not None
    residual = solved and not (problem.independent_rows and rhs.domain is None)
    return Blocks(
        wanted.codomain and residual,
        wanted.domain and solved,
        wanted.projection and rhs.projection is not None,
    )


def _raveled(problem: Problem, rhs: Blocks):
    """The structures of the two spaces, and v and w as flat vectors."""
    codomain, domain = problem.state.structures.value
    if problem.from_adjoint:
        codomain, domain = domain, codomain
    v = None if rhs.codomain is None else codomain.ravel(rhs.codomain)
    w = None if rhs.domain is None else domain.ravel(rhs.domain)
    return codomain, domain, v, w


def _qr(solver: QR, problem: Problem, rhs: Blocks, wanted: Blocks):
    """A = QR, or B = A^H = QR: c = Q^H v − R^-H w, x = R^-1 c, r = v − Q c."""
    check_options(solver, problem.options)
    state = problem.state
    codomain, domain, v, w = _raveled(problem, rhs)
    step = Steps(order_of(solver))
    qh_v = step(state.qh_mv, v)
    rh_w = step(state.r_solve, w, adjoint=True)
    c = tree_sub(qh_v, rh_w)
    r = x = None
    if wanted.domain:
        x = domain.unravel(step(state.r_solve, c))
    if wanted.codomain and problem.independent_rows:
        r = codomain.unravel(step(state.q_mv, rh_w))
    elif wanted.codomain:
        r = codomain.unravel(tree_sub(v, step(state.q_mv, c)))
    return Blocks(r, x, None), solver.result(state), solver.stats(state)


def _cholesky_qr(solver: CholeskyQR, problem: Problem, rhs: Blocks, wanted: Blocks):
    """B = A or A^H: r + B x = v, B^H r = w, by the Gram matrix, refined."""
    check_options(solver, problem.options)
    state = problem.state
    codomain, domain, v, w = _raveled(problem, rhs)
    x = r = None
    if wanted.codomain or wanted.domain:
        x, r = state.solve(v, w, residual=wanted.codomain)
        x = domain.unravel(x) if wanted.domain else None
        r = codomain.unravel(r) if wanted.codomain else None
    return Blocks(r, x, None), solver.result(state), solver.stats(state)


def _orthogonal(solver: PivotedQR | SVD, problem: Problem, rhs: Blocks, wanted: Blocks):
    """A = Q T Z^H: c = Q^H v − T^-H Z^H w, x = Z T^-1 c, r = v − Q c; P = Z Z^H."""
    check_options(solver, problem.options)
    state = problem.state
    codomain, domain, v, w = _raveled(problem, rhs)
    step = Steps(order_of(solver))
    qh_v = step(state.qh_mv, v)
    th_w = step(state.adjoint_solve, w)
    c = tree_sub(qh_v, th_w)
    r = x = p = None
    if wanted.domain:
        x = step(state.solve, c)
    if wanted.codomain:
        r = tree_sub(v, step(state.q_mv, c))
    if wanted.projection:
        p = domain.unravel(step(state.project, domain.ravel(rhs.projection)))
    x = None if x is None else domain.unravel(step.end(x))
    r = None if r is None else codomain.unravel(step.end(r))
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
    in_codomain = not problem.from_adjoint

    def inner_solve(vector, source=None):
        return solver.inner_solve(state, vector, problem.options, source)

    solve = _Attempt(lambda vector: inner_solve(vector, v if w is None else None))
    project = _Attempt(lambda source: inner_solve(backward.mv(source), source))

    def to_inner(vector, *, out):
        return None if vector is None else solver.to_inner(state, vector, out=out)

    v = to_inner(rhs.codomain, out=in_codomain)
    w = to_inner(rhs.domain, out=not in_codomain)
    r = x = p = None
    if (wanted.codomain or wanted.domain) and v is None:
        x = solver.over_unit(state, tree_neg(solve(w)))  # a first guess is of solve(w)
    elif wanted.codomain or wanted.domain:
        x = solve(tree_sub(backward.mv(v), solver.over_unit(state, w)))
    if wanted.codomain:
        r = solver.from_inner(state, tree_sub(v, forward.mv(x)), out=in_codomain)
    if wanted.projection:
        y = to_inner(rhs.projection, out=not in_codomain)
        p = project(forward.mv(y))
        solve.note(project.result)
        p = solver.from_inner(state, p, out=not in_codomain)
    if wanted.domain:
        x = solver.from_inner(state, solver.over_unit(state, x), out=not in_codomain)
    return Blocks(r, x if wanted.domain else None, p), solve.result, solve.stats


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
        gram_w = solve(n_w) if wanted.domain else None
    r = x = p = None
    if wanted.domain:
        x = tree_sub(n_v, gram_w)
    if wanted.codomain:
        rest = None if v is None else tree_sub(v, state.operator.mv(n_v))
        r = tree_add(rest, n_w)
    if wanted.projection:
        p, result = solver.row_space_projection(state, y, options)
        solve.note(result)
    return Blocks(r, x, p), solve.result, solve.stats


def _square_full_rank(problem: Problem, rhs: Blocks, wanted: Blocks):
    """CG, LU, Cholesky and all others: c = A^-H w, x = A^-1 (v − c), r = c."""
    solve = _compute(problem)
    c = None if rhs.domain is None else _adjoint_solve(problem, solve, rhs.domain)
    x = solve(tree_sub(rhs.codomain, c)) if wanted.domain else None
    return Blocks(c if wanted.codomain else None, x, None), solve.result, solve.stats


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
    if wanted.domain or (wanted.codomain and v is not None):
        x = solve(tree_sub(v, c))
    if wanted.codomain:
        r = c if v is None else tree_sub(v, operator.mv(x))
    if wanted.projection:
        p = solve(operator.mv(y))
    return Blocks(r, x if wanted.domain else None, p), attempt.result, attempt.stats


class _Attempt:
    """Calls a solver, keeping the first failure and the stats of the last call."""

    def __init__(self, compute: Callable):
        self._compute = compute
        self.result = lx.RESULTS.successful
        self.stats: dict[str, Any] = {}

    def __call__(self, vector: PyTree[Array], **options: Any) -> PyTree[Array]:
        solution, result, self.stats = self._compute(vector, **options)
        self.note(result)
        return solution

    def note(self, result: lx.RESULTS) -> None:
        self.result = first_failure(self.result, result)


def _compute(problem: Problem) -> _Attempt:
    solver, operator = problem.solver, problem.operator

    def compute(vector, **more):
        options = {**problem.options, **more}
        solution, result, stats = solver.compute(problem.state, vector, options)
        return *verified(solver, operator.mv, vector, solution, result), stats

    return _Attempt(compute)


def _adjoint_guess(problem: Problem, vector: PyTree[Array]) -> dict[str, PyTree[Array]]:
    """The option with a first guess of A^-H w."""
    if problem.adjoints is None:
        return {}
    operator = problem.operator
    if not traits_of(problem.solver).hermitian:
        operator = adjoint(operator)
    return {"y0": combined(operator.mv, problem.adjoints, vector)}


def _adjoint_solve(problem: Problem, solve: _Attempt, vector: PyTree[Array]):
    """A†^H w = conj(A†^T conj(w)): never through `solver.conj`, see `Normal`."""
    solver, options = problem.solver, problem.options
    guess = _adjoint_guess(problem, vector)
    if traits_of(solver).hermitian:
        return solve(vector, **guess)
    if isinstance(solver, lx.Normal):
        # Its `transpose` conjugates the inner state, wrongly for LU (lineax 0.1.1).
        _, options = solver.transpose(problem.state, options)
        state = solver.init(transpose_of(problem.operator), options)
    else:
        state, options = solver.transpose(problem.state, options)

    options = {**options, **tree_conj(guess)}

    def transpose_mv(vector):  # built where it is called: not every operator has one
        return transpose_of(problem.operator).mv(vector)

    vector = tree_conj(vector)
    solution, result, solve.stats = solver.compute(state, vector, options)
    solution, result = verified(solver, transpose_mv, vector, solution, result)
    solve.note(result)
    return tree_conj(solution)
