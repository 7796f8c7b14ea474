"""Coefficients between bounds: which of them are free, and where the others are held."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.core
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._base.inexact import as_inexact
from .._kernel.active_set import bounded_least_squares


class Limits(eqx.Module):
    """lower ≤ c ≤ upper: scalars, `(n,)` for all columns or `(n, k)`."""

    lower: Float[Array, "..."]
    upper: Float[Array, "..."]

    def over(self, size: Float[Array, ""]) -> "Limits":
        return Limits(*(x / size.astype(x.dtype) for x in (self.lower, self.upper)))

    def columns(self, n: int, k: int, caller: str) -> "Limits":
        """As `(n, k)` each."""

        def spread(bound):
            if bound.shape not in ((), (n,), (n, k), (n, 1), (1, k)):
                raise ValueError(
                    f"`{caller}(coefficient_bounds=...)` got a bound of shape "
                    f"{bound.shape} for {n} coefficients in {k} columns. Pass a scalar, "
                    f"or an array of shape {(n,)} or {(n, k)}."
                )
            bound = bound[:, None] if bound.ndim == 1 else bound
            return jnp.broadcast_to(bound, (n, k))

        return Limits(spread(self.lower), spread(self.upper))

    def side(self, coefficients: Float[Array, "n k"]) -> Int[Array, "n k"]:
        """−1 where a coefficient is at its lower bound, 1 at the upper one, 0 between."""
        above = jnp.where(coefficients >= self.upper, 1, 0)
        return jnp.where(coefficients <= self.lower, -1, above)


class Held(NamedTuple):
    """Which coefficients are free, and what the others are (zero for the free ones)."""

    free: Bool[Array, "n k"]
    coefficients: Float[Array, "n k"]
    converged: Bool[Array, " k"]


def hold(
    a: Float[Array, "m n"] | Float[Array, "k m n"],
    b: Float[Array, "m k"],
    limits: Limits,
) -> Held:
    """For the best coefficients of each column; A for all columns, or for each.

    The free ones are a constant; the others have the derivative of their bound.
    """
    fixed = lax.stop_gradient((a, b, limits.lower, limits.upper))
    axes = (None if a.ndim == 2 else 0, 1, 1, 1)
    found = jax.vmap(bounded_least_squares, in_axes=axes)(*fixed)
    side = found.active.T
    held = jnp.where(side < 0, limits.lower, jnp.where(side > 0, limits.upper, 0))
    return Held(side == 0, held, found.converged)


def check_limits(
    bounds: Any, solver: lx.AbstractLinearSolver, data: Array | np.ndarray, caller: str
) -> Limits | None:
    """Of the columns of `data`; arrays, or an error."""
    if bounds is None:
        return None
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise TypeError(
            f"`{caller}(coefficient_bounds=...)` got {type(bounds).__name__}. Pass a "
            "pair (lower, upper), as (0, inf) for coefficients that are not negative."
        )
    if solver.assume_full_rank():
        raise ValueError(
            f"`{caller}(coefficient_bounds=..., solver={type(solver).__name__}(...))`: "
            "this solver takes all columns for independent, but those of coefficients at "
            "a bound are left out as zeros. Use `PivotedQR()` or `SVD()`."
        )
    if jnp.iscomplexobj(data):
        raise TypeError(
            f"`{caller}(coefficient_bounds=...)` got complex data. Fit real and "
            "imaginary part as rows of real data."
        )
    arrays = []
    for i, bound in enumerate(bounds):
        bound = as_inexact(bound, f"{caller}(coefficient_bounds[{i}]=...)")
        if jnp.iscomplexobj(bound):
            raise TypeError(
                f"`{caller}(coefficient_bounds=...)` got {bound.dtype}. Pass real "
                "numbers."
            )
        arrays.append(bound.astype(data.dtype))
    traced = any(isinstance(x, jax.core.Tracer) for x in jtu.tree_leaves(bounds))
    if not traced:
        lower, upper = (np.asarray(bound) for bound in bounds)
        lower, upper = (x[:, None] if x.ndim == 1 else x for x in (lower, upper))
        if not np.all((lower <= upper) & (lower < np.inf) & (upper > -np.inf)):
            raise ValueError(
                f"`{caller}(coefficient_bounds=...)` got a lower bound above the upper "
                "one, a lower one of inf, an upper one of −inf, or NaN. Pass lower ≤ "
                "upper; −inf and inf for none."
            )
        if np.all(np.isinf(lower)) and np.all(np.isinf(upper)):
            return None
    return Limits(*arrays)
