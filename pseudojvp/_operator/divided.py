"""Operators of any size, divided by a power of two: AᴴA does not overflow or vanish."""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Inexact, PyTree, Real

from .._base.axes import largest
from .._base.structure import Structure
from .._base.tree import tree_scale
from .._kernel.norms import power_of_two, two_norm
from .function import Spread


class Divided(lx.AbstractLinearOperator):
    """A / root², divided once before the product and once after, of a vector near one:
    nothing in between over- or underflows.

    A vector of any size is scaled to one, unless `near_one` promises that it is.
    """

    operator: lx.AbstractLinearOperator
    root: Real[Array, ""]
    near_one: bool = eqx.field(static=True, default=False)

    def mv(self, vector: PyTree[Array]) -> PyTree[Array]:
        factor = 1 / self.root
        if self.near_one:
            return tree_scale(factor, self.operator.mv(tree_scale(factor, vector)))
        size = largest(power_of_two(vector), Spread.of(self.operator).domain)
        size = size.astype(factor.dtype)
        image = self.operator.mv(tree_scale(factor, tree_scale(1 / size, vector)))
        return tree_scale(size, tree_scale(factor, image))

    def as_matrix(self) -> Inexact[Array, "rows cols"]:
        return self.divide(self.operator.as_matrix())

    def divide(self, entries: Inexact[Array, "..."]) -> Inexact[Array, "..."]:
        root = self.root.astype(entries.dtype)
        return entries / root / root

    def transpose(self) -> "Divided":
        return dataclasses.replace(self, operator=self.operator.transpose())

    def in_structure(self) -> PyTree:
        return self.operator.in_structure()

    def out_structure(self) -> PyTree:
        return self.operator.out_structure()


def _register(function, with_result):
    def rule(divided: Divided):
        with jax.numpy_dtype_promotion("standard"):  # for leaves of several dtypes
            return with_result(divided, function(divided.operator))

    function.register(Divided, rule)


for _function in (lx.conj, lx.linearise, lx.materialise):
    _register(
        _function,
        lambda divided, operator: dataclasses.replace(divided, operator=operator),
    )
_register(lx.diagonal, Divided.divide)
_register(lx.tridiagonal, lambda divided, bands: tuple(map(divided.divide, bands)))
for _function in (
    lx.is_diagonal,
    lx.is_lower_triangular,
    lx.is_negative_semidefinite,
    lx.is_positive_semidefinite,
    lx.is_symmetric,
    lx.is_tridiagonal,
    lx.is_upper_triangular,
):
    _register(_function, lambda _, holds: holds)


@lx.has_unit_diagonal.register(Divided)
def _(operator):
    del operator
    return False


def unit_of_products(operator: lx.AbstractLinearOperator) -> Real[Array, ""]:
    """As `power_of_two`, from one product; but one for all A of no extreme size.

    For the tolerance `atol` of an inner solver is in the units of A / unit.
    """
    structure = Structure.of(operator.in_structure())
    signs = np.random.default_rng(0).choice([-1, 1], structure.size)
    probe = signs / math.sqrt(max(structure.size, 1))
    size = two_norm(operator.mv(structure.unravel(jnp.asarray(probe))))
    size = largest(size, Spread.of(operator).codomain)
    root = 2.0 ** (jnp.finfo(size.dtype).maxexp // 4)
    extreme = (size > 0) & (size < 1 / root) | (size > root)
    return jnp.where(extreme, power_of_two(size), 1)
