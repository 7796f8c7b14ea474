"""Sizes of the entries of an operator, of no more than its parts."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Real

from ..._base.structure import Structure
from ..._kernel.condition import largest_entries, PROBES, probes
from ..._kernel.norms import two_norm
from ..._kernel.products import matmul
from ..._operator import LowRankUpdate, SparseLinearOperator
from ..._operator.matrix import has_functions, matrix_of
from ..._operator.sparse import untagged
from ..krylov.iteration import flat_mv


def moduli(operator: lx.AbstractLinearOperator) -> Callable[[Array], Array]:
    """|A| v of a v that is nowhere negative, of no more than the parts."""
    bare = untagged(operator)
    if isinstance(bare, LowRankUpdate):
        left, core, right = map(jnp.abs, (bare.U, bare.core(), bare.right))
        of_part = moduli(bare.operator)

        def of_update(v):
            update = matmul(left, matmul(core, matmul(right.T, v.astype(left.dtype))))
            return of_part(v) + update.astype(v.dtype)

        return of_update
    if isinstance(bare, SparseLinearOperator):
        sparse = dataclasses.replace(bare, data=jnp.abs(bare.data))
        return lambda v: sparse.mv(v.astype(sparse.data.dtype)).astype(v.dtype)
    if lx.is_diagonal(operator):
        diagonal = jnp.abs(lx.diagonal(operator))
        return lambda v: diagonal.astype(v.dtype) * v
    if lx.is_tridiagonal(operator):
        bands = [jnp.abs(band) for band in lx.tridiagonal(operator)]

        def of_bands(v):
            diagonal, lower, upper = (band.astype(v.dtype) for band in bands)
            product = (diagonal * v).at[1:].add(lower * v[:-1])
            return product.at[:-1].add(upper * v[1:])

        return of_bands
    if isinstance(bare, lx.MatrixLinearOperator):
        matrix = jnp.abs(matrix_of(operator))
        return lambda v: matmul(matrix, v.astype(matrix.dtype)).astype(v.dtype)
    size = operator.in_size()
    vectors = probes(size, PROBES, jnp.finfo(jnp.float32).dtype)
    spaces = operator.in_structure(), operator.out_structure()
    vectors = vectors.astype(Structure.of(spaces).dtype)
    images = jnp.abs(jax.vmap(flat_mv(operator), 1, 1)(vectors))
    norms = jax.vmap(two_norm)(images) * (size / max(vectors.shape[1], 1)) ** 0.5
    return lambda v: norms.astype(v.dtype) * two_norm(v)


def largest_of_columns(operator: lx.AbstractLinearOperator) -> Real[Array, " n"]:
    """The sizes of the columns, of no more than the parts; ones if there is no way."""
    bare = untagged(operator)
    if isinstance(bare, LowRankUpdate):
        left = jnp.max(jnp.abs(bare.times_core(bare.U)), initial=0)
        update = left * jnp.max(jnp.abs(bare.right), axis=1, initial=0)
        return largest_of_columns(bare.operator).astype(update.dtype) + update
    if isinstance(bare, SparseLinearOperator):
        return bare.largest_entries()
    if lx.is_tridiagonal(operator) and operator.in_size() > 1:
        diagonal, lower, upper = map(jnp.abs, lx.tridiagonal(operator))
        # Those of a diagonal are of another dtype (lineax 0.1.1).
        lower, upper = lower.astype(diagonal.dtype), upper.astype(diagonal.dtype)
        others = jnp.maximum(jnp.pad(lower, (0, 1)), jnp.pad(upper, (1, 0)))
        return jnp.maximum(diagonal, others)
    if isinstance(bare, lx.MatrixLinearOperator) or has_functions(operator):
        return largest_entries(matrix_of(operator))
    spaces = operator.in_structure(), operator.out_structure()
    return jnp.ones(operator.in_size(), jnp.finfo(Structure.of(spaces).dtype).dtype)
