"""Sums of entries by row, for sparse products: two ways, each with its index arrays."""

import abc
import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact, Int

from .._base.axes import while_loop


# A row longer than this is summed in pieces, and then the sums of its pieces.
_LONGEST = 32
# Places that sums of long rows on the CPU take their entries from in turn.
_STREAMS = 4
# What one more group of rows costs, in entries: a loop of its own, and its compilation.
_GROUP_COST = 60_000


class AbstractRowSums(eqx.Module):
    """The map (a, v) ↦ u of one sparsity pattern: u_i = Σ a_e v_col(e) over row i."""

    @abc.abstractmethod
    def __call__(
        self, entries: Inexact[Array, "nse b"], vectors: Inexact[Array, "cols b k"]
    ) -> Inexact[Array, "rows b k"]:
        """Returns the sums; `b` operators, each with `k` vectors."""


class SegmentRowSums(AbstractRowSums):
    """By `segment_sum`.

    - `order`: which entry each is. `row` of an entry that is left out is `rows`.
    - `in_turn`: whether they are from several places in turn, instead of by rows.
    """

    order: Int[Array, " nse"]
    row: Int[Array, " nse"]
    col: Int[Array, " nse"]
    rows: int = eqx.field(static=True)
    in_turn: bool = eqx.field(static=True, default=False)

    def __call__(self, entries, vectors):
        if vectors.shape[0] == 0 or entries.shape[0] == 0:
            shape = (self.rows, *entries.shape[1:], vectors.shape[-1])
            return jnp.zeros(shape, entries.dtype)
        indices = self.order, self.row, self.col
        sums = ft.partial(self._sums, entries, vectors)
        if not self.in_turn:
            return sums(*indices, is_sorted=True)
        return jax.lax.platform_dependent(
            *indices,
            cpu=ft.partial(sums, is_sorted=False),
            default=lambda *indices: sums(*map(by_rows, indices), is_sorted=True),
        )

    def _sums(self, entries, vectors, order, row, col, *, is_sorted: bool):
        terms = take(entries, order)[:, :, None] * take(vectors, col)
        return jax.ops.segment_sum(terms, row, self.rows, indices_are_sorted=is_sorted)


class _Group(eqx.Module):
    """Rows of at most `width` items: slot j holds the j-th item of each row.

    XLA makes one loop over the rows of all slots, without memory in between.
    """

    items: Int[Array, "width rows"]
    cols: Int[Array, "width rows"] | None
    padding: int | None = eqx.field(static=True)

    def sums(self, values, vectors):
        terms = [self._slot(slot, values, vectors) for slot in range(len(self.items))]
        return sum(terms[1:], terms[0])

    def _slot(self, slot, values, vectors):
        index = self.items[slot]
        term = take(values, index)
        if self.cols is not None:
            term = term[:, :, None] * take(vectors, self.cols[slot])
        if self.padding is None:
            return term
        present = (index < self.padding)[:, None, None]
        # After the product, so that an Inf in the vector is no NaN in rows without it.
        return jnp.where(present, term, 0)


class GroupedRowSums(AbstractRowSums):
    """For a pattern that is known when it is built: gathers only, no scatter.

    Rows of similar length form a group, padded to the longest; rows of much more than
    the others are summed in pieces. One vector at a time is summed by `segment_sum`
    where there is more than one group.

    Measured on two CPU cores, with 100,000 rows, 500,000 entries and one vector or 16,
    in units of SciPy's time. 5-point stencil, one group: 1.6 and 0.7 (0.7 and 0.7 in a
    loop, out of which XLA moves the gather of the entries); a sorted `segment_sum` 2 and
    11, BCOO 3.3 and 12, BCSR 8.7 and 1.6, a gather of shape (rows, width) with a sum
    over one axis 3.3 and 12. Entries anywhere, four groups: 2.1 and 0.7 in groups, 1 and
    6 by `segment_sum`. Row lengths of a power law: 2.6 by a sorted `segment_sum`, 1.6
    from several places in turn, and for 16 vectors 1 in groups.

    - `levels`: groups that sum entries, then groups that sum pieces of long rows.
    - `position`: where in the last level's groups each row is; `None` if in order.
    """

    levels: tuple[tuple[_Group, ...], ...]
    position: Int[Array, " rows"] | None
    single: SegmentRowSums | None
    rows: int = eqx.field(static=True)
    summed: int = eqx.field(static=True)

    def __init__(self, row, col, rows: int, nse: int, kept):
        """Sums the entries number `kept` of `nse`, in (`row`, `col`): NumPy arrays."""
        order = np.argsort(row, kind="stable")
        lengths = np.bincount(row, minlength=rows)
        items, columns, padding = kept[order], col[order], nse
        arrays = items, row[order], columns
        levels = []
        while True:
            groups, position, pieces = _group(lengths, items, columns, padding)
            levels.append(groups)
            if np.all(pieces <= 1):
                break
            lengths, items, columns, padding = pieces, position, None, position.size
        empty = pieces == 0
        where = np.full(rows, position.size)
        where[~empty] = position
        in_order = not empty.any() and np.array_equal(where, np.arange(rows))
        self.levels = tuple(levels)
        self.position = None if in_order else jnp.asarray(where, jnp.int32)
        self.single = None
        if len(levels) > 1 or len(levels[0]) > 1:
            long = len(levels) > 1
            if long:
                arrays = map(in_turn, arrays, (0, rows, 0))
            item, row, col = (jnp.asarray(array, jnp.int32) for array in arrays)
            self.single = SegmentRowSums(item, row, col, rows, long)
        self.rows = rows
        self.summed = position.size

    def __call__(self, entries, vectors):
        shape = (*entries.shape[1:], vectors.shape[-1])
        if self.single is not None and shape == (1, 1):
            return self.single(entries, vectors)
        if not self.levels[0]:
            return jnp.zeros((self.rows, *shape), entries.dtype)
        values = entries
        for groups in self.levels:
            sums = [group.sums(values, vectors) for group in groups]
            values = sums[0] if len(sums) == 1 else jnp.concatenate(sums)
            values = _computed_once(values, jnp.minimum(groups[0].items[0, 0], 0))
        if self.position is None:
            return values
        values_of_rows = take(values, self.position)
        if self.summed == self.rows:
            return values_of_rows
        present = (self.position < self.summed)[:, None, None]
        return jnp.where(present, values_of_rows, 0)


def take(array, index):
    """`array[index]`; clamped, for padding."""
    return array.at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)


def _computed_once(array, zero):
    """`array`, in memory: XLA on the CPU merges a sum into the gathers that read it.

    Each sum would then be computed as often as it is read: A^T (A v) took eight times as
    long. A loop of no steps stands between, since it ignores `optimization_barrier`.
    """

    def loop(array, zero):
        going = lambda state: state[0] < zero
        body = lambda state: (state[0] + 1, -state[1])
        return while_loop(going, body, (jnp.zeros_like(zero), array))[1]

    return jax.lax.platform_dependent(
        array, zero, cpu=loop, default=lambda array, _: array
    )


def in_turn(array, padding: int):
    """An array in the order of the rows, from several places in turn.

    On the CPU a sum into the same row as the last waits for that one.
    """
    padded = np.pad(array, (0, -array.size % _STREAMS), constant_values=padding)
    return padded.reshape(_STREAMS, -1).T.reshape(-1)


def by_rows(array: Int[Array, " nse"]) -> Int[Array, " nse"]:
    """What was put in turn, in the order of the rows again."""
    return array.reshape(-1, _STREAMS).T.reshape(-1)


def _group(lengths, items, columns, padding):
    """One level: (its groups, where in them each piece is, the number of pieces a row).

    `items` are sorted by row, `lengths` of them in each.
    """
    pieces = -(-lengths // _LONGEST)
    row = np.repeat(np.arange(lengths.size), pieces)
    number = np.arange(row.size) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    start = (np.cumsum(lengths) - lengths)[row] + number * _LONGEST
    length = np.minimum(lengths[row] - number * _LONGEST, _LONGEST)
    groups, members = [], []
    shorter = 0
    for width in _widths(length):
        member = np.flatnonzero((shorter < length) & (length <= width))
        slot = np.arange(width)[:, None]
        present = slot < length[member]
        # Padding repeats the last item, so that it reads memory that is in use.
        index = start[member] + np.minimum(slot, length[member] - 1)
        groups.append(
            _Group(
                jnp.asarray(np.where(present, items[index], padding), jnp.int32),
                None if columns is None else jnp.asarray(columns[index], jnp.int32),
                None if present.all() else padding,
            )
        )
        members.append(member)
        shorter = width
    position = np.empty(row.size, int)
    if members:
        position[np.concatenate(members)] = np.arange(row.size)
    return tuple(groups), position, pieces


def _widths(lengths) -> list[int]:
    """The widths of groups that make the cheapest sums of rows of these lengths."""
    distinct, counts = np.unique(lengths, return_counts=True)
    best = [(0, [])]  # of the shortest rows: cost, widths
    for last in range(distinct.size):
        width = int(distinct[last])
        candidates = [
            (
                best[first][0]
                + _GROUP_COST
                + width * int(counts[first : last + 1].sum()),
                [*best[first][1], width],
            )
            for first in range(last + 1)
        ]
        best.append(min(candidates))
    return best[-1][1]
