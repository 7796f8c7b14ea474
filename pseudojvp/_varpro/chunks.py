"""A function of each member of a batch, chunk by chunk within one program."""

import math
from collections.abc import Callable

import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from .progress import ChunkBar


def in_chunks(
    function: Callable, xs: PyTree[Array], batch_size: int, progress: bool = False
) -> PyTree[Array]:
    """`jax.vmap` of `function`, one chunk after the other.

    A chunk has as many members of each group: what is sharded over the members is then
    cut into chunks on each device by itself. The last chunk reaches back, so that all
    are of one size and compile as one.
    """
    arrays = jtu.tree_leaves(xs)
    size = arrays[0].shape[0]
    groups = _groups(arrays)
    share = size // groups
    length = min(max(batch_size // groups, 1), share)
    chunks = -(-share // length)
    bar = ChunkBar()
    if progress:
        jax.debug.callback(bar.begin, chunks, ordered=False)
    grouped = jtu.tree_map(lambda leaf: _split_first(leaf, groups), xs)

    def chunk(index):
        start = jnp.minimum(index * length, share - length)
        slices = jtu.tree_map(
            lambda leaf: lax.dynamic_slice_in_dim(leaf, start, length, 1), grouped
        )
        out = jax.vmap(function)(jtu.tree_map(_join_first, slices))
        if progress:
            jax.debug.callback(bar.update, jtu.tree_leaves(out)[0].ravel()[0])
        return jtu.tree_map(lambda leaf: _split_first(leaf, groups), out)

    stacked = lax.map(chunk, jnp.arange(chunks))
    whole = (chunks - 1) * length

    def join(leaf):  # (chunks, groups, length, ...)
        first = jnp.moveaxis(leaf[:-1], 0, 1).reshape(groups, whole, *leaf.shape[3:])
        last = leaf[-1][:, whole - share :]
        return _join_first(jnp.concatenate([first, last], axis=1))

    return jtu.tree_map(join, stacked)


def _groups(arrays: list[Array]) -> int:
    """Into how many groups of neighbours members are divided: those of each device."""
    meshes = [jax.typeof(array).sharding.mesh.size or 1 for array in arrays]
    return math.gcd(len(arrays[0]), math.lcm(jax.device_count(), *meshes))


def _split_first(leaf: Array, groups: int) -> Array:
    return leaf.reshape(groups, leaf.shape[0] // groups, *leaf.shape[1:])


def _join_first(leaf: Array) -> Array:
    return leaf.reshape(leaf.shape[0] * leaf.shape[1], *leaf.shape[2:])
