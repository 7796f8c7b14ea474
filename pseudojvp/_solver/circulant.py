from typing import Any

import equinox as eqx
import lineax as lx
from jaxtyping import Array, PyTree

from .._base.checks import check_options
from .._operator.sparse import untagged
from .._operator.toeplitz import Toeplitz
from .krylov.bicgstab import BiCGStab
from .krylov.cg import CG


class CirculantState(eqx.Module):
    inner: PyTree[Any]
    options: dict[str, Any]


class CirculantPreconditioned(lx.AbstractLinearSolver[CirculantState]):
    """CG or BiCGStab for a Toeplitz matrix, with its circulant preconditioner."""

    inner_solver: CG | BiCGStab

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> CirculantState:
        check_options(self, options)
        toeplitz = untagged(operator)
        assert isinstance(toeplitz, Toeplitz)
        preconditioner = toeplitz.circulant().pseudoinverse()
        negative = lx.is_negative_semidefinite(operator)
        if negative:
            preconditioner = -preconditioner
        if negative or lx.is_positive_semidefinite(operator):
            preconditioner = lx.TaggedLinearOperator(
                preconditioner, lx.positive_semidefinite_tag
            )
        options = {"preconditioner": preconditioner}
        return CirculantState(self.inner_solver.init(operator, options), options)

    def compute(
        self, state: CirculantState, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        check_options(self, options)
        return self.inner_solver.compute(state.inner, vector, state.options)

    def transpose(self, state: CirculantState, options: dict[str, Any]):
        return CirculantState(
            *self.inner_solver.transpose(state.inner, state.options)
        ), {}

    def conj(self, state: CirculantState, options: dict[str, Any]):
        return CirculantState(*self.inner_solver.conj(state.inner, state.options)), {}

    def assume_full_rank(self) -> bool:
        return True
