"""Orthonormal factors as Householder reflectors, applied to many vectors at once."""

import equinox as eqx
import jax
import jax.lax as lax
import jax.lax.linalg as jll
import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jaxtyping import Array, Inexact

from .._base.order import after_in_batch


# From so many vectors on, and at least as many as Q has columns, the columns of Q pay: a
# gradient of 200 vectors of 2000 x 100 takes 0.8 of the time of `ormqr`, of 64 of 50 x 50
# 0.9.
_MANY = 9


class Reflectors(eqx.Module):
    """Q = H₁ H₂ …, with orthonormal columns, and H_i = I − tau_i v_i v_i^H.

    Row i of `rows` is v_i beyond its entry i, which is one; those before are zero. There
    `rows` has the columns of R: it is the output of LAPACK's `geqrf`, transposed.
    """

    rows: Inexact[Array, "short long"]
    taus: Inexact[Array, " short"]

    @classmethod
    def of(cls, matrix: Inexact[Array, "long short"]) -> "Reflectors":
        """Those of a QR factorisation."""
        return cls(*jnp.linalg.qr(matrix, mode="raw"))

    def after(self, earlier: Array) -> "Reflectors":
        """In a batch applied once `earlier` is there, whatever the vectors are."""
        return Reflectors(self.rows, after_in_batch(earlier, self.taus))

    @property
    def shape(self) -> tuple[int, int]:
        """That of Q."""
        short, long = self.rows.shape
        return long, short

    @property
    def r(self) -> Inexact[Array, "short short"]:
        return jnp.tril(self.rows[:, : self.taus.size]).mT

    def r_solve(
        self, columns: Inexact[Array, "short *k"], *, adjoint: bool = False
    ) -> Inexact[Array, "short *k"]:
        """R⁻¹ C or R⁻ᴴ C."""
        r = self.rows[:, : self.taus.size].mT  # the solve reads no more than R of it
        return jsl.solve_triangular(r, columns, trans="C" if adjoint else "N")

    def q_sign(self) -> Inexact[Array, ""]:
        """det Q of a square Q: H_i is unitary, and det H_i = −tau_i / conj(tau_i)."""
        turns = self.taus != 0
        taus = jnp.where(turns, self.taus, 1)
        return jnp.prod(jnp.where(turns, -taus / taus.conj(), 1))

    def mv(self, vector: Inexact[Array, " short"]) -> Inexact[Array, " long"]:
        """Q c."""
        return apply_q(self.rows, self.taus, vector[None])[0]

    def adjoint_mv(self, vector: Inexact[Array, " long"]) -> Inexact[Array, " short"]:
        """Q^H v."""
        return apply_qh(self.rows, self.taus, vector[None])[0]


def _apply(adjoint: bool):
    """Q c or Q^H c for the rows c of `vectors`, (..., k, short) or (..., k, long).

    A batch of vectors against one factorisation becomes more rows: JAX's own rules copy
    the reflectors for each member.
    """

    @jax.custom_batching.custom_vmap
    def apply(rows, taus, vectors):
        short, long = taus.shape[-1], rows.shape[-1]
        count = vectors.shape[-2]
        if short == 0 or vectors.size == 0:  # JAX's call of LAPACK would crash
            size = short if adjoint else long
            return jnp.zeros((*vectors.shape[:-1], size), vectors.dtype)
        if rows.ndim == 2 and count >= max(short, _MANY):
            return _by_product(rows, taus, vectors, adjoint=adjoint)
        if not adjoint:
            # Zeros, but NaN after a triangular solve with NaN, which ends in a NaN: where
            # A is zero a reflection leaves them as they are.
            zeros = 0 * vectors[..., -1:]
            zeros = jnp.broadcast_to(zeros, (*vectors.shape[:-1], long - short))
            vectors = jnp.concatenate([vectors, zeros], axis=-1)
        vectors = jll.ormqr(rows.mT, taus, vectors.mT, transpose=adjoint).mT
        return vectors[..., :short] if adjoint else vectors

    @apply.def_vmap
    def _(axis_size, batched, rows, taus, vectors):
        batched_rows, batched_taus, batched_vectors = batched
        if batched_rows or batched_taus:
            rows, taus, vectors = (
                array
                if is_batched
                else jnp.broadcast_to(array, (axis_size, *array.shape))
                for array, is_batched in zip((rows, taus, vectors), batched, strict=True)
            )
            return apply(rows, taus, vectors), True
        assert batched_vectors
        vectors = jnp.moveaxis(vectors, 0, -3)  # (..., batch, k, short or long)
        *outer, batch, count, size = vectors.shape
        out = apply(rows, taus, vectors.reshape(*outer, batch * count, size))
        out = out.reshape(*outer, batch, count, out.shape[-1])
        return jnp.moveaxis(out, -3, 0), True

    return apply


apply_q = _apply(adjoint=False)
apply_qh = _apply(adjoint=True)


def _by_product(rows, taus, vectors, *, adjoint: bool):
    """With the columns of Q themselves: half of the work of the reflectors, once Q is
    there, which takes less than that half for as many vectors as Q has columns.
    """
    q = jll.householder_product(rows.mT, taus)
    q = q.conj() if adjoint else q.mT
    return jnp.matmul(vectors, q, precision=lax.Precision.HIGHEST)
