"""The hostile systems, by name: what `test_hostile.py` hands to every solver.

They come in few shapes, so that all of one shape are one batch of one program: square
10 x 10, tall 14 x 10, wide 10 x 14, and square ones under a tag. Sizes above eight keep
the library's condition estimate from being exact.
"""

import functools as ft
from typing import NamedTuple

import numpy as np


SIZE = 10
SHAPES = {"square": (SIZE, SIZE), "tall": (14, SIZE), "wide": (SIZE, 14)}
MODEST = ("huge", "tiny")  # scales that every solver has to manage
_PHASES = np.array([1, 1j, -1, -1j])  # exact in every dtype


class System(NamedTuple):
    name: str
    matrix: np.ndarray
    vector: np.ndarray
    good: bool = False  # every solver must succeed


def _orthonormal(rng, rows, cols):
    return np.linalg.qr(rng.standard_normal((rows, cols)))[0]


def _with_condition(rng, rows, cols, condition):
    short = min(rows, cols)
    values = np.logspace(0, -np.log10(condition), short)
    left, right = _orthonormal(rng, rows, short), _orthonormal(rng, cols, short)
    return left * values @ right.T


def _with_gap(rng, rows, cols):
    """All singular values one, but the last."""
    short = min(rows, cols)
    values = np.where(np.arange(short) == short - 1, 1e-5, 1.0)
    left, right = _orthonormal(rng, rows, short), _orthonormal(rng, cols, short)
    return left * values @ right.T


def _good(rng, rows, cols):
    return _with_condition(rng, rows, cols, 10)


def _product(rng, rows, cols, rank, dtype):
    """Of that rank but for its own rounding, in the dtype."""
    left = rng.standard_normal((rows, rank)).astype(dtype)
    return left @ rng.standard_normal((rank, cols)).astype(dtype)


def _integers(rng, rows, cols):
    """Of rank 6 exactly."""
    return rng.integers(-3, 4, (rows, 6)) @ rng.integers(-3, 4, (6, cols))


def _replaced(matrix, index, value):
    matrix = matrix.copy()
    matrix[index] = value
    return matrix


def scales(dtype):
    """Powers of two near 1e150 and 1e200, or 1e15 and 1e25 in single precision.

    By name: the square of the latter overflows, that of its inverse underflows.
    """
    double = np.finfo(dtype).bits == 64
    huge, vast = (498, 664) if double else (50, 84)
    return {
        "huge": 2.0**huge,
        "tiny": 2.0**-huge,
        "vast": 2.0**vast,
        "minute": 2.0**-vast,
    }


def _scaled(name, matrix, dtype, good=False):
    yield name, matrix, good
    for scale, factor in scales(dtype).items():
        yield f"{name}-times-{scale}", matrix * factor, good and scale in MODEST


def _any_shape(rng, rows, cols, dtype):
    """Named matrices of any shape, whether they are good."""
    real = np.finfo(dtype).dtype
    good, deficient = _good(rng, rows, cols), _product(rng, rows, cols, 7, real)
    grades = np.logspace(-10, 10, cols)
    zeros = np.zeros((rows, cols))
    vandermonde = np.vander(np.arange(1.0, rows + 1), cols, increasing=True)
    yield from _scaled("good", good, dtype, True)
    for rank in (1, 5, 9):
        yield f"product-of-rank-{rank}", _product(rng, rows, cols, rank, real), False
    yield from _scaled("deficient", deficient, dtype)
    yield "integers-of-rank-6", _integers(rng, rows, cols), False
    yield "vandermonde", vandermonde, False
    yield "zero", zeros, False
    yield "one-entry", _replaced(zeros, (2, 3), 2.0), False
    yield "ones", np.ones((rows, cols)), False
    yield "zero-column", _replaced(good, np.s_[:, 4], 0), False
    yield "zero-row", _replaced(good, np.s_[4], 0), False
    yield "equal-columns", _replaced(good, np.s_[:, 7], good[:, 1]), False
    yield "equal-rows", _replaced(good, np.s_[7], good[1]), False
    yield "graded-columns", good * grades, False
    yield "graded-rows", np.logspace(-10, 10, rows)[:, None] * good, False
    yield "graded-deficient", deficient * grades, False
    for exponent in (4, 7, 8, 13, 15, 17):
        condition = _with_condition(rng, rows, cols, 10.0**exponent)
        yield f"condition-1e{exponent}", condition, False
    yield "one-tiny-entry", _replaced(good, (0, 0), 1e-30), False
    yield "gap-at-1e-5", _with_gap(rng, rows, cols), False
    for name, value in (("nan", np.nan), ("inf", np.inf), ("minus-inf", -np.inf)):
        yield f"{name}-entry", _replaced(good, (3, 5), value), False
    yield "nan-everywhere", zeros + np.nan, False


def _square(rng, dtype):
    index = np.arange(SIZE)
    noise = rng.standard_normal((SIZE, SIZE))
    yield from _any_shape(rng, SIZE, SIZE, dtype)
    yield "hilbert", 1 / (index[:, None] + index + 1.0), False
    yield "skew-symmetric", noise - noise.T, False
    yield "cyclic-shift", np.roll(np.eye(SIZE), 1, axis=0), False
    yield "nilpotent", np.eye(SIZE, k=1), False
    yield "integers-0-to-99", np.arange(100.0).reshape(SIZE, SIZE), False
    yield "wilkinson-growth", _wilkinson(), False
    yield "negative-definite", -_definite(rng, np.linspace(1, 4, SIZE)), False
    yield (
        "triangular-of-twos",
        np.eye(SIZE) - 2 * np.triu(np.ones((SIZE, SIZE)), 1),
        False,
    )


def _wilkinson():
    matrix = np.eye(SIZE) - np.tril(np.ones((SIZE, SIZE)), -1)
    matrix[:, -1] = 1
    return matrix


def _definite(rng, eigenvalues):
    basis = _orthonormal(rng, SIZE, SIZE)
    matrix = basis * eigenvalues @ basis.T
    return (matrix + matrix.T) / 2


def _tagged_definite(rng, dtype):
    real = np.finfo(dtype).dtype
    index = np.arange(SIZE)
    spread = np.linspace(0.5, 1.5, SIZE)
    good = _definite(rng, spread)
    left = rng.standard_normal((SIZE, 7)).astype(real)
    grades = np.logspace(-5, 5, SIZE)
    integers = rng.integers(-3, 4, (SIZE, 6))
    yield from _scaled("good", good, dtype, True)
    yield from _scaled("deficient", left @ left.T, dtype)
    yield "integers-of-rank-6", integers @ integers.T, False
    yield "ones", np.ones((SIZE, SIZE)), False
    yield "hilbert", 1 / (index[:, None] + index + 1.0), False
    yield "zero", np.zeros((SIZE, SIZE)), False
    yield "zero-row-and-column", good * (index != 4) * (index != 4)[:, None], False
    yield "indefinite", _definite(rng, np.where(index == 3, -1, spread)), False
    yield "indefinite-barely", _definite(rng, np.where(index == 3, -1e-9, spread)), False
    yield "negative", -good, False
    yield "not-hermitian", good + np.triu(rng.standard_normal((SIZE, SIZE)), 1), False
    yield "hollow", np.ones((SIZE, SIZE)) - np.eye(SIZE), False
    yield "graded", grades[:, None] * good * grades, False
    for exponent in (4, 7, 8, 13, 15, 17):
        eigenvalues = np.logspace(0, -exponent, SIZE)
        yield f"condition-1e{exponent}", _definite(rng, eigenvalues), False
    yield "far-eigenvalue", _definite(rng, np.where(index == 0, 50, spread)), False
    for name, value in (("nan", np.nan), ("inf", np.inf), ("minus-inf", -np.inf)):
        bad = _replaced(_replaced(good, (3, 5), value), (5, 3), value)
        yield f"{name}-entry", bad, False
        yield f"{name}-on-diagonal", _replaced(good, (3, 3), value), False
        yield f"{name}-in-one-triangle", _replaced(good, (5, 3), value), False


def _triangular(rng, dtype):
    good = np.tril(0.3 * rng.standard_normal((SIZE, SIZE)), -1) + 2 * np.eye(SIZE)
    ones = np.tril(np.ones((SIZE, SIZE)), -1)
    yield from _scaled("good", good, dtype, True)
    yield "zero-on-diagonal", _replaced(good, (4, 4), 0), False
    yield "zero-last", _replaced(good, (-1, -1), 0), False
    yield "tiny-on-diagonal", _replaced(good, (4, 4), 1e-17), False
    yield "twos-below", np.eye(SIZE) - 2 * ones, False
    yield "eighties-below", np.eye(SIZE) - 80 * ones, False
    yield "graded", good * np.logspace(-10, 10, SIZE), False
    yield "zero", np.zeros((SIZE, SIZE)), False
    yield "nan-entry", _replaced(good, (5, 3), np.nan), False
    yield "nan-in-the-other-triangle", _replaced(good, (3, 5), np.nan), False
    yield "inf-on-diagonal", _replaced(good, (4, 4), np.inf), False


def _tridiagonal(rng, dtype):
    band = np.tri(SIZE, k=1) * np.tri(SIZE, k=1).T
    good = 0.3 * rng.standard_normal((SIZE, SIZE)) * band + 2 * np.eye(SIZE)
    path = 2 * np.eye(SIZE) - np.eye(SIZE, k=1) - np.eye(SIZE, k=-1)
    yield from _scaled("good", good, dtype, True)
    yield "path-laplacian", _replaced(_replaced(path, (0, 0), 1), (-1, -1), 1), False
    yield "hollow-odd-block", _replaced(path * 0 + np.eye(SIZE, k=1), (3, 3), 1), False
    yield "zero-diagonal", np.eye(SIZE, k=1) + np.eye(SIZE, k=-1), False
    yield "zero-row", _replaced(good, np.s_[4], 0), False
    yield "zero-column", _replaced(good, np.s_[:, 4], 0), False
    yield "tiny-last", _replaced(np.eye(SIZE), (-1, -1), 1e-17) + np.eye(SIZE, k=1), False
    yield "long-chain", np.eye(SIZE) + 100 * np.eye(SIZE, k=1), False
    yield "graded", good * np.logspace(-10, 10, SIZE), False
    yield "zero", np.zeros((SIZE, SIZE)), False
    yield "nan-entry", _replaced(good, (5, 4), np.nan), False
    yield "inf-on-diagonal", _replaced(good, (4, 4), np.inf), False


_MATRICES = {
    "square": _square,
    "tall": lambda rng, dtype: _any_shape(rng, *SHAPES["tall"], dtype),
    "wide": lambda rng, dtype: _any_shape(rng, *SHAPES["wide"], dtype),
    "definite": _tagged_definite,
    "lower-triangular": _triangular,
    "tridiagonal": _tridiagonal,
}


@ft.cache
def systems(kind, dtype):
    """All systems of a kind: each matrix with a generic b and one in its range."""
    dtype = np.dtype(dtype)
    rng = np.random.default_rng(list(_MATRICES).index(kind))
    out = []
    for name, matrix, good in _MATRICES[kind](rng, dtype):
        rows, cols = matrix.shape
        turns = rng.integers(0, 4, rows), rng.integers(0, 4, cols)
        generic, inner = rng.standard_normal(rows), rng.standard_normal(cols)
        with np.errstate(invalid="ignore"):  # Inf times zero
            consistent = np.nan_to_num(matrix, posinf=1, neginf=1) @ inner
            matrix = _cast(matrix, dtype)
            if dtype.kind == "c":
                left = _PHASES[turns[0]]
                right = left.conj() if kind == "definite" else _PHASES[turns[1]]
                matrix, consistent = left[:, None] * matrix * right, left * consistent
        out.append(System(f"{name}-generic", matrix, _cast(generic, dtype), good))
        out.append(System(f"{name}-consistent", matrix, _cast(consistent, dtype), good))
        if name == "good":
            nought = _cast(0 * generic, dtype)
            out.append(System("good-b-zero", matrix, nought, good))
            for value in (np.nan, np.inf):
                bad = _cast(_replaced(generic, 2, value), dtype)
                out.append(System(f"good-b-{value}", matrix, bad))
            for scale in MODEST:
                vector = _cast(scales(dtype)[scale] * generic, dtype)
                out.append(System(f"good-b-times-{scale}", matrix, vector, good))
    return out


def _cast(array, dtype):
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(array).astype(dtype)
