"""Norms of vectors of any size, and powers of two."""

import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax.internal as lxi
import numpy as np
from jaxtyping import Array, PyTree, Real

from .._base.tree import promoting


max_norm = promoting(lxi.max_norm)


def two_norm(vector: PyTree[Array]) -> Real[Array, ""]:
    """Without under- or overflow of the squares."""
    largest = max_norm(vector)
    unit = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    squares = [
        jnp.sum((jnp.abs(leaf).astype(unit.dtype) / unit) ** 2)
        for leaf in jtu.tree_leaves(vector)
    ]
    return unit * jnp.sqrt(sum(squares, jnp.zeros_like(unit)))


def largest_part(vector: PyTree[Array]) -> Real[Array, ""]:
    """The largest real or imaginary part.

    Without rounding: XLA may compute it twice, for a division and the multiplication that
    undoes it, and a modulus near a power of two could be on either side of it.
    """
    parts = [
        (leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else leaf
        for leaf in jtu.tree_leaves(vector)
    ]
    return max_norm(parts)


def power_of_two(largest: Real[Array, "..."]) -> Real[Array, "..."]:
    """An even one within a factor of two of `largest`; one for zero, NaN and Inf.

    Its inverse is finite, too. From the bits of the exponent, with the last one set:
    `jnp.frexp` and `jnp.ldexp` are ten times as many operations, and XLA repeats them in
    each kernel that the power goes into.
    """
    info = jnp.finfo(largest.dtype)
    largest = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    largest = jnp.minimum(largest, 2.0 ** (info.maxexp - 2))
    integer = np.dtype(f"uint{info.bits}").type
    last = 1 << info.nmant
    mask = (1 << info.bits - 1) - last
    exponent = lax.bitcast_convert_type(largest, integer) & integer(mask)
    return lax.bitcast_convert_type(exponent | integer(last), largest.dtype)
