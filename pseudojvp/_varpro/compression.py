import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jaxtyping import Array, Bool, Inexact, Real

from .._base.axes import cond
from .._base.order import after_in_batch
from .._kernel.products import matmul
from .model import Observations


# Of any ‖r‖², what rounding in Y Yᴴ may change.
_LARGEST_LOSS = 1e-12


def compress(
    observations: Observations,
    shift_shape: tuple[int, ...] | None,
    coefficients: int | None,
):
    """Observations with at most m + 1 columns and the same fit of θ.

    With Y (m × k) and the gain g (1 × k), [Y; g] = [L; l] Qᴴ with orthonormal columns in
    Q. Every residual is (Y − o g − Φ C) = (L − o l − Φ C Q) Qᴴ for the C that minimises
    it, so that ‖r‖², JᵀJ and Jᵀr are those of L with the gain l. Without an offset,
    L alone: the factor of Y Yᴴ.

    Not where the columns differ in more than their data, or are few already, nor for
    `coefficients` that are `None` or have bounds.
    """
    data, gain = observations.data, observations.gain
    rows, columns = data.shape
    stacked = data
    if shift_shape is not None:
        stacked = jnp.concatenate([data, gain[None, :]])
    if coefficients is None or observations.limits is not None:
        return observations
    own_shift = shift_shape is not None and len(shift_shape) == 2
    if not observations.shares_weights or own_shift or columns <= stacked.shape[0]:
        return observations
    # Q is never needed. Constant: the derivatives of a fit are not taken through it.
    constant = jax.lax.stop_gradient((stacked, observations.weights))
    # A residual is of W Y less a matrix of this rank.
    rank = coefficients + len(stacked) - rows
    lower = _factor(*constant, rows, rank)
    if shift_shape is None:
        return Observations(lower, observations.weights, jnp.zeros(rows, gain.dtype))
    return Observations(lower[:rows], observations.weights, lower[rows])


def _factor(
    stacked: Inexact[Array, "p k"],
    weights: Real[Array, " m"] | None,
    rows: int,
    rank: int,
) -> Inexact[Array, "p p"]:
    """L, by the Cholesky factorisation of Y Yᴴ where that has the digits."""

    def by_qr(earlier, stacked):
        return jnp.linalg.qr(after_in_batch(earlier, stacked).conj().T, mode="r").conj().T

    if jnp.finfo(stacked.dtype).eps > _LARGEST_LOSS:  # never enough in single precision
        return by_qr(None, stacked)
    gram = matmul(stacked, stacked.conj().T)
    lower = jnp.linalg.cholesky(gram)
    sound = _has_the_digits(gram[:rows, :rows], lower[:rows, :rows], weights, rank)
    # Under `vmap` both are computed, one after the other.
    ordered = after_in_batch(sound.astype(jnp.float32), lower)
    return cond(sound, lambda lower, _: lower, by_qr, ordered, stacked)


def _has_the_digits(
    gram: Inexact[Array, "m m"],
    lower: Inexact[Array, "m m"],
    weights: Real[Array, " m"] | None,
    rank: int,
) -> Bool[Array, ""]:
    """Whether eps ‖W Y‖² is at most `_LARGEST_LOSS` of every ‖r‖².

    No matrix of rank n is closer to W Y than the sum of all but the n largest eigenvalues
    λ of G = W Y Yᴴ W (Eckart & Young), which is at least (m − n)² / Σ 1/λ (the arithmetic
    and the harmonic mean). Σ 1/λ is the trace of G⁻¹; rows of weight zero do not count,
    and the inverse of what is left is at most that part of the inverse.
    """
    rows = gram.shape[0]
    info = jnp.finfo(gram.dtype)
    squares = jnp.diagonal(gram).real
    inverse = jsl.solve_triangular(lower, jnp.eye(rows, dtype=lower.dtype), lower=True)
    inverse_squares = jnp.sum(jnp.abs(inverse) ** 2, axis=0)
    w = jnp.ones(rows) if weights is None else weights
    w = w.astype(squares.dtype) ** 2
    counted = w > 0
    trace = jnp.sum(jnp.where(counted, inverse_squares / jnp.where(counted, w, 1), 0))
    freedom = jnp.maximum(jnp.sum(counted) - rank, 0)
    least = freedom.astype(trace.dtype) ** 2 / trace
    # Not so for NaN.
    exact = jnp.min(squares) >= info.tiny / info.eps  # no product underflows
    return exact & (info.eps * jnp.sum(w * squares) <= _LARGEST_LOSS * least)
