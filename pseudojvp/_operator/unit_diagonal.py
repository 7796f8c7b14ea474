"""Unit triangular matrices, whose diagonal may hold anything: it is never read."""

import jax.numpy as jnp
import lineax as lx

from .matrix import known_tags
from .sparse import SparseLinearOperator, untagged


def is_unit_triangular(operator: lx.AbstractLinearOperator) -> bool:
    triangular = lx.is_lower_triangular(operator) or lx.is_upper_triangular(operator)
    return triangular and lx.has_unit_diagonal(operator)


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
