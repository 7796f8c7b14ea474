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

from .._base.axes import (
    as_varying,
    has_explicit_axes,
    is_manual,
    like,
    ordered,
    structure_on_mesh_of,
    varying_axes,
)
from .._base.closed import call, closed, is_closed
from .._base.structure import Structure
from .._base.tree import tree_conj


_SAME = (
    "`operator` is a function of vectors that are the same on each device, and the "
    "vector differs along the axes"
)
_ADVICE = (
    "If each device solves for itself, make the operator with `closure_convert=False`; "
    "if the operator sums over the devices, sum the vector too."
)
_OF_LINEAX = lx.FunctionLinearOperator | lx.JacobianLinearOperator


class Function(lx.AbstractLinearOperator):
    """A linear function of vectors that vary over the axes that `structure` has."""

    function: Callable
    structure: tuple[tuple[jax.ShapeDtypeStruct, ...], Any] = eqx.field(static=True)
    tags: frozenset[object] = eqx.field(static=True)

    @classmethod
    def create(cls, function: Callable, structure: PyTree, tags) -> "Function":
        leaves, treedef = jtu.tree_flatten(structure)
        return cls(function, (tuple(leaves), treedef), tags)

    def mv(self, vector: PyTree[Array]) -> PyTree[Array]:
        structure = self.in_structure()
        vector = like(structure, vector)
        more = varying_axes(vector) - varying_axes(structure)
        if more and is_closed(self.function):
            raise ValueError(f"{_SAME} {ordered(more)} of the mesh. {_ADVICE}")
        out = call(self.function, vector)
        if not more <= varying_axes(out):
            raise ValueError(
                f"`operator` sums over the axes {ordered(more)} of the mesh, and the "
                "vector differs along them. Sum the vector too."
            )
        return out

    def as_matrix(self) -> Inexact[Array, "rows cols"]:
        domain, codomain = map(Structure.of, (self.in_structure(), self.out_structure()))
        column = lambda unit: codomain.ravel(self.mv(domain.unravel(unit)))
        return jax.vmap(column, out_axes=1)(jnp.eye(domain.size, dtype=domain.dtype))

    def transpose(self) -> lx.AbstractLinearOperator:
        if lx.is_symmetric(self):
            return self
        tags = lx.transpose_tags(self.tags)
        return Function.create(_Transposed(self), self.out_structure(), tags)

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        leaves, treedef = self.structure
        return jtu.tree_unflatten(treedef, leaves)

    def out_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        if lx.is_symmetric(self):
            return self.in_structure()
        product = lambda operator, vector: operator.mv(vector)
        image = eqx.filter_eval_shape(product, self, self.in_structure())
        return image if is_manual() else Structure.of(image).as_tree()


class _Jacobian(eqx.Module):
    operator: lx.JacobianLinearOperator

    def __call__(self, vector: PyTree[Array]) -> PyTree[Array]:
        jacobian = self.operator
        if jacobian.jac != "bwd":
            return jacobian.mv(vector)
        # As lineax, which drops the axes from the structure of what comes out.
        out, pull = jax.vjp(lambda x: jacobian.fn(x, jacobian.args), jacobian.x)
        if lx.is_symmetric(jacobian):
            return pull(vector)[0]
        structure = jax.eval_shape(lambda: out)
        return jax.linear_transpose(lambda ct: pull(ct)[0], structure)(vector)[0]


class _Opened(eqx.Module):
    """A function that Equinox has closed, of arguments of other types on a mesh."""

    function: Callable

    def __call__(self, x: PyTree[Array], args: Any) -> PyTree[Array]:
        if is_closed(self.function):
            return call(self.function, eqx.filter((x, args), eqx.is_array))
        return getattr(self.function, "fn", self.function)(x, args)


def product_on_mesh(
    product: Callable, structure: PyTree[Any], tags: object = frozenset()
) -> Function:
    """The operator v ↦ `product(v)` from a space to itself, on a mesh.

    `structure` is that of v, or a vector of it. lineax compares structures with an axis
    of a mesh to some without.
    """
    tags = frozenset(tags) if isinstance(tags, set | frozenset) else frozenset([tags])
    structure = jax.eval_shape(lambda tree: tree, structure)
    if not is_manual():  # what is within a solve runs in auto mode
        structure = Structure.of(structure).as_tree()
    return _of_varying(closed(product, structure), structure, tags)


def _of_varying(function: Callable, structure: PyTree[Any], tags) -> Function:
    """Each device has its own A: vectors vary as their products do."""
    axes = varying_axes(jax.eval_shape(lambda v: call(function, v), structure))
    structure = jax.eval_shape(lambda tree: as_varying(axes, tree), structure)
    return Function.create(function, structure, tags)


class _Transposed(eqx.Module):
    operator: Function

    def __call__(self, vector: PyTree[Array]) -> PyTree[Array]:
        more = varying_axes(vector) - varying_axes(self.operator.out_structure())
        structure = self.operator.in_structure()
        structure = jax.eval_shape(lambda tree: as_varying(more, tree), structure)
        structure = structure_on_mesh_of(vector, structure)
        return jax.linear_transpose(self.operator.mv, structure)(vector)[0]


class _Conjugated(eqx.Module):
    operator: Function

    def __call__(self, vector: PyTree[Array]) -> PyTree[Array]:
        return tree_conj(self.operator.mv(tree_conj(vector)))


def typed(tree: Any) -> Any:
    """On a mesh, with functions whose structures have the axes that vectors vary over."""
    if not (is_manual() or has_explicit_axes(tree)):
        return tree
    return jtu.tree_map(
        lambda node: _typed(node) if isinstance(node, _OF_LINEAX) else node,
        tree,
        is_leaf=lambda node: isinstance(node, _OF_LINEAX | Function),
    )


def _typed(operator) -> Function:
    if isinstance(operator, lx.JacobianLinearOperator):
        structure = jax.eval_shape(lambda: operator.x)
        if not is_manual():
            # For arrays on explicit axes, and what is within a solve runs in auto mode.
            structure = Structure.of(structure).as_tree()
            operator = eqx.tree_at(lambda o: o.fn, operator, _Opened(operator.fn))
        return Function.create(_Jacobian(operator), structure, operator.tags)
    zeros = lambda s: jnp.zeros(s.shape, s.dtype)
    structure = operator.in_structure()  # lineax drops the axes from it
    structure = jax.eval_shape(lambda: jtu.tree_map(zeros, structure))
    function = typed(operator.fn)
    if not is_closed(function):
        if isinstance(function, types.FunctionType):
            function = closed(function, structure)
        return _of_varying(function, structure, operator.tags)
    return Function.create(function, structure, operator.tags)


@lx.linearise.register(Function)
def _(operator):
    function, structure = operator.function, operator.in_structure()
    if not isinstance(function, _Jacobian) or function.operator.jac == "bwd":
        return operator
    jacobian = function.operator
    _, linear = jax.linearize(lambda x: jacobian.fn(x, jacobian.args), jacobian.x)
    linear = eqx.filter_closure_convert(linear, structure)
    return Function.create(linear, structure, operator.tags)


@lx.materialise.register(Function)
def _(operator):
    return lx.MatrixLinearOperator(operator.as_matrix(), operator.tags)


@lx.conj.register(Function)
def _(operator):
    return Function.create(_Conjugated(operator), operator.in_structure(), operator.tags)


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
