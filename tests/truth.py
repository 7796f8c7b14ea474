"""Derivatives of x(t) = A(t)† b(t) in NumPy, exact to rounding: Taylor arithmetic.

A = L R with independent columns in L and independent rows in R has
A† = R^H (R R^H)^-1 (L^H L)^-1 L^H (MacDuffee). Everything here is an array of Taylor
coefficients in t, lowest order first.
"""

import math

import numpy as np


ORDER = 3


def solution_derivatives(path, t=0.0, *, operator_moves=True, vector_moves=True):
    """x, x', x'', x''' at `t`; what does not move is held at its value there."""
    inverse = pseudoinverse_series(path, t, operator_moves)
    vector = _expand(path.vector, t, vector_moves)[..., None]
    series = multiply(inverse, vector)[..., 0]
    return _to_derivatives(series)


def pseudoinverse_series(path, t=0.0, moves=True):
    left, right = _expand(path.left, t, moves), _expand(path.right, t, moves)
    left_inverse = multiply(inverse(multiply(adjoint(left), left)), adjoint(left))
    right_inverse = multiply(adjoint(right), inverse(multiply(right, adjoint(right))))
    return multiply(right_inverse, left_inverse)


def loss_derivatives(path, weights, t=0.0):
    """Those of Σ weights |x|², at `t`."""
    inverse = pseudoinverse_series(path, t)
    x = multiply(inverse, _expand(path.vector, t, True)[..., None])
    return _to_derivatives(multiply(adjoint(x), weights[:, None] * x)[:, 0, 0].real)


def path_tangents(path, t=0.0):
    """A' and b' at `t`."""
    matrix = multiply(_expand(path.left, t, True), _expand(path.right, t, True))
    return matrix[1], _expand(path.vector, t, True)[1]


def central_difference(function, order, step=0.01):
    """The derivative at 0 from 13 points; good to about 1e-11, 1e-9, 1e-7."""
    points = np.arange(-6, 7)
    values = np.stack([function(step * point) for point in points])
    vandermonde = np.vander(points.astype(float), increasing=True)
    coefficients = np.linalg.solve(vandermonde, values.reshape(13, -1))[order]
    derivative = math.factorial(order) * coefficients / step**order
    return derivative.reshape(values.shape[1:])


def pairing(*pairs):
    """Re Σ cotangent * tangent: the pairing of JAX's transposes, without conjugate."""
    return sum(np.sum(np.asarray(a) * np.asarray(b)).real for a, b in pairs)


def multiply(left, right):
    return np.stack(
        [sum(left[i] @ right[k - i] for i in range(k + 1)) for k in range(ORDER + 1)]
    )


def inverse(series):
    out = [np.linalg.inv(series[0])]
    for k in range(1, ORDER + 1):
        out.append(-out[0] @ sum(series[i] @ out[k - i] for i in range(1, k + 1)))
    return np.stack(out)


def adjoint(series):
    return series.conj().swapaxes(-1, -2)


def _expand(coefficients, t, moves):
    """The polynomial about `t`, to order `ORDER`."""
    out = np.zeros((ORDER + 1, *coefficients.shape[1:]), coefficients.dtype)
    for degree, coefficient in enumerate(coefficients):
        for k in range(min(degree, ORDER if moves else 0) + 1):
            out[k] += math.comb(degree, k) * t ** (degree - k) * coefficient
    return out


def _to_derivatives(series):
    return np.stack([math.factorial(k) * term for k, term in enumerate(series)])
