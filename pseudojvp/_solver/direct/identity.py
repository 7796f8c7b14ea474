from typing import Any

import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, PyTree

from ..._base.structure import Structure
from ..._kernel.determinant import of_product
from ..factorisation import AbstractFactorisation, Slogdet


class Identity(AbstractFactorisation[lx.AbstractLinearOperator]):
    """The pseudoinverse of an identity, between spaces of any sizes: its transpose."""

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]):
        del options
        return operator.transpose()

    def compute(
        self,
        state: lx.AbstractLinearOperator,
        vector: PyTree[Array],
        options: dict[str, Any],
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        del options
        return state.mv(vector), lx.RESULTS.successful, {}

    def result(self, state: lx.AbstractLinearOperator) -> lx.RESULTS:
        return lx.RESULTS.successful

    def stats(self, state: lx.AbstractLinearOperator) -> dict[str, Any]:
        return {}

    def slogdet(self, state: lx.AbstractLinearOperator) -> Slogdet:
        dtype = Structure.of(state.in_structure()).dtype
        return Slogdet(*of_product(jnp.ones(0, dtype)))

    def transpose(self, state: lx.AbstractLinearOperator, options: dict[str, Any]):
        return state.transpose(), options

    def conj(self, state: lx.AbstractLinearOperator, options: dict[str, Any]):
        return state, options

    def assume_full_rank(self) -> bool:
        return True
