"""Norms of vectors of any size, and powers of two."""

import functools

import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, PyTree, Real

from .._base.tree import promoting


def two_norm(vector: PyTree[Array]) -> Real[Array, ""]:
    """Without under- or overflow of the squares."""
    unit = power_of_two(vector)
    squares = [
        jnp.sum((jnp.abs(leaf).astype(unit.dtype) / unit) ** 2)
        for leaf in jtu.tree_leaves(vector)
    ]
    return unit * jnp.sqrt(sum(squares, jnp.zeros_like(unit)))


@promoting
def power_of_two(vector: PyTree[Array], axis: int | None = None) -> Real[Array, "..."]:
    """An even one within a factor of two of the largest real or imaginary part.

    Its inverse is finite: the least such power for zeros, the largest one for NaN and
    Inf. It is a maximum of exponents, with the last bit set, as integers, because XLA
    keeps what comes of a reduction, and computes the power anew for each who reads it.
    """
    parts = [
        part
        for leaf in jtu.tree_leaves(vector)
        for part in ((leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else (leaf,))
    ]
    info = jnp.finfo(jnp.result_type(float, *parts))
    integer = np.dtype(f"uint{info.bits}").type
    last = integer(1 << info.nmant)
    mask = integer((1 << info.bits - 1) - int(last))
    least, most = last * integer(3), last * integer(2 * info.maxexp - 3)

    def largest(part):
        bits = lax.bitcast_convert_type(part.astype(info.dtype), integer)
        exponents = jnp.minimum(bits & mask | last, most)
        axes = range(part.ndim) if axis is None else [axis]
        return lax.reduce(exponents, least, lax.max, tuple(axes))

    exponent = functools.reduce(jnp.maximum, map(largest, parts), least)
    return lax.bitcast_convert_type(exponent, info.dtype)
