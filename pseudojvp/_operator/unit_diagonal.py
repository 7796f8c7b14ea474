"""Unit triangular matrices, whose diagonal may hold anything: it is never read."""

import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import numpy as np

from .matrix import known_tags
from .sparse import SparseLinearOperator, untagged
from .sparsity import create_sparsity, Sparsity


def is_unit_triangular(operator: lx.AbstractLinearOperator) -> bool:
    triangular = lx.is_lower_triangular(operator) or lx.is_upper_triangular(operator)
    return triangular and lx.has_unit_diagonal(operator)


def with_implied_ones(operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
    """A unit triangular matrix with the ones that its tag promises, any other as is.

    For parts of an operator: who solves with the whole does not see their tags.
    """
    return with_ones(operator) if is_unit_triangular(operator) else operator


def without_diagonal(operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
    """A stored matrix with ones on its diagonal, a sparse one with zeros; others as is.

    No entry there has a derivative.
    """
    bare = untagged(operator)
    if isinstance(bare, SparseLinearOperator):
        sparsity = bare.sparsity
        data = jnp.where(sparsity.row == sparsity.col, 0, bare.data)
        return SparseLinearOperator((data, sparsity), known_tags(operator) | bare.tags)
    if isinstance(bare, lx.MatrixLinearOperator):
        ones = jnp.eye(len(bare.matrix), dtype=bool)
        matrix = jnp.where(ones, 1, bare.matrix)
        return lx.MatrixLinearOperator(matrix, known_tags(operator) | bare.tags)
    return operator


def with_ones(operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
    """A stored matrix with ones on its diagonal, whatever is stored there; others as is.

    No entry there has a derivative.
    """
    bare = untagged(operator)
    if isinstance(bare, SparseLinearOperator):
        tags = known_tags(operator) | bare.tags
        return SparseLinearOperator(_sparse_with_ones(bare.data, bare.sparsity), tags)
    if isinstance(bare, lx.DiagonalLinearOperator):
        ones = jtu.tree_map(jnp.ones_like, bare.diagonal)
        return lx.TaggedLinearOperator(
            lx.DiagonalLinearOperator(ones), lx.unit_diagonal_tag
        )
    if isinstance(bare, lx.TridiagonalLinearOperator):
        ones = jnp.ones_like(bare.diagonal)
        bands = lx.TridiagonalLinearOperator(
            ones, bare.lower_diagonal, bare.upper_diagonal
        )
        return lx.TaggedLinearOperator(bands, known_tags(operator))
    return without_diagonal(operator)


def _sparse_with_ones(data, sparsity: Sparsity):
    """One entry of the diagonal in each row, the first where there are several."""
    row, col, size = sparsity.row, sparsity.col, sparsity.shape[0]
    if not sparsity.full_diagonal:  # or nobody knows
        library = np if isinstance(row, np.ndarray) else jnp
        places = np.arange(size, dtype=row.dtype)
        row, col = library.append(places, row), library.append(places, col)
        data = jnp.append(jnp.ones(size, data.dtype), data)
        sparsity, _ = create_sparsity(row, col, sparsity.shape, allow_padding=True)
    place, diagonal = jnp.arange(len(data)), row == col
    first = jnp.full(size, len(data)).at[jnp.where(diagonal, row, size)].min(place)
    chosen = place == first.at[row].get(mode="clip")
    return jnp.where(diagonal, chosen.astype(data.dtype), data), sparsity
