"""Products of dense matrices in the forms that XLA runs well, each with its measurement.

At full precision on GPU and TPU too. Times are medians on two CPU cores, in float64.
"""

import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Inexact


def matmul(left: Inexact[Array, "..."], right: Inexact[Array, "..."]):
    return jnp.matmul(left, right, precision=lax.Precision.HIGHEST)


def gram(rows: Inexact[Array, "short long"]) -> Inexact[Array, "short short"]:
    """A A^H."""
    return matmul(rows, rows.conj().mT)


def adjoint_matmul(
    matrix: Inexact[Array, "rows cols"], vector: Inexact[Array, " rows"]
) -> Inexact[Array, " cols"]:
    """A^H v as (v^H A)^H.

    For A of 200 x 20000 that takes 1.2 ms, `A.conj().T @ v` 3.5 ms; for 20000 x 200, 1.2
    and 5.7 ms. On small or many vectors it makes no difference.
    """
    return matmul(vector.conj(), matrix).conj()


@jax.custom_batching.custom_vmap
def stored_transpose(matrix: Inexact[Array, "rows cols"]) -> Inexact[Array, "cols rows"]:
    """A^T as an array of its own, for a product that would be slow with `A.T`.

    XLA on the CPU makes `A.T @ B` one call, which runs at half the speed of a product
    with rows: A^T A takes 1.5 ms at 2000 x 100 and 30 ms at 20000 x 200, and 1.0 and 19
    with the copy of A that is made here. Not for a batch of matrices, of which it takes
    one after the other, and the copy is what costs: 1000 of 64 x 64 in 42 ms, and 55.
    """
    return lax.optimization_barrier(matrix.T)


@stored_transpose.def_vmap
def _(axis_size, in_batched, matrices):
    del axis_size
    (is_batched,) = in_batched
    return matrices.mT, is_batched
