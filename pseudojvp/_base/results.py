import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, Integer, PyTree

from .tree import one_or_nan


def nan_after_failure(result: lx.RESULTS, tree: PyTree[Array]) -> PyTree[Array]:
    """`tree`, or NaN if the solve failed, in its derivatives as well."""
    # A product, for the cotangent of a `where` would be zero.
    factor = one_or_nan(result == lx.RESULTS.successful)
    return jtu.tree_map(lambda leaf: leaf * factor.astype(leaf.dtype), tree)


def first_failure(first: lx.RESULTS, second: lx.RESULTS) -> lx.RESULTS:
    return lx.RESULTS.where(first == lx.RESULTS.successful, second, first)


@jax.custom_batching.custom_vmap
def worst_of_batch(code: Integer[Array, ""]) -> Integer[Array, ""]:
    """The largest code under `jax.vmap`: zero of none, of which Equinox finds none."""
    return code


@worst_of_batch.def_vmap
def _(size: int, batched: list[bool], code: Integer[Array, " size"]):
    del size, batched
    return worst_of_batch(jnp.max(code, axis=0, initial=0)), False
