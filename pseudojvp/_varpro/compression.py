import jax
import jax.numpy as jnp

from .model import Observations


def compress(observations: Observations, shift_shape: tuple[int, ...] | None):
    """Observations with at most m + 1 columns and the same fit of θ.

    With Y (m × k) and the gain g (1 × k), [Y; g] = [L; l] Qᴴ with orthonormal columns in
    Q. Every residual is (Y − o g − Φ C) = (L − o l − Φ C Q) Qᴴ for the C that minimises
    it, so that ‖r‖², JᵀJ and Jᵀr are those of L with the gain l. Without an offset,
    L alone: the factor of Y Yᴴ. It comes from the QR of Yᴴ, not from Y Yᴴ, which would
    lose half of the digits.

    Not where the columns differ in more than their data, or are few already.
    """
    data, gain = observations.data, observations.gain
    rows, columns = data.shape
    stacked = data
    if shift_shape is not None:
        stacked = jnp.concatenate([data, gain[None, :]])
    own_shift = shift_shape is not None and len(shift_shape) == 2
    if not observations.shares_weights or own_shift or columns <= stacked.shape[0]:
        return observations
    # Q is never needed. Constant: the derivatives of a fit are not taken through it.
    lower = jnp.linalg.qr(jax.lax.stop_gradient(stacked).conj().T, mode="r").conj().T
    if shift_shape is None:
        return Observations(lower, observations.weights, jnp.zeros(rows, gain.dtype))
    return Observations(lower[:rows], observations.weights, lower[rows])
