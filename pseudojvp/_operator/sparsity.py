"""Where the entries of a sparse matrix are, sorted for all three faces of its product."""

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from .._base.optional import import_late
from .._kernel.row_sums import AbstractRowSums, GroupedRowSums, SegmentRowSums
from .._kernel.substitution import create_triangle_pattern, TrianglePattern


class Sparsity(eqx.Module):
    """The positions of `nse` entries, in the order in which they were given.

    Entries may be in any order, and several in one place: these add up. An entry whose
    `row` is `shape[0]` (and then its `col` is `shape[1]`) is padding, in no place.

    - `by_row`, `by_col`: what sums the entries of each row, and of each column.
    - `bandwidths`: the number of subdiagonals and of superdiagonals with an entry;
        `None` if the pattern is traced.
    - `padded`: whether an entry is or may be padding.
    - `full_diagonal`: whether each entry of the diagonal is stored; `None` if traced.
    - `distinct`: whether no entry is padding or in the place of another; `None` if
        traced.
    - `nonsingular`: whether a permutation of the columns, of a square matrix, has a full
        diagonal; `None` if traced.
    - `triangle`: for substitution in a square triangular matrix; `None` if the pattern
        is another, or traced.
    """

    row: Int[Array, " nse"]
    col: Int[Array, " nse"]
    by_row: AbstractRowSums
    by_col: AbstractRowSums
    triangle: TrianglePattern | None
    shape: tuple[int, int] = eqx.field(static=True)
    bandwidths: tuple[int, int] | None = eqx.field(static=True)
    padded: bool = eqx.field(static=True)
    full_diagonal: bool | None = eqx.field(static=True)
    distinct: bool | None = eqx.field(static=True)
    nonsingular: bool | None = eqx.field(static=True)

    @property
    def nse(self) -> int:
        return self.row.shape[0]

    def transpose(self) -> "Sparsity":
        swap = lambda pair: None if pair is None else (pair[1], pair[0])
        return Sparsity(
            self.col,
            self.row,
            self.by_col,
            self.by_row,
            None if self.triangle is None else self.triangle.transpose(),
            (self.shape[1], self.shape[0]),
            swap(self.bandwidths),
            self.padded,
            self.full_diagonal,
            self.distinct,
            self.nonsingular,
        )


def create_sparsity(
    row, col, shape: tuple[int, int], *, allow_padding: bool
) -> tuple[Sparsity, Bool[Array, ""] | None]:
    """Returns the pattern and, if it is traced, whether all indices are within range.

    Known indices out of range are a `ValueError`. With `allow_padding`, an index equal to
    the dimension is none: the entry is padding.
    """
    if isinstance(row, jax.core.Tracer) or isinstance(col, jax.core.Tracer):
        return _traced(jnp.asarray(row), jnp.asarray(col), shape, allow_padding)
    row, col = np.asarray(row, np.int64), np.asarray(col, np.int64)
    for name, index, size in (("row", row, shape[0]), ("col", col, shape[1])):
        wrong = (index < 0) | (index > size if allow_padding else index >= size)
        if wrong.any():
            raise ValueError(
                f"`SparseLinearOperator` got the {name} index {index[wrong][0]}, for a "
                f"matrix of shape {shape}. Pass indices from 0 to {size - 1}"
                + (f", or {size} for padding." if allow_padding else ".")
            )
    nse = row.size
    present = (row < shape[0]) & (col < shape[1])
    row, col = np.where(present, row, shape[0]), np.where(present, col, shape[1])
    kept = np.flatnonzero(present)
    kept_row, kept_col = row[kept], col[kept]
    below = kept_row - kept_col
    bandwidths = int(np.max(below, initial=0)), int(np.max(-below, initial=0))
    full_diagonal = np.unique(kept_row[below == 0]).size == min(shape)
    positions = np.unique(kept_row * np.int64(shape[1]) + kept_col)
    square = shape[0] == shape[1]
    triangle = None
    # What is known stays known under `jax.jit`.
    with jax.ensure_compile_time_eval():
        if square and 0 in bandwidths:
            triangle = create_triangle_pattern(kept_row, kept_col, shape[0], kept, nse)
        sparsity = Sparsity(
            jnp.asarray(row, jnp.int32),
            jnp.asarray(col, jnp.int32),
            GroupedRowSums(kept_row, kept_col, shape[0], nse, kept),
            GroupedRowSums(kept_col, kept_row, shape[1], nse, kept),
            triangle,
            shape,
            bandwidths,
            padded=kept.size < nse,
            full_diagonal=full_diagonal,
            distinct=positions.size == nse,
            nonsingular=square
            and (full_diagonal or _full_rank(kept_row, kept_col, shape)),
        )
    return sparsity, None


def _full_rank(row, col, shape: tuple[int, int]) -> bool:
    """Whether any choice of the entries has full rank."""
    # It takes 0.2 s to import.
    sparse, csgraph = map(import_late, ("scipy.sparse", "scipy.sparse.csgraph"))
    pattern = sparse.csr_array((np.ones(row.size), (row, col)), shape)
    return bool(csgraph.structural_rank(pattern) == min(shape))


def _traced(row, col, shape, allow_padding: bool):
    at_most = shape if allow_padding else (shape[0] - 1, shape[1] - 1)
    valid = jnp.all((row >= 0) & (col >= 0) & (row <= at_most[0]) & (col <= at_most[1]))
    present = (row >= 0) & (col >= 0) & (row < shape[0]) & (col < shape[1])
    row = jnp.where(present, row, shape[0]).astype(jnp.int32)
    col = jnp.where(present, col, shape[1]).astype(jnp.int32)
    by_row, by_col = jnp.argsort(row, stable=True), jnp.argsort(col, stable=True)
    sparsity = Sparsity(
        row,
        col,
        SegmentRowSums(by_row, row[by_row], col[by_row], shape[0]),
        SegmentRowSums(by_col, col[by_col], row[by_col], shape[1]),
        None,
        shape,
        None,
        padded=True,
        full_diagonal=None,
        distinct=None,
        nonsingular=None,
    )
    return sparsity, valid
