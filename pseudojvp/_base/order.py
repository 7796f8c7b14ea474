"""An order among the library calls of a batch, which without one may wait for ever.

Batched calls of LAPACK that do not depend on each other can wait for each other on the
CPU, when they are as many as the threads: with jaxlib before 0.11.1, as
`benchmarks/deadlock.py` shows.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.extend.core as jex
import jax.interpreters.ad as ad
import jax.interpreters.batching as batching
import jax.interpreters.mlir as mlir
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from .axes import as_varying, is_manual, is_sharded_explicitly, varying_axes
from .tree import all_finite


def after(earlier: PyTree, tree: PyTree[Array]) -> PyTree[Array]:
    """`tree`, with a data dependency on the arrays of `earlier`; linear in `tree`."""
    entries = jax.lax.stop_gradient(_entries(earlier, tree))
    return jtu.tree_map(lambda leaf: _depend(leaf, *entries), tree)


def after_in_batch(earlier: PyTree, tree: PyTree[Array]) -> PyTree[Array]:
    """As `after` under `jax.vmap`; `tree` itself, and nothing computed, without."""
    entries = _entries(earlier, tree)
    return jtu.tree_map(lambda leaf: after_p.bind(leaf, *entries), tree)


class Steps:
    """Calls of functions of one vector, one after the other; by default in a batch."""

    def __init__(self, order: Callable = after_in_batch):
        self._order = order
        self._last: PyTree[Array] | None = None

    def __call__(self, function: Callable, vector: PyTree[Array] | None, **kwargs):
        """Returns the function of the vector; `None`, a zero, is left alone."""
        if vector is None:
            return None
        self._last = function(self._order(self._last, vector), **kwargs)
        return self._last

    def end(self, tree: PyTree[Array]) -> PyTree[Array]:
        """`tree`, so that whoever needs it waits for all steps."""
        return self._order(self._last, tree)


def _entries(tree: PyTree, later: PyTree[Array]) -> list[Array]:
    """One of each array, of those which vary over no axes but those of `later`."""
    arrays = jtu.tree_leaves(eqx.filter(tree, eqx.is_inexact_array))
    usable = lambda array: array.size > 0 and not is_sharded_explicitly(array)
    entries = [array.reshape(-1)[0] for array in arrays if usable(array)]
    if not is_manual():
        return entries
    axes = varying_axes(later)
    entries = [entry for entry in entries if varying_axes(entry) <= axes]
    return list(as_varying(axes, entries))


def _depend(leaf: Array, *entries: Array) -> Array:
    if not entries:
        return leaf
    one = 1 + 0 * all_finite(entries).astype(jnp.float32)
    return leaf * one.astype(leaf.dtype)


def _create_after() -> jex.Primitive:
    primitive = jex.Primitive("after")

    def batch(arguments, axes):
        if all(axis is None for axis in axes[1:]):  # one call was before, not a batch
            return primitive.bind(*arguments), axes[0]
        return jax.vmap(_depend, axes)(*arguments), 0

    def linear(leaf, entries):
        return leaf if isinstance(leaf, ad.Zero) else primitive.bind(leaf, *entries)

    def jvp(primals, tangents):
        leaf, *entries = primals
        return primitive.bind(leaf, *entries), linear(tangents[0], entries)

    def transpose(cotangent, leaf, *entries):
        return linear(cotangent, entries), *(None for _ in entries)

    primitive.def_impl(lambda leaf, *entries: leaf)
    primitive.def_abstract_eval(lambda leaf, *entries: leaf)
    mlir.register_lowering(primitive, lambda context, leaf, *entries: [leaf])
    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transpose
    batching.primitive_batchers[primitive] = batch
    return primitive


after_p = _create_after()
