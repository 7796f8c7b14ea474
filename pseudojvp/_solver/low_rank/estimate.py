"""The condition of a low-rank update, by solves that are refined."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Inexact, Real

from ..._base.axes import while_loop
from ..._kernel.condition import estimate_of, largest_singular_value, PROBES, probes
from ..._operator import LowRankUpdate
from ..krylov.iteration import flat_adjoint_mv, flat_mv
from .refinement import LARGEST_ERROR, MOST_STEPS
from .sizes import largest_of_columns


class _Probed(eqx.Module):
    solved: Inexact[Array, "n p"]
    residuals: Inexact[Array, "n p"]
    norm: Real[Array, ""]  # of the residuals in units of the columns
    before: Real[Array, ""]  # the norm one step earlier
    step: Array


def reciprocal_condition(
    update: LowRankUpdate, transposed_solve: Callable[[Array], Array]
) -> tuple[Real[Array, ""], Bool[Array, ""]]:
    """That of M with its columns scaled, as by the direct solvers, and if it is certain.

    `transposed_solve` is an approximate M⁻ᵀ of a vector. Where what it makes of the
    probes is no inverse, it is refined as a solution is; and where that ends before the
    residual is a tenth of what the estimate leaves of a probe, or as allowed of a solve,
    nobody knows.
    """
    scale = largest_of_columns(update)
    if scale.size == 0:
        return jnp.ones((), scale.dtype), jnp.array(True)
    dtype, units = update.U.dtype, scale[:, None]
    vectors = probes(scale.size, PROBES, scale.dtype)
    mvs = flat_mv(update), flat_adjoint_mv(update)
    largest = largest_singular_value(scale, *mvs, vectors.astype(dtype))
    solve, mv = (
        jax.vmap(of_one, 1, 1)
        for of_one in (transposed_solve, flat_mv(update.transpose()))
    )
    right, size = (units * vectors).astype(dtype), jnp.linalg.norm(vectors)
    eps = jnp.finfo(scale.dtype).eps

    def told(probed):
        inverse = jnp.linalg.norm(probed.solved)
        estimate = estimate_of(largest, inverse, vectors.shape)
        allowed = jnp.maximum(0.1 * estimate, LARGEST_ERROR * eps)
        return estimate, probed.norm <= allowed * (largest * inverse + size)

    def goes_on(probed):
        halved = (probed.norm <= 0.5 * probed.before) & jnp.isfinite(probed.norm)
        halved &= (probed.step < MOST_STEPS) & ~told(probed)[1]
        return (probed.step == 0) | halved

    def advance(probed):
        solved = probed.solved + solve(probed.residuals)
        residuals = right - mv(solved)
        norm = jnp.linalg.norm(residuals / units.astype(dtype))
        better = (probed.step == 0) | (norm < probed.norm)
        keep = lambda new, old: jnp.where(better, new, old)
        return _Probed(
            solved=keep(solved, probed.solved),
            residuals=keep(residuals, probed.residuals),
            norm=keep(norm, probed.norm),
            before=probed.norm,
            step=probed.step + 1,
        )

    infinite = jnp.full_like(size, jnp.inf)
    start = _Probed(jnp.zeros_like(right), right, infinite, infinite, jnp.array(0))
    return told(while_loop(goes_on, advance, start))
