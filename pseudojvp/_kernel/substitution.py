"""Substitution in sparse unit triangular systems, many entries at a time."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact, Int

from .._base.axes import scan


class Substitution(eqx.Module):
    """The inverse of a unit triangular T = I + N: v_i −= n_ij v_j, in steps.

    With N_s the entries of step s, whose rows depend on those of earlier steps alone,

        T^-1 = (I − N_S) ⋯ (I − N_1),   T^-T = (I − N_1^T) ⋯ (I − N_S^T),

    so that the same steps backwards, with `target` and `source` exchanged, are the
    transpose. Arrays of shape (steps, width), padded by zeros from and to entry 0.

    **Sources:** Anderson & Saad, *Solving sparse triangular linear systems on parallel
    computers*, Int. J. High Speed Computing 1 (1989).
    """

    entries: Inexact[Array, "steps width"]
    target: Int[Array, "steps width"]
    source: Int[Array, "steps width"]
    backwards: bool = eqx.field(static=True)

    def __call__(self, columns: Inexact[Array, "n *k"]) -> Inexact[Array, "n *k"]:
        """Returns T^-1 C."""
        if columns.size == 0:  # entry 0, which padding names, is not there
            return columns
        shape = (-1, *(1 for _ in columns.shape[1:]))

        def step(columns, update):
            entries, target, source = update
            read = columns.at[source].get(mode="promise_in_bounds")
            change = -entries.reshape(shape) * read
            return columns.at[target].add(change, mode="promise_in_bounds"), None

        steps = self.entries, self.target, self.source
        columns, _ = scan(step, columns, steps, reverse=self.backwards)
        return columns

    def transpose(self) -> "Substitution":
        return Substitution(self.entries, self.source, self.target, not self.backwards)


class TrianglePattern(eqx.Module):
    """Where the entries of N are, in the order in which substitution takes them.

    - `item`: which entry each is; past the last for padding.
    """

    item: Int[Array, "steps width"]
    target: Int[Array, "steps width"]
    source: Int[Array, "steps width"]
    backwards: bool = eqx.field(static=True)

    def substitution(self, entries: Inexact[Array, " nse"]) -> Substitution:
        entries = entries.at[self.item].get(mode="fill", fill_value=0)
        return Substitution(entries, self.target, self.source, self.backwards)

    def transpose(self) -> "TrianglePattern":
        return TrianglePattern(self.item, self.source, self.target, not self.backwards)


def create_triangle_pattern(row, col, size: int, kept, nse: int) -> TrianglePattern:
    """Of the entries number `kept` of `nse` at (`row`, `col`): NumPy arrays.

    All are on one side of the diagonal; those on it are left out.
    """
    beside = row != col
    item, row, col = kept[beside], row[beside], col[beside]
    upper = row.size > 0 and row[0] < col[0]
    flip = (lambda i: size - 1 - i) if upper else (lambda i: i)
    level = _levels(flip(row), flip(col), size)
    item, target, source = in_steps(level[flip(row)], nse, item, row, col)
    padding = item == nse
    return TrianglePattern(
        jnp.asarray(item),
        jnp.asarray(np.where(padding, 0, target)),
        jnp.asarray(np.where(padding, 0, source)),
        backwards=False,
    )


def _levels(row, col, size: int):
    """How many rows before it each row of a lower triangle waits for, in a chain."""
    ends = np.cumsum(np.bincount(row, minlength=size)).tolist()
    cols = col[np.argsort(row, kind="stable")].tolist()
    level = [0] * size
    start = 0
    for i, end in enumerate(ends):
        if start < end:
            level[i] = 1 + max([level[j] for j in cols[start:end]])
        start = end
    return np.array(level, int)


def in_steps(level, padding: int, *columns) -> list[np.ndarray]:
    """The columns as (steps, width) tables, by level; a step holds one level only."""
    order = np.argsort(level, kind="stable")
    counts = np.bincount(level)
    counts = counts[counts > 0]
    # About twice as many steps as levels, at most half of them padding.
    width = max(1, -(-level.size // max(counts.size, 1)))
    steps = -(-counts // width)
    slot = np.arange(level.size) - np.repeat(np.cumsum(counts) - counts, counts)
    slot += np.repeat((np.cumsum(steps) - steps) * width, counts)
    tables = []
    for column in columns:
        table = np.full(steps.sum() * width, padding, np.int32)
        table[slot] = column[order]
        tables.append(table.reshape(-1, width))
    return tables
