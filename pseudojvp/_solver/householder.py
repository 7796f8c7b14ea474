"""Q c and Q^H c by Householder reflectors, many columns at once."""

import jax
import jax.lax.linalg as jll
import jax.numpy as jnp


def _ormqr(adjoint: bool):
    """Q c or Q^H c for columns c, (..., rows, k), by LAPACK's `ormqr`.

    A batch of columns against one factorisation becomes more columns: JAX's own rule
    copies the reflectors for each member.
    """

    @jax.custom_batching.custom_vmap
    def apply(reflectors, taus, columns):
        if taus.size == 0 or columns.size == 0:  # JAX's call of LAPACK would crash
            return columns
        return jll.ormqr(reflectors, taus, columns, transpose=adjoint)

    @apply.def_vmap
    def _(axis_size, batched, reflectors, taus, columns):
        batched_reflectors, batched_taus, batched_columns = batched
        if batched_reflectors or batched_taus:
            reflectors, taus, columns = (
                array
                if is_batched
                else jnp.broadcast_to(array, (axis_size, *array.shape))
                for array, is_batched in zip(
                    (reflectors, taus, columns), batched, strict=True
                )
            )
            return apply(reflectors, taus, columns), True
        assert batched_columns
        columns = jnp.moveaxis(columns, 0, -2)  # (..., rows, batch, k)
        count = columns.shape[-2] * columns.shape[-1]
        merged = columns.reshape(*columns.shape[:-2], count)
        out = apply(reflectors, taus, merged).reshape(columns.shape)
        return jnp.moveaxis(out, -2, 0), True

    return apply


apply_q = _ormqr(adjoint=False)
apply_qh = _ormqr(adjoint=True)
