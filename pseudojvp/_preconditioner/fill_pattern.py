"""The pattern of a factorisation without fill, and the order its entries come in."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact, Int

from .._base.axes import scan
from .._kernel.substitution import in_steps


class Updates(eqx.Module):
    """c_target −= c_left c_right / c_pivot, in steps of which each reads none of its own.

    Index arrays of shape (steps, width); an index of `count` marks padding.
    """

    target: Int[Array, "steps width"]
    left: Int[Array, "steps width"]
    right: Int[Array, "steps width"]
    pivot: Int[Array, "steps width"]

    def __call__(
        self, entries: Inexact[Array, " count"], *, conjugate: bool
    ) -> Inexact[Array, " count"]:
        count = entries.size
        # Padding is 0 * 0 / 1.
        entries = jnp.concatenate([entries, jnp.array([0, 1], entries.dtype)])

        def step(entries, update):
            target, left, right, pivot = update
            read = lambda index: entries.at[index].get(mode="promise_in_bounds")
            factor = jnp.conj(read(right)) if conjugate else read(right)
            divisor = read(jnp.where(pivot == count, count + 1, pivot))
            # The attempt has failed at a zero, but makes no NaN.
            change = read(left) * factor / jnp.where(divisor == 0, 1, divisor)
            return entries.at[target].add(-change, mode="promise_in_bounds"), None

        steps = self.target, self.left, self.right, self.pivot
        entries, _ = scan(step, entries, steps)
        return entries[:count]


class FillPattern(eqx.Module):
    """Places of the entries, sorted by row and column, the diagonal among them.

    - `place`: for each entry of A its number here; `count` if it is not used.
    - `diagonal`: the numbers of the diagonal entries.
    """

    row: np.ndarray
    col: np.ndarray
    place: np.ndarray
    diagonal: np.ndarray
    updates: Updates
    size: int = eqx.field(static=True)


def lower_pattern(row: np.ndarray, col: np.ndarray, size: int) -> FillPattern:
    """Of the lower triangle, for c_ij = a_ij − Σ_k<j c_ik conj(c_jk) / c_kk."""
    used = (col <= row) & (row < size)
    key, place = _places(row, col, used, size)
    row, col = key // size, key % size
    strict = np.flatnonzero(row > col)
    # Each (i, k) with each (j, k) below the diagonal of its column, j ≤ i.
    by_column = strict[np.argsort(col[strict], kind="stable")]
    left, right = _joined(strict, col[strict], by_column, col[by_column], size)
    ordered = row[right] <= row[left]
    left, right = left[ordered], right[ordered]
    return _pattern(key, place, left, right, row[right], size)


def full_pattern(row: np.ndarray, col: np.ndarray, size: int) -> FillPattern:
    """Of all of A, for c_ij = a_ij − Σ_k<min(i,j) c_ik c_kj / c_kk."""
    used = (row < size) & (col < size)
    key, place = _places(row, col, used, size)
    row, col = key // size, key % size
    lower, upper = np.flatnonzero(row > col), np.flatnonzero(row < col)
    left, right = _joined(lower, col[lower], upper, row[upper], size)
    return _pattern(key, place, left, right, col[right], size)


def _places(row, col, used, size: int):
    """The sorted keys row * size + col with the diagonal, and where each entry went."""
    diagonal = np.arange(size, dtype=np.int64) * (size + 1)
    key = np.concatenate([row[used].astype(np.int64) * size + col[used], diagonal])
    key, inverse = np.unique(key, return_inverse=True)
    place = np.full(row.size, key.size)
    place[used] = inverse[: inverse.size - size]
    return key, place


def _joined(first, first_group, second, second_group, size: int):
    """All pairs of a member of `first` and one of `second` (sorted) of the same group."""
    counts = np.bincount(second_group, minlength=size)
    starts = np.cumsum(counts) - counts
    index, owner = _ranges(starts[first_group], counts[first_group])
    return first[owner], second[index]


def _ranges(starts, counts):
    """The numbers of the ranges one after the other, and which range each is of."""
    owner = np.repeat(np.arange(counts.size), counts)
    offset = np.arange(owner.size) - np.repeat(np.cumsum(counts) - counts, counts)
    return starts[owner] + offset, owner


def _pattern(key, place, left, right, target_col, size: int) -> FillPattern:
    row, col = key // size, key % size
    target_key = row[left] * size + target_col
    target = np.minimum(np.searchsorted(key, target_key), key.size - 1)
    within = key[target] == target_key  # or it would be fill
    left, right, target = left[within], right[within], target[within]
    diagonal = np.searchsorted(key, np.arange(size, dtype=np.int64) * (size + 1))
    pivot = diagonal[col[left]]
    level = levels(key.size, np.concatenate([left, right, pivot]), np.tile(target, 3))
    table = in_steps(level[target], key.size, target, left, right, pivot)
    updates = Updates(*map(jnp.asarray, table))
    return FillPattern(row, col, place, diagonal, updates, size)


def levels(count: int, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The length of the longest path of edges `before` → `after` to each of `count`."""
    order = np.argsort(before, kind="stable")
    after = after[order]
    out_degree = np.bincount(before, minlength=count)
    start = np.cumsum(out_degree) - out_degree
    waiting = np.bincount(after, minlength=count)
    level = np.zeros(count, int)
    ready = np.flatnonzero(waiting == 0)
    number = 0
    while ready.size:
        level[ready] = number
        edges, _ = _ranges(start[ready], out_degree[ready])
        reached, times = np.unique(after[edges], return_counts=True)
        waiting[reached] -= times
        ready = reached[waiting[reached] == 0]
        number += 1
    return level
