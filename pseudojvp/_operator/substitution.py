"""Forward substitution in a sparse triangular matrix, many rows at a time."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact, Int

from .row_sums import take


# A row with more entries is summed in pieces, each an unknown of its own.
_LONGEST = 16
# What one more step of the loop costs, in entries.
_STEP_COST = 1500


class Substitution(eqx.Module):
    """The solution of a triangular system whose pattern is known, level by level.

    Row i depends on the rows of its entries. Rows that depend on none are level 0; those
    that depend on level 0 alone are level 1; and so on. The rows of a level are solved
    at once, in steps of a fixed number of rows, in a loop: as many steps as there are
    levels, or more. Unknowns are stored in the order in which they are found.

    - `entries`: which entry each coefficient is; `nse` is −1, `nse + 1` zero.
    - `unknowns`: where the unknown is that it multiplies.
    - `row_of`: the row of each unknown; `rows` for pieces of rows, and for none.
    - `position`: where the unknown of each row is.

    **Sources:** Anderson & Saad, *Solving sparse triangular linear systems on parallel
    computers*, Int. J. High Speed Computing 1 (1989).
    """

    entries: Int[Array, "steps width block"]
    unknowns: Int[Array, "steps width block"]
    row_of: Int[Array, "steps block"]
    position: Int[Array, " rows"]

    def __init__(self, row, col, rows: int, kept, nse: int, *, lower: bool):
        """Takes the entries number `kept` of `nse` at (`row`, `col`): NumPy arrays."""
        beside = row != col
        item, row, col = kept[beside], row[beside], col[beside]
        flip = (lambda i: i) if lower else (lambda i: rows - 1 - i)
        item, row, col, owner = _split(item, flip(row), flip(col), rows, nse)
        level = _levels(row, col, owner, rows)
        block = _best_block(np.bincount(level), row)
        slot = _slots(level, block)
        steps = int(np.max(slot, initial=-1)) // block + 1
        width = int(np.max(np.bincount(row), initial=0))

        order = np.argsort(row, kind="stable")
        item, row, col = item[order], row[order], col[order]
        number = np.arange(row.size) - np.searchsorted(row, row)
        place = slot[row] // block, number, slot[row] % block
        entries = np.full((steps, width, block), nse + 1)
        entries[place] = item
        unknowns = np.zeros((steps, width, block), int)
        unknowns[place] = slot[col]
        row_of = np.full(steps * block, rows)
        row_of[slot[:rows]] = flip(np.arange(rows))
        self.entries = jnp.asarray(entries, jnp.int32)
        self.unknowns = jnp.asarray(unknowns, jnp.int32)
        self.row_of = jnp.asarray(row_of.reshape(steps, block), jnp.int32)
        self.position = jnp.asarray(slot[flip(np.arange(rows))], jnp.int32)

    def __call__(
        self,
        data: Inexact[Array, " nse"],
        diagonal: Inexact[Array, " rows"],
        columns: Inexact[Array, "rows k"],
    ) -> Inexact[Array, "rows k"]:
        steps, width, block = self.entries.shape
        k = columns.shape[1]
        if steps == 0:
            return columns
        one_zero = jnp.array([-1, 0], data.dtype)
        coefficients = take(jnp.concatenate([data, one_zero]), self.entries)
        rhs = jnp.concatenate([columns, jnp.zeros((1, k), columns.dtype)])
        pivots = jnp.concatenate([diagonal, jnp.ones(1, diagonal.dtype)])
        present = (self.entries != data.size + 1)[..., None]

        def step(found, inputs):
            start, coefficients, unknowns, present, rhs, pivots = inputs
            for j in range(width):
                term = coefficients[j][:, None] * take(found, unknowns[j])
                rhs = rhs - jnp.where(present[j], term, 0)
            solved = rhs / pivots[:, None]
            return jax.lax.dynamic_update_slice_in_dim(found, solved, start, 0), None

        found = jnp.zeros((steps * block, k), columns.dtype)
        starts = block * jnp.arange(steps, dtype=jnp.int32)
        by_step = (
            starts,
            coefficients,
            self.unknowns,
            present,
            take(rhs, self.row_of),
            take(pivots, self.row_of),
        )
        found, _ = jax.lax.scan(step, found, by_step)
        return take(found, self.position)


def _split(item, row, col, rows: int, nse: int):
    """The entries with no row of more than `_LONGEST`, and the row each unknown is of.

    A piece of a row is an unknown: minus its sum, which the row has with coefficient −1.
    """
    owners = [np.arange(rows)]
    unknowns = rows
    while True:
        order = np.argsort(row, kind="stable")
        item, row, col = item[order], row[order], col[order]
        number = np.arange(row.size) - np.searchsorted(row, row)
        long = np.bincount(row, minlength=unknowns)[row] > _LONGEST
        if not long.any():
            return item, row, col, np.concatenate(owners)
        first = long & (number % _LONGEST == 0)  # of each piece
        piece = unknowns + np.cumsum(first)[long] - 1
        whole, pieces = row[first], np.arange(unknowns, unknowns + np.sum(first))
        row[long] = piece
        row = np.concatenate([row, whole])
        col = np.concatenate([col, pieces])
        item = np.concatenate([item, np.full(pieces.size, nse)])
        owners.append(np.concatenate(owners)[whole])
        unknowns += pieces.size


def _levels(row, col, owner, rows: int):
    """The level of each unknown. Pieces come before the row they are of."""
    unknowns = owner.size
    rank = np.arange(unknowns)
    rank[:rows] = unknowns
    order = np.lexsort((rank, owner))
    ends = np.cumsum(np.bincount(row, minlength=unknowns)).tolist()
    cols = col[np.argsort(row, kind="stable")].tolist()
    level = [0] * unknowns
    for unknown in order.tolist():
        start = ends[unknown - 1] if unknown else 0
        needed = cols[start : ends[unknown]]
        if needed:
            level[unknown] = 1 + max([level[other] for other in needed])
    return np.array(level, int)


def _best_block(sizes, row) -> int:
    """The rows of a step that make the cheapest loop for levels of these sizes."""
    width = int(np.max(np.bincount(row), initial=0)) + 1
    blocks = 2 ** np.arange(int(np.max(sizes, initial=1)).bit_length() + 1)
    costs = [
        np.sum(-(-sizes // block)) * (_STEP_COST + width * block) for block in blocks
    ]
    return int(blocks[np.argmin(costs)])


def _slots(level, block: int):
    """Where each unknown is stored: level by level, each in whole steps."""
    sizes = np.bincount(level)
    steps = -(-sizes // block)
    start = block * (np.cumsum(steps) - steps)
    order = np.argsort(level, kind="stable")
    slot = np.empty(level.size, int)
    number = np.arange(level.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    slot[order] = start[level[order]] + number
    return slot
