import abc

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact, Int

from .._operator import SparseLinearOperator
from .fill_pattern import in_steps, levels


class AbstractUnitTriangleInverse(eqx.Module):
    """An inverse of T = I + N, exact or not: unit triangular, as T is."""

    @abc.abstractmethod
    def __call__(self, vector: Inexact[Array, " n"]) -> Inexact[Array, " n"]:
        """Returns T^-1 v."""

    @abc.abstractmethod
    def transpose(self) -> "AbstractUnitTriangleInverse":
        """Returns the transpose of the map `__call__`."""


def unit_triangle_inverse(
    row: np.ndarray,
    col: np.ndarray,
    entries: Inexact[Array, " count"],
    size: int,
    sweeps: int | None,
) -> AbstractUnitTriangleInverse:
    """Of the entries N off the diagonal; `sweeps` as for `TruncatedSeries`, or exact."""
    if sweeps is not None:
        strict = SparseLinearOperator((entries, row, col, (size, size)))
        return TruncatedSeries(strict, sweeps)
    number = np.arange(row.size)
    level = levels(size, col, row)[row]
    table, target, source = in_steps(level, row.size, number, row, col)
    padding = table == row.size
    return Elimination(
        entries.at[table].get(mode="fill", fill_value=0),
        jnp.asarray(np.where(padding, 0, target)),
        jnp.asarray(np.where(padding, 0, source)),
    )


class TruncatedSeries(AbstractUnitTriangleInverse):
    """Σ_k≤sweeps (−N)^k: without steps that wait for one another."""

    strict: SparseLinearOperator
    sweeps: int = eqx.field(static=True)

    def __call__(self, vector: Inexact[Array, " n"]) -> Inexact[Array, " n"]:
        sweep = lambda _, partial: vector - self.strict.mv(partial)
        return lax.fori_loop(0, self.sweeps, sweep, vector)

    def transpose(self) -> "TruncatedSeries":
        return TruncatedSeries(self.strict.transpose(), self.sweeps)


class Elimination(AbstractUnitTriangleInverse):
    """The inverse of a triangular T = I + N of unit diagonal: v_i −= n_ij v_j, in steps.

    With N_s the entries of step s, whose rows depend on those of earlier steps alone,

        T^-1 = (I − N_S) ⋯ (I − N_1),   T^-T = (I − N_1^T) ⋯ (I − N_S^T),

    so that the same steps backwards, with `target` and `source` exchanged, are the
    transpose. Arrays of shape (steps, width), padded by zeros from and to entry 0.
    """

    entries: Inexact[Array, "steps width"]
    target: Int[Array, "steps width"]
    source: Int[Array, "steps width"]
    backwards: bool = eqx.field(static=True, default=False)

    def __call__(self, vector: Inexact[Array, " n"]) -> Inexact[Array, " n"]:
        def step(vector, update):
            entries, target, source = update
            change = entries * vector.at[source].get(mode="promise_in_bounds")
            return vector.at[target].add(-change, mode="promise_in_bounds"), None

        steps = self.entries, self.target, self.source
        vector, _ = lax.scan(step, vector, steps, reverse=self.backwards)
        return vector

    def transpose(self) -> "Elimination":
        return Elimination(self.entries, self.source, self.target, not self.backwards)
