from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact


def as_inexact(array, what: str) -> Inexact[Array, "..."]:
    """Returns `array` as a floating or complex JAX array, converting integers."""
    return as_array(inexact(array, what))


def inexact(array, what: str) -> Inexact[Array | np.ndarray, "..."]:
    """As `as_inexact`, but an array of NumPy stays one: to change it compiles nothing.

    It has the dtype that it will have in JAX.
    """
    array = as_native(array, what)
    try:
        if not isinstance(array, np.ndarray | np.generic):
            array = jnp.asarray(array)
        dtype = jnp.result_type(array)
    except (TypeError, ValueError) as error:
        of = f" of dtype {array.dtype}" if isinstance(array, np.ndarray) else ""
        raise TypeError(
            f"`{what}` got {type(array).__name__}{of}, which is no array of numbers that "
            "JAX has. Pass floating-point or complex numbers."
        ) from error
    if not jnp.issubdtype(dtype, jnp.inexact):
        dtype = jnp.result_type(float)
    if isinstance(array, np.generic):
        array = np.asarray(array)
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):  # of float64 in float32: Inf, as in JAX
        return array.astype(dtype)


def as_array(array: Any) -> Array:
    """As `jnp.asarray`, which compiles a program for each shape of an array of NumPy."""
    if isinstance(array, np.ndarray | np.generic | bool):
        return jax.device_put(np.array(array))  # a copy: JAX would share its memory
    return jnp.asarray(array)


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
