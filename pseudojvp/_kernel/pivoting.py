"""A pivoted QR factorisation, for the directions in which a matrix is large."""

import jax.lax as lax
import jax.lax.linalg as jll
import jax.numpy as jnp
from jaxtyping import Array, Inexact, Real

from .._base.axes import fori_loop
from .norms import power_of_two
from .products import adjoint_matmul, matmul


def pivoted_columns(
    matrix: Inexact[Array, "n n"],
) -> tuple[Inexact[Array, "n n"], Real[Array, " n"]]:
    """Q and |diag(R)| of A P = Q R with column pivoting; the latter falls.

    By LAPACK on the CPU alone. JAX has no `geqp3` on the TPU, and on a GPU calls that of
    the host (or of MAGMA, which also works there), one matrix after the other.
    """
    if matrix.size == 0:
        return matrix, jnp.zeros(0, matrix.real.dtype)
    return lax.platform_dependent(matrix, cpu=_by_lapack, default=by_projections)


def _by_lapack(matrix):
    q, r, _ = jll.qr(matrix, pivoting=True, full_matrices=False)
    return q, jnp.abs(jnp.diagonal(r))


def by_projections(
    matrix: Inexact[Array, "n n"],
) -> tuple[Inexact[Array, "n n"], Real[Array, " n"]]:
    """The same by products alone, of all matrices of a batch at once: modified
    Gram–Schmidt, each column of Q orthogonalised twice. One without a pivot is zero.

    The pivots are those of LAPACK, to rounding, and with them the rank. Björck, *Numerics
    of Gram–Schmidt orthogonalization*, Linear Algebra Appl. 197/198 (1994).
    """
    unit = power_of_two(matrix)
    matrix = matrix / unit.astype(matrix.dtype)

    def step(k, carry):
        q, pivots, rest = carry
        sizes = jnp.linalg.norm(rest, axis=0)
        column = rest[:, jnp.argmax(sizes)]
        column = column - matmul(q, adjoint_matmul(q, column))
        size = jnp.linalg.norm(column)
        column = jnp.where(size > 0, column / size.astype(column.dtype), 0)
        rest = rest - jnp.outer(column, adjoint_matmul(rest, column).conj())
        return q.at[:, k].set(column), pivots.at[k].set(size), rest

    q = jnp.zeros_like(matrix)
    carry = q, jnp.zeros(len(matrix), matrix.real.dtype), matrix
    q, pivots, _ = fori_loop(0, len(matrix), step, carry)
    return q, pivots * unit
