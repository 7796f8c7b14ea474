import abc
import functools as ft
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Inexact, PyTree, Real

from ..._base.checks import check_options, check_square
from ..._base.order import after_in_batch
from ..._base.structure import Structure
from ..._kernel.condition import full_rank_result, largest_entries, reciprocal_condition
from ..._kernel.determinant import of_product
from ..._operator.matrix import as_dense, has_functions, is_narrow, matrix_of, widened
from ..._operator.sparse import SparseLinearOperator, untagged
from ..._operator.tags import advice
from ..._operator.unit_diagonal import is_unit_triangular, without_diagonal
from ..factorisation import AbstractFactorisation, Slogdet
from ..state import conjugated, structures_of, swapped


class DirectState(eqx.Module):
    """The factors of A (of A^T if `transposed`) and an estimate from them."""

    factors: PyTree[Array]
    reciprocal_condition: Real[Array, ""]
    transposed: eqxi.Static
    structures: eqxi.Static


class AbstractDirectSolver(AbstractFactorisation[DirectState]):
    """A direct solver for square nonsingular A, and the truth about A.

    The factors also give the reciprocal condition number of A with the largest entry of
    each column scaled to one. At most `eps * n` means that A is singular to working
    precision.
    """

    @abc.abstractmethod
    def factorise(self, operator: lx.AbstractLinearOperator) -> PyTree[Array]:
        """Returns the factors: arrays, and `Static` metadata."""

    @abc.abstractmethod
    def solve_columns(
        self, factors: PyTree[Array], columns: Inexact[Array, "n k"], transposed: bool
    ) -> Inexact[Array, "n k"]:
        """Returns A⁻¹ C, or A⁻ᵀ C."""

    def estimate(
        self, operator: lx.AbstractLinearOperator, factors: PyTree[Array]
    ) -> Real[Array, ""]:
        """Returns the reciprocal condition number of A with its columns scaled."""
        # A⁻ᵀ in the place of A⁻ᴴ: what it is applied to is real, and only norms count.
        solve = ft.partial(self.solve_columns, factors, transposed=True)
        return reciprocal_condition(*_columns(operator), solve)

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> DirectState:
        check_options(self, options)
        check_square(self, operator, sizes_alone=True)
        structures = structures_of(operator)
        operator = widened(operator)
        if has_functions(operator) or is_narrow(operator):
            operator = as_dense(operator)  # once for factors and estimate
        factors = self.factorise(operator)
        estimate = self.estimate(operator, factors)
        return DirectState(factors, estimate, eqxi.Static(False), structures)

    def compute(
        self, state: DirectState, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        check_options(self, options)
        out_structure, in_structure = state.structures.value
        flat = after_in_batch(state.reciprocal_condition, out_structure.ravel(vector))
        columns = self.solve_columns(state.factors, flat[:, None], state.transposed.value)
        return in_structure.unravel(columns[:, 0]), self.result(state), self.stats(state)

    def result(self, state: DirectState) -> lx.RESULTS:
        size = state.structures.value[0].size
        return full_rank_result(state.reciprocal_condition, size, size)

    def stats(self, state: DirectState) -> dict[str, Any]:
        return {"reciprocal_condition": state.reciprocal_condition}

    def transpose(self, state: DirectState, options: dict[str, Any]):
        flipped = eqxi.Static(not state.transposed.value)
        structures = swapped(state.structures)
        estimate = state.reciprocal_condition
        return DirectState(state.factors, estimate, flipped, structures), options

    def conj(self, state: DirectState, options: dict[str, Any]):
        return conjugated(state), options

    def assume_full_rank(self) -> bool:
        return True


def check_tagged(
    solver: AbstractDirectSolver,
    operator: lx.AbstractLinearOperator,
    tagged: bool,
    kind: str,
    *tags: str,
) -> None:
    if not tagged:
        named = " or ".join(f"`lineax.{tag}`" for tag in tags)
        raise ValueError(
            f"`{type(solver).__name__}` may only be used for {kind} linear operators, "
            f"and `operator` is not tagged as such. Tag it with {named}, or use `LU()`."
            + advice(operator, f"lineax.{tags[0]}")
        )


def slogdet_of_diagonal(operator: lx.AbstractLinearOperator) -> Slogdet:
    """That of a triangular A: no other entry is read, and none has a derivative."""
    if lx.has_unit_diagonal(operator):
        dtype = Structure.of(operator.in_structure()).dtype
        return Slogdet(*of_product(jnp.ones(0, dtype)))
    return Slogdet(*of_product(lx.diagonal(widened(operator))))


def bands_of(operator: lx.AbstractLinearOperator):
    """The diagonal, that below and that above, of a tridiagonal matrix."""
    diagonal, lower, upper = lx.tridiagonal(operator)
    if lx.has_unit_diagonal(operator):
        diagonal = jnp.ones_like(diagonal)
    return diagonal, lower, upper


def _columns(operator: lx.AbstractLinearOperator):
    """(sizes of the columns, A v, A^H v, dtype), without a matrix if A is sparse."""
    unit = is_unit_triangular(operator)
    bare = untagged(without_diagonal(operator) if unit else operator)
    if isinstance(bare, SparseLinearOperator) and unit:
        adjoint_mv = lx.conj(bare.transpose()).mv
        columns = jnp.maximum(bare.largest_entries(), 1)
        beside = lambda mv: lambda vector: vector + mv(vector)
        return columns, beside(bare.mv), beside(adjoint_mv), bare.data.dtype
    if isinstance(bare, SparseLinearOperator):
        adjoint_mv = lx.conj(bare.transpose()).mv
        return bare.largest_entries(), bare.mv, adjoint_mv, bare.data.dtype
    if not lx.is_tridiagonal(operator) or operator.in_size() <= 1:
        matrix = matrix_of(bare if unit else operator)
        adjoint_mv = lambda vector: (vector.conj() @ matrix).conj()
        return largest_entries(matrix), lambda v: matrix @ v, adjoint_mv, matrix.dtype
    diagonal, lower, upper = bands_of(operator)
    columns = jnp.stack([jnp.pad(upper, (1, 0)), diagonal, jnp.pad(lower, (0, 1))])
    mv = lambda vector: _tridiagonal_mv(diagonal, lower, upper, vector)
    bands = diagonal.conj(), upper.conj(), lower.conj()
    adjoint_mv = lambda vector: _tridiagonal_mv(*bands, vector)
    return largest_entries(columns), mv, adjoint_mv, diagonal.dtype


def _tridiagonal_mv(diagonal, lower, upper, vector: Inexact[Array, " n"]):
    product = diagonal * vector
    return product.at[1:].add(lower * vector[:-1]).at[:-1].add(upper * vector[1:])
