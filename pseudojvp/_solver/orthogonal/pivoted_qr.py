from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import lineax as lx
from jaxtyping import Array, ArrayLike, Inexact, Integer, PyTree, Real

from ..._base.checks import check_options
from ..._base.order import after_in_batch
from ..._base.tree import one_or_nan
from ..._kernel.blocked_householder import BlockReflectors, orthogonal_factor
from ..._kernel.condition import (
    reciprocal_condition,
    resolve_rcond,
)
from ..._kernel.determinant import of_product, sign_of
from ..._kernel.householder import Reflectors
from ..._kernel.norms import power_of_two
from ..._kernel.pivoting import pivoted_columns
from ..._kernel.products import adjoint_matmul, matmul
from ..._operator.matrix import rounding_of_rank
from ..factorisation import AbstractFactorisation, Slogdet
from ..state import conjugated, long_side_first, structures_of, transposed
from .blocks import blocks_for, check_blocks


class PivotedQRState(eqx.Module):
    """A = Q T Z^H if A is tall or square, A^H = Q T Z^H if it is wide.

    The columns of Q and Z beyond the rank are zero; there T^H, upper triangular, is a
    multiple of the identity. Q = Q₀ Q₁, where the orthonormal Q₀ takes A to its short
    side; there is none if A is square.
    """

    outer: Reflectors | BlockReflectors | None
    inner: Inexact[Array, "short short"]
    t_adjoint: Inexact[Array, "short short"]
    z: Inexact[Array, "short short"]
    rank: Integer[Array, ""]
    reciprocal_condition: Real[Array, ""]
    wide: eqxi.Static
    structures: eqxi.Static

    def q_mv(self, c: Inexact[Array, " k"]) -> Inexact[Array, " rows"]:
        return matmul(self.z, c) if self.wide.value else self._long_mv(c)

    def qh_mv(self, vector: Inexact[Array, " rows"]) -> Inexact[Array, " k"]:
        if self.wide.value:
            return adjoint_matmul(self.z, vector)
        return self._long_h_mv(vector)

    def solve(self, c: Inexact[Array, " k"]) -> Inexact[Array, " cols"]:
        """Z T⁻¹ c."""
        return self._z_mv(self._t_solve(c, adjoint=False))

    def adjoint_solve(self, vector: Inexact[Array, " cols"]) -> Inexact[Array, " k"]:
        """T⁻ᴴ Zᴴ w."""
        return self._t_solve(self._zh_mv(vector), adjoint=True)

    def project(self, vector: Inexact[Array, " cols"]) -> Inexact[Array, " cols"]:
        """Z Zᴴ y."""
        return self._z_mv(self._zh_mv(vector))

    def _z_mv(self, c):
        return self._long_mv(c) if self.wide.value else matmul(self.z, c)

    def _zh_mv(self, vector):
        if self.wide.value:
            return self._long_h_mv(vector)
        return adjoint_matmul(self.z, vector)

    def _t_solve(self, c, *, adjoint: bool):
        c = after_in_batch(self.reciprocal_condition, c)
        trans = "N" if adjoint != self.wide.value else "C"
        return jsl.solve_triangular(self.t_adjoint, c, trans=trans)

    def _long_mv(self, c):
        vector = matmul(self.inner, c)
        return vector if self.outer is None else self.outer.mv(vector)

    def _long_h_mv(self, vector):
        if self.outer is not None:
            vector = self.outer.adjoint_mv(vector)
        return adjoint_matmul(self.inner, vector)


def _largest_singular_value(
    matrix: Inexact[Array, "n n"], left: Inexact[Array, "n _"]
) -> Real[Array, ""]:
    """An estimate from below, by power steps from the direction of the first pivot; that
    of the largest column is one."""
    for _ in range(2):
        right = matmul(matrix.conj().T, left)
        left = matmul(matrix, right)
    size = jnp.linalg.norm(left)
    largest = jnp.linalg.norm(matmul(matrix.conj().T, left)) / jnp.where(
        size > 0, size, 1
    )
    return jnp.maximum(largest, 1)


class PivotedQR(AbstractFactorisation[PivotedQRState]):
    """Returns the pseudoinverse solution A†b of any system by a pivoted QR factorisation.

    Any shape and any rank. The factors are those of a complete orthogonal decomposition A
    = Q T Z^H with a triangular T, computed by a QR factorisation with column pivoting, at
    a fraction of the cost of [`pseudojvp.SVD`][].

    `stats["rank"]` is the number of diagonal entries of the pivoted R that are larger
    than `rcond` times an estimate of the largest singular value. If the singular values
    decay without a gap, it may differ from that of `SVD(rcond)` by a few. For rare
    matrices (Kahan's) pivoting does not reveal the rank, and the smallest singular value
    of T is far below the cutoff; that value is estimated, and the result is then
    `RESULTS.singular`.

    Takes no `options`. Real and complex. Cost, for m the long side and n the short one:
    one QR factorisation of A, 2mn² flops, if A is not square; two of an n × n matrix with
    their Q; and a product of two. Then one application of the factors a solve, two more
    for a JVP and two more for a VJP, with respect to the operator along paths of constant
    rank.

    **Arguments:**

    - `rcond`: directions with singular values of at most about `rcond` times the largest
        one are dropped; a number without unit, as in `numpy.linalg.lstsq`. Defaults to
        `None`: `eps * max(rows, cols)` in the operator's dtype. A negative value means
        `eps`.
    - `blocks`: the number of row blocks of the first QR factorisation, for an A whose
        rows are on several devices; as in [`pseudojvp.QR`][]. Defaults to `None`.

    **Raises:** `ValueError` if `blocks` is not a positive integer, and at trace time for
    an unknown option.

    **Sources:** Golub & Van Loan, *Matrix Computations*, 4th ed. (2013), sections 5.4.2
    (column pivoting), 5.4.7 (complete orthogonal decomposition) and 5.5.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    A, b = jnp.array([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]), jnp.array([1.0, 3.0, 5.0])
    solution = pj.linear_solve(A, b, pj.PivotedQR())
    print(solution.value.round(2), solution.stats["rank"])  # [1. 1.] 1
    ```
    """

    rcond: Real[ArrayLike, ""] | None = None
    blocks: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        check_blocks(self)

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> PivotedQRState:
        check_options(self, options)
        matrix, wide = long_side_first(operator)
        rounding = rounding_of_rank(operator)
        outer = None
        if matrix.shape[0] != matrix.shape[1]:
            outer = orthogonal_factor(matrix, blocks_for(self.blocks, matrix))
            matrix = outer.r
        # A NaN or an Inf in A is a NaN in R.
        finite = jnp.all(jnp.isfinite(matrix))
        matrix = jnp.where(finite, matrix, 0)
        inner, pivots = pivoted_columns(matrix)

        unit = power_of_two(pivots)
        largest = _largest_singular_value(matrix / unit.astype(inner.dtype), inner[:, :1])
        cutoff = resolve_rcond(self.rcond, rounding, unit.dtype)
        # From their number, which XLA keeps, as it is the outcome of a sum.
        rank = jnp.sum(pivots / unit > cutoff * largest)
        kept = jnp.arange(len(pivots)) < rank
        unit = jnp.where(rank > 0, unit, 1)  # of zeros it is so small that sums underflow
        inner = jnp.where(kept, inner, 0)

        # Q₁^H A is T Z^H.
        z, t_adjoint = jnp.linalg.qr(matmul(matrix.conj().T, inner))
        t_adjoint = t_adjoint + jnp.diag(jnp.where(kept, 0, unit).astype(inner.dtype))
        t_adjoint = after_in_batch(z, t_adjoint)
        # Pivots above the cutoff do not prove that singular values are.
        estimate = reciprocal_condition(
            jnp.full(len(pivots), unit),
            lambda vector: t_adjoint @ vector,
            lambda vector: t_adjoint.conj().T @ vector,
            inner.dtype,
            lambda c: jsl.solve_triangular(t_adjoint, c, trans="C"),
        )
        reveals = finite & (estimate > cutoff / 100)
        if outer is not None:
            outer = outer.after(estimate)
        return PivotedQRState(
            outer,
            inner,
            t_adjoint,
            jnp.where(kept, z, 0),
            rank,
            jnp.where(reveals, estimate, 0),
            wide,
            structures_of(operator),
        )

    def compute(
        self, state: PivotedQRState, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        check_options(self, options)
        out_structure, in_structure = state.structures.value
        solution = state.solve(state.qh_mv(out_structure.ravel(vector)))
        return in_structure.unravel(solution), self.result(state), self.stats(state)

    def result(self, state: PivotedQRState) -> lx.RESULTS:
        results = lx.RESULTS
        return results.where(
            state.reciprocal_condition > 0, results.successful, results.singular
        )

    def stats(self, state: PivotedQRState) -> dict[str, Any]:
        return {"rank": state.rank}

    def slogdet(self, state: PivotedQRState) -> Slogdet:
        pivots = jnp.diagonal(state.t_adjoint).conj()
        size = len(pivots)
        pivots = jnp.where(jnp.arange(size) < state.rank, pivots, 1)
        sign, logabsdet = of_product(pivots)
        logabsdet = logabsdet * one_or_nan(state.reciprocal_condition > 0).astype(
            logabsdet.dtype
        )
        one = jnp.ones_like(sign)
        if state.outer is not None:
            return Slogdet(one, logabsdet)
        unitary = matmul(state.inner, state.z.conj().T)
        sign = sign * sign_of(after_in_batch(state.reciprocal_condition, unitary))
        sign = jnp.where(state.rank == size, sign, one)
        return Slogdet(sign.conj() if state.wide.value else sign, logabsdet)

    def transpose(self, state: PivotedQRState, options: dict[str, Any]):
        return transposed(state), options

    def conj(self, state: PivotedQRState, options: dict[str, Any]):
        return conjugated(state), options

    def assume_full_rank(self) -> bool:
        return False
