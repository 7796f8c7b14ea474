"""Dominant matrices, at random and on grids, and their exact solutions."""

from fractions import Fraction

import numpy as np
import scipy.sparse


def grid(side, shift):
    """The Laplacian of a square grid plus a shift: δ = shift."""
    line = scipy.sparse.diags_array([-1.0, 2, -1], offsets=[-1, 0, 1], shape=(side, side))
    square = scipy.sparse.kronsum(line, line)
    return (square + shift * scipy.sparse.eye_array(side**2)).tocsr()


def dominant(rng, size, dominance, by, dtype, *, entries_of_b=None):
    """(A, b): random, not symmetric; (|a_ii| − Σ|a_ij|) / |a_ii| by rows or columns."""
    numbers = lambda *shape: _numbers(rng, shape, dtype)
    degree = rng.integers(1, 5)
    A = np.zeros((size, size), numbers(1).dtype)
    row = np.repeat(np.arange(size), degree)
    np.add.at(A, (row, rng.integers(0, size, row.size)), numbers(row.size))
    np.fill_diagonal(A, 0)
    sums = np.abs(A).sum(1 if by == "rows" else 0)
    signs = numbers(size)
    signs = signs / np.abs(signs)
    A[np.diag_indices(size)] = signs * np.where(sums > 0, sums, 1) / (1 - dominance)
    b = numbers(size) * 10 ** rng.uniform(-3, 3)
    if entries_of_b is not None:
        b = b * (rng.permutation(size) < entries_of_b)
    return A.astype(dtype), b.astype(dtype)


def _numbers(rng, shape, dtype):
    real = rng.standard_normal(shape)
    if np.issubdtype(dtype, np.complexfloating):
        return real + 1j * rng.standard_normal(shape)
    return real


def exact(A, b):
    """x in extended precision, by refinement."""
    wide = np.result_type(A.dtype, np.float64)
    longest = np.result_type(wide, np.longdouble)
    matrix, rhs = A.astype(longest), b.astype(longest)
    inverse = np.linalg.inv(A.astype(wide)).astype(longest)
    x = np.zeros(len(b), longest)
    for _ in range(6):
        x = x + inverse @ (rhs - matrix @ x)
    return x


def exact_in_fractions(A, b):
    """x as rational numbers, of any size, by Gauss and Jordan."""
    size = len(b)
    rows = [[Fraction(float(entry)) for entry in row] for row in np.column_stack([A, b])]
    for k in range(size):
        pivot = max(range(k, size), key=lambda i: abs(rows[i][k]))
        rows[k], rows[pivot] = rows[pivot], rows[k]
        rows[k] = [entry / rows[k][k] for entry in rows[k]]
        for i in set(range(size)) - {k}:
            factor = rows[i][k]
            rows[i] = [p - factor * q for p, q in zip(rows[i], rows[k], strict=True)]
    return [row[-1] for row in rows]
