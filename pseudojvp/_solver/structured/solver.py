from collections.abc import Callable
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import lineax as lx
from jaxtyping import Array, PyTree

from ..._base.checks import check_options
from ..._base.results import first_failure
from ..._operator.block_diagonal import BlockDiagonal
from ..._operator.circulant import Circulant
from ..._operator.damped_kronecker import DampedKronecker
from ..._operator.eigh import Eigh
from ..._operator.kronecker import Kronecker
from ..._operator.sparse import untagged
from ..factorisation import AbstractByParts, AbstractFactorisation, Slogdet
from ..state import structures_of, swapped
from .determinant import of_blocks, of_factors, of_kronecker, of_spectrum
from .parts import BlocksState, KroneckerState, Part
from .spectral import SpectralState


_SPECTRAL = Circulant | DampedKronecker | Eigh
_Choose = Callable[[lx.AbstractLinearOperator], lx.AbstractLinearSolver]


class StructuredState(eqx.Module):
    parts: KroneckerState | BlocksState | SpectralState
    structures: eqxi.Static


class Structured(
    AbstractFactorisation[StructuredState], AbstractByParts[StructuredState]
):
    """The solver of structured operators, by their parts; `AutoLinearSolver` makes it.

    (A ⊗ B)† = A† ⊗ B†, diag(A, B)† = diag(A†, B†) and (Q Λ Qᴴ)† = Q Λ† Qᴴ. What the
    solvers of the parts tell is put together: the rank of a Kronecker product is the
    product of the ranks, its condition number that of theirs; of blocks the sum, and the
    worst. A is assumed to be of full rank if each part is, and if no tall one stands
    beside a wide one.

    Of parts whose solver looks at A in each solve (an iterative one), the state tells
    nothing, and this solver is not judged by the state (`pseudojvp._map.traits`).

    - `inner_solvers`: one for each part; none of an operator with known eigenvectors.
    - `full_rank`, `rcond`: what it is taken for, and of eigenvalues the cutoff if not.
    - `batches`: whether equal blocks are solved as one batch, here or in a part.
    """

    inner_solvers: tuple[lx.AbstractLinearSolver, ...]
    full_rank: bool = eqx.field(static=True)
    rcond: float | None = eqx.field(static=True)
    batches: bool = eqx.field(static=True, default=False)

    @classmethod
    def of(
        cls,
        operator: lx.AbstractLinearOperator,
        well_posed: bool | None,
        rcond: float | None,
        choose: _Choose,
    ) -> "Structured":
        """That of a structured operator; `choose` picks the solver of a part."""
        bare = untagged(operator)
        if not isinstance(bare, Kronecker | BlockDiagonal):
            return cls((), well_posed is True or operator.in_size() == 0, rcond)

        def pick(part):
            solver = choose(part)
            if isinstance(solver, lx.Diagonal):  # which tells nothing
                known = isinstance(untagged(part), lx.IdentityLinearOperator)
                solver = cls((), solver.well_posed or known, rcond)
            return solver, part.out_size(), part.in_size()

        if isinstance(bare, Kronecker):
            picked = [pick(factor) for factor in bare.operators]
            batches = False
        else:
            picked = [run.of_block(pick) for run in bare.runs]
            batches = any(run.count is not None for run in bare.runs)
        solvers, rows, cols = zip(*picked, strict=True)
        pairs = list(zip(rows, cols, strict=True))
        of_a_kind = all(m >= n for m, n in pairs) or all(m <= n for m, n in pairs)
        full_rank = of_a_kind and all(solver.assume_full_rank() for solver in solvers)
        batches |= any(isinstance(s, Structured) and s.batches for s in solvers)
        return cls(solvers, full_rank, rcond, batches)

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> StructuredState:
        check_options(self, options)
        bare = untagged(operator)
        if isinstance(bare, Kronecker):
            parts = KroneckerState.create(self.inner_solvers, bare)
        elif isinstance(bare, BlockDiagonal):
            parts = BlocksState.create(self.inner_solvers, bare)
        else:
            parts = SpectralState.create(
                operator, full_rank=self.full_rank, rcond=self.rcond
            )
        return StructuredState(parts, structures_of(operator))

    def compute(
        self, state: StructuredState, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        check_options(self, options)
        out_structure, in_structure = state.structures.value
        flat = out_structure.ravel(vector)
        result = self.result(state)
        if isinstance(state.parts, SpectralState):
            solution = state.parts.solve(flat)
        else:
            solution, told = state.parts.solve(self.inner_solvers, flat)
            result = first_failure(result, told)
        return in_structure.unravel(solution), result, self.stats(state)

    def result(self, state: StructuredState) -> lx.RESULTS:
        if isinstance(state.parts, SpectralState):
            return state.parts.result(full_rank=self.full_rank)
        return state.parts.result(self.inner_solvers, full_rank=self.full_rank)

    def stats(self, state: StructuredState) -> dict[str, Any]:
        parts = state.parts
        if isinstance(parts, SpectralState):
            return parts.stats(full_rank=self.full_rank)
        if not self.full_rank:
            return {"rank": parts.rank(self.inner_solvers)}
        estimate = parts.reciprocal_condition(self.inner_solvers)
        return {} if estimate is None else {"reciprocal_condition": estimate}

    def slogdet(self, state: StructuredState) -> Slogdet | None:
        """Of damped Kronecker products, whose derivatives are made from tr(A† A')."""
        if isinstance(state.parts, SpectralState):
            return of_factors(state.parts, full_rank=self.full_rank)
        return None

    def slogdet_by_parts(
        self,
        operator: lx.AbstractLinearOperator,
        state: StructuredState,
        factorised: Callable,
    ) -> Slogdet | None:
        bare, parts = untagged(operator), state.parts
        if isinstance(bare, Kronecker) and isinstance(parts, KroneckerState):
            return of_kronecker(self.inner_solvers, bare, parts, factorised)
        if isinstance(bare, BlockDiagonal) and isinstance(parts, BlocksState):
            return of_blocks(self.inner_solvers, bare, parts, factorised)
        if isinstance(bare, DampedKronecker) or not isinstance(parts, SpectralState):
            return None
        return of_spectrum(bare, parts, full_rank=self.full_rank)

    def transpose(self, state: StructuredState, options: dict[str, Any]):
        parts = self._mapped(state.parts, Part.transpose, SpectralState.transpose)
        return StructuredState(parts, swapped(state.structures)), options

    def conj(self, state: StructuredState, options: dict[str, Any]):
        parts = self._mapped(state.parts, Part.conj, SpectralState.conj)
        return StructuredState(parts, state.structures), options

    def assume_full_rank(self) -> bool:
        return self.full_rank

    def _mapped(self, parts, of_part: Callable, of_spectrum: Callable):
        if isinstance(parts, SpectralState):
            return of_spectrum(parts)
        pairs = zip(parts.parts, self.inner_solvers, strict=True)
        return type(parts)(tuple(of_part(part, solver) for part, solver in pairs))


def is_structured(operator: lx.AbstractLinearOperator) -> bool:
    """Whether `Structured` solves it."""
    return isinstance(untagged(operator), Kronecker | BlockDiagonal | _SPECTRAL)
