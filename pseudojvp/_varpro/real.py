import functools as ft
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, Inexact, Num, PyTree


def as_real(columns: PyTree[Inexact[Array, "..."]]) -> Float[Array, " size"]:
    """All entries in one real vector, real parts before imaginary ones, leaf by leaf."""
    parts = []
    for leaf in jtu.tree_leaves(columns):
        flat = leaf.reshape(-1)
        parts += [flat.real, flat.imag] if jnp.iscomplexobj(flat) else [flat]
    if len(parts) == 1:
        return parts[0]
    with jax.numpy_dtype_promotion("standard"):
        return jnp.concatenate(parts)


def squared_norm(columns: PyTree[Inexact[Array, "..."]]) -> Float[Array, ""]:
    """The sum of |·|², without an array of them in another order."""

    def of_leaf(leaf):
        if jnp.iscomplexobj(leaf):
            return jnp.sum(leaf.real**2 + leaf.imag**2)
        return jnp.sum(leaf**2)

    return added([of_leaf(leaf) for leaf in jtu.tree_leaves(columns)])


def added(terms: Sequence[Any]) -> Num[Array, ""]:
    """The sum of scalars of any precision; of one term that."""
    with jax.numpy_dtype_promotion("standard"):
        return ft.reduce(operator.add, terms)
