"""Orthonormal factors as Householder reflectors, applied to many vectors at once."""

import functools as ft

import equinox as eqx
import jax
import jax.lax as lax
import jax.lax.linalg as jll
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from .small_batches import solve_triangular


# Up to so many vectors the reflectors of small matrices are applied one by one, which on
# the CPU takes 0.8 of the time of LAPACK's blocks of them (50 x 50, one vector; a whole
# gradient) and, for a batch of factorisations, a tenth (1000 of 64 x 64). Where a single
# matrix is larger, LAPACK takes its factors as they are: 6.3 and not 7.4 ms for a solve
# of 2000 x 100, 42 and not 48 for one of 2000 x 500.
_FEW = 8
_SMALL = 20_000
# So many reflections of a batch are written out: XLA merges what it does not in a loop,
# 6 ms in the place of 11 (10,000 of 32 x 8, one vector each).
_WRITTEN_OUT = 8


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

    @property
    def r(self) -> Inexact[Array, "short short"]:
        return jnp.tril(self.rows[:, : self.taus.size]).mT

    def r_solve(
        self, columns: Inexact[Array, "short *k"], *, adjoint: bool = False
    ) -> Inexact[Array, "short *k"]:
        """R⁻¹ C or R⁻ᴴ C."""
        r = self.rows[:, : self.taus.size].mT  # the solve reads no more than R of it
        return solve_triangular(r, columns, trans="C" if adjoint else "N")

    def mv(self, vector: Inexact[Array, " short"]) -> Inexact[Array, " long"]:
        """Q c."""
        return _apply_q(self.rows, self.taus, vector[None])[0]

    def adjoint_mv(self, vector: Inexact[Array, " long"]) -> Inexact[Array, " short"]:
        """Q^H v."""
        return _apply_qh(self.rows, self.taus, vector[None])[0]


def _apply(adjoint: bool):
    """Q c or Q^H c for the rows c of `vectors`, (..., k, short) or (..., k, long).

    A batch of vectors against one factorisation becomes more rows: JAX's own rules copy
    the reflectors for each member.
    """

    @jax.custom_batching.custom_vmap
    def apply(rows, taus, vectors):
        short, long = taus.shape[-1], rows.shape[-1]
        count = vectors.shape[-2]
        if rows.ndim == 2 and count > _FEW and count >= short > 0:
            return _by_product(rows, taus, vectors, adjoint=adjoint)
        if not adjoint:
            widths = [(0, 0)] * (vectors.ndim - 1) + [(0, long - short)]
            vectors = jnp.pad(vectors, widths)
        if short > 0 and vectors.size > 0:  # else JAX's call of LAPACK would crash
            vectors = _apply_reflectors(rows, taus, vectors, adjoint=adjoint)
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


_apply_q = _apply(adjoint=False)
_apply_qh = _apply(adjoint=True)


def _by_product(rows, taus, vectors, *, adjoint: bool):
    """With the columns of Q themselves: half of the work of the reflectors, once Q is
    there, which takes less than that half for as many vectors as Q has columns.
    """
    q = jll.householder_product(rows.mT, taus)
    q = q.conj() if adjoint else q.mT
    return jnp.matmul(vectors, q, precision=lax.Precision.HIGHEST)


def _apply_reflectors(rows, taus, vectors, *, adjoint: bool):
    large = rows.ndim == 2 and rows.size > _SMALL
    if vectors.shape[-2] > _FEW or large:
        return _by_lapack(rows, taus, vectors, adjoint=adjoint)
    return lax.platform_dependent(
        rows,
        taus,
        vectors,
        cpu=ft.partial(_one_by_one, adjoint=adjoint),
        default=ft.partial(_by_lapack, adjoint=adjoint),
    )


def _by_lapack(rows, taus, vectors, *, adjoint: bool):
    return jll.ormqr(rows.mT, taus, vectors.mT, transpose=adjoint).mT


def _one_by_one(rows, taus, vectors, *, adjoint: bool):
    if adjoint:
        taus = taus.conj()
    # Of one axis there is one layout: XLA would copy LAPACK's twice.
    rows = lax.optimization_barrier(rows.reshape(-1)).reshape(rows.shape)
    places = jnp.arange(rows.shape[-1])

    def reflect(step, vectors):
        i = step if adjoint else taus.shape[-1] - 1 - step
        v = lax.dynamic_index_in_dim(rows, i, axis=-2, keepdims=False)
        v = jnp.where(places < i, 0, jnp.where(places == i, 1, v))
        tau = lax.dynamic_index_in_dim(taus, i, axis=-1)[..., None]
        along = jnp.matmul(vectors, v.conj()[..., None], precision=lax.Precision.HIGHEST)
        return vectors - tau * along * v[..., None, :]

    if rows.ndim > 2 and taus.shape[-1] <= _WRITTEN_OUT:
        for step in range(taus.shape[-1]):
            vectors = reflect(step, vectors)
        return vectors
    return lax.fori_loop(0, taus.shape[-1], reflect, vectors)
