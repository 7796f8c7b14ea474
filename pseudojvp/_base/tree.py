"""Arithmetic of vectors that are pytrees."""

import functools as ft
import operator as _operator
from collections.abc import Callable
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, Inexact, PyTree, Scalar


Tree = TypeVar("Tree")


def tree_conj(tree: PyTree[Array]) -> PyTree[Array]:
    return jtu.tree_map(jnp.conj, tree)


def tree_add(*terms: PyTree[Array] | None) -> PyTree[Array] | None:
    """The sum of the terms that are not `None`; `None` (a zero) if none is left."""
    present = [term for term in terms if term is not None]
    if not present:
        return None
    return jtu.tree_map(lambda *leaves: sum(leaves[1:], leaves[0]), *present)


def tree_neg(tree: PyTree[Array] | None) -> PyTree[Array] | None:
    return jtu.tree_map(_operator.neg, tree)


def tree_sub(
    left: PyTree[Array] | None, right: PyTree[Array] | None
) -> PyTree[Array] | None:
    if left is None or right is None:
        return tree_add(left, tree_neg(right))
    return jtu.tree_map(_operator.sub, left, right)


def tree_scale(scalar: Scalar, tree: PyTree[Array]) -> PyTree[Array]:
    """`scalar * tree`, each leaf keeping its dtype under strict promotion."""
    return jtu.tree_map(lambda leaf: scalar.astype(leaf.dtype) * leaf, tree)


def tree_where(
    predicate: Bool[Array, ""], true: PyTree[Array], false: PyTree[Array]
) -> PyTree[Array]:
    return jtu.tree_map(lambda t, f: jnp.where(predicate, t, f), true, false)


def at_least_single(tree: Tree) -> Tree:
    """With leaves of 16 bits in 32: there is no LAPACK for them."""
    return jtu.tree_map(
        lambda leaf: leaf.astype(jnp.float32) if _is_half(leaf) else leaf, tree
    )


def _is_half(leaf) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return (
        dtype is not None and jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize == 2
    )


def all_finite(tree: PyTree[Array]) -> Bool[Array, ""]:
    finite = jnp.array(True)
    for leaf in jtu.tree_leaves(tree):
        finite = finite & jnp.all(jnp.isfinite(leaf))
    return finite


def is_zero(tree: PyTree[Array]) -> Bool[Array, ""]:
    zero = jnp.array(True)
    for leaf in jtu.tree_leaves(tree):
        zero = zero & jnp.all(leaf == 0)
    return zero


def one_or_nan(predicate: Bool[Array, "*batch"]) -> Float[Array, "*batch"]:
    """1, or the root of −1: no NaN is made where none is meant, for `jax_debug_nans`.

    Not 0/0: XLA makes zero of it where the predicate is a broadcast scalar.
    """
    one = jnp.ones_like(predicate, jnp.float32)  # on the mesh of the predicate
    return jnp.sqrt(jnp.where(predicate, one, -one))


def nan_unless(predicate: Bool[Array, "..."], tree: PyTree[Array]) -> PyTree[Array]:
    nan = one_or_nan(predicate)
    return jtu.tree_map(
        lambda leaf: jnp.where(predicate, leaf, in_each_part(nan, leaf.dtype)), tree
    )


def in_each_part(real: Float[Array, "*batch"], dtype) -> Inexact[Array, "*batch"]:
    """As an array of that dtype, of which a complex one has it in both parts."""
    if not jnp.issubdtype(dtype, jnp.complexfloating):
        return real.astype(dtype)
    real = real.astype(jnp.finfo(dtype).dtype)
    return jax.lax.complex(real, real)


def stop_gradient(tree: PyTree) -> PyTree:
    arrays, rest = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.lax.stop_gradient(arrays), rest)


def promoting(function: Callable) -> Callable:
    """A norm or product of vectors whose leaves may differ in dtype.

    Also under JAX's strict promotion: what it returns is a scalar of its own.
    """

    @ft.wraps(function)
    def wrapped(*vectors, **options):
        with jax.numpy_dtype_promotion("standard"):
            return function(*vectors, **options)

    return wrapped
