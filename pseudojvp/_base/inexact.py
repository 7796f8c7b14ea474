from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact


def as_inexact(array, what: str) -> Inexact[Array, "..."]:
    """Returns `array` as a floating or complex JAX array, converting integers."""
    array = as_native(array, what)
    try:
        array = jnp.asarray(array)
    except (TypeError, ValueError) as error:
        of = f" of dtype {array.dtype}" if isinstance(array, np.ndarray) else ""
        raise TypeError(
            f"`{what}` got {type(array).__name__}{of}, which is no array of numbers that "
            "JAX has. Pass floating-point or complex numbers."
        ) from error
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        array = array.astype(jnp.result_type(float))
    return array


def as_native(array: Any, what: str) -> Any:
    """Returns an array of NumPy as JAX takes it, anything else as it is.

    In the byte order of the machine: files of FITS and NetCDF are read in another. A
    masked array is an error: some conversions drop its mask without a word.
    """
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(
            f"`{what}` got a masked array, whose mask would be dropped. Leave out what "
            "is masked, or give it weight zero, and pass a plain array (`.filled(0)`)."
        )
    if isinstance(array, np.ndarray | np.generic) and not array.dtype.isnative:
        return array.astype(array.dtype.newbyteorder("="))
    return array
