"""The face of the map: each of its blocks by name."""

import dataclasses
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, ArrayLike, PyTree

from .._base.auto_axes import with_auto_axes
from .._base.call import compiled
from .._base.checks import check_options, check_vector
from .._base.tree import in_each_part, stop_gradient, tree_neg, tree_sub
from .._operator.matrix import is_narrow
from .._operator.over_reals import aids_over_reals, joined, mixes, over_reals, parted
from .._operator.unit_diagonal import is_unit_triangular, with_ones, without_diagonal
from .._solver import (
    AbstractTelling,
    AutoLinearSolver,
    Identity,
    Normal,
    Slogdet,
    SparseTriangular,
    Triangular,
    Tridiagonal,
    Unrolled,
)
from .._solver.counterpart import counterpart
from .._solver.direct.diagonal import diagonal_solver
from .adjoints import AbstractAdjoint, ImplicitAdjoint, unrolled
from .determinant import slogdet
from .guard import Guard, is_complex_linear
from .initial import initial_state
from .mesh import check_spread
from .primitive import bind
from .rows import Blocks, nondifferentiable, Problem
from .stochastic import keys_of, with_key


class Unset:
    def __repr__(self):
        return "<unset>"


unset = Unset()
implicit = ImplicitAdjoint()


class Factorised(eqx.Module):
    """A and its factors, or what an iterative solver keeps of A.

    Returned by [`pseudojvp.factorise`][], which describes cost and derivatives. A pytree:
    it passes through `jax.jit`, `jax.vmap` and loops. Each method takes one vector; for a
    batch use `jax.vmap`.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    factors = pj.factorise(jnp.array([[2.0, 0.0], [0.0, 4.0]]))
    print(factors.adjoint_solve(jnp.array([2.0, 4.0])))  # [1. 1.]
    print(f"{factors.slogdet().logabsdet:.4f}")  # 2.0794
    ```
    """

    _problem: Problem
    _guard: Guard
    # A, where the problem is that over the reals.
    _mixed: lx.AbstractLinearOperator | None = None

    @classmethod
    def create(
        cls,
        operator: lx.AbstractLinearOperator,
        solver: lx.AbstractLinearSolver,
        options: dict[str, Any] | None = None,
        state: PyTree[Any] = unset,
        throw: bool = True,
        adjoint: AbstractAdjoint = implicit,
    ) -> tuple["Factorised", PyTree[Any]]:
        """Returns the operator factorised, and the solver's state alone.

        State, options and a preconditioner within the solver are constants, unless
        `adjoint` unrolls the solver.
        """
        unrolls = adjoint.unrolls
        if unrolls and not isinstance(state, Unset):
            raise ValueError(
                "`UnrolledAdjoint` got a `state`, which is a constant, and so would be "
                "the operator in it. Leave `state` out."
            )
        options = {} if options is None else options
        if isinstance(solver, lx.BiCGStab | lx.CG | lx.GMRES):  # they do not look
            check_options(solver, options, ("preconditioner", "y0"))
        if isinstance(operator, lx.IdentityLinearOperator) and not unrolls:
            solver, options, state = Identity(), {}, unset
        mixed = None
        if mixes(operator):
            mixed, solver, options = operator, *aids_over_reals(solver, options)
        constant = stop_gradient(operator)
        if mixed is not None:
            operator, constant = over_reals(mixed), over_reals(lx.linearise(constant))
        own = Normal(solver.inner_solver) if type(solver) is lx.Normal else solver
        own = adjoint.of_primal(diagonal_solver(counterpart(own), operator))
        if isinstance(own, lx.GMRES | lx.LSMR) and is_narrow(operator):
            name = type(own).__name__
            raise TypeError(
                f"`lineax.{name}` cannot be used with vectors of 16 bits. Use "
                f"`pseudojvp.{name}`, which computes in float32."
            )
        if is_unit_triangular(operator):
            # A sparse matrix keeps its pattern where no diagonal is read.
            skips = _skips_diagonal(own, operator) and not adjoint.has_other
            normal = without_diagonal if skips else with_ones
            operator, constant = map(normal, (operator, constant))
        if isinstance(own, lx.Diagonal) and operator.in_size() == 0:
            own = lx.Diagonal(well_posed=True)  # else a maximum of nothing
        check_spread(operator, own)
        if unrolls:
            problem = Problem.create(operator, own.init(operator, options), options, own)
            return cls(problem, Guard(throw), mixed), problem.state
        if isinstance(state, Unset):
            solver, state = own, initial_state(own, constant, options)
        elif own is not solver and _is_state(state, own, constant, options):
            solver = own
        else:
            _check_state(state, solver)
        state = stop_gradient(state)
        problem = Problem.create(
            operator, state, stop_gradient(options), nondifferentiable(solver)
        )
        other = adjoint.other(problem, constant, mixed is not None)
        problem = dataclasses.replace(problem, other=other)
        return cls(problem, Guard(throw), mixed), state

    def for_derivative(self, *, of_primal: bool = False) -> "Factorised":
        """For a solve that is a derivative: NaN if it fails.

        If there was a primal solve, a solver that factorises judges nothing again.
        """
        guard = self._guard.for_derivative(of_primal=of_primal)
        return Factorised(self._problem.for_derivative(), guard, self._mixed)

    @property
    def operator(self) -> lx.AbstractLinearOperator:
        """A."""
        return self._problem.operator if self._mixed is None else self._mixed

    @property
    def result(self) -> lx.RESULTS:
        """Whether the factors are usable: `successful`, or why no solve with them
        succeeds.

        A solver that examines A in each solve (an iterative one, `SparseLU`, those of
        lineax) has not examined it yet, and reports `successful`. `Woodbury` reports here
        that a low-rank update is singular, or that all digits are lost (`stagnation`);
        each solve reports whether too many are.
        """
        told = self._told()
        if told is None:
            return lx.RESULTS.successful
        linear = is_complex_linear(self._problem)
        result = told[0].result(told[1])
        if linear is None:
            return result
        return lx.RESULTS.where(linear, result, lx.RESULTS.breakdown)

    @property
    def stats(self) -> dict[str, Any]:
        """What the factors say about A, such as `"rank"` and `"reciprocal_condition"`."""
        told = self._told()
        return {} if told is None else told[0].stats(told[1])

    @property
    def state(self) -> PyTree[Any]:
        """The state of the solver, or of the solver that an automatic one picked."""
        return self._problem.state

    @property
    def unrolls(self) -> bool:
        """Whether the steps of the solver are differentiated."""
        return isinstance(self._problem.solver, Unrolled)

    @property
    def leaves_no_residual(self) -> bool:
        """Whether A† is a right inverse by shape and the solver's assumption."""
        return self._problem.independent_rows or self._problem.from_adjoint

    def solve(self, vector: PyTree[ArrayLike]) -> PyTree[Array]:
        """Returns x = A†b.

        b is like `operator.out_structure()`, x like `operator.in_structure()`.
        """
        return _solve(self, vector)

    def residual(self, vector: PyTree[ArrayLike]) -> PyTree[Array]:
        """Returns (I − A A†)b, the residual of the best approximation A x to b.

        The result is like b. It is exactly zero if A has independent rows by its shape
        and the solver's assumption.
        """
        return _residual(self, vector)

    def adjoint_solve(self, vector: PyTree[ArrayLike]) -> PyTree[Array]:
        """Returns A†ᴴw, the pseudoinverse solution for the adjoint of A.

        w is like `operator.in_structure()`, the result like `operator.out_structure()`.
        """
        return _adjoint_solve(self, vector)

    def gram_inverse(self, vector: PyTree[ArrayLike]) -> PyTree[Array]:
        """Returns (AᴴA)†w without forming AᴴA: the covariance of x for white noise in b.

        w and the result are like `operator.in_structure()`. A wide A of full rank takes
        two applications.
        """
        return _gram_inverse(self, vector)

    def project(self, vector: PyTree[ArrayLike]) -> PyTree[Array]:
        """Returns A†A y, the orthogonal projection onto the row space of A.

        y and the result are like `operator.in_structure()`. The result is y if A has
        independent columns by its shape and the solver's assumption; a solve then checks
        that it has.
        """
        return _project(self, vector)

    def slogdet(self) -> Slogdet:
        """Returns the sign of det A and log |det A|, like [`pseudojvp.slogdet`][]."""
        return _slogdet(self)

    def blocks(
        self, rhs: Blocks, wanted: Blocks
    ) -> tuple[Blocks, lx.RESULTS, dict[str, Any]]:
        """The map itself; of Aᴴ where a wide A is entered from its side."""
        apply = unrolled if self.unrolls else bind
        if self._mixed is None:
            return apply(self._problem, rhs, wanted, self._guard)
        out, result, stats = apply(self._problem, parted(rhs), wanted, self._guard)
        return joined(out), result, stats

    def nan_if_failed(self) -> "Factorised":
        """Whose blocks are NaN where a solve failed and did not raise."""
        guard = dataclasses.replace(self._guard, nan=not self._guard.throw)
        return Factorised(self._problem, guard, self._mixed)

    def keys(self, count: int) -> Array | None:
        """As many keys, one for each solve, or `None` if derivatives take none."""
        return keys_of(self._problem.other, count)

    def with_key(self, key: Array | None) -> "Factorised":
        """Whose derivatives take another key, one of `keys`."""
        if key is None or self._problem.other is None:
            return self
        other = with_key(self._problem.other, key)
        problem = dataclasses.replace(self._problem, other=other)
        return Factorised(problem, self._guard, self._mixed)

    def with_adjoints(self, adjoints: PyTree[Array]) -> "Factorised":
        """Whose adjoint solves start from those of earlier ones."""
        problem = dataclasses.replace(self._problem, adjoints=adjoints)
        return Factorised(problem, self._guard, self._mixed)

    def apply(
        self, vector: PyTree[Array], *, solution: bool = True, residual: bool = False
    ) -> tuple[PyTree[Array] | None, PyTree[Array] | None, lx.RESULTS, dict[str, Any]]:
        """Returns A†b and b − A A†b, the result and the solver's stats.

        `None` is what was not asked for, or a residual that is zero whatever the numbers.
        A wide A of full rank leaves none, and its solution is there unasked.
        """
        if self._problem.from_adjoint:
            rhs, wanted = Blocks(None, vector), Blocks(True, False, False)
            (x, _, _), result, stats = self.blocks(rhs, wanted)
            return x, None, result, stats
        wanted = Blocks(residual, solution, False)
        (r, x, _), result, stats = self.blocks(Blocks(vector), wanted)
        return x, r, result, stats

    def apply_adjoint(
        self, vector: PyTree[Array]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        """Returns A†ᴴw, the result and the solver's stats."""
        if self._problem.from_adjoint:
            out, result, stats = self.blocks(Blocks(vector), Blocks(False, True, False))
            return out.domain, result, stats
        rhs, wanted = Blocks(domain=vector), Blocks(True, False, False)
        out, result, stats = self.blocks(rhs, wanted)
        return out.codomain, result, stats

    def _told(self):
        """The solver and its state, if that tells of A."""
        solver, state = self._problem.solver, self._problem.state
        if isinstance(solver, Normal):
            solver, state = solver.inner_solver, state.inner
        return (solver, state) if isinstance(solver, AbstractTelling) else None


def _skips_diagonal(solver, operator) -> bool:
    """Whether the solver, or the one that it picks, reads no diagonal of ones."""
    if isinstance(solver, AutoLinearSolver):
        solver = solver.select_solver(operator)
    return isinstance(solver, Triangular | SparseTriangular | Tridiagonal)


def _is_state(state, solver, operator, options) -> bool:
    """Whether `state` is of `solver`, and not of its counterpart in lineax."""
    structure = eqx.filter_eval_shape(solver.init, operator, options)
    return type(state) is type(structure)


def _is_ours(of: Any) -> bool:
    return type(of).__module__.partition(".")[0] == __name__.partition(".")[0]


def _check_state(state: Any, solver) -> None:
    """The states of our solvers are of our classes: those of lineax's are not."""
    if _is_ours(solver) and not _is_ours(state):
        name = type(solver).__name__
        raise ValueError(
            f"`{name}` got a `state` of type {type(state).__name__}, which it did not "
            f"make. Pass `{name}(...).init(operator, options)`, or leave `state` out."
        )


def _hung(tree: PyTree[Array], solution: PyTree[Array]) -> PyTree[Array]:
    """`tree`, known without a solve, which only a solve can tell to be wrong.

    Plus zero times the solution: an error, or NaN, in derivatives as well, and linear.
    """
    leaves = jtu.tree_leaves(solution)
    zeros = [jnp.sum(0 * leaf.real).astype(jnp.float32) for leaf in leaves]
    zero = sum(zeros, jnp.zeros((), jnp.float32))
    return jtu.tree_map(lambda leaf: leaf + in_each_part(zero, leaf.dtype), tree)


@compiled
def _solve(factorised: Factorised, vector):
    vector = check_vector(vector, factorised.operator.out_structure(), "solve")
    x, *_ = factorised.nan_if_failed().apply(vector)
    return x


@compiled
def _residual(factorised: Factorised, vector):
    vector = check_vector(vector, factorised.operator.out_structure(), "residual")
    factorised = factorised.nan_if_failed()
    if factorised.leaves_no_residual:
        x, *_ = factorised.apply(vector)
        return _hung(jtu.tree_map(lambda leaf: 0 * leaf, vector), x)
    _, r, *_ = factorised.apply(vector, solution=False, residual=True)
    return r


@compiled
def _adjoint_solve(factorised: Factorised, vector):
    vector = check_vector(vector, factorised.operator.in_structure(), "adjoint_solve")
    return factorised.nan_if_failed().apply_adjoint(vector)[0]


@compiled
@with_auto_axes
def _slogdet(factorised: Factorised) -> Slogdet:
    throw = factorised._guard.throw

    def part(operator, solver, state, throw=throw) -> Factorised:
        return Factorised.create(operator, solver, state=state, throw=throw)[0]

    return slogdet(factorised._problem, factorised._guard, part)


@compiled
def _gram_inverse(factorised: Factorised, vector):
    vector = check_vector(vector, factorised.operator.in_structure(), "gram_inverse")
    factorised = factorised.nan_if_failed()
    if factorised._problem.from_adjoint:  # A†A†ᴴ
        x, *_ = factorised.apply(factorised.apply_adjoint(vector)[0])
        return x
    out, *_ = factorised.blocks(Blocks(domain=vector), Blocks(False, True, False))
    return tree_neg(out.domain)


@compiled
def _project(factorised: Factorised, vector):
    vector = check_vector(vector, factorised.operator.in_structure(), "project")
    factorised = factorised.nan_if_failed()
    if factorised._problem.independent_columns and not factorised._problem.from_adjoint:
        x, *_ = factorised.apply(factorised.operator.mv(vector))
        return _hung(vector, x)
    if factorised._problem.from_adjoint:  # with B = Aᴴ, y less what B leaves of it
        out, *_ = factorised.blocks(Blocks(vector), Blocks(True, False, False))
        return tree_sub(vector, out.codomain)
    out, *_ = factorised.blocks(Blocks(projection=vector), Blocks(False, False, True))
    return out.projection
