import jax.numpy as jnp
import lineax as lx
import numpy as np
from equinox import is_array
from jaxtyping import Array, Inexact, Shaped


def as_operator(
    operator: lx.AbstractLinearOperator | Shaped[Array, "rows cols"], caller: str
) -> lx.AbstractLinearOperator:
    """Returns `operator` as a lineax operator: a 2-D array is wrapped, an operator kept.

    **Arguments:**

    - `operator`: a `lineax.AbstractLinearOperator`, or an array of shape `(rows, cols)`;
        integers become the default floating dtype.
    - `caller`: the name of the public function, for the error messages.

    **Raises:** `ValueError` if an array is not 2-D, `TypeError` for anything else.
    """
    if isinstance(operator, lx.AbstractLinearOperator):
        return operator
    if not (is_array(operator) or isinstance(operator, np.ndarray)):
        raise TypeError(
            f"`{caller}(operator=...)` got a {type(operator).__name__}. Pass a "
            "`lineax.AbstractLinearOperator`, or an array of shape (rows, cols)."
        )
    if operator.ndim != 2:
        raise ValueError(
            f"`{caller}(operator=...)` got an array of shape {operator.shape}. A matrix "
            "has shape (rows, cols); for a batch of matrices use `jax.vmap`."
        )
    return lx.MatrixLinearOperator(as_inexact(operator, f"{caller}(operator=...)"))


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
