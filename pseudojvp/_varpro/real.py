import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact


def as_real(columns: Inexact[Array, "..."]) -> Float[Array, " size"]:
    """All entries in one real vector, real parts before imaginary ones."""
    flat = columns.reshape(-1)
    if jnp.iscomplexobj(flat):
        return jnp.concatenate([flat.real, flat.imag])
    return flat


def squared_norm(columns: Inexact[Array, "..."]) -> Float[Array, ""]:
    """The sum of |·|², without an array of them in another order."""
    if jnp.iscomplexobj(columns):
        return jnp.sum(columns.real**2 + columns.imag**2)
    return jnp.sum(columns**2)
