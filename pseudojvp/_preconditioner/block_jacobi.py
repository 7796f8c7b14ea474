from typing import Any

import jax.numpy as jnp
import jax.scipy.linalg as jsl
import lineax as lx
from jaxtyping import Array, Inexact

from .._base.auto_axes import with_auto_axes
from .._base.checks import check_count
from .._operator import SparseLinearOperator
from .._operator.sparse import untagged
from .jacobi import inverse_entries
from .operator import (
    AbstractPreconditioner,
    conj_arrays,
    constant_square_operator,
    symmetry_tags,
)


class BlockDiagonalPreconditioner(AbstractPreconditioner):
    """A block diagonal matrix; the last block is padded with zeros."""

    blocks: Inexact[Array, "count block block"]

    def apply(self, flat: Inexact[Array, " n"]) -> Inexact[Array, " n"]:
        count, block, _ = self.blocks.shape
        padded = jnp.pad(flat, (0, count * block - flat.size)).reshape(count, 1, block)
        return jnp.sum(self.blocks * padded, axis=-1).reshape(-1)[: flat.size]

    def transpose(self) -> "BlockDiagonalPreconditioner":
        return BlockDiagonalPreconditioner(self.structure, self.tags, self.blocks.mT)

    def conj(self) -> "BlockDiagonalPreconditioner":
        return conj_arrays(self)


def block_jacobi(operator: Any, block_size: int) -> lx.AbstractLinearOperator:
    """Returns the inverses of the diagonal blocks of A as a block diagonal operator.

    The unknowns, in the order of the flattened vector, are divided into blocks of
    `block_size`; the last block may be shorter. A singular block (for positive
    semidefinite A, one that is not definite to working precision) is replaced by its
    diagonal, as in [`pseudojvp.jacobi`][].

    Cost: the blocks of A (the whole matrix, unless A is a
    [`pseudojvp.SparseLinearOperator`][]) and n / k inverses of size k in one batched
    call; then n k multiplications an application. Memory: n k.

    **Arguments:**

    - `operator`: A, square; anything that [`pseudojvp.linear_solve`][] takes.
    - `block_size`: k, at least 1.

    **Returns:** a lineax operator; positive definite and tagged so if A is tagged
    positive semidefinite, symmetric if A is.

    **Derivatives:** none; a preconditioner is a constant.

    **Raises:** `ValueError` if A is not square or `block_size < 1`, `TypeError` if
    `block_size` is not an integer.

    **Sources:** Saad, *Iterative Methods for Sparse Linear Systems*, 2nd ed. (2003),
    section 12.2.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    A = jnp.array([[2.0, 1.0, 0.0], [1.0, 2.0, 1.0], [0.0, 1.0, 4.0]])
    P = pj.block_jacobi(A, 2)  # blocks of two unknowns, the last of one
    print(P.mv(jnp.array([3.0, 3.0, 4.0])).round(2))  # [1. 1. 1.]
    ```
    """
    check_count(block_size, "block_size", "block_jacobi")
    operator, structure = constant_square_operator(operator, "block_jacobi")
    tags = symmetry_tags(operator)
    definite = lx.positive_semidefinite_tag in tags
    blocks = _diagonal_blocks(operator, min(block_size, max(structure.size, 1)))
    diagonal = inverse_entries(jnp.diagonal(blocks, axis1=1, axis2=2), definite)
    inverses = with_auto_axes(_inverses)(blocks, definite)
    sound = jnp.all(jnp.isfinite(inverses), axis=(1, 2), keepdims=True)
    fallback = diagonal[:, :, None] * jnp.eye(blocks.shape[-1], dtype=blocks.dtype)[None]
    inverses = jnp.where(sound, inverses, fallback)
    return BlockDiagonalPreconditioner(structure, tags, inverses)


def _diagonal_blocks(operator, block: int) -> Inexact[Array, "count block block"]:
    """The diagonal blocks; the last is filled up with an identity."""
    size = operator.in_size()
    count = -(-size // block)
    operator = untagged(operator)
    if isinstance(operator, SparseLinearOperator):
        return _sparse_diagonal_blocks(operator, count, block)
    rows = jnp.arange(count * block).reshape(count, block)
    matrix = jnp.asarray(operator.as_matrix())
    inside = (rows[:, :, None] < size) & (rows[:, None, :] < size)
    entries = matrix.at[rows[:, :, None], rows[:, None, :]].get(mode="clip")
    return jnp.where(inside, entries, jnp.eye(block, dtype=matrix.dtype))


def _sparse_diagonal_blocks(operator: SparseLinearOperator, count: int, block: int):
    row, col = operator.sparsity.row, operator.sparsity.col
    size = operator.in_size()
    number, in_row, in_col = row // block, row % block, col % block
    inside = (number == col // block) & (row < size) & (col < size)
    blocks = jnp.zeros((count, block, block), operator.data.dtype)
    place = jnp.where(inside, number, count), in_row, in_col
    blocks = blocks.at[place].add(operator.data, mode="drop")
    beyond = jnp.arange(size - (count - 1) * block, block)
    return blocks.at[-1, beyond, beyond].set(1)


def _inverses(blocks: Inexact[Array, "count block block"], definite: bool):
    return _definite_inverses(blocks) if definite else jnp.linalg.inv(blocks)


def _definite_inverses(blocks: Inexact[Array, "count block block"]):
    """L^-H L^-1, which is definite whatever rounding did to L."""
    factor = jnp.linalg.cholesky(blocks)
    identity = jnp.broadcast_to(
        jnp.eye(blocks.shape[-1], dtype=blocks.dtype), blocks.shape
    )
    inverse = jsl.solve_triangular(factor, identity, lower=True)
    return inverse.conj().mT @ inverse
