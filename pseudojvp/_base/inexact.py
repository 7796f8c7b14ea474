import jax.numpy as jnp
from jaxtyping import Array, Inexact


def as_inexact(array, what: str) -> Inexact[Array, "..."]:
    """Returns `array` as a floating or complex JAX array, converting integers."""
    try:
        array = jnp.asarray(array)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`{what}` got {type(array).__name__}, which is no array of numbers. Pass "
            "floating-point or complex numbers."
        ) from error
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        array = array.astype(jnp.result_type(float))
    return array
