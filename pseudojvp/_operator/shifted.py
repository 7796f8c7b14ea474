import dataclasses

import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Inexact, PyTree, Real

from .._base.tree import tree_add, tree_scale


class ShiftedOperator(lx.AbstractLinearOperator):
    """A + s I for a square A and a real s."""

    operator: lx.AbstractLinearOperator
    shift: Real[Array, ""]

    def mv(self, vector: PyTree[Array]) -> PyTree[Array]:
        return tree_add(self.operator.mv(vector), tree_scale(self.shift, vector))

    def as_matrix(self) -> Inexact[Array, "size size"]:
        matrix = self.operator.as_matrix()
        shift = self.shift.astype(matrix.dtype)
        return matrix + shift * jnp.eye(len(matrix), dtype=matrix.dtype)

    def transpose(self) -> "ShiftedOperator":
        return dataclasses.replace(self, operator=self.operator.transpose())

    def in_structure(self) -> PyTree:
        return self.operator.in_structure()

    def out_structure(self) -> PyTree:
        return self.operator.out_structure()


def _register(function):
    @function.register(ShiftedOperator)
    def _(shifted: ShiftedOperator):
        return dataclasses.replace(shifted, operator=function(shifted.operator))


for _function in (lx.conj, lx.linearise, lx.materialise):
    _register(_function)


def _register_structure(function):
    function.register(ShiftedOperator, lambda shifted: function(shifted.operator))


for _function in (
    lx.is_diagonal,
    lx.is_lower_triangular,
    lx.is_symmetric,
    lx.is_tridiagonal,
    lx.is_upper_triangular,
):
    _register_structure(_function)
# What the numbers decide.
for _function in (
    lx.has_unit_diagonal,
    lx.is_negative_semidefinite,
    lx.is_positive_semidefinite,
):
    _function.register(ShiftedOperator, lambda _: False)


@lx.diagonal.register(ShiftedOperator)
def _(shifted):
    diagonal = lx.diagonal(shifted.operator)
    return diagonal + shifted.shift.astype(diagonal.dtype)


@lx.tridiagonal.register(ShiftedOperator)
def _(shifted):
    diagonal, lower, upper = lx.tridiagonal(shifted.operator)
    return diagonal + shifted.shift.astype(diagonal.dtype), lower, upper
