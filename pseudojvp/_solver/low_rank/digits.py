"""Whether a determinant by parts, and its derivatives, have the digits of the sum.

With K = I + C Vᴴ A⁻¹U the sum M = A + U C Vᴴ has det M = det A det K. To first order an
error eps E of K moves log det K by eps tr(K⁻¹E), and K⁻¹ by eps K⁻¹E K⁻¹. What that is of
the determinant, and of M⁻¹, is compared with what rounding of the parts moves there. Sums
are root mean squares, as of independent errors, and indifferent to the units of rows and
columns.
"""

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Bool, Inexact, Real

from ..._base.order import after_in_batch
from ..._kernel.products import matmul
from ..._operator import LowRankUpdate
from ..direct.lu import LU


# The largest error of the value and of its first and second derivative, as a power of
# eps: 4e-10, 1.5e-8 and 1.3e-6 in float64. Estimates of the last two are ten times what
# is seen, and of the first a tenth.
_VALUE = 0.6
_FIRST = 0.5
_SECOND = 0.375
_OF_PARTS = 1e3  # or this many times what rounding of the parts moves
_MOVE = 16.0  # roundings by which K is moved, so that it is not singular


class Rounding(eqx.Module):
    """What the rounding of K = I + C Vᴴ A⁻¹U comes to.

    - `solved`: A⁻¹U.
    - `spread`: E, an error of K in eps.
    - `inverse`: K⁻¹, of a K moved within its error.
    """

    update: LowRankUpdate
    solved: Inexact[Array, "n k"]
    spread: Real[Array, "k k"]
    inverse: Inexact[Array, "k k"]

    @classmethod
    def of(
        cls,
        update: LowRankUpdate,
        solved: Inexact[Array, "n k"],
        earlier: Array | None = None,
    ) -> "Rounding":
        """A LAPACK call waits for `earlier`, if that is a batch."""
        sizes = jnp.abs(solved)
        product = _rms(jnp.abs(update.core()), _rms(jnp.abs(update.right).T, sizes))
        spread = jnp.eye(update.rank, dtype=sizes.dtype) + product
        noise = np.random.default_rng(0).standard_normal(spread.shape)
        move = _MOVE * jnp.finfo(spread.dtype).eps * spread * noise.astype(spread.dtype)
        moved = capacitance(update, solved) + move.astype(solved.dtype)
        moved = moved if earlier is None else after_in_batch(earlier, moved)
        factors = LU().factorise(lx.MatrixLinearOperator(moved))
        identity = jnp.eye(update.rank, dtype=solved.dtype)
        inverse = LU().solve_columns(factors, identity, transposed=False)
        return cls(update, solved, spread, inverse)

    def keeps_value(self, error: Inexact[Array, "n k"] | None = None) -> Bool[Array, ""]:
        """Whether det K has digits, or the parts themselves leave it none.

        `error` is that of `solved`, in eps, beside its own rounding.
        """
        lost = _norm(jnp.abs(self.inverse).T * self.spread)
        if error is not None:
            moved = matmul(self.inverse, self._times_right(error))
            lost = jnp.hypot(lost, _norm(jnp.abs(jnp.diagonal(moved))))
        weights = matmul(self.inverse, self.update.core())
        right, left = self.update.right, matmul(self.solved, weights)
        of_parts = _norm(jnp.abs(right) * jnp.abs(left))
        return lost <= _power(lost, _VALUE - 1) + _OF_PARTS * of_parts

    def keeps_diagonal(self) -> Bool[Array, ""]:
        """Whether the diagonal of M⁻¹ has digits, made of a diagonal A⁻¹ and the rest.

        In units of A⁻¹ it is 1 − s, by row.
        """
        left = matmul(self.solved, self.inverse)  # M⁻¹U
        right = matmul(self.update.core(), self.update.right.conj().T)  # C Vᴴ
        after = matmul(self.inverse, right).T
        error = _rms(_rms(jnp.abs(left), self.spread), jnp.abs(self.inverse))
        error = jnp.sqrt(jnp.sum((error * jnp.abs(right).T) ** 2, axis=1))
        of_sum = jnp.abs(1 - jnp.sum(self.solved * after, axis=1))
        of_parts = jnp.sum(jnp.abs(left) * jnp.abs(after), axis=1)
        return _kept(of_sum, 1 + error, of_parts)

    def keeps_rows(
        self,
        error: Inexact[Array, "n k"],
        probes: Inexact[Array, "n p"],
        error_of_probes: Inexact[Array, "n p"],
    ) -> Bool[Array, ""]:
        """Whether M⁻¹ G, made of A⁻¹ G, has digits in each row.

        `probes` is A⁻¹ G of a few columns G; errors are in eps.
        """
        left = matmul(self.solved, self.inverse)
        right = self._times_right(probes)
        after = matmul(self.inverse, right)
        of_sum = probes - matmul(self.solved, after)
        lost = _rms(_rms(jnp.abs(left), self.spread), jnp.abs(self.inverse))
        lost = _rms(lost, jnp.abs(right))
        # What is wrong with A⁻¹ is so before the difference: M⁻¹A times that.
        of_solved, of_probes = (
            jnp.abs(e - matmul(left, self._times_right(e)))
            for e in (error, error_of_probes)
        )
        lost = jnp.hypot(lost, jnp.hypot(_rms(of_solved, jnp.abs(after)), of_probes))
        of_parts = _rms(jnp.abs(left), jnp.abs(after))
        unit = jnp.max(jnp.abs(probes), axis=1, initial=0)
        rows = (jnp.abs(of_sum), lost, of_parts)
        of_sum, lost, of_parts = (_norm(row / unit[:, None], axis=1) for row in rows)
        return _kept(of_sum, 1 + lost, of_parts)

    def _times_right(self, columns: Inexact[Array, "n p"]) -> Inexact[Array, "k p"]:
        """C Vᴴ of the columns."""
        return matmul(self.update.core(), matmul(self.update.right.conj().T, columns))


def capacitance(
    update: LowRankUpdate, solved: Inexact[Array, "n k"]
) -> Inexact[Array, "k k"]:
    """I + C Vᴴ A⁻¹U, and not C⁻¹ + Vᴴ A⁻¹U, for a C that is singular."""
    core = update.core()
    product = matmul(core, matmul(update.right.conj().T, solved))
    return product + jnp.eye(update.rank, dtype=core.dtype)


def _kept(
    of_sum: Real[Array, " n"], error: Real[Array, " n"], of_parts: Real[Array, " n"]
) -> Bool[Array, ""]:
    """Whether M⁻¹ and its square have digits, in units of A⁻¹; of NaN not."""
    of_parts = _OF_PARTS * of_parts
    first = _power(error, _FIRST - 1) * of_sum + of_parts
    second = _power(error, _SECOND - 1) * of_sum**2
    second = second + of_parts * jnp.minimum(of_parts / _OF_PARTS, 1)
    return jnp.all((error <= first) & (error <= second))


def _power(like: Array, power: float) -> float:
    return float(jnp.finfo(like.dtype).eps) ** power


def _norm(array: Real[Array, "..."], axis: int | None = None) -> Real[Array, "..."]:
    return jnp.sqrt(jnp.sum(array**2, axis=axis))


def _rms(
    left: Real[Array, "rows inner"], right: Real[Array, "inner cols"]
) -> Real[Array, "rows cols"]:
    """√Σ |l|² |r|², without over- or underflow of the squares."""
    rows = jnp.max(left, axis=1, keepdims=True, initial=0)
    cols = jnp.max(right, axis=0, keepdims=True, initial=0)
    rows, cols = (jnp.where(size > 0, size, 1) for size in (rows, cols))
    return rows * jnp.sqrt(matmul((left / rows) ** 2, (right / cols) ** 2)) * cols
