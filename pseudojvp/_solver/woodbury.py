import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import numpy as np
from jaxtyping import Array, Bool, Inexact, PyTree, Real

from .._base.axes import while_loop
from .._base.checks import check_options, check_square
from .._base.order import after_in_batch
from .._base.results import first_failure
from .._base.structure import Structure
from .._base.tree import all_finite, one_or_nan
from .._kernel.condition import (
    full_rank_result,
    largest_entries,
    PROBES,
    probes,
    reciprocal_condition,
)
from .._kernel.norms import two_norm
from .._kernel.products import matmul
from .._operator import LowRankUpdate, SparseLinearOperator
from .._operator.matrix import as_dense, has_functions, is_narrow, matrix_of
from .._operator.sparse import untagged
from .auto import AutoLinearSolver, registered_solver
from .counterpart import counterpart
from .direct.lu import LU
from .factorisation import AbstractByParts, AbstractTelling, Slogdet
from .function import FunctionSolver
from .krylov.iteration import AbstractKrylovSolver, flat_adjoint_mv, flat_mv, resolve_rtol
from .neumann import Neumann
from .normal import Normal
from .state import structures_of, swapped


_ITERATING = (
    AbstractKrylovSolver,
    FunctionSolver,
    Neumann,
    lx.BiCGStab,
    lx.CG,
    lx.GMRES,
    lx.LSMR,
)
_GOAL = 10.0  # backward error to refine down to, in multiples of eps
_LARGEST_ERROR = 1e4  # and the largest that is successful, as for `LU`
_ROUNDING_OF_ROWS = 1e3  # a row this small, in n eps, is rounding (Arioli et al.)
_MOST_STEPS = 50  # of refinement, each of which halves the residual at least


class WoodburyState(eqx.Module):
    """M = A + U C Vᴴ with the solver's state for A: what is solved with is Mᵀ if
    `transposed`.

    - `solved`: A⁻¹U.
    - `weights`: (I + C Vᴴ A⁻¹U)⁻¹ C.
    - `size`: |M v| for a unit vector v.
    - `result`: of the solves for `solved`, `breakdown` if there are none.
    - `estimate`: the reciprocal condition number of M; `None` if A is solved with by
        iterations.
    - `capacitance`: that of I + C Vᴴ A⁻¹U, its columns scaled.
    """

    operator: LowRankUpdate
    inner: PyTree[Any]
    solved: Inexact[Array, "n k"]
    weights: Inexact[Array, "k k"]
    size: Real[Array, ""]
    result: lx.RESULTS
    estimate: Real[Array, ""] | None
    capacitance: Real[Array, ""]
    transposed: eqxi.Static
    structures: eqxi.Static


class _Iterate(eqx.Module):
    solution: Inexact[Array, " n"]
    residual: Inexact[Array, " n"]
    norm: Real[Array, ""]  # of the residual, or a backward error
    before: Real[Array, ""]  # the norm one step earlier
    step: Any
    inner_steps: Any
    result: lx.RESULTS


class Woodbury(AbstractTelling[WoodburyState], AbstractByParts[WoodburyState]):
    """Solves with a low-rank update by solves with what is updated.

        (A + U C Vᴴ)⁻¹ b = y − A⁻¹U (I + C Vᴴ A⁻¹U)⁻¹ C Vᴴ y,   y = A⁻¹b

    for a [`pseudojvp.LowRankUpdate`][] of a square nonsingular A; C may be singular. The
    formula loses digits where A or the capacitance matrix I + C Vᴴ A⁻¹U is
    ill-conditioned and the sum is not. So the residual of the sum itself is looked at
    each time: where it is above rounding the solution is refined with the same factors,
    for as long as a step halves the residual. The result is then

    - `breakdown` if A without its update cannot be solved with: it is singular, and the
        sum need not be;
    - `stagnation` if an entry of the residual stays above 1e4 eps times that of
        |A| |x| + |U| |C| |V|ᴴ |x| + |b|, whatever the units of the rows: the formula has
        lost the digits, and the sum need not be ill-conditioned;
    - `singular` if the sum is singular to working precision: an estimate of its
        reciprocal condition number, with the columns scaled, is at most `eps * n`.

    Of an A whose entries are not at hand (a function, a structured operator) an estimate
    of the 2-norm of each row times |x| stands for |A| |x|, of eight products.

    For the first two use `LU()` or another solver of the sum. If A is solved with by
    iterations the sum is solved for to their tolerance, |b − M x| ≤ atol + rtol |b|, and
    not estimated. If they have none (`rtol=atol=0`), nothing is refined.

    Real and complex, of any structure of vectors that A has. Cost: k solves with A at
    once, and for the estimate eight, then a solve, O(n k) and a product with M, as much
    for each step of refinement; the same again for a JVP and for a VJP. Memory: n × k.
    Never n × n, in derivatives either, unless the solver of A is dense.

    `stats`: `"reciprocal_condition"` of the sum (a direct solver of A),
    `"capacitance_reciprocal_condition"` of I + C Vᴴ A⁻¹U, `"num_refinements"`, and with
    an iterative solver of A `"num_steps"`, of all solves for this b.

    `slogdet` is det A det(I + C Vᴴ A⁻¹U), where the solver of A has one, with derivatives
    through the parts: k + 16 solves more for the value, and k for a gradient. The
    derivatives are NaN where A⁻¹ is larger than the inverse of the sum by eps^-⅓: they
    lose so many digits, and those of second order twice as many.

    `options` are those of `solver`, but for `y0`: a preconditioner is one of A.

    **Arguments:**

    - `solver`: of A, factorising or iterative. Defaults to `AutoLinearSolver(True)`.

    **Raises:** `TypeError` if `solver` is no solver; `ValueError` at trace time for an
    operator that is no update, or not square, or an option that `solver` does not take.

    **Sources:** Hager, *Updating the inverse of a matrix*, SIAM Review 31 (1989),
    equation (2); Yip, *A note on the stability of solving a rank-p modification of a
    linear system by the Sherman-Morrison-Woodbury formula*, SIAM J. Sci. Stat. Comput. 7
    (1986), for what is lost; Higham, *Accuracy and Stability of Numerical Algorithms*,
    2nd ed. (2002), section 12.2, for the refinement; Arioli, Demmel & Duff, *Solving
    sparse linear systems with sparse backward error*, SIAM J. Matrix Anal. Appl. 10
    (1989), for the residuals of rows.
    """

    solver: lx.AbstractLinearSolver = eqx.field(
        default=AutoLinearSolver(True), converter=counterpart
    )

    def __check_init__(self):
        if not isinstance(self.solver, lx.AbstractLinearSolver):
            raise TypeError(
                f"`Woodbury(solver=...)` got {self.solver!r}. Pass a solver for A, as in "
                "`Woodbury(CG())`."
            )

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> WoodburyState:
        self._check(options)
        update = untagged(operator)
        if not isinstance(update, LowRankUpdate):
            raise ValueError(
                f"`Woodbury` solves with a `LowRankUpdate`, and got a "
                f"{type(update).__name__}. Keep A, U, C and V apart, as "
                "`LowRankUpdate(A, U, V, C)`, or use `LU()`."
            )
        check_square(self, update, sizes_alone=True)
        structures = structures_of(update)
        update = _solvable(update)
        inner = self.solver.init(update.operator, options)
        solve = lambda flat: self._inner_solve(update.operator, inner, flat, options)[:2]
        solved, results = jax.vmap(solve, 1, (1, 0))(update.U)
        (code,) = jtu.tree_leaves(results)
        code = jnp.max(code, initial=0)
        result = _broken(jtu.tree_map(lambda _: code, results), solved)
        core, capacitance = update.core(), _capacitance(update, solved)
        factors = LU().init(lx.MatrixLinearOperator(capacitance), {})
        weights = LU().solve_columns(factors.factors, core, transposed=False)
        probe = np.random.default_rng(0).standard_normal(update.in_size())
        probe = jnp.asarray(probe / max(np.linalg.norm(probe), 1)).astype(core.dtype)
        state = WoodburyState(
            operator=update,
            inner=inner,
            solved=solved,
            weights=weights,
            size=two_norm(flat_mv(update)(probe)),
            result=result,
            estimate=None,
            capacitance=factors.reciprocal_condition,
            transposed=eqxi.Static(False),
            structures=structures,
        )
        if _iterates(_resolved(self.solver, inner)):
            return state
        return dataclasses.replace(state, estimate=self._estimate(state, options))

    def compute(
        self, state: WoodburyState, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        self._check(options)
        out_structure, in_structure = state.structures.value
        flat = after_in_batch(state.capacitance, out_structure.ravel(vector))
        final, met = self._refined(state, flat, options)
        results = lx.RESULTS
        # What is wrong with a solve for A counts where the sum is not solved for.
        finite = jnp.isfinite(final.norm)
        told = results.where(finite, results.stagnation, results.singular)
        told = first_failure(first_failure(state.result, final.result), told)
        result = results.where(met, results.successful, told)
        result = first_failure(result, self._of_estimate(state))
        stats = self.stats(state) | {"num_refinements": final.step - 1}
        if isinstance(_resolved(self.solver, state.inner), AbstractKrylovSolver):
            stats["num_steps"] = final.inner_steps
        return in_structure.unravel(final.solution), result, stats

    def result(self, state: WoodburyState) -> lx.RESULTS:
        """Of an A that is solved with by iterations only whether they gave numbers."""
        results = lx.RESULTS
        finite = all_finite((state.solved, state.weights))
        told = first_failure(state.result, results.singular)
        told = results.where(finite, results.successful, told)
        return first_failure(told, self._of_estimate(state))

    def stats(self, state: WoodburyState) -> dict[str, Any]:
        stats = {"capacitance_reciprocal_condition": state.capacitance}
        if state.estimate is None:
            return stats
        return stats | {"reciprocal_condition": state.estimate}

    def _of_estimate(self, state: WoodburyState) -> lx.RESULTS:
        if state.estimate is None:
            return lx.RESULTS.successful
        size = state.structures.value[0].size
        return full_rank_result(state.estimate, size, size)

    def _refined(self, state: WoodburyState, vector, options):
        """The last iterate, and whether its residual is small enough."""
        operator = state.operator
        if state.transposed.value:
            operator = operator.transpose()
        mv = flat_mv(operator)
        spaces = operator.in_structure(), operator.out_structure()
        eps = Structure.of(spaces).eps
        solver = _resolved(self.solver, state.inner)
        norm = two_norm(vector)
        aimed = _tolerance(solver, norm, eps)

        if _iterates(solver):
            measure = lambda _, residual: two_norm(residual)
            rounding = lambda x: eps * (state.size * two_norm(x) + norm)
        else:
            measure = _backward_error(operator, vector, eps)
            rounding = lambda _: jnp.asarray(eps, norm.dtype)

        def goal(iterate):
            goal = _GOAL * rounding(iterate.solution)
            return goal if aimed is None else jnp.maximum(goal, aimed)

        def goes_on(iterate):
            moves = (iterate.norm > goal(iterate)) & (
                iterate.norm <= 0.5 * iterate.before
            )
            moves &= jnp.isfinite(iterate.norm)  # else b of the next solve is not
            return (iterate.step == 0) | (moves & (iterate.step < _MOST_STEPS))

        def advance(iterate):
            change, result, steps = self._apply(state, iterate.residual, options)
            solution = iterate.solution + change
            residual = vector - mv(solution)
            size = measure(solution, residual)
            better = (iterate.step == 0) | (size < iterate.norm)
            keep = lambda new, old: jnp.where(better, new, old)
            return _Iterate(
                solution=keep(solution, iterate.solution),
                residual=keep(residual, iterate.residual),
                norm=keep(size, iterate.norm),
                before=iterate.norm,
                step=iterate.step + 1,
                inner_steps=iterate.inner_steps + steps,
                result=first_failure(iterate.result, result),
            )

        start = _Iterate(
            solution=jnp.zeros(operator.in_size(), vector.dtype),
            residual=vector,
            norm=jnp.full_like(norm, jnp.inf),
            before=jnp.full_like(norm, jnp.inf),
            step=jnp.array(0),
            inner_steps=jnp.array(0),
            result=lx.RESULTS.successful,
        )
        final = while_loop(goes_on, advance, start)
        allowed = goal(final)
        if aimed is None:
            allowed = _LARGEST_ERROR * rounding(final.solution)
        return final, final.norm <= allowed

    def _apply(self, state: WoodburyState, flat: Inexact[Array, " n"], options):
        """M⁻¹b by the formula, the result and the steps of an iterative solver of A."""
        update, weights = state.operator, state.weights
        part = update.operator
        if state.transposed.value:  # A⁻ᵀ(b − V̄ Tᵀ (A⁻¹U)ᵀ b)
            inner = matmul(weights.T, matmul(state.solved.T, flat))
            flat = flat - matmul(update.right.conj(), inner)
            return self._inner_solve(part.transpose(), state.inner, flat, options)
        flat, result, steps = self._inner_solve(part, state.inner, flat, options)
        inner = matmul(weights, matmul(update.right.conj().T, flat))
        return flat - matmul(state.solved, inner), result, steps

    def _inner_solve(self, part: lx.AbstractLinearOperator, inner, flat, options):
        """A⁻¹b."""
        vector = Structure.of(part.out_structure()).unravel(flat)
        solution, result, stats = self.solver.compute(inner, vector, options)
        solution = Structure.of(part.in_structure()).ravel(solution)
        krylov = isinstance(_resolved(self.solver, inner), AbstractKrylovSolver)
        steps = stats["num_steps"] if krylov else jnp.array(0)
        return solution, _broken(result, solution), steps

    def _estimate(self, state: WoodburyState, options) -> Real[Array, ""]:
        """Of M with its columns scaled, as those of the direct solvers."""
        inner, options = self.solver.transpose(state.inner, options)
        flipped = eqxi.Static(True)
        transposed = dataclasses.replace(state, inner=inner, transposed=flipped)
        solve = lambda flat: self._apply(transposed, flat, options)[0]
        return reciprocal_condition(
            _largest_entries(state.operator),
            flat_mv(state.operator),
            flat_adjoint_mv(state.operator),
            state.solved.dtype,
            jax.vmap(solve, 1, 1),
        )

    def slogdet_by_parts(
        self, operator: lx.AbstractLinearOperator, state: WoodburyState, factorised: Any
    ) -> Slogdet:
        """det A det(I + C Vᴴ A⁻¹U)."""
        update: Any = untagged(operator)
        update = _solvable(update)
        part = factorised(update.operator, self.solver, state.inner)
        structure = Structure.of(update.in_structure())
        rows = Structure.of(update.out_structure())
        solve = lambda flat: structure.ravel(part.solve(rows.unravel(flat)))
        solved = jax.vmap(solve, 1, 1)(update.U)
        sign, logabsdet = jnp.linalg.slogdet(_capacitance(update, solved))
        of_part = part.slogdet()
        told = Slogdet(of_part.sign * sign, of_part.logabsdet + logabsdet)
        sound = self.result(state) == lx.RESULTS.successful
        sound = sound & self._keeps_digits(state)
        return Slogdet(*_derivable((sound, told)))

    def _keeps_digits(self, state: WoodburyState) -> Bool[Array, ""]:
        """Whether |M⁻¹| is above eps^⅓ |A⁻¹|, by probes.

        The derivative of the determinant by A is M⁻ᴴ, made of A⁻ᴴ by a difference: it
        loses as many digits as A⁻ᴴ is larger, and the second derivative twice as many.
        """
        part, dtype = state.operator.operator, state.solved.dtype
        inner, options = self.solver.transpose(state.inner, {})
        flipped = eqxi.Static(True)
        transposed = dataclasses.replace(state, inner=inner, transposed=flipped)
        vectors = probes(state.solved.shape[0], PROBES, state.capacitance.dtype)
        vectors = vectors.astype(dtype)
        of_part = lambda v: self._inner_solve(part.transpose(), inner, v, options)[0]
        of_sum = lambda v: self._apply(transposed, v, options)[0]
        before, after = (
            jnp.max(jnp.abs(jax.vmap(solve, 1, 1)(vectors)), initial=0)
            for solve in (of_part, of_sum)
        )
        # Neither is compared where it is not finite: the value tells.
        return ~(after < float(jnp.finfo(dtype).eps) ** (1 / 3) * before)

    def _check(self, options: dict[str, Any]) -> None:
        if "y0" in options:
            check_options(self, options, [key for key in options if key != "y0"])

    def transpose(self, state: WoodburyState, options: dict[str, Any]):
        inner, options = self.solver.transpose(state.inner, options)
        transposed = dataclasses.replace(
            state,
            inner=inner,
            transposed=eqxi.Static(not state.transposed.value),
            structures=swapped(state.structures),
        )
        return transposed, options

    def conj(self, state: WoodburyState, options: dict[str, Any]):
        inner, options = self.solver.conj(state.inner, options)
        conj = dataclasses.replace(
            state,
            operator=lx.conj(state.operator),
            inner=inner,
            solved=state.solved.conj(),
            weights=state.weights.conj(),
        )
        return conj, options

    def assume_full_rank(self) -> bool:
        return True


@registered_solver.register(LowRankUpdate)
def _(operator: LowRankUpdate) -> lx.AbstractLinearSolver | None:
    """None for as many columns as A has: then a matrix is no more than the parts."""
    return Woodbury() if operator.rank < operator.in_size() else None


@eqx.filter_custom_jvp
def _derivable(sound_and_told):
    """The determinant, whose derivative is NaN unless it is sound."""
    return tuple(sound_and_told[1])


@_derivable.def_jvp
def _(primals, tangents):
    ((sound, told),), ((_, t_told),) = primals, tangents
    factor = one_or_nan(sound)
    t_told = tuple(None if t is None else t * factor.astype(t.dtype) for t in t_told)
    return tuple(_derivable((sound, told))), t_told


def _solvable(update: LowRankUpdate) -> LowRankUpdate:
    """With A linearised, and in 32 bits, as a matrix, if it has 16: for LAPACK."""
    part = update.operator
    part = as_dense(part) if is_narrow(part) else lx.linearise(part)
    return dataclasses.replace(update, operator=part)


def _capacitance(update: LowRankUpdate, solved: Inexact[Array, "n k"]):
    """I + C Vᴴ A⁻¹U, and not C⁻¹ + Vᴴ A⁻¹U, for a C that is singular."""
    core = update.core()
    product = matmul(core, matmul(update.right.conj().T, solved))
    return product + jnp.eye(update.rank, dtype=core.dtype)


def _broken(result: lx.RESULTS, solution: Array) -> lx.RESULTS:
    """`breakdown` where A cannot be solved with, which the sum need not share."""
    results = lx.RESULTS
    failed = (result == results.singular) | ~all_finite(solution)
    return results.where(failed, results.breakdown, result)


def _resolved(solver: lx.AbstractLinearSolver, state) -> lx.AbstractLinearSolver:
    return state.solver if isinstance(solver, AutoLinearSolver) else solver


def _iterates(solver: lx.AbstractLinearSolver) -> bool:
    parts = jtu.tree_leaves(solver, is_leaf=lambda part: isinstance(part, _ITERATING))
    return any(isinstance(part, _ITERATING) for part in parts)


def _tolerance(
    solver: lx.AbstractLinearSolver, norm: Real[Array, ""], eps: float
) -> Real[Array, ""] | None:
    """What a residual of the sum may be by the solver of A; `None` if it has none."""
    if isinstance(solver, Woodbury):
        return _tolerance(solver.solver, norm, eps)
    if isinstance(solver, Normal):
        return _tolerance(solver.inner_solver, norm, eps)
    if isinstance(solver, Neumann) or not isinstance(solver, _ITERATING):
        return None
    given = solver.rtol, solver.atol
    if all(isinstance(tol, int | float) and tol == 0 for tol in given):
        return jnp.full_like(norm, jnp.inf)  # asked for a number of steps
    if isinstance(solver, FunctionSolver) and solver.rtol is None:
        rtol = jnp.asarray(eps**0.5, norm.dtype)
    else:
        rtol = resolve_rtol(solver.rtol, norm.dtype, eps)
    return jnp.asarray(solver.atol, norm.dtype) + rtol * norm


def _backward_error(
    operator: LowRankUpdate, vector: Inexact[Array, " n"], eps: float
) -> Callable[[Inexact[Array, " n"], Inexact[Array, " n"]], Real[Array, ""]]:
    """The largest of |b − M x| / (|M| |x| + |b|) over the rows, of x and b − M x.

    Where a row of |M| |x| + |b| is itself rounding, as of an x with zeros, its size takes
    the largest entry of x for all (Arioli, Demmel & Duff 1989, section 3).
    """
    moduli, of_vector = _moduli(operator), jnp.abs(vector)
    rows = moduli(jnp.ones_like(of_vector))

    def error(solution, residual):
        solution = jnp.abs(solution)
        bound = moduli(solution) + of_vector
        whole = rows * jnp.max(solution, initial=0)
        tiny = bound <= _ROUNDING_OF_ROWS * vector.size * eps * whole
        bound = jnp.where(tiny, bound + whole, bound)
        errors = jnp.abs(residual) / jnp.where(bound > 0, bound, 1)
        errors = jnp.where(jnp.isfinite(bound), errors, jnp.inf)
        return jnp.max(errors, initial=0)

    return error


def _moduli(operator: lx.AbstractLinearOperator) -> Callable[[Array], Array]:
    """|A| v of a v that is nowhere negative, of no more than the parts."""
    bare = untagged(operator)
    if isinstance(bare, LowRankUpdate):
        left, core, right = map(jnp.abs, (bare.U, bare.core(), bare.right))
        of_part = _moduli(bare.operator)

        def of_update(v):
            update = matmul(left, matmul(core, matmul(right.T, v.astype(left.dtype))))
            return of_part(v) + update.astype(v.dtype)

        return of_update
    if isinstance(bare, SparseLinearOperator):
        sparse = dataclasses.replace(bare, data=jnp.abs(bare.data))
        return lambda v: sparse.mv(v.astype(sparse.data.dtype)).astype(v.dtype)
    if lx.is_diagonal(operator):
        diagonal = jnp.abs(lx.diagonal(operator))
        return lambda v: diagonal.astype(v.dtype) * v
    if lx.is_tridiagonal(operator):
        bands = [jnp.abs(band) for band in lx.tridiagonal(operator)]

        def of_bands(v):
            diagonal, lower, upper = (band.astype(v.dtype) for band in bands)
            product = (diagonal * v).at[1:].add(lower * v[:-1])
            return product.at[:-1].add(upper * v[1:])

        return of_bands
    if isinstance(bare, lx.MatrixLinearOperator):
        matrix = jnp.abs(matrix_of(operator))
        return lambda v: matmul(matrix, v.astype(matrix.dtype)).astype(v.dtype)
    size = operator.in_size()
    vectors = probes(size, PROBES, jnp.finfo(jnp.float32).dtype)
    spaces = operator.in_structure(), operator.out_structure()
    vectors = vectors.astype(Structure.of(spaces).dtype)
    images = jnp.abs(jax.vmap(flat_mv(operator), 1, 1)(vectors))
    norms = jax.vmap(two_norm)(images) * (size / max(vectors.shape[1], 1)) ** 0.5
    return lambda v: norms.astype(v.dtype) * two_norm(v)


def _largest_entries(operator: lx.AbstractLinearOperator) -> Real[Array, " n"]:
    """The sizes of the columns, of no more than the parts; ones if there is no way."""
    bare = untagged(operator)
    if isinstance(bare, LowRankUpdate):
        left = jnp.max(jnp.abs(bare.times_core(bare.U)), initial=0)
        update = left * jnp.max(jnp.abs(bare.right), axis=1, initial=0)
        return _largest_entries(bare.operator).astype(update.dtype) + update
    if isinstance(bare, SparseLinearOperator):
        return bare.largest_entries()
    if lx.is_tridiagonal(operator) and operator.in_size() > 1:
        diagonal, lower, upper = map(jnp.abs, lx.tridiagonal(operator))
        # Those of a diagonal are of another dtype (lineax 0.1.1).
        lower, upper = lower.astype(diagonal.dtype), upper.astype(diagonal.dtype)
        others = jnp.maximum(jnp.pad(lower, (0, 1)), jnp.pad(upper, (1, 0)))
        return jnp.maximum(diagonal, others)
    if isinstance(bare, lx.MatrixLinearOperator) or has_functions(operator):
        return largest_entries(matrix_of(operator))
    spaces = operator.in_structure(), operator.out_structure()
    return jnp.ones(operator.in_size(), jnp.finfo(Structure.of(spaces).dtype).dtype)
