import equinox as eqx
from jaxtyping import Array, Inexact

from .._base.axes import fori_loop
from .._operator import SparseLinearOperator


class TruncatedSeries(eqx.Module):
    """Σ_k≤sweeps (−N)^k near (I + N)^-1: without steps that wait for one another."""

    strict: SparseLinearOperator  # N
    sweeps: int = eqx.field(static=True)

    def __call__(self, vector: Inexact[Array, " n"]) -> Inexact[Array, " n"]:
        sweep = lambda _, partial: vector - self.strict.mv(partial)
        return fori_loop(0, self.sweeps, sweep, vector)

    def transpose(self) -> "TruncatedSeries":
        return TruncatedSeries(self.strict.transpose(), self.sweeps)
