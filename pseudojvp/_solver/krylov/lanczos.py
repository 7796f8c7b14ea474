"""The tridiagonal matrix that a run leaves behind, for those who ask for it."""

import dataclasses
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Inexact, Real


class Tridiagonal(eqx.Module):
    """T = Vᴴ A V of the first cycle of a run; NaN where it has no entries."""

    alphas: Real[Array, " max_steps"]
    betas: Real[Array, " max_steps-1"]
    last: Real[Array, ""]  # one over the last step size, of CG
    ended: Bool[Array, ""]  # the run has begun anew, from another vector

    @classmethod
    def start(cls, max_steps: int, norm: Real[Array, ""]) -> "Tridiagonal":
        alphas = jnp.full(max_steps, jnp.nan, norm.dtype)
        betas = jnp.full(max(max_steps - 1, 0), jnp.nan, norm.dtype)
        return cls(alphas, betas, jnp.zeros_like(norm), jnp.array(False))

    def with_column(self, step, alpha, beta, *, counts: Any, anew: Any) -> "Tridiagonal":
        """α of this step, β between it and the one before, if the step `counts`."""
        ended = self.ended | (counts & anew & (step > 0))
        writes = counts & ~ended
        size = len(self.alphas)
        alpha_at = jnp.where(writes, step, size)
        beta_at = jnp.where(writes & (step > 0), step - 1, size)
        return dataclasses.replace(
            self,
            alphas=self.alphas.at[alpha_at].set(alpha, mode="drop"),
            betas=self.betas.at[beta_at].set(beta, mode="drop"),
            ended=ended,
        )

    def with_step(self, step, inverse, ratio, *, counts: Any) -> "Tridiagonal":
        """Of a step of CG of size 1 / `inverse`, along r + `ratio` times the last one."""
        alpha, beta = inverse + ratio * self.last, jnp.sqrt(ratio) * self.last
        out = self.with_column(step, alpha, beta, counts=counts, anew=ratio == 0)
        last = jnp.where(counts, inverse, self.last)
        return dataclasses.replace(out, last=last)

    def stats(self, scale: Inexact[Array, ""]) -> dict[str, Array]:
        """In the units of A; `scale` is negative for a negative definite one."""
        scale = scale.astype(self.alphas.dtype)
        return {"alphas": scale * self.alphas, "betas": jnp.abs(scale) * self.betas}
