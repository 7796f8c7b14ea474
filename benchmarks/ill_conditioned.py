"""Ill-conditioned problems with their solutions and derivatives to 50 digits in mpmath.

The reference gets the floating-point numbers that the solvers get. Only a rank-deficient
A = L R is rounded before a solver sees it, which counts as an error of the solver.
"""

import dataclasses

import mpmath as mp
import numpy as np


# The formula goes through (L^T L)^-1: for x″ it loses some 4 log10(κ) digits.
_DIGITS = 150


@dataclasses.dataclass(frozen=True)
class Problem:
    """A path A(t), b(t) at t = 0.

    - `matrix`, `vector`: the coefficients of 1, t and t², (3, rows, cols) and (3, rows).
    - `derivatives`: x, x′ and x″, arrays of mpmath numbers.
    - `amplification`: for each, the factor by which relative changes of the data grow:
        κ + κ² ‖b − A x‖ / (‖A‖ ‖x‖) for x (Björck 1996, theorem 1.4.6), κ for the others.
    """

    matrix: np.ndarray
    vector: np.ndarray
    derivatives: tuple[np.ndarray, ...]
    amplification: tuple[float, ...]


def make_problem(
    shape: tuple[int, int, int],
    residual: bool,
    condition: float,
    dtype: str,
    seed: int,
) -> Problem:
    """A random one with ‖A‖, ‖A′‖ and ‖A″‖ about 1, and κ about `condition`.

    - `shape`: rows, columns and rank, which is constant along the path.
    - `residual`: whether b has a part outside the range of A(0), as long as that within.
    """
    rng = np.random.default_rng(seed)
    rows, cols, rank = shape
    u, _ = np.linalg.qr(rng.standard_normal((rows, rank)))
    v, _ = np.linalg.qr(rng.standard_normal((cols, rank)))
    scale = np.geomspace(1, 1 / condition, rank)
    left = rng.standard_normal((3, rows, rank)) / np.sqrt(rows)
    right = rng.standard_normal((3, rank, cols)) / np.sqrt(cols)
    left[0], right[0] = u * scale, v.T
    if rank == cols:
        left[0], right = left[0] @ v.T, _constant(np.eye(rank))
    elif rank == rows:
        left, right[0] = _constant(np.eye(rank)), left[0] @ v.T
    left, right = left.astype(dtype), right.astype(dtype)
    matrix = _multiply(left.astype(float), right.astype(float))

    vector = rng.standard_normal((3, rows)) / np.sqrt(rows)
    consistent = matrix[0] @ rng.standard_normal(cols)
    if residual:
        q, _ = np.linalg.qr(left[0].astype(float))
        outside = vector[0] - q @ (q.T @ vector[0])
        outside *= np.linalg.norm(consistent) / np.linalg.norm(outside)
        consistent = consistent + outside
    vector[0] = consistent
    vector = vector.astype(dtype)

    derivatives, amplification = _reference(left, right, vector)
    return Problem(matrix.astype(dtype), vector, derivatives, amplification)


def relative_error(value: np.ndarray, true: np.ndarray) -> float:
    """‖value − true‖ / ‖true‖."""
    with mp.workdps(_DIGITS):
        return float(_norm(_exact(value) - true) / _norm(true))


def _reference(left, right, vector):
    """Taylor arithmetic with A† = R^T (R R^T)^-1 (L^T L)^-1 L^T (MacDuffee)."""
    with mp.workdps(_DIGITS):
        left, right, vector = map(_exact, (left, right, vector))
        left_t, right_t = left.swapaxes(1, 2), right.swapaxes(1, 2)
        inner = _multiply(_inverse(_multiply(left_t, left)), left_t)
        outer = _multiply(right_t, _inverse(_multiply(right, right_t)))
        inverse = _multiply(outer, inner)
        x, first, half = _multiply(inverse, vector[..., None])[..., 0]

        matrix = left[0] @ right[0]
        values = mp.svd_r(mp.matrix(matrix.tolist()), compute_uv=False)
        condition = values[0] / values[left.shape[-1] - 1]
        lever = _norm(vector[0] - matrix @ x) / (values[0] * _norm(x))
        growth = (condition + condition**2 * lever, condition, condition)
        return (x, first, 2 * half), tuple(map(float, growth))


def _constant(matrix):
    return np.stack([matrix, 0 * matrix, 0 * matrix])


def _multiply(left, right):
    return np.stack([sum(left[i] @ right[k - i] for i in range(k + 1)) for k in range(3)])


def _inverse(series):
    out = [np.array((mp.matrix(series[0].tolist()) ** -1).tolist(), dtype=object)]
    for k in (1, 2):
        out.append(-out[0] @ sum(series[i] @ out[k - i] for i in range(1, k + 1)))
    return np.stack(out)


def _exact(array):
    return np.frompyfunc(mp.mpf, 1, 1)(array.astype(object))


def _norm(array):
    return mp.norm(list(array))
