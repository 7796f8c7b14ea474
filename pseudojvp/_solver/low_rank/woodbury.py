import dataclasses
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, Bool, Inexact, PyTree

from ..._base.checks import check_options, check_square
from ..._base.order import after_in_batch
from ..._base.results import first_failure
from ..._base.structure import Structure
from ..._base.tree import all_finite, one_or_nan
from ..._kernel.condition import full_rank_result, PROBES, probes, random_signs
from ..._kernel.norms import two_norm
from ..._kernel.products import matmul
from ..._operator import LowRankUpdate
from ..._operator.matrix import as_dense, is_narrow
from ..._operator.sparse import untagged
from ..auto import AutoLinearSolver, registered_solver
from ..counterpart import counterpart
from ..direct.lu import LU
from ..factorisation import AbstractByParts, AbstractTelling, Slogdet
from ..krylov.iteration import AbstractKrylovSolver
from ..state import structures_of, swapped
from .digits import capacitance, Rounding
from .estimate import reciprocal_condition
from .iterating import iterates, resolved, tolerance
from .refinement import Iterate, LARGEST_ERROR, refined
from .sizes import largest_of_columns, moduli
from .state import WoodburyState


class Woodbury(AbstractTelling[WoodburyState], AbstractByParts[WoodburyState]):
    """Solves with a low-rank update, by solves with the operator that it updates.

        (A + U C Vᴴ)⁻¹ b = y − A⁻¹U (I + C Vᴴ A⁻¹U)⁻¹ C Vᴴ y,   y = A⁻¹b

    for a [`pseudojvp.LowRankUpdate`][] of a square nonsingular A; C may be singular. The
    formula loses digits if A or the capacitance matrix I + C Vᴴ A⁻¹U is ill-conditioned
    and the sum is not. So the residual of the sum itself is checked in each solve. If it
    is above rounding, the solution is refined with the same factors, as long as a step
    halves the residual. The result is then

    - `breakdown` if A without its update cannot be solved with: A is singular, although
        the sum may not be;
    - `stagnation` if an entry of the residual stays above 1e4 eps times that of |A| |x| +
        |U| |C| |V|ᴴ |x| + |b|, whatever the units of the rows: the formula has lost the
        digits, although the sum may be well-conditioned. Also if refinement cannot
        estimate the condition number of the sum, or, if the reciprocal condition number
        is below 1e4 eps, if one more step moves the solution by more than a tenth;
    - `singular` if the sum is singular to working precision: an estimate of its
        reciprocal condition number, with scaled columns, is at most `eps * n`. The solves
        of this estimate are refined if their residuals require it.

    If the entries of A are not available (a function, a structured operator), |A| |x| is
    replaced by an estimate of the 2-norm of each row times |x|, from eight products.

    After `breakdown` or `stagnation` use `LU()` or another solver for the sum. If A is
    solved by an iterative method, the sum is solved to the tolerance of that method, |b −
    M x| ≤ atol + rtol |b|, and its condition is not estimated. Without a tolerance
    (`rtol=atol=0`) nothing is refined.

    Real and complex, for any structure of vectors that A has. Cost: k solves with A at
    once, and eight for the estimate. Then for each right-hand side a solve with A, O(n k)
    flops and a product with M, and the same for each step of refinement (eight times
    that, in the estimate). A JVP and a VJP each cost the same again. Memory: n × k, never
    n × n, even in derivatives, unless the solver of A is dense.

    `stats`: `"reciprocal_condition"` of the sum (with a direct solver of A), NaN if lost
    digits hide it; `"capacitance_reciprocal_condition"` of I + C Vᴴ A⁻¹U;
    `"num_refinements"`; and with an iterative solver of A `"num_steps"`, of all solves
    for this b.

    `slogdet` uses det A det(I + C Vᴴ A⁻¹U), if the solver of A has a determinant, with
    derivatives through the parts: k more solves for the value (2k + 16 if A is not
    diagonal), and k for a gradient. The value is NaN if its error may exceed eps^0.6
    because of digits that the parts lose and the sum would not. Likewise a first
    derivative is NaN if its error may exceed eps^½, and a second one eps^⅜, by an
    estimate in the units of each row.

    `options` are those of `solver`, without `y0`: a preconditioner is one for A.

    **Arguments:**

    - `solver`: the solver for A, factorising or iterative. Defaults to
        `AutoLinearSolver(True)`.

    **Raises:** `TypeError` if `solver` is not a solver; `ValueError` at trace time for an
    operator that is not an update or not square, or an option that `solver` does not
    take.

    **Sources:** Hager, *Updating the inverse of a matrix*, SIAM Review 31 (1989),
    equation (2); Yip, *A note on the stability of solving a rank-p modification of a
    linear system by the Sherman-Morrison-Woodbury formula*, SIAM J. Sci. Stat. Comput. 7
    (1986), for what is lost; Higham, *Accuracy and Stability of Numerical Algorithms*,
    2nd ed. (2002), section 12.2, for the refinement; Arioli, Demmel & Duff, *Solving
    sparse linear systems with sparse backward error*, SIAM J. Matrix Anal. Appl. 10
    (1989), for the residuals of rows.

    **Example:**

    ```python
    import jax.numpy as jnp
    import lineax as lx
    import pseudojvp as pj

    D = lx.DiagonalLinearOperator(jnp.array([1.0, 2.0]))
    A = pj.LowRankUpdate(D, jnp.array([[1.0], [1.0]]))
    b = jnp.array([3.0, 4.0])
    print(pj.linear_solve(A, b, pj.Woodbury()).value.round(2))  # [1. 1.]
    ```
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
        core = update.core()
        factors = LU().init(lx.MatrixLinearOperator(capacitance(update, solved)), {})
        weights = LU().solve_columns(factors.factors, core, transposed=False)
        probe = Structure.of(update.in_structure()).probe()
        # A singular capacitance matrix is of a singular sum, or of one that is hidden.
        rounding = Rounding.of(update, solved, earlier=factors.reciprocal_condition)
        lost = ~all_finite(weights) & ~rounding.keeps_value()
        state = WoodburyState(
            operator=update,
            inner=inner,
            solved=solved,
            weights=weights,
            size=two_norm(update.mv(probe)),
            result=result,
            estimate=None,
            lost=lost,
            capacitance=factors.reciprocal_condition,
            transposed=eqxi.Static(False),
            structures=structures,
        )
        if iterates(resolved(self.solver, inner)):
            return state
        inner, options = self.solver.transpose(inner, options)
        flipped = eqxi.Static(True)
        transposed = dataclasses.replace(state, inner=inner, transposed=flipped)
        solve = lambda flat: self._apply(transposed, flat, options)[0]
        estimate, certain = reciprocal_condition(update, solve)
        lost = jnp.where(all_finite(weights), ~certain, lost)
        estimate = jnp.where(lost, jnp.nan, estimate)
        return dataclasses.replace(state, estimate=estimate, lost=lost)

    def compute(
        self, state: WoodburyState, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        self._check(options)
        out_structure, in_structure = state.structures.value
        flat = after_in_batch(state.capacitance, out_structure.ravel(vector))
        doubtful = self._is_doubtful(state)
        final, met = self._refined(state, flat, doubtful, options)
        results = lx.RESULTS
        # What is wrong with a solve for A counts where the sum is not solved for.
        told = results.where(jnp.isfinite(final.norm), results.stagnation, _hidden(state))
        told = first_failure(first_failure(state.result, final.result), told)
        result = results.where(met, results.successful, told)
        result = first_failure(result, self._of_estimate(state))
        hidden = state.lost | (doubtful & final.moved)
        told = first_failure(state.result, results.stagnation)
        told = results.where(hidden, told, results.successful)
        result = first_failure(result, told)
        stats = self.stats(state) | {"num_refinements": final.step - 1}
        if isinstance(resolved(self.solver, state.inner), AbstractKrylovSolver):
            stats["num_steps"] = final.inner_steps
        return in_structure.unravel(final.solution), result, stats

    def result(self, state: WoodburyState) -> lx.RESULTS:
        """Whether the parts are usable; if A is solved by iterations, only whether
        finite."""
        results = lx.RESULTS
        finite = all_finite((state.solved, state.weights))
        told = results.where(finite, results.successful, _hidden(state))
        if state.estimate is None:
            broken = first_failure(state.result, told)
            return results.where(finite, results.successful, broken)
        told = first_failure(first_failure(state.result, self._of_estimate(state)), told)
        lost = results.where(state.lost, results.stagnation, results.successful)
        return first_failure(told, lost)

    def stats(self, state: WoodburyState) -> dict[str, Any]:
        stats = {"capacitance_reciprocal_condition": state.capacitance}
        if state.estimate is None:
            return stats
        return stats | {"reciprocal_condition": state.estimate}

    def _of_estimate(self, state: WoodburyState) -> lx.RESULTS:
        if state.estimate is None:
            return lx.RESULTS.successful
        size = state.structures.value[0].size
        estimate = jnp.where(jnp.isnan(state.estimate), 1, state.estimate)
        return full_rank_result(estimate, size, size)

    def _is_doubtful(self, state: WoodburyState) -> Bool[Array, ""]:
        """Whether a backward error that is allowed may hide that no digit is right."""
        if state.estimate is None:
            return jnp.array(False)
        least = LARGEST_ERROR * jnp.finfo(state.estimate.dtype).eps
        return ~(state.estimate > least)

    def _refined(
        self, state: WoodburyState, vector, doubtful, options
    ) -> tuple[Iterate, Bool[Array, ""]]:
        operator = state.operator
        if state.transposed.value:
            operator = operator.transpose()
        solver = resolved(self.solver, state.inner)
        eps = Structure.of((operator.in_structure(), operator.out_structure())).eps
        aimed = tolerance(_innermost(solver), two_norm(vector), eps)
        apply = lambda flat: self._apply(state, flat, options)
        size = state.size if iterates(solver) else None
        return refined(operator, vector, apply, aimed, size, doubtful)

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
        krylov = isinstance(resolved(self.solver, inner), AbstractKrylovSolver)
        steps = stats["num_steps"] if krylov else jnp.array(0)
        return solution, _broken(result, solution), steps

    def slogdet_by_parts(
        self, operator: lx.AbstractLinearOperator, state: WoodburyState, factorised: Any
    ) -> Slogdet:
        """Returns det A det(I + C Vᴴ A⁻¹U)."""
        update: Any = untagged(operator)
        update = _solvable(update)
        part = factorised(update.operator, self.solver, state.inner, throw=False)
        structure = Structure.of(update.in_structure())
        rows = Structure.of(update.out_structure())
        solve = lambda flat: structure.ravel(part.solve(rows.unravel(flat)))
        solved = jax.vmap(solve, 1, 1)(update.U)
        sign, logabsdet = jnp.linalg.slogdet(capacitance(update, solved))
        of_part = part.slogdet()
        keeps_value, keeps_derivatives = self._keep_digits(state)
        kept = one_or_nan(keeps_value)
        sign = of_part.sign * sign * kept.astype(sign.dtype)
        logabsdet = (of_part.logabsdet + logabsdet) * kept.astype(logabsdet.dtype)
        sound = (self.result(state) == lx.RESULTS.successful) & keeps_derivatives
        return Slogdet(*_derivable((sound, Slogdet(sign, logabsdet))))

    def _keep_digits(
        self, state: WoodburyState
    ) -> tuple[Bool[Array, ""], Bool[Array, ""]]:
        """Whether the determinant of the sum has digits, and its derivatives have."""
        update, solved = state.operator, state.solved
        part, size = update.operator, solved.shape[0]
        if lx.is_diagonal(part):
            rounding = Rounding.of(update, solved)
            return rounding.keeps_value(), rounding.keeps_diagonal()
        # The errors of solves with A: those by rounding A and b, of random signs.
        solve = lambda flat: self._inner_solve(part, state.inner, flat, {})[0]
        solve = jax.vmap(solve, 1, 1)
        scale = largest_of_columns(update)
        rows = moduli(update)(1 / scale).astype(scale.dtype)
        columns = rows[:, None] * probes(size, PROBES, scale.dtype)
        columns = jnp.concatenate([update.U, columns.astype(solved.dtype)], axis=1)
        of_part = solve(columns)
        sizes = jax.vmap(moduli(part), 1, 1)(jnp.abs(of_part)) + jnp.abs(columns)
        signs = jnp.asarray(random_signs(*sizes.shape) * size**0.5, sizes.dtype)
        error = solve((signs * sizes).astype(solved.dtype))
        of_solved, of_probes = error[:, : update.rank], error[:, update.rank :]
        rounding = Rounding.of(update, solved)
        kept = rounding.keeps_rows(of_solved, of_part[:, update.rank :], of_probes)
        return rounding.keeps_value(of_solved), kept

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


def _hidden(state: WoodburyState) -> lx.RESULTS:
    """Of numbers that are not finite: `singular`, unless the sum need not be."""
    results = lx.RESULTS
    return results.where(state.lost, results.stagnation, results.singular)


def _broken(result: lx.RESULTS, solution: Array) -> lx.RESULTS:
    """`breakdown` where A cannot be solved with, which the sum need not share."""
    results = lx.RESULTS
    failed = (result == results.singular) | ~all_finite(solution)
    return results.where(failed, results.breakdown, result)


def _innermost(solver: lx.AbstractLinearSolver) -> lx.AbstractLinearSolver:
    return _innermost(solver.solver) if isinstance(solver, Woodbury) else solver
