"""Functions as operators inside `jax.shard_map`.

lineax drops from the structures of a function over which axes of the mesh its vectors
vary, and Equinox calls it with vectors of exactly those.
"""

import types
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, Inexact, PyTree

from .._base.axes import is_manual, like, varying_axes
from .._base.closed import call
from .._base.structure import Structure
from .._base.tree import tree_conj


_OF_LINEAX = lx.FunctionLinearOperator | lx.JacobianLinearOperator


class Function(lx.AbstractLinearOperator):
    """A linear function of vectors that vary over the axes that `structure` has."""

    function: Callable
    structure: tuple[tuple[jax.ShapeDtypeStruct, ...], Any] = eqx.field(static=True)
    tags: frozenset[object] = eqx.field(static=True)

    @classmethod
    def create(cls, function: Callable, structure: PyTree, tags) -> "Function":
        zeros = lambda: jtu.tree_map(lambda s: jnp.zeros(s.shape, s.dtype), structure)
        structure = jax.eval_shape(lambda: like(structure, zeros()))  # with the mesh
        if isinstance(function, types.FunctionType):
            function = eqx.filter_closure_convert(function, structure)
        leaves, treedef = jtu.tree_flatten(structure)
        return cls(function, (tuple(leaves), treedef), tags)

    def mv(self, vector: PyTree[Array]) -> PyTree[Array]:
        structure = self.in_structure()
        leaves = zip(*map(jtu.tree_leaves, (vector, structure)), strict=True)
        more = {axis for v, s in leaves for axis in varying_axes(v) - varying_axes(s)}
        if more:
            axes = tuple(sorted(more, key=str))
            raise ValueError(
                "`operator` is a function of vectors that are the same on each device, "
                f"and the vector differs over the axes {axes} of the mesh. If each "
                "device solves for itself, make the operator with "
                "`jax.eval_shape(lambda: vector)` as its structure, of such a vector; if "
                "the operator sums over the devices, sum the vector too."
            )
        return call(self.function, structure, vector)

    def as_matrix(self) -> Inexact[Array, "rows cols"]:
        domain, codomain = map(Structure.of, (self.in_structure(), self.out_structure()))
        column = lambda unit: codomain.ravel(self.mv(domain.unravel(unit)))
        return jax.vmap(column, out_axes=1)(jnp.eye(domain.size, dtype=domain.dtype))

    def transpose(self) -> lx.AbstractLinearOperator:
        if lx.is_symmetric(self):
            return self
        structure = self.out_structure()
        transposed = jax.linear_transpose(self.mv, self.in_structure())
        tags = lx.transpose_tags(self.tags)
        return Function.create(lambda vector: transposed(vector)[0], structure, tags)

    def conj(self) -> "Function":
        product = lambda vector: tree_conj(self.mv(tree_conj(vector)))
        return Function.create(product, self.in_structure(), self.tags)

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        leaves, treedef = self.structure
        return jtu.tree_unflatten(treedef, leaves)

    def out_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return jax.eval_shape(self.mv, self.in_structure())


class _Jacobian(eqx.Module):
    operator: lx.JacobianLinearOperator

    def __call__(self, vector: PyTree[Array]) -> PyTree[Array]:
        return self.operator.mv(vector)


def typed(operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
    """Inside `jax.shard_map`, with functions whose structures have the axes of a mesh."""
    if not is_manual():
        return operator
    is_function = lambda node: isinstance(node, _OF_LINEAX)
    return jtu.tree_map(
        lambda node: _typed(node) if is_function(node) else node,
        operator,
        is_leaf=is_function,
    )


def _typed(operator) -> Function:
    jacobian = isinstance(operator, lx.JacobianLinearOperator)
    function = _Jacobian(operator) if jacobian else operator.fn
    return Function.create(function, operator.in_structure(), operator.tags)


@lx.linearise.register(Function)
def _(operator):
    if isinstance(operator.function, _Jacobian):
        return _typed(lx.linearise(operator.function.operator))
    return operator


@lx.materialise.register(Function)
def _(operator):
    return lx.MatrixLinearOperator(operator.as_matrix(), operator.tags)


@lx.conj.register(Function)
def _(operator):
    return operator.conj()


@lx.diagonal.register(Function)
def _(operator):
    return lx.diagonal(lx.materialise(operator))


@lx.tridiagonal.register(Function)
def _(operator):
    return lx.tridiagonal(lx.materialise(operator))


def _register(predicate):
    def rule(operator):
        leaves, treedef = operator.structure
        leaves = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
        structure = jtu.tree_unflatten(treedef, leaves)
        same_tags = lx.FunctionLinearOperator(
            lambda vector: vector, structure, operator.tags, closure_convert=False
        )
        return predicate(same_tags)

    predicate.register(Function, rule)


for _predicate in (
    lx.is_symmetric,
    lx.is_diagonal,
    lx.is_tridiagonal,
    lx.has_unit_diagonal,
    lx.is_lower_triangular,
    lx.is_upper_triangular,
    lx.is_positive_semidefinite,
    lx.is_negative_semidefinite,
):
    _register(_predicate)


class Spread(NamedTuple):
    """The axes of a mesh over which vectors of one space vary, and of the other do not.

    Such a vector has a part on each device, and sums over its entries are over the axes.
    """

    codomain: frozenset[Any] = frozenset()
    domain: frozenset[Any] = frozenset()

    @classmethod
    def of(cls, operator: lx.AbstractLinearOperator) -> "Spread":
        if not is_manual():
            return cls()
        structures = operator.out_structure(), operator.in_structure()
        codomain, domain = map(varying_axes, structures)
        return cls(codomain - domain, domain - codomain)

    @property
    def any(self) -> frozenset[Any]:
        return self.codomain | self.domain
