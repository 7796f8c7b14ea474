import abc
import functools as ft
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Inexact, PyTree, Real

from .._misc import check_options, check_square, Structure, tree_conj
from .condition import (
    after_estimate,
    column_norms,
    full_rank_result,
    reciprocal_condition,
)


class DirectState(eqx.Module):
    """The factors of A (of A^T if `transposed`) and an estimate from them."""

    factors: PyTree[Array]
    rcond: Real[Array, ""]
    transposed: eqxi.Static
    structures: eqxi.Static


class AbstractDirectSolver(lx.AbstractLinearSolver[DirectState]):
    """A direct solver for square nonsingular A, and the truth about A.

    The factors also give the reciprocal condition number of A with its columns scaled to
    unit length. At most `eps * n` means that A is singular to working precision.
    """

    @abc.abstractmethod
    def factorise(self, operator: lx.AbstractLinearOperator) -> PyTree[Array]:
        """Returns the factors: arrays, and `Static` metadata."""

    @abc.abstractmethod
    def solve_columns(
        self, factors: PyTree[Array], columns: Inexact[Array, "n k"], transposed: bool
    ) -> Inexact[Array, "n k"]:
        """Returns A⁻¹ C, or A⁻ᵀ C."""

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> DirectState:
        check_options(self, options)
        check_square(self, operator)
        structures = (
            Structure.of(operator.out_structure()),
            Structure.of(operator.in_structure()),
        )
        factors = self.factorise(operator)
        # A⁻ᵀ in the place of A⁻ᴴ: what it is applied to is real, and only norms count.
        solve = ft.partial(self.solve_columns, factors, transposed=True)
        rcond = reciprocal_condition(*_columns(operator), solve)
        return DirectState(factors, rcond, eqxi.Static(False), eqxi.Static(structures))

    def compute(
        self, state: DirectState, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        check_options(self, options)
        out_structure, in_structure = state.structures.value
        flat = after_estimate(state.rcond, out_structure.ravel(vector))
        columns = self.solve_columns(state.factors, flat[:, None], state.transposed.value)
        result = full_rank_result(state.rcond, flat.size, flat.size)
        return in_structure.unravel(columns[:, 0]), result, {"rcond": state.rcond}

    def transpose(self, state: DirectState, options: dict[str, Any]):
        out_structure, in_structure = state.structures.value
        transposed = DirectState(
            state.factors,
            state.rcond,
            eqxi.Static(not state.transposed.value),
            eqxi.Static((in_structure, out_structure)),
        )
        return transposed, options

    def conj(self, state: DirectState, options: dict[str, Any]):
        arrays, rest = eqx.partition(state, eqx.is_inexact_array)
        return eqx.combine(tree_conj(arrays), rest), options

    def assume_full_rank(self) -> bool:
        return True


def _columns(operator: lx.AbstractLinearOperator):
    """(norms of the columns, A v, A^H v, dtype), without a matrix if A is tridiagonal."""
    if not lx.is_tridiagonal(operator) or operator.in_size() <= 1:
        matrix = operator.as_matrix()
        adjoint_mv = lambda vector: matrix.conj().T @ vector
        return column_norms(matrix), lambda v: matrix @ v, adjoint_mv, matrix.dtype
    diagonal, lower, upper = lx.tridiagonal(operator)
    columns = jnp.stack([jnp.pad(upper, (1, 0)), diagonal, jnp.pad(lower, (0, 1))])
    mv = lambda vector: _tridiagonal_mv(diagonal, lower, upper, vector)
    bands = diagonal.conj(), upper.conj(), lower.conj()
    adjoint_mv = lambda vector: _tridiagonal_mv(*bands, vector)
    return column_norms(columns), mv, adjoint_mv, diagonal.dtype


def _tridiagonal_mv(diagonal, lower, upper, vector: Inexact[Array, " n"]):
    product = diagonal * vector
    return product.at[1:].add(lower * vector[:-1]).at[:-1].add(upper * vector[1:])
