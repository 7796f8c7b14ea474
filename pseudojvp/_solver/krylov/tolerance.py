from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree, Real, Scalar

from ..._base.tree import promoting
from ..._kernel.norms import two_norm


def resolve_rtol(rtol: Any, dtype) -> Real[Array, ""]:
    """By default 1e-10 in double precision, 1e-5 in less."""
    if rtol is None:
        rtol = 1e-10 if jnp.finfo(dtype).eps < 1e-12 else 1e-5
    return jnp.asarray(rtol, dtype)


class Tolerance(eqx.Module):
    """What an error may be: |error| ≤ atol + rtol |reference| in the Euclidean norm.

    With `norm`, as in lineax: the quotient of each entry of the error by
    `atol + rtol |entry of the reference|`, of which `norm` is at most one.
    """

    rtol: Any
    atol: Any
    norm: Callable[[PyTree], Scalar] | None

    def allowed(self, reference: PyTree[Array]) -> PyTree[Array]:
        def at(size):
            rtol = resolve_rtol(self.rtol, size.dtype)
            return jnp.asarray(self.atol, size.dtype) + rtol * size

        if self.norm is None:
            return at(two_norm(reference))
        return jtu.tree_map(lambda leaf: at(jnp.abs(leaf)), reference)

    def excess(self, error: PyTree[Array], allowed: PyTree[Array]) -> Scalar:
        """At most one if `error` is within `allowed`; 0 / 0 is no error."""

        def quotient(size, allowed):
            return jnp.where(size == 0, 0, size / allowed)

        if self.norm is None:
            return quotient(two_norm(error), allowed)
        magnitude = jtu.tree_map(jnp.abs, error)
        return promoting(self.norm)(jtu.tree_map(quotient, magnitude, allowed))
