"""Ill-conditioned problems, and their solutions and derivatives to 50 digits in mpmath.

A problem is a path A(t) = L(t) R(t), b(t), whose coefficients are floating-point
numbers; so are those of A, exactly. What a solver is given and what mpmath is given are
the same numbers, and rounding of the input does not count as an error.
"""

import functools as ft
from typing import NamedTuple

import mpmath as mp
import numpy as np


# The formula below goes through (L^H L)^-1, and x'' loses some 4 log10(κ) digits: of 50
# none would be left at κ = 1e12.
DIGITS = 50
WORKING_DIGITS = 150


class Path(NamedTuple):
    """Coefficients of 1, t and t²."""

    left: np.ndarray  # (3, rows, rank)
    right: np.ndarray  # (3, rank, cols)
    vector: np.ndarray  # (3, rows)

    @property
    def matrix(self) -> np.ndarray:
        """The coefficients of A; exact."""
        return _multiply(self.left, self.right)


# Rows, columns and rank; the zeros of the matrix.
_SHAPES = {
    "tall": (6, 4, 4),
    "tall-residual": (6, 4, 4),
    "wide": (4, 6, 4),
    "square": (4, 4, 4),
    "definite": (4, 4, 4),
    "diagonal": (4, 4, 4),
    "upper-triangular": (4, 4, 4),
    "tridiagonal": (4, 4, 4),
    "tall-deficient": (6, 4, 2),
    "wide-deficient": (4, 6, 2),
}
_MASKS = {
    "diagonal": np.eye(4),
    "upper-triangular": np.tri(4).T,
    "tridiagonal": np.tri(4, k=1) * np.tri(4, k=1).T,
}


def make_path(kind: str, condition: float, dtype, seed: int) -> Path:
    """A random path with ‖A‖ ≈ ‖A'‖ ≈ ‖A''‖ and A(0) of about the `condition` asked for.

    A(0) is rounded, so that its own is hardly above 1/eps. b(0) = A(0) x and, for
    "tall-residual" and "tall-deficient", a residual of the same length; x, b', b'' and
    A', A'' are random, the latter within the structure of A, or along its rank.
    """
    rng = np.random.default_rng(seed)
    rows, cols, rank = _SHAPES[kind]
    dtype = np.dtype(dtype)

    def random(*shape):
        values = rng.standard_normal(shape)
        if dtype.kind == "c":
            values = values + 1j * rng.standard_normal(shape)
        return values

    if rank < min(rows, cols):
        left, right = _deficient_factors(rng, rows, cols, rank, condition, dtype)
    else:
        matrix = _full_rank_matrix(random, kind, rows, cols, condition).astype(dtype)
        identity = np.zeros((3, rank, rank), dtype)
        identity[0] = np.eye(rank)
        left, right = (matrix, identity) if rows >= cols else (identity, matrix)

    vector = random(3, rows) / np.sqrt(rows)
    consistent = left[0] @ right[0] @ random(cols)
    if kind in ("tall-residual", "tall-deficient"):
        q, _ = np.linalg.qr(left[0].astype(vector.dtype))
        residual = vector[0] - q @ (q.conj().T @ vector[0])
        residual *= np.linalg.norm(consistent) / np.linalg.norm(residual)
        consistent = consistent + residual
    vector[0] = consistent
    return Path(left, right, vector.astype(dtype))


def _full_rank_matrix(random, kind, rows, cols, condition):
    rank = min(rows, cols)
    scale = np.geomspace(1, 1 / condition, rank)
    higher = random(2, rows, cols) / np.sqrt(max(rows, cols))
    left, _ = np.linalg.qr(random(rows, rank))
    right, _ = np.linalg.qr(random(cols, rank))
    if kind == "definite":
        right = left
        higher = higher + higher.conj().swapaxes(1, 2)
    matrix = (left * scale) @ right.conj().T
    if kind == "definite":
        matrix = (matrix + matrix.conj().T) / 2
    elif kind == "diagonal":
        matrix = np.diag(scale)
    elif kind == "upper-triangular":
        matrix = np.linalg.qr(matrix, mode="r")
    elif kind == "tridiagonal":
        matrix = _tridiagonal(random, condition)
    mask = _MASKS.get(kind, 1)
    return np.stack([matrix, *higher]) * mask


def _tridiagonal(random, condition):
    """The last entry is the one that makes it singular, and a little more."""
    matrix = random(4, 4) * _MASKS["tridiagonal"]
    matrix[3, 3] = matrix[3, :3] @ np.linalg.solve(matrix[:3, :3], matrix[:3, 3])
    matrix /= np.linalg.norm(matrix, 2)
    matrix[3, 3] += 1 / condition
    return matrix


def _deficient_factors(rng, rows, cols, rank, condition, dtype):
    """L(0) has columns of integers times powers of two, the rest small integers.

    So the product is exact in floating point, and A(t) has rank `rank`, exactly.
    """

    def integers(*shape):
        values = rng.integers(-2, 3, shape).astype(float)
        if dtype.kind == "c":
            values = values + 1j * rng.integers(-2, 3, shape)
        return values

    while True:
        tall, short = integers(2, max(rows, cols), rank), integers(2, rank, 4)
        well = max(np.linalg.cond(tall[0]), np.linalg.cond(short[0]))
        if well < 4:
            break
    powers = 2.0 ** -np.round(np.linspace(0, np.log2(condition), rank))
    tall[0] *= powers
    tall, short = (
        np.concatenate([factor, np.zeros((1, *factor.shape[1:]))]).astype(dtype)
        for factor in (tall, short)
    )
    if rows >= cols:
        return tall, short
    return short.swapaxes(1, 2), tall.swapaxes(1, 2)


class Truth(NamedTuple):
    """x, x' and x'' at t = 0 as arrays of mpmath numbers, and what their condition is.

    - `condition`: κ = σ_1 / σ_rank of A.
    - `amplification`: for each of the three, the factor by which relative perturbations
        of the data grow: κ + κ² ‖b − A x‖ / (‖A‖ ‖x‖) for x, κ for the others.
    """

    derivatives: list[np.ndarray]
    condition: float
    amplification: tuple[float, float, float]


@ft.cache
def truth(kind: str, condition: float, dtype: str, seed: int) -> Truth:
    return true_derivatives(make_path(kind, condition, dtype, seed))


def true_derivatives(path: Path, digits: int = WORKING_DIGITS) -> Truth:
    with mp.workdps(digits):
        inverse = pseudoinverse_series(path)
        x, first, half = _multiply(inverse, exact(path.vector)[..., None])[..., 0]
        derivatives = [x, first, 2 * half]
    with mp.workdps(DIGITS):
        matrix = exact(path.matrix[0])
        values = list(mp.svd_c(to_mp(matrix), compute_uv=False))
        condition = values[0] / values[path.left.shape[-1] - 1]
        residual = exact(path.vector[0]) - matrix @ x
        growth = _growth(condition, residual, values[0], x)
    condition = float(condition)
    return Truth(derivatives, condition, (growth, condition, condition))


def _growth(condition, residual, size, solution) -> float:
    """Björck (1996), theorem 1.4.6; ‖b‖ ≤ ‖A‖ ‖x‖ + ‖r‖ is in the factor before it."""
    by_residual = condition**2 * norm(residual) / (size * norm(solution))
    return float(condition + by_residual)


def truncated_solution(path: Path, rank: int) -> tuple[np.ndarray, float]:
    """A_r† b at t = 0, for the nearest A_r of that rank, and its amplification."""
    with mp.workdps(DIGITS):
        matrix, vector = exact(path.matrix[0]), exact(path.vector[0])
        u, values, vh = map(from_mp, mp.svd_c(to_mp(matrix)))
        u, values, vh = u[:, :rank], values[:rank, 0], vh[:rank]
        solution = vh.conj().T @ ((u.conj().T @ vector) / values)
        residual = vector - u @ (values * (vh @ solution))
        growth = _growth(values[0] / values[-1], residual, values[0], solution)
    return solution, growth


def pseudoinverse_series(path: Path) -> np.ndarray:
    """The Taylor coefficients of A† = R^H (R R^H)^-1 (L^H L)^-1 L^H (MacDuffee)."""
    left, right = exact(path.left), exact(path.right)
    left_h, right_h = left.conj().swapaxes(1, 2), right.conj().swapaxes(1, 2)
    left_inverse = _multiply(_inverse(_multiply(left_h, left)), left_h)
    right_inverse = _multiply(right_h, _inverse(_multiply(right, right_h)))
    return _multiply(right_inverse, left_inverse)


def _multiply(left, right):
    return np.stack(
        [sum(left[i] @ right[k - i] for i in range(k + 1)) for k in range(len(left))]
    )


def _inverse(series):
    out = [from_mp(to_mp(series[0]) ** -1)]
    for k in range(1, len(series)):
        out.append(-out[0] @ sum(series[i] @ out[k - i] for i in range(1, k + 1)))
    return np.stack(out)


def exact(array: np.ndarray) -> np.ndarray:
    """The same numbers as mpmath ones, in an array of objects."""
    if array.dtype == object:
        return array
    number = mp.mpc if np.iscomplexobj(array) else mp.mpf
    return np.frompyfunc(number, 1, 1)(array.astype(object))


def to_mp(array) -> mp.matrix:
    return mp.matrix(array.tolist())


def from_mp(matrix: mp.matrix) -> np.ndarray:
    return np.array(matrix.tolist(), dtype=object)


def norm(array) -> mp.mpf:
    return mp.norm(list(np.ravel(array)))


def relative_error(value: np.ndarray, true: np.ndarray) -> float:
    """‖value − true‖ / ‖true‖; NaN if the value is not finite."""
    if not np.all(np.isfinite(value)):
        return float("nan")
    with mp.workdps(DIGITS):
        return float(norm(exact(value) - true) / norm(true))
