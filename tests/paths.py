"""Paths A(t) x(t) = b(t) of constant rank, of several shapes and structures.

A(t) = L(t) R(t), where L has independent columns and R independent rows; L, R and b are
polynomials in t. The singular values of A(0) lie between 1 and 4, so that tolerances
can be tight.
"""

from typing import NamedTuple

import jax.numpy as jnp
import lineax as lx
import numpy as np


class Path(NamedTuple):
    """Coefficients in t, lowest degree first."""

    left: np.ndarray  # (4, rows, rank)
    right: np.ndarray  # (4, rank, cols)
    vector: np.ndarray  # (degree + 1, rows)


def evaluate(coefficients, t):
    t, value = jnp.asarray(t, coefficients.dtype), coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        value = coefficient + t * value
    return jnp.asarray(value)


def _random(rng, is_complex, *shape):
    values = rng.standard_normal(shape)
    return values + 1j * rng.standard_normal(shape) if is_complex else values


def _factor(rng, is_complex, rows, rank, largest=2.0):
    """A polynomial whose constant term has singular values from 1 to `largest`."""
    coefficients = 0.2 * _random(rng, is_complex, 4, rows, rank)
    q, _ = np.linalg.qr(_random(rng, is_complex, rows, rank))
    coefficients[0] = q * np.linspace(1, largest, rank)
    return coefficients


def _masked(rng, is_complex, mask):
    """A square polynomial with the zeros of `mask` and a strong diagonal."""
    coefficients = 0.2 * _random(rng, is_complex, 4, 5, 5) * mask
    coefficients[0] += np.diag(np.linspace(1, 2, 5))
    return coefficients


_SHAPES = {
    "tall": (7, 4, 4),
    "wide": (4, 7, 4),
    "square": (5, 5, 5),
    "tall-deficient": (7, 4, 2),
    "wide-deficient": (4, 7, 2),
    "square-deficient": (5, 5, 3),
    "definite": (5, 5, 5),
    "negative-definite": (5, 5, 5),
    "semidefinite": (5, 5, 3),
    "negative-semidefinite": (5, 5, 3),
    "consistent-semidefinite": (5, 5, 3),
    "diagonal": (5, 5, 5),
    "diagonal-deficient": (5, 5, 3),
    "tridiagonal": (5, 5, 5),
    "lower-triangular": (5, 5, 5),
    "upper-triangular": (5, 5, 5),
    "consistent-clustered-semidefinite": (5, 5, 3),
}
_MASKS = {
    "diagonal": np.eye(5),
    "diagonal-deficient": np.eye(5),
    "tridiagonal": np.tri(5, k=1) * np.tri(5, k=1).T,
    "lower-triangular": np.tri(5),
    "upper-triangular": np.tri(5).T,
}
TAGS = {
    "definite": lx.positive_semidefinite_tag,
    "negative-definite": lx.negative_semidefinite_tag,
    "semidefinite": lx.positive_semidefinite_tag,
    "negative-semidefinite": lx.negative_semidefinite_tag,
    "consistent-semidefinite": lx.positive_semidefinite_tag,
    "consistent-clustered-semidefinite": lx.positive_semidefinite_tag,
    "diagonal": lx.diagonal_tag,
    "diagonal-deficient": lx.diagonal_tag,
    "tridiagonal": lx.tridiagonal_tag,
    "lower-triangular": lx.lower_triangular_tag,
    "upper-triangular": lx.upper_triangular_tag,
}


def _multiply(left, right):
    """The product of two polynomials."""
    terms = [
        sum(left[i] @ right[k - i] for i in range(k + 1) if i < 4 and k - i < len(right))
        for k in range(len(left) + len(right) - 1)
    ]
    return np.stack(terms)


def path_of(kind, is_complex):
    rows, cols, rank = _SHAPES[kind]
    rng = np.random.default_rng(list(_SHAPES).index(kind))
    vector = _random(rng, is_complex, 4, rows)
    if kind in _MASKS:
        left = _masked(rng, is_complex, _MASKS[kind])[:, :, :rank]
        right = np.zeros((4, rank, cols), left.dtype)
        right[0] = np.eye(rank, cols)
        return Path(left, right, vector)
    left = _factor(rng, is_complex, rows, rank, 1.05 if "clustered" in kind else 2.0)
    if "definite" not in kind:
        right = _factor(rng, is_complex, cols, rank).conj().swapaxes(1, 2)
        return Path(left, right, vector)
    right = left.conj().swapaxes(1, 2) * (-1 if "negative" in kind else 1)
    if "consistent" in kind:
        vector = _multiply(left, _multiply(right, vector[:, :, None]))[:, :, 0]
    return Path(left, right, vector)
