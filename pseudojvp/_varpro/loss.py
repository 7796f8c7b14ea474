"""Losses other than squares, by weights that are repeated until they stay."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import jax.scipy.special as jss
import numpy as np
from jaxtyping import Array, Float, Inexact

from .._base.inexact import as_array, inexact
from .data_sets import listed
from .model import Observations


def _soft_l1(z):
    return 2 * (jnp.sqrt(1 + z) - 1)


def _huber(z):
    large = z > 1
    return jnp.where(large, 2 * jnp.sqrt(jnp.where(large, z, 1)) - 1, z)


_LOSSES = {
    "soft_l1": _soft_l1,
    "huber": _huber,
    "cauchy": jnp.log1p,
    "arctan": jnp.arctan,
}


class Loss(eqx.Module):
    """½ Σ f² ρ(|r|²/f²) in the place of ½ Σ |r|²; or half of the deviance of counts.

    Its gradient is that of ½ Σ |ω r|² with ω² = ρ′ as a constant, ω² = 1/(the fitted
    mean) for counts. Rows of priors are squares.
    """

    scale: Float[Array, ""]  # of counts: one count
    rho: Callable | None = eqx.field(static=True)  # `None`: counts

    def over(self, size: Float[Array, ""]) -> "Loss":
        return Loss(self.scale / size.astype(self.scale.dtype), self.rho)

    def weights(
        self,
        residual: Inexact[Array, "m k"],
        fitted: Inexact[Array, "m k"],
        observations: Observations,
    ) -> Float[Array, "m k"]:
        """ω at a residual W (data − fitted)."""
        if self.rho is None:
            # Of a mean that is not positive the deviance is not defined, unless it is
            # that of no count where the model has none, or does not count.
            positive = fitted > 0
            idle = (fitted == 0) & (observations.data == 0)
            weights = observations.weight_columns
            if weights is not None:
                idle = idle | (weights == 0)
            mean = jnp.where(positive, fitted, 1)
            squared = jnp.where(positive, self._unit(fitted) / mean, jnp.nan)
            squared = jnp.where(idle, 1, squared)
        else:
            z = self._argument(residual)
            squared = jax.grad(lambda z: jnp.sum(self._rho(z)))(z)
        squared = jnp.maximum(squared, 0)
        rows = jnp.arange(len(residual))[:, None] < len(residual) - observations.below
        return jnp.where(rows, jnp.sqrt(squared), 1)

    def first_weights(self, observations: Observations) -> Float[Array, "m k"]:
        """Of squares; of counts those of the counts, of one at least."""
        data = observations.data
        if self.rho is not None:
            return jnp.ones(data.shape, jnp.finfo(data.dtype).dtype)
        unit = self._unit(data)
        return self.weights(data, jnp.maximum(data, unit), observations)

    def cost_of(self, residual, fitted, observations: Observations) -> Float[Array, ""]:
        weights = observations.weight_columns
        return self.cost(residual, fitted, observations, observations.data, weights)

    def cost(
        self,
        residual: Inexact[Array, "m *k"],
        fitted: Inexact[Array, "m *k"],
        observations: Observations,
        data: Inexact[Array, "m *k"],
        weights: Any,
    ) -> Float[Array, ""]:
        """The cost, whose minimum is looked for, of columns or of one of them."""
        rows = len(residual) - observations.below
        squares = 0.5 * jnp.sum(jnp.abs(residual[rows:]) ** 2)
        residual, fitted, data = (x[:rows] for x in (residual, fitted, data))
        if self.rho is None:
            unit = self._unit(fitted)
            if weights is not None:
                weights = weights[:rows]
                fitted, data = (jnp.where(weights == 0, 1, x) for x in (fitted, data))
            weights = 1 if weights is None else weights**2
            mean = jnp.where((fitted == 0) & (data == 0), 1, fitted)
            terms = data - fitted - jss.xlogy(data, data) + jss.xlogy(data, mean)
            return squares - unit * jnp.sum(weights * terms)
        z = self._argument(residual)
        return squares + 0.5 * self.scale.astype(z.dtype) ** 2 * jnp.sum(self._rho(z))

    def _unit(self, array):
        return self.scale.astype(array.dtype)

    def _argument(self, residual):
        real = jnp.abs(residual) ** 2 if jnp.iscomplexobj(residual) else residual**2
        return real / self.scale.astype(real.dtype) ** 2

    def _rho(self, z):
        assert self.rho is not None
        value = self.rho(z)
        return value[0] if value.shape == (3, *z.shape) else value


def reweighted(observations: Observations, weights: Float[Array, "m k"]) -> Observations:
    """With weights ω beside those of the data."""
    full = observations.weigh(weights)
    return eqx.tree_at(
        lambda o: o.weights, observations, full, is_leaf=lambda leaf: leaf is None
    )


def check_loss(loss: Any, f_scale: Any, observations: Any, caller: str) -> Loss | None:
    """`None` for squares."""
    if isinstance(f_scale, int | float):
        f_scale = np.float64(f_scale)
    scale = inexact(f_scale, f"{caller}(f_scale=...)")
    if scale.shape != () or jnp.iscomplexobj(scale):
        raise ValueError(
            f"`{caller}(f_scale=...)` got {scale.dtype} of shape {scale.shape}. Pass a "
            "positive number: the size of a weighted residual that is no outlier yet."
        )
    if not isinstance(scale, jax.core.Tracer) and not 0 < float(scale) < np.inf:
        raise ValueError(
            f"`{caller}(f_scale=...)` got {float(scale)}. Pass a positive number."
        )
    if loss == "linear":
        return None
    if loss == "poisson":
        if any(_are_no_counts(part) for part in listed(observations)):
            raise ValueError(
                f"`{caller}(loss='poisson')` got data that are no counts. Pass real "
                "numbers that are not negative."
            )
        return Loss(jnp.ones((), listed(observations)[0].data.dtype), None)
    if not callable(loss) and loss not in _LOSSES:
        raise ValueError(
            f"`{caller}(loss=...)` got {loss!r}. Pass 'linear', 'soft_l1', 'huber', "
            "'cauchy', 'arctan', 'poisson', or a function ρ of z = (r/f_scale)²."
        )
    rho = loss if callable(loss) else _LOSSES[loss]
    if isinstance(scale, jax.core.Tracer):
        scale = jnp.where(scale > 0, scale, jnp.nan)
    return Loss(as_array(scale), rho)


def _are_no_counts(observations: Observations) -> bool:
    data, weights = observations.data, observations.weight_columns
    if jnp.iscomplexobj(data):
        return True
    if any(isinstance(x, jax.core.Tracer) for x in (data, weights)):
        return False
    counted = True if weights is None else np.asarray(weights) != 0
    return bool(np.any((np.asarray(data) < 0) & counted))
