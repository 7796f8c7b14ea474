"""Value and derivatives of a function against a formula in NumPy alone."""

import jax
import numpy as np
from checks import assert_close, jit


def differences(truth, at, direction, step=1e-3):
    """A central difference of fourth order, with an error near 1e-11."""
    along = lambda t: np.asarray(truth(at + t * direction))
    near, far = along(step) - along(-step), along(2 * step) - along(-2 * step)
    return (8 * near - far) / (12 * step)


def assert_right(function, truth, at, *, rtol=1e-7, compiled=jit):
    """The value of `function`, its JVP in a direction and its VJP for a cotangent.

    `truth` is the same function of NumPy arrays. The tolerance is that of differences.
    """
    at, rng = np.asarray(at, float), np.random.default_rng(0)
    want = np.asarray(truth(at))
    direction, cotangent = rng.normal(size=at.shape), rng.normal(size=want.shape)

    @compiled
    def both(at, direction, cotangent):
        value, tangent = jax.jvp(function, (at,), (direction,))
        return value, tangent, jax.vjp(function, at)[1](cotangent)[0]

    value, tangent, gradient = both(at, direction, cotangent)
    slope = differences(truth, at, direction)
    assert value.dtype == tangent.dtype == gradient.dtype == float
    assert_close(value, want, 1e-9)
    assert_close(tangent, slope, rtol)
    got, product = np.vdot(gradient, direction), cotangent * slope
    np.testing.assert_allclose(got, product.sum(), atol=rtol * np.abs(product).sum())
