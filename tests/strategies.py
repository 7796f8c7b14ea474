"""Random systems A x = b for hypothesis, with their pseudoinverses.

A draw is a seed and a few shapes of trouble (rank, condition, scales, a vector in or
beside the range), so that a new example costs no new compilation: shapes, dtypes and
solvers come from the bounded list of `claims.each_cell`.
"""

from typing import NamedTuple

import numpy as np
from claims import SCALES
from hypothesis import assume, settings, strategies as st


# Fixed examples: the same in every run, and nothing is written to disk.
FIXED = settings(derandomize=True, deadline=None, database=None)

MASKS = {
    "diagonal": np.eye,
    "tridiagonal": lambda size: np.tri(size, k=1) * np.tri(size, k=1).T,
    "lower": np.tri,
    "unit_lower": lambda size: np.tri(size, k=-1),
    "upper": lambda size: np.tri(size).T,
}


class System(NamedTuple):
    """A x = b, A and b times powers of two; the truths are those without the powers."""

    matrix: np.ndarray  # of the dtype, scaled
    vector: np.ndarray  # of the dtype, scaled
    unscaled: np.ndarray  # from here on in double precision
    pseudoinverse: np.ndarray
    solution: np.ndarray
    singular_values: np.ndarray
    rank: int
    residual_norm: float
    vector_norm: float
    exponents: tuple[int, int]  # of the scales of A and b

    @property
    def norm(self):
        return self.singular_values[0] if self.rank else 1.0

    @property
    def condition(self):
        return self.norm / self.singular_values[self.rank - 1] if self.rank else 1.0

    def with_vector(self, vector):
        """The system of this operator and another vector; both unscaled."""
        vector = vector.astype(self.unscaled.dtype)
        solution = self.pseudoinverse @ vector
        return self._replace(
            solution=solution,
            residual_norm=float(np.linalg.norm(vector - self.unscaled @ solution)),
            vector_norm=float(np.linalg.norm(vector)),
        )

    def unscale(self, solution):
        """To the solution of the system without the powers of two."""
        solution = np.asarray(solution, self.pseudoinverse.dtype)
        of_matrix, of_vector = self.exponents
        with np.errstate(invalid="ignore"):  # a failed solve may be infinite
            # In two steps: the factor itself may overflow.
            return solution * 2.0**-of_vector * 2.0**of_matrix

    def error_bound(self, claim, dtype):
        """Wedin's, for a relative backward error of 100 `claim.unit`.

        For the normal equations, that of A^H A x = A^H b.
        """
        kappa, length = self.condition, np.linalg.norm(self.solution)
        relative_vector = self.vector_norm / self.norm
        bound = kappa**claim.power * (length + relative_vector)
        if claim.power == 1:
            bound = bound + kappa**2 * self.residual_norm / self.norm
        if claim.tolerance:  # the absolute part
            bound = bound + (kappa / self.norm) ** claim.power
        bound = claim.unit(dtype) * bound
        if claim.twice:
            growth = kappa ** (2 * claim.power)
            bound = bound + np.finfo(dtype).eps * growth * (length + relative_vector)
        return 100 * bound

    def relative_error(self, solution, cell):
        """The error of the scaled solution, in multiples of the bound, or NaN."""
        error = np.linalg.norm(self.unscale(solution) - self.solution)
        bound = self.error_bound(cell.claim, cell.dtype)
        return error / bound if bound > 0 else error


def numbers(rng, shape, dtype, integers):
    """Small integers, of which products are exact, or normal variates."""
    parts = [
        rng.integers(-3, 4, shape) if integers else rng.normal(size=shape)
        for _ in range(2 if dtype.kind == "c" else 1)
    ]
    return parts[0] + 1j * parts[1] if dtype.kind == "c" else parts[0].astype(float)


def _orthonormal(rng, size, rank, dtype):
    return np.linalg.qr(numbers(rng, (size, rank), dtype, False))[0]


def _general(rng, shape, rank, dtype, spectrum):
    """A = L R; `spectrum` are its singular values, or `None` for small integers."""
    rows, cols = shape
    if spectrum is None:
        left = numbers(rng, (rows, rank), dtype, True)
        return left @ numbers(rng, (rank, cols), dtype, True)
    left = _orthonormal(rng, rows, rank, dtype)
    return left * spectrum @ _orthonormal(rng, cols, rank, dtype).conj().T


def _definite(rng, size, rank, dtype, spectrum):
    if spectrum is None:
        factor = numbers(rng, (size, rank), dtype, True)
        return factor @ factor.conj().T
    factor = _orthonormal(rng, size, rank, dtype)
    return factor * spectrum @ factor.conj().T


def _masked(rng, kind, size, rank, dtype, spectrum):
    """Triangular, tridiagonal or diagonal: `size - rank` zeros on the diagonal."""
    matrix = numbers(rng, (size, size), dtype, spectrum is None) * MASKS[kind](size)
    if spectrum is not None:
        matrix = matrix / (2 * size)  # well conditioned, apart from the diagonal
    if kind == "unit_lower":
        return matrix + np.eye(size)
    diagonal = np.ones(size) if spectrum is None else np.resize(spectrum, size)
    diagonal = diagonal * (np.arange(size) < rank)
    return matrix - np.diag(np.diag(matrix)) + np.diag(rng.permutation(diagonal))


def _matrix(rng, kind, shape, rank, dtype, spectrum):
    if kind == "general":
        return _general(rng, shape, rank, dtype, spectrum)
    size = shape[0]
    if kind == "positive":
        return _definite(rng, size, rank, dtype, spectrum)
    if kind == "negative":
        return -_definite(rng, size, rank, dtype, spectrum)
    if kind == "near_identity":
        noise = numbers(rng, shape, dtype, False)
        return np.eye(size) + 0.5 * noise / np.linalg.norm(noise, 2)
    return _masked(rng, kind, size, rank, dtype, spectrum)


def system_of(matrix, vector, exponents, dtype, zero_below):
    """The truth by NumPy's SVD; relative singular values below `zero_below` are zero."""
    matrix, vector = matrix.astype(dtype), vector.astype(dtype)
    wide = np.result_type(dtype, np.float64)
    u, s, vh = np.linalg.svd(matrix.astype(wide), full_matrices=False)
    rank = int(np.sum(s > zero_below * s.max(initial=0)))
    u, kept, vh = u[:, :rank], s[:rank], vh[:rank]
    pseudoinverse = (vh.conj().T / kept) @ u.conj().T
    residual = vector - u @ (u.conj().T @ vector)
    of_matrix, of_vector = (dtype.type(2.0**exponent) for exponent in exponents)
    return System(
        matrix * of_matrix,
        vector * of_vector,
        matrix.astype(wide),
        pseudoinverse,
        pseudoinverse @ vector,
        s,
        rank,
        float(np.linalg.norm(residual)),
        float(np.linalg.norm(vector)),
        exponents,
    )


@st.composite
def systems(draw, cell, *, claimed=True, scaled=True, condition=None):
    """Systems that the solver of `cell` claims; or any of its kind and shape.

    No singular value lies between rounding and `condition`, so that the rank is clear.
    If `condition` is given there are no matrices of integers, which rarely are as good.
    """
    claim, shape, dtype = cell.claim, cell.shape, cell.dtype
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed"))
    size, eps = min(shape), np.finfo(dtype).eps
    full = claimed and not claim.deficient
    rank = size if full else draw(st.integers(0, size), label="rank")
    spectrum = None
    if condition is not None or draw(st.booleans(), label="with a spectrum"):
        limit = np.log10(condition or claim.max_condition(dtype, claimed))
        logs = st.floats(0, limit if claim.dense else 0.5)
        spectrum = 10 ** -np.array(draw(st.tuples(*[logs] * rank), label="-log10 σ"))
    condition = condition or claim.max_condition(dtype, claimed)
    matrix = _matrix(rng, claim.kind, shape, rank, dtype, spectrum)
    vector = numbers(rng, shape[:1], dtype, spectrum is None)
    vector = vector * draw(st.sampled_from([0, 1, 1, 1]), label="vector times")
    if draw(st.booleans(), label="in the range") or (claim.consistent and claimed):
        vector = matrix @ numbers(rng, shape[1:], dtype, spectrum is None)
    exponents = (0, 0)
    if scaled and claim.scalable:
        exponent = st.integers(-SCALES[dtype], SCALES[dtype])
        exponents = draw(st.tuples(exponent, exponent), label="exponents of scales")
    system = system_of(matrix, vector, exponents, dtype, 0.5 / condition)
    rest = system.singular_values[system.rank :]
    assume(np.all(rest <= 0.5 * eps * max(shape) * system.norm))
    assume(system.rank == size or not full)
    return system


def direction(rng, claim, system, dtype):
    """A tangent of A that keeps the rank, to first order, and what the tags say."""
    matrix = system.unscaled
    rows, cols = matrix.shape
    noise = numbers(rng, (rows, rows), dtype, False)
    if claim.kind == "general":
        return noise @ matrix + matrix @ numbers(rng, (cols, cols), dtype, False)
    if claim.kind in ("positive", "negative"):
        return noise @ matrix + (noise @ matrix).conj().T
    if claim.kind == "near_identity":
        return noise
    if claim.kind == "diagonal":
        return noise * matrix
    return noise * MASKS[claim.kind](rows)


def t_solution(system, t_matrix, t_vector):
    """x' by Golub & Pereyra's formula for (A†)'; of an unscaled system."""
    a, p, vector = system.unscaled, system.pseudoinverse, system.vector
    da, da_h = t_matrix, t_matrix.conj().T
    p_h = p.conj().T
    moved = -p @ (da @ (p @ vector)) + p @ (p_h @ (da_h @ (vector - a @ (p @ vector))))
    outside = da_h @ (p_h @ (p @ vector))
    return moved + outside - p @ (a @ outside) + p @ t_vector
