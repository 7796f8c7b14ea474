"""Sparse matrices whose products compile quickly: rows padded to one length."""

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from .._base.axes import scan
from .._kernel.row_sums import AbstractRowSums, GroupedRowSums, take
from .._operator import SparseLinearOperator
from .._operator.sparsity import Sparsity


# Sums of more rows leave the cache from one slot to the next; their matrices are few.
_MOST_ROWS = 30_000
# The most slots for each entry.
_PADDING = 8


class PaddedRowSums(AbstractRowSums):
    """Sums over rows of one `width`: slot j holds the j-th entry of each row.

    On the CPU one slot after the other, in a loop, and elsewhere in one kernel: what XLA
    compiles does not grow with the width. The slots of `GroupedRowSums` are written out,
    to be one loop over the rows. That is what large matrices of short rows want; for
    16,854 rows of 15 entries it takes 0.4 s to compile, where this takes 0.04, and runs
    no faster.

    - `items`: which entry it is, past the last for padding.
    """

    items: Int[Array, "width rows"]
    cols: Int[Array, "width rows"]
    nse: int = eqx.field(static=True)

    def __call__(self, entries, vectors):
        # Of a matrix that stays, XLA moves these out of the loop of a Krylov solver.
        present = (self.items < self.nse)[:, :, None]
        slots = jnp.where(present, take(entries, self.items), 0)
        return lax.platform_dependent(
            slots, self.cols, vectors, cpu=_in_turn, default=_at_once
        )


def _in_turn(slots, cols, vectors):
    def add(total, slot):
        values, col = slot
        return total + values[:, :, None] * take(vectors, col), None

    total = jnp.zeros((cols.shape[1], *vectors.shape[1:]), slots.dtype)
    return scan(add, total, (slots, cols))[0]


def _at_once(slots, cols, vectors):
    return jnp.sum(slots[:, :, :, None] * take(vectors, cols), axis=0)


def padded_operator(matrix, dtype) -> SparseLinearOperator:
    """Returns a SciPy CSR matrix as an operator, for products alone."""
    rows, cols = matrix.shape
    row, col = np.repeat(np.arange(rows), np.diff(matrix.indptr)), matrix.indices
    sparsity = Sparsity(
        jnp.asarray(row, jnp.int32),
        jnp.asarray(col, jnp.int32),
        _row_sums(row, col, rows),
        _row_sums(col, row, cols),
        triangle=None,
        shape=(rows, cols),
        bandwidths=None,
        padded=False,
        full_diagonal=None,
        distinct=None,
        nonsingular=None,
    )
    return SparseLinearOperator((jnp.asarray(matrix.data, dtype), sparsity))


def _row_sums(row, col, rows: int) -> AbstractRowSums:
    nse = row.size
    lengths = np.bincount(row, minlength=rows)
    width = int(np.max(lengths, initial=0))
    if nse == 0 or rows > _MOST_ROWS or width * rows > _PADDING * nse:
        return GroupedRowSums(row, col, rows, nse, np.arange(nse))
    order = np.argsort(row, kind="stable")
    start = np.cumsum(lengths) - lengths
    slot = np.arange(width)[:, None]
    # Padding repeats the last entry, so that it reads memory that is in use.
    index = order[np.maximum(start + np.minimum(slot, lengths - 1), 0)]
    items = np.where(slot < lengths, index, nse)
    return PaddedRowSums(
        jnp.asarray(items, jnp.int32), jnp.asarray(col[index], jnp.int32), nse
    )
